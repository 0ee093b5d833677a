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

class MailboxFlood(Simulator):
    per_second: Shape
    actors: int
    outstanding: int
    backpressure: Literal["block", "drop_newest", "drop_oldest", "reject", "shed", "token_bucket"]
    waiting: int
    tokens_per_s: float
    burst: int
    work: float
    payload_bytes: int
    in_flight_bytes: int
    def __init__(
        self,
        per_second: Shape | float,
        actors: int = ...,
        outstanding: int = ...,
        backpressure: Literal["block", "drop_newest", "drop_oldest", "reject", "shed", "token_bucket"] = ...,
        waiting: int = ...,
        tokens_per_s: float = ...,
        burst: int = ...,
        work: float = ...,
        payload_bytes: int = ...,
        in_flight_bytes: int = ...,
    ) -> None: ...

class TaskExplosion(Simulator):
    per_second: Shape
    workers: int
    outstanding: int
    backpressure: Literal["block", "drop_newest", "drop_oldest", "reject", "shed", "token_bucket"]
    waiting: int
    tokens_per_s: float
    burst: int
    work: float
    def __init__(
        self,
        per_second: Shape | float,
        workers: int = ...,
        outstanding: int = ...,
        backpressure: Literal["block", "drop_newest", "drop_oldest", "reject", "shed", "token_bucket"] = ...,
        waiting: int = ...,
        tokens_per_s: float = ...,
        burst: int = ...,
        work: float = ...,
    ) -> None: ...

class ClusterLock(Simulator):
    per_second: Shape
    contenders: int
    hold: float
    lease: float
    def __init__(
        self,
        per_second: Shape | float,
        contenders: int = ...,
        hold: float = ...,
        lease: float = ...,
    ) -> None: ...
