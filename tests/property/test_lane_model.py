"""A lane against sinks that fail, stall, flap and fill up, on a virtual clock: every row is somewhere, once, and in order."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.breaker import TABLE, BreakerPolicy, Event, State
from actors.clock import VirtualClock
from cluster.exporters.lane import Lane
from cluster.exporters.limits import Limits, Overflow, Reason
from cluster.exporters.rows import pieces
from tests.support.sinks import numbered, numbers

ROWS = numbered(0, 25 * 50)


class MemorySpill:
    """A disk of `bound` rows that may refuse writes and reads, and may rot."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.kept: list[tuple[int, pa.RecordBatch]] = []
        self.given = 0
        self.top = 0
        self.is_broken = False
        self.rotten: set[int] = set()
        self.acked = 0

    @property
    def pending_rows(self) -> int:
        return sum(first + batch.num_rows - max(first, self.acked) for first, batch in self.kept[self.given :])

    @property
    def next_bytes(self) -> int:
        return self.kept[self.given][1].nbytes if self.given < len(self.kept) else 0

    @property
    def after(self) -> int:
        return self.top

    def append(self, first: int, batch: pa.RecordBatch) -> bool:
        if self.is_broken:
            raise OSError(28, "No space left on device")
        if sum(kept.num_rows for _, kept in self.kept) + batch.num_rows > self.bound:
            return False
        self.kept.append((first, batch))
        self.top = max(self.top, first + batch.num_rows)
        return True

    def read(self) -> tuple[int, pa.RecordBatch] | int:
        if self.is_broken:
            raise OSError(5, "Input/output error")
        first, batch = self.kept[self.given]
        if first in self.rotten:
            del self.kept[self.given]
            return int(first + batch.num_rows - max(first, self.acked))
        self.given += 1
        return max(first, self.acked), batch.slice(max(first, self.acked) - first)

    def ack(self, after: int) -> None:
        self.acked = after
        done = [one for one in self.kept[: self.given] if one[0] + one[1].num_rows <= after]
        self.kept, self.given = self.kept[len(done) :], self.given - len(done)

    def rewind(self) -> None:
        self.given = 0
        self.kept.sort(key=lambda one: one[0])


