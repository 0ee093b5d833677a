"""The orchestrator in one process: performs what `orchestrator.Orchestrator` decides.

`exchange` is served by threads of its own and takes only the lock around the decisions; planning, actor creation, the end of
a run and every wait for the disk happen on other threads, outside of that lock. What was decided is written, without a sync, under
the lock: in its order, and before anybody is told. A plain class: Ray is behind `OrchestratorPort`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from . import telling
from .admission import admission_of, budget_of, endpoint_of, facts_of, preview_of, probes_of
from .crew import HELLO_S, Crew
from .ending import ending_of
from .exchange import Reply, Report, Stage
from .fetch import checked_run
from .journal import Journal
from .modifying import modified, told
from .orchestrator import Orchestrator
from .orchestrator_api import OrchestratorConfig, OrchestratorPort, RemoteAggregator, Submission
from .probing import Probing
from .records import Admission, Do
from .run_state import Phase
from .safety.budget import Budget
from .verdict import Cause

TICK_S = 0.05
HALT_S = 5.0  # for nodes to keep a halt or resume
HIRE_S = 20.0  # more, where an agent has to be started first
MODIFY_S = 5.0  # for nodes to say that a change is in force
LOOK_S = 0.02


@dataclass(slots=True)
class Extras:
    """What the shell keeps of a run beside the decisions."""

    plan: Plan
    submission: Submission
    aggregator: RemoteAggregator
    probing: Probing
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
        self._admitting: set[str] = set()
        self._core = Orchestrator(cluster, epoch, config.times(), Budget(), journal.replay(), self._clock.boot_ns())
        self._cluster, self._epoch = cluster, epoch
        self._crew = Crew(port, lambda node: config.for_agent(node, cluster, epoch))
        self._extras: dict[str, Extras] = {}
        self._events: dict[str, list[Event]] = {}
        self._workers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="worker")
        self._ending = threading.Event()
        self._untold: set[str] = set()  # runs whose admission is not on disk yet: no node hears of them
        self._idle_since_ns, self._calls = self._clock.boot_ns(), 0
        threading.Thread(target=self._tick_loop, name="tick", daemon=True).start()

    # ---- asked by agents

    def exchange(self, report: Report) -> Reply:
        """Answer an agent; see `orchestrator.Orchestrator.exchange`."""
        with self._lock:
            reply = self._core.exchange(report, self._clock.boot_ns())
            effects, must_sync = self._write_down()
            orphans = [theirs for theirs in report.runs if theirs.run not in self._core.runs and theirs.stage is Stage.CLEAN]
            if self._untold:
                reply = replace(reply, orders=tuple(order for order in reply.orders if order.run not in self._untold))
        self._crew.poke(node for effect in effects if effect.what == "poke" for node in effect.nodes)
        if must_sync:
            self._workers.submit(self._act, effects, must_sync)
        else:
            self._act(effects, must_sync)
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
        self._check(submission)
        with self._at_work():
            return self._submit(submission)

    def _check(self, submission: Submission) -> None:
        """Refuse a driver of other code, or of other settings than those that bind every run of this orchestrator."""
        check_same_code(submission.code_id, "the driver")
        differences = self._config.differences(submission.config) if submission.config else []
        if differences:
            raise RefusedError(
                "busy",
                f"this cluster's orchestrator is at work with other settings: {'; '.join(differences)}",
                "use the same settings, or wait until its runs have ended",
            )

    def _submit(self, submission: Submission) -> dict[str, Any]:
        plan, drift = self._plan(submission)
        self._admitting.add(submission.run)
        made = self._workers.submit(self._port.aggregator, submission.run, {}, create=True)  # beside the agents: each takes a second
        try:
            return self._admit(submission, plan, drift, made)
        except BaseException:
            self._extras.pop(submission.run, None)
            self._workers.submit(self._abandon, made)
            raise
        finally:
            self._admitting.discard(submission.run)

    def _admit(self, submission: Submission, plan: Plan, drift: tuple[str, ...], made: Future[RemoteAggregator | None]) -> dict[str, Any]:
        hellos = self._crew.hello_all(plan.targets)
        self._clock.sleep(max(0.0, (self._core.quiet_until_ns - self._clock.boot_ns()) / SECOND_NS))
        with self._submitting:
            admission, shared = admission_of(submission, plan, hellos, self._config.memory_fraction, self._port.nodes())
            aggregator = made.result(HELLO_S)
            assert aggregator is not None
            addresses = {node.name: node.address for node in self._port.nodes()}
            facts = facts_of(plan, hellos, addresses, shared, drift)
            manifest = {**submission.manifest, **facts, "profile": submission.profile, "cluster": self._cluster, "epoch": self._epoch}
            aggregator.call("begin", manifest, plan.to_json(), *endpoint_of(submission, plan))
            self._extras[submission.run] = Extras(plan, submission, aggregator, Probing(self._port.end_actor), drift=drift, shared=shared)
            self._admit_now(admission, {node: hello for node, hello in {**self._crew.hellos, **hellos}.items() if node in addresses})
        return {"preview": preview_of(plan, admission.amounts, shared), "drift": list(drift)}

    def _admit_now(self, admission: Admission, alive: Mapping[str, Mapping[str, Any]]) -> None:
        """Admit a run under a budget of the machines that are alive; no node hears of it before it is on disk."""
        now_ns = self._clock.boot_ns()
        with self._deciding():
            self._core.ledger = replace(self._core.ledger, budget=budget_of(self._config, alive))
            for hello in alive.values():
                self._core.hear_halt(hello["halt"], now_ns)
            self._core.admit(admission, now_ns)
            self._untold.add(admission.run)

    @staticmethod
    def _abandon(made: Future[RemoteAggregator | None]) -> None:
        """End the aggregator of a run that was not admitted; it leaves nothing."""
        aggregator = made.result(HELLO_S)
        if aggregator is not None:
            aggregator.call("abandon")

    def preview(self, submission: Submission) -> dict[str, Any]:
        """Return what a submission would do: targets, peak, duration; asks the nodes, reserves nothing."""
        self._check(submission)
        with self._at_work():
            plan, _ = self._plan(submission)
            hellos = self._crew.hello_all(plan.targets)
            admission, shared = admission_of(submission, plan, hellos, self._config.memory_fraction, self._port.nodes())
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
                "progress": telling.progress(run, self._core, now_ns),
                "outcome": outcome,
            }

    def stop(self, run_id: str, cause: str, reason: str) -> bool:
        """End a run; returns False when it is not alive."""
        with self._deciding():
            return self._core.stop(run_id, Cause(cause), reason, self._clock.boot_ns())

    def modify(self, run_id: str, changes: Sequence[str]) -> dict[str, Any]:
        """Change what a live run records, and wait for its nodes to say that it is in force; errors as `modifying.modified`."""
        with self._at_work():
            with self._deciding():
                extras = self._extras.get(run_id)
                scenario = modified(run_id, extras.plan.scenario if extras else None, changes)
                recording = scenario.metrics.policy().to_json()
                self._core.record_by(run_id, recording, f"recording changed: {', '.join(changes)}", self._clock.boot_ns())
                assert extras is not None, "a run of the core has its extras"
                extras.plan = replace(extras.plan, scenario=scenario)
            self._await(lambda: not self._core.recording_nodes(run_id, recording)[1], MODIFY_S)
            return told(run_id, changes, *self._core.recording_nodes(run_id, recording), MODIFY_S)

    def halt(self, on: bool, above: int = 0) -> dict[str, Any]:
        """Halt everything on all nodes, or lift the halt, and wait until each node has it on its disk or time is over.

        `above`: the generation that the caller has set on its own machine. A halt goes to the agents that are there before others are
        started; a resume is decided only when every node was heard, so that it is newer than what any of them keeps.
        """
        with self._at_work():
            runs = self._set_halt(on, above) if on else []
            known, hired = self._crew.hire_everywhere()
            wait_s = HIRE_S if hired else HALT_S
            if not on:
                self._await(lambda: not self._unheard(known | hired), wait_s)
                self._set_halt(on, above)
            self._await(lambda: not self._without_halt(known | hired, on, above), wait_s)
            unreached = self._without_halt(known | hired, on, above)
            with self._lock:
                halt = self._core.halt
                gone = {node for run in self._core.runs.values() for node, state in run.nodes.items() if not state.clean}
        reasons = [f"{name}: it has not confirmed within {wait_s:.0f} s" for name in sorted(unreached)]
        reasons += [f"{name}: not alive to Ray; its load ends with its lease" for name in sorted(gone - known - hired)]
        if halt.on is not on:
            reasons = [f"a newer {'halt' if halt.on else 'resume'} (generation {halt.generation}) is in force"]
        return {
            "generation": halt.generation,
            "on": halt.on,
            "nodes": sorted((known | hired) - unreached),
            "unreached": reasons,
            "runs": [{"run": run} for run in runs],
        }

    def _set_halt(self, on: bool, above: int) -> list[str]:
        with self._deciding():
            runs = [name for name, run in self._core.runs.items() if run.phase not in {Phase.COLLECTING, Phase.DONE}] if on else []
            self._core.set_halt(on, self._clock.boot_ns(), above)
        return runs

    def _unheard(self, names: set[str]) -> set[str]:
        with self._lock:
            return names - self._core.nodes.keys()

    def _without_halt(self, names: set[str], on: bool, above: int) -> set[str]:
        """Return the nodes that have not kept the halt; a node's older resume that was heard only now is outdone first."""
        if on and not self._core.halt.on:
            self._set_halt(on, above)
        with self._lock:
            return {name for name in names if self._core.halt.on is not on or not self._core.has_kept_halt(name)}

    def _await(self, done: Callable[[], bool], wait_s: float) -> None:
        deadline_ns = self._clock.boot_ns() + round(wait_s * SECOND_NS)
        while not done() and self._clock.boot_ns() < deadline_ns:
            self._clock.sleep(LOOK_S)

    def forget(self, node: str) -> dict[str, Any]:
        """Give back what a node that will not come back owes to ended runs, and close its streams; see `recovery.forgotten`."""
        from .recovery import forgotten  # noqa: PLC0415  # needs pyarrow, which no run needs here

        with self._at_work():
            self._clock.sleep(max(0.0, (self._core.quiet_until_ns - self._clock.boot_ns()) / SECOND_NS))
            with self._deciding():
                runs = self._core.forget(node, self._clock.boot_ns())
            return forgotten(self._port, node, runs, self._known())

    def status(self) -> dict[str, Any]:
        """Return what runs where, asked against achieved."""
        now_ns = self._clock.boot_ns()
        with self._lock:
            finished = {name: extras.outcome for name, extras in self._extras.items() if extras.outcome}
            return {"cluster": self._cluster, "epoch": self._epoch, "finished": finished, **telling.status(self._core, now_ns)}

    def doctor(self) -> dict[str, Any]:
        """Ask every alive node what it can do."""
        with self._at_work():
            hellos = self._crew.hello_all([node.name for node in self._port.nodes()], tolerant=True)
        return {name: telling.doctor_entry(hello) for name, hello in hellos.items()}

    def recover(self, wait_s: float) -> dict[str, Any]:
        """Start agents everywhere, have them end, undo and deliver what earlier lives left; say what remains."""
        with self._at_work():
            return self._recover(wait_s)

    def _recover(self, wait_s: float) -> dict[str, Any]:
        from .recovery import end_on_this_node, on_absent_nodes  # noqa: PLC0415  # needs pyarrow, which no run needs here

        names = [node.name for node in self._port.nodes()]
        hellos = self._crew.hello_all(names, tolerant=True)
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
        ended, remaining = end_on_this_node(self._port, recovered, {run for _, run, _ in left}, self._known)
        remaining += [f"{name}: run {run} is {stage}" for name, run, stage in sorted(left)]
        remaining += [f"{name}: its agent has not answered" for name in silent]
        remaining += [f"{name}: {hello['error']}" for name, hello in hellos.items() if "error" in hello]
        remaining += on_absent_nodes(self._port.state_dir(), self._known(), names)
        return {"recovered": sorted(ended), "remaining": remaining, "nodes": names, "alive": sorted(self._known())}

    def _known(self) -> set[str]:
        """Return the runs whose end is still to come from here: what nobody else may give one to."""
        with self._lock:
            without_outcome = {run for run, extras in self._extras.items() if extras.outcome is None}
            return {*self._core.runs, *self._admitting, *without_outcome}

    def reopen(self, run_id: str) -> bool:
        """Have an aggregator for a run whose directory lies on this node, so that its files can be fetched; false when there is none."""
        found = (self._port.state_dir() / "runs" / checked_run(run_id) / "manifest.json").is_file()
        return found and self._port.aggregator(run_id, {}, create=True) is not None

    def leave(self, only_idle: bool = False) -> bool:
        """End this orchestrator and its agents; leases end what they held. With `only_idle` it stays, false, while it is at work."""
        with self._lock:
            if only_idle and self._busy():
                return False
            self._ending.set()
        self._crew.leave()
        self._port.exit()
        return True

    # ---- admission

    def _plan(self, submission: Submission) -> tuple[Plan, tuple[str, ...]]:
        nodes = self._port.nodes()
        if submission.replay_plan:
            plan, drifts = plans.replay(Plan.from_json(submission.replay_plan.encode()), nodes, allow_head=submission.allow_head)
            return plan, tuple(drift.message for drift in drifts)
        scenario = text.load(submission.scenario, "scenario")
        return plans.resolve(scenario, nodes, submission.seed, allow_head=submission.allow_head), ()

    # ---- time

    def _tick_loop(self) -> None:
        beat = 0
        while not self._ending.wait(TICK_S):
            beat += 1
            try:
                if beat % 10 == 0:
                    self._watch_agents()
                if beat % 100 == 0 and self._journal.is_long:
                    self._workers.submit(self._journal.compact)
                with self._deciding():
                    self._core.tick(self._clock.boot_ns())
                self._exit_when_idle()
            except Exception as error:
                self._note_trouble(f"orchestrator: {type(error).__name__}: {error}")

    def _watch_agents(self) -> None:
        """Take Ray's word on dead nodes and agents, and put a new agent where the node lives on: it finishes what is left."""
        with self._lock:
            wanted = {node for run in self._core.runs.values() for node in run.nodes}
        for name in self._crew.dead(wanted):
            with self._deciding():
                self._core.node_gone(name, f"the agent of {name} died", self._clock.boot_ns())
        for name in self._crew.missing(wanted):
            self._workers.submit(self._crew.replace, name)

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

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """Hold the lock for decisions of the core; then do what was decided, once what must survive this machine is on its disk."""
        with self._lock:
            yield
            effects, must_sync = self._write_down()
        self._crew.poke(node for effect in effects if effect.what == "poke" for node in effect.nodes)
        self._act(effects, must_sync)

    def _write_down(self) -> tuple[list[Do], bool]:
        """Under the lock: write what was decided; return it, and whether it must be synced before its caller is told."""
        effects = self._core.drain()
        return effects, self._journal.write([{"run": effect.run, **effect.data} for effect in effects if effect.what == "journal"])

    def _act(self, effects: Sequence[Do], must_sync: bool) -> None:
        if must_sync:
            self._journal.sync()
        self._untold.difference_update(effect.run for effect in effects if effect.what == "start_agents")
        self._crew.poke(node for effect in effects if effect.what == "start_agents" for node in effect.nodes)
        for effect in effects:
            if effect.what in {"expect", "started"}:
                self._workers.submit(self._say, effect.run, effect.what, *effect.nodes, *effect.data.values())
            elif effect.what == "start_probes":
                self._workers.submit(self._start_probes, effect.run, int(effect.data["start_at_ns"]))
            elif effect.what == "stop_probes":
                self._workers.submit(self._stop_probes, effect.run)
            elif effect.what == "finish":
                self._workers.submit(self._finish, effect.run)

    def _say(self, run_id: str, method: str, *arguments: Any) -> None:
        """Have the aggregator miss a node's stream even when nothing of it ever arrives, or record how even the start was."""
        try:
            self._extras[run_id].aggregator.call(method, *arguments)
        except StressError as error:
            self._note_trouble(f"the aggregator was not told {method} {arguments}: {error}")

    def _start_probes(self, run_id: str, start_at_ns: int) -> None:
        extras = self._extras[run_id]
        probes = probes_of(extras.plan)
        if not probes:
            return

        def make() -> Any:
            return self._port.prober(run_id, probes, extras.plan.targets, max(0.0, (start_at_ns - self._clock.boot_ns()) / SECOND_NS))

        try:
            extras.probing.start(make)
        except StressError as error:
            with self._deciding():
                self._core.stop(run_id, Cause.ERROR, f"the prober did not start: {error}", self._clock.boot_ns())

    def _stop_probes(self, run_id: str) -> None:
        if wrong := self._extras[run_id].probing.stop():
            with self._lock:
                self._events.setdefault(run_id, []).append(Event("prober_lost", wrong, severity="error"))

    def _finish(self, run_id: str) -> None:
        """Have the aggregator judge and write the run; what fails here is an error of ours, told with the outcome."""
        with self._at_work():
            extras = self._extras[run_id]
            self._stop_probes(run_id)
            with self._lock:
                self._take_events()
                run, wall_ns = self._core.finished_runs[run_id], self._clock.wall_ns() - self._clock.boot_ns()
                ending = ending_of(run, self._events.get(run_id, []), wall_ns, extras.drift, extras.shared)
            try:
                outcome = extras.aggregator.call("conclude", ending, timeout_s=120.0)
            except StressError as error:
                outcome = {"status": "error", "exit_code": 3, "summary": {}, "message": f"the aggregator could not finish: {error}"}
            self._journal.append([{"run": run_id, "kind": "done", "status": outcome["status"]}])
            with self._lock:
                extras.outcome = outcome

    # ---- telling

    def _take_events(self) -> None:
        for run in [*self._core.runs.values(), *self._core.finished_runs.values()]:
            if run.events:
                wall_ns = self._clock.wall_ns()
                self._events.setdefault(run.admission.run, []).extend(replace(event, wall_ns=wall_ns) for event in run.events)
                run.events.clear()
