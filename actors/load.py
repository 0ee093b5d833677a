"""One load process: `python -m actors.load FD`, started by a simulator's shell, which wrote a `LoadSpec` behind FD.

It dies with its parent, enters its container, waits at the gate until the guardian has registered it, warms up, waits for
the start, loads while its lease lives, and ends. It extends nothing and undoes nothing; whatever goes wrong, it exits.
The command line names no node and no run: Ray's clean-up kills by words found there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from . import control
from .clock import Clock, SystemClock
from .control import ControlPage, StatsPage
from .lease import NOTE_NICE_REFUSED, LeaseWatch
from .lifecycle import EXIT_DONE, EXIT_NO_ROOM, EXIT_ORPHAN
from .messages import Capacity, Operation, SlotTicket
from .oom import SCORE_MAX
from .proc import die_with_parent, enter_cgroup
from .simulator import Simulator, record_of
from .waiting import GaveUpError, wait_for_gate, wait_for_start

NICE: Final = 0


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a load process is told. Descriptors are open in it; `cgroups` are the groups of its own that it enters."""

    operation: Operation
    capacity: Capacity
    ticket: SlotTicket
    parent_pid: int
    control_fd: int
    stats_fd: int
    cgroups: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the spec as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LoadSpec:
        """Rebuild a spec from `to_bytes`."""
        fields: dict[str, Any] = json.loads(data)
        operation, capacity = Operation(**fields.pop("operation")), Capacity(**fields.pop("capacity"))
        groups = tuple(fields.pop("cgroups"))
        return cls(operation, capacity, SlotTicket(**fields.pop("ticket")), cgroups=groups, **fields)


def read_spec(fd: int) -> LoadSpec:
    """Read the whole spec from its start and close the descriptor."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return LoadSpec.from_bytes(file.read())


def raise_nice(watch: LeaseWatch) -> None:
    """Run at nice 0 where allowed (Ray's workers and their children are at 15); threads made later inherit it."""
    if os.getpriority(os.PRIO_PROCESS, 0) <= NICE:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        watch.note(NOTE_NICE_REFUSED)


def live(watch: LeaseWatch, simulator: Simulator) -> None:
    """Go through a load's life from warm-up to release."""
    simulator.warm_up()
    watch.state(control.LOAD_READY)
    start_ns = wait_for_start(watch, simulator.idle)
    if start_ns is not None:
        simulator.run(start_ns)
    watch.state(control.LOAD_DONE)


def enter(spec: LoadSpec) -> None:
    """Tie this process to its parent and its container; raises `GaveUpError` when the parent is gone."""
    try:
        die_with_parent(spec.parent_pid)
    except ProcessLookupError as error:
        raise GaveUpError(EXIT_ORPHAN, str(error)) from error
    with contextlib.suppress(OSError):  # ended first where memory runs out: whoever started it may have had less
        Path("/proc/self/oom_score_adj").write_text(SCORE_MAX)
    for group in spec.cgroups:
        enter_cgroup(group)


def run(spec: LoadSpec, clock: Clock) -> int:
    """Run one load and return its exit code; what went wrong goes to standard error, its last line being the reason."""
    watch: LeaseWatch | None = None
    try:
        enter(spec)
        control_page, stats_page = ControlPage.from_fd(spec.control_fd), StatsPage.from_fd(spec.stats_fd)
        stats_page.begin(spec.ticket.slot, spec.ticket.generation, os.getpid())
        watch = LeaseWatch(control_page, stats_page, spec.ticket.slot, spec.ticket.generation, clock)
        watch.state(control.LOAD_GATED)
        raise_nice(watch)
        wait_for_gate(watch)
        live(watch, record_of(spec.operation.kind).make(spec.operation, spec.capacity, watch, spec.ticket.segment_path))
    except GaveUpError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        traceback.print_exc(limit=-4)
        if watch is not None:
            watch.state(control.LOAD_FAILED)
        return EXIT_NO_ROOM if is_no_room(error) else 1
    return EXIT_DONE


def is_no_room(error: BaseException) -> bool:
    """Tell whether the operating system had no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN))


def main(arguments: list[str]) -> int:
    """Run the load whose spec lies behind the descriptor named by the only argument."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("usage: python -m actors.load FD (started by a simulator, not by hand)", file=sys.stderr)
        return 2
    return run(read_spec(int(arguments[0])), SystemClock())


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing of the interpreter's end is needed, and memory is given back sooner
