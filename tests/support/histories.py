"""Histories of a real ring under two real threads, and the check that they could have happened one operation at a time. Compiled.

Each side writes after each operation how many it has finished, and reads before each one how many the other had finished: these precede it
in real time. No fence and no clock is added, so the check does not hide what it looks for. They begin together, and after a refusal a side
waits a little for the other one, so that records pass however the threads are scheduled.

What may be asked of a ring whose sides wait for nothing: its records are linearizable, and `full` and `empty` are true of the other side's
count as it was seen. More would take a fence: a store may pass a later load of another word (the store buffer, Intel SDM vol. 3A, 8.2.3.4),
so that each side misses the other's last step and both are refused.

Linearizable means: one order of all operations keeps that precedence, and is a history of a bounded queue. As each side's operations are
in an order of their own, such an order is a path through the grid (pushes done, pops done); the check walks all of them at once.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from actors.metrics import ring_kernels
from actors.metrics.ring import Ring

Integers = npt.NDArray[np.int64]

YIELDS_MAX: Final = 1 << 24  # a side that waits for the other to begin gives up after these
SPINS, WAITS = 256, 264  # looks at the other side after a refusal; those past the first ones give the core away


@dataclass(frozen=True)
class History:
    """Operations of both sides: results (push: taken or not; pop: a number, or -1 for none) and how many of the other's precede each."""

    pushed: Integers
    popped: Integers
    push_after: Integers
    pop_after: Integers


@functools.cache
def sides() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (produce, consume)."""
    import numba

    yield_ = ctypes.CDLL(None).sched_yield
    yield_.argtypes, yield_.restype = [], ctypes.c_int
    kernels = ring_kernels.compiled()
    load, store, push, pop = kernels.load, kernels.store, kernels.push, kernels.pop_block

    @numba.njit(nogil=True)
    def meet(done, mine, other):
        """Begin when the other side does, so that neither is through before the other is there."""
        store(done, mine, np.uint64(1))
        for _ in range(YIELDS_MAX):
            if load(done, other):
                return
            yield_()

    @numba.njit(nogil=True)
    def wait(done, other, seen):
        """After a refusal let the other side do something, for a bounded time; on a core that both share, let it have the core."""
        for turn in range(WAITS):
            if load(done, other) != seen:
                return
            if turn >= SPINS:
                yield_()

    @numba.njit(nogil=True)
    def produce(words, data, done, results, after, pause):
        number = 0
        meet(done, 8, 24)
        for index in range(results.size):
            after[index] = load(done, 16)
            results[index] = push(words, data, float(number))
            number += results[index]
            store(done, 0, np.uint64(index + 1))
            if not results[index]:
                wait(done, 16, after[index])
            for _ in range(pause * (index % 7)):
                load(done, 0)

    @numba.njit(nogil=True)
    def consume(words, data, done, results, after, pause):
        out = np.empty((1, 1))
        meet(done, 24, 8)
        for index in range(results.size):
            after[index] = load(done, 0)
            results[index] = np.int64(out[0, 0]) if pop(words, data, out) else -1
            store(done, 16, np.uint64(index + 1))
            if results[index] < 0:
                wait(done, 0, after[index])
            for _ in range(pause * (index % 5)):
                load(done, 0)

    return produce, consume


@functools.cache
def first_impossible_step() -> Callable[..., Any]:
    """Return the check."""
    import numba

    @numba.njit
    def first_impossible(pushed, popped, push_after, pop_after, capacity):
        """Return (-1, -1), or the grid point up to which an order exists."""
        pushes, pops = pushed.size, popped.size
        taken = np.zeros(pushes + 1, np.int64)
        given = np.zeros(pops + 1, np.int64)
        for i in range(pushes):
            taken[i + 1] = taken[i] + pushed[i]
        for j in range(pops):
            given[j + 1] = given[j] + (popped[j] >= 0)
        row = np.zeros(pops + 1, np.uint8)  # which numbers of pops can stand beside i pushes
        row[0] = 1
        low, high = 0, 0
        for i in range(pushes + 1):
            j = low
            while j <= high:
                if row[j] and j < pops and i >= pop_after[j]:
                    size = taken[i] - given[j]
                    if (popped[j] < 0 and size == 0) or (popped[j] >= 0 and size > 0 and popped[j] == given[j]):
                        row[j + 1] = 1
                        high = max(high, j + 1)
                j += 1
            if i == pushes:
                break
            next_low, next_high = pops + 1, -1
            for j in range(low, high + 1):
                size = taken[i] - given[j]
                fits = size < capacity if pushed[i] else size == capacity
                row[j] = row[j] and j >= push_after[i] and fits
                if row[j]:
                    next_low, next_high = min(next_low, j), j
            if next_high < 0:
                return i, high
            low, high = next_low, next_high
        return (-1, -1) if row[pops] else (pushes, high)

    return first_impossible


def run_until(records: int, operations: int, capacity: int, pause: tuple[int, int], runs_max: int) -> list[History]:
    """Return histories in which so many records passed in all, or `runs_max` of them. Compiles before the first one is counted."""
    run(1, capacity, pause)
    found: list[History] = []
    while len(found) < runs_max and sum(passed(history) for history in found) < records:
        found.append(run(operations, capacity, pause))
    return found


def passed(history: History) -> int:
    """Return how many records came out of the ring."""
    return int(np.count_nonzero(history.popped >= 0))


def run(operations: int, capacity: int, pause: tuple[int, int]) -> History:
    """Let two threads do so many operations each on a new ring; `pause` slows them down unevenly, so that it is full or empty at times."""
    produce, consume = sides()
    ring = Ring.create(capacity)
    words, data = ring_kernels.arrays(ring)
    done = np.zeros(32, np.uint64)
    columns = [np.zeros(operations, np.int64) for _ in range(4)]
    history = History(*columns)
    threads = [
        threading.Thread(target=produce, args=(words, data, done, history.pushed, history.push_after, pause[0])),
        threading.Thread(target=consume, args=(words, data, done, history.popped, history.pop_after, pause[1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return history


def records_of(history: History) -> History:
    """Return the history without the operations that were answered `full` or `empty`; precedence is by records as well."""
    taken = np.concatenate([[0], history.pushed.cumsum()])
    given = np.concatenate([[0], (history.popped >= 0).cumsum()])
    pushes, pops = history.pushed > 0, history.popped >= 0
    return History(history.pushed[pushes], history.popped[pops], given[history.push_after[pushes]], taken[history.pop_after[pops]])


def false_answers(history: History, capacity: int) -> int:
    """Return how many were answered `full` or `empty` against what their own side had seen of the other before it asked."""
    taken = np.concatenate([[0], history.pushed.cumsum()])
    given = np.concatenate([[0], (history.popped >= 0).cumsum()])
    full, empty = history.pushed == 0, history.popped < 0
    room = taken[:-1][full] - given[history.push_after[full]] < capacity
    waiting = taken[history.pop_after[empty]] > given[:-1][empty]
    return int(room.sum() + waiting.sum())


def impossible(history: History, capacity: int) -> tuple[int, int] | None:
    """Return None for a linearizable history, else how many pushes and pops of it can be ordered."""
    found = first_impossible_step()(history.pushed, history.popped, history.push_after, history.pop_after, capacity)
    return None if found[0] < 0 else (int(found[0]), int(found[1]))
