"""One machine: its clock, processes, files and STATE. What it keeps over a reboot is what a real one keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.messages import Halt
from actors.undo import Record

from .effects import Box, File, Page
from .guardian_host import GuardianHost
from .timeline import MS, SECOND, LocalClock, Process

if TYPE_CHECKING:
    from .world import World

REPEATABLE = frozenset({"hello", "grant", "throttle", "start", "stop", "undo", "close_slot", "status", "halt", "resume", "apply"})
RETRY_NS = 2 * SECOND
Answer = Callable[[dict[str, Any]], Any]


class Machine:
    """A host: at most one guardian acts on its STATE. `life` names one page set, `boot` one boot."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.timeline, self.name = world, world.timeline, name
        self.chance = world.chance
        self.drift_ppm = self.chance.randint(-1_000, 1_000)
        self.clock = LocalClock(self.timeline, self.chance.randrange(1, 10**6) * SECOND, self.drift_ppm)
        self.boots, self.lives = 0, 0
        self.on = True
        self.frozen = False
        self.wall_offset_ns = 0
        self.journal: dict[str, Record] = {}
        self.files: dict[str, File] = {}  # by record
        self.foreign: set[str] = set()
        self.undoing: set[str] = set()
        self.boxes: dict[tuple[str, str, int], Box] = {}
        self.halt = Halt()
        self.processes: dict[int, Any] = {}
        self.guardian: GuardianHost | None = None
        self.page = Page()
        self.life = ""
        self.silent_since_ns = self.thawed_ns = 0
        self._pid = 100
        self._parked: list[tuple[Link, dict[str, Any], Answer, int]] = []
        self._spawning = False
        self._boot()

    def _boot(self) -> None:
        self.boots += 1
        self.boot_id = f"{self.name}-boot{self.boots}"
        self.guardian_id = f"{self.name}-{self.boots}-{self.chance.getrandbits(32):08x}"

    # ---- processes

    def begin(self, process: Any) -> int:
        """Give a process its pid."""
        self._pid += 1
        process.pid, process.started_ns = self._pid, self.clock.now()
        self.processes[self._pid] = process
        return self._pid

    def exited(self, process: Any) -> None:
        """A process is gone."""
        if self.processes.get(process.pid) is process:
            del self.processes[process.pid]
            if self.guardian is not None:
                self.guardian.take(self.guardian.process_died, process)

    def everything(self) -> list[Process]:
        """Return all that runs here."""
        found: list[Process] = list(self.processes.values())
        found += [looker for looker in self.page.lookers.values() if looker.alive and looker.pid == 0]
        if self.guardian is not None:
            found.append(self.guardian)
        return found

    def is_there(self, record: Record) -> bool:
        """Tell whether the effect of a record can be found, looking from outside."""
        if record.kind == "process":
            found = self.processes.get(record.fields["pid"])
            return found is not None and found.started_ns == record.fields["starttime"] and record.fields["boot_id"] == self.boot_id
        return record.id in self.files

    # ---- the guardian's life

    def start_guardian(self) -> None:
        """Start a guardian without a living predecessor: a fresh page, everything in the journal is ended."""
        self._spawning = False
        if not self.on or self.guardian is not None:
            return
        self.lives += 1
        self.page, self.life = Page(), f"{self.boot_id}-life{self.lives}"
        self._serve({})

    def _serve(self, leases: dict[int, tuple[int, int, int]]) -> None:
        self.guardian = GuardianHost(self, serial=self.lives)
        self.guardian.adopt(leases)
        parked, self._parked = self._parked, []
        for link, request, answer, give_up_ns in parked:
            self._send(link, request, answer, give_up_ns)

    def takeover(self) -> None:
        """The standby goes on: same page, journal replayed."""
        if not self.on or self.guardian is not None:
            return
        self.lives += 1
        page = self.page
        leases = {slot: (*word, page.stops.get(slot, (0, 0))[1]) for slot, word in page.leases.items() if word[0]}
        self.world.fired["takeover"] += 1
        self._serve(leases)

    def guardian_dies(self, *, standby: bool, after_ns: int) -> bool:
        """Kill the guardian; its standby, if it lives, takes over a little later."""
        guardian, self.guardian = self.guardian, None
        if guardian is None:
            return False
        guardian.die()
        self.silent_since_ns = self.timeline.now_ns
        if standby:
            self.timeline.after(after_ns, self.when_awake, self.takeover)
        else:
            for looker in self.page.lookers.values():
                looker.excused = True
            self.timeline.after(300 * MS, self.when_awake, self._respawn)
        return True

    def retire(self) -> None:
        """The guardian left because nothing was guarded."""
        if self.guardian is not None:
            self.guardian.die()
            self.guardian = None
        self.world.fired["retired"] += 1

    def _respawn(self) -> None:
        if self._parked:
            self.start_guardian()

    def when_awake(self, call: Callable[[], Any]) -> None:
        """Do something now, or when the suspend is over."""
        if self.frozen:
            self.timeline.after(100 * MS, self.when_awake, call)
        else:
            call()

    # ---- requests

    def send(self, link: Link, request: dict[str, Any], answer: Answer) -> None:
        """Hand a request to the guardian, starting one where there is none; `answer` is called once, or never when the caller dies."""
        self._send(link, request, answer, self.timeline.now_ns + RETRY_NS)

    def _send(self, link: Link, request: dict[str, Any], answer: Answer, give_up_ns: int) -> None:
        if not link.owner.alive or not self.on:
            return
        guardian = self.guardian
        if guardian is None:
            self._parked.append((link, request, answer, give_up_ns))
            self.timeline.at(give_up_ns, self._give_up, answer)
            if not self._spawning:
                self._spawning = True
                self.timeline.after(400 * MS, self.when_awake, self.start_guardian)
            return
        if link.serial != guardian.serial and request["op"] != "hello":
            link.serial = guardian.serial
            guardian.take(guardian.serve, link, dict(link.greeting), lambda _: None)
        guardian.take(guardian.serve, link, request, answer)
        if guardian.holds:
            self.timeline.after(5 * SECOND, self._give_up, answer)

    def _give_up(self, answer: Answer) -> None:
        for entry in self._parked:
            if entry[2] is answer:
                self._parked.remove(entry)
                answer({"ok": False, "code": "timeout", "message": "no guardian answers"})
                return

    def lost_answer(self, link: Link, request: dict[str, Any], answer: Answer) -> None:
        """The guardian died with a request: it is sent again where that is harmless, and lost otherwise."""
        if not link.owner.alive:
            return
        if request["op"] in REPEATABLE:
            self._send(link, request, answer, self.timeline.now_ns + RETRY_NS)
        else:
            answer({"ok": False, "code": "lost", "message": "the guardian went away"})

    # ---- power

    def freeze(self, span_ns: int) -> None:
        """Suspend: nothing runs, boot time goes on."""
        self.frozen = True
        held = self.everything()
        for process in held:
            process.hold()
        self.timeline.after(span_ns, self._thaw, held)

    def _thaw(self, held: list[Process]) -> None:
        self.frozen, self.thawed_ns = False, self.clock.now()
        for process in held:
            process.release()

    def power_off(self) -> None:
        """Everything that runs is gone at once; what was not synced may be lost."""
        self.on = False
        for process in self.everything():
            if hasattr(process, "vanish"):
                process.vanish()
            process.alive = False
        for file in self.files.values():
            if file.fill is not None:
                file.fill.vanish()
        self.processes.clear()
        self.page.lookers.clear()
        self.guardian, self._parked, self._spawning = None, [], False
        for box in self.boxes.values():
            if not box.ended and len(box.counts) > box.acked and self.chance.random() < 0.3:
                box.counts.pop()  # it was in the page cache alone
                self.world.fired["outbox_torn"] += 1

    def power_on(self) -> None:
        """Boot: another boot id, a boot clock near zero."""
        self.on, self.thawed_ns = True, 0
        self.clock = LocalClock(self.timeline, self.chance.randrange(5, 60) * SECOND, self.drift_ppm)
        self._boot()


class Link:
    """One process's way to its machine's guardian: says hello by itself whenever another guardian serves."""

    def __init__(self, machine: Machine, owner: Process, greeting: dict[str, Any]) -> None:
        self.machine, self.owner, self.greeting = machine, owner, greeting
        self.peer = f"{greeting.get('role')}-{id(self)}"
        self.serial = -1

    def hello(self, answer: Answer) -> None:
        """Say hello first."""
        guardian = self.machine.guardian
        self.serial = guardian.serial if guardian else -1
        self.machine.send(self, dict(self.greeting), answer)

    def call(self, op: str, answer: Answer, **fields: Any) -> None:
        """Send one request."""
        self.machine.send(self, {"op": op, **fields}, answer)
