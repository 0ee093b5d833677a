"""The ring in one process: shapes, overflow, attaching, and every access of a push or drain as the place of a death or the other side."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError, InputError, RefusedError
from actors.metrics.ring import (
    DATA_AT,
    DROP_NEWEST,
    DROP_OLDEST,
    HEAD,
    R_CAPACITY,
    TAIL,
    Block,
    Consumer,
    Producer,
    Ring,
    RingState,
)
from tests.support.held import own_descriptors

POLICIES = pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST], ids=["newest", "oldest"])


class Died(BaseException):
    """The process ended here."""


class Watched:
    """Words that let something happen before their n-th access."""

    def __init__(self, words: memoryview[int], at: int, event: Callable[[], object]) -> None:
        self.words, self.left, self.event = words, at, event

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.event()

    def __getitem__(self, index: int) -> int:
        self.step()
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.step()
        self.words[index] = value


def die() -> None:
    raise Died


def rows(first: int, count: int, columns: int = 1) -> Block:
    """Records whose every word tells which record it is."""
    return np.arange(first, first + count, dtype=np.float64) + np.arange(columns, dtype=np.float64)[:, None] * 1e6


def whole(block: Block) -> list[int]:
    """Return which records a block holds, after a check that no word is of another record."""
    assert (block == block[0] + np.arange(block.shape[0])[:, None] * 1e6).all()
    return block[0].astype(int).tolist()


def drained(consumer: Consumer, got: list[int]) -> None:
    got += whole(consumer.drain())


def exact(ring: Ring) -> RingState:
    state = ring.state()
    assert state.offered == state.taken + state.dropped + state.buffered, state
    assert 0 <= state.buffered <= ring.capacity
    return state


@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST])
@pytest.mark.parametrize("value", [0.0, -0.0, -1.5, float("inf"), float("nan"), 5e-324, 1.7976931348623157e308])
def test_every_float_passes_unchanged(value: float, policy: int) -> None:
    """A ring moves bits and judges none: signs of zero, NaN, infinities and subnormals come out as they went in."""
    ring = Ring.create(1, policy=policy)
    assert Producer(ring).push(value)
    assert Consumer(Ring.open(ring.path)).drain().tobytes() == np.array([[value]]).tobytes()


def test_a_drop_is_told_and_counted() -> None:
    """A full ring refuses the newest: `push` says so, `push_many` says how many, and the counts agree."""
    ring = Ring.create(4)
    producer, consumer = Producer(ring), Consumer(Ring.open(ring.path))
    assert [producer.push(value) for value in range(6)] == [True] * 4 + [False] * 2
    assert whole(consumer.drain(1)) == [0]
    assert producer.push_many(rows(6, 5)) == 1
    assert exact(ring) == RingState(offered=11, taken=1, dropped=6, buffered=4)
    assert whole(consumer.drain()) == [1, 2, 3, 6]
    assert whole(consumer.drain()) == []


def test_the_oldest_gives_way_where_that_is_the_policy() -> None:
    """A producer that overwrites takes everything, also a block longer than the ring; what it overwrote is counted exactly."""
    ring = Ring.create(4, 3, DROP_OLDEST)
    producer, consumer = Producer(ring), Consumer(ring)
    assert producer.push_many(rows(0, 3, 3)) == 3
    assert producer.push_many(rows(3, 3, 3)) == 3
    assert exact(ring) == RingState(offered=6, taken=0, dropped=2, buffered=4)
    assert whole(consumer.drain(1)) == [2]
    assert producer.push_many(rows(6, 11, 3)) == 11
    assert whole(consumer.drain()) == [13, 14, 15, 16]
    assert exact(ring) == RingState(offered=17, taken=5, dropped=12, buffered=0)


@pytest.mark.parametrize(("waits", "taken"), [(0, 4), (1, 6), (5, 9)])
def test_waiting_for_room_is_bounded(waits: int, taken: int) -> None:
    """`push_within` waits while there is time; then what found no room is dropped and counted, never waited for."""
    ring = Ring.create(4)
    producer, consumer = Producer(ring), Consumer(ring)

    class Draining(VirtualClock):
        def sleep(self, duration_s: float) -> None:
            self.advance(duration_s)
            consumer.drain(2)

    clock = Draining()
    assert producer.push_within(rows(0, 9), waits * 0.001, clock) == taken
    assert exact(ring).dropped == 9 - taken


@POLICIES
@pytest.mark.parametrize("fill", [0, 1, 3, 4])
def test_a_drain_at_any_moment_of_a_push(policy: int, fill: int) -> None:
    """Whenever the consumer drains during a push, it gets whole records in order, and the counts are exact at the end."""
    for at in range(1, 12):
        ring = Ring.create(4, 2, policy)
        producer, consumer = Producer(ring), Consumer(ring)
        producer.push_many(rows(0, fill, 2))
        got: list[int] = []
        drain = functools.partial(drained, consumer, got)
        producer._words = Watched(ring.words, at, drain)  # type: ignore[assignment]
        taken = producer.push_many(rows(fill, 2, 2))
        got += whole(consumer.drain())
        state = exact(ring)
        assert got == sorted(set(got))
        assert (state.offered, state.buffered) == (fill + 2, 0)
        assert state.taken == len(got)
        if policy == DROP_NEWEST:
            assert got == list(range(fill + taken)), f"access {at}"
        else:
            assert got[-2:] == [fill, fill + 1]


@POLICIES
@pytest.mark.parametrize("burst", [1, 2, 3, 4, 5, 9])
def test_a_push_at_any_moment_of_a_drain(policy: int, burst: int) -> None:
    """Whenever the producer pushes during a drain, nothing comes out torn or twice, and the counts are exact at the end."""
    for at in range(1, 12):
        ring = Ring.create(4, 2, policy)
        producer, consumer = Producer(ring), Consumer(ring)
        producer.push_many(rows(0, 3, 2))
        consumer._words = Watched(ring.words, at, functools.partial(producer.push_many, rows(3, burst, 2)))  # type: ignore[assignment]
        got = whole(consumer.drain())
        consumer._words = ring.words
        got += whole(consumer.drain())
        state = exact(ring)
        assert got == sorted(set(got))
        assert (state.taken, state.buffered) == (len(got), 0)


@pytest.mark.parametrize("burst", [2, 5, 9])
def test_what_is_overwritten_during_the_copy_is_thrown_away(burst: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer in the middle of overwriting what a drain copies: RESERVED tells, and no torn record is handed out."""
    ring = Ring.create(4, 2, DROP_OLDEST)
    producer, consumer = Producer(ring), Consumer(ring)
    producer.push_many(rows(0, 4, 2))

    def half_pushed(data: Block, at: int, out: Block) -> None:
        """Copy the first column, let the producer overwrite all of it without publishing, copy the second."""
        out[0] = data[0, (at + np.arange(out.shape[1])) % 4]
        producer._words[HEAD + 1] = 4 + burst
        data[:] = -7.0
        out[1] = data[1, (at + np.arange(out.shape[1])) % 4]

    monkeypatch.setattr("actors.metrics.ring._copy_out", half_pushed)
    got = consumer.drain()
    assert got.shape[1] == max(0, 4 - burst)
    assert not (got[0] == -7.0).any()


