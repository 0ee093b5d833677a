"""The orchestrator in one process: performs what `orchestrator.Orchestrator` decides.

`exchange` is served by threads of its own and takes only the lock around the decisions; planning, actor creation and the end of
a run happen on other threads, outside of that lock. A plain class: Ray is behind `OrchestratorPort`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from actors.clock import SECOND_NS, Clock, SystemClock
from actors.errors import HarnessError, RefusedError, StressError
from actors.messages import Event
from actors.origin import check_same_code, code_id
from scenarios import plan as plans
from scenarios import text
from scenarios.plan import Plan

from .admission import admission_of, budget_of, endpoint_of, facts_of, preview_of, probes_of
from .agent_api import AgentConfig
from .conclusion import Ending
from .ending import node_ending
from .exchange import Reply, Report, Stage
from .journal import Journal
from .orchestrator import Do, Orchestrator, Run
from .orchestrator_api import OrchestratorConfig, OrchestratorPort, RemoteAgent, RemoteAggregator, Submission
from .run_state import Phase
from .safety.budget import Budget
from .verdict import Cause

TICK_S = 0.05
HELLO_S = 60.0


@dataclass(slots=True)
class Extras:
    """What the shell keeps of a run beside the decisions."""

    plan: Plan
    submission: Submission
    aggregator: RemoteAggregator
    prober: Any = None
    events_sent: int = 0
    outcome: dict[str, Any] | None = None
    drift: tuple[str, ...] = ()
    shared: dict[str, list[str]] = field(default_factory=dict)


class OrchestratorShell:
    """The one orchestrator of a cluster."""

    def __init__(
        self, config: OrchestratorConfig, port: OrchestratorPort, cluster: str, epoch: int, journal: Journal, clock: Clock | None = None
    ) -> None:
        self._config, self._port, self._clock, self._journal = config, port, clock or SystemClock(), journal
        self._lock = threading.RLock()
        self._submitting = threading.Lock()
        self._hiring = threading.Lock()
        self._core = Orchestrator(cluster, epoch, config.times(), Budget(), journal.replay(), self._clock.boot_ns())
        self._cluster, self._epoch = cluster, epoch
        self._agents: dict[str, RemoteAgent] = {}
        self._hellos: dict[str, dict[str, Any]] = {}
        self._extras: dict[str, Extras] = {}
        self._events: dict[str, list[Event]] = {}
        self._workers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="worker")
        self._ending = threading.Event()
        self._idle_since_ns, self._calls = self._clock.boot_ns(), 0
        threading.Thread(target=self._tick_loop, name="tick", daemon=True).start()

    # ---- asked by agents

    def exchange(self, report: Report) -> Reply:
        """Answer an agent; see `orchestrator.Orchestrator.exchange`."""
        with self._lock:
            reply = self._core.exchange(report, self._clock.boot_ns())
            effects = self._core.drain()
            orphans = [theirs for theirs in report.runs if theirs.run not in self._core.runs and theirs.stage is Stage.CLEAN]
        self._journal_now(effects)
        self._later(effects)
        for theirs in orphans:
            self._workers.submit(self._port.aggregator, theirs.run, {}, create=True)
        return reply

    # ---- asked by drivers and commands

    def hello(self) -> dict[str, Any]:
        """Say who this is."""
        return {"code_id": code_id(), "cluster": self._cluster, "epoch": self._epoch, "busy": self._busy(), "config": self._config}

    def _busy(self) -> bool:
        return bool(self._core.runs) or self._calls > 0

    def submit(self, submission: Submission) -> dict[str, Any]:
        """Plan, ask the nodes, reserve and admit a run; raises `RefusedError` or `InputError` and starts nothing."""
        check_same_code(submission.code_id, "the driver")
        with self._at_work():
            return self._submit(submission)

    def _submit(self, submission: Submission) -> dict[str, Any]:
        plan, drift = self._plan(submission)
        made = self._workers.submit(self._port.aggregator, submission.run, {}, create=True)  # beside the agents: each takes a second
        try:
            return self._admit(submission, plan, drift, made)
        except BaseException:
            self._extras.pop(submission.run, None)
            self._workers.submit(self._abandon, made)
            raise

    def _admit(self, submission: Submission, plan: Plan, drift: tuple[str, ...], made: Future[RemoteAggregator | None]) -> dict[str, Any]:
        hellos = self._hello_all(plan.targets)
        self._clock.sleep(max(0.0, (self._core.quiet_until_ns - self._clock.boot_ns()) / SECOND_NS))
        with self._submitting:
            admission, shared = admission_of(submission, plan, hellos, self._config.memory_fraction)
            aggregator = made.result(HELLO_S)
            assert aggregator is not None
            addresses = {node.name: node.address for node in self._port.nodes()}
            facts = facts_of(plan, hellos, addresses, shared, drift)
            manifest = {**submission.manifest, **facts, "cluster": self._cluster, "epoch": self._epoch}
            aggregator.call("begin", manifest, plan.to_json(), *endpoint_of(submission, plan))
            self._extras[submission.run] = Extras(plan, submission, aggregator, drift=drift, shared=shared)
            with self._lock:
                self._core.ledger = replace(self._core.ledger, budget=budget_of(self._config, {**self._hellos, **hellos}))
                self._core.admit(admission, self._clock.boot_ns())
        self._drain()
        return {"preview": preview_of(plan, admission.amounts, shared), "drift": list(drift)}

    @staticmethod
    def _abandon(made: Future[RemoteAggregator | None]) -> None:
        """End the aggregator of a run that was not admitted; it leaves nothing."""
        aggregator = made.result(HELLO_S)
        if aggregator is not None:
            aggregator.call("abandon")

    def preview(self, submission: Submission) -> dict[str, Any]:
        """Return what a submission would do: targets, peak, duration; asks the nodes, reserves nothing."""
        check_same_code(submission.code_id, "the driver")
        with self._at_work():
            plan, _ = self._plan(submission)
            admission, shared = admission_of(submission, plan, self._hello_all(plan.targets), self._config.memory_fraction)
            return preview_of(plan, admission.amounts, shared)

    def beat(self, run_id: str) -> None:
        """Note that a run's driver is alive."""
        with self._lock:
            self._core.beat(run_id, self._clock.boot_ns())

    def follow(self, run_id: str, cursor: int) -> dict[str, Any]:
        """Return a run's phase, its events after `cursor`, its progress, and its outcome once there is one."""
        now_ns = self._clock.boot_ns()
        with self._lock:
            self._take_events()
            run = self._core.runs.get(run_id) or self._core.finished_runs.get(run_id)
            if run is None:
                raise HarnessError("unknown_name", f"no run {run_id} is known here")
            events = self._events.get(run_id, [])
            extras = self._extras.get(run_id)
            outcome = extras.outcome if extras else None
            phase = str(run.phase) if run.phase is not Phase.DONE or outcome else str(Phase.COLLECTING)
            return {
                "phase": phase,
                "cursor": len(events),
                "events": [asdict(event) for event in events[cursor:]],
                "progress": self._progress(run, now_ns),
                "outcome": outcome,
            }

    def stop(self, run_id: str, cause: str, reason: str) -> bool:
        """End a run; returns False when it is not alive."""
        with self._lock:
            found = self._core.stop(run_id, Cause(cause), reason, self._clock.boot_ns())
        self._drain()
        return found

    def halt(self, on: bool) -> dict[str, Any]:
        """Halt everything on all nodes, or lift the halt."""
        with self._lock:
            halt = self._core.set_halt(on, self._clock.boot_ns())
        self._drain()
        return {"generation": halt.generation, "on": halt.on, "nodes": sorted(self._agents)}

    def forget(self, node: str) -> dict[str, Any]:
        """Give back what a node that will not come back still owes to ended runs; raises `RefusedError` while it may hold load."""
        with self._lock:
            runs = self._core.forget(node, self._clock.boot_ns())
        self._drain()
        return {"node": node, "runs": list(runs)}

    def status(self) -> dict[str, Any]:
        """Return what runs where, asked against achieved."""
        now_ns = self._clock.boot_ns()
        with self._lock:
            runs = {name: {"phase": str(run.phase), **self._progress(run, now_ns)} for name, run in self._core.runs.items()}
            ledger = self._core.ledger
            return {
                "cluster": self._cluster,
                "epoch": self._epoch,
                "halt": asdict(self._core.halt),
                "runs": runs,
                "finished": {name: extras.outcome for name, extras in self._extras.items() if extras.outcome},
                "budget": {
                    "used": asdict(ledger.total(now_ns)),
                    "nodes_harmed": sorted(ledger.nodes_harmed()),
                    "limits": asdict(ledger.budget),
                },
                "nodes": {
                    name: {"heard_s": (now_ns - heard.heard_ns) / SECOND_NS, "machine": heard.machine}
                    for name, heard in self._core.nodes.items()
                },
            }

    def doctor(self) -> dict[str, Any]:
        """Ask every alive node what it can do."""
        with self._at_work():
            hellos = self._hello_all([node.name for node in self._port.nodes()], tolerant=True)
        return {name: self._doctor_entry(hello) for name, hello in hellos.items()}

    @staticmethod
    def _doctor_entry(hello: Mapping[str, Any]) -> dict[str, Any]:
        if "error" in hello:
            return dict(hello)
        return {"machine": hello["machine"], "capacity": asdict(hello["capacity"]), **hello["report"]}

    def recover(self, wait_s: float) -> dict[str, Any]:
        """Start agents everywhere, have them end, undo and deliver what earlier lives left; say what remains."""
        with self._at_work():
            return self._recover(wait_s)

    def _recover(self, wait_s: float) -> dict[str, Any]:
        names = [node.name for node in self._port.nodes()]
        hellos = self._hello_all(names, tolerant=True)
        deadline_ns = self._clock.boot_ns() + round(wait_s * SECOND_NS)
        recovered: set[str] = set()
        while True:
            with self._lock:
                left = {
                    (name, theirs.run, str(theirs.stage))
                    for name, heard in self._core.nodes.items()
                    if heard.report is not None
                    for theirs in heard.report.runs
                    if theirs.run not in self._core.runs
                }
                silent = [name for name in names if name not in self._core.nodes]
            recovered |= {run for _, run, _ in left}
            if (not left and not silent) or self._clock.boot_ns() > deadline_ns:
                break
            self._ending.wait(0.2)
        remaining = [f"{name}: run {run} is {stage}" for name, run, stage in sorted(left)]
        remaining += [f"{name}: its agent has not answered" for name in silent]
        remaining += [f"{name}: {hello['error']}" for name, hello in hellos.items() if "error" in hello]
        return {"recovered": sorted(recovered), "remaining": remaining, "nodes": names}

    def leave(self) -> None:
        """End this orchestrator and its agents; leases end what they held."""
        self._ending.set()
        for agent in self._agents.values():
            agent.leave()
        self._port.exit()

    # ---- admission

    def _plan(self, submission: Submission) -> tuple[Plan, tuple[str, ...]]:
        nodes = self._port.nodes()
        if submission.replay_plan:
            plan, drifts = plans.replay(Plan.from_json(submission.replay_plan.encode()), nodes, allow_head=submission.allow_head)
            return plan, tuple(drift.message for drift in drifts)
        scenario = text.load(submission.scenario, "scenario")
        return plans.resolve(scenario, nodes, submission.seed, allow_head=submission.allow_head), ()

    def _hello_all(self, names: Sequence[str], *, tolerant: bool = False) -> dict[str, dict[str, Any]]:
        """Have an agent on each of these nodes and hear what they say; all at once."""
        with self._hiring:  # two agents of one node would fence each other
            for name in names:
                if name not in self._agents or not self._port.agent_alive(name):
                    self._agents[name] = self._port.agent(self._agent_config(name))
        answers = dict(zip(names, self._workers.map(lambda name: self._hello_one(name, tolerant=tolerant), names), strict=True))
        self._hellos.update({name: hello for name, hello in answers.items() if "error" not in hello})
        return answers

    def _agent_config(self, name: str) -> AgentConfig:
        config = self._config
        return AgentConfig(
            node=name,
            cluster=self._cluster,
            epoch=self._epoch,
            profile=config.profile,
            lease_s=config.lease_s,
            renew_s=min(config.renew_s, config.lease_s / 4),
            sample_hz=config.sample_hz,
            stale_s=config.stale_s,
            window_s=config.window_s,
            idle_exit_s=config.idle_exit_s,
            stop_grace_s=config.stop_grace_s,
            outbox_max_bytes=config.outbox_max_bytes,
        )

    def _hello_one(self, name: str, *, tolerant: bool) -> dict[str, Any]:
        try:
            hello = self._agents[name].hello(HELLO_S)
            check_same_code(hello["code_id"], f"node {name}")
        except StressError as error:
            self._agents.pop(name, None)
            if not tolerant:
                raise RefusedError(error.code, f"node {name} cannot take part: {error.message}", error.hint) from error
            return {"error": str(error)}
        return hello

    # ---- time

    def _tick_loop(self) -> None:
        beat = 0
        while not self._ending.wait(TICK_S):
            beat += 1
            try:
                if beat % 10 == 0:
                    self._watch_agents()
                with self._lock:
                    self._core.tick(self._clock.boot_ns())
                self._drain()
                self._exit_when_idle()
            except Exception as error:
                self._note_trouble(f"orchestrator: {type(error).__name__}: {error}")

    def _watch_agents(self) -> None:
        """Take Ray's word on dead nodes and agents, and put a new agent where the node lives on: it finishes what is left."""
        with self._lock:
            wanted = {node for run in self._core.runs.values() for node in run.nodes}
        for name in wanted & set(self._agents):
            if not self._port.agent_alive(name):
                self._agents.pop(name, None)
                with self._lock:
                    self._core.node_gone(name, f"the agent of {name} died", self._clock.boot_ns())
                self._workers.submit(self._replace_agent, name)
        for name in wanted - set(self._agents):
            self._workers.submit(self._replace_agent, name)

    def _replace_agent(self, name: str) -> None:
        if name in {node.name for node in self._port.nodes()} and name not in self._agents:
            self._hello_all([name], tolerant=True)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count a call during which this process is not idle, however long nodes take to answer."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                self._idle_since_ns = self._clock.boot_ns()

    def _exit_when_idle(self) -> None:
        if self._busy():
            self._idle_since_ns = self._clock.boot_ns()
        elif self._clock.boot_ns() - self._idle_since_ns > self._config.idle_exit_s * SECOND_NS:
            self.leave()

    def _note_trouble(self, message: str) -> None:
        with self._lock:
            for run in self._core.runs:
                known = self._events.setdefault(run, [])
                if not known or known[-1].message != message:
                    known.append(Event("orchestrator_trouble", message, severity="warning"))

    # ---- effects

    def _drain(self) -> None:
        with self._lock:
            effects = self._core.drain()
        self._journal_now(effects)
        self._later(effects)

    def _journal_now(self, effects: Sequence[Do]) -> None:
        """Write what was decided before anybody is told of it."""
        self._journal.append([{"run": effect.run, **effect.data} for effect in effects if effect.what == "journal"])

    def _later(self, effects: Sequence[Do]) -> None:
        for effect in effects:
            if effect.what == "poke":
                for node in effect.nodes:
                    agent = self._agents.get(node)
                    if agent is not None:
                        self._workers.submit(agent.poke)
            elif effect.what == "start_agents":
                for node in effect.nodes:
                    self._workers.submit(self._agents[node].poke)
            elif effect.what == "start_probes":
                self._workers.submit(self._start_probes, effect.run, int(effect.data["start_at_ns"]))
            elif effect.what == "stop_probes":
                self._workers.submit(self._stop_probes, effect.run)
            elif effect.what == "finish":
                self._workers.submit(self._finish, effect.run)

    def _start_probes(self, run_id: str, start_at_ns: int) -> None:
        extras = self._extras[run_id]
        probes = probes_of(extras.plan)
        if not probes:
            return
        try:
            start_in_s = max(0.0, (start_at_ns - self._clock.boot_ns()) / SECOND_NS)
            extras.prober = self._port.prober(run_id, probes, extras.plan.targets, start_in_s)
        except StressError as error:
            with self._lock:
                self._core.stop(run_id, Cause.ERROR, f"the prober did not start: {error}", self._clock.boot_ns())

    def _stop_probes(self, run_id: str) -> None:
        extras = self._extras[run_id]
        prober, extras.prober = extras.prober, None
        if prober is not None:
            try:
                prober.call("finish", timeout_s=15.0)
            except StressError as error:
                with self._lock:
                    self._events.setdefault(run_id, []).append(Event("prober_lost", f"the prober died: {error}", severity="error"))
            self._port.end_actor(prober)

    def _finish(self, run_id: str) -> None:
        """Have the aggregator judge and write the run; what fails here is an error of ours, told with the outcome."""
        with self._at_work():
            extras = self._extras[run_id]
            self._stop_probes(run_id)
            with self._lock:
                self._take_events()
                ending = self._ending_of(self._core.finished_runs[run_id], extras)
            try:
                outcome = extras.aggregator.call("conclude", ending, timeout_s=120.0)
            except StressError as error:
                outcome = {"status": "error", "exit_code": 3, "summary": {}, "message": f"the aggregator could not finish: {error}"}
            self._journal.append([{"run": run_id, "kind": "done", "status": outcome["status"]}])
            with self._lock:
                extras.outcome = outcome

    def _ending_of(self, run: Run, extras: Extras) -> Ending:
        return Ending(
            run=run.admission.run,
            causes=tuple((str(cause), reason) for cause, reason in run.causes),
            nodes=tuple(node_ending(name, state, run.stop_decided_ns) for name, state in run.nodes.items()),
            events=tuple(self._events.get(run.admission.run, [])),
            start_at_wall_ns=self._clock.wall_ns() - (self._clock.boot_ns() - run.start_at_ns) if run.start_at_ns else 0,
            start_skew_ms=run.skew_ms(),
            halt_latency_ms=(run.last_gone_ns - run.stop_decided_ns) / 1e6 if run.stop_decided_ns and run.last_gone_ns else None,
            drift=extras.drift,
            shared=extras.shared,
        )

    # ---- telling

    def _take_events(self) -> None:
        for run in [*self._core.runs.values(), *self._core.finished_runs.values()]:
            if run.events:
                wall_ns = self._clock.wall_ns()
                self._events.setdefault(run.admission.run, []).extend(replace(event, wall_ns=wall_ns) for event in run.events)
                run.events.clear()

    def _progress(self, run: Run, now_ns: int) -> dict[str, Any]:
        reports = {name: state.report for name, state in run.nodes.items() if state.report}
        operations = [
            {"operation": op.id, "node": name, "stage": op.stage, "unit": op.unit, "requested": op.requested, "achieved": op.achieved}
            for name, report in reports.items()
            for op in report.operations
        ]
        nodes = []
        for name, state in run.nodes.items():
            heard = self._core.nodes.get(name)
            report = heard.report if heard else None
            nodes.append(
                {
                    "node": name,
                    "stage": str(state.stage) if state.stage else "",
                    "lost": state.lost,
                    "cpu": report.host.get("cpu") if report else None,
                    "memory_available_bytes": report.host.get("memory_available_bytes") if report else None,
                    "verdict": report.verdict_level if report else None,
                    "ceiling": report.ceiling if report else None,
                }
            )
        elapsed_s = (now_ns - run.start_at_ns) / SECOND_NS if run.start_at_ns else 0.0
        return {
            "elapsed_s": max(0.0, min(elapsed_s, run.admission.duration_s)),
            "duration_s": run.admission.duration_s,
            "operations": operations,
            "nodes": nodes,
        }
