"""The Ray shell of a simulator: the only import of Ray in this package. Owns one carrier in one process; decides nothing.

`lifecycle.step` says what each event means; a thread of the shell that lives as long as it does starts the load (the kernel
kills a load whose creating thread ends), looks at it, and ends this process some time after the load has ended.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

import ray
from ray import exceptions as ray_errors
from ray._private.internal_api import node_stats
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from . import control
from .carrier import Carrier, LoadProcess
from .clock import SECOND_NS, Clock, SystemClock
from .disk import DiskFill, leave_by_raising
from .errors import HarnessError, StressError
from .guardian.client import GuardianClient
from .lease import LeaseWatch, Order
from .lifecycle import TERMINAL, Effect, Event, Life, Phase, step
from .messages import Capacity, Operation, SimulatorStatus, SlotTicket
from .origin import code_id
from .ray_loads.flow import Outcome
from .ray_loads.ray_load import RayLoad, mark_of
from .ray_loads.ray_work import MARK, Ended, ObjectStore, StoreUse, logical_share
from .simulator import check, record_of

LOOK_S: Final = 0.02
LINGER_S: Final = 20.0  # how long the reason of an end can be asked for
UNUSED_S: Final = 60.0  # how long a shell may wait for `prepare`
EXIT_S: Final = 5.0
QUEUE_MAX: Final = 16
NAMESPACE_OF_RUN: Final = "stress-cluster-"  # and the run's id: where its loads find one another's actors

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_control_group(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Answer a call beside the work group, so that it never waits for `prepare`."""
    return cast("Callable[_P, _R]", ray.method(concurrency_group="control")(method))


