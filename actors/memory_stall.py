"""MemoryStall: makes processes wait for memory for a share of the time, as the kernel's pressure stall information counts it.

The load runs in a control group of its own with a limit of memory, and reads a file that is somewhat larger than what the limit leaves
for it: pages that were just given up are read again, and whoever reads them waits. Two threads read while fewer seconds were waited than
were asked for. Whoever waits is of this group: the machine has all the memory that it had, for nothing is held beyond the limit, which
the guardian sets, and which ends with the group. The file has no name.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import memory_group
from .clock import SECOND_NS, process_cpu_ns
from .errors import InputError, RefusedError
from .lease import NOTE_NO_RECORDING, LeaseWatch
from .limits import PROC, MemoryLevel, chain, find_container, memory_stalled_s, read_integer, read_text
from .messages import Amounts, Capacity, Operation
from .meters import LoadMeters, open_meters
from .pacing import LOOK_S, Pacer
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute
from .stalls import Stalls

if TYPE_CHECKING:
    from .capability import NodeFacts

MIB: Final = 1 << 20
THREADS: Final = 2
SLICE_READS: Final = 8  # between two looks at the lease: a read may wait for the disk
TELL_S: Final = 0.1
LOOKS_CORES: Final = 0.1  # two hundred looks a second, whatever is asked: about half of it where the machine is idle
CORES_A_WAIT: Final = 3.0  # 2.2 where the disk's pages are in a host's memory and nobody else is at work; less on a slower disk
FILL_ROUNDS: Final = 3
SPARE: Final = 1.3  # the file, of what the limit leaves: reads wait most where little has to be given up for them
FOLDER: Final = "/var/tmp"  # noqa: S108  # on a disk where /tmp may be in memory (file-hierarchy(7)); what is made there has no name
NO_STALL: Final = "the kernel does not tell for how long processes of a control group wait for memory (memory.pressure)"
ALLOW_STALL: Final = "a kernel with CONFIG_PSI, started with psi=1 where that is not the default, and a control group tree of version 2"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def own_stalled_s(proc: Path = PROC) -> float | None:
    """Return the seconds for which some process of this process's own version 2 group has waited for memory."""
    groups = chain("", read_text(proc / "self/cgroup") or "", read_text(proc / "self/mountinfo") or "")
    return memory_stalled_s(groups[0]) if groups else None


def room_bytes(levels: tuple[MemoryLevel, ...], limit_bytes: int) -> int:
    """Return what our own limit leaves for the file.

    Raises `RefusedError` (`unsupported`) where no group above us has that limit, for then others would run short of memory.
    """
    own = next((level for level in levels if level.limit_bytes == limit_bytes), None)
    used = None if own is None else read_integer(own.usage)
    if used is None:
        raise RefusedError("unsupported", memory_group.NO_GROUP, memory_group.ALLOW)
    return max(4 * MIB, limit_bytes - used)


