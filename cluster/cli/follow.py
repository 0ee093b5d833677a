"""Follows a run's driver: shows its events, turns signals into a stop, and waits for the outcome.

first signal   ask for a graceful stop
second         say that undoing goes on
third          kill the driver; leases end the load and the guardians undo
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final

from .ports import DriverProcess, Outcome
from .render import Renderer

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Counts stop signals and does what each of them means. Called inside a signal handler: writes unbuffered only."""

    def __init__(self, process: DriverProcess, lease_s: float) -> None:
        self.count = 0
        self._process = process
        self._lease_s = lease_s

    def __call__(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002  # the form of a signal handler
        """Take one signal."""
        self.count += 1
        name = signal.Signals(number).name
        if self.count == 1:
            self._tell(f"{name}: stopping and undoing; this takes a few seconds")
            self._process.stop(name)
        elif self.count == 2:
            self._tell("still undoing; once more kills the driver and leaves the rest to leases and guardians")
        else:
            self._tell(
                f"the driver is killed: load ends on every node within its lease ({self._lease_s:g} s), and each node's guardian "
                "undoes what is left; `stress-cluster status` shows it, `stress-cluster recover` fetches the rest"
            )
            self._process.kill()

    @staticmethod
    def _tell(text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be what went away
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send SIGINT, SIGTERM and SIGHUP to the handler for a while. What `nohup` ignores stays ignored."""
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def follow(process: DriverProcess, renderer: Renderer, lease_s: float) -> tuple[Outcome, Mapping[str, Any]]:
    """Show a run until it has ended; return its outcome and the event that told it (empty when the driver died without).

    A terminal that goes away ends the drawing, not the following.
    """
    drawing = True
    last: Mapping[str, Any] = {}
    with handling(Interrupts(process, lease_s)), renderer:
        for event in process.events():
            last = event if event.get("type") == "outcome" else last
            if drawing:
                try:
                    renderer.show(event)
                except OSError:
                    drawing = False
        return process.wait(), last
