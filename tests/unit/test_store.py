from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.clock import SystemClock, VirtualClock
from actors.errors import HarnessError
from cluster.files import read_json, write_json_atomic, write_whole
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.parts import part_files
from cluster.metrics.ranges import Ranges
from cluster.metrics.store import (
    Coverage,
    End,
    RunStore,
    log_files,
    read_run,
    unchanged,
)
from cluster.metrics.windows import EVENTS, METRICS
from tests.support.windows import STREAM, entry, record


def seen(directory: Path) -> tuple[list[float], list[str]]:
    contents = read_run(directory)
    assert contents.metrics.schema.equals(METRICS)
    assert contents.events.schema.equals(EVENTS)
    return sorted(contents.metrics["last"].to_pylist()[::2]), sorted(contents.events["message"].to_pylist())


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def test_the_log_is_readable_at_once(store: RunStore) -> None:
    """What was appended is read back by another reader, in the contract's columns."""
    store.append([entry(1), entry(2, events=0)])
    assert seen(store.directory) == ([1.0, 2.0], ["1.0"])
    assert store.coverage.held[STREAM].pairs() == [(1, 2)]


def test_an_append_is_synced_events_first(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When append returns, every byte of both logs is synced, and the events were before the batch that commits them was written."""
    synced: list[tuple[str, int]] = []

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix == ".arrows":
            synced.append((path.name, path.stat().st_size))
            if path.name.startswith("events"):
                assert not seen(store.directory)[0][len(synced) // 2 :], "a record was committed before its events were safe"

    monkeypatch.setattr("os.fsync", fsync)
    for sequence in (1, 2):
        store.append([entry(sequence)])
        sizes = [(path.name, path.stat().st_size) for stem in ("events", "metrics") for path in log_files(store.directory, stem)]
        assert synced[-2:] == sizes


def test_the_log_has_the_stream_beside_the_contracts_columns(store: RunStore) -> None:
    """Who opens the log by hand sees which record a row belongs to."""
    store.append([entry(1)])
    with pa.ipc.open_stream(log_files(store.directory, "metrics")[0].open("rb")) as reader:
        table = pa.Table.from_batches([reader.read_next_batch()])
    assert table.column_names == [*METRICS.names, "stream_node", "incarnation", "record"]
    assert table["record"].to_pylist() == [1, 1]


def test_settling_moves_the_log_into_parquet(store: RunStore) -> None:
    """After settling there is no log, the rows are the same, and the footer names the records."""
    store.append([entry(1), entry(2, end=True)])
    before = seen(store.directory)
    store.settle()
    assert seen(store.directory) == before
    assert not (store.directory / "log").exists()
    footer = json.loads(pq.read_schema(part_files(store.directory)[0]).metadata[b"stress_cluster"])
    assert footer == {"schema": 1, "streams": [{"node": "n1", "incarnation": "a", "ranges": [[1, 2]], "end": 2, "clean": True}]}
    assert pq.read_table(part_files(store.directory)[0]).column_names == METRICS.names
    assert pq.read_table(store.directory / "events.parquet").column_names == EVENTS.names


def test_late_data_is_a_new_part(store: RunStore) -> None:
    """Parts are never rewritten; events.parquet is, whole."""
    store.append([entry(1)])
    store.settle()
    first = part_files(store.directory)[0].read_bytes()
    store.append([entry(2)])
    store.settle()
    assert [path.name for path in part_files(store.directory)] == ["part-0000.parquet", "part-0001.parquet"]
    assert part_files(store.directory)[0].read_bytes() == first
    assert seen(store.directory) == ([1.0, 2.0], ["1.0", "2.0"])


def test_an_empty_run_has_its_files(store: RunStore) -> None:
    """Without a single record the Parquet files exist with their columns."""
    store.settle()
    store.settle()
    assert seen(store.directory) == ([], [])
    assert [path.name for path in part_files(store.directory)] == ["part-0000.parquet"]


def test_a_restart_begins_new_log_files(store: RunStore) -> None:
    """A new writer knows what is held and never appends to what an old one wrote."""
    store.append([entry(1)])
    store.close()
    again = RunStore(store.directory)
    assert again.coverage.has(STREAM, 1)
    again.append([entry(2)])
    assert [path.name for path in log_files(store.directory, "metrics")] == ["metrics-0001.arrows", "metrics-0002.arrows"]
    assert seen(store.directory) == ([1.0, 2.0], ["1.0", "2.0"])


def test_what_a_dead_writer_did_not_sync_is_synced_before_it_counts(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor holds what it can read, and what is held is acknowledged next: so it must survive the machine from then on."""
    store.append([entry(1)])
    store.close()
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr("cluster.metrics.store.os.fsync", fsync)
    successor = RunStore(store.directory)
    assert successor.coverage.has(STREAM, 1)
    assert {"events-0001.arrows", "metrics-0001.arrows", "log"} <= set(synced)
    successor.close()


def test_every_cut_of_the_metrics_log_gives_whole_records(store: RunStore) -> None:
    """Cut anywhere, the log gives a prefix of its records, each with its events, and none of an uncommitted record."""
    for sequence in (1, 2, 3):
        store.append([entry(sequence)])
    store.close()
    path = log_files(store.directory, "metrics")[0]
    whole = path.read_bytes()
    found = set()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        lasts, messages = seen(store.directory)
        assert lasts == [float(at) for at in range(1, len(lasts) + 1)]
        assert messages == [f"{at}.0" for at in range(1, len(lasts) + 1)]
        found.add(len(lasts))
    assert found >= {0, 1, 2}


def test_a_record_that_is_in_the_log_twice_counts_once(store: RunStore) -> None:
    """Sent again after an append whose acknowledgement was lost, a record is read once."""
    store.append([entry(1)])
    store.close()
    again = RunStore(store.directory)
    again.append([entry(1), entry(2)])
    assert seen(store.directory) == ([1.0, 2.0], ["1.0", "2.0"])
    again.settle()
    assert seen(store.directory) == ([1.0, 2.0], ["1.0", "2.0"])


@pytest.mark.parametrize("fail_at", ["part", "events", "unlink"])
def test_a_crash_while_settling_loses_and_doubles_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch, fail_at: str) -> None:
    """Stopped before the part, between part and events, or before the log is deleted: each record is read once, and settling goes on."""
    store.append([entry(1), entry(2)])
    want = seen(store.directory)

    class Died(BaseException):
        pass

    def die(path: Path, *_: object) -> None:
        if fail_at in path.name or fail_at == "unlink":
            raise Died
        write_whole(path, *_)

    with monkeypatch.context() as patched:
        if fail_at == "unlink":
            patched.setattr(Path, "unlink", die)
        else:
            patched.setattr("cluster.metrics.store.write_whole", die)
        with pytest.raises(Died):
            store.settle()
    assert seen(store.directory) == want
    store.close()
    again = RunStore(store.directory)
    again.append([entry(3)])
    again.settle()
    assert seen(store.directory) == ([1.0, 2.0, 3.0], ["1.0", "2.0", "3.0"])
    assert not log_files(store.directory, "metrics")


