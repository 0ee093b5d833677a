"""The guardian's process on virtual time: the real core, and a shell that performs its actions on a pretended machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.guardian.core import GuardianCore
from actors.guardian.fields import PROTOCOL
from actors.guardian.model import (
    NEVER_NS,
    Action,
    Applied,
    Apply,
    ContainerMade,
    CoreSettings,
    HaltSaved,
    Identified,
    Identify,
    JournalArm,
    JournalFree,
    Journalled,
    Kill,
    KillOwner,
    MakeContainer,
    Observe,
    Observed,
    PublishHalt,
    Reply,
    ResetSlot,
    Retire,
    SaveHalt,
    Undo,
    Unwatch,
    Verify,
    Watch,
    WriteCeilings,
    WriteGate,
    WriteLeases,
    WriteStart,
    WriteStop,
)
from actors.messages import Halt
from actors.proc import Identity
from actors.undo import Outcome

from .effects import File
from .timeline import MS, Process

if TYPE_CHECKING:
    from .machine import Answer, Link, Machine

FIRST = (PublishHalt, WriteStop, WriteLeases, Kill)
SETTINGS = CoreSettings()
PID_NS = 1


class GuardianHost(Process):
    """One serving life of a guardian."""

    def __init__(self, machine: Machine, serial: int) -> None:
        super().__init__(machine.timeline)
        self.machine, self.world, self.serial = machine, machine.world, serial
        self.core = GuardianCore(
            machine.guardian_id,
            life=f"{machine.boot_id}.{serial}",
            code_id="code",
            settings=SETTINGS,
            halt=machine.halt,
            machine=(machine.boot_id, PID_NS),
            generation_base=machine.chance.randrange(1 << 16),
        )
        self._held: dict[int, Identity] = {}  # pid -> whom the pidfd means
        self._waiting: dict[int, tuple[Link, dict[str, Any], Answer]] = {}
        self._requests = 0
        self._disk_free_ns = 0
        self._tick_ns = NEVER_NS
        self.fault = ""  # what the next arm fails with

    def adopt(self, leases: dict[int, tuple[int, int, int]]) -> None:
        """Take over what the journal and the page hold."""
        self.machine.page.halt, self.machine.page.halt_kept = self.core.halt, self.core.halt_kept
        self._perform(self.core.adopt(list(self.machine.journal.values()), leases, self._now()))
        self.core.stay(self._now())
        self._plan_tick()

    def die(self) -> None:
        """SIGKILL: answers are lost, and what was being written is durable or not."""
        self.alive = False
        waiting, self._waiting = self._waiting, {}
        for link, request, answer in waiting.values():
            self.timeline.after(0, self.machine.lost_answer, link, request, answer)
        for call, args in self._backlog:
            if call == self.serve:
                self.timeline.after(0, self.machine.lost_answer, *args)

    # ---- events

    def serve(self, link: Link, request: dict[str, Any], answer: Answer) -> None:
        """Take a request."""
        self._requests += 1
        request["id"] = self._requests
        self._waiting[self._requests] = (link, request, answer)
        op, now_ns = request["op"], self._now()
        if op == "hello" and request["role"] == "cli":
            request["protocol"] = PROTOCOL
        if op == "grant":
            self._writer = request
        self._perform(self.core.handle(request, link.peer, now_ns))
        self._plan_tick()

    def process_died(self, process: Any) -> None:
        """A pidfd is readable."""
        identity = self._held.pop(process.pid, None)
        if identity is not None:
            self._perform(self.core.died(identity, self._now()))
            self._plan_tick()

    def peer_gone(self, peer: str) -> None:
        """A connection ended."""
        self._perform(self.core.gone(peer, self._now()))
        self._plan_tick()

    def _tick(self, due_ns: int) -> None:
        if due_ns == self._tick_ns:
            self._tick_ns = NEVER_NS
            self._perform(self.core.tick(self._now()))
            self._plan_tick()

    def _plan_tick(self) -> None:
        due_ns = self.core.next_due_ns
        if due_ns < self._tick_ns and self.alive:
            self._tick_ns = due_ns
            self.timeline.at(self.machine.clock.when(due_ns), self.take, self._tick, due_ns)

    def _now(self) -> int:
        return self.machine.clock.now()

    # ---- actions

    def _perform(self, actions: list[Action]) -> None:
        """Do what is ordered, kills and what forbids load before the rest, as the real shell does."""
        if len(actions) == 1 and type(actions[0]) is Reply:
            self._answer(actions[0])
            return
        todo = deque(actions)
        while todo and self.alive:
            ordered = [action for action in todo if isinstance(action, FIRST)]
            ordered += [action for action in todo if not isinstance(action, FIRST)]
            todo.clear()
            for action in ordered:
                result = PERFORM[type(action)](self, action)
                if result is not None:
                    todo.extend(self.core.done(result, self._now()))

    def _answer(self, action: Reply) -> None:
        found = self._waiting.pop(action.body.get("id", -1), None)
        if found is None:
            return
        link, request, answer = found
        if request["op"] == "hello" and action.body["ok"] and request["role"] == "agent":
            self.world.watch.hello(self.machine, request["node"], request["epoch"], request["incarnation"])
        if link.owner.alive:
            link.owner.take(answer, action.body)

    def _write_leases(self, action: WriteLeases) -> None:
        page, watch = self.machine.page, self.world.watch
        for slot, generation, deadline_ns in action.items:
            node = ""
            if deadline_ns:
                node = self._writer["node"]
                watch.granted(self.machine, node, self._writer["epoch"], self._writer["incarnation"])
            watch.lease_written(self.machine, page, slot, generation, deadline_ns, node)
            before_ns = page.leases[slot][1]
            page.leases[slot] = (generation, deadline_ns)
            if deadline_ns:
                page.last[slot] = (generation, deadline_ns)
            if not (before_ns and deadline_ns) and slot in page.lookers:
                page.lookers[slot].poked()

    def _publish_halt(self, action: PublishHalt) -> None:
        self.machine.page.halt, self.machine.page.halt_kept = action.halt, action.kept
        for node in self.world.nodes.values():
            if node.machine is self.machine and node.agent is not None and node.agent.alive:
                node.agent.look_soon()

    def _write_stop(self, action: WriteStop) -> None:
        page = self.machine.page
        page.stops[action.slot] = (action.generation, action.code)
        if action.slot in page.lookers:
            page.lookers[action.slot].poked()

    def _write_start(self, action: WriteStart) -> None:
        page = self.machine.page
        page.starts[action.slot] = action.start_ns
        if action.slot in page.lookers:
            page.lookers[action.slot].poked()

    def _write_gate(self, action: WriteGate) -> None:
        journal = self.machine.journal.values()
        if not any(one.kind == "process" and (one.slot, one.generation) == (action.slot, action.generation) for one in journal):
            self.world.watch.fail(7, f"{self.machine.name}: a gate opens without a durable record")
        self.machine.page.gates[action.slot] = action.generation

    def _reset_slot(self, action: ResetSlot) -> None:
        page = self.machine.page
        looker = page.lookers.pop(action.slot, None)
        if looker is not None and looker.alive and looker.pid:
            self.world.watch.fail(3, f"{looker}: its slot is given away while it is there")
        page.leases[action.slot] = (action.generation, 0)
        page.stops[action.slot] = (action.generation, 0)
        page.gates[action.slot] = page.starts[action.slot] = 0

    def _identify(self, action: Identify) -> Identified:
        process = self.machine.processes.get(action.pid)
        if process is None:
            return Identified(action.token, None)
        identity = Identity(self.machine.boot_id, PID_NS, action.pid, process.started_ns)
        self._held[action.pid] = identity
        return Identified(action.token, identity)

    def _watch(self, action: Watch) -> None:
        identity = action.identity
        process = self.machine.processes.get(identity.pid)
        if process is not None and process.started_ns == identity.starttime and identity.boot_id == self.machine.boot_id:
            self._held[identity.pid] = identity
        else:
            self._perform(self.core.died(identity, self._now()))

    def _unwatch(self, action: Unwatch) -> None:
        if self._held.get(action.identity.pid) == action.identity:
            del self._held[action.identity.pid]

    def _observe(self, action: Observe) -> Observed:
        process = self.machine.processes.get(action.identity.pid)
        if process is None or process.started_ns != action.identity.starttime:
            return Observed(action.token, "")
        return Observed(action.token, "T" if process.stopped else "S")

    def _kill_owner(self, action: KillOwner) -> None:
        process = self.machine.processes.get(action.identity.pid)
        if process is not None and process.started_ns == action.identity.starttime:
            if not process.stopped:
                self.world.watch.fail(10, f"{self.machine.name}: an agent is killed that does not stand still")
            self.world.fired["stopped_agent_killed"] += 1
            process.kill()

    def _kill(self, action: Kill) -> Outcome:
        record = action.record
        self.machine.undoing.add(record.id)
        if record.kind != "process" or not self.machine.is_there(record):
            return Outcome(record.id, "undone")
        self.machine.processes[record.fields["pid"]].kill()
        return Outcome(record.id, "pending", "dying")

    def _verify(self, action: Verify) -> Outcome | None:
        if action.record.kind == "disk_fill":
            return self._disk(action)
        return Outcome(action.record.id, "pending" if self.machine.is_there(action.record) else "undone")

    def _container(self, action: MakeContainer) -> ContainerMade:
        return ContainerMade(action.record.id, "")

    def _retire(self, _: Retire) -> None:
        if self.core.idle and not self._waiting:
            self.machine.retire()

    # ---- the disk: one thread, in order, each a little later

    def _disk(self, action: Any) -> None:
        chance = self.machine.chance
        span_ns = chance.randrange(200_000, 4 * MS)
        if chance.random() < self.world.slow_disk:
            span_ns = chance.randrange(100 * MS, 800 * MS)
            self.world.fired["slow_disk"] += 1
        self._disk_free_ns = max(self.timeline.now_ns, self._disk_free_ns) + span_ns
        self.timeline.at(self._disk_free_ns, self.take, self._disk_done, action)
        if isinstance(action, JournalArm | SaveHalt) and chance.random() < 0.5:
            self.timeline.at(self._disk_free_ns, self._became_durable, action)

    def _became_durable(self, action: Any) -> None:
        """A write that was on its way when its guardian died reached the disk all the same."""
        if self.alive or self.machine.guardian is not None or self.fault:
            return
        if isinstance(action, SaveHalt):
            self.machine.halt = max(self.machine.halt, Halt(action.generation, action.on))
        else:
            self.machine.journal[action.record.id] = action.record
            self.world.fired["durable_after_death"] += 1

    def _disk_done(self, action: Any) -> None:
        result = DISK[type(action)](self, action)
        if result is not None:
            self._perform(self.core.done(result, self._now()))
        self._plan_tick()

    def _arm(self, action: JournalArm) -> Journalled:
        if self.fault:
            self.world.fired["journal_refuses"] += 1
            return Journalled(action.record.id, ("journal", self.fault))
        self.machine.journal[action.record.id] = action.record
        if action.record.slot >= 0 and self.core.halt.on and action.record.kind == "disk_fill":
            self.world.fired["armed_into_halt"] += 1
        return Journalled(action.record.id)

    def _free(self, action: JournalFree) -> None:
        self.world.watch.forgotten(self.machine, action.record)
        self.machine.journal.pop(action.record, None)
        self.machine.foreign.discard(action.record)

    def _save_halt(self, action: SaveHalt) -> HaltSaved:
        halt = Halt(action.generation, action.on)
        self.world.watch.halted(self.machine, self.machine.halt, halt)
        self.machine.halt = halt
        return HaltSaved(action.generation)

    def _apply(self, action: Apply) -> Applied:
        record, machine = action.record, self.machine
        self.world.watch.applied(machine, record)
        found = machine.files.get(record.id)
        if found is not None and not found.ours:
            return Applied(record.id, 0, error=("foreign", "another file took the place of ours"))
        wanted = int(action.params["bytes"])
        if found is None:
            looker: Any = machine.page.lookers.get(record.slot)
            fill = looker if getattr(looker, "record", "") == record.id else None
            found = machine.files[record.id] = File(0, True, fill)
            if fill is not None:
                fill.file_made()
        found.size = min(wanted, found.size + (1 << 31))
        return Applied(record.id, found.size, more=found.size < wanted)

    def _undo(self, action: Undo) -> Outcome:
        record, machine = action.record, self.machine
        machine.undoing.add(record.id)
        found = machine.files.get(record.id)
        if found is None:
            return Outcome(record.id, "undone")
        if not found.ours:
            machine.foreign.add(record.id)
            return Outcome(record.id, "foreign", "the file does not carry our tag")
        del machine.files[record.id]
        if found.fill is not None:
            found.fill.file_gone()
        return Outcome(record.id, "undone")

    def _look(self, action: Verify) -> Outcome:
        found = self.machine.files.get(action.record.id)
        return Outcome(action.record.id, "pending" if found is not None and found.ours else "undone")


PERFORM: dict[type, Callable[[GuardianHost, Any], Any]] = {
    Reply: GuardianHost._answer,
    WriteLeases: GuardianHost._write_leases,
    WriteCeilings: lambda *_: None,
    PublishHalt: GuardianHost._publish_halt,
    WriteStop: GuardianHost._write_stop,
    WriteGate: GuardianHost._write_gate,
    WriteStart: GuardianHost._write_start,
    ResetSlot: GuardianHost._reset_slot,
    Identify: GuardianHost._identify,
    Watch: GuardianHost._watch,
    Unwatch: GuardianHost._unwatch,
    Observe: GuardianHost._observe,
    KillOwner: GuardianHost._kill_owner,
    MakeContainer: GuardianHost._container,
    Kill: GuardianHost._kill,
    Verify: GuardianHost._verify,
    Retire: GuardianHost._retire,
    **dict.fromkeys((JournalArm, JournalFree, SaveHalt, Apply, Undo), GuardianHost._disk),
}
DISK: dict[type, Callable[[GuardianHost, Any], Any]] = {
    JournalArm: GuardianHost._arm,
    JournalFree: GuardianHost._free,
    SaveHalt: GuardianHost._save_halt,
    Apply: GuardianHost._apply,
    Undo: GuardianHost._undo,
    Verify: GuardianHost._look,
}
