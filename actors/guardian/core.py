"""What the guardian decides: requests, deaths and time in, actions out. Reads no clock, no file, no /proc.

The shell (`server`) performs each action and hands results back with `done`; the simulation does the same without a
machine. `next_due_ns` says when `tick` next has work. How things end is in `engine`; who may ask for what is here.
"""

# OPERATIONS lists the class's own methods
# ruff: noqa: SLF001

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..control import GENERATIONS, SLOTS, STOP_DRAIN
from ..errors import InputError, RefusedError, StressError
from ..memory_group import places
from ..messages import Amounts, spoken
from ..proc import Identity
from ..undo import KINDS, Outcome, Record
from .fields import LIMITLESS, amounts, boolean, integer, span_ns, text
from .model import (
    FINAL,
    LOADING,
    NEVER_NS,
    SETTLED,
    SLOT_TABLE,
    Action,
    Applied,
    Apply,
    ContainerMade,
    Identified,
    JournalFree,
    Journalled,
    Observed,
    RecordEvent,
    RecordState,
    ResetSlot,
    Result,
    Retire,
    SaveHalt,
    Slot,
    SlotEvent,
    SlotPhase,
    Tracked,
    Waiter,
    WriteCeilings,
    WriteLeases,
    WriteStart,
    WriteStop,
)
from .owners import Owners
from .reports import close_report, is_readable, outcome_of, record_status, slot_status

ARMABLE: Final = ("disk_fill", "session", "tree")
FILL_SLACK_BYTES: Final = 1 << 20


