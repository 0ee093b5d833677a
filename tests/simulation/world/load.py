"""What stresses a node, as its simulator and the kernel would show it: a process that looks at its lease, or a file that is filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.control import STOP_DRAIN, STOP_KILL
from actors.messages import Amounts, Operation
from actors.simulator import record_of

from .timeline import MS, SECOND, Process

if TYPE_CHECKING:
    from .agent_host import AgentHost
    from .machine import Machine

PENDING, RUNNING, DONE, FAILED, EXPIRED = "pending", "running", "done", "failed", "expired"


class Load(Process):
    """One operation's load: waits for its start, looks at its lease, ends. `poked` is called when its words on the page change.

    It does not poll: the next look that could matter is the one after its deadline, or after a word that forbids it.
    """

    def __init__(self, agent: AgentHost, run: str, operation: Operation, slot: int, generation: int, amounts: Amounts, release_ns: int) -> None:
        super().__init__(agent.timeline)
        self.agent, self.machine, self.node = agent, agent.node.machine, agent.node.name
        self.run, self.operation, self.slot, self.generation = run, operation, slot, generation
        self.amounts, self.release_ns = amounts, release_ns
        self.look_ns = record_of(operation.kind).look_ms * MS
        self.page = self.machine.page
        self.pid, self.started_ns = 0, 0
        self.phase, self.reason = PENDING, ""
        self.first_ns = 0
        self.ready = self.hung = self.counted = False
        self.dying = False
        self.ending = False
        self.last_deadline_ns = self.thawed_ns = 0
        self._check_ns = 0
        self._start_ns = 0
        self.page.lookers[slot] = self
        self.world = agent.world

    def __str__(self) -> str:
        return f"{self.operation.id} of {self.run} on {self.node}"

    # ---- what the page says

    def poked(self) -> None:
        """The page has a new word for this slot: look at it within one look."""
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        if found == self.generation and deadline_ns:
            self.last_deadline_ns = deadline_ns
        self._look_at(self.timeline.now_ns + self.world.chance.randrange(self.look_ns))

    def _look_at(self, when_ns: int) -> None:
        if not self._check_ns or when_ns < self._check_ns:
            self._check_ns = when_ns
            self.timeline.at(when_ns, self.run_check, when_ns)

    def run_check(self, when_ns: int) -> None:
        if when_ns == self._check_ns:
            self.run_ = None
            self.run_now()

    def run_now(self) -> None:
        """Look, unless stopped; a stopped one looks when it goes on."""
        self._check_ns = 0
        super().run(self._look)

    def _look(self) -> None:
        if self.dying or self.hung:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        stop = self.page.stops.get(self.slot)
        now_ns = self.machine.clock.now()
        if found != self.generation or stop == (self.generation, STOP_KILL) or (deadline_ns and now_ns >= deadline_ns):
            self._finish(EXPIRED, "its lease ended")
        elif stop == (self.generation, STOP_DRAIN):
            self._finish(DONE, "")
        elif deadline_ns:
            self.last_deadline_ns = deadline_ns
            self._look_at(self.machine.clock.when(deadline_ns) + self.world.chance.randrange(self.look_ns))
            self._maybe_start()

    def _maybe_start(self) -> None:
        start_ns = self.page.starts.get(self.slot, 0)
        if self.ready and start_ns and start_ns != self._start_ns:
            self._start_ns = start_ns
            self.timeline.at(self.machine.clock.when(start_ns), super().run, self._begin)

    def _begin(self) -> None:
        if self.dying or self.phase is not PENDING or self.hung:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        if found != self.generation or self.page.stops.get(self.slot, (0, 0))[1] or self.machine.clock.now() >= deadline_ns:
            self._look()
            return
        self.phase, self.first_ns, self.counted = RUNNING, self.machine.clock.now(), True
        self.world.watch.begins(self)
        self.agent.look_soon()
        self._work()
        end_ns = self._start_ns + round(self.operation.duration_s * SECOND)
        self.timeline.at(self.machine.clock.when(end_ns), super().run, self._finish, DONE, "")

    def _work(self) -> None:
        """Processes stress by being there."""

    def _finish(self, phase: str, reason: str) -> None:
        """End by itself."""
        if self.dying:
            return
        self.phase, self.reason = phase, reason
        self.world.watch.seen[f"load_{phase}"] += 1
        self._dies(look=True)

    # ---- how it ends

    def kill(self) -> None:
        """SIGKILL: it does nothing any more, and is gone a little later."""
        if not self.dying:
            self.phase, self.reason = (FAILED, "killed") if self.phase in (PENDING, RUNNING) else (self.phase, self.reason)
            self._dies(look=False)

    def _dies(self, *, look: bool) -> None:
        self.dying = True
        self.world.watch.ends(self, self.machine.clock.now(), look=look)
        free_ns = self.world.chance.randrange(MS, 20 * MS) + (self.release_ns * self.world.chance.randrange(100) // 100)
        self.timeline.after(free_ns, self._gone)

    def _gone(self) -> None:
        if self.alive:
            self.alive = False
            self.machine.exited(self)
            self.world.watch.gone(self)
            self.agent.look_soon()

    def vanish(self) -> None:
        """The machine lost its power."""
        if self.alive:
            self.alive = False
            self.world.watch.gone(self)

    def thaw(self) -> None:
        """The machine went on after a suspend: the next look may come one look later."""
        self.thawed_ns = self.machine.clock.now()


class Fill(Load):
    """A fill: no process; a thread that has the guardian grow a file, and undo it."""

    record = ""
    applying = False

    def _work(self) -> None:
        self._apply(0)

    def _apply(self, step: int) -> None:
        if self.phase is not RUNNING or self.dying:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        if found != self.generation or self.machine.clock.now() >= deadline_ns:
            self._look()
            return
        size = self.amounts.disk_bytes * (step + 1) // 3
        self.agent.link_of(self).call("apply", self._applied, record=self.record, params={"bytes": size})
        if step < 2:
            self.timeline.after(self.world.chance.randrange(200 * MS, 900 * MS), super().run, self._apply, step + 1)

    def _applied(self, answer: dict[str, Any]) -> None:
        if not answer["ok"] and self.phase is RUNNING:
            self._finish(FAILED if answer["code"] == "os" else EXPIRED, answer["message"])

    def _dies(self, *, look: bool) -> None:
        """Its thread ends; the file is the guardian's to remove."""
        self.dying = True
        self.machine.fills_open.discard(self)
        if self.record:
            self.agent.link_of(self).call("undo", self._undone, record=self.record)
        else:
            self._undone({"ok": True})

    def _undone(self, _: dict[str, Any]) -> None:
        """What the answer says is for the guardian's record to tell; the agent looks at the phase."""
        self.agent.look_soon()

    def file_gone(self) -> None:
        """The file was removed."""
        if self.alive:
            self.alive = False
            if self.counted:
                self.world.watch.gone(self)


def make(agent: AgentHost, run: str, operation: Operation, slot: int, generation: int, amounts: Amounts, release_ns: int) -> Load:
    """Return the load of an operation."""
    kind: Callable[..., Load] = Fill if operation.kind == "DiskFill" else Load
    return kind(agent, run, operation, slot, generation, amounts, release_ns)
