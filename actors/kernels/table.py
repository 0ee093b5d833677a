"""All kernels of CpuLoad in one table: what each does, how it is known to do that, and what it needs. Standard library only.

The option `kernel`, `describe`, docs/reference/kernels.md and what loads a kernel are made from it; a new kernel is a file beside this one
and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..processor import Processor

FUSED: Final[Mapping[str, frozenset[str]]] = {"x86_64": frozenset({"fma", "avx2"}), "aarch64": frozenset({"asimd"})}


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """One kernel.

    `module` holds its `work`, or its `make` where it is a library's (`compiled` false). `area` names what `areas` lays out for it, `shared`
    whether all threads have the same one. `round` says what one of its rounds is, which `load.operations` counts. `level` is the cache
    that the operating system has to report; `fused` says that packed multiply-adds are needed.
    """

    name: str
    help: str
    proof: str
    round: str
    module: str
    variant: int | None = None
    area: str = ""
    shared: bool = False
    compiled: bool = True
    level: int = 0
    fused: bool = False
    memory_bytes: int = 0  # at most, in all
    threads_min: int = 1
    rounds_first: int = 20_000
    rounds_min: int = 100

    def missing(self, processor: Processor, threads: int = 2) -> str:
        """Return what this machine lacks for it, "" when it can run. A kernel is never put in place of another."""
        wanted = FUSED.get(processor.machine)
        if self.fused and (wanted is None or not wanted <= processor.flags):
            names = " and ".join(sorted(wanted)) if wanted else "avx2 and fma of x86_64, or asimd of aarch64"
            return f"kernel {self.name} needs {names}, which this processor ({processor.machine}) does not have"
        if self.level and processor.cache(self.level) is None:
            return f"kernel {self.name} needs a level {self.level} cache, and the operating system reports none"
        if threads < self.threads_min:
            return f"kernel {self.name} needs {self.threads_min} threads on as many cores: alone there is nobody to share a line with"
        return ""


_MOST: Final = 256 << 20
_WAY: Final = "its working set is what the operating system reports; a chase over as much takes that level's time"
_STREAM: Final = "packed moves; bytes a second"
_LINES: Final = "one line of each array"

_ROWS: Final = (
    KernelRecord(
        name="integer",
        help="shifts, exclusive ors and a multiplication, each waiting for the last",
        proof="it computes xorshift64*",
        round="one step of xorshift64*",
        module="integer",
    ),
    KernelRecord(
        name="float",
        help="scalar multiplications and additions of doubles, in four chains",
        proof="mulsd and addsd, nothing packed",
        round="8 operations",
        module="floating",
    ),
    KernelRecord(
        name="simd",
        help="fused multiply-adds on packed doubles, as wide as the processor has them",
        proof="packed multiply-adds; at least 3 times the operations of `float`",
        round="2048 operations",
        module="simd",
        area="doubles",
        fused=True,
    ),
    KernelRecord(
        name="division",
        help="integer and floating-point divisions, each by what the last one left",
        proof="div and divsd",
        round="one division of each kind",
        module="division",
    ),
    KernelRecord(
        name="transcendental",
        help="sine, cosine, exponential, logarithm and square root",
        proof="calls into the C library, and sqrtsd",
        round="one value through all five",
        module="transcendental",
    ),
    KernelRecord(
        name="crypto",
        help="SHA-256 of OpenSSL, as Python's hashlib has it",
        proof="it gives hashlib's digests, and other threads run meanwhile",
        round="one block of 64 bytes",
        module="crypto",
        compiled=False,
    ),
    KernelRecord(
        name="matrix",
        help="products of 128 x 128 matrices of doubles by numpy's BLAS, one thread each",
        proof="the process stays at the threads that it has, and other threads run meanwhile",
        round="one product: 4.2 million operations",
        module="matrix",
        compiled=False,
        rounds_first=1,
        rounds_min=1,
    ),
    KernelRecord(
        name="primes",
        help="trial division of odd numbers from 1,000,001 on",
        proof="it counts the primes that there are",
        round="one division",
        module="primes",
    ),
    KernelRecord(
        name="branch_random",
        help="a branch that nobody can foresee: on random words",
        proof="a conditional jump; at least 1.5 times slower than `branch_sorted`",
        round="one branch",
        module="branch",
        area="random_words",
    ),
    KernelRecord(
        name="branch_sorted",
        help="the same loop on the same words, sorted: easy to foresee",
        proof="the code of `branch_random`",
        round="one branch",
        module="branch",
        area="sorted_words",
    ),
    KernelRecord(
        name="cache_l1",
        help="random reads and writes within the level 1 cache",
        proof=_WAY,
        round="one line",
        module="cache",
        area="level1",
        level=1,
    ),
    KernelRecord(
        name="cache_l2",
        help="random reads and writes within the level 2 cache",
        proof=_WAY,
        round="one line",
        module="cache",
        area="level2",
        level=2,
    ),
    KernelRecord(
        name="cache_l3",
        help="random reads and writes within each thread's part of the level 3 cache",
        proof=_WAY,
        round="one line",
        module="cache",
        area="level3",
        level=3,
    ),
    KernelRecord(
        name="cache_memory",
        help="random reads and writes of more than any cache holds (at most 256 MiB): takes caches and bandwidth from neighbours",
        proof="work that lives in level 2 and shares its core loses at least 10 % of its speed",
        round="one line",
        module="cache",
        area="memory",
        shared=True,
        memory_bytes=_MOST,
    ),
    KernelRecord(
        name="pointer_chase",
        help="loads that each wait for the last, over more than any cache holds (at most 256 MiB): memory latency",
        proof="a load takes longer beyond each cache that the operating system reports",
        round="one load",
        module="chase",
        area="walk",
        shared=True,
        memory_bytes=_MOST,
    ),
    KernelRecord(
        "stream_copy",
        "STREAM's c = a, over arrays that no cache holds",
        _STREAM,
        _LINES,
        "stream",
        0,
        "arrays",
        shared=True,
        memory_bytes=_MOST,
    ),
    KernelRecord("stream_scale", "STREAM's b = 3 c", _STREAM, _LINES, "stream", 1, "arrays", shared=True, memory_bytes=_MOST),
    KernelRecord("stream_add", "STREAM's c = a + b", _STREAM, _LINES, "stream", 2, "arrays", shared=True, memory_bytes=_MOST),
    KernelRecord("stream_triad", "STREAM's a = b + 3 c", _STREAM, _LINES, "stream", 3, "arrays", shared=True, memory_bytes=_MOST),
    KernelRecord(
        name="tlb",
        help="loads that each wait for the last, one in each small page (at most 128 MiB): page walks",
        proof="slower than as many lines side by side",
        round="one load",
        module="chase",
        area="pages",
        shared=True,
        memory_bytes=_MOST // 2,
    ),
    KernelRecord(
        name="atomic",
        help="atomic additions of all threads to one word, whose line goes from core to core",
        proof="a lock before the instruction; slower together than alone",
        round="one addition",
        module="shared",
        variant=0,
        area="words",
        shared=True,
        threads_min=2,
    ),
    KernelRecord(
        name="false_sharing",
        help="atomic additions of each thread to a word of its own, all in one line, which goes from core to core",
        proof="a lock before the instruction; slower than with a line for each thread",
        round="one addition",
        module="shared",
        variant=1,
        area="words",
        shared=True,
        threads_min=2,
    ),
)

KERNELS: Final[Mapping[str, KernelRecord]] = {row.name: row for row in _ROWS}
NAMES: Final = tuple(KERNELS)


def missing_kernels(processor: Processor) -> dict[str, str]:
    """Return, for each kernel that this machine cannot run, why."""
    return {name: reason for name, record in KERNELS.items() if (reason := record.missing(processor))}


_PAGE: Final = """# Kernels of CpuLoad

What a thread of `CpuLoad` computes while it works: the option `kernel`. Each is compiled code or a library's, releases the interpreter,
and is called for about a millisecond at a time. `load.operations` counts rounds, `load.slice` how long a call took. A kernel that a machine
cannot run is refused with the reason and never put in place by another: `doctor` lists these as `kernels_missing`.

| kernel | does | a round is | shown by |
|---|---|---|---|
{rows}

Working sets come from `/sys/devices/system/cpu/cpu0/cache`: half of level 1 and of level 2, a thread's part of half of level 3, and four
times the largest level, 64 MiB to 256 MiB in all, beyond them. Branch kernels read 1 MiB in order, `tlb` one line in each of 32,768 small
pages. That memory is the load's own, beside what `MemoryPressure` holds. Rounds of different kernels are different work: compare a kernel
with itself.

Misses of branches and caches are not recorded: the counters of the processor are closed to most containers and virtual machines. What shows
an effect is time, in turns in the same run.
"""


def to_page() -> str:
    """Return docs/reference/kernels.md."""
    return _PAGE.format(rows="\n".join(f"| `{row.name}` | {row.help} | {row.round} | {row.proof} |" for row in _ROWS))
