"""Records read where they lie: what is mapped, what is read, and that nobody is killed by a file that changes."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from actors.clock import SystemClock
from actors.metrics.registry import Kind
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_run
from cluster.metrics.windows import Row, events_batch, metrics_batch, seal, seal_in_place, unseal
from cluster.near import MAPPED_BYTES, NearFiles
from cluster.outbox import Kind as RecordKind
from cluster.outbox import Outbox, OutboxFullError, parse
from tests.support.killing import ROOT

BIG = 2 * MAPPED_BYTES


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox" / "run" / "n1-a.box", node="n1", incarnation="a", run="run")


def window(rows: int) -> pa.RecordBatch:
    made = [Row("host.cpu.busy", Kind.GAUGE, "ratio", f"load-{at}", "p", (), 5, 2.5 * at, 0.1 * at, 0.9 * at, 0.5) for at in range(rows)]
    return metrics_batch(made, node="n1", start_ns=10**18, window_s=1.0)


def test_small_records_are_read_and_large_ones_are_mapped(box: Outbox) -> None:
    """Both are what was sealed, whole and in order; of the large one no byte is copied."""
    small, large = os.urandom(100), os.urandom(BIG)
    box.append(RecordKind.WINDOW, small)
    box.append(RecordKind.WINDOW, large[:1000], memoryview(large)[1000:], b"")
    near = NearFiles()
    with near.frames(box.path, box.places(1 << 30)) as frames:
        assert [(sequence, type(data)) for sequence, data in frames] == [(1, bytes), (2, memoryview)]
        records = [parse(data) for _, data in frames]
    assert [bytes(record.payload) for record in records] == [small, large]
    assert isinstance(records[1].payload, memoryview)
    assert records[1].payload.readonly
    assert [bytes(data) for _, data in frames] == [data for _, data in box.unacked(1 << 30)]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path, place: (path.with_name("n1-b.box"), place), id="no-file"),
        pytest.param(lambda path, place: (path, place._replace(inode=place.inode + 1)), id="another-file"),
        pytest.param(lambda path, place: (path, place._replace(offset=place.offset + 1)), id="beyond-its-end"),
        pytest.param(lambda path, place: (path.parent, place._replace(inode=path.parent.stat().st_ino)), id="no-regular-file"),
    ],
)
def test_a_place_that_cannot_be_read_here_gives_no_record(box: Outbox, change) -> None:
    """Nor do those after it: the agent sends their bytes."""
    box.append(RecordKind.WINDOW, bytes(BIG))
    box.append(RecordKind.WINDOW, bytes(BIG))
    (_, first), (_, second) = box.places(1 << 30)
    path, wrong = change(box.path, second)
    with NearFiles().frames(path, [(1, b"by its bytes"), (2, wrong), (3, b"after it")]) as frames:
        assert [sequence for sequence, _ in frames] == [1]
    assert first.offset % 8 == second.offset % 8 == 0


def test_a_disk_that_cannot_be_read_is_found_before_anything_is_mapped(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of a call, which the agent's bytes get round, and no signal."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    box.append(RecordKind.WINDOW, bytes(BIG))
    monkeypatch.setattr("cluster.near.os.preadv", broken)
    with NearFiles().frames(box.path, box.places(1 << 30)) as frames:
        assert frames == []


def test_a_flipped_bit_is_found_in_a_mapped_record_too(box: Outbox) -> None:
    """The checksum is over what the reader has in hand."""
    box.append(RecordKind.WINDOW, bytes(BIG))
    with NearFiles().frames(box.path, box.places(1 << 30)) as frames:
        parse(frames[0][1])
        with box.path.open("r+b") as file:
            file.seek(box.path.stat().st_size - 10)
            file.write(b"\x01")
        with pytest.raises(ValueError, match="torn"):
            parse(frames[0][1])


def test_what_arrays_may_keep_of_removed_files_is_bounded(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound records are read into memory; once the arrays are gone there is room again."""
    monkeypatch.setattr("cluster.outbox._COMPACT_BYTES", 1)
    near, held = NearFiles(kept_bytes=3 * BIG), []
    kinds = []
    for number in range(1, 11):
        box.append(RecordKind.WINDOW, bytes(BIG))
        with near.frames(box.path, box.places(1 << 30)) as frames:
            held.append(parse(frames[0][1]).payload)
        kinds.append(type(held[-1]))
        box.ack(number)  # the file is made anew
        assert near.kept() <= 3 * BIG + box.path.stat().st_size + BIG + 4096
    assert kinds[:3] == [memoryview] * 3
    assert set(kinds[5:]) == {bytes}
    assert all(bytes(one) == bytes(BIG) for one in held)
    held.clear()
    del frames
    gc.collect()
    assert near.kept() == 0
    box.append(RecordKind.WINDOW, bytes(BIG))
    with near.frames(box.path, box.places(1 << 30)) as frames:
        assert isinstance(frames[0][1], memoryview)


