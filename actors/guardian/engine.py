"""How everything that a guardian guards comes to its end: the engine under `core`, pure like it.

Slots and records are driven by the tables of `model`; what waits for an end is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..control import GENERATIONS, SLOTS, STOP_KILL
from ..errors import RefusedError
from ..memory_group import MemoryRoot
from ..messages import Halt
from ..proc import Identity
from ..undo import KINDS, Outcome, Record
from .fields import boolean, integer
from .model import (
    FINAL,
    GONE,
    LOADING,
    NEVER_NS,
    RECORD_TABLE,
    SETTLED,
    SLOT_TABLE,
    STANDING,
    Action,
    ContainerMade,
    CoreSettings,
    Effect,
    Halting,
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
    RecordEvent,
    RecordState,
    Reply,
    Retire,
    SaveHalt,
    Slot,
    SlotEvent,
    SlotPhase,
    Tracked,
    Undo,
    Unwatch,
    Verify,
    Waiter,
    Watch,
    WriteGate,
    WriteLeases,
    WriteStop,
)
from .reports import close_report, is_gone, outcome_of, rebuild

Then = Callable[[Identified, int], None]


class Engine:
    """The state of one guardian, and the ends of its slots and records."""

    def __init__(
        self,
        guardian_id: str,
        *,
        life: str = "0",
        code_id: str = "",
        settings: CoreSettings | None = None,
        halt: Halt | None = None,
        container_root: str = "",
        memory_root: MemoryRoot | None = None,
        machine: tuple[str, int] = ("", 0),
        generation_base: int = 0,
    ) -> None:
        self.guardian_id = guardian_id
        self.life = life
        self.page_life = life  # names the page set; a standby that takes over keeps the pages and gets a life of its own
        self.code_id = code_id
        self.halt = self.halt_kept = halt or Halt()
        self.facts: dict[str, Any] = {}  # what the shell adds to hello and status: pid, standby_pid, ...
        self.time_offset_ns = 0  # of the shell's time namespace; callers of another one are refused
        self.next_due_ns = NEVER_NS
        self._settings = settings or CoreSettings()
        self._container_root, self._memory_root = container_root, memory_root
        self._machine = machine
        self._out: list[Action] = []
        self._slots: dict[int, Slot] = {}
        self._tracked: dict[str, tuple[Slot, Tracked]] = {}
        self._foreign: dict[str, Tracked] = {}
        self._free = list(range(SLOTS - 1, -1, -1))
        self._generations = [generation_base % GENERATIONS] * SLOTS
        self._ghosts = 0
        self._serial = 0
        self._fences: dict[tuple[str, str], tuple[int, int]] = {}
        self._watched: dict[Identity, set[tuple[str, str, int]]] = {}
        self._loads: dict[Identity, Slot] = {}
        self._agents: dict[Identity, tuple[str, str, int]] = {}  # an agent's own process -> cluster, node, incarnation
        self._simulators: dict[Identity, tuple[int, int]] = {}  # a simulator's own process -> its slot
        self._looking: dict[int, Identity] = {}
        self._pending: dict[int, Then] = {}
        self._halting: list[Halting] = []
        self._resuming: list[tuple[Waiter, int]] = []
        self._peers: dict[str, str] = {}
        self._idle_since_ns = -1
        self._closed: dict[tuple[int, int], dict[str, Any]] = {}
        self._history: dict[str, dict[str, Any]] = {}

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot that is not free; to be read only."""
        return tuple(self._slots.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is guarded and nothing is on its way."""
        return not (self._slots or self._pending or self._halting or self._resuming)

    def _add_record(self, slot: Slot, kind: str, fields: Mapping[str, Any], waiter: Waiter | None) -> Tracked:
        if len(slot.records) >= self._settings.records_per_slot_max:
            self._drop_ended(slot)
        if len(slot.records) >= self._settings.records_per_slot_max:
            raise RefusedError("budget", f"an operation holds at most {self._settings.records_per_slot_max} undo records")
        self._serial += 1
        record_id = f"{self.life}-{self._serial}"
        if kind == "disk_fill":
            fields = {
                **fields,
                "file": f".stress-cluster-{self.guardian_id[:8]}-{fields['token']}.fill",
                "tag": f"stress-cluster disk_fill {self.guardian_id} {record_id} {fields['token']}",
            }
        elif kind == "session":
            fields = {**fields, "boot_id": self._machine[0], "pid_ns": self._machine[1]}
        record = Record(record_id, kind, slot.index, slot.generation, slot.cluster, slot.node, slot.run, slot.operation, fields)
        item = Tracked(record, armer=waiter)
        slot.records.append(item)
        self._tracked[record_id] = (slot, item)
        self._out.append(JournalArm(record))
        return item

    def _drop_ended(self, slot: Slot) -> None:
        for item in [one for one in slot.records if one.state in FINAL]:
            slot.records.remove(item)
            self._tracked.pop(item.record.id, None)

    def _identify(self, pid: int, container: str, then: Then) -> None:
        self._serial += 1
        self._pending[self._serial] = then
        self._out.append(Identify(self._serial, pid, container))

    def _on_journalled(self, result: Journalled, now_ns: int) -> None:
        slot, item = self._tracked[result.record]
        waiter, item.armer = item.armer, None
        if result.error is not None:
            self._step(slot, item, RecordEvent.REFUSED, now_ns)
            self._drop_refused(slot, item, now_ns)
            if waiter is not None:
                self._refuse(waiter, *result.error)
            return
        self._step(slot, item, RecordEvent.SYNCED, now_ns)
        if slot.phase not in LOADING:
            if waiter is not None:
                self._refuse(waiter, "stale_slot", f"slot {slot.index} generation {slot.generation} is over: {slot.cause}")
            if not KINDS[item.record.kind].after_kills:
                self._step(slot, item, RecordEvent.END, now_ns)
            self._settle(slot, now_ns)
        elif item.record.kind == "container":
            item.armer = waiter
            self._out.append(MakeContainer(item.record))
        elif waiter is not None:
            if item.record.kind == "process":
                self._out.append(WriteGate(slot.index, slot.generation))
                self._reply(waiter, {"ok": True, "record": item.record.id, "container": item.record.fields["container"]})
            else:
                self._reply(waiter, {"ok": True, "record": item.record.id})

    def _drop_refused(self, slot: Slot, item: Tracked, now_ns: int) -> None:
        """Without a durable record there is nothing to undo; a load that could not be recorded is killed with its slot."""
        slot.records.remove(item)
        del self._tracked[item.record.id]
        if item.record.kind == "process":
            identity = Identity.from_json(item.record.fields)
            self._loads.pop(identity, None)
            self._let_go(identity)
        if item.record.kind == "container":
            self._end(slot, "journal", now_ns)
        self._settle(slot, now_ns)

    def _on_container(self, result: ContainerMade, now_ns: int) -> None:
        slot, item = self._tracked[result.record]
        waiter, item.armer = item.armer, None
        if result.error is not None:
            self._end(slot, result.error[1], now_ns)
        if slot.phase is not SlotPhase.OPENING:
            if waiter is not None:
                over = ("stale_slot", f"slot {slot.index} generation {slot.generation} is over: {slot.cause}")
                self._refuse(waiter, *(result.error or over))
            return
        slot.container, slot.memory_group = result.path, str(item.record.fields.get("memory_group", ""))
        slot.phase = SLOT_TABLE[slot.phase, SlotEvent.READY]
        if waiter is not None:
            self._reply(waiter, {"ok": True, "slot": slot.index, "generation": slot.generation, "container": result.path})

    def _on_outcome(self, result: Outcome, now_ns: int) -> None:
        found = self._tracked.get(result.record)
        if found is None:
            return  # a late answer for a record that has ended
        slot, item = found
        item.detail = result.detail
        event = RecordEvent(result.result)
        if event is RecordEvent.PENDING and now_ns - item.since_ns >= self._settings.stuck_after_ns:
            event = RecordEvent.LATE
        if (item.state, event) not in RECORD_TABLE:
            return  # an answer to a question that was asked twice
        self._step(slot, item, event, now_ns)
        self._settle(slot, now_ns)

    def _step(self, slot: Slot, item: Tracked, event: RecordEvent, now_ns: int) -> None:
        """Drive one record by the table and order what the step asks for."""
        item.state, effect = RECORD_TABLE[item.state, event]
        item.due_ns = NEVER_NS
        if effect is Effect.UNDO:
            item.since_ns = item.since_ns or now_ns
            self._out.append(Kill(item.record) if KINDS[item.record.kind].kills else Undo(item.record))
        elif effect is Effect.VERIFY:
            self._out.append(Verify(item.record))
        elif effect is Effect.RETRY:
            item.tries += 1
            item.due_ns = now_ns + min(self._settings.retry_min_ns << min(item.tries - 1, 10), self._settings.retry_max_ns)
        elif effect is Effect.RETRY_SLOWLY:
            item.due_ns = now_ns + self._settings.stuck_retry_ns
        elif effect is Effect.WAIT:
            item.due_ns = now_ns + self._settings.verify_again_ns
        elif effect is Effect.FREE:
            self._out.append(JournalFree(item.record.id))
        self._wake(item.due_ns)
        if item.state in SETTLED:
            self._tell(slot, item)

    def _tell(self, slot: Slot, item: Tracked) -> None:
        """Answer who waited for this record, and keep its end."""
        outcome = outcome_of(slot, item)
        for waiter in item.waiters:
            self._reply(waiter, {"ok": True, **outcome})
        item.waiters.clear()
        if item.state is RecordState.FOREIGN:
            self._foreign[item.record.id] = item
        if item.state in FINAL:
            self._remember(self._history, item.record.id, outcome)

    def _end_owner(self, owner: tuple[str, str], now_ns: int, cause: str, only: int | None = None, *, keep: int | None = None) -> None:
        for slot in list(self._slots.values()):
            if (slot.cluster, slot.node) == owner and (only is None or slot.incarnation == only) and slot.incarnation != keep:
                self._end(slot, cause, now_ns)

    def _end(self, slot: Slot, cause: str, now_ns: int) -> None:
        """Begin to end a slot: forbid, kill, undo. What depends on the kills follows in `_settle`."""
        if slot.phase not in LOADING:
            return
        slot.phase = SLOT_TABLE[slot.phase, SlotEvent.END]
        slot.cause = cause
        if slot.index >= 0:
            self._out.append(WriteStop(slot.index, slot.generation, STOP_KILL))
            self._out.append(WriteLeases(((slot.index, slot.generation, 0),)))
        for item in sorted(slot.records, key=lambda one: not KINDS[one.record.kind].kills):
            if item.state is RecordState.ARMED and not KINDS[item.record.kind].after_kills:
                self._step(slot, item, RecordEvent.END, now_ns)
        self._look_at_owners(slot)
        self._settle(slot, now_ns)

    def _look_at_owners(self, slot: Slot) -> None:
        """Have the states of those read that should have renewed the lease or ended the load.

        Who stands still would wake up with orders of long ago. Who runs is left alone: a cut-off agent delivers after healing.
        """
        owner = (slot.cluster, slot.node, slot.incarnation)
        found = [identity for identity, key in self._simulators.items() if key == slot.key]
        if slot.cause == "lease":
            found += [identity for identity, whose in self._agents.items() if whose == owner]
        for identity in found:
            self._serial += 1
            self._looking[self._serial] = identity
            self._out.append(Observe(self._serial, identity))

    def _on_observed(self, result: Observed) -> None:
        identity = self._looking.pop(result.token)
        if result.state in STANDING:
            self._out.append(KillOwner(identity))

    def _settle(self, slot: Slot, now_ns: int) -> None:
        """Go on with what waited for something else of the slot."""
        if slot.phase in LOADING or slot.phase is SlotPhase.FREE:
            return
        kills = [item.state for item in slot.records if KINDS[item.record.kind].kills]
        if not slot.stopped_ns and GONE.issuperset(kills):
            slot.stopped_ns = now_ns
        if SETTLED.issuperset(kills):
            for item in slot.records:
                if item.state is RecordState.ARMED:
                    self._step(slot, item, RecordEvent.END, now_ns)
        if slot.phase is SlotPhase.ENDING and all(item.state in SETTLED for item in slot.records):
            slot.phase = SLOT_TABLE[slot.phase, SlotEvent.RELEASED]
            slot.released_ns = now_ns if is_gone(slot) else 0
            self._report(slot)
        if slot.phase is SlotPhase.CHECKING and not slot.released_ns and is_gone(slot):
            slot.released_ns = now_ns
        if slot.phase is SlotPhase.CHECKING and all(item.state in FINAL for item in slot.records):
            self._free_slot(slot, now_ns)

    def _report(self, slot: Slot) -> None:
        report = close_report(slot)
        self._remember(self._closed, slot.ticket, report)
        for waiter in slot.closers:
            self._reply(waiter, report)
        slot.closers.clear()
        for halting in self._halting:
            if slot.key in halting.slots:
                halting.slots.discard(slot.key)
                halting.last_gone_ns = max(halting.last_gone_ns, slot.stopped_ns)
                halting.stuck += [] if is_gone(slot) else [slot.operation]
        self._answer_halts()

    def _free_slot(self, slot: Slot, now_ns: int) -> None:
        slot.phase = SLOT_TABLE[slot.phase, SlotEvent.CLEAN]
        self._remember(self._closed, slot.ticket, close_report(slot))
        for item in slot.records:
            self._tracked.pop(item.record.id, None)
        for identity in [one for one, owner in self._loads.items() if owner is slot]:
            del self._loads[identity]
            self._let_go(identity)
        for identity in [one for one, key in self._simulators.items() if key == slot.key]:
            del self._simulators[identity]
            self._let_go(identity)
        del self._slots[slot.index]
        if slot.index >= 0:
            self._free.append(slot.index)
        self._look_idle(now_ns)

    def _has_load(self, slot: Slot) -> bool:
        return any(found is slot for found in self._loads.values())

    def _load_died(self, slot: Slot, now_ns: int) -> None:
        if slot.phase is SlotPhase.DRAINING and slot.closers and not self._has_load(slot):
            self._end(slot, "close", now_ns)
        for item in slot.records:
            if item.state is RecordState.UNDOING and item.tries and KINDS[item.record.kind].kills:
                self._step(slot, item, RecordEvent.DUE, now_ns)

    def _answer_halts(self) -> None:
        for halting in [one for one in self._halting if one.saved and not one.slots]:
            self._halting.remove(halting)
            if halting.waiter is None:
                continue
            if halting.error is not None:
                code, message = halting.error
                self._refuse(halting.waiter, code, f"everything was killed, but the halt is not on disk: {message}")
                continue
            body = {"ok": True, "halt": {"generation": halting.generation, "on": True}, "killed": halting.killed, "stuck": halting.stuck}
            gone_ns = max(halting.last_gone_ns, halting.decided_ns)  # what was gone before the decision took no time
            self._reply(halting.waiter, {**body, "decided_ns": halting.decided_ns, "last_gone_ns": gone_ns})

    def _halt_now(self, generation: int, waiter: Waiter | None, now_ns: int) -> None:
        self._take_halt(Halt(generation, on=True))
        # What loads nothing, such as a driver's embedded Ray, is not halted: through it the run tells how it ended.
        active = [slot for slot in self._slots.values() if slot.loads and (slot.phase in LOADING or slot.phase is SlotPhase.ENDING)]
        killed = [{"slot": slot.index, "generation": slot.generation, "operation": slot.operation, "run": slot.run} for slot in active]
        self._halting.append(Halting(waiter, generation, now_ns, {slot.key for slot in active}, killed))
        for slot in active:
            self._end(slot, "halt", now_ns)
        self._out.append(SaveHalt(generation, True))

    def _hear_halt(self, heard: Mapping[str, Any] | None, now_ns: int) -> None:
        """Take over a newer halt or resume that travelled with a grant."""
        if not heard:
            return
        generation, on = integer(heard, "generation"), boolean(heard, "on")
        if Halt(generation, on) <= self.halt:
            return
        if on:
            self._halt_now(generation, None, now_ns)
        else:
            self._take_halt(Halt(generation, on=False))
            self._out.append(SaveHalt(generation, False))

    def _take_halt(self, halt: Halt) -> None:
        self.halt = halt
        self._out.append(PublishHalt(halt, self.halt_kept))

    def _on_halt_saved(self, result: HaltSaved, now_ns: int) -> None:
        for halting in self._halting:
            if halting.generation == result.generation:
                halting.saved, halting.error = True, result.error
        for entry in [one for one in self._resuming if one[1] == result.generation]:
            self._resuming.remove(entry)
            if result.error is not None:
                self._refuse(entry[0], *result.error)
                continue
            if result.generation > self.halt.generation:
                self._take_halt(Halt(result.generation, on=False))
            self._reply(entry[0], {"ok": True, "halt": {"generation": self.halt.generation, "on": self.halt.on}})
        if result.error is None and result.generation == self.halt.generation:
            self.halt_kept = self.halt
            self._out.append(PublishHalt(self.halt, self.halt_kept))
        self._answer_halts()
        self._look_idle(now_ns)

    def _let_go(self, identity: Identity) -> None:
        if not any(identity in held for held in (self._watched, self._loads, self._agents, self._simulators)):
            self._out.append(Unwatch(identity))

    def _tick_slot(self, slot: Slot, now_ns: int) -> None:
        if now_ns >= self._due(slot):
            self._expire(slot, now_ns)
        for item in slot.records:
            if item.due_ns <= now_ns:
                self._step(slot, item, RecordEvent.DUE, now_ns)

    def _expire(self, slot: Slot, now_ns: int) -> None:
        self._end(slot, "close" if slot.closers and now_ns >= slot.drain_until_ns else "lease", now_ns)

    def _due(self, slot: Slot) -> int:
        """When a slot that may load has to end: its lease less the release time, the end of its drain, or never leased."""
        if slot.phase not in LOADING:
            return NEVER_NS
        end_ns = slot.deadline_ns - slot.release_ns if slot.deadline_ns else slot.opened_ns + self._settings.unleased_max_ns
        return min(end_ns, slot.drain_until_ns)

    def _next_of(self, slot: Slot) -> int:
        return min([self._due(slot), *(item.due_ns for item in slot.records)])

    def _tick_idle(self, now_ns: int) -> None:
        self._look_idle(now_ns)
        if self._idle_since_ns >= 0 and now_ns - self._idle_since_ns >= self._settings.idle_exit_ns:
            self._idle_since_ns = now_ns
            self._out.append(Retire())

    def _look_idle(self, now_ns: int) -> None:
        if not self.idle or self._peers:
            self._idle_since_ns = -1
        elif self._idle_since_ns < 0:
            self._idle_since_ns = now_ns
            self._wake(now_ns + self._settings.idle_exit_ns)

    def _wake(self, due_ns: int) -> None:
        self.next_due_ns = min(self.next_due_ns, due_ns)

    def _adopt_slot(self, group: list[Record], lease: tuple[int, int, int] | None, now_ns: int) -> None:
        """Rebuild one slot. It keeps its place while the page is the same; without that it gets one outside of the page."""
        head = next((record for record in group if record.kind == "container"), None)
        slot = rebuild(group[0], head, lease or (0, 0, STOP_KILL), now_ns)
        if lease is not None and 0 <= slot.index < SLOTS:
            self._free.remove(slot.index)
        else:
            self._ghosts += 1
            slot.index, slot.known_as = -self._ghosts, slot.index
        self._slots[slot.index] = slot
        for record in group:
            item = Tracked(record, RecordState.ARMED)
            slot.records.append(item)
            self._tracked[record.id] = (slot, item)
            if record.kind == "process":
                identity = Identity.from_json(record.fields)
                self._loads[identity] = slot
                self._out.append(Watch(identity))
        if head is None or lease is None or lease[2] == STOP_KILL:
            self._end(slot, "sweep", now_ns)
            return
        owner = (slot.cluster, slot.node)
        self._fences[owner] = max(self._fences.get(owner, (-1, -1)), (slot.epoch, slot.incarnation))
        self._wake(self._due(slot))

    def _reply(self, waiter: Waiter, body: dict[str, Any]) -> None:
        self._out.append(Reply(waiter.peer, body if waiter.request is None else {**body, "id": waiter.request}))

    def _refuse(self, waiter: Waiter, code: str, message: str, hint: str = "") -> None:
        self._reply(waiter, {"ok": False, "code": code, "message": message, "hint": hint})

    def _flush(self) -> list[Action]:
        out, self._out = self._out, []
        return out

    def _remember(self, store: dict[Any, dict[str, Any]], key: Any, value: dict[str, Any]) -> None:
        store.pop(key, None)
        store[key] = value
        if len(store) > self._settings.history_max:
            del store[next(iter(store))]