@POLICIES
def test_a_producer_that_dies_at_any_access(policy: int) -> None:
    """Whatever access of a push a producer dies at, the next one goes on, and no record is torn, doubled or out of order."""
    for at in range(1, 8):
        ring = Ring.create(8, 2, policy)
        first, consumer = Producer(Ring.open(ring.path)), Consumer(ring)
        first.push_many(rows(0, 6, 2))
        first._words = Watched(ring.words, at, die)  # type: ignore[assignment]
        with contextlib.suppress(Died):
            first.push_many(rows(6, 4, 2))
        first._words = ring.words
        first.close()
        second = Producer(Ring.open(ring.path))
        got = whole(consumer.drain())
        second.push_many(rows(100, 2, 2))
        got += whole(consumer.drain())
        assert got == sorted(set(got))
        assert got[-2:] == [100, 101]
        assert exact(ring).buffered == 0


@POLICIES
def test_a_consumer_that_dies_at_any_access(policy: int) -> None:
    """Whatever access of a drain a consumer dies at, its successor gets everything that it did not hand out, and the counts are exact."""
    for at in range(1, 12):
        ring = Ring.create(4, 2, policy)
        producer, first = Producer(ring), Consumer(Ring.open(ring.path))
        producer.push_many(rows(0, 6, 2))
        first.drain()  # of 6 records it gets 4: something is counted as dropped before it dies
        producer.push_many(rows(6, 3, 2))
        producer.push_many(rows(9, 3, 2))
        first._words = Watched(ring.words, at, die)  # type: ignore[assignment]
        got: list[int] = []
        with contextlib.suppress(Died):
            got = whole(first.drain())
        first._words = ring.words
        first.close()
        got += whole(Consumer(ring).drain())
        state = exact(ring)
        assert got == ([6, 7, 8, 9] if policy == DROP_NEWEST else [8, 9, 10, 11]), f"access {at}"
        assert (state.taken, state.dropped, state.buffered) == (8, 4, 0)


