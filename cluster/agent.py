"""The node agent's decisions: what to open, grant, start, throttle and close on its node.

A plain class without Ray, clock, thread or file. It holds no authority of its own: it asks the orchestrator (`report`), applies
the answer (`on_reply`), and hands deadlines to the guardian that count from its own question. What it cannot renew ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from actors.clock import SECOND_NS
from actors.messages import Allocation, Capacity, Event, Halt, HostSnapshot, Shortfall
from actors.simulator import record_of

from . import agent_state
from .agent_records import OperationHere, RunHere
from .agent_state import Effect, Stage
from .exchange import Goal, OperationReport, Order, Reply, Report, RunReport
from .exchange import Stage as RunStage
from .load_end import TELL_S, Silence
from .safety.policies import THROTTLES, Level, Verdict, next_ceiling

STUCK_ASK_NS = 2 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Do:
    """An effect for the shell: what, on which operation of which run, with which data."""

    what: str  # open_slot, prepare, write_start, close_slot, exchange, grant, throttle, record_by, seal, forget, halt
    run: str = ""
    operation: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class Agent:
    """Decides for one node. `effects` and `events` are drained by the shell after every call."""

    def __init__(self, node: str, cluster: str, machine: str, incarnation: int, epoch: int, capacity: Capacity) -> None:
        self.node = node
        self.cluster = cluster
        self.machine = machine
        self.incarnation = incarnation
        self.epoch = epoch
        self.capacity = capacity
        self.runs: dict[str, RunHere] = {}
        self.effects: list[Do] = []
        self.events: list[Event] = []
        self.verdict = Verdict(Level.OK, "")
        self.ceilings = dict.fromkeys(THROTTLES, 1.0)
        self.halt = self.halt_kept = Halt()  # the guardian's, never what was only heard of
        self.deposed = ""
        self.host: dict[str, float] = {}
        self._nonce = 0
        self._offsets: list[tuple[int, int]] = []  # (round trip, our clock minus the orchestrator's), newest last

    # ---- the exchange

    def report(self, now_ns: int) -> Report:
        """Return the next question; its `t0_ns` is what leases will count from."""
        self._nonce += 1
        return Report(
            node=self.node,
            machine=self.machine,
            cluster=self.cluster,
            incarnation=self.incarnation,
            epoch=self.epoch,
            nonce=self._nonce,
            t0_ns=now_ns,
            runs=tuple(self._run_report(run) for run in self.runs.values()),
            verdict_level=int(self.verdict.level),
            verdict_reason=self.verdict.reason,
            ceiling=min(self.ceilings.values()),
            halt=self.halt,
            halt_kept=self.halt_kept,
            host=self.host,
            capacity=self.capacity,
        )

    def _run_report(self, run: RunHere) -> RunReport:
        gone = [op.gone_ns for op in run.operations.values() if op.gone_ns]
        released = [op.released_ns for op in run.operations.values() if op.released_ns]
        unclean = [words for op in run.operations.values() for words in _unclean(op)]
        return RunReport(
            run=run.run,
            stage=run.stage(),
            operations=tuple(
                OperationReport(
                    op.operation.id,
                    str(op.stage),
                    op.reason,
                    self._theirs(op.first_slice_ns),
                    op.outcomes,
                    op.operation.unit,
                    op.requested,
                    op.achieved,
                    op.shortfall,
                    op.health(),
                    op.allocation,
                )
                for op in run.operations.values()
            ),
            failure=run.failure,
            failure_code=run.failure_code,
            last_gone_ns=self._theirs(max(gone)) if gone else 0,
            last_released_ns=self._theirs(max(released)) if released else 0,
            unclean=tuple(unclean),
            recording=run.recording,
        )

    def on_reply(self, reply: Reply, t0_ns: int, now_ns: int) -> None:
        """Apply an answer to the question asked at `t0_ns`. A late or foreign one renews nothing."""
        if reply.nonce != self._nonce or reply.epoch < self.epoch:
            return
        if reply.refused:
            self.deposed = reply.refused
            self._do("exchange_refused", data={"reason": reply.refused})
            return
        self.epoch = reply.epoch
        self._note_offset(now_ns - t0_ns, (t0_ns + now_ns) // 2 - reply.received_ns)
        if reply.halt > self.halt:  # told with every answer until the guardian has it
            self._do("halt", data={"generation": reply.halt.generation, "on": reply.halt.on})
        leases: list[list[int]] = []
        for order in reply.orders:
            leases += self._on_order(order, t0_ns)
        if leases:
            self._do("grant", data={"leases": leases, "epoch": self.epoch})

    def _on_order(self, order: Order, t0_ns: int) -> list[list[int]]:
        run = self.runs.get(order.run)
        if run is None:
            run = self._new_run(order)
        if run is None:
            return []
        if order.goal in {Goal.STOP, Goal.SEAL, Goal.FORGET}:
            self._finish(run, order)
            return []
        if run.foreign or run.goal in {Goal.STOP, Goal.SEAL} or run.failure:
            return []
        run.goal = order.goal
        self._record_by(run, order)
        if order.goal is Goal.START and not run.start_at_ns:
            run.start_at_ns = self._ours(order.start_at_ns)
            for op in run.operations.values():
                self._step(run, op, agent_state.Event.START)
        if not order.lease_s:
            return []
        deadline_ns = t0_ns + round(order.lease_s * SECOND_NS)
        return [[op.slot, op.generation, deadline_ns] for op in run.operations.values() if self._leased(op)]

    def _record_by(self, run: RunHere, order: Order) -> None:
        """Take over a recording policy that was changed while the run goes on, and say so at once."""
        recording = str(order.terms.get("recording", run.recording))
        if recording != run.recording:
            run.recording = recording
            self._do("record_by", run.run, data={"recording": recording})
            self._do("exchange")

    @staticmethod
    def _leased(op: OperationHere) -> bool:
        return op.slot >= 0 and op.stage in {Stage.PREPARING, Stage.READY, Stage.ARMED, Stage.RUNNING}

    def _new_run(self, order: Order) -> RunHere | None:
        if order.goal is not Goal.PREPARE or not order.operations:
            if order.goal in {Goal.SEAL, Goal.STOP}:
                # The orchestrator counts on this node, but an earlier agent had the run: only its metrics may be left to deliver.
                self.runs[order.run] = RunHere(order.run, {}, order.goal, foreign=True)
                return self.runs[order.run]
            return None
        here = {op.id: OperationHere(op) for op in order.operations}
        run = RunHere(order.run, here, Goal.PREPARE, order.capacity, order.machine_limits, str(order.terms.get("recording", "")))
        self.runs[order.run] = run
        self._do("run_begins", order.run, data={"terms": order.terms})
        for op in here.values():
            self._step(run, op, agent_state.Event.OPEN)
        return run

    def _finish(self, run: RunHere, order: Order) -> None:
        if order.goal is Goal.FORGET:
            self.runs.pop(run.run, None)
            self._do("forget", run.run)
            return
        if run.goal not in {Goal.STOP, Goal.SEAL} or order.kill:
            self.close_run(run, order.grace_s, kill=order.kill)
        run.goal = Goal.STOP if order.goal is Goal.STOP else run.goal
        if order.goal is Goal.SEAL and not run.sealing and run.stage() is RunStage.CLEAN:
            run.goal, run.sealing = Goal.SEAL, True
            self._do("seal", run.run)

    def close_run(self, run: RunHere, grace_s: float, *, kill: bool = False) -> None:
        """Close every operation of a run; what is being opened is closed as soon as its slot is known."""
        for op in run.operations.values():
            if op.stage is Stage.OPENING:
                op.close_early = True
            elif op.stage is Stage.CLOSING and kill:
                self._perform(run, op, Effect.CLOSE_SLOT, 0.0)
            else:
                self._close(run, op, 0.0 if kill else grace_s)

    # ---- what the shell tells

    def on_opened(self, run_id: str, op_id: str, slot: int, generation: int) -> None:
        """Take the guardian's slot for an operation."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None:
            return
        op.slot, op.generation = slot, generation
        self._step(run, op, agent_state.Event.OPENED)
        if op.close_early or run.failure:
            self._close(run, op, 0.0)

    def on_refused(self, run_id: str, op_id: str, code: str, message: str) -> None:
        """Take the guardian's refusal of a slot: the node cannot take part."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None:
            return
        op.reason = message
        self._step(run, op, agent_state.Event.REFUSED)
        self._fail(run, code, message)

    def on_prepared(self, run_id: str, op_id: str) -> None:
        """Note that an operation's load is compiled, registered and waits at its gate."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None:
            return
        self._step(run, op, agent_state.Event.PREPARED)
        if run.goal is Goal.START and run.start_at_ns:
            self._step(run, op, agent_state.Event.START)

    def on_first_slice(self, run_id: str, op_id: str, at_ns: int) -> None:
        """Note when an operation's load began, in this node's clock."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None or op.first_slice_ns:
            return
        op.first_slice_ns = at_ns
        self._step(run, op, agent_state.Event.FIRST_SLICE)

    def on_shortfall(self, run_id: str, op_id: str, shortfall: Shortfall | None) -> None:
        """Take what an operation's load could not get, None when it has all; the first time it is an event."""
        _, op = self._find(run_id, op_id)
        if op is None or op.shortfall == shortfall:
            return
        if shortfall is not None and op.shortfall is None:
            data = {"run": run_id, "operation": op_id, **asdict(shortfall)}
            self._event(
                "partial", f"{op_id}: {shortfall.allocated:,} of {shortfall.requested:,} were allocated, {shortfall.errno}", "warning", data
            )
        op.shortfall = shortfall

    def on_silence(self, run_id: str, op_id: str, found: Silence) -> None:
        """Take for how long an operation's load or simulator has been silent: told once that is long, and when it is over."""
        _, op = self._find(run_id, op_id)
        if op is None or op.silent == (found.seconds > TELL_S):
            return
        op.silent, data = not op.silent, {"run": run_id, "operation": op_id}
        if op.silent:
            self._event("silent", f"{op_id}: {found.who} has given no sign of life for {found.seconds:.1f} s", "warning", data)
        else:
            self._event("heard_again", f"{op_id} gives signs of life again", "info", data)
        self._do("exchange")

    def on_load_ended(self, run_id: str, op_id: str, *, planned: bool, reason: str, code: str = "internal") -> None:
        """Take the end of an operation's load: as planned, or a failure that ends this node's part.

        `code` "expired" says that its lease ended or its owner died: the node was lost to the run, whatever the run does about it.
        """
        run, op = self._find(run_id, op_id)
        if run is None or op is None or op.stage in {Stage.CLOSING, Stage.CLEAN}:
            return
        op.finished, op.reason = planned, reason
        self._close(run, op, 0.0)
        if not planned and code != "expired" and run.goal is Goal.START and op.operation.on_failure == "continue":
            self._event("part_failed", f"{op_id} has failed, the rest goes on: {reason}", "warning", {"run": run_id, "operation": op_id})
        elif not planned and run.goal in {Goal.PREPARE, Goal.START}:
            self._fail(run, code, f"{op_id}: {reason}")

    def on_stuck(self, run_id: str, op_id: str, outcomes: Iterable[Mapping[str, Any]], now_ns: int) -> None:
        """Take the guardian's word that something of a slot is not gone: the operation stays open, unclean, and is asked for again."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None or op.stage is not Stage.CLOSING:
            return
        first = not any(outcome["outcome"] == "stuck" for outcome in op.outcomes)
        op.outcomes, op.ask_again_ns = tuple(dict(outcome) for outcome in outcomes), now_ns + STUCK_ASK_NS
        if first:
            words = "; ".join(_unclean(op))
            self._event("stuck", f"{op_id} is killed and not gone: {words}", "error", {"run": run_id})
            self._do("exchange")

    def ask_again(self, now_ns: int) -> None:
        """Ask the guardian again for what was stuck, at a slow pace."""
        for run, op in self.live_slots():
            if 0 < op.ask_again_ns <= now_ns:
                op.ask_again_ns = 0
                self._perform(run, op, Effect.CLOSE_SLOT, 0.0)

    def on_closed(
        self,
        run_id: str,
        op_id: str,
        gone_ns: int,
        outcomes: Iterable[Mapping[str, Any]],
        released_ns: int = 0,
        allocation: Allocation | None = None,
    ) -> None:
        """Take the guardian's word that a slot is empty and how each of its records ended, and what its load had held."""
        run, op = self._find(run_id, op_id)
        if run is None or op is None:
            return
        op.gone_ns, op.released_ns, op.outcomes = gone_ns, released_ns, tuple(dict(outcome) for outcome in outcomes)
        op.allocation = allocation
        self._step(run, op, agent_state.Event.CLOSED)

    def on_seal_failed(self, run_id: str) -> None:
        """Note that the stream's end could not be written: the next order to seal tries again."""
        run = self.runs.get(run_id)
        if run is not None:
            run.sealing = False

    def on_delivered(self, run_id: str) -> None:
        """Note that the aggregator has acknowledged all of a run's stream."""
        run = self.runs.get(run_id)
        if run is not None and not run.delivered:
            run.delivered = True
            self._do("exchange")

    def on_halt(self, halt: Halt, kept: Halt) -> None:
        """Take what the guardian shows, also of a halt that was given on the node: runs here end by it, the orchestrator is told now."""
        if (halt, kept) == (self.halt, self.halt_kept):
            return
        self.halt, self.halt_kept = halt, kept
        self._do("exchange")
        if not halt.on:
            return
        for run in self.runs.values():
            if not run.failure and run.goal in {Goal.PREPARE, Goal.START}:
                self._fail(run, "halted", f"emergency halt (generation {halt.generation})", kill=True)

    def adopt(self, run_id: str) -> None:
        """Take over what an earlier agent of this node left of a run: the guardian ends it, its outbox is delivered."""
        self.runs.setdefault(run_id, RunHere(run_id, {}, Goal.STOP, foreign=True, unswept=True))

    def on_swept(self, run_id: str) -> None:
        """Note that the guardian holds nothing more of an adopted run."""
        run = self.runs.get(run_id)
        if run is not None and run.unswept:
            run.unswept = False
            self._do("exchange")

    def on_snapshot(self, snapshot: HostSnapshot, verdict: Verdict, by_resource: Mapping[str, Verdict]) -> None:
        """Apply the safety verdicts on a host snapshot: move the ceilings by resource, or end everything here on ABORT."""
        self.host = {
            "cpu": snapshot.cpu_busy_fraction,
            "memory_available_bytes": float(snapshot.memory_available_bytes),
            "memory_limit_bytes": float(snapshot.memory_limit_bytes),
            "disk_free_bytes": float(snapshot.disk_free_bytes),
        }
        self._throttle(verdict, by_resource)
        self._take_verdict(verdict)

    def on_stale(self, reason: str) -> None:
        """End what loads here: nothing is known of the host any more. The next good snapshot takes the verdict back."""
        if self.loading():
            self._take_verdict(Verdict(Level.ABORT, reason))

    def _throttle(self, verdict: Verdict, by_resource: Mapping[str, Verdict]) -> None:
        ceilings = dict.fromkeys(self.ceilings, 1.0)
        if self.loading():  # before that there is no load to lower: what compiles or starts is not what the ceiling is for
            ceilings = {resource: next_ceiling(ceiling, by_resource.get(resource, verdict)) for resource, ceiling in self.ceilings.items()}
        changed = {resource for resource, ceiling in ceilings.items() if ceiling != self.ceilings[resource]}
        self.ceilings = ceilings
        slots = [[op.slot, op.generation, self._ceiling(op)] for op in self._all_leased() if resource_of(op) in changed]
        if slots:
            self._do("throttle", data={"ceilings": slots})

    def _take_verdict(self, verdict: Verdict) -> None:
        before, self.verdict = self.verdict, verdict
        if verdict.level != before.level and self.runs:
            severity = {Level.OK: "info", Level.HOLD: "info", Level.SHED: "warning", Level.ABORT: "error"}[verdict.level]
            data = {"level": verdict.level.name, "ceilings": dict(self.ceilings)}
            self._event("safety", verdict.reason or "back within limits", severity, data)
        if verdict.level is Level.ABORT:
            for run in self.runs.values():
                if not run.failure and run.goal in {Goal.PREPARE, Goal.START}:
                    self._fail(run, "safety_abort", verdict.reason, kill=True)

    def loading(self) -> bool:
        """Tell whether some operation here has its start time: its load runs or is about to."""
        return any(op.stage in {Stage.ARMED, Stage.RUNNING} for run in self.runs.values() for op in run.operations.values())

    def _all_leased(self) -> list[OperationHere]:
        return [op for run in self.runs.values() for op in run.operations.values() if self._leased(op)]

    def _ceiling(self, op: OperationHere) -> float:
        return self.ceilings[resource_of(op)]

    def live_slots(self) -> list[tuple[RunHere, OperationHere]]:
        """Return the operations that hold a slot now."""
        return [(run, op) for run in self.runs.values() for op in run.operations.values() if op.slot >= 0 and op.stage is not Stage.CLEAN]

    def idle(self) -> bool:
        """Tell whether the agent has nothing to do for any run."""
        return not self.runs

    def drain(self) -> tuple[list[Do], list[Event]]:
        """Hand effects and events over to the shell."""
        effects, events = self.effects, self.events
        self.effects, self.events = [], []
        return effects, events

    # ---- inside

    def _fail(self, run: RunHere, code: str, reason: str, *, kill: bool = False) -> None:
        if not run.failure:
            run.failure, run.failure_code = reason, code
            self._event("node_failed", reason, "error", {"run": run.run, "code": code})
        self.close_run(run, 0.0, kill=kill)
        self._do("exchange")

    def _close(self, run: RunHere, op: OperationHere, grace_s: float) -> None:
        self._step(run, op, agent_state.Event.CLOSE, grace_s)

    def _step(self, run: RunHere, op: OperationHere, event: agent_state.Event, grace_s: float = 0.0) -> None:
        op.stage, effects = agent_state.step(op.stage, event)
        for effect in effects:
            self._perform(run, op, effect, grace_s)

    def _perform(self, run: RunHere, op: OperationHere, effect: Effect, grace_s: float) -> None:
        ticket = {"slot": op.slot, "generation": op.generation}
        name = op.operation.id
        if effect is Effect.OPEN_SLOT:
            self._do(
                "open_slot", run.run, name, {"operation": op.operation, "capacity": run.capacity, "machine_limits": run.machine_limits}
            )
        elif effect is Effect.PREPARE:
            self._do(
                "prepare", run.run, name, {"operation": op.operation, "capacity": run.capacity, "ceiling": self._ceiling(op), **ticket}
            )
        elif effect is Effect.WRITE_START:
            at_ns = run.start_at_ns + round(op.operation.start_s * SECOND_NS)
            self._do("write_start", run.run, name, {"start_ns": at_ns, **ticket})
        elif effect is Effect.CLOSE_SLOT:
            self._do("close_slot", run.run, name, {"grace_s": grace_s, "finished": op.finished, **ticket})
        else:
            self._do("exchange")

    def _find(self, run_id: str, op_id: str) -> tuple[RunHere | None, OperationHere | None]:
        run = self.runs.get(run_id)
        return (run, run.operations.get(op_id)) if run else (None, None)

    def _note_offset(self, round_trip_ns: int, offset_ns: int) -> None:
        self._offsets = [*self._offsets[-7:], (round_trip_ns, offset_ns)]

    def offset_ns(self) -> int:
        """Return our clock minus the orchestrator's, from the quickest of the last exchanges (error: half its round trip)."""
        return min(self._offsets)[1] if self._offsets else 0

    def _theirs(self, ours_ns: int) -> int:
        return ours_ns - self.offset_ns() if ours_ns else 0

    def _ours(self, theirs_ns: int) -> int:
        return theirs_ns + self.offset_ns()

    def _do(self, what: str, run: str = "", operation: str = "", data: Mapping[str, Any] | None = None) -> None:
        effect = Do(what, run, operation, data or {})
        if what == "exchange" and effect in self.effects:
            return
        self.effects.append(effect)

    def _event(self, kind: str, message: str, severity: str, data: Mapping[str, Any]) -> None:
        self.events.append(replace(Event(kind, message, severity), node=self.node, data=data))


def _unclean(op: OperationHere) -> list[str]:
    return [
        f"{outcome['kind']} {outcome['outcome']}: {outcome.get('detail', '')}"
        for outcome in op.outcomes
        if outcome["outcome"] not in {"undone", "expired"}
    ]


def resource_of(op: OperationHere) -> str:
    """Return what of the node's capacity an operation takes."""
    return record_of(op.operation.kind).resource
