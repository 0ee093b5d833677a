"""Contenders as processes, children of the load, on file locks (flock) of a file in memory that has no name.

The kernel keeps such a lock: /proc/locks names its holder and its waiters, and it is free again once its holder is dead, however that died.
Children are of the load's session and die with it. Their counts lie in memory that they share with the load, each in a slot of its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import struct
import sys
import traceback
from contextlib import suppress
from typing import Final

from ..clock import SECOND_NS
from ..errors import HarnessError
from ..proc import die_with_parent
from .contest import ContestSettings
from .contest_threads import check_protected
from .locks import LockFigures

STOP, SHARED, OWN, CONTENDED, WAITING, SINCE, WAITS, HOLDS = range(8)  # words of a child's slot
COUNTER: Final = 0  # a word of the first slot, which is nobody's
LINES: Final = 256  # waits, and as many holds, that a child may have to tell between two looks; what is more is told as the last ones
SLOT_WORDS: Final = 8 + 2 * LINES
PIECE_S: Final = 0.02  # a child looks whether it should stop so often while it holds a lock
LEAVE_S: Final = 5.0


class _Page:
    """Words that the load and its children share; each has one writer at a time."""

    def __init__(self, slots: int) -> None:
        self.words = memoryview(mmap.mmap(-1, (slots + 1) * SLOT_WORDS * 8)).cast("Q")

    def get(self, slot: int, word: int) -> int:
        return int(self.words[(slot + 1) * SLOT_WORDS + word])

    def put(self, slot: int, word: int, value: int) -> None:
        self.words[(slot + 1) * SLOT_WORDS + word] = value

    def tell(self, slot: int, word: int, value_s: float) -> None:
        """Add a wait or a hold to those of a slot."""
        count, first = self.get(slot, word), 8 + (word - WAITS) * LINES
        self.put(slot, first + count % LINES, struct.unpack("=Q", struct.pack("=d", value_s))[0])
        self.put(slot, word, count + 1)

    def told(self, slot: int, word: int, before: int) -> list[float]:
        """Return what a slot told after its first `before` ones; where the oldest are gone, the newest stand for them."""
        count, first = self.get(slot, word), 8 + (word - WAITS) * LINES
        places = [at if count - at <= LINES else count - 1 - at % LINES for at in range(before, count)]
        return [struct.unpack("=d", struct.pack("=Q", self.get(slot, first + at % LINES)))[0] for at in places]


class ProcessContest:
    """Processes that contend. Made, resized and closed by the load's main thread, in a process without other threads."""

    def __init__(self, settings: ContestSettings, most: int) -> None:
        self._settings, self._most = settings, most
        self._page = _Page(most)
        self._file = os.memfd_create("stress-cluster-lock", os.MFD_CLOEXEC)
        self._children: dict[int, int] = {}  # number -> pid
        self._leaving: dict[int, int] = {}
        self._seen = [[0, 0] for _ in range(most)]
        self._trouble: HarnessError | None = None

    @property
    def size(self) -> int:
        """How many contenders work."""
        return len(self._children)

    @property
    def pids(self) -> tuple[int, ...]:
        """The contenders' processes."""
        return tuple(self._children.values())

    @property
    def operations(self) -> int:
        """How often a lock was acquired."""
        return sum(self._page.get(slot, SHARED) + self._page.get(slot, OWN) for slot in range(self._most))

    def resize(self, count: int) -> None:
        """Have so many contenders; raises `OSError` where no process can be made."""
        for number in [number for number in self._children if number >= count]:
            self._page.put(number, STOP, 1)
            self._leaving[number] = self._children.pop(number)
        for number in range(min(count, self._most)):
            if number not in self._children and number not in self._leaving:
                self._children[number] = self._fork(number)

    def look(self) -> None:
        """Reap who left and take what was told. Raises `HarnessError` where a contender ended that should not, or ended badly."""
        for group in (self._children, self._leaving):
            for number, pid in list(group.items()):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    del group[number]
                    self._judge(number, os.waitstatus_to_exitcode(status), is_early=group is self._children)
        self._take()
        if self._trouble is not None:
            raise self._trouble

    def _judge(self, number: int, code: int, *, is_early: bool) -> None:
        if code or is_early:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._trouble = self._trouble or HarnessError(
                "internal", f"contender-{number} {how}{' while it should contend' if is_early else ''}"
            )

    def _take(self) -> None:
        for slot, seen in enumerate(self._seen):
            for at, (word, record) in enumerate(((WAITS, self._settings.on_wait), (HOLDS, self._settings.on_hold))):
                told = self._page.told(slot, word, seen[at])
                for value_s in told:
                    record(value_s)
                seen[at] += len(told)

    def figures(self) -> tuple[LockFigures, ...]:
        """Return the shared lock, and all others as one."""
        page, slots, now_ns = self._page, range(self._most), self._settings.clock.boot_ns()
        holding = [(page.get(slot, SINCE), slot) for slot in slots if page.get(slot, SINCE)]
        since_ns, slot = holding[0] if holding else (0, -1)
        acquired, contended, waiting = (sum(page.get(slot, word) for slot in slots) for word in (SHARED, CONTENDED, WAITING))
        name, pid = (f"contender-{slot}", {**self._leaving, **self._children}.get(slot, 0)) if holding else ("", 0)
        held_s = max(0, now_ns - since_ns) / SECOND_NS if holding else 0.0
        own = sum(page.get(slot, OWN) for slot in slots)
        return LockFigures("shared", acquired, contended, waiting, name, pid, held_s), LockFigures("own", own, 0, 0, "", 0, 0.0)

    def counts(self) -> dict[str, int]:
        """Return nothing: all that it counts is its locks'."""
        return {}

    def close(self) -> None:
        """Stop all and wait for them, killing whoever stays; raises what went wrong."""
        self.resize(0)
        clock = self._settings.clock
        late_ns = clock.boot_ns() + round(LEAVE_S * SECOND_NS)
        while self._leaving:
            if clock.boot_ns() > late_ns:
                for pid in self._leaving.values():
                    os.kill(pid, signal.SIGKILL)  # our own children, not reaped yet
            with suppress(HarnessError):  # told below, once all have left
                self.look()
            clock.sleep(0.002)
        self.look()
        check_protected(self._page.get(-1, COUNTER), self.figures())

    def _fork(self, number: int) -> int:
        self._page.put(number, STOP, 0)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            die_with_parent(parent)
            self._contend(number)
        except BaseException:
            traceback.print_exc(limit=-4)
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    def _contend(self, number: int) -> None:
        """Contend until told to stop. Each process opens the file anew: a lock belongs to the opening."""
        draws, page = self._settings.draws(number), self._page
        shared = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
        own = os.memfd_create("stress-cluster-own", os.MFD_CLOEXEC)
        while not page.get(number, STOP):
            is_shared, hold_s = draws.next()
            if is_shared:
                self._hold_shared(shared, number, hold_s)
            else:
                fcntl.flock(own, fcntl.LOCK_EX)
                page.put(number, OWN, page.get(number, OWN) + 1)
                self._hold(number, hold_s)
                fcntl.flock(own, fcntl.LOCK_UN)

    def _hold_shared(self, shared: int, number: int, hold_s: float) -> None:
        page, clock = self._page, self._settings.clock
        if not self._try(shared):
            page.put(number, CONTENDED, page.get(number, CONTENDED) + 1)
            page.put(number, WAITING, 1)
            asked_ns = clock.boot_ns()
            fcntl.flock(shared, fcntl.LOCK_EX)
            page.put(number, WAITING, 0)
            page.tell(number, WAITS, (clock.boot_ns() - asked_ns) / SECOND_NS)
        page.put(number, SINCE, clock.boot_ns())
        page.put(number, SHARED, page.get(number, SHARED) + 1)
        before = page.get(-1, COUNTER)
        self._hold(number, hold_s)
        page.put(-1, COUNTER, before + 1)
        page.put(number, SINCE, 0)
        fcntl.flock(shared, fcntl.LOCK_UN)

    def _try(self, shared: int) -> bool:
        """Take the lock if it is free and nobody waits: a waiter that was woken may not have taken it yet."""
        if any(self._page.get(slot, WAITING) for slot in range(self._most)):
            return False
        try:
            fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _hold(self, number: int, hold_s: float) -> None:
        page, clock = self._page, self._settings.clock
        begun_ns = clock.boot_ns()
        end_ns = begun_ns + round(hold_s * SECOND_NS)
        while (left_ns := end_ns - clock.boot_ns()) > 0 and not page.get(number, STOP):
            clock.sleep(min(PIECE_S, left_ns / SECOND_NS))
        page.tell(number, HOLDS, (clock.boot_ns() - begun_ns) / SECOND_NS)
