"""What kernels are: the assembly shows what each name says, results are right, and a machine that lacks something is told so."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import kernels
from actors.errors import RefusedError
from actors.kernels import areas
from actors.kernels.ready import make_kernels
from actors.kernels.table import KERNELS, missing_kernels
from actors.processor import Cache, Processor, count_cpus, cpu_flags, read_caches, size_bytes, this_processor

KIB, MIB = 1 << 10, 1 << 20
X86 = Processor("x86_64", frozenset({"fma", "avx2"}), (Cache(1, 48 * KIB, 64, 1), Cache(2, MIB, 64, 1), Cache(3, 32 * MIB, 64, 2)))
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the assembly that is read here is x86-64's")


@functools.cache
def assembly(module: str) -> str:
    """Return a kernel's code without its directives."""
    return "\n".join(line for line in kernels.load_assembly(module).splitlines() if not re.match(r"\t\.", line))


@on_x86
@pytest.mark.parametrize(
    ("module", "has", "has_not"),
    [
        pytest.param("integer", [r"\timulq\t", r"\txorq\t"], [r"sd\t"], id="integer"),
        pytest.param("floating", [r"mulsd\t|fmadd\d+sd\t", r"addsd\t|fmadd\d+sd\t"], [r"(mul|add|fmadd\d+)pd\t"], id="float"),
        pytest.param("division", [r"\tdivq\t", r"divsd\t"], [r"divpd\t"], id="division"),
        pytest.param("transcendental", [r"\$(sincos|sin),", r"\$exp,", r"\$log,", r"\tcallq\t", r"sqrtsd\t"], [], id="transcendental"),
        pytest.param("primes", [r"\tdivl\t"], [], id="primes"),
        pytest.param("chase", [r"\tmovq\t\((%\w+),(%\w+),8\), \2\n"], [], id="chase"),
        pytest.param("cache", [r"\taddq\t%\w+, \(%\w+,%\w+\)"], [], id="cache"),
        pytest.param("stream", [r"movupd\t[^%]*\(.*\), %[yz]mm", r"mulpd\t.*%[yz]mm", r"addpd\t.*%[yz]mm"], [], id="stream"),
        pytest.param("shared", [r"\tlock\s+(incq|addq|xaddq)\t"], [r"\n\t(incq|addq)\t[^\n]*\(%"], id="atomic-and-false-sharing"),
    ],
)
def test_the_assembly_shows_what_the_name_says(module: str, has: list[str], has_not: list[str]) -> None:
    """Instructions of the kind, and none of a kind that would make it another kernel."""
    code = assembly(module)
    assert [one for one in has if not re.search(one, code)] == []
    assert [one for one in has_not if re.search(one, code)] == []


@on_x86
@pytest.mark.skipif(bool(KERNELS["simd"].missing(this_processor())), reason="this processor has no packed multiply-add")
def test_simd_is_packed_multiply_adds() -> None:
    """Sixteen in a row for each vector, at least four doubles wide, none of them scalar."""
    code = assembly("simd")
    assert re.search(r"(\tvfmadd\d+pd\t[^\n]*%[yz]mm\d+\n){16}", code), code
    assert not re.search(r"fmadd\d+sd\t", code)


@on_x86
def test_the_branch_is_a_conditional_jump_with_both_sides() -> None:
    """The sign of a word is tested, one side jumps over a store and the other runs it; nothing was turned into a conditional move."""
    code = assembly("branch")
    jump = re.search(
        r"\ttestq\t(%\w+), \1\n\tjns\t(\.\w+)\n\tmovq\t\1, [^\n]*\(%[^\n]*\n(?:[^\n]*\n)?\2:|"
        r"\ttestq\t(%\w+), \3\n\tjns\t(\.\w+)\n\tmovq\t\3, [^\n]*\(%[^\n]*\n\tjmp\t\4\n",
        code,
    )
    assert jump, code
    assert "cmov" not in code


