"""VmPressure: makes the kernel give pages up and read them again, so many times a second.

A file without a name is written in a folder and mapped. Each page that is touched is a major fault, for after each way through the kernel
is told to reclaim the mapping (MADV_PAGEOUT): refaults wait for the disk, and the memory pressure stall of the machine and of the
operation's control group rises. The file ends with the process. What is never done: pages of others given up, and memory held beyond
the file's size.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import memory_group, procfs
from .clock import SECOND_NS, process_cpu_ns
from .errors import InputError, RefusedError
from .lease import NOTE_NO_RECORDING, LeaseWatch
from .messages import Amounts, Capacity, Operation
from .meters import open_reporter
from .simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute

if TYPE_CHECKING:
    from .capability import NodeFacts
    from .metrics.reporter import Reporter

MIB: Final = 1 << 20
SELF_BYTES: Final = 64 * MIB  # of a limit, for the load itself
MADV_PAGEOUT: Final = 21  # linux/mman.h, since 5.4; not in Python's mmap module
LOOK_S: Final = 0.005
SLICE_S: Final = 0.02  # of faults between two looks at the lease
FORGET_S: Final = 0.2
METRICS: Final = ("memory.faults", "memory.fault", "memory.reclaimed")
FOLDER: Final = "/var/tmp"  # noqa: S108  # on a disk where /tmp may be in memory (file-hierarchy(7)); what is made there has no name
TELL_S: Final = 0.5
_PAGE: Final = mmap.PAGESIZE


class Debt:
    """How many faults are owed: grows by what is asked, falls by what was done; what was asked longer than 0.2 s ago is dropped. Pure."""

    def __init__(self) -> None:
        self._owed = 0.0

    def due(self, rate: float, elapsed_s: float) -> int:
        """Return how many whole faults are owed after an interval at a rate."""
        self._owed = min(self._owed + rate * elapsed_s, max(1.0, rate * FORGET_S))
        return int(self._owed)

    def pay(self, done: int) -> None:
        """Take off what was done."""
        self._owed -= done


class PagedFile:
    """A mapped file without a name, whose pages are in memory only between a touch and the end of the way through."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        """Write it. Raises `OSError`: ENOSPC, ENOENT, EOPNOTSUPP where the file system has no files without names."""
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            block = os.urandom(MIB)  # that no file system stores it as a hole, or compressed
            for start in range(0, size_bytes, MIB):
                os.write(fd, block[: min(MIB, size_bytes - start)])
            os.fsync(fd)  # what is dirty cannot be given up
            os.posix_fadvise(fd, 0, size_bytes, os.POSIX_FADV_DONTNEED)
            self._map = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._map.madvise(mmap.MADV_RANDOM)  # one page a fault: no read ahead
        self._pages = size_bytes // _PAGE
        self._next = 0

    def touch(self) -> int:
        """Touch the next page; return the bytes that were given up, 0 but at the end of a way through."""
        _ = self._map[self._next * _PAGE]
        self._next += 1
        if self._next < self._pages:
            return 0
        return self.give_up()

    def give_up(self) -> int:
        """Have the kernel reclaim what was touched since, and return its bytes. Raises `OSError` (EINVAL before Linux 5.4)."""
        touched, self._next = self._next, 0
        self._map.madvise(MADV_PAGEOUT)
        return touched * _PAGE

    def close(self) -> None:
        """Unmap it; the kernel then frees its blocks."""
        self._map.close()


def major_faults() -> int:
    """Return the major faults of this process so far."""
    return procfs.major_faults(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace"))


def verify(file: PagedFile, count: Callable[[], int] = major_faults) -> None:
    """Raise `InputError` where touching a page that was given up is no major fault: a file system in memory keeps them."""
    for _ in range(8):
        file.touch()
    file.give_up()
    before = count()
    for _ in range(8):
        file.touch()
    if count() - before < 4:
        raise InputError(
            "invalid_value", "pages that were given up are still in memory: the folder's file system is in memory", "name another dir"
        )
    file.give_up()


class FaultMeters:
    """What a load records of its faults. Call `record` at least every 100 ms."""

    def __init__(self, reporter: Reporter) -> None:
        self._faults = reporter.counter("memory.faults").record
        self._fault = reporter.histogram("memory.fault").record
        self._reclaimed = reporter.counter("memory.reclaimed").record
        self._tick = reporter.tick

    def record(self, faults: int, took_s: float, given_up_bytes: int) -> None:
        """Record a slice: how many faults it made, how long it took, and what was given up meanwhile."""
        if faults:
            self._faults(float(faults))
            self._fault(took_s / faults)
        if given_up_bytes:
            self._reclaimed(float(given_up_bytes))
        self._tick()


class VmPressure:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        options = RECORD.resolve_options(operation.options)
        self._operation, self._watch, self._segment_path = operation, watch, segment_path
        self._shape = absolute(operation, capacity)
        self._folder, self._size_bytes = str(options["dir"]), int(options["file"]) // _PAGE * _PAGE
        self._file: PagedFile | None = None
        self._reporter: Reporter | None = None

    def warm_up(self) -> None:
        """Write the file, and see that its pages can be given up. Raises `InputError` where they cannot, `OSError` without room."""
        self._reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        try:
            self._file = PagedFile(self._folder, self._size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EROFS):
                raise
            raise InputError("invalid_value", f"no file can be made in {self._folder}: {error.strerror}", "name another dir") from error
        verify(self._file)
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Fault until the operation's end or a stop; leaves the process when the lease ends."""
        assert self._file is not None, "warm_up comes before run"
        assert self._reporter is not None, "warm_up comes before run"
        try:
            self._follow(start_ns, self._file, self._reporter)
        finally:  # also of a load that fails nothing is lost
            self._reporter.close()
        self._file.close()

    def _follow(self, start_ns: int, file: PagedFile, reporter: Reporter) -> None:
        end_ns = start_ns + round(self._operation.duration_s * SECOND_NS)
        meters = FaultMeters(reporter)
        clock, debt, done, last_ns = self._watch.clock, Debt(), 0, start_ns
        own, told, told_ns = 0.0, 0, start_ns
        self._watch.first_slice()
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            owed, last_ns = debt.due(asked, max(0, now_ns - last_ns) / SECOND_NS), now_ns
            made, given_up = self._slice(file, owed, now_ns)
            debt.pay(made)
            done += made
            meters.record(made, (clock.boot_ns() - now_ns) / SECOND_NS, given_up)
            if now_ns - told_ns >= TELL_S * SECOND_NS:
                own, told, told_ns = (done - told) * SECOND_NS / (now_ns - told_ns), done, now_ns
            self._watch.report(asked=asked, own=own, cpu_ns=process_cpu_ns(), operations=done)
            if made == owed:
                clock.sleep(min(LOOK_S, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))

    def _slice(self, file: PagedFile, owed: int, now_ns: int) -> tuple[int, int]:
        """Make at most so many faults within `SLICE_S`; return how many, and the bytes given up meanwhile."""
        clock, made, given_up = self._watch.clock, 0, 0
        while made < owed and clock.boot_ns() - now_ns < SLICE_S * SECOND_NS:
            given_up += file.touch()
            made += 1
        return made, given_up


