"""Every Ray call of this package. The rest sees plain classes, records and errors of our own.

Actors are named and detached in the namespace `stress-cluster`, take no logical CPUs, and are never retried or restarted by
Ray where a call has an effect: a restarted actor has lost its state, and who replaces it is decided by us.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import exceptions as ray_errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, RefusedError, StressError
from actors.messages import Capacity, NodeSpec, Operation, SlotTicket
from actors.proc import raise_priority
from actors.shell import SimulatorActor
from actors.state import default_state_dir, open_state_dir

from .agent_api import AgentConfig
from .exchange import Reply, Report
from .lean import GIVES_BACK, leave_out
from .orchestrator_api import OrchestratorConfig
from .outbox import Frames

NAMESPACE = "stress-cluster"
ORCHESTRATOR = "orchestrator"
AGGREGATOR = "aggregator-"
MIN_OBJECT_STORE_BYTES = 80_000_000
REPLACED_S = 20.0  # within which Ray has restarted an actor that may be restarted


# ---- calls


RayError = ray_errors.RayError


class Lost(HarnessError):
    """The actor at the other end is dead or unreachable: what it was told may or may not have been done."""


class NoAnswer(HarnessError):
    """No answer in time: the call may still execute later."""


def wait(reference: Any, timeout_s: float) -> Any:
    """Return a call's result. Raises our own errors: `NoAnswer`, `Lost`, or the `StressError` that the actor raised."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray_errors.GetTimeoutError as error:
        raise NoAnswer("timeout", f"no answer within {timeout_s:.1f} s") from error
    except ray_errors.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StressError):
            raise cause from None
        _raise_missing(error)
        raise HarnessError("internal", f"an actor failed: {str(error).strip().splitlines()[-1]}") from error
    except ray_errors.RayError as error:
        _raise_missing(error)
        raise Lost("lost", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def _raise_missing(error: Exception) -> None:
    """Raise `HarnessError` when an actor could not begin because its node lacks a module: nothing was done there, and nothing will be."""
    if found := re.search(r"No module named '[\w.]+'", str(error)):
        hint = "install the same version on every node, or leave the setting `ship` at always"
        raise HarnessError("code_mismatch", f"an actor cannot begin there: {found[0]}", hint) from error


class Actor:
    """A handle to one of our actors: `call` waits, `send` does not."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def call(self, method: str, *args: Any, timeout_s: float = 10.0, group: str = "") -> Any:
        """Call and wait; see `wait` for what is raised."""
        return wait(self._submit(method, args, group), timeout_s)

    def send(self, method: str, *args: Any, group: str = "") -> Any:
        """Call without waiting; returns the reference."""
        return self._submit(method, args, group)

    def _submit(self, method: str, args: Sequence[Any], group: str) -> Any:
        try:
            bound = getattr(self.handle, method)
            return (bound.options(concurrency_group=group) if group else bound).remote(*args)
        except ray_errors.RayError as error:
            raise Lost("lost", f"{type(error).__name__}: {error}") from error

    def kill(self) -> None:
        """End the actor's process at once."""
        with contextlib.suppress(ray_errors.RayError, ValueError):
            ray.kill(self.handle)


def find(name: str) -> Actor | None:
    """Return a named actor of ours, or nothing."""
    try:
        return Actor(ray.get_actor(name, namespace=NAMESPACE))
    except (ValueError, ray_errors.RayError):
        return None


def find_all(prefix: str) -> dict[str, Actor]:
    """Return our named actors whose name begins so."""
    names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]
    found = {name: find(name) for name in names if name.startswith(prefix)}
    return {name: actor for name, actor in found.items() if actor is not None}


def create(
    factory: Callable[..., Any],
    name: str,
    node_id: str,
    args: Sequence[Any],
    *,
    groups: Mapping[str, int] | None = None,
    detached: bool = True,
    max_restarts: int = 0,
    get_if_exists: bool = False,
) -> Actor:
    """Create one actor pinned to a node. The class is a plain one; its concurrency groups are given here."""
    remote = ray.remote(concurrency_groups=dict(groups))(factory) if groups else ray.remote(factory)
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": max_restarts,
        "max_task_retries": 0,
        "enable_task_events": False,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
    }
    if detached:
        options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": get_if_exists}
    try:
        return Actor(remote.options(**options).remote(*args))
    except (ray_errors.RayError, ValueError) as error:
        raise Lost("lost", f"cannot create {name}: {error}") from error


