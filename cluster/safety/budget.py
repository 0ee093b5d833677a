"""The cluster-wide ledger: what all runs together may take, and what each holds until its load is known to be gone.

A reservation is two-phase: `reserve` holds the amounts for a short time, `confirm` keeps them for the run, `release_node`
and `release` give them back. A node that can no longer be heard stays charged: its cores and bytes until its lease must
have run out, its place in the count of harmed nodes until its own journal (or an operator) confirms that it is clean.

Pure: amounts and times in, a new ledger out. Never grants on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.errors import RefusedError
from actors.messages import Amounts

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Budget:
    """What all concurrent runs together may take. `None` means no bound of that kind."""

    nodes_max: int | None = None
    cpu_cores_max: float | None = None
    memory_bytes_max: int | None = None
    disk_bytes_max: int | None = None
    duration_s_max: float | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """What one node owes to one run. `expires_ns` is set once the node was lost: then the amounts free themselves."""

    amounts: Amounts
    expires_ns: int | None = None

    def amounts_at(self, now_ns: int) -> Amounts:
        """Return the amounts still charged: nothing once a lost node's load must have ended."""
        gone = self.expires_ns is not None and now_ns >= self.expires_ns
        return Amounts() if gone else self.amounts


@dataclass(frozen=True, slots=True)
class Reservation:
    """One run's holdings by node. Unconfirmed ones lapse at `lapses_ns`."""

    charges: Mapping[str, Charge]
    duration_s: float
    lapses_ns: int | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """All reservations under one budget."""

    budget: Budget = field(default_factory=Budget)
    reservations: Mapping[str, Reservation] = field(default_factory=dict)

    def nodes_harmed(self) -> set[str]:
        """Return every node that some run holds, presumed-ended ones included."""
        return {node for held in self.reservations.values() for node in held.charges}

    def total(self, now_ns: int) -> Amounts:
        """Return the sum of the amounts still charged."""
        total = Amounts()
        for held in self.reservations.values():
            for charge in held.charges.values():
                total = total.plus(charge.amounts_at(now_ns))
        return total

    def holds(self, run: str, node: str, now_ns: int) -> bool:
        """Tell whether a grant to this node may quote a confirmed, unspent reservation of this run."""
        held = self.reservations.get(run)
        if held is None or held.lapses_ns is not None:
            return False
        charge = held.charges.get(node)
        return charge is not None and charge.amounts_at(now_ns) == charge.amounts and charge.expires_ns is None

    def is_empty(self) -> bool:
        """Tell whether nothing is held."""
        return not self.reservations


def inherited(ledger: Ledger, charges: Mapping[str, Mapping[str, Amounts]], expires_ns: int) -> Ledger:
    """Return the ledger with what an earlier life left charged: as of lost nodes, until their own journals confirm."""
    held = {
        run: Reservation({node: Charge(amounts, expires_ns) for node, amounts in by_node.items()}, 0.0, None)
        for run, by_node in charges.items()
    }
    return replace(ledger, reservations={**ledger.reservations, **held})


def lapse(ledger: Ledger, now_ns: int) -> Ledger:
    """Drop reservations that were never confirmed in time."""
    kept = {run: held for run, held in ledger.reservations.items() if held.lapses_ns is None or now_ns < held.lapses_ns}
    return ledger if len(kept) == len(ledger.reservations) else replace(ledger, reservations=kept)


def reserve(ledger: Ledger, run: str, wanted: Mapping[str, Amounts], duration_s: float, now_ns: int, hold_ns: int) -> Ledger:
    """Hold these amounts for a run until confirmed; raises `RefusedError` (`budget`) naming the bound that would be passed."""
    ledger = lapse(ledger, now_ns)
    assert run not in ledger.reservations, f"run {run} holds a reservation already"
    held = Reservation({node: Charge(amounts) for node, amounts in wanted.items()}, duration_s, now_ns + hold_ns)
    after = replace(ledger, reservations={**ledger.reservations, run: held})
    reason = first_excess(after, duration_s, now_ns)
    if reason:
        others = sorted(set(ledger.reservations))
        beside = f"; other runs hold a part of it: {', '.join(others)}" if others else ""
        raise RefusedError("budget", f"run {run}: {reason}{beside}", "wait for them, ask for less, or raise the budget")
    return after


def first_excess(ledger: Ledger, duration_s: float, now_ns: int) -> str:
    """Return the first bound that the ledger passes, in words, or nothing."""
    budget, total, nodes = ledger.budget, ledger.total(now_ns), len(ledger.nodes_harmed())
    if budget.nodes_max is not None and nodes > budget.nodes_max:
        return f"{nodes} nodes would be under stress at once, the budget is {budget.nodes_max} (budget.nodes_max)"
    if budget.memory_bytes_max is not None and total.memory_bytes > budget.memory_bytes_max:
        return (
            f"{total.memory_bytes / GIB:.2f} GiB of memory in all, the budget is {budget.memory_bytes_max / GIB:.2f} GiB "
            "(budget.memory_bytes_max)"
        )
    if budget.cpu_cores_max is not None and total.cpu_cores > budget.cpu_cores_max + 1e-9:
        return f"{total.cpu_cores:.2f} cores in all, the budget is {budget.cpu_cores_max:.2f} (budget.cpu_cores_max)"
    if budget.disk_bytes_max is not None and total.disk_bytes > budget.disk_bytes_max:
        return (
            f"{total.disk_bytes / GIB:.2f} GiB of disk in all, the budget is {budget.disk_bytes_max / GIB:.2f} GiB (budget.disk_bytes_max)"
        )
    if budget.duration_s_max is not None and duration_s > budget.duration_s_max:
        return f"it lasts {duration_s:.0f} s, the budget is {budget.duration_s_max:.0f} s (budget.duration_s_max)"
    return ""


def confirm(ledger: Ledger, run: str, now_ns: int) -> Ledger:
    """Keep a held reservation for good; raises `RefusedError` when it has lapsed."""
    held = ledger.reservations.get(run)
    if held is None or (held.lapses_ns is not None and now_ns >= held.lapses_ns):
        raise RefusedError("budget", f"run {run}: its reservation lapsed before it was confirmed", "start it again")
    return _with(ledger, run, replace(held, lapses_ns=None))


def lose_node(ledger: Ledger, run: str, node: str, expires_ns: int) -> Ledger:
    """Mark a node as lost: its amounts stay charged until `expires_ns`, its place in the count of nodes beyond that."""
    held = ledger.reservations.get(run)
    if held is None or node not in held.charges:
        return ledger
    charge = replace(held.charges[node], expires_ns=expires_ns)
    return _with(ledger, run, replace(held, charges={**held.charges, node: charge}))


def release_node(ledger: Ledger, run: str, node: str) -> Ledger:
    """Give back what one node held, after its own guardian confirmed that it is clean."""
    held = ledger.reservations.get(run)
    if held is None or node not in held.charges:
        return ledger
    charges = {name: charge for name, charge in held.charges.items() if name != node}
    if charges:
        return _with(ledger, run, replace(held, charges=charges))
    return release(ledger, run)


def release(ledger: Ledger, run: str) -> Ledger:
    """Give back all that a run holds."""
    kept = {name: held for name, held in ledger.reservations.items() if name != run}
    return replace(ledger, reservations=kept)


def _with(ledger: Ledger, run: str, held: Reservation) -> Ledger:
    return replace(ledger, reservations={**ledger.reservations, run: held})
