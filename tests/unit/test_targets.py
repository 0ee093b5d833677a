"""Which nodes a scenario may harm."""

from __future__ import annotations

import pytest

from actors.errors import RefusedError
from actors.messages import NodeSpec
from scenarios.targets import Targets, derive_seed, narrow, natural_key, select

HEAD = NodeSpec("head", {"zone": "a"}, "10.0.0.1", is_head=True)
WORKERS = tuple(NodeSpec(f"n{at}", {"zone": "ab"[at % 2]}, f"10.0.0.{at + 1}") for at in range(1, 13))
NODES = (HEAD, *WORKERS)


def names(targets, nodes=NODES, seed=1, **options):
    return [node.name for node in select(targets, nodes, seed, **options)]


@pytest.mark.parametrize(
    ("targets", "want"),
    [
        pytest.param(Targets(), [f"n{at}" for at in range(1, 13)], id="all-but-the-head"),
        pytest.param(Targets(role="worker"), [f"n{at}" for at in range(1, 13)], id="workers"),
        pytest.param(Targets(role="head"), ["head"], id="head-by-role"),
        pytest.param(Targets(names=("head",)), ["head"], id="head-by-name"),
        pytest.param(Targets(names=("n2", "head")), ["head", "n2"], id="head-among-names"),
        pytest.param(Targets(addresses=("10.0.0.1",)), ["head"], id="head-by-address"),
        pytest.param(Targets(labels={"zone": "a"}), ["n2", "n4", "n6", "n8", "n10", "n12"], id="label-does-not-name-the-head"),
        pytest.param(Targets(labels={"zone": "a"}, count=2), ["n2", "n4"], id="first-two"),
        pytest.param(Targets(fraction=0.25), ["n1", "n2", "n3"], id="a-quarter"),
        pytest.param(Targets(fraction=0.01), ["n1"], id="at-least-one"),
        pytest.param(Targets(fraction=0.3), ["n1", "n2", "n3"], id="rounded-down"),
        pytest.param(Targets(names=("n10", "n2"), labels={"zone": "a"}), ["n2", "n10"], id="all-selectors-must-match"),
    ],
)
def test_selectors_take_what_they_say(targets, want):
    """Selectors narrow, counts bound, and the head is taken only when named."""
    assert names(targets) == want


@pytest.mark.parametrize(
    ("targets", "nodes", "code", "words"),
    [
        pytest.param(Targets(labels={"gpu": "yes"}), NODES, "no_target", "label gpu=yes; 0 of 13 nodes match", id="label-that-no-node-has"),
        pytest.param(Targets(count=13), NODES, "no_target", "13 nodes with any role; 12 of 13", id="more-than-there-are"),
        pytest.param(Targets(names=("n99",)), NODES, "no_target", "n99", id="missing-name"),
        pytest.param(Targets(names=("n1", "n99")), NODES, "no_target", "n99", id="one-name-missing"),
        pytest.param(Targets(addresses=("10.9.9.9",)), NODES, "no_target", "10.9.9.9", id="missing-address"),
        pytest.param(Targets(), (), "no_target", "0 of 0", id="empty-cluster"),
        pytest.param(Targets(role="worker"), (HEAD,), "no_target", "role worker", id="no-worker"),
        pytest.param(Targets(labels={"zone": "a"}), (HEAD, WORKERS[0]), "protected", "head", id="only-the-head-matches"),
    ],
)
def test_what_no_node_fits_is_refused(targets, nodes, code, words):
    """A cluster without fitting nodes refuses with exit code 6 and says what was asked."""
    with pytest.raises(RefusedError) as caught:
        select(targets, nodes, 1)
    assert (caught.value.code, caught.value.exit_code) == (code, 6)
    assert words in str(caught.value)


def test_the_head_is_a_target_when_it_is_alone_or_allowed():
    """The head's protection ends where it is the only node, or where the caller allows it."""
    assert names(Targets(), (HEAD,)) == ["head"]
    assert names(Targets(), allow_head=True)[0] == "head"
    assert names(Targets(labels={"zone": "a"}, count=1), allow_head=True) == ["head"]


def test_seeded_choice_follows_the_seed_and_survives_a_lost_node():
    """The same seed takes the same nodes, another seed others, and a node that goes changes at most its own place."""
    targets = Targets(count=4, choice="seeded")
    taken = names(targets, seed=5)
    assert names(targets, tuple(reversed(NODES)), seed=5) == taken
    assert len({tuple(names(targets, seed=seed)) for seed in range(20)}) > 10
    without = names(targets, tuple(node for node in NODES if node.name != taken[0]), seed=5)
    assert set(taken[1:]) < set(without)


def test_a_branch_narrows_within_the_targets():
    """A branch takes of the scenario's targets only, and is refused where it names another node."""
    assert [node.name for node in narrow(Targets(count=1), WORKERS[3:], 1)] == ["n4"]
    with pytest.raises(RefusedError, match="n1 is among the nodes"):
        narrow(Targets(names=("n1",)), WORKERS[3:], 1)


def test_names_sort_as_people_count():
    """n2 comes before n10, and names of any form compare."""
    assert sorted(["n10", "n2", "2", "10", "", "n", "²"], key=natural_key) == ["", "2", "10", "n", "n2", "n10", "²"]


def test_seeds_derive_from_their_whole_path():
    """Each path gives its own seed of 63 bits; joining parts differently gives another."""
    seeds = {derive_seed(1, "a", "b"), derive_seed(1, "ab"), derive_seed(11, "a", "b"), derive_seed(1, "b", "a")}
    assert len(seeds) == 4
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert derive_seed(7, "0.1", "n3") == 4_996_998_431_613_846_817, "the same on every machine and release"