class StallFile:
    """A file without a name, of which pages are read at random. Threads may read at once."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        """Write it. Raises `OSError`: ENOSPC, ENOENT, EOPNOTSUPP where the file system has no files without names."""
        self._pages = size_bytes // _PAGE
        self._fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        block = os.urandom(MIB)  # that no file system stores it as a hole, or compressed
        for start in range(0, size_bytes, MIB):
            os.pwrite(self._fd, block[: min(MIB, size_bytes - start)], start)
        os.fsync(self._fd)  # what is dirty cannot be given up
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # one page a read: no read ahead

    def fill(self, chance: random.Random) -> None:
        """Read as often as it takes until the kernel has pages to give up for each that is read, and knows which were used before.

        Only the wait for a page that was in use when it was given up counts (mm/workingset.c): a file that is new makes nobody wait.
        """
        into = bytearray(_PAGE)
        for page in range(self._pages):
            os.preadv(self._fd, [into], page * _PAGE)
        for _ in range(FILL_ROUNDS * self._pages):
            self.read(chance, into)

    def read(self, chance: random.Random, into: bytearray) -> None:
        """Read one page."""
        os.preadv(self._fd, [into], chance.randrange(self._pages) * _PAGE)

    def close(self) -> None:
        """Close it; the kernel then frees its blocks."""
        os.close(self._fd)


class Demand:
    """Whether to read on: while fewer seconds were waited than were asked for, and no more CPU was used than is reserved. Pure."""

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._waited, self._used = Pacer(), Pacer()

    def settle(self, asked: float, elapsed_s: float, waited_s: float, cpu_s: float) -> bool:
        """Account for an interval: for how much of it somebody waited, and the CPU time that the load took."""
        self._waited.settle(asked, elapsed_s, waited_s)
        self._used.settle(self._cores, elapsed_s, cpu_s)
        return asked > 0.0 and self._waited.debt_s > 0.0 and self._used.debt_s > 0.0


class MemoryStall:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        segment_path: str = "",
        stalled_s: Callable[[], float | None] = own_stalled_s,
    ) -> None:
        self._operation, self._watch, self._segment_path = operation, watch, segment_path
        self._shape = absolute(operation, capacity)
        self._stalled_s = stalled_s
        self._demand = Demand(_cores(self._shape.peak(operation.duration_s), capacity))
        self._is_due = threading.Event()
        self._reads = [0] * THREADS
        self._file: StallFile | None = None
        self._meters: LoadMeters | None = None

    def warm_up(self) -> None:
        """See that a limit of our own is there, and write a file that does not fit below it."""
        options = RECORD.resolve_options(self._operation.options)
        self._meters = open_meters(self._segment_path, self._operation.seed)
        if self._segment_path and not self._meters.is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self._stalls().look(self._watch.clock.boot_ns())
        room = room_bytes(find_container().memory_levels, _memory_limit(self._operation))
        try:
            self._file = StallFile(str(options["dir"]), round(room * SPARE) // _PAGE * _PAGE)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS):
                raise
            raise InputError("invalid_value", f"no file can be made in {options['dir']}: {error.strerror}", "name another dir") from error
        self._file.fill(random.Random(self._operation.seed))
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def _stalls(self) -> Stalls:
        return Stalls(self._stalled_s, TELL_S, NO_STALL, ALLOW_STALL)

    def run(self, start_ns: int) -> None:
        """Read until the operation's end or a stop; leaves the process when the lease ends."""
        assert self._file is not None, "warm_up comes before run"
        assert self._meters is not None, "warm_up comes before run"
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        readers = [threading.Thread(target=self._read, args=(index, self._file, end_ns)) for index in range(THREADS)]
        for reader in readers:
            reader.start()
        self._watch.first_slice()
        try:
            self._follow(start_ns, end_ns, self._meters)
        finally:  # also of a load that fails nothing is lost
            for reader in readers:
                reader.join()
            self._meters.close()
        self._file.close()

    def _follow(self, start_ns: int, end_ns: int, meters: LoadMeters) -> None:
        """Look every 5 ms at how long somebody has waited, and let the readers go on or rest."""
        clock, stalls, cpu_ns, told_ns = self._watch.clock, self._stalls(), process_cpu_ns(), start_ns
        stalls.look(start_ns)
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            grown, before_ns, cpu_ns = stalls.look(now_ns), cpu_ns, process_cpu_ns()
            is_due = self._demand.settle(asked, *grown, (cpu_ns - before_ns) / SECOND_NS)
            (self._is_due.set if is_due else self._is_due.clear)()
            if now_ns - told_ns >= TELL_S * SECOND_NS:
                told_ns = now_ns
                meters.tick()
            self._watch.report(asked=asked, own=stalls.share, cpu_ns=cpu_ns, operations=sum(self._reads))
            clock.sleep(min(LOOK_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))

    def _read(self, index: int, file: StallFile, end_ns: int) -> None:
        """Read while reads are due; looks at the lease before each slice and each rest."""
        assert self._meters is not None, "warm_up comes before run"
        clock, watch = self._watch.clock, self._watch
        chance, into = random.Random(f"{self._operation.seed}/{index}"), bytearray(_PAGE)
        while watch.may_go_on() and (now_ns := clock.boot_ns()) < end_ns:
            if not self._is_due.wait(LOOK_S):
                continue
            for _ in range(SLICE_READS):
                file.read(chance, into)
            self._reads[index] += SLICE_READS
            self._meters.record_slice((clock.boot_ns() - now_ns) / SECOND_NS, SLICE_READS)


def _cores(peak: float, capacity: Capacity) -> float:
    """Return the CPU that the load may use: three times what somebody is to wait at the peak, for not every read waits, and its looks."""
    return min(capacity.cpu_cores, THREADS, LOOKS_CORES + CORES_A_WAIT * peak)


def _memory_limit(operation: Operation) -> int:
    return int(RECORD.resolve_options(operation.options)["limit"]) // _PAGE * _PAGE


def _reserves(peak: float, operation: Operation, capacity: Capacity) -> Amounts:
    """Return the limit, a file of at most somewhat more, and what its threads may use of the processors."""
    limit = _memory_limit(operation)
    return Amounts(cpu_cores=_cores(peak, capacity), memory_bytes=limit, disk_bytes=round(limit * SPARE))


def _supported(facts: NodeFacts) -> Capability:
    if not facts.memory_group:
        return Capability("unavailable", memory_group.NO_GROUP, memory_group.ALLOW)
    if not facts.has_memory_pressure or (facts.memory_group == 1 and not facts.cgroup_folder):
        return Capability("unavailable", NO_STALL, ALLOW_STALL)
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="MemoryStall",
    family="memory",
    summary="Makes processes wait for memory for a share of the time, in a limited control group of their own.",
    units=("fraction",),
    resource="memory_bytes",
    of_time=True,
    meter="memory_pressure",
    measure="share of the time for which some process of the load's control group waited for memory (PSI `some`)",
    tolerance=0.05,
    look_ms=10,
    options=(
        Option("limit", "bytes", 64 * MIB, "what the group may use of memory, the load itself included", low=64 * MIB),
        Option("dir", "path", FOLDER, "folder on a disk; the file has no name there and ends with the process"),
    ),
    metrics=("load.operations", "load.slice"),
    supported=_supported,
    needs="a control group of memory that may be made, and memory.pressure",
    undo="threads and file end with their process; the guardian removes the group",
    entry="memory_stall:MemoryStall",
    reserves=_reserves,
    memory_limit=_memory_limit,
)
