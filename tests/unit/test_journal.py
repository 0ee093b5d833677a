"""The orchestrator's journal over crashes: torn tails, damage, rotation."""

from __future__ import annotations

import os
import threading

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
    grant(journal, 500)
    assert path.stat().st_size < 2 * 4_096
    assert journal.replay() == Past(4, True, ("a",), HELD)
    journal.append([DONE])
    grant(journal, 500)
    journal.close()
    assert reopened(path) == Past(4, True, (), HELD)


def grant(journal, times):
    """Write so many grants, as the orchestrator's clock has it: shortened when it is long."""
    for number in range(times):
        journal.append([{"run": "", "kind": "granted", "node": "n1", "expiry_ns": number}])
        if journal.is_long:
            journal.compact()


class SlowDisk:
    """A disk that answers a sync only when it is let go."""

    def __init__(self, monkeypatch, name):
        self.waits, self.go = threading.Event(), threading.Event()
        real = getattr(os, name)

        def sync(fd):
            self.waits.set()
            assert self.go.wait(10)
            real(fd)

        monkeypatch.setattr(os, name, sync)


@pytest.mark.parametrize(
    ("name", "waiting"),
    [
        pytest.param("fdatasync", lambda journal: journal.append([halt(1)]), id="while-a-halt-is-synced"),
        pytest.param("fsync", Journal.compact, id="while-the-file-is-shortened"),
    ],
)
def test_a_grant_never_waits_for_the_disk(tmp_path, monkeypatch, name, waiting):
    """Who asked for the sync waits; a grant beside it is written at once, and nothing of either is lost."""
    journal = Journal(tmp_path / "journal")
    journal.append([ADMITTED])
    disk = SlowDisk(monkeypatch, name)
    waiter = threading.Thread(target=waiting, args=(journal,))
    waiter.start()
    assert disk.waits.wait(10)
    granting = threading.Thread(
        target=journal.append, args=([{"run": "", "kind": "granted", "node": "n1", "expiry_ns": 1}, released("n1")],)
    )
    granting.start()
    granting.join(10)
    assert not granting.is_alive()
    assert waiter.is_alive()
    disk.go.set()
    waiter.join(10)
    journal.close()
    past = reopened(tmp_path / "journal")
    assert past.charges == {"a": {"n2": Amounts(0.5)}}
    assert past.halt_generation == (1 if name == "fdatasync" else 0)


def test_what_is_written_while_the_file_is_shortened_is_durable_when_it_is_told(tmp_path, monkeypatch):
    """A sync that meets a shortening waits for it, and then syncs the new file."""
    journal = Journal(tmp_path / "journal")
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    disk = SlowDisk(monkeypatch, "fsync")
    shortening = threading.Thread(target=journal.compact)
    shortening.start()
    assert disk.waits.wait(10)
    telling = threading.Thread(target=journal.append, args=([halt(1)],))
    telling.start()
    assert telling.is_alive()
    assert synced == []
    disk.go.set()
    telling.join(10)
    shortening.join(10)
    assert synced == [(tmp_path / "journal").stat().st_ino]
    journal.close()
    assert reopened(tmp_path / "journal") == Past(1, True)