def test_one_of_each_side() -> None:
    """A second producer or consumer is refused while the first lives or until it closes, in this process as in another."""
    ring = Ring.create(8)
    other = Ring.open(ring.path)
    producer, consumer = Producer(ring), Consumer(other)
    with pytest.raises(RefusedError, match="has a producer already"):
        Producer(other)
    with pytest.raises(RefusedError, match="has a consumer already"):
        Consumer(ring)
    assert consumer.has_producer()
    producer.push(1.0)
    producer.close()
    assert consumer.closed
    assert not consumer.has_producer()
    again = Producer(other)
    assert not consumer.closed
    again.push(2.0)
    assert consumer.drain().tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("capacity", "columns", "policy"), [(0, 1, 0), (3, 1, 0), (-4, 1, 0), (1 << 29, 1, 0), (4, 0, 0), (4, 9, 0), (4, 1, 2)]
)
def test_impossible_shapes_are_refused(capacity: int, columns: int, policy: int) -> None:
    """A capacity that is no power of two, no columns, or an unknown policy is an error of the caller's."""
    with pytest.raises(InputError):
        Ring.create(capacity, columns, policy)


def test_what_is_no_ring_is_refused(tmp_path) -> None:
    """A missing, foreign, short or damaged file is an error with its path, never mapped; no descriptor is left open."""
    ring = Ring.create(8)
    good = os.pread(ring.fd, DATA_AT + 64, 0)
    before = own_descriptors()

    def refuses(data: bytes, match: str) -> None:
        path = tmp_path / "x"
        path.write_bytes(data)
        with pytest.raises(HarnessError, match=match):
            Ring.open(str(path))

    def with_word(index: int, value: int) -> bytes:
        return good[: index * 8] + value.to_bytes(8, "little") + good[index * 8 + 8 :]

    refuses(b"", "no ring")
    refuses(b"x" * 10_000, "no ring of version")
    refuses(good[:-1], "damaged")
    refuses(with_word(R_CAPACITY, 7), "damaged")
    refuses(with_word(HEAD, 9), "damaged")
    refuses(with_word(TAIL, 1), "damaged")
    with pytest.raises(HarnessError, match="cannot open"):
        Ring.open(str(tmp_path / "none"))
    assert own_descriptors() == before


def test_nothing_here_loads_numba() -> None:
    """Load processes and agents record, sample and push without numba: only who asks for the compiled kernels pays for it."""
    names = ["handle", "reporter", "stopwatch", "error_ledger", "policy", "raw", "ring", "ring_kernels", "sampling", "slab"]
    code = "import sys\n" + "\n".join(f"import actors.metrics.{name}" for name in names) + "\nprint('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_ordered_stores_it_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that may reorder stores, interpreted code gets no ring, with the reason, and not one that is mostly right."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for side in (Producer, Consumer):
        with pytest.raises(RefusedError, match="aarch64 processor may reorder") as caught:
            side(Ring.create(8))
        assert caught.value.code == "unsupported"
