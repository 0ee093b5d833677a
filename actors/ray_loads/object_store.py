"""ObjectStorePressure: an actor holds objects in its node's object store, follows the shape, reads them at a rate, and may have Ray spill.

The dose is what the raylet counts as primary copies (those that it may not evict) and the files in its spill folder, both less what
they were before: neither is told by the process that holds the objects. Ray writes several objects to one file and deletes it when the last
of them is freed; while a file is being written its objects count twice.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..clock import SECOND_NS
from ..errors import HarnessError, RefusedError
from ..lease import LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..option import Option, Value
from ..raylet import RayletStore, read_store, spilled_bytes
from ..simulator import SimulatorRecord, absolute
from .board import claim
from .figures import StoreFigures
from .flow import Outcome
from .options import MIB, PROCESS_BYTES, PROCESS_TASKS, supported
from .ray_work import RayWork, StoreUse
from .starting import await_started
from .store_holder import StoreHolder, StoreTurn

if TYPE_CHECKING:
    from ..metrics.reporter import Reporter

STEP_S: Final = 0.01
LOOK_S: Final = 0.2  # how often the raylet and the spill folder are read
GONE_S: Final = 5.0
GETS_OWED_S: Final = 1.0  # reads that are owed for longer than that are not made up for
SPILLS_AT: Final = 0.8  # Ray's object_spilling_threshold: what is pinned beyond this share of the store is spilled


def most_unspilled(store_bytes: int, others_bytes: int, object_bytes: int) -> int:
    """Return how many objects fit beside others' without Ray spilling any."""
    return max(0, math.floor((SPILLS_AT * store_bytes - others_bytes) / object_bytes))


