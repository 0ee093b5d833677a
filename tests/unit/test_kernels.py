"""Compiled loops: what is kept of them is the same function, loads without numba, and is made anew when it is damaged."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from actors import kernels

ROOT = Path(__file__).parents[2]
MASK = (1 << 64) - 1
LOAD = "import sys; from actors import kernels; work = kernels.load_function({name!r}); print(work(1000, 7), 'numba' in sys.modules)"
PLAIN = ("integer", "floating")


def xorshift(rounds: int, seed: int) -> int:
    """The integer kernel in plain Python: xorshift64* (Vigna 2016)."""
    state = seed | 1
    for _ in range(rounds):
        state ^= state >> 12
        state ^= (state << 25) & MASK
        state ^= state >> 27
        state = state * 2685821657736338717 & MASK
    return state


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both kernels, compiled by processes of their own."""
    folder = tmp_path_factory.mktemp("kernels")
    for name in PLAIN:
        assert loaded(folder, name)[1] == "True"
    return folder


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder by itself."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)


def loaded(folder: Path, name: str) -> list[str]:
    """Load a kernel in a process of its own; return what it computes and whether numba was needed."""
    environment = {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(name=name)], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()


def test_the_integer_kernel_computes_what_its_source_says(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, kept and loaded again, it is the same function for every start."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))
    work = kernels.load_function("integer")
    for rounds, seed in ((0, 1), (1, 1), (1000, 7), (3, MASK)):
        assert work(rounds, seed) == xorshift(rounds, seed)


def test_the_float_kernel_stays_finite_and_depends_on_its_rounds(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No optimiser has taken its loop away."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))
    work = kernels.load_function("floating")
    assert len({work(rounds, 500) for rounds in (0, 10, 1000, 100_000)}) == 4


@pytest.mark.parametrize("name", PLAIN)
def test_a_kept_kernel_needs_no_numba(kept: Path, name: str) -> None:
    """The second process reads the text."""
    assert loaded(kept, name)[1] == "False"


@pytest.mark.parametrize("text", ["", "; entry nothing\n", "; entry cfunc.x\ndefine i64 @torn(", "not LLVM at all"])
def test_a_damaged_text_is_made_anew(tmp_path: Path, kept: Path, text: str) -> None:
    """Whatever a disk left of it: the load works, and the next one finds a whole text again."""
    (found,) = kept.glob("integer-*.ll")
    (tmp_path / found.name).write_text(text)
    assert loaded(tmp_path, "integer") == [str(xorshift(1000, 7)), "True"]
    assert (tmp_path / found.name).read_text() == found.read_text()
    assert loaded(tmp_path, "integer")[1] == "False"


def test_a_kernel_with_a_work_area_works_on_the_memory_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address and length come first; it writes there and nowhere else, and its kept text knows its signature."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    area = (ctypes.c_double * 256)(*[0.5] * 256)
    kernels.load_function("simd")(ctypes.addressof(area), 192, 2, 1)
    again = kernels.load_function("simd")
    assert len(set(area[64:192])) == 1
    assert area[64] == pytest.approx(0.5 + 16, rel=1e-5)
    assert set(area[:64]) | set(area[192:]) == {0.5}
    again(ctypes.addressof(area), 192, 2, 2)
    assert (area[0], area[64], area[128]) == pytest.approx((16.5, 16.5, 32.5), rel=1e-5)
    assert "simd" in {path.name.partition("-")[0] for path in tmp_path.iterdir()}


@pytest.mark.parametrize("signature", ["float64(uint64)", "uint64(uint8)", "uint64(uint64, array(float64, 1d, C))", "uint64"])
def test_a_signature_that_cannot_be_called_is_refused(signature: str) -> None:
    """Only what ctypes passes in the same way as numba takes it."""
    with pytest.raises(ValueError, match="uint64"):
        kernels.signature_types(signature)


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    """And the kernel works all the same."""
    assert kernels.load_function("integer")(1000, 7) == xorshift(1000, 7)
