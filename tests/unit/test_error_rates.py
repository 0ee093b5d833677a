"""Errors by code: each error has one, errno is kept, words are bounded, and the rate by code and node is a series that ends at 0."""

from __future__ import annotations

import asyncio
import errno
import json
from concurrent.futures import CancelledError as FutureCancelledError
from pathlib import Path

import pytest

from actors.clock import VirtualClock
from actors.errors import CODES, HarnessError, InputError, RefusedError, StressError
from actors.metrics import Recorder, Segment
from actors.metrics.error_ledger import TEXT_MAX, ErrorLedger, code_of, errno_of
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import unseal
from cluster.outbox import Kind, Outbox, parse

CATEGORIES = {"input", "safety", "resource", "invalid_state", "timeout", "os", "cancelled", "internal"}


def caused(error: Exception, cause: BaseException) -> Exception:
    try:
        raise error from cause
    except type(error) as found:
        return found


@pytest.mark.parametrize(
    ("error", "code", "number"),
    [
        (OSError(errno.ENOSPC, "full"), "os", errno.ENOSPC),
        (PermissionError(errno.EPERM, "no"), "os", errno.EPERM),
        (TimeoutError(), "timeout", None),
        (TimeoutError(errno.ETIMEDOUT, "late"), "timeout", errno.ETIMEDOUT),
        (asyncio.CancelledError(), "cancelled", None),
        (FutureCancelledError(), "cancelled", None),
        (KeyboardInterrupt(), "cancelled", None),
        (ValueError("x"), "internal", None),
        (MemoryError(), "internal", None),
        (InputError("invalid_value", "x"), "invalid_value", None),
        (caused(HarnessError("journal", "x"), OSError(errno.EIO, "bad")), "journal", errno.EIO),
        (caused(ValueError("x"), caused(KeyError("y"), OSError(errno.EBADF, "z"))), "internal", errno.EBADF),
    ],
)
def test_every_error_has_a_code(error: BaseException, code: str, number: int | None) -> None:
    """Ours keep their own; the system's, late, cancelled and unforeseen ones get the nearest; errno is found in what it came from."""
    assert (code_of(error), errno_of(error)) == (code, number)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_causes_in_a_circle_end(length: int) -> None:
    """Errors that were raised from each other in a circle have no errno, and the search for it returns."""
    circle = [ValueError(str(number)) for number in range(length)]
    for error, cause in zip(circle, [*circle[1:], circle[0]], strict=True):
        error.__cause__ = cause
    assert errno_of(circle[0]) is None


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_counted_under_its_own_name(code: str) -> None:
    """The table is closed: each code has one of the eight categories, and no other can be made. Who raises them: test_error_codes."""
    ledger = ErrorLedger()
    with pytest.raises(StressError) as caught:
        raise StressError(code, "x")
    assert (ledger.note(caught.value).code, ledger.totals()) == (code, {code: 1})
    assert CODES[code][0] in CATEGORIES
    with pytest.raises(AssertionError, match="unknown error code"):
        StressError(f"{code}_made_up", "x")


def test_the_first_errors_of_a_code_are_told_in_words(tmp_path: Path, clock: VirtualClock) -> None:
    """Of a thousand errors of one code three are in the story, cut to their bound, with code, category, type and errno; all are counted."""
    stream = stream_of(tmp_path, clock)
    for number in range(1000):
        stream.error(OSError(errno.ENOSPC, f"{number} " + "x" * 1000), "op", "ramp")
    stream.error(RefusedError("busy", "taken"))
    clock.advance(1.0)
    stream.close_window(clock.wall_ns())
    ((_, data),) = stream.unacked(1 << 30)
    rows, events = unseal(parse(data).payload)
    seen = {dict(row["labels"])["code"]: row["sum"] for row in rows.to_pylist() if row["metric"] == "errors.seen"}
    assert seen == {"os": 1000.0, "busy": 1.0}
    first, *_, last = events.to_pylist()
    assert events.num_rows == 4
    assert (first["kind"], first["worker"], first["phase"], len(first["message"])) == ("error", "op", "ramp", len("os: ") + TEXT_MAX)
    assert "0 xxx" in first["message"]
    assert json.loads(first["data"]) == {"code": "os", "category": "os", "type": "OSError", "errno": errno.ENOSPC}
    assert json.loads(last["data"]) == {"code": "busy", "category": "invalid_state", "type": "RefusedError", "errno": None}


