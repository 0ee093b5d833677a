"""RayLoad: carries a load whose work is done by Ray's actors and tasks. They belong to the simulator's actor, whose thread drives them.

They end by four ways, each sufficient alone: the load ends them when its lease or its time is over, Ray ends what a dead owner leaves (its
calls and tasks that have not begun too), the guardian ends the processes at the lease's end, and the agent ends the simulator's actor.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from .. import control, proc
from ..clock import SECOND_NS
from ..disk import Guardian, LeaseOverError
from ..errors import HarnessError, StressError
from ..lease import NOTE_NO_RECORDING, LeaseWatch
from ..lifecycle import Event
from ..messages import Capacity, Operation
from ..meters import open_reporter
from ..simulator import Simulator, record_of
from ..waiting import GaveUpError, wait_for_start
from .board import Board
from .ray_work import MARK, RayWork

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

FIND_S: Final = 0.25  # how soon a process that Ray has started is held by the guardian
GONE_S: Final = 5.0
ENDED_CODES: Final = frozenset({"stale_slot", "stale_epoch", "halted"})


class RayPattern(Simulator, Protocol):
    """What a record's `entry` makes: driven by one thread, but for `stop`. `warm_up` starts what is loaded and returns when it is ready."""

    def stop(self) -> None:
        """End soon."""
        ...

    def close(self) -> None:
        """End everything that was started, at once."""
        ...


class RayPatternFactory(Protocol):
    """How a pattern is made. `board` is where what serves counts."""

    def __call__(
        self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str
    ) -> RayPattern:
        """Return the pattern; no load yet."""
        ...


def mark_of(operation: str, slot: int, generation: int) -> str:
    """Return what the environment of every process of an operation, named by its id, holds under `MARK`."""
    return f"{hashlib.sha256(operation.encode()).hexdigest()[:12]}-{slot}-{generation}"


class Processes:
    """The processes that Ray started for one operation: children of the raylet, our own parent, that carry the operation's mark."""

    def __init__(self, mark: str, raylet: int | None = None) -> None:
        self._text = f"{MARK}={mark}".encode()
        self._raylet = os.getppid() if raylet is None else raylet

    def find(self) -> list[int]:
        """Return those that live."""
        return proc.marked(self._text, self._raylet)

    def end(self) -> None:
        """Kill them."""
        for pid in self.find():
            identity = proc.identify(pid)
            fd = None if identity is None else proc.open_pidfd(identity)
            if fd is not None:
                with suppress(ProcessLookupError):
                    proc.kill_pidfd(fd)
                os.close(fd)


class RayLoad:
    """A carrier. `poll` tells what happened since the last call, and has the guardian hold new processes."""

    def __init__(
        self, operation: Operation, capacity: Capacity, watch: LeaseWatch, guardian: Guardian, work: RayWork, segment_path: str = ""
    ) -> None:
        self._operation = operation
        self._watch = watch
        self._guardian = guardian
        self._board: Board | None = Board()
        self._processes = Processes(mark_of(operation.id, watch.slot, watch.generation))
        reporter, kept = open_reporter(segment_path, operation.seed)
        if segment_path and not kept:
            watch.note(NOTE_NO_RECORDING)
        factory: RayPatternFactory = record_of(operation.kind).load_entry()
        self._pattern = factory(operation, capacity, watch, work, reporter, self._board.path)
        self._registered: set[int] = set()
        self._found_ns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="ray-load", daemon=True)
        self._end: tuple[Event, str] | None = None

    exit_code: int | None = None
    records: tuple[str, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """This process, which holds the board, and those of Ray that the guardian holds."""
        return (os.getpid(), *sorted(self._registered))

    def start(self) -> None:
        """Begin to start what is loaded."""
        self._watch.stats.begin(self._watch.slot, self._watch.generation)
        self._thread.start()

    def poll(self) -> tuple[Event, str] | None:
        """Return the end and its reason, None while the load lives."""
        now_ns = self._watch.clock.boot_ns()
        if self._end is None and now_ns - self._found_ns >= FIND_S * SECOND_NS:
            self._found_ns = now_ns
            self._register()
        return self._end

    def _register(self) -> None:
        """Have the guardian hold the processes that are new, so that the lease's end ends them whatever Ray does."""
        for pid in sorted(set(self._processes.find()) - self._registered):
            try:
                self._guardian.call("register", slot=self._watch.slot, generation=self._watch.generation, pid=pid)
            except StressError as error:
                if error.code not in {"lost", *ENDED_CODES}:
                    raise
                continue  # it has ended meanwhile, or the slot has, which the load sees by itself
            self._registered.add(pid)

    def drain(self) -> None:
        """End soon."""
        self._stopping.set()
        self._pattern.stop()

    def kill(self) -> None:
        """End now: what Ray runs is killed here, and the thread then finds it gone."""
        self.drain()
        self._processes.end()

    def close(self) -> None:
        """Let go of the board once the thread has ended."""
        if self._end is not None and self._board is not None:
            self._board.close()
            self._board = None

    # ---- the thread

    def _live(self) -> None:
        """Start, wait, load, end; every way out ends what Ray runs, and then leaves its reason."""
        try:
            end = self._load()
        except (LeaseOverError, GaveUpError) as error:
            end = (Event.LEASE_ENDED, str(error) or "the lease ended")
        except StressError as error:
            end = self._failed(Event.LEASE_ENDED if error.code in ENDED_CODES else Event.BROKE, str(error))
        except Exception as error:
            end = self._failed(Event.BROKE, f"{type(error).__name__}: {error}")
        try:
            self._clear()
        except Exception as error:
            end = (Event.BROKE, f"{type(error).__name__}: {error}")
        self._end = end

    def _failed(self, event: Event, reason: str) -> tuple[Event, str]:
        """Return how a load ended that an error ended. One that was told to end misses what was ended with it: that is no failure."""
        if self._stopping.is_set():
            self._watch.state(control.LOAD_DONE)
            return Event.FINISHED, ""
        self._watch.state(control.LOAD_FAILED)
        return event, reason

    def _load(self) -> tuple[Event, str]:
        self._pattern.warm_up()
        if not self._stopping.is_set():
            self._watch.state(control.LOAD_READY)
            start_ns = wait_for_start(self._watch, self._pattern.idle, self._stopping.is_set)
            if start_ns is not None:
                self._pattern.run(start_ns)
        self._watch.state(control.LOAD_DONE)
        return Event.FINISHED, ""

    def _clear(self) -> None:
        """End all processes and wait until they are gone. Raises `HarnessError` (`lost`) when one of them stays."""
        self._pattern.close()
        deadline_ns = self._watch.clock.boot_ns() + round(GONE_S * SECOND_NS)
        while left := self._processes.find():
            self._processes.end()
            if self._watch.clock.boot_ns() > deadline_ns:
                raise HarnessError("lost", f"{self._operation.id}: processes {left} of Ray do not end")
            self._watch.clock.sleep(0.01)
