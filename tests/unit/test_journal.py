"""The orchestrator's journal over crashes: torn tails, damage, rotation."""

from __future__ import annotations

import pytest

from actors.messages import Amounts
from cluster import journal as journals
from cluster.journal import Journal, Past

ADMITTED = {"run": "a", "kind": "admitted", "charges": {"n1": [1.0, 10, 100], "n2": [0.5, 0, 0]}}
HELD = {"a": {"n1": Amounts(1.0, 10, 100), "n2": Amounts(0.5)}}
DONE = {"run": "a", "kind": "done", "status": "passed"}


FORGOTTEN = {"run": "", "kind": "forgotten", "node": "n2", "runs": ["a"]}


def released(node):
    return {"run": "a", "kind": "released", "node": node}


def halt(generation, on=True):
    return {"run": "", "kind": "halt", "generation": generation, "on": on}


def reopened(path, *entries):
    journal = Journal(path)
    journal.append(entries)
    journal.close()
    journal = Journal(path)
    past = journal.replay()
    journal.close()
    return past


@pytest.mark.parametrize(
    ("entries", "want"),
    [
        pytest.param([], Past(), id="nothing-was-written"),
        pytest.param([ADMITTED], Past(open_runs=("a",), charges=HELD), id="admitted-is-open"),
        pytest.param([ADMITTED, DONE], Past(charges=HELD), id="done-is-closed-and-its-nodes-stay-charged"),
        pytest.param([ADMITTED, released("n1"), DONE, released("n2")], Past(), id="released-by-each-node"),
        pytest.param([ADMITTED, released("n1")], Past(open_runs=("a",), charges={"a": {"n2": Amounts(0.5)}}), id="released-by-one"),
        pytest.param([ADMITTED, DONE, FORGOTTEN], Past(charges={"a": {"n1": HELD["a"]["n1"]}}), id="a-forgotten-node-owes-nothing"),
        pytest.param([halt(1), halt(2, on=False)], Past(2, False), id="the-resume-counts"),
        pytest.param([halt(2, on=False), halt(1)], Past(2, False), id="the-higher-generation-counts-not-the-later-line"),
        pytest.param([{"run": "", "kind": "granted", "node": "n1", "expiry_ns": 7}], Past(), id="grants-open-nothing"),
    ],
)
def test_replay_tells_what_is_open(tmp_path, entries, want):
    """What was appended is read back by the next life."""
    assert reopened(tmp_path / "journal", *entries) == want


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_tail_loses_only_itself_and_not_the_next_entry(tmp_path, cut):
    """A write that a crash cut short is dropped; the next life's first entry stands on a line of its own."""
    path = tmp_path / "journal"
    reopened(path, halt(1), ADMITTED)
    path.write_bytes(path.read_bytes()[:-cut])
    past = reopened(path, halt(2, on=False))
    assert past == (Past(2, False, ("a",), HELD) if cut == 1 else Past(2, False, damaged_lines=1))


def test_damage_in_the_middle_is_counted_and_the_rest_is_read(tmp_path):
    """One bad byte costs one line."""
    path = tmp_path / "journal"
    reopened(path, halt(1), ADMITTED, halt(3))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"admitted", b"admittec") + lines[2])
    assert reopened(path) == Past(3, True, damaged_lines=1)


def test_rotation_keeps_what_is_open_and_drops_the_grants(tmp_path, monkeypatch):
    """The file stays bounded, and a reader sees the same past before and after."""
    monkeypatch.setattr(journals, "MAX_BYTES", 4_096)
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append([halt(4), ADMITTED])
    for number in range(500):
        journal.append([{"run": "", "kind": "granted", "node": "n1", "expiry_ns": number}])
    assert path.stat().st_size < 2 * 4_096
    assert journal.replay() == Past(4, True, ("a",), HELD)
    journal.append([DONE])
    for number in range(500):
        journal.append([{"run": "", "kind": "granted", "node": "n1", "expiry_ns": number}])
    journal.close()
    assert reopened(path) == Past(4, True, (), HELD)