def _reserves(_peak: float, operation: Operation, _capacity: Capacity) -> Amounts:
    """Return the file, on disk and at most all of it in memory; in a limited group what that may use."""
    size = int(RECORD.resolve_options(operation.options)["file"])
    return Amounts(memory_bytes=_memory_limit(operation) or size, disk_bytes=size)


def _memory_limit(operation: Operation) -> int:
    options = RECORD.resolve_options(operation.options)
    return int(options["file"]) + SELF_BYTES if options["limited"] else 0


def _check_here(operation: Operation, _state_dir: Path) -> None:
    """Refuse to be limited where no group can be."""
    if _memory_limit(operation) and memory_group.find() is None:
        raise RefusedError("unsupported", f"{operation.id}: {memory_group.NO_GROUP}", memory_group.ALLOW)


def _supported(facts: NodeFacts) -> Capability:
    words = facts.kernel.split("-", 1)[0].split(".")
    version = tuple(int(word) for word in words[:2] if word.isdigit())
    if version < (5, 4):
        return Capability("unavailable", "the kernel has no MADV_PAGEOUT: pages cannot be given up on demand", "a kernel of 5.4 or later")
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="VmPressure",
    family="memory",
    summary="Makes the kernel reclaim pages and read them again from disk: major faults and memory stall, at a rate.",
    units=("per_second",),
    resource="memory_bytes",
    meter="major_faults",
    measure="major page faults of the load process in a second",
    tolerance=0.05,
    look_ms=20,
    options=(
        Option("file", "bytes", 32 * MIB, "size of the file whose pages are given up", low=MIB),
        Option("dir", "path", FOLDER, "folder on a disk; the file has no name there and ends with the process"),
        Option("limited", "flag", False, "whether it runs in a control group of its own that may use the file's size and 64 MiB of memory"),
    ),
    memory_limit=_memory_limit,
    check_here=_check_here,
    metrics=METRICS,
    supported=_supported,
    needs="Linux 5.4, and a folder on a disk",
    entry="vm_pressure:VmPressure",
    reserves=_reserves,
)
