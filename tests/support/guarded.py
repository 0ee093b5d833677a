"""A pretended machine that performs a `GuardianCore`'s orders: processes, files, journal and pages as plain data.

What it keeps over `restart` is what a real machine keeps: processes, files, the journal and the halt bit. Every order is
checked while it is performed: an effect without a durable record, or a deadline that shrinks, is an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.control import STOP_KILL, STOP_NONE
from actors.guardian.core import GuardianCore
from actors.guardian.fields import PROTOCOL
from actors.guardian.model import (
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
    Result,
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
from actors.undo import Outcome, Record

SECOND = 1_000_000_000
BOOT = "boot"


@dataclass
class Machine:
    """One machine. `unkillable` pids survive a kill, `journal_broken` refuses arms, `foreign` files are not ours."""

    settings: CoreSettings = field(default_factory=CoreSettings)
    now_ns: int = 1_000 * SECOND
    processes: dict[int, int] = field(default_factory=dict)  # pid -> starttime
    files: dict[str, int] = field(default_factory=dict)  # record id -> bytes
    foreign: set[str] = field(default_factory=set)
    journal: dict[str, Record] = field(default_factory=dict)
    saved_halt: Halt = field(default_factory=Halt)
    shown_halt: tuple[Halt, Halt] = (Halt(), Halt())  # in force, on disk
    stopped: set[int] = field(default_factory=set)  # by SIGSTOP
    unkillable: set[int] = field(default_factory=set)
    journal_broken: bool = False
    slow_kill_turns: int = 0
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    stops: dict[int, tuple[int, int]] = field(default_factory=dict)
    gates: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    ceilings: dict[int, float] = field(default_factory=dict)
    held: set[Identity] = field(default_factory=set)
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    performed: list[Action] = field(default_factory=list)
    retired: bool = False
    lives: int = 0
    core: GuardianCore = field(init=False)

    def __post_init__(self) -> None:
        self.core = self._new_core(0)

    def _new_core(self, base: int) -> GuardianCore:
        self.lives += 1
        return GuardianCore(
            "guardian-id",
            life=f"L{self.lives}",
            code_id="code",
            settings=self.settings,
            halt=self.saved_halt,
            machine=(BOOT, 1),
            generation_base=base,
        )

    # --- driving it

    def call(self, op: str, peer: str = "p", **fields: Any) -> dict[str, Any] | None:
        """Send a request and return its answer, None when it has not come yet."""
        before = len(self.replies.setdefault(peer, []))
        self.perform(self.core.handle({"op": op, **fields}, peer, self.now_ns))
        found = self.replies[peer][before:]
        return found[0] if found else None

    def hello(self, peer: str = "p", role: str = "agent", epoch: int = 1, incarnation: int = 1, **fields: Any) -> dict[str, Any]:
        """Say hello as an agent of node n."""
        owner = {"cluster": "c", "node": "n", "epoch": epoch, "incarnation": incarnation}
        answer = self.call("hello", peer, role=role, protocol=PROTOCOL, code_id="code", **{**owner, **fields})
        assert answer is not None
        return answer

    def open(self, epoch: int = 1, incarnation: int = 1, **fields: Any) -> dict[str, Any]:
        """Open a slot with plenty of everything."""
        request = {
            "cluster": "c",
            "node": "n",
            "epoch": epoch,
            "incarnation": incarnation,
            "run": "run",
            "operation": "0.CpuLoad@n",
            "amounts": {"cpu_cores": 1, "disk_bytes": 1 << 30},
            "machine_limits": {"cpu_cores": 4, "memory_bytes": 1 << 40, "disk_bytes": 1 << 40},
            "release_s": 0.5,
            "sharers": 1,
        }
        answer = self.call("open_slot", **{**request, **fields})
        assert answer is not None
        return answer

    def ticket(self, **fields: Any) -> dict[str, int]:
        """Open a slot and return its ticket."""
        answer = self.open(**fields)
        assert answer["ok"], answer
        return {"slot": answer["slot"], "generation": answer["generation"]}

    def grant(self, ticket: dict[str, int], lease_s: float = 5.0, epoch: int = 1, incarnation: int = 1, **fields: Any) -> dict[str, Any]:
        """Grant a lease from now on."""
        lease = [ticket["slot"], ticket["generation"], self.now_ns + round(lease_s * SECOND)]
        request = {"cluster": "c", "node": "n", "epoch": epoch, "incarnation": incarnation, "leases": [lease], **fields}
        answer = self.call("grant", **request)
        assert answer is not None
        return answer

    def load(self, ticket: dict[str, int], pid: int = 100) -> dict[str, Any]:
        """Start a process and register it."""
        self.processes[pid] = self.now_ns
        answer = self.call("register", **ticket, pid=pid)
        assert answer is not None
        return answer

    def fill(self, ticket: dict[str, int], size: int = 1_000_000) -> str:
        """Arm a fill, apply it, return its record."""
        answer = self.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": "t"})
        assert answer is not None
        assert answer["ok"], answer
        applied = self.call("apply", record=answer["record"], params={"bytes": size})
        assert applied is not None
        assert applied["ok"], applied
        return str(answer["record"])

    def run_for(self, seconds: float) -> None:
        """Let time pass, ticking exactly when the core says so."""
        end_ns = self.now_ns + round(seconds * SECOND)
        while self.core.next_due_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.core.next_due_ns)
            self.perform(self.core.tick(self.now_ns))
        self.now_ns = end_ns

    def die(self, pid: int) -> None:
        """A process ends by itself."""
        started = self.processes.pop(pid)
        identity = Identity(BOOT, 1, pid, started)
        if identity in self.held:
            self.held.discard(identity)
            self.perform(self.core.died(identity, self.now_ns))

    def restart(self, *, same_page: bool) -> None:
        """The guardian dies; a standby with the same pages, or a fresh guardian, takes over."""
        leases = {}
        if same_page:
            leases = {slot: (*word, self.stops.get(slot, (0, STOP_NONE))[1]) for slot, word in self.leases.items()}
        self.leases = self.leases if same_page else {}
        self.held.clear()
        self.core = self._new_core(0 if same_page else 500 * self.lives)
        self.perform(self.core.adopt(list(self.journal.values()), leases, self.now_ns))

    # --- performing its orders

    def perform(self, actions: list[Action]) -> None:
        """Do what was ordered, feeding results back, until nothing is left to do."""
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            self.performed.append(action)
            result = self._do(action)
            if result is not None:
                todo += self.core.done(result, self.now_ns)

    def _do(self, action: Action) -> Result | None:
        match action:
            case Reply(peer, body):
                self.replies.setdefault(peer, []).append(body)
            case WriteLeases(items):
                for item in items:
                    self._write_lease(*item)
            case WriteCeilings(items):
                self.ceilings.update(items)
            case WriteStop(slot, generation, code):
                self.stops[slot] = (generation, code)
            case WriteGate(slot, generation):
                assert any(one.kind == "process" and (one.slot, one.generation) == (slot, generation) for one in self.journal.values())
                self.gates[slot] = generation
            case WriteStart(slot, _, start_ns):
                self.starts[slot] = start_ns
            case ResetSlot(slot, generation):
                self.leases[slot], self.stops[slot], self.gates[slot] = (generation, 0), (generation, STOP_NONE), 0
            case Identify(token, pid):
                return self._identify(token, pid)
            case Watch(identity):
                if self.processes.get(identity.pid) == identity.starttime:
                    self.held.add(identity)
                else:
                    self.perform(self.core.died(identity, self.now_ns))
            case Unwatch(identity):
                self.held.discard(identity)
            case Observe(token, identity):
                alive = self.processes.get(identity.pid) == identity.starttime
                return Observed(token, ("T" if identity.pid in self.stopped else "S") if alive else "")
            case KillOwner(identity):
                assert self.processes.get(identity.pid) == identity.starttime, "a signal to a process that was not meant"
                self.die(identity.pid)
            case MakeContainer(record):
                assert record.id in self.journal
                return ContainerMade(record.id, "")
            case JournalArm(record):
                if self.journal_broken:
                    return Journalled(record.id, ("journal", "no space"))
                self.journal[record.id] = record
                return Journalled(record.id)
            case JournalFree(record_id):
                self.journal.pop(record_id, None)
            case PublishHalt(halt, kept):
                assert kept <= self.saved_halt, "told to be on disk before it was"
                self.shown_halt = (halt, kept)
            case SaveHalt(generation, on):
                self.saved_halt = Halt(generation, on)
                return HaltSaved(generation)
            case Kill(record) | Undo(record):
                return self._undo(record)
            case Verify(record):
                return self._look(record)
            case Apply(record, params):
                return self._apply(record, int(params["bytes"]))
            case Retire():
                self.retired = True
        return None

    def _write_lease(self, slot: int, generation: int, deadline_ns: int) -> None:
        found, before_ns = self.leases.get(slot, (0, 0))
        assert found == generation, f"a lease of generation {generation} written over {found}"
        over = self.stops.get(slot, (0, STOP_NONE)) == (generation, STOP_KILL)
        assert deadline_ns == 0 if over else deadline_ns > before_ns, "a deadline shrank, or lived after the end"
        self.leases[slot] = (generation, deadline_ns)

    def _identify(self, token: int, pid: int) -> Identified:
        if pid not in self.processes:
            return Identified(token, None)
        identity = Identity(BOOT, 1, pid, self.processes[pid])
        self.held.add(identity)
        return Identified(token, identity)

    def _named(self, record: Record) -> int | None:
        pid = record.fields.get("pid", record.fields.get("sid"))
        return pid if pid is not None and self.processes.get(pid) == record.fields["starttime"] else None

    def _undo(self, record: Record) -> Outcome:
        assert record.id in self.journal, "undone without a record"
        if record.kind in {"process", "session"}:
            pid = self._named(record)
            if pid is not None and pid not in self.unkillable:
                if self.slow_kill_turns > 0:
                    self.slow_kill_turns -= 1
                    return Outcome(record.id, "pending", "dying")
                self.die(pid)
        elif record.kind == "disk_fill":
            if record.id in self.foreign:
                return Outcome(record.id, "foreign", "other content")
            self.files.pop(record.id, None)
        return self._look(record)

    def _look(self, record: Record) -> Outcome:
        left = record.id in self.files or self._named(record) is not None
        return Outcome(record.id, "pending" if left else "undone")

    def _apply(self, record: Record, size: int) -> Applied:
        assert record.id in self.journal, "applied without a durable record"
        step = min(size, self.files.get(record.id, 0) + (1 << 20))
        self.files[record.id] = step
        return Applied(record.id, step, step < size)
