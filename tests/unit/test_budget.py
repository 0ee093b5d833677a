"""The ledger: nothing is promised twice, and nothing is given back before it must be gone."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.errors import RefusedError
from actors.messages import Amounts
from cluster.safety.budget import Budget, Ledger, confirm, first_excess, lapse, lose_node, release, release_node, reserve

ONE = Amounts(1.0, 10, 100)
BUDGET = Budget(nodes_max=3, cpu_cores_max=2.0, memory_bytes_max=20, disk_bytes_max=200, duration_s_max=60)


def held(*nodes, run="a"):
    return confirm(reserve(Ledger(BUDGET), run, dict.fromkeys(nodes, ONE), 10, 0, 5), run, 1)


@pytest.mark.parametrize(
    ("wanted", "duration_s", "word"),
    [
        pytest.param({"n1": Amounts(2.001)}, 10, "cores", id="cores"),
        pytest.param({"n1": Amounts(memory_bytes=21)}, 10, "memory", id="memory"),
        pytest.param({"n1": Amounts(disk_bytes=201)}, 10, "disk", id="disk"),
        pytest.param(dict.fromkeys(("n1", "n2", "n3", "n4"), Amounts()), 10, "nodes", id="nodes"),
        pytest.param({"n1": ONE}, 60.1, "lasts", id="duration"),
    ],
)
def test_each_bound_refuses_by_its_name(wanted, duration_s, word):
    """One above the budget is refused with the bound that would be passed."""
    with pytest.raises(RefusedError, match=word) as error:
        reserve(Ledger(BUDGET), "a", wanted, duration_s, 0, 5)
    assert error.value.code == "budget"


def test_exactly_the_budget_fits_and_the_last_of_it_goes_to_one():
    """Two runs that want the rest: the first has it, the second is refused."""
    ledger = reserve(held("n1"), "b", {"n2": ONE}, 10, 0, 5)
    with pytest.raises(RefusedError, match="other runs hold"):
        reserve(ledger, "c", {"n3": Amounts(0.1)}, 10, 0, 5)


def test_an_unconfirmed_reservation_lapses_and_cannot_be_confirmed_late():
    """What nobody confirms is free again."""
    ledger = reserve(Ledger(BUDGET), "a", {"n1": ONE}, 10, 0, 5)
    assert not ledger.holds("a", "n1", 1)
    assert lapse(ledger, 4) is ledger
    assert lapse(ledger, 5).is_empty()
    with pytest.raises(RefusedError, match="lapsed"):
        confirm(ledger, "a", 5)


def test_a_lost_node_frees_its_amounts_at_its_end_and_its_place_only_on_confirmation():
    """Presumed ended frees cores and bytes; the node counts as harmed until it is known to be clean."""
    ledger = lose_node(held("n1", "n2"), "a", "n1", 50)
    assert ledger.total(49) == Amounts(2.0, 20, 200)
    assert ledger.total(50) == ONE
    assert not ledger.holds("a", "n1", 10)
    assert ledger.holds("a", "n2", 10)
    assert ledger.nodes_harmed() == {"n1", "n2"}
    assert release_node(ledger, "a", "n1").nodes_harmed() == {"n2"}


def test_the_last_node_takes_the_reservation_with_it():
    """A run without a charge is not in the ledger."""
    assert release_node(release_node(held("n1", "n2"), "a", "n1"), "a", "n2").is_empty()
    assert release(held("n1", "n2"), "a").is_empty()


class LedgerWorld(RuleBasedStateMachine):
    """Any sequence of reserve, confirm, lose and release, with time passing."""

    def __init__(self):
        super().__init__()
        self.ledger, self.now_ns, self.runs = Ledger(BUDGET), 0, 0
        self.charged = {}  # (run, node) -> [amounts, until when]: what an outside observer would still call taken

    @rule(cores=st.sampled_from([0.0, 0.5, 1.0, 2.0]), nodes=st.sets(st.sampled_from(["n1", "n2", "n3", "n4"]), min_size=1))
    def reserve(self, cores, nodes):
        self.runs += 1
        run, wanted = f"r{self.runs}", dict.fromkeys(nodes, Amounts(cores, int(cores * 10), int(cores * 100)))
        try:
            self.ledger = reserve(self.ledger, run, wanted, 10, self.now_ns, 7)
        except RefusedError:
            return
        self.charged |= {(run, node): [amounts, self.now_ns + 7] for node, amounts in wanted.items()}

    def _drawn(self, data):
        return data.draw(st.sampled_from(sorted(self.ledger.reservations)))

    @precondition(lambda self: self.ledger.reservations)
    @rule(data=st.data())
    def confirm(self, data):
        run = self._drawn(data)
        try:
            self.ledger = confirm(self.ledger, run, self.now_ns)
        except RefusedError:
            return
        for (of, node), entry in self.charged.items():
            if of == run and self.ledger.reservations[run].charges[node].expires_ns is None:
                entry[1] = None

    @precondition(lambda self: self.ledger.reservations)
    @rule(data=st.data(), ends_ns=st.integers(0, 20))
    def lose(self, data, ends_ns):
        run = self._drawn(data)
        reservation = self.ledger.reservations[run]
        node = data.draw(st.sampled_from(sorted(reservation.charges)))
        if reservation.lapses_ns is None and reservation.charges[node].expires_ns is None:
            self.ledger = lose_node(self.ledger, run, node, self.now_ns + ends_ns)
            self.charged[run, node][1] = self.now_ns + ends_ns

    @precondition(lambda self: self.ledger.reservations)
    @rule(data=st.data())
    def release(self, data):
        run = self._drawn(data)
        node = data.draw(st.sampled_from(sorted(self.ledger.reservations[run].charges)))
        self.ledger = release_node(self.ledger, run, node)
        self.charged.pop((run, node), None)

    @rule(span_ns=st.integers(0, 10))
    def time_passes(self, span_ns):
        self.now_ns += span_ns
        self.ledger = lapse(self.ledger, self.now_ns)

    @invariant()
    def what_is_taken_is_charged_and_inside_of_the_budget(self):
        """Reserved, live and presumed never pass the budget, and the ledger forgets nothing that is still taken."""
        assert first_excess(self.ledger, 0, self.now_ns) == ""
        taken = Amounts()
        for amounts, until_ns in self.charged.values():
            if until_ns is None or self.now_ns < until_ns:
                taken = taken.plus(amounts)
        assert self.ledger.total(self.now_ns) == taken

    def teardown(self):
        """When all have released, nothing is held."""
        for run in list(self.ledger.reservations):
            for node in list(self.ledger.reservations[run].charges):
                self.ledger = release_node(self.ledger, run, node)
        assert self.ledger.is_empty()


TestLedgerWorld = LedgerWorld.TestCase
