# Made by scenarios.kinds.stub() from the simulators' records; a test compares.
from collections.abc import Mapping
from typing import Final, Literal

from actors.shape import Shape

from .simulators import Simulator

KINDS: Final[Mapping[str, type[Simulator]]]

def stub() -> str: ...

class CpuLoad(Simulator):
    fraction: Shape
    mode: Literal["own", "host_total"]
    kernel: Literal["integer", "float"]
    cores: int | str
    def __init__(
        self,
        fraction: Shape | float,
        mode: Literal["own", "host_total"] = ...,
        kernel: Literal["integer", "float"] = ...,
        cores: int | str = ...,
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

class StressNg(Simulator):
    count: Shape | None
    fraction: Shape | None
    stressor: str
    arguments: str
    instances: int
    cores: float
    memory_bytes: int
    disk_bytes: int
    tasks: int
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        stressor: str = ...,
        arguments: str = ...,
        instances: int = ...,
        cores: float = ...,
        memory_bytes: int = ...,
        disk_bytes: int = ...,
        tasks: int = ...,
    ) -> None: ...
