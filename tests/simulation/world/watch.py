"""The invariants of the control plane, asserted while the world runs. Numbers are those of docs/explanation/control-plane.md."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from actors.control import STOP_KILL
from actors.messages import Amounts
from cluster.safety import budget as ledgers

from .timeline import MS, SECOND

if TYPE_CHECKING:
    from .agent_host import AgentHost
    from .load import Load
    from .machine import Machine, Page
    from .world import World

TAKEOVER_NS = 2 * SECOND  # a standby serves by then


class Watch:
    """Sees everything and fails on the first thing that may not be."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: Counter[str] = Counter()
        self.live = Amounts()
        self.harmed: Counter[str] = Counter()  # nodes under load
        self.hellos: dict[tuple[str, str], int] = {}  # (machine life, node) -> highest incarnation
        self.tokens: dict[tuple[str, str], tuple[int, int]] = {}
        self.granted_until: dict[str, tuple[int, int]] = {}  # node -> latest t0 + lease that was answered, and its charge's end (true time)
        self.terminal: set[tuple[int, int, int]] = set()

    def fail(self, number: int, message: str) -> None:
        """End the run with the invariant's number."""
        raise AssertionError(f"invariant {number} at {self.world.timeline.now_ns / SECOND:.6f} s: {message}")

    # ---- leases

    def answered(self, node: str, deadline_ns: int, charged_until_true_ns: int) -> None:
        """Note that an orchestrator has answered a question: the only source of deadlines."""
        known = self.granted_until.get(node)
        if known is None or deadline_ns > known[0]:
            self.granted_until[node] = (deadline_ns, charged_until_true_ns)

    def lease_written(self, machine: Machine, page: Page, slot: int, generation: int, deadline_ns: int, node: str) -> None:
        """2, 3, 4: a deadline comes from an answer, never falls, never lives again, and is written by a living guardian."""
        key = (id(page), slot, generation)
        found, before_ns = page.leases.get(slot, (0, 0))
        if found != generation:
            self.fail(3, f"{machine.name}: a lease of generation {generation} over {found}")
        if not deadline_ns:
            self.terminal.add(key)
            return
        if key in self.terminal:
            self.fail(3, f"{machine.name}: slot {slot} lives after its end")
        if deadline_ns < before_ns:
            self.fail(3, f"{machine.name}: the deadline of slot {slot} fell")
        if machine.guardian is None or not machine.guardian.alive or machine.guardian.holds:
            self.fail(4, f"{machine.name}: a deadline moved without a guardian")
        allowed_ns, charged_ns = self.granted_until.get(node, (0, 0))
        if deadline_ns > allowed_ns:
            self.fail(2, f"{node}: deadline {deadline_ns} lies {deadline_ns - allowed_ns} ns behind every answer")
        end_ns = machine.clock.when(deadline_ns) + self.world.allowance_ns
        if deadline_ns == allowed_ns and end_ns > charged_ns:
            self.fail(2, f"{node}: the charge ends {(end_ns - charged_ns) / MS:.3f} ms before deadline and allowance")
        self.seen["lease_extended"] += 1

    def hello(self, machine: Machine, node: str, epoch: int, incarnation: int) -> None:
        """Note an acknowledged hello."""
        key = (machine.life, node)
        self.hellos[key] = max(self.hellos.get(key, 0), incarnation)
        self.tokens[key] = max(self.tokens.get(key, (0, 0)), (epoch, incarnation))

    def granted(self, machine: Machine, node: str, epoch: int, incarnation: int) -> None:
        """5: nobody writes after a newer incarnation's hello, nor with a smaller epoch."""
        key = (machine.life, node)
        if incarnation < self.hellos.get(key, 0):
            self.fail(5, f"{node}: agent {incarnation} granted after the hello of {self.hellos[key]}")
        if (epoch, incarnation) < self.tokens.get(key, (0, 0)):
            self.fail(5, f"{node}: grant of {(epoch, incarnation)} after {self.tokens[key]}")
        self.tokens[key] = (epoch, incarnation)
        if machine.guardian is not None and machine.guardian.core.halt.on:
            self.fail(13, f"{machine.name}: granted under a halt")

    def blind_grant(self, agent: AgentHost, age_ns: int) -> None:
        """20: what loads is not renewed by an agent that knows nothing of its host."""
        self.fail(20, f"{agent.node.name}: load is renewed {age_ns / SECOND:.1f} s after the last host snapshot")

    # ---- loads

    def begins(self, load: Load) -> None:
        """1, 7, 13: load begins under a live lease, with a durable record, and not under a halt."""
        self.seen[f"begins_{load.operation.kind}"] += 1
        machine = load.machine
        generation, deadline_ns = load.page.leases.get(load.slot, (0, 0))
        if generation != load.generation or machine.clock.now() >= deadline_ns:
            self.fail(1, f"{load}: begins without a live lease")
        # a fill thread may begin on a dead guardian's page: its first step is then refused, and checked in `applied`
        if load.pid and not any(record.slot == load.slot and record.generation == load.generation for record in machine.journal.values()):
            self.fail(7, f"{load}: begins without a durable record")
        if machine.guardian is not None and machine.guardian.core.halt.on and load.page is machine.page:
            self.fail(13, f"{load}: begins under a halt")

    def takes(self, load: Load) -> None:
        """6: what loads take together is inside of the budget."""
        load.counted, world = True, self.world
        self.live = self.live.plus(load.amounts)
        limit = Amounts(world.budget.cpu_cores_max or 0.0, world.budget.memory_bytes_max or 0, world.budget.disk_bytes_max or 0)
        if not self.live.within(limit):
            self.fail(6, f"{load}: {self.live} is under load in all, the budget is {limit}")
        self.harmed[load.node] += 1
        if len(self.harmed) > (world.budget.nodes_max or 0):
            self.fail(6, f"{load}: more nodes under load than the budget allows")

    def ends(self, load: Load, local_ns: int, *, look: bool) -> None:
        """1, 17: no load lives past its deadline, one look, and what a kill may take; 2: its charge is still there."""
        allowed_ns = max(load.deadline_ns, load.machine.thawed_ns) + load.look_ns
        if load.excused and not look:
            return
        if not look or load.hung:  # it was ended from outside
            allowed_ns = max(load.deadline_ns, load.machine.thawed_ns) + self.world.allowance_ns
        if load.deadline_ns and local_ns > allowed_ns:
            self.fail(1, f"{load}: lives {(local_ns - allowed_ns) / MS:.3f} ms too long (deadline {load.deadline_ns}, hung {load.hung})")

    def gone(self, load: Load) -> None:
        """2: what a load takes is charged until it is gone."""
        if not load.counted:
            return
        load.counted = False
        self.live = self.live.minus(load.amounts)
        self.harmed[load.node] -= 1
        if not self.harmed[load.node]:
            del self.harmed[load.node]
        if load.excused:
            return
        core, now_ns = self.world.head.core, self.world.head.clock.now()
        run = load.run_id
        if core is None or not (run in core.runs or run in core.finished_runs):
            return
        held = core.ledger.reservations.get(run)
        charge = held.charges.get(load.node) if held else None
        if load.machine.thawed_ns > load.deadline_ns:
            return  # suspended past its lease: nothing of it ran meanwhile
        if charge is None:
            self.fail(2, f"{load}: given back while it was there")
        elif charge.amounts_at(now_ns) != charge.amounts:
            self.fail(2, f"{load}: its charge ran out {(now_ns - (charge.expires_ns or 0)) / MS:.3f} ms before it was gone")

    # ---- effects

    def applied(self, machine: Machine, record: Any) -> None:
        """7: nothing is applied without a synced record, nor after its undo began."""
        if record.id not in machine.journal:
            self.fail(7, f"{machine.name}: {record.id} applied without a durable record")
        if record.id in machine.undoing:
            self.fail(7, f"{machine.name}: {record.id} applied after its undo began")
        self.seen["applied"] += 1

    def forgotten(self, machine: Machine, record_id: str) -> None:
        """8: a record leaves the journal only when nothing of it is left."""
        record = machine.journal.get(record_id)
        if record is not None and machine.is_there(record):
            self.fail(8, f"{machine.name}: record {record_id} ({record.kind}) is dropped while its effect is there")
        self.seen["undone"] += record is not None

    def clean(self, node: Any, run: str) -> None:
        """8, 15: an agent calls a run clean only when nothing of it is left on its node."""
        machine = node.machine
        for record in machine.journal.values():
            if record.run == run and record.node == node.name and machine.is_there(record) and record.id not in machine.foreign:
                self.fail(15, f"{node.name}: {run} is called clean, but its {record.kind} {record.id} is there")
        self.seen["clean"] += 1

    def halted(self, machine: Machine, before: Any, after: Any) -> None:
        """13: the halt's generation never falls, also over restarts."""
        if after.generation < before.generation:
            self.fail(13, f"{machine.name}: halt generation fell from {before.generation} to {after.generation}")
        self.seen["halt_on_machine"] += after.on
        for slot, looker in machine.page.lookers.items():
            if after.on and looker.phase == "running" and not looker.dying and machine.page.stops[slot][1] != STOP_KILL:
                self.fail(13, f"{looker}: goes on under a halt")

    # ---- the ledger

    def ledger(self, core: Any, now_ns: int) -> None:
        """6: reserved, live and presumed together are inside of the budget, and every node under load is in the ledger."""
        uncharged = sorted(set(self.harmed) - core.ledger.nodes_harmed())
        if uncharged and core is self.world.head.core:  # one that was replaced knows only its own time
            self.fail(6, f"{uncharged[:3]} are under load, and the ledger knows nothing of it")
        excess = ledgers.first_excess(core.ledger, 0.0, now_ns)
        if excess:
            self.fail(6, excess)

    def passed(self, run: str, nodes: Any) -> None:
        """15: a run passes only when each of its nodes confirmed its end and delivered."""
        for name, state in nodes.items():
            node = self.world.nodes[name]
            if state.lost or not state.clean:
                self.fail(15, f"{run} passed, but {name} is {'lost' if state.lost else state.stage}")
            self.clean(node, run)
            for (of_run, of_node, _), box in node.machine.boxes.items():
                if (of_run, of_node) == (run, name) and not box.drained:
                    self.fail(15, f"{run} passed, but a stream of {name} is open")
        self.seen["passed"] += 1
