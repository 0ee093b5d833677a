"""The node agent's process on virtual time: the real core, and a shell that performs its effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from actors.guardian.fields import PROTOCOL
from actors.messages import Amounts, Capacity, HostSnapshot, Operation
from actors.simulator import peak_amounts
from cluster.agent import Agent, Do
from cluster.agent_shell import release_s
from cluster.exchange import Reply
from cluster.safety.policies import OK, judge, judge_resources
from cluster.safety.profiles import limits_for

from .effects import Box
from .load import DONE, EXPIRED, FAILED, RUNNING, Fill, Load, make
from .machine import Link
from .timeline import MS, SECOND, Process

if TYPE_CHECKING:
    from .world import Node, World

GIB = 1 << 30
LIMITS = limits_for("balanced")
STALE_NS = 2 * SECOND
PUSH_NS = 5 * SECOND
SILENT_NS = 2 * SECOND


class AgentHost(Process):
    """One agent's life. Its incarnation is the machine's boot time at its start, as in the real shell."""

    def __init__(self, world: World, node: Node, epoch: int) -> None:
        super().__init__(world.timeline)
        self.world, self.node, self.machine = world, node, node.machine
        self.incarnation = self.machine.clock.now()
        self.pid, self.started_ns = 0, 0
        self.machine.begin(self)
        fence = {"cluster": "c", "node": node.name, "epoch": epoch, "incarnation": self.incarnation}
        self.link = Link(
            self.machine, self, {"op": "hello", "role": "agent", "protocol": PROTOCOL, "pid": self.pid, "watch": [self.pid], **fence}
        )
        self.core: Agent | None = None
        self._epoch = epoch
        self._question: tuple[int, int] | None = None  # nonce, when it was asked (true time)
        self._poked = False
        self._snapshot_ns = self.machine.clock.now()
        self._looking = False
        self._sealed: set[str] = set()
        self._pushing: dict[tuple[str, str, int], int] = {}
        self.loads: dict[tuple[str, str], Load] = {}
        self._turns = 0
        self.link.hello(self._greeted)

    def kill(self) -> None:
        """Its process dies; what it owned dies with it sooner or later."""
        if not self.alive:
            return
        self.alive = False
        if self.node.agent is self:
            self.node.dead_since_ns = self.timeline.now_ns
        self.machine.exited(self)
        if self.machine.guardian is not None:
            self.machine.guardian.take(self.machine.guardian.peer_gone, self.link.peer)
        if self.world.chance.random() < 0.5:
            for load in self.loads.values():
                self.timeline.after(self.world.chance.randrange(SECOND), load.take, load.kill)

    def say_hello(self) -> None:
        """Answer a hello of the orchestrator, which looks after the guardian as well."""
        if self.core is not None:
            self.link.call("status", _nothing)

    # ---- its start

    def _greeted(self, answer: dict[str, Any]) -> None:
        if not answer["ok"]:
            self.kill()
            return
        self.core = Agent(self.node.name, "c", answer["guardian_id"], self.incarnation, self._epoch, self.node.capacity)
        self._look_at_halt()
        self.link.call("status", self._adopt)

    def _look_at_halt(self) -> None:
        assert self.core is not None
        self.core.on_halt(self.machine.page.halt, self.machine.page.halt_kept)
        self.world.fired["halted_on_node"] += any(run.failure_code == "halted" for run in self.core.runs.values())

    def _adopt(self, answer: dict[str, Any]) -> None:
        assert self.core is not None
        if not answer["ok"]:
            self.kill()
            return
        left = {slot["run"] for slot in answer["slots"] if slot["node"] == self.node.name}
        boxes = {run for (run, node, _), box in self.machine.boxes.items() if node == self.node.name and not box.drained}
        for run in sorted(left | boxes):
            self.core.adopt(run)
            self.world.fired["adopted"] += 1
            if run in left:
                self._await_sweep(run)
            else:
                self.core.on_swept(run)
        self.turn()

    def _await_sweep(self, run: str) -> None:
        def look(answer: dict[str, Any]) -> None:
            assert self.core is not None
            if not answer["ok"] or any(slot["run"] == run and slot["node"] == self.node.name for slot in answer["slots"]):
                self.after(250 * MS, self._await_sweep, run)
                return
            self.core.on_swept(run)
            self._perform()

        self.link.call("status", look)

    # ---- its turns

    def turn(self) -> None:
        """One renewal's turn: snapshot, metrics, question."""
        self._turns += 1
        if self._turns % self.world.turns_per_sample == 0:
            if not self.node.blind:
                self._sample()
            self._look_around()
            self._record()
            if self._turns % (2 * self.world.turns_per_sample) == 0:
                self._deliver()
        self.ask()
        self.timeline.after(self.world.renew_ns, self.take, self.turn)

    def _sample(self) -> None:
        core = self.core
        assert core is not None
        now_ns = self.machine.clock.now()
        self._judge_age()
        self._snapshot_ns = now_ns
        snapshot, verdict, by_resource = self.node.quiet, OK, {}
        if self.node.pressure is not None:
            snapshot = replace(self.node.pressure, boot_ns=now_ns)
            verdict = judge(snapshot, LIMITS, now_ns, now_ns - 60 * SECOND)
            by_resource = judge_resources(snapshot, LIMITS, now_ns, now_ns - 60 * SECOND)
            self.world.fired[f"verdict_{verdict.level.name}"] += 1
        core.on_snapshot(snapshot, verdict, by_resource)

    def _look_around(self) -> None:
        core = self.core
        assert core is not None
        if self.machine.guardian is None and self.timeline.now_ns - self.machine.silent_since_ns > SILENT_NS:
            self.say_hello()
        self._look_at_halt()
        core.ask_again(self.machine.clock.now())
        if self.loads:
            self._look()
        self._perform()
        if core.deposed and not core.live_slots():
            self.world.fired["deposed_agent_left"] += 1
            self.kill()

    @property
    def _age_ns(self) -> int:
        return self.machine.clock.now() - self._snapshot_ns

    def _judge_age(self) -> None:
        """Look at the last snapshot's age, as the real shell does before each question and behind each answer."""
        assert self.core is not None
        if self._age_ns > STALE_NS:
            self.world.fired["stale_snapshot"] += self.core.loading()
            self.core.on_stale(f"no host snapshot for {self._age_ns / SECOND:.1f} s")

    def ask(self) -> None:
        """Put a question, unless one is on its way."""
        assert self.core is not None
        self._judge_age()
        now_ns = self.timeline.now_ns
        if self._question is not None and now_ns - self._question[1] < self.world.answer_ns:
            self._poked = True
            return
        self._poked = False
        t0_ns = self.machine.clock.now()
        self._look_at_halt()
        report = self.core.report(t0_ns)
        if self._question is not None:
            self.world.fired["question_lost"] += 1
        self._question = (report.nonce, now_ns)
        self.world.head.ask(self, report)

    def answer(self, reply: Reply, t0_ns: int) -> None:
        """Take the orchestrator's answer, however late."""
        assert self.core is not None
        if self._question is not None and reply.nonce == self._question[0]:
            self._question = None
        before = self.core.epoch
        self._judge_age()
        self.core.on_reply(reply, t0_ns, self.machine.clock.now())
        if self.core.epoch < before:
            self.world.watch.fail(5, f"{self.node.name}: epoch fell from {before} to {self.core.epoch}")
        self._judge_age()
        self._perform()
        if self._poked:
            self.ask()

    # ---- looking at loads

    def look_soon(self) -> None:
        """A load changed: the next look, at most a tenth of a second away, sees it."""
        if not self._looking:
            self._looking = True
            self.after(self.world.chance.randrange(100 * MS), self._look_now)

    def _look_now(self) -> None:
        self._looking = False
        if self.core is not None:
            self._look()
            self._perform()

    def _look(self) -> None:
        core = self.core
        assert core is not None
        self._look_at_halt()
        for run, op in core.live_slots():
            load = self.loads.get((run.run, op.operation.id))
            if load is None:
                continue
            if load.first_ns and op.stage in {"armed", "running"}:
                core.on_first_slice(run.run, op.operation.id, load.first_ns)
            if load.phase in {DONE, FAILED, EXPIRED} and op.stage in {"preparing", "ready", "armed", "running"}:
                code = "expired" if load.phase == EXPIRED else "internal"
                core.on_load_ended(run.run, op.operation.id, planned=load.phase == DONE, reason=load.reason or load.phase, code=code)

    # ---- effects

    def _perform(self) -> None:
        core = self.core
        assert core is not None
        while core.effects or core.events:
            effects, _ = core.drain()
            for effect in effects:
                EFFECTS[effect.what](self, effect)

    def _fence(self) -> dict[str, Any]:
        assert self.core is not None
        return {"cluster": "c", "node": self.node.name, "epoch": self.core.epoch, "incarnation": self.incarnation}

    def _grant(self, effect: Do) -> None:
        slots = {lease[0] for lease in effect.data["leases"]}
        if self._age_ns > STALE_NS and any(load.slot in slots and load.phase == RUNNING for load in self.loads.values()):
            self.world.watch.blind_grant(self, self._age_ns)
        self.link.call("grant", _nothing, leases=effect.data["leases"], **self._fence())

    def _throttle(self, effect: Do) -> None:
        self.world.fired["throttled"] += 1
        self.link.call("throttle", _nothing, ceilings=effect.data["ceilings"])

    def _write_start(self, effect: Do) -> None:
        data = effect.data
        self.link.call("start", _nothing, slot=data["slot"], generation=data["generation"], start_ns=data["start_ns"])

    def _halt(self, effect: Do) -> None:
        self.link.call("grant", _nothing, leases=[], halt=dict(effect.data), **self._fence())

    def _exchange(self, _: Do) -> None:
        self.ask()

    def _run_begins(self, effect: Do) -> None:
        self.machine.boxes[effect.run, self.node.name, self.incarnation] = Box()

    def _open_slot(self, effect: Do) -> None:
        operation: Operation = effect.data["operation"]
        capacity: Capacity = effect.data["capacity"] or self.node.capacity
        limits: Amounts = effect.data["machine_limits"]
        amounts = peak_amounts(operation, capacity)

        def opened(answer: dict[str, Any]) -> None:
            assert self.core is not None
            if answer["ok"]:
                self.core.on_opened(effect.run, operation.id, answer["slot"], answer["generation"])
            else:
                self.world.fired[f"slot_refused_{answer['code']}"] += 1
                self.core.on_refused(effect.run, operation.id, answer["code"], answer["message"])
            self._perform()

        request = {"run": effect.run, "operation": operation.id, "amounts": asdict(amounts), "machine_limits": asdict(limits)}
        self.link.call("open_slot", opened, **request, release_s=release_s(amounts), sharers=capacity.sharers, **self._fence())

    def _prepare(self, effect: Do) -> None:
        operation: Operation = effect.data["operation"]
        amounts = peak_amounts(operation, effect.data["capacity"] or self.node.capacity)
        slot, generation = effect.data["slot"], effect.data["generation"]
        load = make(self, effect.run, operation, slot, generation, amounts, round(release_s(amounts) * SECOND))
        self.loads[effect.run, operation.id] = load
        self.after(self.world.chance.randrange(20 * MS, 400 * MS), self._register, load)

    def _register(self, load: Load) -> None:
        ticket = {"slot": load.slot, "generation": load.generation}
        if not load.alive or load.dying:
            return
        if isinstance(load, Fill):
            fields = {"path": "/fill", "token": "t"}
            self.link.call("arm", lambda answer: self._registered(load, answer), **ticket, kind="disk_fill", fields=fields)
        else:
            self.machine.begin(load)
            self.link.call("register", lambda answer: self._registered(load, answer), **ticket, pid=load.pid)

    def _registered(self, load: Load, answer: dict[str, Any]) -> None:
        assert self.core is not None
        if not answer["ok"]:
            load.phase, load.reason = FAILED, answer["message"]
            load.kill()
            self.core.on_load_ended(load.run_id, load.operation.id, planned=False, reason=answer["message"])
            self._perform()
            return
        if isinstance(load, Fill):
            load.record = answer["record"]
        self.after(self.world.chance.randrange(10 * MS, 300 * MS), self._ready, load)

    def _ready(self, load: Load) -> None:
        assert self.core is not None
        if load.dying or not load.alive:
            return
        load.ready = True
        load.poked()
        self.core.on_prepared(load.run_id, load.operation.id)
        self._perform()

    def _close_slot(self, effect: Do) -> None:
        data = effect.data

        def closed(answer: dict[str, Any]) -> None:
            assert self.core is not None
            if not answer["ok"]:
                self.world.fired[f"close_refused_{answer['code']}"] += 1
                if answer["code"] != "stale_slot":
                    self.after(200 * MS, self._close_slot, effect)
                    return
                answer = {"gone": True, "outcomes": [], "stopped_ns": 0, "released_ns": self.machine.clock.now()}
            if not answer["gone"]:
                self.world.fired["stuck"] += 1
                self.core.on_stuck(effect.run, effect.operation, answer["outcomes"], self.machine.clock.now())
                return
            self._closed(effect, answer)

        self.link.call("close_slot", closed, slot=data["slot"], generation=data["generation"], grace_s=data["grace_s"])

    def _closed(self, effect: Do, answer: Mapping[str, Any]) -> None:
        assert self.core is not None
        load = self.loads.pop((effect.run, effect.operation), None)
        if load is not None:
            load.kill()
        gone_ns, released_ns = answer["stopped_ns"] or answer["released_ns"], answer["released_ns"]
        self.core.on_closed(effect.run, effect.operation, gone_ns, answer["outcomes"], released_ns)
        self._perform()

    # ---- metrics

    def _seal(self, effect: Do) -> None:
        self._sealed.add(effect.run)
        for (run, node, _), box in self.machine.boxes.items():
            if run == effect.run and node == self.node.name and not box.ended:
                box.ended = True
                box.counts.append(0)
        self._deliver()

    def _forget(self, effect: Do) -> None:
        self._sealed.discard(effect.run)

    def _record(self) -> None:
        assert self.core is not None
        for run in self.core.runs:
            box = self.machine.boxes.get((run, self.node.name, self.incarnation))
            if box is not None and not box.ended:
                box.counts.append(self.world.chance.randrange(1, 10))

    def _deliver(self) -> None:
        assert self.core is not None
        for run in list(self.core.runs):
            sealed = run in self._sealed
            open_boxes = 0
            for key, box in self._boxes_of(run):
                mine = key[2] == self.incarnation
                if box.acked < len(box.counts) and (mine or sealed):
                    self._push(key, box)
                open_boxes += not box.drained
            if sealed and not open_boxes:
                self.core.on_delivered(run)
        self._perform()

    def _boxes_of(self, run: str) -> list[tuple[tuple[str, str, int], Box]]:
        return [(key, box) for key, box in self.machine.boxes.items() if key[0] == run and key[1] == self.node.name]

    def _push(self, key: tuple[str, str, int], box: Box) -> None:
        now_ns = self.timeline.now_ns
        if now_ns - self._pushing.get(key, -PUSH_NS) < PUSH_NS:
            return
        self._pushing[key] = now_ns
        last = len(box.counts)
        records = [(place + 1, box.counts[place], place + 1 == last and box.ended) for place in range(box.acked, last)]
        self.world.head.push(self, key, records)

    def pushed(self, key: tuple[str, str, int], held: int) -> None:
        """Take the aggregator's acknowledgement."""
        self._pushing.pop(key, None)
        box = self.machine.boxes[key]
        box.acked = max(box.acked, min(held, len(box.counts)))
        if key[0] in self._sealed:
            self._deliver()


def _nothing(_: dict[str, Any]) -> None:
    """The real shell does nothing with this answer either."""


def _json(amounts: Amounts) -> dict[str, float]:
    return asdict(amounts)


def quiet(name: str) -> HostSnapshot:
    """Return a healthy host."""
    return HostSnapshot(name, 0, 8.0, 0.2, 32 * GIB, 24 * GIB, 100 * GIB, 80 * GIB, 100, 100_000)


EFFECTS = {
    "open_slot": AgentHost._open_slot,
    "prepare": AgentHost._prepare,
    "write_start": AgentHost._write_start,
    "close_slot": AgentHost._close_slot,
    "exchange": AgentHost._exchange,
    "grant": AgentHost._grant,
    "throttle": AgentHost._throttle,
    "seal": AgentHost._seal,
    "forget": AgentHost._forget,
    "halt": AgentHost._halt,
    "run_begins": AgentHost._run_begins,
    "exchange_refused": lambda *_: None,
}
