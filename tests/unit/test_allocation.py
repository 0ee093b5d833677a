"""Allocate, hold, release: the moments of what a load holds, from what was asked and counted."""

from __future__ import annotations

import pytest

from actors.messages import Allocation, Operation
from actors.shape import Constant
from cluster.allocation import Moments

MIB = 1 << 20
DESCRIPTORS = Operation("0.Descriptors@n1", "Descriptors", "n1", 0.0, 9.0, "count", Constant(200.0).to_spec(), phase="main")
MEMORY = Operation("1.MemoryPressure@n1", "MemoryPressure", "n1", 0.0, 9.0, "fraction", Constant(0.5).to_spec())


def test_each_moment_is_told_once_with_what_is_counted_then() -> None:
    """The first look, the first at target, and the end; what was held in between is in the last."""
    moments, told = Moments("r", DESCRIPTORS), []
    for at_s, counted in enumerate((60, 140, 200, 199, 90, 200)):
        told += moments.look(200.0, counted, 1.0, float(at_s))
    told += moments.look(0.0, 100, 1.0, 6.0)  # it is given back in steps
    told += moments.end(0.0, 7.5) + moments.end(0.0, 8.0)
    assert [(event.kind, event.data["counted"]) for event in told] == [("allocate", 60), ("hold", 200), ("release", 0)]
    assert {(event.data["run"], event.data["operation"], event.worker, event.phase) for event in told} == {
        ("r", DESCRIPTORS.id, DESCRIPTORS.id, "main")
    }
    assert moments.seen == Allocation("descriptors", 200.0, 60, 0.0, 200, 2.0, 3.0, 200, 0.0, 7.5)
    assert told[-1].message == "0.Descriptors@n1, release: 200 at most, 0 counted now, at target for 3.0 s (descriptors)"
    assert told[-1].data["held_for_s"] == 3.0


def test_what_never_came_is_not_there() -> None:
    """A load that is never at target has no hold, and one that ended before the first look has nothing."""
    moments = Moments("r", DESCRIPTORS)
    assert moments.end(0.0, 1.0) == []
    assert moments.seen is None
    assert [event.kind for event in (*moments.look(200.0, 120, 1.0, 1.0), *moments.end(0.0, 2.0))] == ["allocate", "release"]
    assert moments.seen is not None
    assert (moments.seen.hold, moments.seen.hold_s, moments.seen.peak) == (None, None, 120)


def test_amounts_are_bytes_where_a_fraction_was_asked() -> None:
    """The tolerance is of what is asked; the words are of what is counted."""
    moments, whole = Moments("r", MEMORY), 100.0 * MIB
    (allocate,) = moments.look(50.0 * MIB, 48.5 * MIB, whole, 0.5)
    (hold,) = moments.look(50.0 * MIB, 49.5 * MIB, whole, 1.5)
    assert allocate.message == "1.MemoryPressure@n1, allocate: 50.0 MiB asked, 48.5 MiB counted (anonymous_bytes)"
    assert (hold.kind, hold.data["counted"], hold.data["unit"]) == ("hold", 49.5 * MIB, "bytes")


@pytest.mark.parametrize("kind", ["CpuLoad", "DiskIO", "MailboxFlood"])
def test_what_works_holds_nothing(kind: str) -> None:
    """A load of work a second has no such moments."""
    moments = Moments("r", Operation("0", kind, "n1", 0.0, 9.0, "per_second" if kind != "CpuLoad" else "fraction", Constant(0.5).to_spec()))
    assert moments.look(1.0, 1.0, 1.0, 1.0) + moments.end(0.0, 2.0) == []
    assert moments.seen is None
