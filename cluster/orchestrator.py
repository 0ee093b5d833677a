"""The orchestrator's decisions: which runs are admitted, what each node is told, when a run ends.

A plain class without Ray, clock, thread or file: calls carry the time, effects are left in a list for the shell to perform.
It never touches a node. What a node may do it learns by its own question (`exchange`), and a lease is a duration counted from
that question, so nothing that is delayed on the way can extend a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

from actors.clock import SECOND_NS
from actors.errors import InputError, RefusedError
from actors.messages import Event, Halt

from . import run_state
from .exchange import Goal, Order, Reply, Report, RunReport, Stage
from .journal import Past
from .records import Admission, Do, NodeHeard, NodeInRun, Run
from .run_state import Effect, Phase
from .safety import budget as ledgers
from .safety.budget import Budget, Ledger
from .times import Times
from .verdict import Cause


class Orchestrator:
    """Decides for one cluster. `effects` and each run's `events` are drained by the shell after every call."""

    def __init__(self, cluster: str, epoch: int, times: Times, budget: Budget, past: Past, now_ns: int) -> None:
        self.cluster = cluster
        # Until when load that an earlier orchestrator allowed may exist.
        self.quiet_until_ns = now_ns + times.charge_ns if past.open_runs or past.charges else 0
        self.epoch = epoch
        self.times = times
        self.ledger = ledgers.inherited(Ledger(budget), past.charges, self.quiet_until_ns)
        self.halt = Halt(past.halt_generation, past.halt_on)
        self.runs: dict[str, Run] = {}
        self.nodes: dict[str, NodeHeard] = {}
        self.effects: list[Do] = []
        self.finished_runs: dict[str, Run] = {}
        self.now_ns = 0

    # ---- what callers ask

    def admit(self, admission: Admission, now_ns: int) -> None:
        """Reserve, confirm and begin to prepare a run; raises `RefusedError` and changes nothing when it may not run."""
        self.now_ns = now_ns
        if self.halt.on:
            raise RefusedError(
                "halted", f"an emergency halt is in force (generation {self.halt.generation})", "run `stress-cluster resume`"
            )
        if now_ns < self.quiet_until_ns:
            wait_s = (self.quiet_until_ns - now_ns) / SECOND_NS
            raise RefusedError("busy", f"load of an earlier orchestrator may live for another {wait_s:.1f} s", "try again then")
        times = self.times
        held = ledgers.reserve(
            self.ledger, admission.run, admission.amounts, admission.duration_s, now_ns, round(times.reserve_s * SECOND_NS)
        )
        self.ledger = ledgers.confirm(held, admission.run, now_ns)
        run = Run(admission, entered_ns=now_ns, admitted_ns=now_ns, nodes={node: NodeInRun() for node in admission.operations})
        run.driver_deadline_ns = now_ns + round(times.driver_s * SECOND_NS)
        self.runs[admission.run] = run
        self._journal("admitted", admission.run, charges={node: astuple(amounts) for node, amounts in admission.amounts.items()})
        self._step(run, run_state.Event.PREPARE)

    def beat(self, run_id: str, now_ns: int) -> None:
        """Note that a run's driver is alive."""
        run = self.runs.get(run_id)
        if run is not None:
            run.driver_deadline_ns = now_ns + round(self.times.driver_s * SECOND_NS)

    def stop(self, run_id: str, cause: Cause, reason: str, now_ns: int, *, kill: bool = False) -> bool:
        """End a run for a cause; returns False when no such run is alive.

        `PASSED`: what it was for is over, and it is judged by the time until now. Of a run that does not load yet that is a cancellation.
        """
        self.now_ns = now_ns
        run = self.runs.get(run_id)
        if run is None:
            return False
        if cause is Cause.PASSED and run.phase is not Phase.RUNNING:
            if run.phase in {Phase.STOPPING, Phase.COLLECTING, Phase.DONE}:
                return True  # its own time was over first
            cause = Cause.CANCELLED
        self._stop(run, cause, reason, kill=kill)
        return True

    def record_by(self, run_id: str, recording: str, words: str, now_ns: int) -> None:
        """Let the nodes of a run record by this policy from their next question on; `words` go into the run's story.

        Raises `InputError` when no such run loads. The plan, and what it may take, stay as they are.
        """
        self.now_ns = now_ns
        run = self.runs.get(run_id)
        if run is None or run.phase in {Phase.STOPPING, Phase.COLLECTING, Phase.DONE}:
            raise InputError("unknown_name", f"run {run_id} does not load any more", "see `stress-cluster status`")
        run.admission = replace(run.admission, terms={**run.admission.terms, "recording": recording})
        self._tell(run, "modified", words)
        self.effects.append(Do("poke", run_id, tuple(run.nodes)))

    def recording_nodes(self, run_id: str, recording: str) -> tuple[set[str], set[str]]:
        """Return the nodes of a run that have said that they record by this policy, and the others that are not lost."""
        run = self.runs.get(run_id)
        alive = {name: state for name, state in run.nodes.items() if not state.lost} if run else {}
        there = {name for name, state in alive.items() if state.report is not None and state.report.recording == recording}
        return there, alive.keys() - there

    def set_halt(self, on: bool, now_ns: int, above: int = 0) -> Halt:
        """Halt everything everywhere, or lift the halt; each is a new generation, higher than all that is known here and `above`."""
        self.now_ns = now_ns
        self._take_halt(Halt(max(self.halt.generation, above) + 1, on))
        return self.halt

    def hear_halt(self, halt: Halt, now_ns: int) -> None:
        """Take a halt that a node's guardian shows, if it is newer than what is known here."""
        self.now_ns = now_ns
        if halt > self.halt:
            self._take_halt(halt)

    def has_kept_halt(self, node: str) -> bool:
        """Tell whether a node's guardian has said that what is in force here is on its disk."""
        heard = self.nodes.get(node)
        return heard is not None and heard.report is not None and heard.report.halt_kept == self.halt

    def node_gone(self, node: str, reason: str, now_ns: int) -> None:
        """Take Ray's word that a node or its agent is dead. It means unreachable, not stopped."""
        self.now_ns = now_ns
        for run in list(self.runs.values()):
            if node in run.nodes:
                self._lose(run, node, reason)
        self.nodes.pop(node, None)

    def forget(self, node: str, now_ns: int) -> tuple[str, ...]:
        """Give back what a node that will not come back still owes to ended runs, and return those runs; kept in the journal.

        Raises `RefusedError` while its load may still exist.
        """
        self.now_ns = now_ns
        owed = {run: held.charges[node] for run, held in self.ledger.reservations.items() if node in held.charges}
        if not owed:
            return ()
        ends_ns = [charge.expires_ns for charge in owed.values()]
        if None in ends_ns:
            raise RefusedError("busy", f"{node} takes part in a run that goes on", "stop that run first")
        left_s = (max(end_ns for end_ns in ends_ns if end_ns is not None) - now_ns) / SECOND_NS
        if left_s > 0:
            raise RefusedError("busy", f"load on {node} may live for another {left_s:.1f} s", "try again then")
        for run in owed:
            self.ledger = ledgers.release_node(self.ledger, run, node)
        self._journal("forgotten", "", node=node, runs=sorted(owed))
        return tuple(sorted(owed))

    def tick(self, now_ns: int) -> None:
        """Let time pass: silent nodes are lost, deadlines end runs, phases move on."""
        self.now_ns = now_ns
        silent_ns = round(self.times.lease_s * SECOND_NS)
        for run in list(self.runs.values()):
            for node, state in run.nodes.items():
                heard = self.nodes.get(node)
                # An agent that is new, or took the place of one that hung, has a lease's time from the admission on.
                since = max(heard.heard_ns, run.admitted_ns) if heard else run.admitted_ns + round(self.times.prepare_s * SECOND_NS)
                if not state.lost and not state.clean and now_ns - since > silent_ns:
                    self._lose(run, node, f"{node} was not heard for {(now_ns - since) / SECOND_NS:.1f} s")
            self._check_deadlines(run)
            self._advance(run)

    # ---- what agents ask

    def exchange(self, report: Report, now_ns: int) -> Reply:
        """Answer an agent: what each run wants of its node, and for how long it may load."""
        self.now_ns = now_ns
        refused = self._refusal(report)
        if refused:
            return Reply(report.nonce, self.epoch, now_ns, (), self.halt, refused)
        self.hear_halt(report.halt, now_ns)  # first: what it ended there is halted, not failed
        self._hear(report)
        orders = [self._order(run, report.node) for run in self.runs.values() if report.node in run.nodes]
        orders += [self._orphan_order(theirs) for theirs in report.runs if not self._knows(theirs.run, report.node)]
        if any(order.lease_s for order in orders):
            self.nodes[report.node].expiry_ns = max(self.nodes[report.node].expiry_ns, now_ns + self.times.charge_ns)
            self._journal("granted", "", node=report.node, expiry_ns=now_ns + self.times.charge_ns)
        return Reply(report.nonce, self.epoch, now_ns, tuple(orders), self.halt)

    def _refusal(self, report: Report) -> str:
        if report.epoch > self.epoch:
            return f"epoch {report.epoch} is newer than this orchestrator's {self.epoch}"
        known = self.nodes.get(report.node)
        if known is None:
            return ""
        if report.machine == known.machine and report.incarnation < known.incarnation:  # boot times: those of two boots have no order
            return f"a newer agent of {report.node} has been heard"
        alive = self.now_ns - known.heard_ns <= self.times.lease_s * SECOND_NS
        if known.machine != report.machine and known.incarnation != report.incarnation and alive and self._holds_load(report.node):
            return f"node name {report.node} is in use on another machine"
        return ""

    def _hear(self, report: Report) -> None:
        known = self.nodes.get(report.node)
        if known is None or known.incarnation != report.incarnation:
            known = NodeHeard(report.incarnation, self.now_ns, report.machine, known.expiry_ns if known else 0)
            self.nodes[report.node] = known
        known.heard_ns, known.report = self.now_ns, report
        for theirs in report.runs:
            run = self.runs.get(theirs.run)
            if run is not None and report.node in run.nodes:
                self._hear_run(run, report.node, theirs)
        self._confirm_absent(report)
        if report.verdict_level >= 3:
            self._abort_for(report)
        for run in list(self.runs.values()):
            if report.node in run.nodes:
                self._hear_missing(run, report)
                self._advance(run)

    def _hear_run(self, run: Run, node: str, theirs: RunReport) -> None:
        state = run.nodes[node]
        if state.stage is None:  # from now on it has a stream, whether anything of it arrives or not
            self.effects.append(Do("expect", run.admission.run, (node,), {"incarnation": str(self.nodes[node].incarnation)}))
        state.stage, state.report = theirs.stage, theirs
        run.last_gone_ns = max(run.last_gone_ns, theirs.last_gone_ns)
        for op in theirs.operations:
            if op.first_slice_ns and not state.first_slices.get(op.id):
                state.first_slices[op.id] = op.first_slice_ns
        if run.takes_begin():
            self.effects.append(Do("started", run.admission.run, (), {"skew_s": (run.skew_ms() or 0.0) / 1e3}))
        if state.lost and not state.returned:
            state.returned = True
            self._tell(run, "node_returned", f"{node} is heard again, {theirs.stage}", node=node)
        if theirs.failure_code == "expired" and not state.lost:  # also when it is clean by now: its load ended before its time
            state.returned = True  # it was never silent
            self._mark_lost(run, node, f"{node}: {theirs.failure}")
        elif theirs.failure and not state.lost and run.phase not in {Phase.STOPPING, Phase.COLLECTING, Phase.DONE}:
            cause = _cause_of(theirs.failure_code, run.phase)
            self._stop(run, cause, f"{node}: {theirs.failure}", kill=cause is Cause.SAFETY)
        if state.clean:
            self._release(run.admission.run, node)

    def _release(self, run_id: str, node: str) -> None:
        """Give back what a node held for a run, once its guardian has confirmed that it is clean."""
        before, self.ledger = self.ledger, ledgers.release_node(self.ledger, run_id, node)
        if self.ledger is not before:
            self._journal("released", run_id, node=node)

    def _hear_missing(self, run: Run, report: Report) -> None:
        """Treat a node whose agent no longer knows the run as clean if it is stopping, as lost otherwise."""
        state = run.nodes[report.node]
        if state.stage is None or any(theirs.run == run.admission.run for theirs in report.runs):
            return
        if run.phase in {Phase.STOPPING, Phase.COLLECTING} or state.lost:
            return
        self._lose(run, report.node, f"the agent of {report.node} was replaced and has lost the run")

    def _confirm_absent(self, report: Report) -> None:
        """Free what a lost node was charged with: an agent reports every run that its guardian still holds something of.

        What it reports as stuck stays charged.
        """
        theirs = {run.run: run for run in report.runs}
        for run_id, held in list(self.ledger.reservations.items()):
            charge = held.charges.get(report.node)
            if charge is None or charge.expires_ns is None:
                continue
            if run_id in theirs:
                if theirs[run_id].unclean and theirs[run_id].stage is Stage.STOPPING:  # it is known not to be gone, lease or not
                    until_ns = max(charge.expires_ns, self.now_ns + self.times.charge_ns)
                    self.ledger = ledgers.lose_node(self.ledger, run_id, report.node, until_ns)
            elif self.now_ns >= charge.expires_ns:
                self._release(run_id, report.node)

    def _abort_for(self, report: Report) -> None:
        for run in list(self.runs.values()):
            state = run.nodes.get(report.node)
            if state is not None and not state.clean:
                self._stop(run, Cause.SAFETY, f"{report.node}: {report.verdict_reason}", kill=True)

    def _knows(self, run_id: str, node: str) -> bool:
        return run_id in self.runs and node in self.runs[run_id].nodes

    def _holds_load(self, node: str) -> bool:
        return any(node in run.nodes and not run.nodes[node].clean for run in self.runs.values())

    def _order(self, run: Run, node: str) -> Order:
        admission, state = run.admission, run.nodes[node]
        wanted = {Phase.ADMITTED: Goal.PREPARE, Phase.PREPARING: Goal.PREPARE, Phase.STARTING: Goal.START, Phase.RUNNING: Goal.START}
        goal = wanted.get(run.phase, Goal.STOP)
        if state.lost and goal in {Goal.PREPARE, Goal.START}:
            goal = Goal.STOP  # its lease has ended: what it began is undone, not resumed
        if goal is Goal.STOP and state.stage is Stage.DELIVERED:
            goal = Goal.FORGET
        elif goal is Goal.STOP and state.clean and self._is_observed(run):
            goal = Goal.SEAL
        may_load = goal in {Goal.PREPARE, Goal.START} and self.ledger.holds(admission.run, node, self.now_ns) and not self.halt.on
        return Order(
            run=admission.run,
            goal=goal,
            lease_s=self.times.lease_s if may_load else 0.0,
            start_at_ns=run.start_at_ns,
            operations=admission.operations[node] if state.stage is None and goal is Goal.PREPARE else (),
            capacity=admission.capacities.get(node),
            machine_limits=admission.machine_limits.get(node),
            grace_s=0.0 if run.kill else self.times.grace_s,
            kill=run.kill,
            terms=dict(admission.terms),
        )

    def _is_observed(self, run: Run) -> bool:
        """Tell whether nothing more is to be recorded: at once where a run was cut short, since nothing is judged of its time after."""
        observed_s = (self.now_ns - run.entered_ns) / SECOND_NS
        return bool(run.causes) or not run.admission.observe_s or (run.phase is Phase.COLLECTING and observed_s >= run.admission.observe_s)

    def _orphan_order(self, theirs: RunReport) -> Order:
        """Tell a node what to do with a run that this orchestrator does not know: end it, deliver, forget."""
        goal = {Stage.CLEAN: Goal.SEAL, Stage.DELIVERED: Goal.FORGET}.get(theirs.stage, Goal.STOP)
        return Order(run=theirs.run, goal=goal)

    # ---- how a run moves

    def _step(self, run: Run, event: run_state.Event) -> None:
        before = run.phase
        run.phase, effects = run_state.step(run.phase, event)
        if run.phase is not before:
            run.entered_ns = self.now_ns
        for effect in effects:
            self._perform(run, effect)

    def _perform(self, run: Run, effect: Effect) -> None:
        name, nodes = run.admission.run, tuple(run.nodes)
        if effect is Effect.REPORT:
            self._tell(run, "phase", f"run is {run.phase}")
            self._journal("phase", name, phase=str(run.phase))
        elif effect is Effect.SET_START:
            run.start_at_ns = self.now_ns + round(self.times.start_delay_s * SECOND_NS)
        elif effect is Effect.FINISH:
            run.finished = True
            self.finished_runs[name] = self.runs.pop(name)
            self._settle(run)
            self.effects.append(Do("finish", name, nodes))
        else:
            self.effects.append(Do(str(effect), name, nodes, {"start_at_ns": run.start_at_ns}))

    def _settle(self, run: Run) -> None:
        """Release what clean nodes held; any other stays charged until its machine confirms, whether it was lost or only too slow."""
        for node, state in run.nodes.items():
            if state.clean:
                self._release(run.admission.run, node)
            elif not state.lost:
                stuck = state.report is not None and state.report.unclean
                self._presume_ended(run, node, self.now_ns + self.times.charge_ns if stuck else 0)

    def _presume_ended(self, run: Run, node: str, not_before_ns: int = 0) -> None:
        heard = self.nodes.get(node)
        expires_ns = max(heard.expiry_ns if heard else 0, self.now_ns, not_before_ns)
        self.ledger = ledgers.lose_node(self.ledger, run.admission.run, node, expires_ns)

    def _check_deadlines(self, run: Run) -> None:
        times, age_s = self.times, (self.now_ns - run.entered_ns) / SECOND_NS
        live = run.phase in {Phase.PREPARING, Phase.STARTING, Phase.RUNNING}
        if live and not run.admission.detached and self.now_ns > run.driver_deadline_ns:
            self._stop(run, Cause.ERROR, f"the driver was not heard for {times.driver_s:.1f} s")
        if run.phase is Phase.PREPARING and age_s > times.prepare_s:
            waiting = sorted(node for node, state in run.nodes.items() if state.stage not in {Stage.READY, Stage.RUNNING})
            self._stop(run, Cause.ERROR, f"not ready within {times.prepare_s:.0f} s: {', '.join(waiting)}")
        limit_s = run.admission.timeout_s
        if live and limit_s is not None and (self.now_ns - run.admitted_ns) / SECOND_NS > limit_s:
            self._stop(run, Cause.TIMEOUT, f"the run's time limit of {limit_s:.0f} s is over")

    def _advance(self, run: Run) -> None:
        """Move on as far as the nodes' stages allow."""
        active = [state for state in run.nodes.values() if not state.lost]
        if run.phase is Phase.PREPARING and active and all(state.stage is Stage.READY for state in active):
            self._step(run, run_state.Event.ALL_READY)
        if run.phase is Phase.STARTING and self.now_ns >= run.start_at_ns:
            self._step(run, run_state.Event.STARTED)
        if run.phase is Phase.RUNNING and self._is_over(run, active):
            self._step(run, run_state.Event.STOP)
        if run.phase is Phase.RUNNING and not active:
            self._stop(run, Cause.ERROR, "every target node is lost")
        if run.phase is Phase.STOPPING and self._all_ended(run):
            self._step(run, run_state.Event.ALL_CLEAN)
        if run.phase is Phase.COLLECTING and self._all_collected(run):
            self._step(run, run_state.Event.COLLECTED)

    def _is_over(self, run: Run, active: Sequence[NodeInRun]) -> bool:
        """Tell whether the plan's time is over and every load has ended by itself, or had a grace time to do so."""
        over_ns = self.now_ns - run.start_at_ns - round(run.admission.duration_s * SECOND_NS)
        if over_ns < 0:
            return False
        ended = all(op.stage == "clean" for state in active if state.report for op in state.report.operations)
        return ended or over_ns > self.times.grace_s * SECOND_NS

    def _all_ended(self, run: Run) -> bool:
        """Tell whether each node is clean, was never reached, or is lost beyond its charge."""
        late = self.now_ns - run.entered_ns > self.times.stop_s * SECOND_NS
        return late or all(self._ended(run, node, state) for node, state in run.nodes.items())

    def _ended(self, run: Run, node: str, state: NodeInRun) -> bool:
        if state.clean:
            return True
        charge = self.ledger.reservations.get(run.admission.run)
        expires_ns = charge.charges[node].expires_ns if charge and node in charge.charges else None
        if state.lost:
            return expires_ns is None or self.now_ns >= expires_ns
        return False

    def _all_collected(self, run: Run) -> bool:
        late = self.now_ns - run.entered_ns > (self.times.collect_s + run.admission.observe_s) * SECOND_NS
        return late or all(state.stage is Stage.DELIVERED for state in run.nodes.values())

    def _stop(self, run: Run, cause: Cause, reason: str, *, kill: bool = False) -> None:
        if run.phase in {Phase.COLLECTING, Phase.DONE}:
            return
        if (cause, reason) not in run.causes:
            run.causes.append((cause, reason))
            self._tell(run, "stop", f"{cause}: {reason}", severity="info" if cause in {Cause.CANCELLED, Cause.PASSED} else "error")
        run.kill = run.kill or kill
        if run.phase is not Phase.STOPPING:
            run.stop_decided_ns = self.now_ns
            self._step(run, run_state.Event.STOP)
        elif kill:
            self.effects.append(Do("poke", run.admission.run, tuple(run.nodes)))

    def _lose(self, run: Run, node: str, reason: str) -> None:
        if not (run.nodes[node].lost or run.nodes[node].clean):
            self._mark_lost(run, node, reason)

    def _mark_lost(self, run: Run, node: str, reason: str) -> None:
        state = run.nodes[node]
        state.lost, state.lost_reason = True, reason
        self._presume_ended(run, node)
        self._tell(run, "node_lost", f"{reason}; its load ends by itself within its lease", node=node, severity="error")
        if run.admission.on_node_lost == "stop" or run.phase in {Phase.ADMITTED, Phase.PREPARING, Phase.STARTING}:
            self._stop(run, Cause.ERROR, f"node lost: {reason}")

    def _take_halt(self, halt: Halt) -> None:
        self.halt = halt
        self._journal("halt", "", generation=halt.generation, on=halt.on)
        for run in list(self.runs.values()) if halt.on else ():
            self._stop(run, Cause.SAFETY, f"emergency halt (generation {halt.generation})", kill=True)
        self.effects.append(Do("poke", "", tuple(self.nodes)))

    # ---- what it leaves for the shell

    def _tell(self, run: Run, kind: str, message: str, node: str = "", severity: str = "info") -> None:
        data = {"run": run.admission.run, "boot_ns": self.now_ns}
        run.events.append(Event(kind=kind, message=message, severity=severity, node=node, phase=str(run.phase), data=data))

    def _journal(self, kind: str, run: str, **data: Any) -> None:
        self.effects.append(Do("journal", run, (), {"kind": kind, **data}))

    def drain(self) -> list[Do]:
        """Hand the effects over to the shell."""
        effects, self.effects = self.effects, []
        return effects


def _cause_of(failure_code: str, phase: Phase) -> Cause:
    """Return why a run ends when a node says that it cannot go on."""
    if failure_code == "safety_abort":
        return Cause.SAFETY
    if failure_code == "oom":  # what stress may come to: the dose was not reached, and the harness has not failed
        return Cause.INCONCLUSIVE
    if phase in {Phase.ADMITTED, Phase.PREPARING}:
        return Cause.REFUSED if failure_code in {"budget", "halted", "capability"} else Cause.ERROR
    return Cause.SAFETY if failure_code == "halted" else Cause.ERROR
