"""Compiled loops that load a core or walk memory: each module has a `work` that numba can compile, and a `SIGNATURE`.

`table` lists those that CpuLoad offers, `ready` makes them ready to run. Here is how any of them is compiled, kept and loaded.

`SIGNATURE` is numba's text for it, "uint64(uint64, uint64)" where none is given: rounds and seed. A loop with a work area takes it first:
"uint64(CPointer(uint64), uint64, uint64, uint64)" is (address, length in elements, rounds, seed); `area[i]` then reads and writes memory
that the caller owns, without a bounds check, and the module's docstring says what has to lie there. `OPTIONS`, where given, go to numba.

Such loops release the interpreter and never look at a clock: the caller keeps each call short.

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
from typing import Any, Final

Native = Callable[..., int]

_ENTRY: Final = "; entry "  # the first line of a kept text: a comment that names the function and its signature
_PLAIN: Final = "uint64(uint64, uint64)"
_TYPES: Final[dict[str, Any]] = {
    "uint64": ctypes.c_uint64,
    "int64": ctypes.c_int64,
    "float64": ctypes.c_double,
    "CPointer": ctypes.c_void_p,
}


def load_function(module: str) -> Native:
    """Return the compiled `work` of a module of this package, called with whole numbers: addresses, lengths, rounds, a seed.

    Neither numba nor the module itself is imported where its text was kept. Raises `ModuleNotFoundError` or numba's errors.
    """
    text = load_text(module)
    try:
        return _native(text)
    except (ValueError, RuntimeError):  # a damaged text: made anew
        return _native(_compiled(module))


def load_text(module: str) -> str:
    """Return a module's `work` as LLVM's text, compiled for this processor or kept from before; it may be damaged."""
    kept = _kept(module)
    if kept is not None:
        with suppress(OSError, ValueError):  # not there yet, or damaged: made anew
            return kept.read_text(encoding="utf-8")
    return _compiled(module)


def load_assembly(module: str) -> str:
    """Return what this processor runs of a module's `work`, as text: by it a test sees whether a kernel is what its name says."""
    compiled, machine, _ = _parsed(load_text(module))
    return str(machine.emit_assembly(compiled))


def signature_types(signature: str) -> list[Any]:
    """Return the ctypes of a numba signature's parameters. Raises `ValueError` for a type that is not passed here."""
    inside = signature.partition("(")[2].removesuffix(")")
    names = [part.partition("(")[0].strip() for part in inside.split(",")]
    if signature.partition("(")[0] != "uint64" or not set(names) <= set(_TYPES):
        raise ValueError(f"{signature!r} is not uint64(...) of {', '.join(_TYPES)}")
    return [_TYPES[name] for name in names]


def _kept(module: str) -> Path | None:
    """Return where a module's text is kept: a name for its source, for what compiled it, and for which processor."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder:
        return None
    import llvmlite.binding as llvm  # noqa: PLC0415  # only load processes need it

    digest = hashlib.sha256(Path(__file__).with_name(f"{module}.py").read_bytes())
    digest.update(f"{version('numba')} {version('llvmlite')} {llvm.get_host_cpu_name()}".encode())
    return Path(folder) / f"{module}-{digest.hexdigest()[:16]}.ll"


def _compiled(module: str) -> str:
    """Compile a module's `work`, keep its text where there is a folder, and return it."""
    text, kept = _compile(module), _kept(module)
    if kept is not None:
        with suppress(OSError):  # no room: compiled anew next time
            _keep(kept, text)
    return text


def _keep(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _compile(module: str) -> str:
    """Return a module's `work` as LLVM's text, its entry and signature in the first line."""
    import numba  # noqa: PLC0415  # only the first load on a machine pays for it

    found = importlib.import_module(f"{__name__}.{module}")
    signature = getattr(found, "SIGNATURE", _PLAIN)
    signature_types(signature)
    compiled = numba.cfunc(signature, **getattr(found, "OPTIONS", {}))(found.work)
    return f"{_ENTRY}{compiled.native_name} {signature}\n{compiled.inspect_llvm()}"


def _parsed(text: str) -> tuple[Any, Any, tuple[str, str]]:
    """Return LLVM's module, a machine for this processor, (entry, signature); `ValueError` or `RuntimeError` for a damaged text."""
    import llvmlite.binding as llvm  # noqa: PLC0415  # only load processes need it

    first, _, _ = text.partition("\n")
    entry, _, signature = first.removeprefix(_ENTRY).partition(" ")
    if not first.startswith(_ENTRY) or not signature:
        raise ValueError(f"no entry is named in {first[:40]!r}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    return llvm.parse_assembly(text), machine, (entry, signature)


def _native(text: str) -> Native:
    """Return the function of such a text for this machine's processor. Raises `ValueError` or `RuntimeError` for a damaged one."""
    import llvmlite.binding as llvm  # noqa: PLC0415  # only load processes need it

    module, machine, (entry, signature) = _parsed(text)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address = engine.get_function_address(entry)
    if not address:
        raise ValueError(f"the text has no {entry}")
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, *signature_types(signature))(address)

    def work(*arguments: int) -> int:
        assert engine is not None  # it owns the code
        return int(call(*arguments))

    return work
