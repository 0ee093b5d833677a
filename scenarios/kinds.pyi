# Made by scenarios.kinds.stub() from the simulators' records; a test compares.
from collections.abc import Mapping
from typing import Final, Literal

from actors.shape import Shape

from .simulators import Simulator

KINDS: Final[Mapping[str, type[Simulator]]]

def stub() -> str: ...

class CpuLoad(Simulator):
    fraction: Shape
    mode: Literal["own", "host_total", "slowdown"]
    kernel: Literal["integer", "float", "simd", "division", "transcendental", "crypto", "matrix", "primes", "branch_random", "branch_sorted", "cache_l1", "cache_l2", "cache_l3", "cache_memory", "pointer_chase", "stream_copy", "stream_scale", "stream_add", "stream_triad", "tlb", "atomic", "false_sharing"]
    cores: int | str
    affinity: Literal["free", "pinned"]
    heat_limit_c: int
    def __init__(
        self,
        fraction: Shape | float,
        mode: Literal["own", "host_total", "slowdown"] = ...,
        kernel: Literal["integer", "float", "simd", "division", "transcendental", "crypto", "matrix", "primes", "branch_random", "branch_sorted", "cache_l1", "cache_l2", "cache_l3", "cache_memory", "pointer_chase", "stream_copy", "stream_scale", "stream_add", "stream_triad", "tlb", "atomic", "false_sharing"] = ...,
        cores: int | str = ...,
        affinity: Literal["free", "pinned"] = ...,
        heat_limit_c: int = ...,
    ) -> None: ...

class CpuPressure(Simulator):
    fraction: Shape
    kernel: Literal["integer", "float", "simd", "division", "transcendental", "crypto", "matrix", "primes", "branch_random", "branch_sorted", "cache_l1", "cache_l2", "cache_l3", "cache_memory", "pointer_chase", "stream_copy", "stream_scale", "stream_add", "stream_triad", "tlb", "atomic", "false_sharing"]
    heat_limit_c: int
    def __init__(
        self,
        fraction: Shape | float,
        kernel: Literal["integer", "float", "simd", "division", "transcendental", "crypto", "matrix", "primes", "branch_random", "branch_sorted", "cache_l1", "cache_l2", "cache_l3", "cache_memory", "pointer_chase", "stream_copy", "stream_scale", "stream_add", "stream_triad", "tlb", "atomic", "false_sharing"] = ...,
        heat_limit_c: int = ...,
    ) -> None: ...

class MemoryPressure(Simulator):
    fraction: Shape | None
    bytes: Shape | None
    def __init__(
        self,
        fraction: Shape | float | None = None,
        bytes: Shape | float | None = None,
    ) -> None: ...

class MemoryFragment(Simulator):
    fraction: Shape | None
    bytes: Shape | None
    fragmentation: float
    block: int
    def __init__(
        self,
        fraction: Shape | float | None = None,
        bytes: Shape | float | None = None,
        fragmentation: float = ...,
        block: int = ...,
    ) -> None: ...

class MemoryAccess(Simulator):
    fraction: Shape
    pattern: Literal["sequential", "strided", "random", "pointer_chase", "hot_spot"]
    working_set: int
    stride: int
    seed: int
    cores: int | str
    def __init__(
        self,
        fraction: Shape | float,
        pattern: Literal["sequential", "strided", "random", "pointer_chase", "hot_spot"] = ...,
        working_set: int = ...,
        stride: int = ...,
        seed: int = ...,
        cores: int | str = ...,
    ) -> None: ...

class DiskFill(Simulator):
    bytes: Shape | None
    fraction: Shape | None
    dir: str
    reserve_bytes: int
    def __init__(
        self,
        bytes: Shape | float | None = None,
        fraction: Shape | float | None = None,
        dir: str = ...,
        reserve_bytes: int = ...,
    ) -> None: ...