def test_sorted_and_random_data_run_the_same_code_on_the_same_words() -> None:
    """They differ in the order of their words and in nothing else."""
    one, other = KERNELS["branch_random"], KERNELS["branch_sorted"]
    assert (one.module, one.variant) == (other.module, other.variant)
    first, second = areas.AREAS[one.area](X86, 3).values[:-1], areas.AREAS[other.area](X86, 3).values[:-1]
    assert not (np.diff(first.astype(np.float64)) >= 0).all()
    assert (np.sort(first) == second).all()
    assert 0.49 < np.mean(first >> np.uint64(63)) < 0.51


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_a_row_with_help_and_a_file(name: str) -> None:
    """What `describe` shows of it is there, and what it names exists."""
    row = KERNELS[name]
    assert row.help
    assert row.proof
    assert row.round
    assert Path(kernels.__file__).with_name(f"{row.module}.py").is_file()
    assert row.area in ("", *areas.AREAS)


@pytest.mark.parametrize(
    ("name", "processor", "threads", "reason"),
    [
        pytest.param("simd", replace(X86, flags=frozenset({"sse2"})), 1, "needs avx2 and fma, which this processor", id="no-fma"),
        pytest.param("simd", Processor("riscv64", frozenset(), ()), 1, "riscv64", id="unknown-architecture"),
        pytest.param("cache_l3", replace(X86, caches=X86.caches[:2]), 1, "no|none", id="no-level-3"),
        pytest.param("cache_l1", replace(X86, caches=()), 1, "level 1", id="no-caches-reported"),
        pytest.param("atomic", X86, 1, "needs 2 threads", id="alone"),
        pytest.param("false_sharing", X86, 1, "needs 2 threads", id="alone-in-a-line"),
    ],
)
def test_what_a_machine_lacks_is_said_and_never_replaced(name: str, processor: Processor, threads: int, reason: str) -> None:
    """A kernel that is about an instruction set, a cache or company is refused where there is none."""
    with pytest.raises(RefusedError, match=reason) as caught:
        make_kernels(name, threads, processor=processor)
    assert caught.value.code == "unsupported"


def test_what_a_processor_lacks_is_known_before_any_run() -> None:
    """All that is missing, by kernel; nothing on a machine that has all."""
    assert missing_kernels(X86) == {}
    assert set(missing_kernels(Processor("aarch64", frozenset({"asimd"}), X86.caches[:2]))) == {"cache_l3"}
    assert set(missing_kernels(Processor("x86_64", frozenset(), ()))) == {"simd", "cache_l1", "cache_l2", "cache_l3"}


def test_the_processor_is_what_the_operating_system_says(tmp_path: Path) -> None:
    """Flags of x86 and of ARM; data caches by level, an instruction cache left out, one that is cut short too."""
    for index, (level, kind, size, shared) in enumerate(
        [("1", "Data", "48K", "0"), ("1", "Instruction", "32K", "0"), ("3", "Unified", "32M", "0-3,8")]
    ):
        folder = tmp_path / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for file, text in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared, "coherency_line_size": "64"}.items():
            (folder / file).write_text(f"{text}\n")
    (tmp_path / "cache" / "index9").mkdir()
    assert read_caches(tmp_path) == (Cache(1, 48 * KIB, 64, 1), Cache(3, 32 * MIB, 64, 5))
    assert read_caches(tmp_path / "nowhere") == ()
    assert cpu_flags("processor : 0\nflags\t\t: fpu fma avx2\nflags : other\n") == {"fpu", "fma", "avx2"}
    assert cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert (size_bytes("1024K"), size_bytes(""), size_bytes("many"), count_cpus("")) == (MIB, 0, 0, 0)


@given(st.integers(12, 24), st.integers(0, 4), st.integers(0, 7), st.sampled_from([1, 2, 8, 64]))
def test_a_working_set_fits_its_cache_and_not_the_one_below(small: int, more: int, most: int, sharers: int) -> None:
    """Level 1 and 2 leave room beside it; level 3 is shared, and yet more than level 2 holds."""
    caches = (Cache(1, 1 << small, 64, 1), Cache(2, 1 << (small + more + 1), 64, 1), Cache(3, 1 << (small + more + most + 2), 64, sharers))
    processor = replace(X86, caches=caches)
    sizes = [areas.level_bytes(processor, level) for level in (1, 2, 3)]
    assert all(size & (size - 1) == 0 for size in sizes)
    assert sizes[0] <= caches[0].size_bytes
    assert caches[0].size_bytes < sizes[1]
    assert caches[1].size_bytes < sizes[2]
    assert 64 * MIB <= areas.beyond_bytes(processor) <= areas.MOST_BYTES
    assert {row.memory_bytes for row in KERNELS.values()} == {0, areas.PAGES * 4096, areas.MOST_BYTES}


