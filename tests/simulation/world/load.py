"""What stresses a node, as its simulator and the kernel would show it: a process that looks at its lease, or a file that is filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.control import STOP_DRAIN, STOP_KILL
from actors.messages import Amounts, Operation
from actors.simulator import record_of

from .timeline import MS, SECOND, Process

if TYPE_CHECKING:
    from .agent_host import AgentHost

PENDING, RUNNING, DONE, FAILED, EXPIRED = "pending", "running", "done", "failed", "expired"


class Load(Process):
    """One operation's load: waits for its start, looks at its lease, ends.

    It does not poll: the looks that matter are the one after its deadline and the one after a word of its slot has changed.
    """

    def __init__(
        self, agent: AgentHost, run_id: str, operation: Operation, slot: int, generation: int, amounts: Amounts, release_ns: int
    ) -> None:
        super().__init__(agent.timeline)
        self.agent, self.world, self.machine, self.node = agent, agent.world, agent.node.machine, agent.node.name
        self.run_id, self.operation, self.slot, self.generation = run_id, operation, slot, generation
        self.amounts, self.release_ns = amounts, release_ns
        self.look_ns = record_of(operation.kind).look_ms * MS
        self.page = self.machine.page
        self.pid, self.started_ns = 0, 0
        self.phase, self.reason, self.first_ns = PENDING, "", 0
        self.ready = False  # compiled, registered, waits for its start
        self.hung = False  # looks no more: only the guardian ends it
        self.counted = False  # its load has begun
        self.excused = False  # nobody is left who could undo it in time
        self.dying = False
        self._check_ns = 0
        self._start_ns = 0
        self.page.lookers[slot] = self

    def __str__(self) -> str:
        return f"{self.operation.id} of {self.run_id} on {self.node}"

    @property
    def deadline_ns(self) -> int:
        """The last deadline that it was given, also after its end."""
        generation, deadline_ns = self.page.last.get(self.slot, (0, 0))
        return deadline_ns if generation == self.generation else 0

    # ---- what the page says

    def poked(self) -> None:
        """The page has a new word for this slot: look at it within one look."""
        self._look_at(self.timeline.now_ns + self.world.chance.randrange(self.look_ns))

    def _look_at(self, when_ns: int) -> None:
        if not self._check_ns or when_ns < self._check_ns:
            self._check_ns = when_ns
            self.timeline.at(when_ns, self._check, when_ns)

    def _check(self, when_ns: int) -> None:
        if when_ns == self._check_ns:
            self._check_ns = 0
            self.take(self._look)

    def _look(self) -> None:
        if self.dying or self.hung:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        stop = self.page.stops.get(self.slot)
        now_ns = self.machine.clock.now()
        if found != self.generation or stop == (self.generation, STOP_KILL) or (deadline_ns and now_ns >= deadline_ns):
            self.finish(EXPIRED, "its lease ended")
        elif stop == (self.generation, STOP_DRAIN):
            self.finish(DONE, "")
        elif deadline_ns:
            self._look_at(self.machine.clock.when(deadline_ns) + self.world.chance.randrange(self.look_ns))
            self._maybe_start()

    def _maybe_start(self) -> None:
        start_ns = self.page.starts.get(self.slot, 0)
        if self.ready and start_ns and start_ns != self._start_ns:
            self._start_ns = start_ns
            self.timeline.at(self.machine.clock.when(start_ns), self.take, self._begin)

    def _begin(self) -> None:
        if self.dying or self.phase != PENDING or self.hung:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        if found != self.generation or self.page.stops.get(self.slot, (0, 0))[1] or self.machine.clock.now() >= deadline_ns:
            self._look()
            return
        self.phase, self.first_ns = RUNNING, self.machine.clock.now()
        self.world.watch.begins(self)
        self.agent.look_soon()
        end_ns = self._start_ns + round(self.operation.duration_s * SECOND)
        self.timeline.at(self.machine.clock.when(end_ns), self.take, self._over)
        self._work()

    def _over(self) -> None:
        if not self.hung:
            self.finish(DONE, "")

    def _work(self) -> None:
        """A process stresses by being there."""
        self.world.watch.takes(self)

    def finish(self, phase: str, reason: str) -> None:
        """End by itself."""
        if not self.dying:
            self.phase, self.reason = phase, reason
            self.world.watch.seen[f"load_{phase}"] += 1
            self._dies(look=True)

    # ---- how it ends

    def kill(self) -> None:
        """SIGKILL: it does nothing any more, and is gone a little later."""
        if not self.dying:
            if self.phase in (PENDING, RUNNING):
                self.phase, self.reason = FAILED, "killed"
            self._dies(look=False)

    def _dies(self, *, look: bool) -> None:
        self.dying = True
        self.world.watch.ends(self, self.machine.clock.now(), look=look)
        chance = self.world.chance
        self.timeline.after(chance.randrange(MS, 20 * MS) + self.release_ns * chance.randrange(100) // 100, self._gone)

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


class Fill(Load):
    """A fill: no process, but a thread that has the guardian grow a file and undo it."""

    record = ""

    def _work(self) -> None:
        self._apply(0)

    def _apply(self, step: int) -> None:
        if self.phase != RUNNING or self.dying:
            return
        found, deadline_ns = self.page.leases.get(self.slot, (0, 0))
        if found != self.generation or self.machine.clock.now() >= deadline_ns:
            self._look()
            return
        size = self.amounts.disk_bytes * (step + 1) // 3
        self.agent.link.call("apply", self._applied, record=self.record, params={"bytes": size})
        if step < 2:
            self.timeline.after(self.world.chance.randrange(200 * MS, 900 * MS), self.take, self._apply, step + 1)

    def _applied(self, answer: dict[str, Any]) -> None:
        if not answer["ok"] and self.phase == RUNNING:
            self.finish(FAILED if answer["code"] == "os" else EXPIRED, answer["message"])

    def _dies(self, *, look: bool) -> None:
        """Its thread ends; the file is the guardian's to remove."""
        self.dying = True
        if self.record:
            self.agent.link.call("undo", lambda _: self.agent.look_soon(), record=self.record)
        self.agent.look_soon()
        self.alive = False

    def file_made(self) -> None:
        """Its first bytes lie on the disk."""
        self.world.watch.takes(self)

    def file_gone(self) -> None:
        """Nothing of it lies on the disk any more."""
        self.world.watch.gone(self)

    def vanish(self) -> None:
        """Its bytes outlast the machine's death; they are given back when its lease must have ended, and undone at its next start."""
        self.excused, self.alive = True, False
        self.world.watch.gone(self)


def make(agent: AgentHost, run_id: str, operation: Operation, slot: int, generation: int, amounts: Amounts, release_ns: int) -> Load:
    """Return the load of an operation."""
    kind = Fill if operation.kind == "DiskFill" else Load
    return kind(agent, run_id, operation, slot, generation, amounts, release_ns)
