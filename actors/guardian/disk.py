"""The guardian's disk thread: journal, halt bit and effects on files, one after the other, so that a kill never waits for a disk."""

# pathlib is left out: files of STATE are reached through its descriptor

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from ..errors import StressError
from ..messages import Halt
from ..undo import Journal, Outcome
from .files import Files
from .lock import Lock
from .model import Action, Applied, Apply, HaltSaved, JournalArm, JournalFree, Journalled, Result, SaveHalt, Undo, Verify

HALT_NAME: Final = "halt.json"
_NOT_OURS: Final = "the lock of this state folder was taken away"


class Disk:
    """Takes actions with `put`, does them in order, and hands out results with `take` after a wake on `fd`."""

    def __init__(self, folder: int, journal: Journal, files: Files, lock: Callable[[], Lock]) -> None:
        self._folder = folder
        self._journal = journal
        self._files = files
        self._lock = lock
        self._jobs: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._results: deque[Result] = deque()
        self._thread = threading.Thread(target=self._work, name="disk", daemon=True)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def put(self, action: Action) -> None:
        """Queue one action."""
        self._jobs.put(action)

    def take(self) -> list[Result]:
        """Return the results that are ready."""
        with contextlib.suppress(BlockingIOError):  # nothing new
            os.eventfd_read(self.fd)
        ready = []
        while self._results:
            ready.append(self._results.popleft())
        return ready

    def finish(self, patience_s: float) -> None:
        """Let the queue run empty, for as long as this."""
        self._jobs.put(None)
        self._thread.join(patience_s)

    def _work(self) -> None:
        while (action := self._jobs.get()) is not None:
            result = self._do(action)
            if result is not None:
                self._results.append(result)
                os.eventfd_write(self.fd, 1)

    def _do(self, action: Action) -> Result | None:
        """Do one action; whatever goes wrong becomes its result."""
        try:
            return self._perform(action)
        except Exception as error:
            return _failed(action, f"{type(error).__name__}: {error}")

    def _perform(self, action: Action) -> Result | None:
        if isinstance(action, JournalFree):
            self._journal.free(action.record)
            return None
        if not self._lock().is_ours():
            return _failed(action, _NOT_OURS)
        if isinstance(action, JournalArm):
            try:
                self._journal.arm(action.record)
            except StressError as error:
                return Journalled(action.record.id, (error.code, error.message))
            return Journalled(action.record.id)
        if isinstance(action, Apply):
            return self._files.apply(action.record, action.params)
        if isinstance(action, Undo):
            return self._files.undo(action.record)
        if isinstance(action, Verify):
            return self._files.verify(action.record)
        assert isinstance(action, SaveHalt)
        write_halt(self._folder, Halt(action.generation, action.on))
        return HaltSaved(action.generation)


def _failed(action: Action, why: str) -> Result | None:
    if isinstance(action, JournalArm):
        return Journalled(action.record.id, ("journal", why))
    if isinstance(action, Apply):
        return Applied(action.record.id, 0, error=("os", why))
    if isinstance(action, Undo | Verify):
        return Outcome(action.record.id, "pending", why)
    if isinstance(action, SaveHalt):
        return HaltSaved(action.generation, ("os", why))
    return None


def read_halt(folder: int) -> Halt:
    """Return the halt bit of STATE. An illegible file counts as a halt: it was written to forbid something."""
    try:
        fd = os.open(HALT_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return Halt()
    with os.fdopen(fd, "rb") as file:
        try:
            found = json.loads(file.read(4_096))
            return Halt(int(found["generation"]), bool(found["on"]))
        except (ValueError, KeyError, TypeError):
            return Halt(0, on=True)


def write_halt(folder: int, halt: Halt) -> None:
    """Write the halt bit and sync it; raises OSError."""
    write_whole(folder, HALT_NAME, json.dumps({"generation": halt.generation, "on": halt.on}).encode())


def write_whole(folder: int, name: str, data: bytes) -> None:
    """Replace a file of STATE in one step and sync it; raises OSError."""
    temporary = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