class LaneModel(RuleBasedStateMachine):
    """The model is a list of every row that was produced and of every row that the sink took."""

    @initialize(
        overflow=st.sampled_from(list(Overflow)),
        ahead=st.booleans(),
        disk=st.booleans(),
        queue=st.integers(1, 40),
        batch=st.integers(1, 40),
        bound=st.integers(0, 60),
        threshold=st.integers(1, 4),
        probes=st.integers(1, 3),
    )
    def begin(self, overflow: Overflow, ahead: bool, disk: bool, queue: int, batch: int, bound: int, threshold: int, probes: int) -> None:
        self.clock = VirtualClock()
        limits = Limits(overflow, queue, 1 << 30, min(batch, queue), 1 << 20, 1.0, sample_one_in=3)
        self.spill = MemorySpill(bound) if disk or overflow is Overflow.SPILL else None
        self.is_ordered = self.spill is None or overflow is Overflow.SPILL
        self.lane = Lane(limits, BreakerPolicy(threshold, 60.0, probes, 0.1, 8.0), self.spill, write_ahead=ahead and self.spill is not None)
        self.produced = 0
        self.taken: list[int] = []
        self.out: pa.RecordBatch | None = None
        self.last_failed: list[int] | None = None

    @rule(rows=st.integers(0, 25))
    def offer(self, rows: int) -> None:
        batch = ROWS.slice(self.produced, rows)
        if self.lane.limits.overflow is Overflow.BLOCK and not self.lane.fits(batch):
            self.lane.refuse(batch, Reason.DEADLINE, self.clock.boot_ns())
        else:
            self.lane.offer(batch, self.clock.boot_ns())
        self.produced += rows

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 7.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.out is None)
    @rule(at_once=st.booleans())
    def take(self, at_once: bool) -> None:
        due = self.lane.due_ns(self.clock.boot_ns())
        self.out = self.lane.take(self.clock.boot_ns(), at_once=at_once)
        if self.out is None:
            due = self.lane.due_ns(self.clock.boot_ns())
            assert not at_once or due is None or due > self.clock.boot_ns(), "who waits until it is due would wait no time at all"
            return
        got = numbers([self.out])
        assert 0 < len(got) <= (self.lane.limits.batch_rows if self.last_failed is None else len(self.last_failed))
        assert due is not None
        assert due <= self.clock.boot_ns() or at_once
        if self.last_failed is not None:
            assert got == self.last_failed, "a batch that failed comes again as it was"

    @precondition(lambda self: self.out is not None)
    @rule()
    def succeed(self) -> None:
        assert self.out is not None
        self.taken += numbers([self.out])
        self.lane.succeeded(self.clock.boot_ns())
        self.out = self.last_failed = None

    @precondition(lambda self: self.out is not None)
    @rule(chance=st.floats(0, 1))
    def fail(self, chance: float) -> None:
        assert self.out is not None
        self.last_failed = numbers([self.out])
        self.lane.failed(self.clock.boot_ns(), "OSError", "down", chance)
        self.out = None
        assert self.lane.take(self.clock.boot_ns(), at_once=True) is None, "a retry waits"

    @precondition(lambda self: self.out is not None)
    @rule()
    def reject(self) -> None:
        self.lane.rejected(self.clock.boot_ns(), "no")
        self.out = self.last_failed = None

    @precondition(lambda self: self.spill is not None)
    @rule(broken=st.booleans())
    def disk(self, broken: bool) -> None:
        assert self.spill is not None
        self.spill.is_broken = broken

    @precondition(lambda self: self.spill is not None)
    @rule()
    def rot(self) -> None:
        assert self.spill is not None
        self.spill.rotten |= {first for first, _ in self.spill.kept[self.spill.given :][:1]}

    @rule(queue=st.integers(1, 40), batch=st.integers(1, 40), overflow=st.none() | st.sampled_from(list(Overflow)))
    def change(self, queue: int, batch: int, overflow: Overflow | None) -> None:
        if overflow is None or (overflow is Overflow.SPILL and self.spill is None):
            overflow = self.lane.limits.overflow
        self.is_ordered &= self.spill is None or overflow is Overflow.SPILL
        self.lane.change(Limits(overflow, queue, 1 << 30, min(batch, queue), 1 << 20, 1.0, sample_one_in=3), self.lane.policy)

    @rule()
    def finish(self) -> None:
        """Shut down and, where there is a disk, go on in a new lane on it."""
        self.lane.finish(self.clock.boot_ns())
        self.out = self.last_failed = None
        state = self.lane.snapshot()
        assert state.queued == 0
        if self.spill is not None:
            old, self.lane = self.lane, Lane(self.lane.limits, self.lane.policy, self.spill)
            assert self.lane.counts.recovered == old.snapshot().spilled
            self.lane.counts.produced = old.counts.produced  # the model counts over all lives
            self.lane.counts.delivered = old.counts.delivered
            self.lane.counts.dropped = old.counts.dropped
            self.lane.counts.recovered = old.counts.recovered

    @invariant()
    def every_row_is_somewhere(self) -> None:
        if not hasattr(self, "lane"):
            return
        state = self.lane.snapshot()
        assert state.balance == 0
        assert state.produced == self.produced
        assert state.delivered == len(self.taken)
        assert (state.queued, state.queued_bytes) == self.lane.recount()
        assert len(self.taken) == len(set(self.taken)), "none twice"
        assert self.taken == sorted(self.taken) or not self.is_ordered, "in order"

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "lane"):
            return
        state = self.lane.snapshot()
        if not hasattr(self, "_widest"):
            self._widest = 0
        self._widest = max(self._widest, self.lane.limits.queue_rows)
        assert state.queued <= self._widest + (25 if self.spill else 0), "one record from disk may pass the bound when nothing else waits"


LaneModel.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None, database=None)
TestLaneModel = LaneModel.TestCase


