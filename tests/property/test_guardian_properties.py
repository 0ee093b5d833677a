"""Whatever order requests, deaths, delays and restarts come in, the guardian's invariants hold."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.control import SLOTS, pack_lease, unpack_lease
from actors.guardian.model import LOADING, NEVER_NS
from actors.undo import Record, decode, encode
from tests.support.guarded import Machine

QUIET = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class GuardianWorld(RuleBasedStateMachine):
    """An agent, loads and fills on a pretended machine whose guardian may die at any point."""

    @initialize()
    def begin(self) -> None:
        self.machine = Machine()
        self.machine.hello()
        self.tickets: list[dict[str, int]] = []
        self.pid = 100
        self.halted = 0

    @rule(cores=st.sampled_from([0.5, 1, 2]))
    def open(self, cores: float) -> None:
        answer = self.machine.open(amounts={"cpu_cores": cores, "disk_bytes": 1 << 24})
        assert answer["ok"] or answer["code"] in {"budget", "halted", "journal"}
        if answer["ok"]:
            assert not self.machine.saved_halt.on
            self.tickets.append({"slot": answer["slot"], "generation": answer["generation"]})

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), lease_s=st.floats(0, 8))
    def grant(self, data: st.DataObject, lease_s: float) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        assert self.machine.grant(ticket, lease_s)["ok"]

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        self.pid += 1
        answer = self.machine.load(data.draw(st.sampled_from(self.tickets)), self.pid)
        if not answer["ok"]:
            self.machine.processes.pop(self.pid, None)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), size=st.integers(0, 1 << 24))
    def fill(self, data: st.DataObject, size: int) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        answer = self.machine.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": "t"})
        if answer is not None and answer["ok"]:
            self.machine.call("apply", record=answer["record"], params={"bytes": size})

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), grace_s=st.floats(0, 3))
    def close(self, data: st.DataObject, grace_s: float) -> None:
        self.machine.call("close_slot", **data.draw(st.sampled_from(self.tickets)), grace_s=grace_s)

    @precondition(lambda self: self.machine.processes)
    @rule(data=st.data())
    def a_load_dies(self, data: st.DataObject) -> None:
        self.machine.die(data.draw(st.sampled_from(sorted(self.machine.processes))))

    @rule(turns=st.integers(0, 5))
    def kills_get_slow(self, turns: int) -> None:
        self.machine.slow_kill_turns = turns

    @rule(broken=st.booleans())
    def the_disk(self, broken: bool) -> None:
        self.machine.journal_broken = broken

    @rule(seconds=st.floats(0, 6))
    def time_passes(self, seconds: float) -> None:
        self.machine.run_for(seconds)

    @rule(same_page=st.booleans())
    def the_guardian_dies(self, same_page: bool) -> None:
        self.machine.restart(same_page=same_page)
        assert self.machine.hello()["ok"]

    @rule()
    def halt(self) -> None:
        self.machine.call("halt")

    @rule()
    def resume(self) -> None:
        self.machine.call("resume")

    @invariant()
    def load_has_a_live_lease_or_is_being_ended(self) -> None:
        """A process or file exists only under a slot that may load, is ending, or has still time for its first lease."""
        if not hasattr(self, "machine"):
            return
        core = self.machine.core
        for slot in core.slots:
            if slot.phase in LOADING and slot.deadline_ns:
                assert self.machine.now_ns <= slot.deadline_ns - slot.release_ns or core.next_due_ns <= self.machine.now_ns
        named = {record.fields["pid"] for record in self.machine.journal.values() if record.kind == "process"}
        assert set(self.machine.processes) <= named
        assert set(self.machine.files) <= set(self.machine.journal)

    @invariant()
    def what_is_due_is_never_forgotten(self) -> None:
        """While anything is guarded there is a next time to look at it."""
        if hasattr(self, "machine") and self.machine.core.slots:
            assert self.machine.core.next_due_ns < NEVER_NS

    def teardown(self) -> None:
        """With nobody left to grant, everything ends within a minute and the journal is empty."""
        if not hasattr(self, "machine"):
            return
        self.machine.run_for(80)
        assert self.machine.processes == {}
        assert self.machine.files == {}
        assert self.machine.core.slots == ()
        assert self.machine.journal == {}
        answered = [reply for replies in self.machine.replies.values() for reply in replies]
        assert all(isinstance(reply["ok"], bool) for reply in answered)


GuardianWorld.TestCase.settings = QUIET
TestGuardianWorld = GuardianWorld.TestCase

json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
operations = st.sampled_from(
    [
        "hello",
        "open_slot",
        "register",
        "grant",
        "throttle",
        "start",
        "stop",
        "arm",
        "apply",
        "undo",
        "close_slot",
        "status",
        "halt",
        "resume",
        "forget",
        "quit",
        "other",
    ]
)
keys = st.sampled_from(
    [
        "role",
        "protocol",
        "cluster",
        "node",
        "epoch",
        "incarnation",
        "watch",
        "run",
        "operation",
        "amounts",
        "machine_limits",
        "release_s",
        "sharers",
        "slot",
        "generation",
        "pid",
        "leases",
        "halt",
        "ceilings",
        "start_ns",
        "mode",
        "kind",
        "fields",
        "record",
        "params",
        "grace_s",
        "not_after_ns",
        "id",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(operations, st.dictionaries(keys, json_values, max_size=8)), max_size=6))
def test_any_request_gets_at_most_one_json_answer_and_raises_nothing(requests):
    """Client garbage never escapes as an exception and never leaves an answer that is no JSON."""
    machine = Machine()
    for number, (op, fields) in enumerate(requests):
        machine.perform(machine.core.handle({**fields, "op": op}, f"peer{number}", machine.now_ns))
    machine.run_for(70)
    for number in range(len(requests)):
        replies = machine.replies.get(f"peer{number}", [])
        assert len(replies) <= 1
        json.dumps(replies)


@given(st.integers(0, 65_535), st.integers(0, (1 << 48) - 1))
def test_a_lease_word_returns_what_was_packed(generation, microseconds):
    """Unpacking inverts packing for every generation and deadline."""
    assert unpack_lease(pack_lease(generation, microseconds * 1_000)) == (generation, microseconds * 1_000)


@given(
    st.text(min_size=1, max_size=30),
    st.integers(0, SLOTS - 1),
    st.dictionaries(st.text(max_size=10), st.integers() | st.text(max_size=40), max_size=5),
    st.integers(0, 1 << 40),
)
def test_a_record_survives_its_journal_slot(record_id, slot, fields, sequence):
    """Decoding inverts encoding, whatever the texts hold."""
    record = Record(record_id, "disk_fill", slot, 1, "c", "n", "run", "op", fields)
    assert decode(encode(record, sequence)) == record


@given(st.binary(max_size=4_096))
def test_no_bytes_in_a_journal_slot_raise(data):
    """Any content is a record, free, or a reason."""
    found = decode(data.ljust(4_096, b"\0"))
    assert found is None or isinstance(found, Record | str)