def test_one_writer_at_a_time(store: RunStore) -> None:
    """A second writer is refused while the first lives."""
    with pytest.raises(HarnessError, match="another process writes"):
        RunStore(store.directory)
    store.close()
    RunStore(store.directory).close()


def test_a_failed_append_holds_nothing_and_the_next_one_begins_new_files(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses, no record of the call counts as held; the torn files are left behind."""
    store.append([entry(1)])
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            store.append([entry(2)])
    assert not store.coverage.has(STREAM, 2)
    store.append([entry(2), entry(3)])
    assert seen(store.directory) == ([1.0, 2.0, 3.0], ["1.0", "2.0", "3.0"])
    assert len(log_files(store.directory, "metrics")) == 2


def test_a_document_appears_whole(tmp_path: Path) -> None:
    """A write that fails leaves the old document and no temporary file; NaN and infinities become null."""
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1, "b": [float("nan"), float("inf"), {"c": (1.5,)}]})
    assert read_json(path) == {"a": 1, "b": [None, None, {"c": [1.5]}]}

    def fail(sink: object) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        write_whole(path, fail)
    assert read_json(path) == {"a": 1, "b": [None, None, {"c": [1.5]}]}
    assert [found.name for found in tmp_path.iterdir()] == ["summary.json"]
    assert read_json(tmp_path / "none.json") is None


def test_left_over_temporary_files_are_swept(tmp_path: Path) -> None:
    """A new writer removes what one that died in mid-write left."""
    RunStore(tmp_path).close()
    for name in (".summary.json.tmp", "metrics/.part-0000.parquet.tmp"):
        (tmp_path / name).write_bytes(b"x")
    RunStore(tmp_path).close()
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("numbers", "pairs", "contiguous"),
    [
        pytest.param([], [], 0, id="empty"),
        pytest.param([1, 2, 3], [(1, 3)], 3, id="in-order"),
        pytest.param([3, 1, 2, 2], [(1, 3)], 3, id="any-order"),
        pytest.param([2, 3, 7], [(2, 3), (7, 7)], 0, id="one-is-missing"),
        pytest.param([1, 2, 5, 4], [(1, 2), (4, 5)], 2, id="a-gap"),
    ],
)
def test_ranges(numbers: list[int], pairs: list[tuple[int, int]], contiguous: int) -> None:
    """A set of numbers as ranges, whatever the order of adding."""
    ranges = Ranges()
    for number in numbers:
        ranges.add(number)
    assert (ranges.pairs(), ranges.contiguous) == (pairs, contiguous)
    assert all(number in ranges for number in numbers)
    assert 100 not in ranges


def test_coverage_survives_its_footer() -> None:
    """Ranges and ends come back from a footer; a foreign footer names no record."""
    coverage = Coverage()
    for sequence in (1, 2, 5):
        coverage.add(STREAM, sequence, End(5, False) if sequence == 5 else None)
    assert Coverage.of_footer({b"stress_cluster": coverage.to_footer()}) == coverage
    assert Coverage.of_footer({b"pandas": b"{}"}).held == {}
    assert Coverage.of_footer(None).held == {}


def test_what_exporters_lack_is_read_from_a_log_that_has_gone_into_parquet_meanwhile(tmp_path: Path) -> None:
    """The log is held packed, and unpacked record by record: each is a batch of its own, in order, with its rows and no other's."""
    aggregator = Aggregator("run", tmp_path / "run", SystemClock())
    aggregator.push("n1", "a", [record("n1", sequence) for sequence in range(1, 41)])
    parts, pending = aggregator.stored()
    assert parts == []
    first = next(pending)
    aggregator.finish({"status": "passed"})
    assert not (aggregator.directory / "log").exists()
    found = [first, *pending]
    assert [tagged.sequence for tagged in found] == list(range(1, 41))
    assert [tagged.batch.column("sum")[0].as_py() for tagged in found] == [float(sequence) for sequence in range(1, 41)]
    assert len(aggregator.stored()[0]) == 1
    assert list(aggregator.stored()[1]) == []
    aggregator.close()


def test_a_log_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is read at once, the records are the same."""
    aggregator = Aggregator("run", tmp_path / "run", SystemClock())
    aggregator.push("n1", "a", [record("n1", sequence) for sequence in range(1, 31)])
    aggregator.close()
    whole = read_run(aggregator.directory).metrics
    for size in (1, 10_000):
        monkeypatch.setattr("cluster.metrics.store._GROUP_BYTES", size)
        assert read_run(aggregator.directory).metrics.equals(whole)
    assert whole.num_rows == 90


@pytest.mark.parametrize(("each_s", "still_after", "reads"), [(1.0, 15, 16), (1.0, 99, 20), (0.0, 7, 8), (5.0, 99, 8)])
def test_files_that_never_stand_still_are_given_up(tmp_path: Path, each_s: float, still_after: int, reads: int) -> None:
    """A writer turns its log over with each read: it is read again for 20 s, and eight times where a read takes long, and then told."""
    clock, made = VirtualClock(), []

    def read() -> int:
        clock.sleep(each_s)
        made.append(clock.boot_ns())
        if len(made) <= still_after:
            (tmp_path / "events.parquet").unlink(missing_ok=True)
            (tmp_path / "new").write_bytes(b"")  # while the old one still has its number
            (tmp_path / "new").rename(tmp_path / "events.parquet")
            (tmp_path / f"kept{len(made)}").hardlink_to(tmp_path / "events.parquet")
        return len(made)

    if still_after > reads:
        with pytest.raises(HarnessError, match=f"changed {reads} times while they were read") as told:
            unchanged(tmp_path, read, clock)
        assert told.value.code == "busy"
    else:
        assert unchanged(tmp_path, read, clock) == reads
    assert len(made) == reads


@pytest.mark.parametrize("error", [OSError("unexpected end of stream"), HarnessError("foreign", "damaged"), pa.ArrowInvalid("not a file")])
def test_a_file_that_was_replaced_while_it_was_read_is_read_again(tmp_path: Path, error: Exception) -> None:
    """It looks damaged where two of its states met; one that stood still is."""
    path, reads = tmp_path / "events.parquet", []
    path.write_bytes(b"1")

    def read() -> int:
        reads.append(1)
        if len(reads) == 1:
            (tmp_path / "new").write_bytes(b"2")
            (tmp_path / "new").replace(path)
            raise error
        return len(reads)

    assert unchanged(tmp_path, read) == 2
    with pytest.raises(type(error)):
        unchanged(tmp_path, lambda: (_ for _ in ()).throw(error))