@given(
    came=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 25)), min_size=1, max_size=30),
    rows=st.integers(1, 40),
    size=st.integers(200, 20_000),
    age_s=st.floats(0.01, 2.0),
)
@settings(max_examples=60, deadline=None, database=None)
def test_batches_are_within_their_limits_and_on_time(came: list[tuple[float, int]], rows: int, size: int, age_s: float) -> None:
    """Never empty, never above rows or bytes (but for a single row), and no row waits longer than the age and a tenth of it."""
    clock, limits = VirtualClock(), Limits(queue_rows=10_000, batch_rows=rows, batch_bytes=size, batch_age_s=age_s)
    lane, offered_ns, taken = Lane(limits, BreakerPolicy()), list[int](), list[int]()

    def send(until_ns: float) -> None:
        while (due_ns := lane.due_ns(clock.boot_ns())) is not None and due_ns <= until_ns:
            clock.now_ns = max(clock.now_ns, due_ns)
            batch = lane.take(clock.boot_ns())
            assert batch is not None, "who waits until it is due gets one"
            assert 0 < batch.num_rows <= rows
            assert batch.nbytes <= size or batch.num_rows == 1
            taken.extend(numbers([batch]))
            assert clock.boot_ns() - offered_ns[taken[-batch.num_rows]] <= 1.1 * age_s * 1e9
            lane.succeeded(clock.boot_ns())

    for wait_s, number in came:
        send(clock.boot_ns() + wait_s * 1e9)
        clock.advance(wait_s)
        for part in pieces(ROWS.slice(len(offered_ns), number), limits):
            lane.offer(part, clock.boot_ns())
        offered_ns.extend([clock.boot_ns()] * number)
    send(float("inf"))
    assert taken == list(range(len(offered_ns)))
    assert lane.is_idle


def test_the_breakers_table_is_whole() -> None:
    """Every state leads on by every event that it can hear, and closed is reached from everywhere."""
    heard = {
        State.CLOSED: {Event.SUCCESS, Event.FAILURE, Event.LAST_STRAW},
        State.OPEN: {Event.COOLED},
        State.HALF_OPEN: {Event.SUCCESS, Event.LAST_PROBE, Event.FAILURE, Event.LAST_STRAW},
    }
    assert set(TABLE) == {(state, event) for state, events in heard.items() for event in events}
    for start in State:
        seen, todo = {start}, deque([start])
        while todo:
            here = todo.popleft()
            for (state, _), then in TABLE.items():
                if state is here and then not in seen:
                    seen.add(then)
                    todo.append(then)
        assert seen == set(State)


@pytest.mark.parametrize("probes", [1, 3])
def test_a_destination_that_is_well_again_gets_its_rows_after_reset_and_probes(probes: int) -> None:
    """closed -> open at the 5th failure in a row, half-open after 60 s, closed after its probes; the batch that opened it is not lost."""
    clock, policy = VirtualClock(), BreakerPolicy(5, 60.0, probes, 0.1, 1.0)
    lane = Lane(Limits(queue_rows=100, batch_rows=10), policy)
    for first in range(0, 50, 10):
        lane.offer(numbered(first, 10), clock.boot_ns())
    for failure in range(5):
        assert lane.breaker.state is State.CLOSED
        assert lane.take(clock.boot_ns()) is not None, failure
        lane.failed(clock.boot_ns(), "OSError", "down", 1.0)
        clock.advance(1.0)
    assert lane.breaker.state is State.OPEN
    clock.advance(58.9)
    assert lane.take(clock.boot_ns()) is None
    assert lane.due_ns(clock.boot_ns()) == lane.breaker.opens_again_ns(policy)
    clock.advance(0.1)
    got = []
    for probe in range(probes):
        batch = lane.take(clock.boot_ns())
        assert batch is not None
        assert lane.breaker.state is State.HALF_OPEN, probe
        got += numbers([batch])
        lane.succeeded(clock.boot_ns())
    assert lane.breaker.state is State.CLOSED
    assert got == list(range(10 * probes))


