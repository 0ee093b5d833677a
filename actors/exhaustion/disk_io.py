"""DiskIO: reads or writes a file without a name at a held rate, past the page cache where the file system allows that.

    owed(t + dt) = min(owed(t) + rate * dt, what `forget_s` seconds ask) - what was moved

What disk or processor had no time for is owed for `forget_s` and then dropped, so that a slow disk is not followed by a long burst.
Without direct access each write waits until its data is on the disk (O_DSYNC), and what was read is dropped from the cache, so that the
next read is one.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..clock import SECOND_NS, process_cpu_ns
from ..errors import InputError
from ..lease import NOTE_NO_DIRECT, NOTE_NO_RECORDING, LeaseWatch
from ..messages import Amounts, Capacity, Operation
from ..meters import LoadMeters, open_meters
from ..proc import allocate
from ..shape import from_spec
from ..simulator import AVAILABLE, Capability, Option, SimulatorRecord, absolute
from . import tuning
from .mappings import map_bytes
from .place import DIR, check_folder, folder_of, open_nameless
from .tuning import MIB

if TYPE_CHECKING:
    from ..capability import NodeFacts

_NO_STORAGE: Final = frozenset({"tmpfs", "ramfs"})


@dataclass(slots=True)
class RatePacer:
    """Decides when the next block is due: a debt of bytes that grows by the rate and falls by what was moved. Pure."""

    block_bytes: int
    debt_bytes: float = 0.0

    def grow(self, rate: float, elapsed_s: float) -> None:
        """Account for an interval; at most what `forget_s` asks stays owed, and always room for a block."""
        self.debt_bytes = min(max(tuning.used.forget_s * rate, float(self.block_bytes)), self.debt_bytes + rate * elapsed_s)

    def pay(self, moved_bytes: int) -> None:
        """Account for what was moved."""
        self.debt_bytes -= moved_bytes

    def pause_s(self, rate: float) -> float:
        """Return how long to rest, 0 while a block is due; never more than `look_s`."""
        missing = self.block_bytes - self.debt_bytes
        if missing <= 0.0:
            return 0.0
        look_s = tuning.used.look_s
        return look_s if rate * look_s < missing else missing / rate


class _File:
    """A file without a name with real blocks, and one buffer that all of its input and output goes through."""

    def __init__(self, operation: Operation, *, is_write: bool, direct: bool, sync: bool, block_bytes: int, file_bytes: int) -> None:
        self.blocks = max(1, file_bytes // block_bytes)
        self._block_bytes, self._is_write = block_bytes, is_write
        self._buffer = mmap.mmap(-1, block_bytes)  # begins at a page, as direct access asks
        self._buffer.write(random.Random(operation.seed).randbytes(block_bytes))  # not for secrets: data that nothing packs
        folder, synchronous = folder_of(operation), os.O_DSYNC if sync or not direct else 0
        self.is_direct = direct
        try:
            self._fd = open_nameless(folder, os.O_DIRECT | synchronous if direct else synchronous)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self.is_direct = False
            self._fd = open_nameless(folder, os.O_DSYNC)
        if not self.is_direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead: it would be more than is asked

    def fill(self, watch: LeaseWatch) -> None:
        """Write all of it once, so that what is read later lies on the disk. Raises `OSError` (ENOSPC)."""
        allocate(self._fd, 0, self.blocks * self._block_bytes)
        for block in range(self.blocks):
            os.pwritev(self._fd, [self._buffer], block * self._block_bytes)
            watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)
        os.fsync(self._fd)

    def move(self, block: int) -> int:
        """Read or write one block; returns its bytes. Raises `OSError`."""
        at = block * self._block_bytes
        if self._is_write:
            return os.pwritev(self._fd, [self._buffer], at)
        moved = os.preadv(self._fd, [self._buffer], at)
        if not self.is_direct:
            os.posix_fadvise(self._fd, at, self._block_bytes, os.POSIX_FADV_DONTNEED)
        return moved

    def close(self) -> None:
        os.close(self._fd)
        self._buffer.close()


class DiskIO:
    """Runs in a load process: `warm_up`, then `run`."""

    def __init__(self, operation: Operation, capacity: Capacity, watch: LeaseWatch, segment_path: str = "") -> None:
        self._options = RECORD.resolve_options(operation.options)
        self._block_bytes, self._file_bytes = map_bytes(int(self._options["block_bytes"])), int(self._options["file_bytes"])
        self._operation, self._watch, self._segment_path = operation, watch, segment_path
        self._shape = absolute(operation, capacity)
        self._file: _File | None = None
        self._meters: LoadMeters | None = None
        self._moved_bytes = self._operations = 0

    def warm_up(self) -> None:
        """Make the file and write it once. Raises `OSError`."""
        self._meters = open_meters(self._segment_path, self._operation.seed)
        if self._segment_path and not self._meters.is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        options = self._options
        self._file = _File(
            self._operation,
            is_write=options["direction"] == "write",
            direct=bool(options["direct"]),
            sync=bool(options["sync"]),
            block_bytes=self._block_bytes,
            file_bytes=self._file_bytes,
        )
        if options["direct"] and not self._file.is_direct:
            self._watch.note(NOTE_NO_DIRECT)
        self._file.fill(self._watch)
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Move blocks at the shape's rate until the operation's end or a stop; leaves the process when the lease ends."""
        assert self._file is not None, "warm_up comes before run"
        assert self._meters is not None, "warm_up comes before run"
        self._watch.first_slice()
        try:
            self._pace(start_ns, start_ns + round(self._operation.duration_s * SECOND_NS), self._file, self._meters)
        finally:  # also of a load that fails nothing is lost
            self._meters.close()
            self._file.close()

    def _pace(self, start_ns: int, end_ns: int, file: _File, meters: LoadMeters) -> None:
        clock, pacer, blocks = self._watch.clock, RatePacer(self._block_bytes), self._order(file.blocks)
        last_ns = ticked_ns = start_ns
        before, own = 0, 0.0
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            rate = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            pacer.grow(rate, (now_ns - last_ns) / SECOND_NS)
            last_ns = now_ns
            if now_ns - ticked_ns >= tuning.used.tick_s * SECOND_NS:
                own = (self._moved_bytes - before) * SECOND_NS / (now_ns - ticked_ns)
                before, ticked_ns = self._moved_bytes, now_ns
                meters.tick()
                self._watch.report(asked=rate, own=own, cpu_ns=process_cpu_ns(), operations=self._operations)
            pause_s = pacer.pause_s(rate)
            if pause_s > 0.0:
                clock.sleep(min(pause_s, max(0.0, (end_ns - now_ns) / SECOND_NS)))
                continue
            moved = file.move(next(blocks))
            pacer.pay(moved)
            self._moved_bytes += moved
            self._operations += 1
            meters.record_slice((clock.boot_ns() - now_ns) / SECOND_NS, 1)

    def _order(self, blocks: int) -> Iterator[int]:
        """Give the blocks to move, without end."""
        chance = random.Random(self._operation.seed)  # which block comes next is no secret
        is_random, at = self._options["order"] == "random", 0
        while True:
            yield chance.randrange(blocks) if is_random else at
            at = (at + 1) % blocks


