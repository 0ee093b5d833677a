"""A Python of its own that works for a test, says how far it has come, and is killed with SIGKILL while it works."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).parents[2]


def killed(code: str, *arguments: object, after_s: float, watch: Callable[[IO[str]], int] | None = None) -> int:
    """Run `code` until it has printed `ready`, let `watch` read what it prints next, kill it `after_s` later; it may end before.

    Returns the highest number that it printed: what it was promised, 0 when nothing was. `watch` returns the highest that it has read.
    """
    seen = 0

    def watched(output: IO[str]) -> None:
        nonlocal seen
        seen = watch(output) if watch is not None else 0

    lines = last_words(code, *arguments, after_s=after_s, watch=watched)
    return max([seen, *map(int, lines)])


def last_words(code: str, *arguments: object, after_s: float, watch: Callable[[IO[str]], None] | None = None) -> list[str]:
    """Do the same, and return the whole lines that it printed beyond what `watch` read."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            if watch is not None:
                watch(child.stdout)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it lives on, as it should
                child.wait(after_s)
        finally:
            child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().splitlines(keepends=True)
        assert child.wait(10) in (0, -signal.SIGKILL)
    return [line for line in lines if line.endswith("\n")]


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most resident memory that a process had since its start, or since `reset_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> int:
    """Let `peak_bytes` of this process begin anew; return its resident memory."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()
