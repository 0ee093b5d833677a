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
    reserve: int
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        fraction: Shape | float | None = None,
        bytes: Shape | float | None = None,
        reserve: int = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
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

class VmPressure(Simulator):
    per_second: Shape
    file: int
    dir: str
    limited: bool
    def __init__(
        self,
        per_second: Shape | float,
        file: int = ...,
        dir: str = ...,
        limited: bool = ...,
    ) -> None: ...

class MemoryStall(Simulator):
    fraction: Shape
    limit: int
    dir: str
    def __init__(
        self,
        fraction: Shape | float,
        limit: int = ...,
        dir: str = ...,
    ) -> None: ...

class DiskFill(Simulator):
    bytes: Shape | None
    fraction: Shape | None
    dir: str
    reserve_bytes: int
    files: int
    write: bool
    rate_bytes: int
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        bytes: Shape | float | None = None,
        fraction: Shape | float | None = None,
        dir: str = ...,
        reserve_bytes: int = ...,
        files: int = ...,
        write: bool = ...,
        rate_bytes: int = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Descriptors(Simulator):
    count: Shape | None
    fraction: Shape | None
    source: Literal["open", "copy"]
    device: str
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        source: Literal["open", "copy"] = ...,
        device: str = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Mappings(Simulator):
    count: Shape | None
    fraction: Shape | None
    form: Literal["private", "shared"]
    size_bytes: int
    touch: bool
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        form: Literal["private", "shared"] = ...,
        size_bytes: int = ...,
        touch: bool = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Sockets(Simulator):
    count: Shape | None
    fraction: Shape | None
    protocol: Literal["tcp", "udp"]
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        protocol: Literal["tcp", "udp"] = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Connections(Simulator):
    count: Shape
    close: Literal["reset", "orderly"]
    peer: Literal["self", "next"]
    port: int
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float,
        close: Literal["reset", "orderly"] = ...,
        peer: Literal["self", "next"] = ...,
        port: int = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Ports(Simulator):
    count: Shape | None
    fraction: Shape | None
    ports: int
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        ports: int = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Threads(Simulator):
    count: Shape | None
    fraction: Shape | None
    stack_bytes: int
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        stack_bytes: int = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Processes(Simulator):
    count: Shape | None
    fraction: Shape | None
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Inodes(Simulator):
    count: Shape | None
    fraction: Shape | None
    dir: str
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float | None = None,
        fraction: Shape | float | None = None,
        dir: str = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class SharedMemory(Simulator):
    count: Shape
    size_bytes: int
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float,
        size_bytes: int = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class Semaphores(Simulator):
    count: Shape
    sets: int
    allow_partial: bool
    batch: int
    spare: int
    retry_s: float
    release_steps: int
    release_interval_s: float
    def __init__(
        self,
        count: Shape | float,
        sets: int = ...,
        allow_partial: bool = ...,
        batch: int = ...,
        spare: int = ...,
        retry_s: float = ...,
        release_steps: int = ...,
        release_interval_s: float = ...,
    ) -> None: ...

class DiskIO(Simulator):
    per_second: Shape
    direction: Literal["write", "read"]
    order: Literal["sequential", "random"]
    direct: bool
    sync: bool
    block_bytes: int
    file_bytes: int
    dir: str
    def __init__(
        self,
        per_second: Shape | float,
        direction: Literal["write", "read"] = ...,
        order: Literal["sequential", "random"] = ...,
        direct: bool = ...,
        sync: bool = ...,
        block_bytes: int = ...,
        file_bytes: int = ...,
        dir: str = ...,
    ) -> None: ...

class LockContention(Simulator):
    count: Shape
    contenders: Literal["threads", "tasks", "processes"]
    contention: float
    hold_s: float
    def __init__(
        self,
        count: Shape | float,
        contenders: Literal["threads", "tasks", "processes"] = ...,
        contention: float = ...,
        hold_s: float = ...,
    ) -> None: ...

class LockConvoy(Simulator):
    count: Shape
    hold_s: float
    work_s: float
    stall_s: float
    every_s: float
    def __init__(
        self,
        count: Shape | float,
        hold_s: float = ...,
        work_s: float = ...,
        stall_s: float = ...,
        every_s: float = ...,
    ) -> None: ...

class Deadlock(Simulator):
    count: Shape
    order: Literal["crossed", "ordered"]
    detect: bool
    on_deadlock: Literal["resolve", "fail"]
    hold_s: float
    timeout_s: float
    def __init__(
        self,
        count: Shape | float,
        order: Literal["crossed", "ordered"] = ...,
        detect: bool = ...,
        on_deadlock: Literal["resolve", "fail"] = ...,
        hold_s: float = ...,
        timeout_s: float = ...,
    ) -> None: ...

class Livelock(Simulator):
    count: Shape
    retry: Literal["in_step", "at_random"]
    backoff_s: float
    def __init__(
        self,
        count: Shape | float,
        retry: Literal["in_step", "at_random"] = ...,
        backoff_s: float = ...,
    ) -> None: ...

class PriorityInversion(Simulator):
    count: Shape
    mechanism: Literal["queue", "nice"]
    inheritance: bool
    hold_s: float
    burst_s: float
    bound_s: float
    def __init__(
        self,
        count: Shape | float,
        mechanism: Literal["queue", "nice"] = ...,
        inheritance: bool = ...,
        hold_s: float = ...,
        burst_s: float = ...,
        bound_s: float = ...,
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
    contention: float
    hold: float
    scope: Literal["node", "cluster"]
    lease: float
    def __init__(
        self,
        per_second: Shape | float,
        contenders: int = ...,
        contention: float = ...,
        hold: float = ...,
        scope: Literal["node", "cluster"] = ...,
        lease: float = ...,
    ) -> None: ...

class ActorMesh(Simulator):
    per_second: Shape
    actors: int
    outstanding: int
    work: float
    payload_bytes: int
    spare: int
    def __init__(
        self,
        per_second: Shape | float,
        actors: int = ...,
        outstanding: int = ...,
        work: float = ...,
        payload_bytes: int = ...,
        spare: int = ...,
    ) -> None: ...

class Cascade(Simulator):
    per_second: Shape
    services: int
    levels: int
    fan_out: int
    graph_seed: int
    how: Literal["stopped", "killed"]
    fail_after: float
    buffer: float
    timeout: float
    breaker: bool
    failures: int
    reset: float
    def __init__(
        self,
        per_second: Shape | float,
        services: int = ...,
        levels: int = ...,
        fan_out: int = ...,
        graph_seed: int = ...,
        how: Literal["stopped", "killed"] = ...,
        fail_after: float = ...,
        buffer: float = ...,
        timeout: float = ...,
        breaker: bool = ...,
        failures: int = ...,
        reset: float = ...,
    ) -> None: ...

class ObjectStorePressure(Simulator):
    bytes: Shape | None
    fraction: Shape | None
    object_bytes: int
    reads_per_second: float
    spill: bool
    def __init__(
        self,
        bytes: Shape | float | None = None,
        fraction: Shape | float | None = None,
        object_bytes: int = ...,
        reads_per_second: float = ...,
        spill: bool = ...,
    ) -> None: ...
