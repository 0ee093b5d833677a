"""Kernels made ready to run: compiled, with their work areas laid out, one for each thread."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import RefusedError
from ..processor import Processor, this_processor
from . import load_function
from .table import KERNELS, KernelRecord

if TYPE_CHECKING:
    from .areas import Area


class Kernel:
    """One thread's kernel: each call does so many rounds, from where the call before has ended."""

    def __init__(self, call: Callable[[int, int], int], state: int, area: Area | None = None) -> None:
        self._call = call
        self._area = area  # the loop holds no more than its address
        self.state = state

    def __call__(self, rounds: int) -> None:
        """Do so many rounds."""
        self.state = self._call(rounds, self.state)


def make_kernels(name: str, threads: int, seed: int = 0, processor: Processor | None = None) -> list[Kernel]:
    """Return a kernel of the table for each thread, compiled; the first time on a machine takes seconds.

    Raises `RefusedError` (`unsupported`) when this machine lacks what the kernel is about, and `MemoryError` or `OSError` without room.
    """
    record, found = KERNELS[name], processor or this_processor()
    if reason := record.missing(found, threads):
        raise RefusedError("unsupported", reason, "choose another kernel, or a node that has it: see `describe CpuLoad`")
    if not record.compiled:
        module = importlib.import_module(f"{__package__}.{record.module}")
        return [Kernel(module.make(), index + 1) for index in range(threads)]
    if not record.area:
        call = load_function(record.module)
        return [Kernel(call, index + 1) for index in range(threads)]
    return _with_areas(record, threads, seed, found)


def _with_areas(record: KernelRecord, threads: int, seed: int, processor: Processor) -> list[Kernel]:
    """Return kernels that walk memory; with one area in common, each begins at another place of it."""
    from .areas import AREAS  # noqa: PLC0415  # numpy is loaded only where an area is laid out

    native = load_function(record.module)
    extra = () if record.variant is None else (record.variant,)
    lay = AREAS[record.area]
    areas = [lay(processor, seed)] * threads if record.shared else [lay(processor, seed + index) for index in range(threads)]

    def bind(area: Area) -> Callable[[int, int], int]:
        address, length = area.address, area.length
        return lambda rounds, state: native(address, length, rounds, state, *extra)

    return [Kernel(bind(area), state, area) for area, state in zip(areas, _first_states(record, areas), strict=True)]


def _first_states(record: KernelRecord, areas: list[Area]) -> list[int]:
    """Return where each thread begins: at its own part of an area that all of them walk, else at its number."""
    from .areas import places_of  # noqa: PLC0415  # see above

    if record.module == "chase":
        return places_of(areas[0], len(areas))
    step = areas[0].length // 24 // len(areas) if record.module == "stream" else 1
    return [index * step for index in range(len(areas))]