@pytest.mark.parametrize("well", [0, 1], ids=["the-first", "after-one-that-went-well"])
def test_a_failed_probe_opens_again(well: int) -> None:
    """One failure in half-open is enough, also after a success, and the reset time begins anew."""
    clock = VirtualClock()
    lane = Lane(Limits(batch_rows=5), BreakerPolicy(2, 60.0, 2, 0.1, 1.0))
    lane.offer(numbered(0, 10), clock.boot_ns())
    for _ in range(2):
        assert lane.take(clock.boot_ns(), at_once=True) is not None
        lane.failed(clock.boot_ns(), "OSError", "down", 0.0)
        clock.advance(1.0)
    clock.advance(60.0)
    for _ in range(well):
        assert lane.take(clock.boot_ns(), at_once=True) is not None
        lane.succeeded(clock.boot_ns())
    assert lane.take(clock.boot_ns(), at_once=True) is not None
    lane.failed(clock.boot_ns(), "OSError", "down", 0.0)
    assert (lane.breaker.state, lane.breaker.opened) == (State.OPEN, 2)
    clock.advance(59.0)
    assert lane.take(clock.boot_ns(), at_once=True) is None


def test_sampling_keeps_one_in_n_over_all_batches() -> None:
    """From half full on every third row stays, also when rows come one by one; below that all do."""
    clock = VirtualClock()
    lane = Lane(Limits(Overflow.SAMPLE, queue_rows=100, batch_rows=100, sample_one_in=3), BreakerPolicy())
    lane.offer(ROWS.slice(0, 50), clock.boot_ns())
    for row in range(50, 70):
        lane.offer(ROWS.slice(row, 1), clock.boot_ns())
    lane.offer(ROWS.slice(70, 10), clock.boot_ns())
    batch = lane.take(clock.boot_ns(), at_once=True)
    assert batch is not None
    assert numbers([batch]) == [*range(50), *range(50, 80, 3)]
    assert lane.snapshot().dropped == {"sampled": 20}


def test_what_is_settled_is_what_no_death_takes() -> None:
    """Rows that wait in memory are not settled, whatever was dropped behind them; delivered rows are, and so are those on disk."""
    clock = VirtualClock()
    lane = Lane(Limits(queue_rows=10, batch_rows=5), BreakerPolicy())
    lane.offer(numbered(0, 10), clock.boot_ns())
    lane.offer(numbered(10, 10), clock.boot_ns())
    assert (lane.settled, lane.after, lane.snapshot().dropped) == (0, 10, {"newest": 10})
    assert lane.take(clock.boot_ns(), at_once=True) is not None
    assert lane.settled == 0
    lane.succeeded(clock.boot_ns())
    assert lane.settled == 5
    ahead = Lane(Limits(queue_rows=10, batch_rows=5), BreakerPolicy(), MemorySpill(100), write_ahead=True)
    ahead.offer(numbered(0, 10), clock.boot_ns())
    assert (ahead.settled, ahead.after) == (10, 10)


def test_a_lane_says_before_whether_it_would_drop_or_thin() -> None:
    """What it says it takes whole, it takes whole, for every policy."""
    clock = VirtualClock()
    for overflow in Overflow:
        lane = Lane(Limits(overflow, queue_rows=10, batch_rows=5), BreakerPolicy(), MemorySpill(1000))
        for rows in (4, 1, 3, 4, 1, 2):
            is_taken, before = lane.takes_whole(numbered(0, rows)), lane.counts.dropped_rows
            lane.offer(numbered(0, rows), clock.boot_ns())
            assert not is_taken or lane.counts.dropped_rows == before, overflow


def test_rows_that_are_on_disk_too_are_not_dropped_from_memory() -> None:
    """With DROP_OLDEST, what an earlier life left is delivered; the newest rows make way, since those on disk would be counted twice."""
    clock, spill = VirtualClock(), MemorySpill(100)
    spill.append(0, numbered(0, 10))
    lane = Lane(Limits(Overflow.DROP_OLDEST, queue_rows=10, batch_rows=5), BreakerPolicy(), spill)
    lane.offer(numbered(10, 0), clock.boot_ns())
    assert lane.take(clock.boot_ns(), at_once=True) is not None
    lane.failed(clock.boot_ns(), "OSError", "down", 1.0)
    lane.offer(numbered(10, 5), clock.boot_ns())
    assert lane.snapshot().dropped == {"newest": 5}
    lane.finish(clock.boot_ns())
    assert (lane.snapshot().spilled, lane.snapshot().balance) == (10, 0)
