"""The guardian's shadow: a fork that does nothing but wait until the guardian falls silent, and then takes its place.

It shares the pages and the lock. Silence is counted in its own waking time, so that a suspended machine is no death.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from typing import Final

from .. import proc
from ..control import ControlPage
from ..proc import Identity

POLL_MS: Final = 200
SILENT_POLLS: Final = 5


@dataclass(frozen=True, slots=True)
class Standby:
    """A living standby as its guardian sees it."""

    pid: int
    pidfd: int

    def end(self) -> None:
        """Kill and reap it."""
        proc.kill_pidfd(self.pidfd)
        self.reap()

    def reap(self) -> None:
        """Reap it after its end."""
        os.close(self.pidfd)
        os.waitpid(self.pid, 0)


def fork() -> Standby | None:
    """Fork; returns the standby in the guardian and None in the standby itself."""
    pid = os.fork()
    if pid == 0:
        return None
    return Standby(pid, os.pidfd_open(pid))


def wait_for_silence(guardian: Identity, page: ControlPage) -> None:
    """Return when the guardian is dead: it ended, or it gave no sign of life for a second and was killed for that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pidfd = proc.open_pidfd(guardian)
    if pidfd is None:
        return
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    heard, silent = page.heartbeat_ns, 0
    while not poller.poll(POLL_MS):
        heard, silent = (heard, silent + 1) if page.heartbeat_ns == heard else (page.heartbeat_ns, 0)
        if silent >= SILENT_POLLS:
            proc.kill_pidfd(pidfd)  # and go on waiting: it acts no more only when it is gone
            silent = 0
    os.close(pidfd)