# ---- the cluster


@dataclass(frozen=True, slots=True)
class RayNode:
    """One alive Ray node."""

    id: str
    spec: NodeSpec


def nodes() -> list[RayNode]:
    """Return the alive nodes in the order of their names; nodes of the same name get a suffix of their id."""
    alive = [entry for entry in ray.nodes() if entry["Alive"]]
    names = [_node_name(entry) for entry in alive]
    found = []
    for entry, name in zip(alive, names, strict=True):
        unique = name if names.count(name) == 1 else f"{name}-{entry['NodeID'][:6]}"
        head = "node:__internal_head__" in entry["Resources"]
        labels = {str(key): str(value) for key, value in entry.get("Labels", {}).items()}
        found.append(RayNode(entry["NodeID"], NodeSpec(unique, labels, entry["NodeManagerAddress"], head)))
    return sorted(found, key=lambda node: node.spec.name)


def _node_name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("NodeName") or entry["NodeManagerAddress"])


def alive_ids() -> set[str]:
    """Return the ids of the nodes that Ray holds for alive."""
    return {entry["NodeID"] for entry in ray.nodes() if entry["Alive"]}


def my_node_id() -> str:
    """Return the id of the node on which this process runs."""
    return str(ray.get_runtime_context().get_node_id())


def gcs_address() -> str:
    """Return the address of the cluster that this process is connected to."""
    return str(ray.get_runtime_context().gcs_address)


def is_connected() -> bool:
    """Tell whether this process is connected to a cluster."""
    return bool(ray.is_initialized())


def put_if_absent(key: str, value: str) -> bool:
    """Write a key of the cluster's own store once; returns False when it was there."""
    from ray.experimental import internal_kv  # noqa: PLC0415  # needs a connected process

    return not internal_kv._internal_kv_put(key.encode(), value.encode(), overwrite=False, namespace=NAMESPACE.encode())  # noqa: SLF001


def read_key(key: str) -> str:
    """Return a key of the cluster's own store, or an empty string."""
    from ray.experimental import internal_kv  # noqa: PLC0415  # needs a connected process

    value = internal_kv._internal_kv_get(key.encode(), namespace=NAMESPACE.encode())  # noqa: SLF001
    return value.decode() if value else ""


def cluster_id() -> str:
    """Return the cluster's random id, made on first use."""
    put_if_absent("cluster_id", secrets.token_hex(8))
    return read_key("cluster_id")


def next_epoch(cluster: str) -> int:
    """Claim the next epoch of this cluster: one winner each, and never a number twice."""
    epoch = int(read_key("epoch_hint") or 0)
    while True:
        epoch += 1
        if put_if_absent(f"epoch-{epoch}", f"{cluster} {uuid.uuid4()}"):
            from ray.experimental import internal_kv  # noqa: PLC0415  # needs a connected process

            internal_kv._internal_kv_put(b"epoch_hint", str(epoch).encode(), overwrite=True, namespace=NAMESPACE.encode())  # noqa: SLF001
            return epoch