class ObjectStorePressure:
    """Runs in the simulator's actor: one thread, but for `stop`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, work: RayWork, reporter: Reporter, board: str) -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation, self._watch, self._work = operation, watch, work
        self._shape = absolute(operation, capacity)
        self._object_bytes, self._spills = int(options["object_bytes"]), bool(options["spill"])
        self._gets_per_s = float(options["reads_per_second"])
        self._figures = StoreFigures(reporter)
        self._board = board
        self._store = RayletStore(0, None)
        self._holder: Any = None
        self._call: Any = None
        self._stopping = False
        self._held = 0
        self._owed = 0.0
        self._turned_s = 0.0
        self._before = self._now = StoreUse()
        self._files_before = self._files = 0
        self._looked_ns = 0
        self._asked = 0.0
        self._done = 0

    def stop(self) -> None:
        """End soon."""
        self._stopping = True

    def warm_up(self) -> None:
        """Start the holder, and read what the store held before. Raises `HarnessError`, and `RefusedError` where a spill cannot be seen."""
        self._store = self._find_store()
        self._holder = self._work.spawn(StoreHolder, self._work.object_store(), self._object_bytes)
        pid = self._work.call(self._holder, "pid")
        await_started([[pid]], self._operation.id, self._watch, self._work, lambda: self._stopping)
        self._before = self._now = self._work.store_use()
        self._files_before = self._files = self._spilled_files()

    def _find_store(self) -> RayletStore:
        found = read_store(os.getppid())
        if found is None:
            raise RefusedError("capability", f"{self._operation.id}: this process has no raylet, so the object store's size is not known")
        if self._spills and (found.spill_folder is None or not found.spill_folder.parent.is_dir()):
            message = f"{self._operation.id}: this node spills to no folder of its own, so what is spilled cannot be measured"
            raise RefusedError("capability", message, "ask for less than 80 % of its object store, with spill: false")
        return found

    def idle(self) -> None:
        """Give a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=0, operations=0)

    def run(self, start_ns: int) -> None:
        """Hold until the end, a stop, or the lease's end; then free all, and wait until the store has let go of it."""
        clock = self._watch.clock
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and not self._stopping and self._watch.may_go_on():
            elapsed_s = (now_ns - start_ns) / SECOND_NS
            self._asked = self._shape.value(elapsed_s) * self._watch.ceiling()
            self._go_on(elapsed_s)
            self._look(now_ns)
            clock.sleep(min(STEP_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))
        self._let_go()

    def _go_on(self, elapsed_s: float) -> None:
        """Take what the last turn did, and begin the next."""
        if self._call is not None:
            (end,) = self._work.look([self._call])
            if end is None:
                return
            self._call = None
            if end.outcome is not Outcome.FINISHED:
                raise HarnessError("lost", f"{self._operation.id}: what holds the objects failed: {end.reason}")
            self._take(end.value)
        wanted, gets = self._wanted(), min(self._owed_gets(elapsed_s), 64)
        if wanted != self._held or gets:
            self._owed -= gets
            self._call = self._work.call(self._holder, "turn", wanted, gets)

    def _owed_gets(self, elapsed_s: float) -> int:
        more = self._gets_per_s * (elapsed_s - self._turned_s) if self._held else 0.0
        self._turned_s = elapsed_s
        self._owed = min(self._owed + more, max(1.0, self._gets_per_s * GETS_OWED_S))
        return math.floor(self._owed)

    def _wanted(self) -> int:
        """Return how many objects are to be held: those asked for, without a spill no more than fit beside others'."""
        asked = round(self._asked / self._object_bytes)
        if self._spills:
            return asked
        others_bytes = max(0, self._now.primary_bytes - self._held * self._object_bytes)
        fit = most_unspilled(self._store.size_bytes, others_bytes, self._object_bytes)
        self._tell_short(asked, min(asked, fit), errno.ENOMEM)
        return min(asked, fit)

    def _tell_short(self, asked: int, held: int, code: int) -> None:
        if held < asked:
            self._watch.shortfall(code, asked * self._object_bytes, held * self._object_bytes)
        else:
            self._watch.shortfall(0, 0, 0)

    def _take(self, turn: StoreTurn) -> None:
        self._held = turn.held
        self._done += len(turn.puts_s) + len(turn.gets_s)
        self._figures.turn(turn)
        if turn.refused:
            self._tell_short(round(self._asked / self._object_bytes), turn.held, errno.ENOSPC)

    # ---- what is seen of it

    def _look(self, now_ns: int) -> None:
        if now_ns - self._looked_ns < LOOK_S * SECOND_NS:
            return
        self._looked_ns = now_ns
        before, self._now, self._files = self._now, self._work.store_use(), self._spilled_files()
        claim(self._board).put(self._bytes())
        self._watch.report(asked=self._asked, own=float(self._held * self._object_bytes), cpu_ns=0, operations=self._done)
        self._figures.store(before, self._now, self._held * self._object_bytes, max(0, self._files - self._files_before))

    def _bytes(self) -> int:
        grown = self._now.primary_bytes - self._before.primary_bytes + self._files - self._files_before
        return max(0, grown)

    def _spilled_files(self) -> int:
        return spilled_bytes(self._store.spill_folder) if self._store.spill_folder is not None else 0

    def _let_go(self) -> None:
        """End what holds the objects, whose death frees them, and wait until the store and its folder show it."""
        self._end_holder()
        clock = self._watch.clock
        deadline_ns = clock.boot_ns() + round(GONE_S * SECOND_NS)
        while self._bytes() > 0 and clock.boot_ns() < deadline_ns:
            self._now, self._files = self._work.store_use(), self._spilled_files()
            clock.sleep(STEP_S)
        claim(self._board).put(self._bytes())

    def close(self) -> None:
        """End what holds the objects at once."""
        self._end_holder()
        self._figures.close()

    def _end_holder(self) -> None:
        if self._holder is not None:
            self._work.kill(self._holder)
            self._holder = None


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    del capacity
    options: Mapping[str, Value] = RECORD.resolve_options(operation.options)
    size = int(options["object_bytes"])
    reads = float(options["reads_per_second"]) * size / (1 << 30)  # a core copies about a GiB a second
    whole = math.ceil(peak) + size
    return Amounts(
        cpu_cores=min(1.0, 0.1 + reads),
        memory_bytes=whole + PROCESS_BYTES + 2 * size,
        disk_bytes=whole if options["spill"] else 0,
        tasks=PROCESS_TASKS,
    )


RECORD: Final = SimulatorRecord(
    name="ObjectStorePressure",
    family="memory",
    summary="Holds objects in the node's object store of Ray, reads them at a rate, and can ask for more than it has, so that Ray spills.",
    units=("bytes", "fraction"),
    resource="object_store_bytes",
    meter="store_bytes",
    measure="bytes of primary copies that the node's raylet counts, and of the files in its spill folder, less what they were before",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("object_bytes", "bytes", 8 * MIB, "size of each object", low=128 * 1024, high=1 << 30),
        Option("reads_per_second", "number", 1.0, "objects a second that are read, one after another", low=0.0, high=1000.0),
        Option(
            "spill",
            "flag",
            False,
            "hold more than fits, so that Ray writes objects to disk; without, what would pass 80 % of the store is told as partial",
        ),
    ),
    supported=supported,
    metrics=("load.operations", "store.put", "store.get", "store.held", "store.used", "store.spilled", "store.restored", "store.files"),
    needs="a Ray worker process for its actor; to spill, a spill folder on the node",
    undo="Ray frees objects and their spill files when what owns them ends: with the load, the simulator's actor, or by the guardian",
    entry="ray_loads.object_store:ObjectStorePressure",
    carrier="ray",
    reserves=_reserves,
)
