"""Timers: blocks, functions and coroutines are measured by the clock they were given, errors are counted and go on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.metrics.error_ledger import ErrorLedger
from actors.metrics.reporter import MemoryReporter
from actors.metrics.stopwatch import Stopwatch


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ledger() -> ErrorLedger:
    return ErrorLedger()


@pytest.fixture
def reporter() -> MemoryReporter:
    return MemoryReporter()


@pytest.fixture
def watch(reporter: MemoryReporter, clock: VirtualClock, ledger: ErrorLedger) -> Stopwatch:
    return Stopwatch(reporter.histogram("load.slice"), clock, ledger.note)


def seconds(reporter: MemoryReporter) -> list[float]:
    return [value for value, _ in reporter.samples("load.slice")]


def test_a_block_is_measured(watch: Stopwatch, clock: VirtualClock, reporter: MemoryReporter) -> None:
    """Nested blocks are each measured by their own begin; wall time that jumps changes nothing."""
    with watch.running():
        clock.advance(1.0)
        clock.wall_offset_ns -= 10**15
        with watch.running():
            clock.advance(0.25)
    assert seconds(reporter) == [0.25, 1.25]


def test_an_error_is_measured_counted_and_raised(
    watch: Stopwatch, clock: VirtualClock, reporter: MemoryReporter, ledger: ErrorLedger
) -> None:
    """The caller gets the very error that was raised."""
    error = HarnessError("os", "no disk")

    @watch
    def fail() -> None:
        clock.advance(0.5)
        raise error

    with pytest.raises(HarnessError) as caught:
        fail()
    assert caught.value is error
    assert (seconds(reporter), ledger.totals()) == ([0.5], {"os": 1})


def test_a_function_keeps_its_name_and_answer(watch: Stopwatch, clock: VirtualClock, reporter: MemoryReporter) -> None:
    """A decorated function is called as before, also by itself, and each call is measured."""

    @watch
    def factorial(number: int) -> int:
        """Multiply."""
        clock.advance(1.0)
        return number * factorial(number - 1) if number else 1

    assert (factorial(3), factorial.__name__, factorial.__doc__) == (6, "factorial", "Multiply.")
    assert seconds(reporter) == [1.0, 2.0, 3.0, 4.0]


def test_tasks_that_interleave_are_measured_apart(
    watch: Stopwatch, clock: VirtualClock, reporter: MemoryReporter, ledger: ErrorLedger
) -> None:
    """A coroutine is measured until it is done, whatever runs in between; one that is cancelled counts as cancelled."""
    gate = asyncio.Event()

    @watch
    async def wait() -> str:
        await gate.wait()
        return "done"

    async def main() -> list[object]:
        first = asyncio.create_task(wait())
        await asyncio.sleep(0)
        clock.advance(1.0)
        second, third = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        clock.advance(2.0)
        third.cancel()
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(first, second, third, return_exceptions=True)

    found = asyncio.run(main())
    assert found[:2] == ["done", "done"]
    assert isinstance(found[2], asyncio.CancelledError)
    assert sorted(seconds(reporter)) == [2.0, 2.0, 3.0]
    assert ledger.totals() == {"cancelled": 1}


def test_threads_that_share_a_watch_are_measured_apart(watch: Stopwatch, clock: VirtualClock, reporter: MemoryReporter) -> None:
    """One thread's begin is not another's."""
    inside, go = threading.Event(), threading.Event()

    def early() -> None:
        with watch.running():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=early)
    thread.start()
    assert inside.wait(10)
    clock.advance(1.0)
    with watch.running():
        clock.advance(0.5)
    go.set()
    thread.join()
    assert seconds(reporter) == [0.5, 1.5]
