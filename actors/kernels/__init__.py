"""Compiled loops that load a core: each module has a `work(rounds, seed)` that numba can compile.

They release the interpreter, touch no memory and never look at a clock: the caller keeps each call short.

numba compiles a loop once and gives it as LLVM's text, which is kept where NUMBA_CACHE_DIR says, a folder of STATE in load processes;
without it nothing is kept, so that no files appear beside the sources. A load that finds the text needs llvmlite alone: 0.04 s of CPU
instead of 0.5 s for numba and its own cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

Kernel = Callable[[int, int], int]

NAMES: Final = ("integer", "float")
_MODULES: Final = {"integer": "integer", "float": "floating"}
_ENTRY: Final = "; entry "  # the first line of a kept text: a comment that names the function


def load_kernel(name: str) -> Kernel:
    """Return a kernel of `NAMES`, compiled; the first call on a machine takes seconds, later ones a few hundredths of one."""
    kept = _kept(name)
    if kept is not None:
        with suppress(OSError, ValueError, RuntimeError):  # not there yet, or damaged: made anew
            return _native(kept.read_text(encoding="utf-8"))
    text = _compile(name)
    if kept is not None:
        with suppress(OSError):  # no room: compiled anew next time
            _keep(kept, text)
    return _native(text)


def _kept(name: str) -> Path | None:
    """Return where a kernel's text is kept: a name for its source and for what compiled it."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder:
        return None
    digest = hashlib.sha256(Path(__file__).with_name(f"{_MODULES[name]}.py").read_bytes())
    digest.update(f"{version('numba')} {version('llvmlite')}".encode())
    return Path(folder) / f"{name}-{digest.hexdigest()[:16]}.ll"


def _keep(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _compile(name: str) -> str:
    """Return a kernel as LLVM's text, its entry named in the first line."""
    import numba  # noqa: PLC0415  # only the first load on a machine pays for it

    function = importlib.import_module(f"{__name__}.{_MODULES[name]}").work
    compiled = numba.cfunc("uint64(uint64, uint64)")(function)
    return f"{_ENTRY}{compiled.native_name}\n{compiled.inspect_llvm()}"


def _native(text: str) -> Kernel:
    """Return the function of such a text for this machine's processor. Raises `ValueError` or `RuntimeError` for a damaged one."""
    import llvmlite.binding as llvm  # noqa: PLC0415  # only load processes need it

    first, _, _ = text.partition("\n")
    if not first.startswith(_ENTRY):
        raise ValueError(f"no entry is named in {first[:40]!r}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    address = engine.get_function_address(first.removeprefix(_ENTRY))
    if not address:
        raise ValueError(f"the text has no {first.removeprefix(_ENTRY)}")
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(address)

    def work(rounds: int, seed: int) -> int:
        assert engine is not None  # it owns the code
        return int(call(rounds, seed))

    return work
