from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from actors.errors import HarnessError
from cluster.outbox import Kind, Outbox, OutboxFullError, Record, frame, leftovers, parse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "run" / "n1-a.box"


def _new(path: Path, **more: int) -> Outbox:
    return Outbox(path, node="n1", incarnation="a", run="run", **more)


def _held(box: Outbox) -> list[tuple[int, bytes]]:
    return [(sequence, parse(data).payload) for sequence, data in box.unacked(1 << 30)]


def test_records_come_back_in_order(path: Path) -> None:
    """Sequence numbers begin at 1 without gaps, and a new owner finds what the old one sealed."""
    box = _new(path)
    assert [box.append(Kind.WINDOW, bytes([at])) for at in range(5)] == [1, 2, 3, 4, 5]
    box.ack(2)
    want = [(3, b"\x02"), (4, b"\x03"), (5, b"\x04")]
    assert _held(box) == want
    box.close()
    again = Outbox(path)
    assert (again.node, again.incarnation, again.run, again.last) == ("n1", "a", "run", 5)
    assert _held(again)[-3:] == want  # acknowledged ones may come again: the aggregator skips them


def test_a_torn_tail_loses_only_the_record_that_was_being_written(path: Path) -> None:
    """Cut at every byte, the file gives each whole record and goes on from there."""
    box = _new(path)
    sizes = [path.stat().st_size]
    for at in range(3):
        box.append(Kind.WINDOW, b"payload-%d" % at)
        sizes.append(path.stat().st_size)
    box.close()
    whole = path.read_bytes()
    for cut in range(sizes[0], len(whole)):
        path.write_bytes(whole[:cut])
        left = Outbox(path)
        kept = sum(size <= cut for size in sizes) - 1
        assert [sequence for sequence, _ in _held(left)] == list(range(1, kept + 1))
        assert left.append(Kind.WINDOW, b"next") == kept + 1
        assert _held(left)[-1] == (kept + 1, b"next")
        left.close()


def test_a_flipped_bit_ends_the_reading(path: Path) -> None:
    """A damaged record and what follows is not handed out."""
    box = _new(path)
    box.append(Kind.WINDOW, b"first")
    at = path.stat().st_size
    box.append(Kind.WINDOW, b"second")
    box.append(Kind.WINDOW, b"third")
    box.close()
    data = bytearray(path.read_bytes())
    data[at + 26] ^= 1
    path.write_bytes(bytes(data))
    assert _held(Outbox(path)) == [(1, b"first")]


def test_a_gap_in_the_file_ends_the_reading(path: Path) -> None:
    """A whole record with a number out of turn, left of an earlier write, is not handed out."""
    box = _new(path)
    box.append(Kind.WINDOW, b"first")
    box.close()
    path.write_bytes(path.read_bytes() + frame(Record(3, Kind.WINDOW, b"third")))
    left = Outbox(path)
    assert _held(left) == [(1, b"first")]
    assert left.append(Kind.WINDOW, b"second") == 2


def test_the_acknowledged_end_removes_the_file(path: Path) -> None:
    """A stream that has ended and arrived leaves nothing."""
    box = _new(path)
    box.append(Kind.WINDOW, b"x")
    box.append(Kind.END, b"{}")
    box.ack(1)
    assert path.exists()
    box.ack(2)
    assert not path.parent.exists()
    box.remove()
    assert box.unacked() == []


def test_an_orphan_is_sealed_as_unclean(path: Path) -> None:
    """Who takes over a stream names its end, and that its owner had not."""
    box = _new(path)
    box.append(Kind.WINDOW, b"x")
    box.close()
    assert leftovers(path.parents[1]) == [path]
    taken = Outbox(path)
    taken.seal()
    taken.seal()
    end = parse(taken.unacked()[-1][1])
    assert (end.sequence, end.kind, json.loads(end.payload)) == (2, Kind.END, {"clean": False})


def test_one_owner_at_a_time(path: Path) -> None:
    """A second owner is refused as busy, and the file of a live one cannot be begun anew."""
    box = _new(path)
    with pytest.raises(HarnessError, match="has an owner"):
        Outbox(path)
    with pytest.raises(HarnessError, match="File exists"):
        _new(path)
    assert list(path.parent.iterdir()) == [path]
    box.close()
    Outbox(path).close()


def test_a_full_outbox_takes_no_window_but_its_end(path: Path) -> None:
    """The size is bounded; a refused record changes nothing and the end mark still fits."""
    box = _new(path, max_bytes=300)
    assert box.append(Kind.WINDOW, b"x" * 200) == 1
    with pytest.raises(OutboxFullError):
        box.append(Kind.WINDOW, b"y" * 200)
    assert [sequence for sequence, _ in _held(box)] == [1]
    assert box.append(Kind.END, b"{}") == 2


def test_a_failed_write_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk has no room the record is refused, and the next one has its number."""
    box = _new(path)
    box.append(Kind.WINDOW, b"first")
    real = os.pwritev

    def short(fd: int, parts: list[memoryview], offset: int) -> int:
        data = b"".join(parts)
        if len(data) > 10:
            return real(fd, [data[:10]], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", short)
        with pytest.raises(OutboxFullError):
            box.append(Kind.WINDOW, b"lost")
    assert box.append(Kind.WINDOW, b"second") == 2
    box.close()
    assert _held(Outbox(path)) == [(1, b"first"), (2, b"second")]


def test_acknowledged_records_give_their_room_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is rewritten without what was acknowledged; numbers go on."""
    monkeypatch.setattr("cluster.outbox._COMPACT_BYTES", 1000)
    box = _new(path)
    for at in range(50):
        sequence = box.append(Kind.WINDOW, bytes(100))
        box.ack(sequence - 2)
        assert path.stat().st_size < 3000, at
        assert [number for number, _ in _held(box)] == list(range(max(1, sequence - 1), sequence + 1))
    box.close()
    again = Outbox(path)
    assert again.last == 50
    assert again.append(Kind.WINDOW, b"z") == 51


def test_unacked_is_bounded_by_size(path: Path) -> None:
    """A batch holds at most so many bytes, and at least one record."""
    box = _new(path)
    for _ in range(4):
        box.append(Kind.WINDOW, bytes(100))
    assert [sequence for sequence, _ in box.unacked(260)] == [1, 2]
    assert [sequence for sequence, _ in box.unacked(1)] == [1]


@pytest.mark.parametrize(
    "data", [b"", b"SCRC", frame(Record(1, Kind.WINDOW, b"abc"))[:-1], b"X" + frame(Record(1, Kind.WINDOW, b"abc"))[1:]]
)
def test_a_torn_frame_is_refused(data: bytes) -> None:
    """parse() takes whole frames only."""
    with pytest.raises(ValueError, match="record"):
        parse(data)


def test_what_is_no_outbox_is_refused(path: Path) -> None:
    """A foreign file is named in the error and left as it is."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else entirely")
    with pytest.raises(HarnessError, match="no outbox"):
        Outbox(path)
    assert path.read_bytes() == b"something else entirely"