# the series


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def stream_of(tmp_path: Path, clock: VirtualClock, node: str = "n1", **more: int) -> MetricStream:
    return MetricStream(node, "a", "r", Outbox(tmp_path / "r" / f"{node}-a.box", node=node, incarnation="a", run="r", **more), clock)


def rates(stream: MetricStream) -> list[dict[str, float]]:
    """Return for each window the rate by code."""
    records = [parse(data) for _, data in stream.unacked(1 << 30)]
    found = []
    for record in records:
        if record.kind is Kind.WINDOW:
            rows = unseal(record.payload)[0].to_pylist()
            found.append({dict(row["labels"])["code"]: row["last"] for row in rows if row["metric"] == "errors.rate"})
    return found


@pytest.mark.parametrize("window_s", [1.0, 0.5, 2.0])
def test_five_a_second_and_then_none(tmp_path: Path, clock: VirtualClock, window_s: float) -> None:
    """5 errors/s of one code and 2/s of another for 20 s, on two nodes: the series shows each rate, and 0 one window after the end."""
    streams = [stream_of(tmp_path, clock, node) for node in ("n1", "n2")]
    for tenth in range(10 * 24):
        clock.advance(0.1)
        if tenth < 200 and tenth % 2 == 0:
            streams[0].error(OSError(errno.EIO, "x"))
        if tenth < 200 and tenth % 5 == 0:
            streams[0].error(TimeoutError())
            streams[1].error(TimeoutError())
        if (tenth + 1) % round(window_s * 10) == 0:
            for stream in streams:
                assert stream.close_window(clock.wall_ns())
    last = round(20 / window_s)
    first, second = rates(streams[0]), rates(streams[1])
    whole = round(max(1.0, 1.0 / window_s))  # half a second of 5/s has 2 or 3 errors, each 2/s: a second of such windows is judged
    seen = [window["os"] for window in first[:last]]
    assert all(abs(sum(seen[at : at + whole]) / whole - 5) <= 0.5 for at in range(last - whole + 1))
    assert all(abs(rate - 5) * window_s <= 0.5 for rate in seen), "no window is off by more than the half of an error"
    assert sum(window.get("os", 0.0) for window in first) * window_s == pytest.approx(100)
    assert sum(window["timeout"] for window in second[:last]) * window_s == pytest.approx(40)
    assert first[last] == {"os": 0.0, "timeout": 0.0}
    assert second[last] == {"timeout": 0.0}
    assert not any(first[last + 1 :])  # a gauge holds: 0 is said once


def test_errors_of_a_load_are_rated_as_well(tmp_path: Path, clock: VirtualClock) -> None:
    """What a load counts in its segment gets a rate under its own worker and phase."""
    stream, segment = stream_of(tmp_path, clock), Segment.create()
    stream.attach(segment, "op", "ramp")
    recorder = Recorder(Segment.open(segment.path), clock)
    recorder.counter("errors.seen", code="os", category="os").record(6)
    recorder.tick()
    clock.advance(2.0)
    stream.close_window(clock.wall_ns())
    (record,) = [parse(data) for _, data in stream.unacked(1 << 30)]
    rows = [row for row in unseal(record.payload)[0].to_pylist() if row["metric"] == "errors.rate"]
    assert [(row["worker"], row["phase"], row["last"]) for row in rows] == [("op", "ramp", 3.0)]


def test_a_window_that_could_not_be_sealed_is_rated_over_its_whole_length(tmp_path: Path, clock: VirtualClock) -> None:
    """With a full outbox the window goes on; its errors are divided by all of its time, once."""
    stream = stream_of(tmp_path, clock, max_bytes=1 << 16)
    sealed = 0
    while clock.advance(1.0) or stream.close_window(clock.wall_ns()):
        sealed += 1
    for _ in range(4):
        stream.error(OSError(errno.EIO, "x"))
    clock.advance(1.0)
    assert stream.close_window(clock.wall_ns()) == 0
    stream.ack(sealed)
    clock.advance(2.0)
    assert stream.close_window(clock.wall_ns())
    assert rates(stream)[-1] == {"os": 1.0}