def _reserves(_: float, operation: Operation, __: Capacity) -> Amounts:
    return Amounts(disk_bytes=int(RECORD.resolve_options(operation.options)["file_bytes"]), inodes=1)


def _check_here(operation: Operation, state_dir: Path) -> None:
    """Refuse a folder that cannot be used, and a rate at which not even one block comes due. Raises `InputError`, `RefusedError`."""
    check_folder(operation, state_dir)
    rate, block_bytes = from_spec(operation.shape).peak(operation.duration_s), int(RECORD.resolve_options(operation.options)["block_bytes"])
    if rate * operation.duration_s < block_bytes:
        raise InputError(
            "invalid_value",
            f"{operation.id}: {rate:g} bytes a second are less than one block of {block_bytes} bytes in {operation.duration_s:g} s",
            "per_second is bytes a second, as in 16MiB; or set a smaller block_bytes",
        )


def _supported(facts: NodeFacts) -> Capability:
    if facts.state_filesystem in _NO_STORAGE:
        return Capability(
            "unavailable", f"STATE {facts.state_dir} lies on {facts.state_filesystem}, which has no disk behind it", "state_dir on a disk"
        )
    if not facts.makes_nameless:
        return Capability(
            "unavailable",
            f"{facts.state_filesystem} has no files without a name (O_TMPFILE), and others would outlive a kill",
            "state_dir on ext4, xfs or btrfs",
        )
    if not facts.direct_io:
        return Capability(
            "fallback",
            f"{facts.state_filesystem} has no direct access: writes wait for the disk, reads drop what was cached",
            "state_dir on ext4, xfs or btrfs",
        )
    return AVAILABLE


RECORD: Final = SimulatorRecord(
    name="DiskIO",
    family="disk",
    summary="Reads or writes a file without a name at a held rate of bytes a second.",
    units=("per_second",),
    resource="disk_bytes",
    meter="io_bytes",
    measure="bytes a second that the load process reads from storage and writes to it, as the kernel accounts them",
    tolerance=0.05,
    look_ms=50,
    options=(
        Option("direction", "choice", "write", "which way the bytes go; two operations do both", ("write", "read")),
        Option("order", "choice", "sequential", "which block comes next", ("sequential", "random")),
        Option("direct", "flag", True, "go past the page cache (O_DIRECT) where the file system allows it"),
        Option("sync", "flag", False, "each write waits until its data is on the disk (O_DSYNC)"),
        Option(
            "block_bytes",
            "bytes",
            tuning.used.block_bytes,
            "bytes of each read or write, rounded up to whole pages",
            low=512,
            high=8 * MIB,
        ),
        Option(
            "file_bytes",
            "bytes",
            tuning.used.file_bytes,
            "size of the file, which is written once before the start",
            low=8 * MIB,
            high=1 << 40,
        ),
        DIR,
    ),
    supported=_supported,
    metrics=("load.operations", "load.slice"),
    needs="a file system with O_TMPFILE on a disk",
    entry="exhaustion.disk_io:DiskIO",
    reserves=_reserves,
    check_here=_check_here,
)