@pytest.mark.parametrize("rows", [0, 1, 7, 5000])
@pytest.mark.parametrize("events", [0, 3])
def test_a_window_sealed_in_place_is_the_same_window(rows: int, events: int) -> None:
    """In any length, with events or without, its arrays lie at multiples of 8 bytes of the payload, and none is a copy."""
    line = {
        "time": 1,
        "sequence": 1,
        "node": "n1",
        "worker": "",
        "phase": "",
        "kind": "k",
        "severity": "info",
        "message": "m",
        "data": "{}",
    }
    metrics, told = window(rows), events_batch([line] * events)
    parts = seal_in_place(metrics, told)
    payload = b"".join(parts)
    assert len(payload) % 8 == 0
    assert len(seal(metrics, told)) % 8 == 0
    found, said = unseal(payload)
    assert found.equals(metrics)
    assert said.equals(told)
    whole = pa.py_buffer(payload)
    for buffer in (buffer for column in found.columns for buffer in column.buffers() if buffer is not None and buffer.size):
        assert whole.address <= buffer.address < whole.address + whole.size
        assert (buffer.address - whole.address) % 8 == 0
    own = {buffer.address for column in metrics.columns for buffer in column.buffers() if buffer is not None}
    lying = {pa.py_buffer(part).address for part in parts if len(part) > 4096}
    assert lying <= own, "a large part was copied to be sealed"


def test_a_window_of_an_earlier_version_is_read() -> None:
    """Its head was half as long; an outbox that it left is delivered all the same."""
    metrics, told = window(3), events_batch([])
    payload = seal(metrics, told)
    assert unseal(payload[:4] + payload[8:])[0].equals(metrics)


def test_what_is_acknowledged_by_its_place_is_in_the_run_directory(box: Outbox, tmp_path: Path) -> None:
    """The same rows as by their bytes, also when the aggregator and the outbox are gone the moment after."""
    for rows in (5000, 3, 7000):
        box.append(RecordKind.WINDOW, *seal_in_place(window(rows), events_batch([])))
    by_bytes = Aggregator("run", tmp_path / "runs" / "bytes", SystemClock())
    assert by_bytes.push("n1", "a", box.unacked(1 << 30)) == 3
    by_place = Aggregator("run", tmp_path / "runs" / "places", SystemClock())
    with NearFiles().frames(box.path, box.places(1 << 30)) as frames:
        assert by_place.push("n1", "a", frames) == 3
    box.remove()
    by_place.close()
    again = Aggregator("run", tmp_path / "runs" / "places", SystemClock())
    assert again.held() == by_bytes.held()
    assert read_run(again.directory).metrics.equals(read_run(by_bytes.directory).metrics)
    again.close()
    by_bytes.close()


READER = """
import os, sys, zlib
from pathlib import Path
from cluster.near import NearFiles
from cluster.outbox import Place, parse

path, *places = sys.argv[1:]
records = [(at + 1, Place(*map(int, one.split(",")))) for at, one in enumerate(places)]
with NearFiles().frames(Path(path), records) as frames:
    payloads = [parse(data).payload for _, data in frames]
print("ready", flush=True)
for _ in sys.stdin:
    print(*(zlib.crc32(one) for one in payloads), flush=True)
"""


def test_a_reader_outlives_whatever_becomes_of_the_outbox(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has mapped records reads them unchanged after a failed write, after the file was made anew, and after its end.

    A file that is made shorter would have killed it: that is shown last.
    """
    monkeypatch.setattr("cluster.outbox._COMPACT_BYTES", 1)
    payloads = [os.urandom(BIG + at) for at in range(4)]
    for one in payloads:
        box.append(RecordKind.WINDOW, one)
    inode, kept = box.path.stat().st_ino, box.path.with_name("kept")
    os.link(box.path, kept)
    places = [",".join(map(str, place)) for _, place in box.places(1 << 30)]
    want = " ".join(str(zlib.crc32(one)) for one in payloads) + "\n"
    command = [sys.executable, "-c", READER, str(box.path), *places]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def read() -> str:
            assert reader.stdin is not None
            assert reader.stdout is not None
            print(file=reader.stdin, flush=True)
            return reader.stdout.readline()

        assert reader.stdout.readline() == "ready\n"
        assert read() == want
        _fail_a_write(box)
        assert read() == want
        box.ack(3)
        assert box.path.stat().st_ino != inode, "the file was not made anew: this showed nothing"
        assert read() == want
        box.append(RecordKind.END, b"{}")
        box.ack(5)
        assert not box.path.exists()
        assert read() == want
        os.truncate(kept, 4096)
        assert read() == ""
        assert reader.wait(10) == -signal.SIGBUS


def _fail_a_write(box: Outbox) -> None:
    """Let the disk take half of a record, so that the outbox cuts it off again."""
    real, cuts = os.pwritev, []

    def half(fd: int, parts: list[bytes], offset: int) -> int:
        if sum(map(len, parts)) > MAPPED_BYTES:
            return real(fd, [b"".join(parts)[:MAPPED_BYTES]], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwritev", half)
        patched.setattr(os, "ftruncate", lambda *call, really=os.ftruncate: (cuts.append(call), really(*call)))
        with pytest.raises(OutboxFullError):
            box.append(RecordKind.WINDOW, bytes(BIG))
    assert cuts, "nothing was cut: this showed nothing"


def test_a_second_name_of_an_outbox_is_no_way_to_cut_it(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that died between giving the file its name and taking the temporary one away left both; making it anew harms neither."""
    monkeypatch.setattr("cluster.outbox._COMPACT_BYTES", 1)
    for _ in range(3):
        box.append(RecordKind.WINDOW, bytes(100))
    before = box.unacked(1 << 30)[2:]
    os.link(box.path, box.path.with_suffix(".new"))
    size = box.path.stat().st_size
    with box.path.open("rb") as old:
        box.ack(2)
        assert os.fstat(old.fileno()).st_size == size
    assert box.unacked(1 << 30) == before
