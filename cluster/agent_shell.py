"""The node agent in one process: performs what `agent.Agent` decides, on threads that never wait for each other.

    exchange   asks the orchestrator, hands the answer's leases to the guardian
    control    at `sample_hz`: host snapshot, safety verdict, what the loads' stats say
    freshness  looks at the age of the last good snapshot, so that a sampler that hangs ends the load; asks again for what was stuck
    metrics    once a window: doses measured from outside, window closed
    delivery   hands the outbox to the aggregator, however long that takes
    workers    slow effects: opening slots, starting simulators, closing slots
A plain class: Ray is behind `AgentPort`. It decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.capability import judge as judge_capability
from actors.capability import read_facts
from actors.capacity import read_capacity
from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, StressError
from actors.guardian import GuardianClient
from actors.host import HostSampler, machine_facts
from actors.lease import read_shortfall
from actors.messages import Amounts, Capacity, Operation, SlotTicket
from actors.metrics.policy import RecordingPolicy
from actors.origin import code_id
from actors.plugin_shapes import digests
from actors.ray_loads.ray_load import Processes, mark_of
from actors.simulator import check_here, memory_limit_bytes, peak_amounts
from actors.state import default_state_dir, open_state_dir
from scenarios.model import LimitOverrides

from . import load_end
from .agent import Agent, Do
from .agent_api import AgentConfig, AgentPort, SimulatorPort
from .handles import told
from .load_end import NO_LOAD
from .load_notes import LoadNotes
from .metrics.cardinality import Caps
from .node_metrics import NodeMetrics
from .ray_facts import monitor_share, ray_facts
from .safety.policies import busy_since, judge, judge_resources
from .safety.profiles import Limits, below_monitor, limits_for, strictest

GUARDIAN_SILENT_NS = 2 * SECOND_NS


class AgentShell:
    """One node's agent. `poke` makes it ask at once; `describe` says what the node is."""

    def __init__(self, config: AgentConfig, port: AgentPort, clock: Clock | None = None) -> None:
        with contextlib.suppress(OSError):  # an agent should outlive the stress beside it; not every kernel lets it
            Path("/proc/self/oom_score_adj").write_text("0")
        self._config, self._port, self._clock = config, port, clock or SystemClock()
        self.state_dir = open_state_dir(default_state_dir({**os.environ, **config.environ}, os.geteuid()))
        self._lock = threading.RLock()
        self._incarnation = self._clock.boot_ns()
        self._guardian = GuardianClient.connect(
            self.state_dir,
            role="agent",
            code_id=code_id(),
            cluster=config.cluster,
            node=config.node,
            epoch=config.epoch,
            incarnation=self._incarnation,
            pid=os.getpid(),
            watch=[os.getpid(), *config.watch],
        )
        self._guardian_pid = self._guardian.hello["pid"]
        self._capacity = read_capacity(self.state_dir)
        self._limits = limits_for(config.profile)
        self._limits_of: dict[str, Limits] = {}
        self._notes = LoadNotes()
        self._agent = Agent(
            config.node, config.cluster, self._guardian.hello["guardian_id"], self._incarnation, config.epoch, self._capacity
        )
        self._sampler = HostSampler(config.node, self.state_dir)
        self._metrics = NodeMetrics(config.node, self._incarnation, self.state_dir, self._guardian, self._clock, config.outbox_max_bytes)
        self._simulators: dict[tuple[str, str], SimulatorPort] = {}
        self._groups: dict[tuple[str, str], str] = {}  # the control group of an operation's slot, "" for none
        self._workers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="worker")
        self._asked, self._closed, self._reaching = threading.Event(), threading.Event(), threading.Event()
        self._ending = threading.Event()
        self._snapshot_ns = self._idle_since_ns = self._clock.boot_ns()
        self._busy_since_ns = 0
        self._troubles: list[str] = []
        self._load_errors: list[tuple[str, HarnessError, str, str]] = []  # run, error, operation, phase; of the control thread only
        self._look_at_halt()
        self._adopt_leftovers()
        self._threads = [
            threading.Thread(target=self._loop, args=(name, body), name=name, daemon=True)
            for name, body in (
                ("exchange", self._exchange_once),
                ("control", self._control_once),
                ("freshness", self._freshness_once),
                ("metrics", self._metrics_once),
                ("delivery", self._delivery_once),
            )
        ]
        for thread in self._threads:
            thread.start()

    # ---- what others call

    def hello(self) -> dict[str, Any]:
        """Say who this is: code, machine, capacity, and what the node can do."""
        return {
            "code_id": code_id(),
            "node": self._config.node,
            "pid": os.getpid(),
            "machine": self._guardian.hello["guardian_id"],
            "guardian_pid": self._guardian.hello["pid"],
            "state_dir": str(self.state_dir),
            "capacity": self._capacity,
            "incarnation": str(self._incarnation),
            "halt": self._guardian.control.halt,
            "report": {**self._node_report(), "unreleased": told(self.guardian_status)},
        }

    def _node_report(self) -> dict[str, Any]:
        facts = read_facts(self.state_dir)
        can = {name: found.to_json() for name, found in judge_capability(facts).items()}
        return {**facts.to_json(), **machine_facts(), "ray": ray_facts(os.environ), "simulators": can, "shapes": digests()}

    def poke(self) -> None:
        """Ask the orchestrator now instead of at the next turn."""
        self._asked.set()

    def alive(self) -> None:
        """Return only when this agent ends: whoever waits for the answer learns of its end at once."""
        self._ending.wait()

    def guardian_status(self) -> dict[str, Any]:
        """Return the guardian's status."""
        return self._guardian.call("status")

    def leave(self) -> None:
        """End: nothing is renewed any more, and the guardian ends what is left."""
        self._ending.set()
        self._asked.set()

    # ---- loops

    def _loop(self, name: str, body: Callable[[], float]) -> None:
        """Run one loop's body until the end; a failure of one turn is an event, never the end of the loop."""
        while not self._ending.is_set():
            try:
                pause_s = body()
            except StressError as error:
                self._trouble(name, f"{error.code}: {error}")
                pause_s = 0.2
            except Exception as error:
                self._trouble(name, f"{type(error).__name__}: {error}")
                pause_s = 0.2
            if name == "exchange":
                self._asked.wait(pause_s)
                self._asked.clear()
            else:
                self._ending.wait(pause_s)
        if name == "control":
            self._port.exit()

    def _trouble(self, where: str, message: str) -> None:
        text = f"agent {self._config.node}, {where}: {message}"
        if text not in self._troubles[-3:]:
            self._troubles = [*self._troubles[-50:], text]
            self._metrics.event("agent_trouble", text, severity="warning")

    def _exchange_once(self) -> float:
        with self._lock:
            self._look_at_halt()
            self._judge_age()
            report = self._agent.report(self._clock.boot_ns())
        reply = self._port.exchange(report, timeout_s=max(0.5, self._config.lease_s / 2))
        self._idle_since_ns = self._clock.boot_ns()  # while there is an orchestrator, it says when to leave
        with self._lock:
            self._judge_age()  # so that nothing is renewed, and once more: this answer may have started load
            self._agent.on_reply(reply, report.t0_ns, self._clock.boot_ns())
            self._judge_age()
        self._perform()
        return self._config.renew_s

    def _freshness_once(self) -> float:
        with self._lock:
            self._judge_age()
            self._agent.ask_again(self._clock.boot_ns())
        self._perform()
        return self._config.stale_s / 4

    def _judge_age(self) -> None:
        """End the load when the last good snapshot is too old, whatever became of the sampler."""
        age_s = (self._clock.boot_ns() - self._snapshot_ns) / SECOND_NS
        if age_s > self._config.stale_s:
            self._agent.on_stale(f"{self._config.node}: no host snapshot for {age_s:.1f} s, at most {self._config.stale_s:.1f} s allowed")

    def _control_once(self) -> float:
        begun_ns = self._clock.boot_ns()
        snapshot = self._sampler.snapshot()
        with self._lock:
            self._judge_age()  # before this snapshot counts: the time without one is over, not undone
            loading = self._agent.loading()
        lag_s = (begun_ns - self._snapshot_ns) / SECOND_NS
        self._snapshot_ns = begun_ns
        self._busy_since_ns = busy_since(self._busy_since_ns, snapshot, self._limits) if loading else 0
        verdict = judge(snapshot, self._limits, self._clock.boot_ns(), self._busy_since_ns)
        by_resource = judge_resources(snapshot, self._limits, snapshot.boot_ns, self._busy_since_ns)
        with self._lock:
            self._agent.on_snapshot(snapshot, verdict, by_resource)
            self._look_at_halt()
            self._look_at_loads()
            ceilings = dict(self._agent.ceilings)
        self._metrics.on_snapshot(snapshot, int(verdict.level), ceilings, lag_s)
        self._watch_guardian(begun_ns)
        self._perform()
        while self._load_errors:  # once load is ended: metrics may wait for a disk
            self._metrics.error(*self._load_errors.pop())
        self._exit_when_idle(begun_ns)
        spent_s = (self._clock.boot_ns() - begun_ns) / SECOND_NS
        return max(0.0, 1.0 / self._config.sample_hz - spent_s)

    def _metrics_once(self) -> float:
        with self._lock:
            live = {(run.run, op.operation.id): op for run, op in self._agent.live_slots()}
        for key, dose in self._metrics.measure().items():
            if key in live:
                live[key].requested, live[key].achieved = dose
        self._metrics.close_windows()
        self._closed.set()
        return self._metrics.until_next_window_s(self._config.window_s)

    def _delivery_once(self) -> float:
        if self._closed.wait(1.0):
            self._closed.clear()
            self._deliver()
        return 0.0

    def _deliver(self) -> None:
        for run in self._metrics.runs():
            self._metrics.deliver(run, self._port.push)
            if self._metrics.delivered(run):
                with self._lock:
                    self._agent.on_delivered(run)
        self._perform()

    def _exit_when_idle(self, now_ns: int) -> None:
        with self._lock:
            idle = self._agent.idle()
            deposed = bool(self._agent.deposed) and not self._agent.live_slots()
        if not idle and not deposed:
            self._idle_since_ns = now_ns
        if deposed or now_ns - self._idle_since_ns > self._config.idle_exit_s * SECOND_NS:
            self._ending.set()

    def _look_at_halt(self) -> None:
        """Tell the agent which halt the guardian shows."""
        page = self._guardian.control
        self._agent.on_halt(page.halt, page.halt_kept)

    def _look_at_loads(self) -> None:
        """Tell the agent what the pages and simulators show: first slices and ended loads."""
        now_ns = self._clock.boot_ns()
        for run, op in self._agent.live_slots():
            key, name = (run.run, op.operation.id), op.operation.id
            load = self._guardian.stats.read(op.slot)
            ours = load.generation == op.generation
            if ours:
                self._agent.events += self._notes.look(run.run, name, self._guardian.stats, op.slot)
            simulator = self._simulators.get(key)
            status = self._poll(simulator)
            if ours:
                self._agent.on_shortfall(run.run, name, read_shortfall(self._guardian.stats, op.slot, op.generation))
            first_ns = (load.first_slice_ns if ours else 0) or int(status.get("first_slice_ns", 0))
            if first_ns and op.stage in {"armed", "running"}:
                self._agent.on_first_slice(run.run, name, first_ns)
            if op.stage in {"preparing", "ready", "armed", "running"} and simulator is not None:
                beats = load if ours else NO_LOAD
                is_over = self._guardian.control.over(op.slot, op.generation, now_ns)
                silence = load_end.silence(op.stage, beats, simulator.silent_s(), now_ns)
                self._agent.on_silence(run.run, name, silence)
                ended = load_end.ended(op.stage, beats, status, now_ns, is_over=is_over)
                ended = ended or load_end.hung(silence, self._config.lease_s)
                if ended is not None:
                    self._look_at_halt()  # shown before any lease ends by it: what ended so is halted, not lost
                    if ended.code and op.stage != "closing":
                        self._load_errors.append((run.run, HarnessError(ended.code, ended.reason), name, op.operation.phase))
                    self._agent.on_load_ended(run.run, name, planned=not ended.code, reason=ended.reason, code=ended.code)

    @staticmethod
    def _poll(simulator: SimulatorPort | None) -> Mapping[str, Any]:
        try:
            return (simulator.poll() if simulator else None) or {}
        except StressError as error:
            return {"phase": "dead", "reason": f"its simulator is dead: {error}"}

    # ---- effects

    def _perform(self) -> None:
        with self._lock:
            effects, events = self._agent.drain()
        failed: list[StressError] = []
        for effect in effects:
            try:
                self._one(effect)
            except StressError as error:  # the others are done all the same: a failed throttle must not keep a slot open
                failed.append(error)
        for event in events:  # after the effects: they may wait for a disk, ending load may not
            self._metrics.add_event(event)
        if failed:
            raise failed[0]

    def _one(self, effect: Do) -> None:
        data = effect.data
        if effect.what == "grant":
            self._guardian.call("grant", leases=data["leases"], timeout_s=1.0, **self._fence(data["epoch"]))
        elif effect.what == "throttle":
            self._guardian.call("throttle", ceilings=data["ceilings"])
        elif effect.what == "write_start":
            self._guardian.call("start", slot=data["slot"], generation=data["generation"], start_ns=data["start_ns"])
            self._metrics.started(effect.run, effect.operation, data["start_ns"])
        elif effect.what == "halt":
            # As a grant of nothing, because that is answered at once; `halt` is answered when the last load is gone.
            self._guardian.call("grant", leases=[], halt=dict(data), timeout_s=1.0, **self._fence(self._agent.epoch))
            with self._lock:
                self._look_at_halt()
        elif effect.what == "exchange":
            self._asked.set()
        elif effect.what == "run_begins":
            terms = data["terms"]
            policy = RecordingPolicy.from_json(terms["recording"]) if "recording" in terms else RecordingPolicy()
            self._metrics.begin(effect.run, policy, Caps(**terms.get("caps", {})))
            overrides = LimitOverrides(**terms.get("limits", {}))
            limits = limits_for(terms.get("profile", self._config.profile), overrides)
            self._limits_of[effect.run] = below_monitor(limits, monitor_share(os.environ), self._capacity.memory_bytes)
            self._limits = strictest(self._limits_of.values())
        elif effect.what == "record_by":
            self._metrics.set_policy(effect.run, RecordingPolicy.from_json(data["recording"]))
        elif effect.what == "seal":
            self._workers.submit(self._guarded, self._seal, effect)
        elif effect.what == "forget":
            self._metrics.forget(effect.run)
            self._limits_of.pop(effect.run, None)
            self._notes.forget(effect.run)
            self._limits = strictest(self._limits_of.values()) if self._limits_of else limits_for(self._config.profile)
        elif effect.what in {"open_slot", "prepare", "close_slot"}:
            body = {"open_slot": self._open_slot, "prepare": self._prepare, "close_slot": self._close_slot}[effect.what]
            self._workers.submit(self._guarded, body, effect)
        elif effect.what == "exchange_refused":
            self._trouble("exchange", f"the orchestrator refused: {data['reason']}")
        else:
            raise AssertionError(f"no such effect: {effect.what}")

    def _fence(self, epoch: int) -> dict[str, Any]:
        return {"cluster": self._config.cluster, "node": self._config.node, "epoch": epoch, "incarnation": self._incarnation}

    def _guarded(self, body: Callable[[Do], None], effect: Do) -> None:
        try:
            body(effect)
        except Exception as error:
            code = error.code if isinstance(error, StressError) else "internal"
            with self._lock:
                if effect.what == "open_slot":
                    self._agent.on_refused(effect.run, effect.operation, code, str(error))
                elif effect.what == "prepare":
                    self._agent.on_load_ended(effect.run, effect.operation, planned=False, reason=str(error))
                elif effect.what == "seal":
                    self._agent.on_seal_failed(effect.run)
            try:
                self._perform()
            finally:  # told once load is ended: metrics may wait for a disk
                self._trouble(effect.what, f"{effect.operation}: {type(error).__name__}: {error}")
                self._metrics.error(effect.run, error, effect.operation)
        else:
            self._perform()

    def _open_slot(self, effect: Do) -> None:
        operation: Operation = effect.data["operation"]
        capacity: Capacity = effect.data["capacity"] or self._capacity
        limits: Amounts = effect.data["machine_limits"] or self._capacity.amounts
        amounts = peak_amounts(operation, capacity)
        check_here(operation, self.state_dir)
        answer = self._guardian.call(
            "open_slot",
            run=effect.run,
            operation=operation.id,
            amounts=asdict(amounts),
            machine_limits=asdict(limits),
            release_s=release_s(amounts),
            sharers=capacity.sharers,
            memory_limit_bytes=memory_limit_bytes(operation),
            **self._fence(self._agent.epoch),
        )
        self._groups[effect.run, operation.id] = answer.get("container", "")
        with self._lock:
            self._agent.on_opened(effect.run, operation.id, answer["slot"], answer["generation"])

    def _prepare(self, effect: Do) -> None:
        operation: Operation = effect.data["operation"]
        capacity: Capacity = effect.data["capacity"] or self._capacity
        slot, generation = effect.data["slot"], effect.data["generation"]
        if effect.data["ceiling"] < 1.0:
            self._guardian.call("throttle", ceilings=[[slot, generation, effect.data["ceiling"]]])
        segment = self._metrics.open_segment(effect.run, operation)
        ticket = SlotTicket(slot, generation, segment, effect.run)
        simulator = self._port.simulator(operation, capacity, ticket, str(self.state_dir))
        self._simulators[effect.run, operation.id] = simulator
        pids = simulator.prepare(timeout_s=60.0)
        self._metrics.watch(effect.run, operation, capacity, slot, generation, pids, self._groups.get((effect.run, operation.id), ""))
        with self._lock:
            self._agent.on_prepared(effect.run, operation.id)

    def _close_slot(self, effect: Do) -> None:
        data = effect.data
        answer = self._ask_to_close(data)
        if not answer["gone"]:
            with self._lock:
                self._agent.on_stuck(effect.run, effect.operation, answer["outcomes"], self._clock.boot_ns())
            return
        held = self._metrics.unwatch(effect.run, effect.operation, completed=data["finished"])
        self._groups.pop((effect.run, effect.operation), None)
        simulator = self._simulators.pop((effect.run, effect.operation), None)
        if simulator is not None:
            simulator.kill()
            Processes(mark_of(effect.operation, data["slot"], data["generation"])).end()  # Ray's that idle, and that nobody else ends
        with self._lock:
            self._agent.on_closed(
                effect.run, effect.operation, answer["stopped_ns"] or answer["released_ns"], answer["outcomes"], answer["released_ns"], held
            )

    def _ask_to_close(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Have the guardian close a slot, however often it takes: only its word ends an operation."""
        ticket = {"slot": data["slot"], "generation": data["generation"]}
        while True:
            try:
                return self._guardian.call("close_slot", **ticket, grace_s=data["grace_s"], timeout_s=60.0)
            except StressError as error:
                if error.code == "stale_slot":  # emptied and given away already
                    return {"gone": True, "outcomes": [], "stopped_ns": 0, "released_ns": self._clock.boot_ns()}
                if self._ending.wait(0.2):
                    raise

    def _watch_guardian(self, now_ns: int) -> None:
        """Tell when another guardian serves; reach for one without a sign of life, so that one is started where no standby is left."""
        before, self._guardian_pid = self._guardian_pid, self._guardian.hello["pid"]
        if self._guardian_pid != before:
            words = f"the guardian of {self._config.node} (process {before}) is gone, process {self._guardian_pid} has taken its place"
            self._metrics.event("guardian_replaced", words, severity="warning")
        if now_ns - self._guardian.control.heartbeat_ns > GUARDIAN_SILENT_NS and not self._reaching.is_set():
            self._reaching.set()
            self._workers.submit(self._reach_guardian)

    def _reach_guardian(self) -> None:
        try:
            self._guardian.call("status")
        except StressError as error:
            self._trouble("guardian", str(error))
        finally:
            self._reaching.clear()

    def _seal(self, effect: Do) -> None:
        self._metrics.seal(effect.run)
        with contextlib.suppress(StressError):  # it is sealed; the delivery thread tries again
            self._deliver()
        self._closed.set()

    # ---- what an earlier agent left

    def _adopt_leftovers(self) -> None:
        """Take over runs whose slots or outboxes an earlier agent of this node left behind."""
        left = {slot["run"] for slot in self._guardian.call("status")["slots"] if self._mine(slot)}
        boxes = self._metrics.leftover_runs()
        for run in sorted(left | boxes):
            self._agent.adopt(run)
            if run in left:
                self._workers.submit(self._await_sweep, run)
            else:
                self._agent.on_swept(run)

    def _mine(self, slot: Mapping[str, Any]) -> bool:
        return slot.get("cluster") == self._config.cluster and slot.get("node") == self._config.node

    def _await_sweep(self, run: str) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(StressError):  # asked again at the next turn
                if not any(slot["run"] == run and self._mine(slot) for slot in self._guardian.call("status")["slots"]):
                    break
            self._ending.wait(0.1)
        with self._lock:
            self._agent.on_swept(run)


def release_s(amounts: Amounts) -> float:
    """Return how long the kernel may take to free these bytes after a kill: 65 ms/GiB idle (measured), doubled for load beside it."""
    return round(0.13 * amounts.memory_bytes / (1 << 30), 3)