def test_a_walk_comes_through_every_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One closed walk, not several short ones that a cache would hold."""
    monkeypatch.setattr(areas, "PAGES", 64)
    pages, lines = areas.AREAS["pages"](X86, 1), areas.Area(64 * KIB, np.uint64)
    areas.lay_walk(lines.values, np.arange(0, lines.length, 8), np.random.default_rng(1))
    step = kernels.load_function("chase")
    for area, places in ((pages, 64), (lines, 1024)):
        seen = {at := areas.places_of(area, 3)[1]}
        for _ in range(places - 1):
            at = step(area.address, area.length, 1, at)
            seen.add(at)
        assert len(seen) == places
        assert step(area.address, area.length, places, at) == at


def test_primes_are_the_primes() -> None:
    """From 1,000,001 to where it has come, it has counted what a sieve finds."""
    (kernel,) = make_kernels("primes", 1)
    for _ in range(3):
        kernel(100_000)
    number, found = kernel.state & 0xFFFFFFFF, kernel.state >> 48
    sieve = np.ones(number, dtype=bool)
    for at in range(2, int(number**0.5) + 1):
        sieve[at * at :: at] = False
    assert found == np.count_nonzero(sieve[1_000_001:number])
    assert found > 100


STREAM = {
    "copy": lambda a, b, c: (a, b, a),
    "scale": lambda a, b, c: (a, 3 * c, c),
    "add": lambda a, b, c: (a, b, a + b),
    "triad": lambda a, b, c: (b + 3 * c, b, c),
}


@pytest.mark.parametrize("loop", STREAM)
def test_stream_computes_its_four_loops(loop: str) -> None:
    """As numpy does, over the end of the arrays too; 40 lines from line 50 of 64 are the last 14 and the first 26."""
    values = np.random.default_rng(5).random((3, 512))
    expected, touched = values.copy(), np.r_[400:512, 0:208]
    for row, column in enumerate(STREAM[loop](*values)):
        expected[row, touched] = column[touched]
    assert kernels.load_function("stream")(values.ctypes.data, values.size, 40, 50, KERNELS[f"stream_{loop}"].variant) == 26
    assert values == pytest.approx(expected)


def test_crypto_is_the_librarys_digest() -> None:
    """SHA-256 of the state and of the text, over the text's end too."""
    (kernel,) = make_kernels("crypto", 1)
    kernel(5000)
    text = (bytes(range(256)) * 1024 * 2)[: 5000 * 64]
    assert kernel.state == int.from_bytes(hashlib.sha256((1).to_bytes(8, "little") + text).digest()[:8], "little")


def test_atomic_additions_lose_none_and_false_sharing_stays_apart() -> None:
    """Two threads at once add to one word, or each to its own beside the other's."""
    for name, words in (("atomic", {0: 400_000}), ("false_sharing", {0: 200_000, 1: 200_000})):
        pair = make_kernels(name, 2)
        threads = [threading.Thread(target=kernel, args=(200_000,)) for kernel in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        values = pair[0]._area.values
        assert {at: int(values[at]) for at in np.flatnonzero(values)} == words


@pytest.mark.parametrize("name", ["integer", "simd", "chase", "crypto", "matrix"])
def test_other_threads_run_while_a_kernel_does(name: str) -> None:
    """A kernel gives the interpreter away: here it is taken from nobody, so only who gives it lets the other run."""
    kernel = make_kernels({"chase": "pointer_chase"}.get(name, name), 1)[0]
    rounds = {"integer": 20_000_000, "simd": 2_000_000, "chase": 500_000, "crypto": 1_000_000, "matrix": 400}[name]
    kernel(1)
    counted, stop, begun = [0], threading.Event(), threading.Event()

    def count() -> None:
        begun.set()
        while not stop.is_set():
            counted[0] += 1
            stop.wait(0.001)

    before, other = sys.getswitchinterval(), threading.Thread(target=count)
    sys.setswitchinterval(1000.0)
    try:
        other.start()
        begun.wait(5)
        seen = counted[0]
        for _ in range(20):  # a busy machine may leave no moment for the other thread in one call
            kernel(rounds)
            meanwhile = counted[0] - seen
            if meanwhile >= 3:
                break
    finally:
        sys.setswitchinterval(before)
        stop.set()
        other.join()
    assert meanwhile >= 3
