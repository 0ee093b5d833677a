"""The prober of one run, as its orchestrator has it: made at most once, ended once, whoever asks and in whatever order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from actors.errors import StressError

FINISH_S: Final = 15.0  # for the answers under way, and for delivering what was seen


class Probing:
    """Starts and stops a prober from several threads: a stop waits for a start or a stop under way, and nothing is started after one.

    So whoever concludes the run after its own `stop` has all that was seen, or the reason why not.
    """

    def __init__(self, end: Callable[[Any], None]) -> None:
        """`end` ends the prober's process."""
        self._end = end
        self._lock = threading.Lock()
        self._prober: Any = None
        self._is_over = False

    def start(self, make: Callable[[], Any]) -> None:
        """Have the prober made, unless the probes were stopped before. Raises `StressError` where it cannot be."""
        with self._lock:
            if not self._is_over:
                self._prober = make()

    def stop(self) -> str:
        """End the prober once what it saw is delivered; return what went wrong, "" for nothing."""
        with self._lock:
            prober, self._prober, self._is_over = self._prober, None, True
            if prober is None:
                return ""
            wrong = ""
            try:
                prober.call("finish", timeout_s=FINISH_S)
            except StressError as error:
                wrong = f"the prober died: {error}"
            self._end(prober)
            return wrong