def connect(address: str, *, ship: Sequence[Path] = ()) -> None:
    """Connect this process to a standing cluster. `ship`: package folders to send along where they are not installed.

    Raises `RefusedError` when there is no cluster at the address.
    """
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    environment: dict[str, Any] = {"py_modules": [str(path) for path in ship]} if ship and not inside_job else {}
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error", runtime_env=environment or None)
    except (ConnectionError, ray_errors.RayError, RuntimeError, ValueError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RefusedError(
            "lost", f"no Ray cluster answers at {address}: {first}", "give --address, or leave it out for an embedded Ray"
        ) from error


def disconnect() -> None:
    """Leave the cluster."""
    if ray.is_initialized():
        ray.shutdown()


# ---- an embedded Ray


class Embedded:
    """A Ray of our own on this machine: one head, and `nodes` target raylets beside it (none: the head is its own target)."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = nodes
        self.cluster: Any = None
        self.address = ""

    def start_head(self) -> None:
        """Start the head. The environment must have been set before; this process does not connect."""
        from ray.cluster_utils import Cluster  # noqa: PLC0415  # slow to import, used here only

        with _quiet():
            self.cluster = Cluster(initialize_head=True, head_node_args=self._node_args("head", cpus=max(2, os.cpu_count() or 2)))
        self.address = str(self.cluster.address)

    def start_nodes(self) -> None:
        """Start the target raylets and wait until all of them have joined."""
        with _quiet():
            for index in range(self.nodes):
                self.cluster.add_node(wait=False, **self._node_args(f"n{index + 1}", cpus=2))
            self.cluster.wait_for_nodes(timeout=60)

    def reap(self) -> None:
        """Collect raylets that died, so that their workers see it and end."""
        for node in self.cluster.list_all_nodes():
            for processes in list(node.all_processes.values()):
                for info in processes:
                    info.process.poll()

    def _node_args(self, name: str, cpus: int) -> dict[str, Any]:
        args: dict[str, Any] = {
            "node_name": name,
            "num_cpus": cpus,
            "object_store_memory": MIN_OBJECT_STORE_BYTES,
            "node_ip_address": "127.0.0.2",
            "include_dashboard": False,
            "include_log_monitor": False,
            "no_monitor": True,
            "temp_dir": str(self.folder / "ray"),
        }
        plasma = self._plasma_folder()
        return args | ({"plasma_directory": plasma} if plasma else {})

    def _plasma_folder(self) -> str:
        """Return where the object store's file may lie when /dev/shm is too small for all raylets."""
        need = MIN_OBJECT_STORE_BYTES * (self.nodes + 2)
        with contextlib.suppress(OSError):
            if shutil.disk_usage("/dev/shm").free > need:  # noqa: S108  # Ray's own place for its object store
                return ""
        path = self.folder / "plasma"
        path.mkdir(exist_ok=True)
        return str(path)

    def stop(self) -> None:
        """End this Ray gracefully; the guardian ends what is left and removes the folder."""
        if self.cluster is not None:
            with contextlib.suppress(OSError, RuntimeError, ray_errors.RayError), _quiet():  # the guardian's record is what counts
                self.cluster.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what Ray prints on standard output while it starts to standard error's log."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# ---- our actors


def _leave() -> Callable[[], None]:
    """Return a function that ends this actor for good: Ray neither restarts nor mourns it."""
    me = ray.get_runtime_context().current_actor

    def end() -> None:
        with contextlib.suppress(ray_errors.RayError, ValueError):
            ray.kill(me, no_restart=True)
        os._exit(0)

    return end


class _Simulator:
    """A simulator's actor as the agent sees it."""

    def __init__(self, actor: Actor, clock: Clock) -> None:
        self._actor, self._clock = actor, clock
        self._asked: Any = None
        self._asked_ns = 0
        self._known: dict[str, Any] | None = None

    def prepare(self, timeout_s: float) -> tuple[int, ...]:
        """Start its load and wait until it is ready; returns its processes."""
        deadline_ns = self._clock.boot_ns() + round(timeout_s * SECOND_NS)
        self._actor.call("prepare", timeout_s=timeout_s)
        while True:
            status = self._actor.call("status", timeout_s=5.0, group="control")
            if status.phase in {"ready", "running"}:
                return tuple(status.pids)
            if status.phase not in {"new", "preparing"}:
                raise HarnessError("internal", f"{status.operation} did not get ready: {status.reason or status.phase}")
            if self._clock.boot_ns() > deadline_ns:
                raise NoAnswer("timeout", f"{status.operation} was not ready within {timeout_s:.0f} s")
            self._clock.sleep(0.02)

    def poll(self) -> dict[str, Any] | None:
        """Return the newest status that has arrived; asks again. Raises `Lost` when the actor is dead."""
        if self._asked is not None:
            done, _ = ray.wait([self._asked], timeout=0)
            if not done:
                return self._known
            status = wait(self._asked, 1.0)
            self._known = {"phase": status.phase, "reason": status.reason, "first_slice_ns": status.first_slice_ns}
        self._asked, self._asked_ns = self._actor.send("status", group="control"), self._clock.boot_ns()
        return self._known

    def silent_s(self) -> float:
        """Return for how long the open question has had no answer."""
        return (self._clock.boot_ns() - self._asked_ns) / SECOND_NS if self._asked is not None else 0.0

    def kill(self) -> None:
        """End its process."""
        self._actor.kill()


class _AgentPort:
    """What an agent needs of Ray."""

    def __init__(self) -> None:
        self._orchestrator: Actor | None = None
        self._aggregators: dict[str, Actor] = {}
        self._end = _leave()
        self._clock = SystemClock()

    def exchange(self, report: Report, timeout_s: float) -> Reply:
        """Ask the orchestrator, looking it up again after it was lost."""
        if self._orchestrator is None:
            self._orchestrator = find(ORCHESTRATOR)
        if self._orchestrator is None:
            raise Lost("lost", "there is no orchestrator")
        try:
            reply: Reply = self._orchestrator.call("exchange", report, timeout_s=timeout_s, group="exchange")
        except Lost:
            self._orchestrator = None
            raise
        return reply

    def simulator(self, operation: Operation, capacity: Capacity, ticket: SlotTicket, state_dir: str) -> _Simulator:
        """Create a simulator's actor on this node, owned by this agent: it dies with it."""
        affinity = NodeAffinitySchedulingStrategy(my_node_id(), soft=False)
        handle = SimulatorActor.options(scheduling_strategy=affinity, enable_task_events=False).remote(
            operation, capacity, ticket, state_dir
        )
        return _Simulator(Actor(handle), self._clock)

    def push(self, run: str, node: str, incarnation: str, records: Frames, timeout_s: float) -> int:
        """Hand outbox records to the run's aggregator."""
        return _push(self._aggregators, run, node, incarnation, records, timeout_s)

    def exit(self) -> None:
        """End this actor."""
        self._end()


def _push(known: dict[str, Actor], run: str, node: str, incarnation: str, records: Frames, timeout_s: float) -> int:
    actor = known.get(run) or find(AGGREGATOR + run)
    if actor is None:
        raise Lost("lost", f"run {run} has no aggregator")
    known[run] = actor
    try:
        held: int = actor.call("push", node, incarnation, records, timeout_s=timeout_s)
    except Lost:
        known.pop(run, None)
        raise
    return held


_C = TypeVar("_C", bound=type)


def _forwards(*names: str) -> Callable[[_C], _C]:
    """Give an actor's class these methods of its `_shell`, whose code is imported only where the actor lives.

    Whoever has a handle of an actor imports what its class was made of: a shell as the base class would be imported by everybody.
    """

    def with_methods(made: _C) -> _C:
        for name in names:
            setattr(made, name, _forward(name))
        return made

    return with_methods


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return getattr(self._shell, name)(*args)

    method.__name__ = method.__qualname__ = name
    return method


def _settle_in() -> None:
    """Make a worker's process fit for its actor: Ray starts it at nice 15, and what guards load must not wait for load."""
    raise_priority(os.getpid())
    leave_out()


@_forwards("hello", "poke", "alive", "guardian_status", "leave")
class _AgentActor:
    """The node agent as an actor: watched pids are its own and its raylet's."""

    def __init__(self, config: AgentConfig) -> None:
        _settle_in()
        os.environ.update(GIVES_BACK)  # before pyarrow is imported: an agent is to stay small beside the load that it guards
        from .agent_shell import AgentShell  # noqa: PLC0415  # see `_forwards`

        self._shell = AgentShell(replace(config, watch=(os.getppid(),)), _AgentPort())


class _RemoteAgent:
    """A node's agent as the orchestrator sees it."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def hello(self, timeout_s: float) -> dict[str, Any]:
        """Return what the agent says of its node."""
        answer: dict[str, Any] = self.actor.call("hello", timeout_s=timeout_s, group="control")
        return answer

    def poke(self) -> None:
        """Make it ask now."""
        self.actor.send("poke", group="control")

    def leave(self) -> None:
        """Make it end."""
        self.actor.send("leave", group="control")


class _RemoteAggregator:
    """A run's aggregator as the orchestrator sees it; a call that met its death is made again once Ray has replaced it."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def call(self, method: str, *args: Any, timeout_s: float = 30.0) -> Any:
        """Call a method."""
        clock = SystemClock()
        give_up_ns = clock.boot_ns() + round(REPLACED_S * SECOND_NS)
        while True:
            try:
                return self.actor.call(method, *args, timeout_s=timeout_s)
            except Lost:
                if clock.boot_ns() > give_up_ns:
                    raise
            clock.sleep(1.0)


class _OrchestratorPort:
    """What the orchestrator needs of Ray."""

    def __init__(self) -> None:
        self._end = _leave()
        self._agents: dict[str, tuple[str, Actor, Any]] = {}  # node name -> (node id, actor, pending liveness call)

    def nodes(self) -> list[NodeSpec]:
        """Return the alive nodes."""
        return [node.spec for node in nodes()]

    def agent(self, config: AgentConfig) -> _RemoteAgent:
        """Create the agent of a node; one that is there belongs to an earlier orchestrator or has hung, and is replaced."""
        node_id = next((node.id for node in nodes() if node.spec.name == config.node), "")
        if not node_id:
            raise Lost("lost", f"node {config.node} is not alive")
        name = f"agent-{config.node}-{secrets.token_hex(4)}"
        actor = create(_AgentActor, name, node_id, (config,), groups={"control": 4})
        self._agents[config.node] = (node_id, actor, actor.send("alive", group="control"))
        return _RemoteAgent(actor)

    def agent_alive(self, node: str) -> bool:
        """Tell whether the node and its agent's process are alive: a call that ends only with the agent has not ended."""
        entry = self._agents.get(node)
        if entry is None or entry[0] not in alive_ids():
            self._agents.pop(node, None)
            return False
        if ray.wait([entry[2]], timeout=0)[0]:
            self._agents.pop(node, None)
            return False
        return True

    def aggregator(self, run: str, manifest: Mapping[str, Any], *, create: bool) -> _RemoteAggregator | None:  # noqa: ARG002
        """Return the run's aggregator, on this node; Ray restarts it, and it recovers from the run directory."""
        actor = find(AGGREGATOR + run)
        if actor is None and create:
            actor = _create_aggregator(run)
        return _RemoteAggregator(actor) if actor else None

    def aggregators(self) -> list[str]:
        """Return the runs that have a living aggregator."""
        return [name.removeprefix(AGGREGATOR) for name in find_all(AGGREGATOR)]

    def state_dir(self) -> Path:
        """Return STATE on this node."""
        return open_state_dir(default_state_dir(os.environ, os.geteuid()))

    def prober(self, run: str, probes: Sequence[Mapping[str, Any]], targets: Sequence[str], start_in_s: float) -> Actor:
        """Create the prober of a run, on this node."""
        places = {"targets": list(targets), "head": [node.spec.name for node in nodes() if node.spec.is_head]}
        ids = {node.spec.name: node.id for node in nodes()}
        return create(_ProberActor, f"prober-{run}", my_node_id(), (run, list(probes), places, ids, start_in_s))

    def end_actor(self, actor: Actor) -> None:
        """End an actor of a run that is over."""
        actor.kill()

    def exit(self) -> None:
        """End this orchestrator."""
        self._end()


def _create_aggregator(run: str) -> Actor:
    return create(_AggregatorActor, AGGREGATOR + run, my_node_id(), (run,), groups={"bulk": 2}, max_restarts=3, get_if_exists=True)


@_forwards(
    "hello",
    "begin",
    "push",
    "expect",
    "started",
    "conclude",
    "exporters",
    "outcome",
    "settle",
    "forget",
    "files",
    "read",
    "abandon",
    "leave",
)
class _AggregatorActor:
    """A run's aggregator as an actor."""

    def __init__(self, run: str) -> None:
        _settle_in()
        from .aggregator_shell import AggregatorShell  # noqa: PLC0415  # see `_forwards`

        self._shell = AggregatorShell(run, _leave())


@_forwards(
    *("exchange", "hello", "submit", "preview", "beat", "follow", "stop", "modify", "halt", "forget"),
    *("status", "doctor", "recover", "reopen", "leave"),
)
class _OrchestratorActor:
    """The orchestrator as an actor."""

    def __init__(self, config: OrchestratorConfig) -> None:
        _settle_in()
        from .journal import Journal  # noqa: PLC0415  # see `_forwards`
        from .orchestrator_shell import OrchestratorShell  # noqa: PLC0415

        cluster = cluster_id()
        state_dir = open_state_dir(default_state_dir(os.environ, os.geteuid()))
        journal = Journal(state_dir / "orchestrator" / f"{cluster}.log")
        self._shell = OrchestratorShell(config, _OrchestratorPort(), cluster, next_epoch(cluster), journal)


class _ProbeTarget:
    """What a probe calls: an actor that answers at once."""

    def ping(self) -> None:
        """Answer."""


class _ProbePort:
    """What a prober needs of Ray."""

    def __init__(self, ids: Mapping[str, str], places: Mapping[str, Sequence[str]]) -> None:
        wanted = sorted({node for names in places.values() for node in names})
        self._targets = {name: create(_ProbeTarget, "", ids[name], (), detached=False) for name in wanted if name in ids}
        self._aggregators: dict[str, Actor] = {}
        for target in self._targets.values():
            target.call("ping", timeout_s=30.0)

    def call(self, node: str) -> Future[Any]:
        """Call the probe's actor on a node without waiting."""
        if node not in self._targets:
            raise Lost("lost", f"no probe target on {node}")
        future: Future[Any] = self._targets[node].send("ping").future()
        return future

    def push(self, run: str, node: str, incarnation: str, records: Frames, timeout_s: float) -> int:
        """Hand records to the run's aggregator."""
        return _push(self._aggregators, run, node, incarnation, records, timeout_s)


@_forwards("finish")
class _ProberActor:
    """The prober as an actor."""

    def __init__(
        self,
        run: str,
        probes: Sequence[Mapping[str, Any]],
        places: Mapping[str, Sequence[str]],
        ids: Mapping[str, str],
        start_in_s: float,
    ) -> None:
        begun_ns = SystemClock().boot_ns()
        from .probes.prober import Prober  # noqa: PLC0415  # see `_forwards`

        used = {probe["target"] for probe in probes}
        port = _ProbePort(ids, {place: names for place, names in places.items() if place in used})
        left_s = max(0.0, start_in_s - (SystemClock().boot_ns() - begun_ns) / SECOND_NS)
        node = next(name for name, node_id in ids.items() if node_id == my_node_id())
        self._shell = Prober(run, node, probes, places, left_s, open_state_dir(default_state_dir(os.environ, os.geteuid())), port)


def orchestrator(config: OrchestratorConfig) -> Actor:
    """Return the cluster's orchestrator; an idle one of other code or settings is replaced.

    Raises `RefusedError` (`busy`) for a busy one of other code. A busy one of other settings is returned: it refuses runs by itself.
    """
    found = find(ORCHESTRATOR)
    if found is not None:
        try:
            hello = found.call("hello", timeout_s=10.0, group="control")
        except Lost:
            hello = None
        if hello is not None and hello["code_id"] == config.code_id and (hello["busy"] or hello["config"] == config):
            return found
        if hello is not None and hello["busy"]:
            raise RefusedError(
                "busy", f"an orchestrator of other code ({hello['code_id']}) is running something on this cluster", "wait for it"
            )
        if hello is not None:
            with contextlib.suppress(StressError):  # it ends before it can answer
                if not found.call("leave", True, group="control"):
                    return found  # another driver was quicker: it is at work, and refuses other settings by itself
            _await_gone(ORCHESTRATOR, found)
    head = next((node.id for node in nodes() if node.spec.is_head), my_node_id())
    groups = {"exchange": 8, "control": 16}  # hard affinity: Ray 2.60 takes a soft one for no more than a hint
    return create(_OrchestratorActor, ORCHESTRATOR, head, (config,), groups=groups, get_if_exists=True)


def _await_gone(name: str, left: Actor) -> None:
    """Wait until a name is no longer this actor's: free, or the next one's whom another driver has created meanwhile."""
    clock = SystemClock()
    deadline_ns = clock.boot_ns() + 10 * SECOND_NS
    while (found := find(name)) is not None and found.handle == left.handle and clock.boot_ns() < deadline_ns:
        clock.sleep(0.05)


def aggregator(run: str) -> Actor | None:
    """Return the aggregator of a run, or nothing."""
    return find(AGGREGATOR + run)


# ---- jobs


class Job:
    """A submitted Ray job."""

    def __init__(self, client: Any, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def logs(self) -> Iterator[str]:
        """Yield the job's output as it appears."""
        import asyncio  # noqa: PLC0415  # only for Ray's asynchronous log reader

        loop = asyncio.new_event_loop()
        try:
            stream = self._client.tail_job_logs(self.id)
            while True:
                try:
                    yield loop.run_until_complete(anext(stream))
                except StopAsyncIteration:
                    return
        finally:
            loop.close()

    def status(self) -> tuple[str, int | None]:
        """Return Ray's word for the job's state and the driver's exit code once there is one."""
        info = self._client.get_job_info(self.id)
        code = getattr(info, "driver_exit_code", None)
        return str(info.status.value), (int(code) if code is not None else None)

    def stop(self) -> None:
        """Ask Ray to end the job: SIGTERM to its driver, which stops the run."""
        self._client.stop_job(self.id)


def submit_job(address: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> Job:
    """Submit a Ray job at a dashboard address (http://HEAD:8265); raises `RefusedError` when nobody answers there."""
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415  # needs ray[default] and is slow to import

    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=dict(metadata))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RefusedError("lost", f"no Ray job server answers at {address}: {error}", "give --address http://HEAD:8265") from error
    return Job(client, job_id)
