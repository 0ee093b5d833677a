"""Bits that flip and files that are cut on disk: found, said, counted, and never read; the run goes on without them."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError
from cluster.analysis import load
from cluster.files import read_json
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.checksum import EMPTY, passed_over, sound_records
from cluster.metrics.parts import part_files
from cluster.metrics.retention import Retention
from cluster.metrics.store import log_files, read_run
from tests.support.windows import START_S, end, record

RECORDS = 6


def make(folder: Path, clock: VirtualClock | None = None) -> Aggregator:
    """Return an aggregator that holds some records in its log."""
    made = Aggregator("r", folder / "r", clock or VirtualClock())
    made.push("n1", "a", [record("n1", at) for at in range(1, RECORDS + 1)])
    return made


def numbers(directory: Path) -> list[int]:
    """Return which records a reader finds."""
    return sorted(int(row["sum"]) for row in read_run(directory).metrics.to_pylist() if row["metric"] == "probe.requests")


def flipped(data: bytes, bit: int) -> bytes:
    made = bytearray(data)
    made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


def test_every_flipped_bit_of_a_log_costs_its_record_alone(tmp_path: Path) -> None:
    """Wherever a bit flips, in heads, names or figures: the other records are read as they were, and that one is not read."""
    aggregator = make(tmp_path)
    want = read_run(aggregator.directory).metrics.to_pylist()
    aggregator.close()
    (path,) = log_files(aggregator.directory, "metrics")
    whole = path.read_bytes()
    records = list(sound_records(whole))
    assert len(records) == RECORDS
    chance = random.Random(11)
    for bit in chance.sample(range(len(whole) * 8), 60):
        path.write_bytes(flipped(whole, bit))
        hit = [at for at, (begin, after) in enumerate(records) if begin <= bit // 8 < after]
        found = read_run(aggregator.directory).metrics.to_pylist()
        assert found == [row for at in range(RECORDS) if at not in hit for row in want[3 * at : 3 * at + 3]], f"bit {bit}"


def test_every_flipped_bit_and_every_cut_of_a_parquet_file_is_found(tmp_path: Path) -> None:
    """Also in its footer, where names, ranges and statistics are. Other readers read the file as any other."""
    aggregator = make(tmp_path)
    aggregator.finish({"status": "passed"})
    (path,) = part_files(aggregator.directory)
    whole = path.read_bytes()
    assert pq.read_table(path).num_rows == 3 * RECORDS
    assert EMPTY not in whole
    chance = random.Random(12)
    damaged = [flipped(whole, bit) for bit in chance.sample(range(len(whole) * 8), 300)]
    damaged += [whole[:size] for size in (0, 3, 100, len(whole) // 2, len(whole) - 1)]
    for at, data in enumerate(damaged):
        path.unlink()
        path.write_bytes(data)
        with pytest.raises(HarnessError, match=r"part-0000\.parquet is damaged"):
            read_run(aggregator.directory)
        if at % 100 == 0:
            with pytest.raises(HarnessError, match="damaged"):
                load(aggregator.directory)
    path.write_bytes(whole)
    assert numbers(aggregator.directory) == list(range(1, RECORDS + 1))


def test_a_successor_goes_on_without_what_is_damaged_and_says_so(tmp_path: Path) -> None:
    """After a flip in an acknowledged record, which its agent has no more, its stream goes on behind it; the loss is told and counted."""
    aggregator = make(tmp_path)
    aggregator.close()
    (path,) = log_files(aggregator.directory, "metrics")
    begin, after = list(sound_records(path.read_bytes()))[2]
    path.write_bytes(flipped(path.read_bytes(), (begin + after) * 4))
    assert load(aggregator.directory).damage == (f"{after - begin} bytes of {path.name}",)
    successor = Aggregator("r", aggregator.directory, VirtualClock())
    assert successor.push("n1", "a", []) == RECORDS
    assert successor.push("n1", "a", [record("n1", RECORDS + 1), end(RECORDS + 2)]) == RECORDS + 2
    successor.finish({"status": "passed"}, {"status": "passed"})
    assert numbers(successor.directory) == [1, 2, 4, 5, 6, 7]
    told = read_run(successor.directory).events.to_pylist()
    assert [one["message"] for one in told if one["kind"] == "metrics.damaged"] == [
        f"not as it was written, and not read: {after - begin} bytes of {path.name}"
    ]
    summary = read_json(successor.directory / "summary.json") or {}
    assert (summary["losses"]["lost_records"], summary["outstanding"]) == (1, [])
    successor.close()
    again = Aggregator("r", successor.directory, VirtualClock())
    assert again.losses()["lost_records"] == 1
    assert len([one for one in read_run(again.directory).events.to_pylist() if one["kind"] == "metrics.damaged"]) == 1
    again.close()


def test_a_damaged_part_is_set_aside(tmp_path: Path) -> None:
    """By a successor, and by a settling in mid-run: its records are counted as lost, its name is not given again, all else goes on."""
    aggregator = make(tmp_path)
    aggregator.finish({"status": "x"})
    (first,) = part_files(aggregator.directory)
    first.write_bytes(flipped(first.read_bytes(), 4000))
    aggregator.push("n1", "a", [record("n1", RECORDS + 1)])
    aggregator.finish({"status": "x"})
    assert [path.name for path in part_files(aggregator.directory)] == ["part-0001.parquet"]
    assert (aggregator.losses()["lost_records"], aggregator.losses()["damaged_files"]) == (RECORDS, ["part-0000.parquet"])
    aggregator.close()
    (second,) = part_files(aggregator.directory)
    second.write_bytes(second.read_bytes()[:-1])
    successor = Aggregator("r", aggregator.directory, VirtualClock())
    assert successor.push("n1", "a", [record("n1", RECORDS + 2), end(RECORDS + 3)], RECORDS + 1) == RECORDS + 3
    successor.finish({"status": "x"}, {"status": "x"})
    assert numbers(successor.directory) == [RECORDS + 2]
    assert [path.name for path in part_files(successor.directory)] == ["part-0002.parquet"]
    assert successor.losses()["damaged_files"] == ["part-0000.parquet", "part-0001.parquet"]
    assert "part-0001.parquet, set aside in damaged/" in str(read_run(successor.directory).events["message"].to_pylist())
    successor.close()


def test_a_torn_tail_is_no_damage(tmp_path: Path) -> None:
    """What was cut off at the end was never acknowledged: it is sent again, and nobody is alarmed."""
    aggregator = make(tmp_path)
    aggregator.close()
    (path,) = log_files(aggregator.directory, "metrics")
    begin, after = list(sound_records(path.read_bytes()))[-1]
    for cut in (begin + 3, begin + 60, after - 1):
        torn = path.read_bytes()[:cut]
        schema = log_schema(path)
        assert passed_over(torn, schema) == (0, cut - begin)
    path.write_bytes(path.read_bytes()[: after - 1])
    successor = Aggregator("r", aggregator.directory, VirtualClock())
    assert successor.push("n1", "a", [record("n1", RECORDS)]) == RECORDS
    assert successor.losses()["lost_records"] == 0
    assert "metrics.damaged" not in read_run(successor.directory).events["kind"].to_pylist()
    successor.close()


def log_schema(path: Path):
    import pyarrow as pa

    with pa.ipc.open_stream(path.open("rb")) as reader:
        return reader.schema


def test_a_rolled_part_has_its_checksum_too(tmp_path: Path) -> None:
    """What is rolled up is as safe as what was written as it came."""
    aggregator = Aggregator("r", tmp_path / "r", VirtualClock())
    aggregator.push("n1", "a", [record("n1", at) for at in range(1, 200)])
    assert aggregator.roll(Retention(60.0, None).target((START_S + 1000) * 10**6, (float(START_S),)))
    (path,) = part_files(aggregator.directory)
    assert path.name.startswith("rolled")
    path.write_bytes(flipped(path.read_bytes(), 4000))
    with pytest.raises(HarnessError, match="rolled"):
        read_run(aggregator.directory)
    aggregator.close()