class GuardianCore(Owners):
    """The state of one guardian and every rule about it.

    `guardian_id` names the machine, `life` this page set (record ids and nonces derive from it), `container_root` is
    where cgroups can be made ("" for none), `memory_root` where those with a limit of memory can be, `machine` the boot id
    and pid namespace that identities are compared with.
    """

    def handle(self, request: Mapping[str, Any], peer: str, now_ns: int) -> list[Action]:
        """Take one request of a connection; never raises on what a client may send."""
        waiter = Waiter(peer, request.get("id"))
        try:
            op = OPERATIONS.get(request.get("op", ""))
            if op is None:
                raise InputError("unknown_name", f"no operation {request.get('op')!r:.60}; there are {', '.join(sorted(OPERATIONS))}")
            not_after_ns = request.get("not_after_ns")
            if not_after_ns is not None and now_ns > not_after_ns:
                raise RefusedError("expired", f"{request['op']} arrived {(now_ns - not_after_ns) / 1e6:.0f} ms after its not-valid-after")
            op(self, waiter, request, now_ns)
        except StressError as error:
            self._refuse(waiter, error.code, error.message, error.hint)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self._refuse(waiter, "invalid_value", f"malformed {request.get('op')!r:.60} request: {type(error).__name__} {error}")
        return self._flush()

    def tick(self, now_ns: int) -> list[Action]:
        """Do what is due: ends of leases and drains, retries, second verifications, idle exit. Free when nothing is due."""
        if now_ns < self.next_due_ns:
            return []
        for slot in list(self._slots.values()):
            self._tick_slot(slot, now_ns)
        self._tick_idle(now_ns)
        self.next_due_ns = min((self._next_of(slot) for slot in self._slots.values()), default=NEVER_NS)
        if self._idle_since_ns >= 0:
            self._wake(self._idle_since_ns + self._settings.idle_exit_ns)
        return self._flush()

    def died(self, identity: Identity, now_ns: int) -> list[Action]:
        """Take the end of a held process: a watched owner's ends its slots, a load's is looked into at once."""
        for cluster, node, incarnation in self._watched.pop(identity, set()):
            self._end_owner((cluster, node), now_ns, "owner died", incarnation)
        self._agents.pop(identity, None)
        self._simulators.pop(identity, None)
        slot = self._loads.pop(identity, None)
        if slot is not None:
            self._load_died(slot, now_ns)
        return self._flush()

    def gone(self, peer: str, now_ns: int) -> list[Action]:
        """Take the end of a connection. Slots live on: their lease and their owner's pidfd decide."""
        self._peers.pop(peer, None)
        self._look_idle(now_ns)
        return self._flush()

    def done(self, result: Result, now_ns: int) -> list[Action]:
        """Take the result of an action."""
        if isinstance(result, Outcome):
            self._on_outcome(result, now_ns)
        elif isinstance(result, Journalled):
            self._on_journalled(result, now_ns)
        elif isinstance(result, Applied):
            self._on_applied(result)
        elif isinstance(result, Identified):
            self._pending.pop(result.token)(result, now_ns)
        elif isinstance(result, Observed):
            self._on_observed(result)
        elif isinstance(result, ContainerMade):
            self._on_container(result, now_ns)
        else:
            self._on_halt_saved(result, now_ns)
        return self._flush()

    def adopt(self, records: Iterable[Record], leases: Mapping[int, tuple[int, int, int]], now_ns: int) -> list[Action]:
        """Take over what the journal holds.

        `leases` are the pages' words of a predecessor of the same life: slot -> (generation, deadline_ns, stop code); slots
        that live on it go on, everything else is undone now. Empty for a fresh life.
        """
        groups: dict[tuple[int, int], list[Record]] = {}
        for record in records:
            if not is_readable(record):
                self._foreign[record.id] = Tracked(record, RecordState.FOREIGN, detail="a kind or version that this guardian cannot read")
                continue
            groups.setdefault((record.slot, record.generation), []).append(record)
        for (index, generation), group in groups.items():
            found = leases.get(index)
            self._adopt_slot(group, found if found is not None and found[0] == generation else None, now_ns)
        for index, (generation, _, _) in leases.items():
            self._generations[index] = generation
        return self._flush()

    def end_all(self, cause: str, now_ns: int) -> list[Action]:
        """End every slot, as when the guardian itself is asked to terminate."""
        for slot in self.slots:
            self._end(slot, cause, now_ns)
        return self._flush()

    def stay(self, now_ns: int) -> None:
        """Call a retirement off because somebody came: count idleness from now."""
        self._idle_since_ns = -1
        self._look_idle(now_ns)

    def snapshot(self) -> dict[str, Any]:
        """Return status: slots, records and the halt, JSON-ready."""
        tracked = [(slot, item) for slot in self._slots.values() for item in slot.records]
        return {
            "guardian_id": self.guardian_id,
            "life": self.life,
            "code_id": self.code_id,
            "halt": {"generation": self.halt.generation, "on": self.halt.on},
            "slots": [slot_status(slot) for slot in self._slots.values()],
            "records": [
                *(record_status(item) for _, item in tracked if item.state not in FINAL),
                *(record_status(item) for item in self._foreign.values()),
            ],
            "peers": sorted(self._peers.values()),
            **self.facts,
        }

    def _open_slot(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        cluster, node = self._admit(request, now_ns)
        if self.halt.on:
            raise RefusedError(
                "halted", f"an emergency halt (generation {self.halt.generation}) is in force on this machine", "resume first"
            )
        asked = amounts(request.get("amounts") or {})
        self._check_budget(asked, amounts(request["machine_limits"]) if request.get("machine_limits") else LIMITLESS)
        if not self._free:
            raise RefusedError("budget", f"all {SLOTS} slots of this machine are taken", "run fewer operations at once")
        release_ns = span_ns(request, "release_s", 0, self._settings.release_max_ns)
        sharers = integer(request, "sharers", 1, least=1)
        operation, run = text(request, "operation"), text(request, "run")
        index = self._free[-1]
        generation = self._generations[index] % (GENERATIONS - 1) + 1
        groups = places(self._container_root, self._memory_root, f"{index}-{generation}", integer(request, "memory_limit_bytes", 0))
        self._generations[self._free.pop()] = generation
        slot = Slot(
            index, generation, cluster, node, integer(request, "epoch"), integer(request, "incarnation"), run, operation, asked, release_ns
        )
        slot.sharers, slot.opened_ns = sharers, now_ns
        self._slots[index] = slot
        self._idle_since_ns = -1
        self._out.append(ResetSlot(index, generation, slot.epoch, sharers))
        fields = {
            **groups,
            "amounts": list(asked.values()),
            "release_ns": release_ns,
            "epoch": slot.epoch,
            "incarnation": slot.incarnation,
            "sharers": sharers,
        }
        self._add_record(slot, "container", fields, waiter)
        self._wake(self._due(slot))

    def _check_budget(self, asked: Amounts, limits: Amounts) -> None:
        if asked == Amounts():
            return  # an owner that loads nothing, such as a driver, is never in the way
        total = asked
        for slot in self._slots.values():
            total = total.plus(slot.amounts)
        over = total.beyond(limits)
        if over:
            told = " and ".join(f"{getattr(total, name):.15g} {spoken(name)}, its limit is {getattr(limits, name):.15g}" for name in over)
            raise RefusedError(
                "budget", f"with this operation the machine would carry {told}", "lower the request or wait until other runs have ended"
            )

    def _slot_of(self, request: Mapping[str, Any]) -> Slot:
        index, generation = integer(request, "slot"), integer(request, "generation")
        slot = self._slots.get(index)
        if slot is None or slot.generation != generation:
            raise RefusedError("stale_slot", f"slot {index} generation {generation} has ended or was given to another")
        return slot

    def _loading_slot(self, request: Mapping[str, Any]) -> Slot:
        slot = self._slot_of(request)
        if slot.phase not in LOADING:
            raise RefusedError("stale_slot", f"slot {slot.index} generation {slot.generation} is over: {slot.cause}")
        if self.halt.on:
            raise RefusedError(
                "halted", f"an emergency halt (generation {self.halt.generation}) is in force on this machine", "resume first"
            )
        return slot

    def _register(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        slot = self._loading_slot(request)
        pid = integer(request, "pid", least=2)

        def found(result: Identified, __: int) -> None:
            identity = result.identity
            if identity is None:
                self._refuse(waiter, "lost", f"process {pid} is to be registered but has ended")
                return
            try:
                if slot.phase not in LOADING:
                    raise RefusedError("stale_slot", f"slot {slot.index} generation {slot.generation} is over: {slot.cause}")
                if self._loads.get(identity, slot) is not slot:
                    raise RefusedError("busy", f"process {pid} is the load of another slot")
                if identity in self._loads:
                    self._reply(waiter, {"ok": True, "container": result.container})
                    return
                self._add_record(slot, "process", {**identity.to_json(), "container": result.container}, waiter)
                self._loads[identity] = slot
            except StressError as error:
                self._let_go(identity)
                self._refuse(waiter, error.code, error.message, error.hint)

        self._identify(pid, slot.container, found)

    def _grant(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        asked = [(index, generation, deadline_ns) for index, generation, deadline_ns in request.get("leases", ())]
        if not all(type(value) is int for lease in asked for value in lease):
            raise InputError("invalid_value", "a lease is three whole numbers: slot, generation, deadline_ns")
        owner = self._admit(request, now_ns)
        self._hear_halt(request.get("halt"), now_ns)
        writes: list[tuple[int, int, int]] = []
        leases: list[list[int]] = []
        ended: list[list[Any]] = []
        latest_ns = now_ns + self._settings.lease_max_ns
        for index, generation, deadline_ns in asked:
            slot = self._slots.get(index)
            if slot is None or slot.generation != generation or (slot.cluster, slot.node) != owner:
                ended.append([index, generation, "unknown"])
                continue
            if now_ns >= self._due(slot):
                self._expire(slot, now_ns)
            if slot.phase is SlotPhase.OPENING or slot.phase not in LOADING:
                ended.append([index, generation, slot.cause or "opening"])
                continue
            wanted_ns = min(deadline_ns, latest_ns)
            if wanted_ns > slot.deadline_ns:
                slot.deadline_ns = wanted_ns
                slot.phase = SLOT_TABLE[slot.phase, SlotEvent.GRANT]
                writes.append((index, generation, wanted_ns))
                self._wake(wanted_ns - slot.release_ns)
            leases.append([index, generation, slot.deadline_ns])
        if writes:
            self._out.append(WriteLeases(tuple(writes)))
        halt = {"generation": self.halt.generation, "on": self.halt.on}
        self._reply(waiter, {"ok": True, "leases": leases, "ended": ended, "halt": halt, "boottime_ns": now_ns})

    def _throttle(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        items: list[tuple[int, float]] = []
        for index, generation, ceiling in request["ceilings"]:
            slot = self._slots.get(index)
            if not 0.0 <= ceiling <= 1.0:
                raise InputError("invalid_value", f"a ceiling lies in 0..1, got {ceiling!r:.40}")
            if slot is not None and slot.generation == generation and slot.phase in LOADING:
                items.append((index, float(ceiling)))
        if items:
            self._out.append(WriteCeilings(tuple(items)))
        self._reply(waiter, {"ok": True, "set": len(items)})

    def _start(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        slot = self._loading_slot(request)
        self._out.append(WriteStart(slot.index, slot.generation, integer(request, "start_ns")))
        self._reply(waiter, {"ok": True})

    def _stop(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        slot = self._slot_of(request)
        mode = text(request, "mode")
        if mode not in {"drain", "kill"}:
            raise InputError("invalid_value", f"mode {mode!r:.40} is neither drain nor kill")
        if mode == "kill":
            self._end(slot, "stop", now_ns)
        elif slot.phase in {SlotPhase.OPEN, SlotPhase.LIVE}:
            self._drain(slot, NEVER_NS)
        self._reply(waiter, {"ok": True})

    def _drain(self, slot: Slot, until_ns: int) -> None:
        slot.phase = SLOT_TABLE[slot.phase, SlotEvent.DRAIN]
        slot.drain_until_ns = min(slot.drain_until_ns, until_ns)
        self._out.append(WriteStop(slot.index, slot.generation, STOP_DRAIN))
        self._wake(slot.drain_until_ns)

    def _close_slot(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        key = (integer(request, "slot"), integer(request, "generation"))
        if key in self._closed and (key[0] not in self._slots or self._slots[key[0]].generation != key[1]):
            self._reply(waiter, self._closed[key])
            return
        swept = next((slot for slot in self._slots.values() if slot.known_as is not None and slot.ticket == key), None)
        slot = swept or self._slot_of(request)
        grace_ns = span_ns(request, "grace_s", 0, self._settings.grace_max_ns)
        if slot.phase is SlotPhase.CHECKING:
            self._reply(waiter, close_report(slot))
            return
        slot.closers.append(waiter)
        if slot.phase not in LOADING:
            return
        if grace_ns and slot.phase is not SlotPhase.OPENING and self._has_load(slot):
            self._drain(slot, now_ns + grace_ns)
        else:
            self._end(slot, "close", now_ns)

    def _arm(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        slot = self._loading_slot(request)
        kind = text(request, "kind")
        if kind not in ARMABLE:
            raise InputError("unknown_name", f"no effect {kind!r:.40} can be armed; there are {', '.join(ARMABLE)}")
        self._add_record(slot, kind, KINDS[kind].check(request.get("fields") or {}), waiter)

    def _find(self, request: Mapping[str, Any]) -> tuple[Slot, Tracked]:
        found = self._tracked.get(text(request, "record"))
        if found is None:
            raise InputError("unknown_name", f"no record {request['record']!r:.60} is armed")
        return found

    def _apply(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        slot, item = self._find(request)
        if self.halt.on:
            raise RefusedError(
                "halted", f"an emergency halt (generation {self.halt.generation}) is in force on this machine", "resume first"
            )
        if slot.phase not in {SlotPhase.LIVE, SlotPhase.DRAINING} or now_ns >= self._due(slot):
            raise RefusedError("stale_slot", f"slot {slot.index} has no live lease: {slot.cause or slot.phase}")
        if item.state is not RecordState.ARMED:
            raise RefusedError("stale_slot", f"record {item.record.id} is {item.state}, nothing more is applied for it")
        if item.record.kind != "disk_fill":
            raise InputError("invalid_value", f"a {item.record.kind} is only undone, never applied")
        params = request.get("params") or {}
        wanted = integer(params, "bytes")
        total = wanted + sum(_asked_bytes(one) for one in slot.records if one is not item)
        if total > slot.amounts.disk_bytes + FILL_SLACK_BYTES:
            raise RefusedError("budget", f"{total} bytes of disk pass the {slot.amounts.disk_bytes} reserved by {slot.operation}")
        item.params = {"bytes": wanted, "write": "write" in params and boolean(params, "write")}
        item.appliers.append(waiter)
        if not item.applying:
            item.applying = True
            self._out.append(Apply(item.record, item.params))

    def _on_applied(self, result: Applied) -> None:
        slot, item = self._tracked.get(result.record, (None, None))
        if slot is None or item is None:
            return  # the slot ended and was freed meanwhile
        item.achieved = result.achieved
        over = item.state is not RecordState.ARMED or slot.phase not in LOADING
        if result.more and not over and item.params is not None and result.error is None:
            self._out.append(Apply(item.record, item.params))
            return
        item.applying = False
        waiters, item.appliers = item.appliers, []
        for waiter in waiters:
            if result.error is not None:
                self._refuse(waiter, *result.error)
            elif over:
                self._refuse(waiter, "stale_slot", f"slot {slot.index} ended while the effect was applied: {slot.cause}")
            else:
                self._reply(waiter, {"ok": True, "achieved": result.achieved, "refused": result.refused})

    def _undo(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        record_id = text(request, "record")
        if record_id in self._history:
            self._reply(waiter, {"ok": True, **self._history[record_id]})
            return
        slot, item = self._find(request)
        if item.state in SETTLED:
            self._reply(waiter, {"ok": True, **outcome_of(slot, item)})
            return
        item.waiters.append(waiter)
        if item.state is RecordState.ARMED:
            self._step(slot, item, RecordEvent.END, now_ns)

    def _forget(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        """Drop a foreign or unreadable record after somebody looked at it."""
        item = self._foreign.pop(text(request, "record"), None)
        if item is None:
            raise InputError("unknown_name", f"no foreign or unreadable record {request['record']!r:.60}")
        self._out.append(JournalFree(item.record.id))
        self._reply(waiter, {"ok": True})

    def _halt(self, waiter: Waiter, request: Mapping[str, Any], now_ns: int) -> None:
        newest = max([self.halt.generation, *(pending for _, pending in self._resuming)])  # a resume counts before it is on disk
        is_on = self.halt.on and newest == self.halt.generation
        generation = integer(request, "generation", 0) or newest + (not is_on)
        if generation < newest:
            raise RefusedError("stale_epoch", f"halt generation {generation} is older than {newest}")
        self._halt_now(generation, waiter, now_ns)

    def _resume(self, waiter: Waiter, request: Mapping[str, Any], _: int) -> None:
        generation = integer(request, "generation", 0) or self.halt.generation + 1
        if generation <= self.halt.generation:
            raise RefusedError("stale_epoch", f"resume needs a generation above {self.halt.generation}, got {generation}")
        self._resuming.append((waiter, generation))
        self._out.append(SaveHalt(generation, False))

    def _status(self, waiter: Waiter, _: Mapping[str, Any], now_ns: int) -> None:
        self._reply(waiter, {"ok": True, "boottime_ns": now_ns, **self.snapshot()})

    def _quit(self, waiter: Waiter, _: Mapping[str, Any], __: int) -> None:
        if not self.idle:
            raise RefusedError("busy", f"{len(self._slots)} slots are still guarded", "stop the runs first")
        self._reply(waiter, {"ok": True})
        self._out.append(Retire())


def _asked_bytes(item: Tracked) -> int:
    """Return how many bytes a fill was last asked to hold, 0 once it is undone."""
    return int(item.params["bytes"]) if item.params is not None and item.state is RecordState.ARMED else 0


OPERATIONS: Final[dict[str, Callable[[GuardianCore, Waiter, Mapping[str, Any], int], None]]] = {
    "hello": GuardianCore._hello,
    "open_slot": GuardianCore._open_slot,
    "register": GuardianCore._register,
    "grant": GuardianCore._grant,
    "throttle": GuardianCore._throttle,
    "start": GuardianCore._start,
    "stop": GuardianCore._stop,
    "arm": GuardianCore._arm,
    "apply": GuardianCore._apply,
    "undo": GuardianCore._undo,
    "close_slot": GuardianCore._close_slot,
    "status": GuardianCore._status,
    "halt": GuardianCore._halt,
    "resume": GuardianCore._resume,
    "forget": GuardianCore._forget,
    "quit": GuardianCore._quit,
}