def is_actor() -> bool:
    """Tell whether this process is a Ray actor's, not a test or a tool."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def end_actor() -> None:
    """End this process if it is a Ray actor whose owner never said `leave`: by SIGTERM, which Ray follows when idle, else by force."""
    if not is_actor():
        return
    os.kill(os.getpid(), signal.SIGTERM)
    SystemClock().sleep(EXIT_S)
    os._exit(0)


class SimulatorShell:
    """Owns one simulator in one process. Decides nothing: see `lifecycle.step`.

    Methods may be called from any thread; errors are `StressError`s with stable codes.
    """

    def __init__(
        self,
        operation: Operation,
        capacity: Capacity,
        ticket: SlotTicket,
        state_dir: str,
        *,
        clock: Clock | None = None,
        on_end: Callable[[], None] = end_actor,
    ) -> None:
        self._operation = operation
        self._capacity = capacity
        self._ticket = ticket
        self._state_dir = Path(state_dir)
        self._clock = clock or SystemClock()
        self._on_end = on_end
        self._life = Life()
        self._carrier: Carrier | None = None
        self._guardian: GuardianClient | None = None
        self._grace_ns = 0
        self._first_slice_ns = 0
        self._tasks: queue.Queue[tuple[Callable[[], None], Future[None]]] = queue.Queue(QUEUE_MAX)
        self._ended = threading.Event()
        threading.Thread(target=self._attend, name="warden", daemon=True).start()

    @_in_control_group
    def hello(self) -> dict[str, Any]:
        """Return which code runs here and as which process."""
        return {"code_id": code_id(), "pid": os.getpid(), "node": self._operation.node, "operation": self._operation.id}

    def prepare(self) -> SimulatorStatus:
        """Start the load up to its gate and register it; it then warms up by itself: ask `status` for "ready".

        Raises `StressError`: `InputError` for a bad operation, `GuardianError` with the guardian's code, `os` when no
        process can be started. Nothing runs after an error. Asking twice is asking once.
        """
        check(self._operation)
        if self._life.phase is Phase.NEW:
            self._do(lambda: self._feed(Event.PREPARE) if self._life.phase is Phase.NEW else None)
        if self._life.phase is Phase.FAILED:
            raise HarnessError("internal", f"{self._operation.id}: {self._life.reason}")
        return self.status()

    @_in_control_group
    def status(self) -> SimulatorStatus:
        """Return where the simulator is in its life; never waits."""
        life, carrier = self._life, self._carrier
        return SimulatorStatus(
            operation=self._operation.id,
            phase=life.phase.value,
            reason=life.reason,
            pids=carrier.pids if carrier else (),
            exit_code=carrier.exit_code if carrier else None,
            first_slice_ns=self._first_slice_ns,
            records=carrier.records if carrier else (),
        )

    @_in_control_group
    def stop(self, grace_s: float = 1.0) -> SimulatorStatus:
        """Ask the load to end, kill it after the grace, and return once it has ended or `EXIT_S` later."""
        self._do(lambda: self._stop(grace_s))
        self._ended.wait(grace_s + EXIT_S)
        return self.status()

    @_in_control_group
    def leave(self) -> None:
        """End this process: the caller has read the last status. A Ray actor exits cleanly here, else it ends by itself later.

        Raises `HarnessError` (`busy`) while the load lives.
        """
        if not self._ended.is_set():
            raise HarnessError("busy", f"{self._operation.id}: its load is {self._life.phase}", "stop it first")
        if is_actor():
            ray.actor.exit_actor()

    def _stop(self, grace_s: float) -> None:
        self._grace_ns = self._clock.boot_ns() + round(grace_s * SECOND_NS)
        self._feed(Event.STOP, "stopped as asked")

    # the warden's thread

    def _do(self, task: Callable[[], None]) -> None:
        """Have the warden do something and wait for it; raises what it raised."""
        done: Future[None] = Future()
        try:
            self._tasks.put_nowait((task, done))
            done.result(timeout=EXIT_S + 5.0)
        except (queue.Full, TimeoutError) as error:
            raise HarnessError("timeout", f"{self._operation.id}: its simulator is busy") from error

    def _attend(self) -> None:
        """Do what is asked and look at the load until the end, then linger and end the process."""
        born_ns = self._clock.boot_ns()
        while not self._ended.is_set():
            self._take_task()
            try:
                self._look(born_ns)
            except Exception as error:  # a shell that cannot look at its load ends it
                if self._carrier is not None:
                    self._carrier.kill()
                self._feed(Event.BROKE, f"{type(error).__name__}: {error}")
        last_ns = self._clock.boot_ns() + round(LINGER_S * SECOND_NS)
        while self._clock.boot_ns() < last_ns:
            self._take_task()
        self._on_end()

    def _take_task(self) -> None:
        try:
            task, done = self._tasks.get(timeout=LOOK_S)
        except queue.Empty:
            return
        try:
            task()
            done.set_result(None)
        except BaseException as error:  # the caller gets it
            done.set_exception(error)

    def _look(self, born_ns: int) -> None:
        """Turn what is seen into events."""
        if self._carrier is None:
            if self._clock.boot_ns() - born_ns > UNUSED_S * SECOND_NS:
                self._feed(Event.LEASE_ENDED, f"nobody asked to prepare within {UNUSED_S:g} s")
            return
        self._see_progress()
        end = self._carrier.poll()
        if end is not None:
            self._see_progress()
            self._feed(*end)
        elif self._life.phase is Phase.DRAINING and self._clock.boot_ns() >= self._grace_ns:
            self._grace_ns = self._clock.boot_ns() + SECOND_NS
            self._feed(Event.GRACE_OVER)

    def _see_progress(self) -> None:
        assert self._guardian is not None
        found = self._guardian.stats.read(self._ticket.slot)
        if found.generation != self._ticket.generation:
            return
        self._first_slice_ns = self._first_slice_ns or found.first_slice_ns
        if found.state >= control.LOAD_READY and found.state != control.LOAD_FAILED and self._life.phase is Phase.PREPARING:
            self._feed(Event.WARMED)
        if self._first_slice_ns and self._life.phase is Phase.READY:
            self._feed(Event.STARTED)

    def _feed(self, event: Event, reason: str = "") -> None:
        """Take one step of the table and do what it says."""
        self._life, effects = step(self._life, event, reason)
        for effect in effects:
            self._perform(effect)
        if self._life.phase in TERMINAL:
            self._ended.set()

    def _perform(self, effect: Effect) -> None:
        if effect is Effect.SPAWN:
            self._spawn()
        elif effect is Effect.RELEASE:
            self._release()
        elif self._carrier is not None and effect is Effect.DRAIN:
            self._carrier.drain()
        elif self._carrier is not None and effect is Effect.KILL:
            self._carrier.kill()

    def _spawn(self) -> None:
        """Start the carrier; a failure is both the end of this life and the caller's error."""
        try:
            self._guardian = GuardianClient.connect(
                self._state_dir,
                role="simulator",
                spawn=False,
                code_id=code_id(),
                node=self._operation.node,
                pid=os.getpid(),
                slot=self._ticket.slot,
                generation=self._ticket.generation,
            )
            carrier = self._make_carrier(self._guardian)
            carrier.start()
            self._carrier = carrier
        except Exception as error:
            self._feed(Event.BROKE, str(error))
            if isinstance(error, StressError):
                raise
            raise HarnessError("internal", f"{self._operation.id}: {type(error).__name__}: {error}") from error

    def _make_carrier(self, guardian: GuardianClient) -> Carrier:
        carrier = record_of(self._operation.kind).carrier
        if carrier == "ray":
            work = NodeWork(mark_of(self._operation.id, self._ticket.slot, self._ticket.generation), self._ticket.run)
            return RayLoad(self._operation, self._capacity, self._watch(guardian), guardian, work, self._ticket.segment_path)
        if carrier == "process":
            return LoadProcess(
                self._operation,
                self._capacity,
                self._ticket,
                watch=self._watch(guardian),
                guardian=guardian,
                page_fds=guardian.page_fds,
                state_dir=self._state_dir,
            )
        return DiskFill(self._operation, self._capacity, self._watch(guardian), guardian, self._state_dir, self._ticket.segment_path)

    def _watch(self, guardian: GuardianClient) -> LeaseWatch:
        watch = LeaseWatch(
            guardian.control, guardian.stats, self._ticket.slot, self._ticket.generation, self._clock, leave=leave_by_raising
        )
        if watch.look() is Order.DEAD:
            raise HarnessError("stale_slot", f"{self._operation.id}: slot {self._ticket.slot} was ended or given to another")
        return watch

    def _release(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        if self._guardian is not None:
            self._guardian.close()


class NodeWork:
    """`RayWork` on the node of this process: what Ray runs for one operation, in worker processes that carry its mark.

    Named actors are in a namespace of the run's own; they end with this process as the others do.
    """

    def __init__(self, mark: str, run: str) -> None:
        self.place: str = ray.get_runtime_context().get_node_id()
        self._node: dict[str, Any] = next(node for node in ray.nodes() if node["NodeID"] == self.place)
        affinity = NodeAffinitySchedulingStrategy(self.place, soft=False)
        self._here = {"scheduling_strategy": affinity, "runtime_env": {"env_vars": {MARK: mark}}}
        self._namespace = NAMESPACE_OF_RUN + run
        self._remotes: dict[Any, Any] = {}

    def places(self) -> frozenset[str]:
        """Return Ray's ids of the living nodes."""
        return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        """Create an actor here that takes no logical CPU and is never restarted; None when its name is taken."""
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_pending_calls": calls_max or -1}
        if at_once:
            options["max_concurrency"] = at_once
        if name:
            options |= {"name": name, "namespace": self._namespace}
        try:
            return ray.remote(**options, **self._here)(factory).remote(*args)
        except ray_errors.ActorAlreadyExistsError:
            return None

    def find(self, prefix: str, known: Collection[str] = ()) -> dict[str, Any]:
        """Return the living actors of this run whose name begins so, less those that are known."""
        found = {}
        for entry in ray.util.list_named_actors(all_namespaces=True):
            name = entry["name"]
            if entry["namespace"] == self._namespace and name.startswith(prefix) and name not in known:
                with suppress(ValueError):  # it has ended meanwhile
                    found[name] = ray.get_actor(name, namespace=self._namespace)
        return found

    def call(self, victim: Any, method: str, *args: Any) -> Any:
        """Send a call; None when Ray refused it."""
        try:
            return getattr(victim, method).remote(*args)
        except ray_errors.PendingCallsLimitExceeded:
            return None

    def post(self, victim: Any, method: str, *args: Any) -> Any:
        """Send a call and have the arrival of its end timed."""
        return Timed(getattr(victim, method).remote(*args))

    def submit(self, function: Callable[..., Any], *args: Any, at_once: int) -> Any:
        """Submit a task that asks for its share of the logical CPUs; it is never retried. Its arguments travel with the function, once."""
        key = (function, args, at_once)
        if key not in self._remotes:
            share = logical_share(float(self._node["Resources"].get("CPU", 0.0)), at_once)
            self._remotes[key] = ray.remote(num_cpus=share, max_retries=0, **self._here)(_bound(function, args))
        return self._remotes[key].remote()

    def look(self, calls: Sequence[Any]) -> list[Ended | None]:
        """Return for each call how it ended, None while it has not."""
        if not calls:
            return []
        if isinstance(calls[0], Timed):
            return [call.end() for call in calls]
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        ends = dict(zip(ready, _all_ended(ready), strict=True))
        return [ends.get(call) for call in calls]

    def cancel(self, calls: Sequence[Any]) -> None:
        """Cancel what has not begun."""
        for call in calls:
            ray.cancel(call.reference if isinstance(call, Timed) else call, recursive=False)

    def kill(self, victim: Any) -> None:
        """End an actor at once."""
        ray.kill(victim)

    def store_use(self) -> StoreUse:
        """Return what is in the object store."""
        stats = node_stats(self._node["NodeManagerAddress"], self._node["NodeManagerPort"], include_memory_info=False).store_stats
        return StoreUse(
            stats.object_store_bytes_primary_copy, stats.object_store_bytes_used, stats.spilled_bytes_total, stats.restored_bytes_total
        )

    def object_store(self) -> ObjectStore:
        """Return what an actor puts objects with."""
        return NodeStore()


class NodeStore:
    """`ObjectStore` of the worker process that it is used in."""

    def put(self, data: bytes) -> Any:
        """Put an object; None when there is no room."""
        try:
            return ray.put(data)
        except (ray_errors.ObjectStoreFullError, ray_errors.OutOfDiskError):
            return None

    def get(self, held: Any) -> bytes:
        """Return an object."""
        data: bytes = ray.get(held)
        return data


class Timed:
    """A call whose end notes by itself when it arrived: in a thread of Ray's, so that nobody has to look for it."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self._clock = SystemClock()
        self._at_ns = 0
        self._future: Future[Any] = reference.future()
        self._future.add_done_callback(self._note)

    def _note(self, _: Future[Any]) -> None:
        self._at_ns = self._clock.boot_ns()

    def end(self) -> Ended | None:
        """Return how it ended, None while it has not."""
        return _ended(self._future.result, self._at_ns) if self._at_ns else None


def _bound(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """Return a function without arguments that calls another; Ray knows it by that one's name."""

    def call() -> Any:
        return function(*args)

    call.__name__, call.__qualname__ = function.__name__, function.__qualname__
    return call


def _all_ended(calls: list[Any]) -> list[Ended]:
    """Return how calls ended that have: with one question for all, as long as all of them finished."""
    try:
        return [Ended(Outcome.FINISHED, value) for value in ray.get(calls, timeout=0)]
    except ray_errors.RayError:
        return [_ended(partial(ray.get, call, timeout=0)) for call in calls]


def _ended(result: Callable[[], Any], at_ns: int = 0) -> Ended:
    try:
        return Ended(Outcome.FINISHED, result(), at_ns=at_ns)
    except ray_errors.TaskCancelledError:
        return Ended(Outcome.CANCELLED)
    except ray_errors.RayError as error:
        return Ended(Outcome.FAILED, reason=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


SimulatorActor = ray.remote(
    num_cpus=0,
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"control": 4},
)(SimulatorShell)
