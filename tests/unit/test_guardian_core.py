"""The guardian's rules, on a pretended machine: leases end, what was armed is undone, nobody but the owner extends anything."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from actors.control import SLOTS, STOP_DRAIN, STOP_KILL
from actors.guardian.core import GuardianCore
from actors.guardian.model import (
    FINAL,
    LOADING,
    NEVER_NS,
    RECORD_TABLE,
    SETTLED,
    SLOT_TABLE,
    Apply,
    CoreSettings,
    HaltSaved,
    JournalArm,
    Kill,
    PublishHalt,
    RecordEvent,
    RecordState,
    SlotPhase,
    Verify,
)
from actors.messages import Halt
from tests.support.guarded import SECOND, Machine


@pytest.fixture
def machine():
    machine = Machine()
    machine.hello()
    return machine


def refused(answer, code):
    assert answer is not None
    assert answer["ok"] is False, answer
    assert answer["code"] == code, answer
    assert answer["message"]


class TestTables:
    def test_every_phase_and_state_is_reached_and_left(self):
        """The tables have no orphan and no dead end but their last states."""
        assert {phase for phase, _ in SLOT_TABLE} == set(SlotPhase) - {SlotPhase.FREE}
        assert set(SLOT_TABLE.values()) >= set(SlotPhase) - {SlotPhase.OPENING}
        assert {state for state, _ in RECORD_TABLE} == set(RecordState) - FINAL
        assert {state for state, _ in RECORD_TABLE.values()} >= set(RecordState) - {RecordState.ARMING}

    def test_an_undo_in_progress_answers_every_outcome(self):
        """Undoing, stuck and verifying records take undone, pending and foreign alike."""
        for state, event in itertools.product(
            (RecordState.UNDOING, RecordState.STUCK, RecordState.VERIFYING, RecordState.RECHECKING),
            (RecordEvent.UNDONE, RecordEvent.PENDING, RecordEvent.FOREIGN, RecordEvent.LATE),
        ):
            assert (state, event) in RECORD_TABLE

    def test_no_record_is_applied_again_once_undoing_began(self):
        """There is no way back to ARMED."""
        assert [key for key, (state, _) in RECORD_TABLE.items() if state is RecordState.ARMED] == [(RecordState.ARMING, RecordEvent.SYNCED)]
        assert not LOADING & {SlotPhase.ENDING, SlotPhase.CHECKING, SlotPhase.FREE}
        assert FINAL < SETTLED


class TestHello:
    def test_it_tells_who_and_where_and_gives_a_fresh_nonce(self, machine):
        """Two hellos have two nonces, one guardian id and the time of the guardian's clock."""
        first, second = machine.hello(), machine.hello()
        assert first["ok"]
        assert first["guardian_id"] == second["guardian_id"] == "guardian-id"
        assert first["nonce"] != second["nonce"]
        assert first["boottime_ns"] == machine.now_ns
        assert first["halt"] == {"generation": 0, "on": False}

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"role": "king"}, "invalid_value"),
            ({"protocol": 99}, "code_mismatch"),
            ({"epoch": -1}, "invalid_value"),
            ({"node": None}, "invalid_value"),
            ({"watch": [1] * 17}, "invalid_value"),
            ({"watch": ["x"]}, "invalid_value"),
            ({"watch": [999_999]}, "lost"),
            ({"role": "simulator", "watch": [1]}, "invalid_value"),
            ({"pid_ns": 99}, "unsupported"),
            ({"time_offset_ns": 5}, "unsupported"),
        ],
    )
    def test_a_wrong_hello_is_refused_with_a_code(self, machine, fields, code):
        """The answer says what was wrong."""
        request = {"op": "hello", "role": "agent", "protocol": 1, "cluster": "c", "node": "n", "epoch": 1, "incarnation": 1, **fields}
        machine.perform(machine.core.handle(request, "x", machine.now_ns))
        refused(machine.replies["x"][0], code)

    def test_other_code_is_refused_while_an_agent_is_here_and_makes_an_idle_guardian_leave(self, machine):
        """An older guardian is replaced only when idle."""
        answer = machine.call("hello", "new", role="agent", protocol=1, code_id="other", cluster="c", node="m", epoch=1, incarnation=1)
        refused(answer, "busy")
        assert not answer["retiring"]
        assert not machine.retired
        machine.perform(machine.core.gone("p", machine.now_ns))
        answer = machine.call("hello", "new", role="agent", protocol=1, code_id="other", cluster="c", node="m", epoch=1, incarnation=1)
        assert answer["retiring"]
        assert machine.retired

    def test_a_newer_incarnation_fences_the_older_and_ends_what_it_left(self, machine):
        """The older agent can neither open nor grant, and its load is gone at once."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket)
        assert machine.hello("q", incarnation=2)["ok"]
        assert machine.processes == {}
        refused(machine.open(), "stale_epoch")
        refused(machine.call("grant", cluster="c", node="n", epoch=1, incarnation=1, leases=[]), "stale_epoch")

    def test_a_new_epoch_of_the_same_agent_keeps_its_slots(self, machine):
        """A new orchestrator takes over what runs; the old epoch is refused."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket)
        assert machine.hello(epoch=2)["ok"]
        assert machine.grant(ticket, epoch=2)["leases"]
        refused(machine.grant(ticket, epoch=1), "stale_epoch")
        assert machine.processes

    def test_agents_of_other_nodes_and_clusters_do_not_touch_each_other(self, machine):
        """Fencing is per cluster and node, and so is the end of an owner."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket)
        machine.processes[7] = 1
        machine.hello("q", cluster="other", watch=[7], incarnation=9)
        machine.hello("r", node="other", incarnation=9)
        machine.die(7)
        assert machine.processes == {100: machine.processes[100]}
        answer = machine.call(
            "grant", cluster="other", node="n", epoch=1, incarnation=9, leases=[[*ticket.values(), machine.now_ns + SECOND]]
        )
        assert answer["leases"] == []
        assert answer["ended"][0][2] == "unknown"


class TestSlots:
    def test_a_slot_is_told_only_when_its_record_is_durable(self, machine):
        """The journal comes first; when it fails nothing is opened."""
        machine.journal_broken = True
        refused(machine.open(), "journal")
        assert machine.core.slots == ()
        machine.journal_broken = False
        assert machine.open()["ok"]

    def test_the_last_of_the_budget_goes_to_one_of_two(self, machine):
        """The sum over all clusters of this machine counts, and a freed slot gives its share back."""
        limits = {"cpu_cores": 1.5, "memory_bytes": 0, "disk_bytes": 0}
        first = machine.ticket(amounts={"cpu_cores": 1}, machine_limits=limits)
        machine.hello("q", cluster="other")
        refused(machine.open(cluster="other", amounts={"cpu_cores": 1}, machine_limits=limits), "budget")
        assert machine.open(cluster="other", amounts={}, machine_limits={"cpu_cores": 0, "memory_bytes": 0, "disk_bytes": 0})["ok"]
        machine.call("close_slot", **first, grace_s=0)
        machine.run_for(2)
        assert machine.open(cluster="other", amounts={"cpu_cores": 1}, machine_limits=limits)["ok"]

    def test_slots_run_out_with_a_budget_error(self, machine):
        """The page is finite."""
        for _ in range(SLOTS):
            machine.ticket(amounts={})
        refused(machine.open(amounts={}), "budget")

    def test_a_reused_slot_has_another_generation(self, machine):
        """A ticket of an earlier generation opens nothing."""
        old = machine.ticket()
        machine.call("close_slot", **old, grace_s=0)
        machine.run_for(2)
        new = machine.ticket()
        assert new["slot"] == old["slot"]
        assert new["generation"] != old["generation"]
        refused(machine.call("register", **old, pid=100), "stale_slot")
        assert machine.grant(old)["ended"] == [[old["slot"], old["generation"], "unknown"]]
        assert machine.leases[new["slot"]] == (new["generation"], 0)

    def test_the_gate_opens_after_identity_is_journalled(self, machine):
        """A registered load finds its own generation at the gate."""
        ticket = machine.ticket()
        assert machine.load(ticket)["ok"]
        assert machine.gates[ticket["slot"]] == ticket["generation"]
        assert machine.call("register", **ticket, pid=100)["ok"]
        other = machine.ticket()
        refused(machine.call("register", **other, pid=100), "busy")
        refused(machine.call("register", **other, pid=4_711), "lost")
        assert machine.gates[other["slot"]] == 0

    def test_a_load_that_cannot_be_journalled_finds_a_closed_gate(self, machine):
        """Without a durable record nothing starts."""
        ticket = machine.ticket()
        machine.journal_broken = True
        refused(machine.load(ticket), "journal")
        assert machine.gates[ticket["slot"]] == 0

    def test_a_slot_without_any_lease_ends_by_itself(self, machine):
        """An opened slot whose agent never grants is not kept for ever."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.run_for(59)
        assert machine.processes
        machine.run_for(2)
        assert machine.processes == {}
        assert machine.call("close_slot", **ticket)["cause"] == "lease"


class TestLeases:
    def test_load_and_fill_end_at_the_deadline_less_the_release_time(self, machine):
        """At 4.5 s of a lease of 5 s with half a second of release everything is gone, not earlier."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 5)
        machine.fill(ticket)
        machine.run_for(4.499)
        assert machine.processes
        assert machine.files
        machine.run_for(0.002)
        assert machine.processes == {}
        assert machine.files == {}
        assert machine.stops[ticket["slot"]] == (ticket["generation"], STOP_KILL)
        report = machine.call("close_slot", **ticket)
        assert {outcome["outcome"] for outcome in report["outcomes"]} == {"expired"}
        machine.run_for(2)
        assert machine.journal == {}

    def test_an_ended_lease_is_never_extended(self, machine):
        """Expired is terminal, also when the grant comes before the tick noticed."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 2)
        machine.now_ns += 3 * SECOND
        answer = machine.grant(ticket, 10)
        assert answer["leases"] == []
        assert answer["ended"] == [[*ticket.values(), "lease"]]
        assert machine.processes == {}

    def test_a_deadline_never_decreases_and_is_capped(self, machine):
        """An older grant changes nothing; a wild one reaches at most a minute."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        before = machine.leases[ticket["slot"]]
        assert machine.grant(ticket, 1)["leases"][0][2] == before[1]
        assert machine.leases[ticket["slot"]] == before
        machine.grant(ticket, 10_000)
        assert machine.leases[ticket["slot"]][1] == machine.now_ns + 60 * SECOND

    @pytest.mark.parametrize("leases", [[[0, 1, "x"]], [[0, 1]], [[0, 1, 1.5]], [[0, 1, float("nan")]], [[[], 1, 5]], 7, [None]])
    def test_a_malformed_grant_changes_nothing(self, machine, leases):
        """One bad lease refuses the whole request before anything is stored."""
        ticket = machine.ticket()
        good = [[*ticket.values(), machine.now_ns + SECOND]]
        wanted = good + leases if isinstance(leases, list) else leases
        refused(machine.call("grant", cluster="c", node="n", epoch=1, incarnation=1, leases=wanted), "invalid_value")
        assert machine.leases[ticket["slot"]] == (ticket["generation"], 0)

    def test_a_command_after_its_not_valid_after_time_is_refused(self, machine):
        """A queued call that executes late has no effect."""
        ticket = machine.ticket()
        refused(machine.grant(ticket, not_after_ns=machine.now_ns - 1), "expired")
        assert machine.grant(ticket, not_after_ns=machine.now_ns)["leases"]

    def test_the_throttle_and_the_start_reach_the_page_of_their_generation_only(self, machine):
        """Ceilings of ended slots are not stored; values out of 0..1 are refused."""
        ticket = machine.ticket()
        assert machine.call("throttle", ceilings=[[*ticket.values(), 0.5], [99, 1, 0.1]])["set"] == 1
        assert machine.ceilings == {ticket["slot"]: 0.5}
        refused(machine.call("throttle", ceilings=[[*ticket.values(), 1.5]]), "invalid_value")
        refused(machine.call("throttle", ceilings=[[*ticket.values(), float("nan")]]), "invalid_value")
        assert machine.call("start", **ticket, start_ns=123)["ok"]
        assert machine.starts[ticket["slot"]] == 123


class TestEnds:
    def test_the_end_of_a_watched_process_ends_all_slots_of_its_owner_at_once(self, machine):
        """No lease is waited for."""
        machine.processes[7] = 1
        machine.hello(watch=[7])
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.fill(ticket)
        machine.die(7)
        assert machine.processes == {}
        assert machine.files == {}

    def test_close_drains_first_and_answers_when_all_is_verified(self, machine):
        """A load that ends by itself within the grace is not killed."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.fill(ticket)
        assert machine.call("close_slot", **ticket, grace_s=5) is None
        assert machine.stops[ticket["slot"]] == (ticket["generation"], STOP_DRAIN)
        assert machine.files
        machine.run_for(1)
        machine.die(100)
        report = machine.replies["p"][-1]
        assert report["ok"]
        assert report["released_ns"] == machine.now_ns
        assert {outcome["kind"]: outcome["outcome"] for outcome in report["outcomes"]} == {
            "container": "undone",
            "process": "undone",
            "disk_fill": "undone",
        }
        assert machine.files == {}
        again = machine.call("close_slot", **ticket, grace_s=5)
        assert {key: again[key] for key in ("cause", "outcomes")} == {key: report[key] for key in ("cause", "outcomes")}

    def test_a_load_that_ignores_the_drain_is_killed_at_the_end_of_the_grace(self, machine):
        """The grace is a bound."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        assert machine.call("close_slot", **ticket, grace_s=2) is None
        machine.run_for(1.99)
        assert machine.processes
        machine.run_for(0.02)
        assert machine.processes == {}
        assert machine.replies["p"][-1]["cause"] == "close"

    def test_a_slow_death_is_waited_for_and_the_slot_is_not_reused_meanwhile(self, machine):
        """Killed is not gone."""
        machine.slow_kill_turns = 10
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        assert machine.call("close_slot", **ticket, grace_s=0) is None
        assert machine.ticket()["slot"] != ticket["slot"]
        machine.run_for(2)
        report = machine.replies["p"][-1]
        assert report["ok"]
        assert machine.processes == {}

    def test_what_cannot_be_killed_is_stuck_reported_and_never_gone(self, machine):
        """The answer comes after the bound; the slot stays charged until the process has really ended."""
        machine.unkillable.add(100)
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.fill(ticket)
        machine.call("close_slot", **ticket, grace_s=0)
        machine.run_for(4)
        report = machine.replies["p"][-1]
        assert {outcome["kind"]: outcome["outcome"] for outcome in report["outcomes"]}["process"] == "stuck"
        assert (report["gone"], report["stopped_ns"], report["released_ns"]) == (False, 0, 0)
        assert machine.files == {}
        machine.run_for(20)
        assert [slot.phase for slot in machine.core.slots] == [SlotPhase.CHECKING]
        assert any(record.kind == "process" for record in machine.journal.values())
        assert not machine.call("close_slot", **ticket, grace_s=0)["gone"]
        machine.unkillable.clear()
        killed_ns = machine.now_ns
        machine.run_for(5)
        report = machine.call("close_slot", **ticket, grace_s=0)
        assert report["gone"]
        assert killed_ns < report["stopped_ns"] <= report["released_ns"]
        assert machine.core.slots == ()
        assert machine.journal == {}

    def test_a_tree_goes_only_after_its_session_is_dead(self, machine):
        """Order on the end of a driver's slot: kill, then remove."""
        machine.slow_kill_turns = 3
        machine.processes[55] = 9
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        machine.call("arm", **ticket, kind="session", fields={"sid": 55, "starttime": 9})
        machine.call("arm", **ticket, kind="tree", fields={"path": "/tmp/x", "token": "t"})
        machine.performed.clear()
        machine.run_for(6)
        undone = [action.record.kind for action in machine.performed if type(action).__name__ in {"Kill", "Undo"}]
        assert undone[-1] == "tree"
        assert undone.count("tree") == 1
        assert undone.count("session") >= 4

    def test_kills_come_before_other_undos_in_one_answer(self, machine):
        """Nothing waits for a disk before load is ended."""
        ticket = machine.ticket()
        machine.grant(ticket, 50)
        machine.fill(ticket)
        machine.load(ticket)
        kinds = [type(action).__name__ for action in machine.core.handle({"op": "stop", "mode": "kill", **ticket}, "p", machine.now_ns)]
        assert kinds.index("WriteStop") < kinds.index("Kill") < kinds.index("Undo")


class TestRecords:
    def test_nothing_is_applied_without_lease_or_beyond_the_reservation(self, machine):
        """Apply asks for a live lease, an armed record and bytes within the slot's amounts."""
        ticket = machine.ticket()
        record = machine.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": "t"})["record"]
        refused(machine.call("apply", record=record, params={"bytes": 5}), "stale_slot")
        machine.grant(ticket, 5)
        refused(machine.call("apply", record=record, params={"bytes": 1 << 40}), "budget")
        assert machine.call("apply", record=record, params={"bytes": 5 << 20})["achieved"] == 5 << 20
        assert machine.call("undo", record=record)["outcome"] == "undone"
        assert machine.call("undo", record=record)["outcome"] == "undone"
        refused(machine.call("apply", record=record, params={"bytes": 5}), "stale_slot")
        machine.run_for(2)
        assert machine.call("undo", record=record)["outcome"] == "undone"

    def test_the_files_of_a_slot_share_its_reservation(self, machine):
        """What all of them ask together stays within it; one that is undone takes nothing of it any more."""
        ticket = machine.ticket()
        machine.grant(ticket, 50)
        first, second = (
            machine.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": token})["record"] for token in ("a", "b")
        )
        whole = machine.core.slots[0].amounts.disk_bytes
        assert machine.call("apply", record=first, params={"bytes": whole - (5 << 20)})["ok"]
        refused(machine.call("apply", record=second, params={"bytes": 7 << 20}), "budget")
        assert machine.call("apply", record=second, params={"bytes": 5 << 20, "write": True})["ok"]
        refused(machine.call("apply", record=second, params={"bytes": 1, "write": 1}), "invalid_value")
        assert machine.call("undo", record=first)["outcome"] == "undone"
        assert machine.call("apply", record=second, params={"bytes": whole})["ok"]

    def test_arming_fails_closed(self, machine):
        """No record, no effect."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        machine.journal_broken = True
        refused(machine.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": "t"}), "journal")
        assert not any(isinstance(action, Apply) for action in machine.performed)

    @pytest.mark.parametrize("kind", ["process", "container", "qdisc", "", None])
    def test_only_effects_can_be_armed_by_a_client(self, machine, kind):
        """Nobody arms the kill of an arbitrary process."""
        answer = machine.call("arm", **machine.ticket(), kind=kind, fields={"pid": 1})
        assert answer["ok"] is False
        assert answer["code"] in {"unknown_name", "invalid_value"}

    def test_an_arm_in_flight_while_the_slot_ends_is_undone_not_answered_as_done(self, machine):
        """A record that becomes durable after the end is undone at once."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        actions = machine.core.handle(
            {"op": "arm", **ticket, "kind": "disk_fill", "fields": {"path": "/f", "token": "t"}}, "late", machine.now_ns
        )
        assert [type(action) for action in actions] == [JournalArm]
        machine.call("stop", **ticket, mode="kill")
        machine.perform(actions)
        refused(machine.replies["late"][0], "stale_slot")
        machine.run_for(2)
        assert machine.journal == {}
        assert machine.core.slots == ()

    def test_a_growing_effect_stops_when_its_slot_ends(self, machine):
        """No step is ordered after undoing began, and the applier hears of it."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        record = machine.call("arm", **ticket, kind="disk_fill", fields={"path": "/fill", "token": "t"})["record"]
        request = {"op": "apply", "record": record, "params": {"bytes": 100 << 20}}
        first = machine.core.handle(request, "grower", machine.now_ns)
        machine.call("stop", **ticket, mode="kill")
        machine.performed.clear()
        machine.perform(first)
        assert sum(isinstance(action, Apply) for action in machine.performed) == 1
        refused(machine.replies["grower"][0], "stale_slot")

    def test_what_became_foreign_is_reported_kept_and_forgotten_on_demand(self, machine):
        """It is left alone, survives restarts in the journal, and does not hold the slot."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        record = machine.fill(ticket)
        machine.foreign.add(record)
        report = machine.call("close_slot", **ticket, grace_s=0)
        assert [one["outcome"] for one in report["outcomes"] if one["record"] == record] == ["foreign"]
        machine.run_for(3)
        assert machine.core.slots == ()
        assert list(machine.journal) == [record]
        machine.restart(same_page=False)
        machine.run_for(3)
        assert [one["state"] for one in machine.call("status")["records"]] == ["foreign"]
        assert machine.call("forget", record=record)["ok"]
        assert machine.journal == {}
        refused(machine.call("forget", record=record), "unknown_name")

    def test_every_undo_is_verified_twice_a_second_apart(self, machine):
        """An effect that comes back after the first look is undone again."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        record = machine.fill(ticket)
        machine.performed.clear()
        machine.call("undo", record=record)
        assert sum(isinstance(action, Verify) for action in machine.performed) == 1
        assert record in machine.journal
        machine.files[record] = 77
        machine.run_for(1.5)
        assert machine.files == {}
        machine.run_for(1.5)
        assert record not in machine.journal


class TestHalt:
    def test_halt_ends_everything_blocks_arms_and_survives_a_restart(self, machine):
        """Until a resume of a higher generation nothing opens, arms or applies."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.fill(ticket)
        answer = machine.call("halt", generation=4)
        assert answer["ok"]
        assert [one["operation"] for one in answer["killed"]] == ["0.CpuLoad@n"]
        assert answer["decided_ns"] <= answer["last_gone_ns"]
        assert machine.processes == {}
        assert machine.files == {}
        for same_page in (True, False):
            refused(machine.open(), "halted")
            machine.restart(same_page=same_page)
            machine.hello()
        refused(machine.call("resume", generation=4), "stale_epoch")
        refused(machine.open(), "halted")
        assert machine.call("resume", generation=5)["ok"]
        assert machine.open()["ok"]

    def test_a_halt_is_shown_before_any_lease_ends_by_it(self, machine):
        """Whoever finds a lease ended finds the halt on the page already; that it is kept is shown once it is on disk."""
        ticket = machine.ticket()
        machine.grant(ticket, 50)
        machine.performed.clear()
        machine.call("halt")
        kinds = [type(action).__name__ for action in machine.performed]
        assert kinds.index("PublishHalt") < min(kinds.index("WriteStop"), kinds.index("WriteLeases"), kinds.index("SaveHalt"))
        assert machine.shown_halt == (Halt(1, on=True), Halt(1, on=True))
        machine.call("resume")
        assert machine.shown_halt == (Halt(2), Halt(2))

    def test_a_halt_that_is_not_on_disk_is_shown_in_force_and_not_kept(self):
        """A disk that refuses costs the memory over a restart, never the halt itself."""
        core = Machine().core
        shown = []
        for actions in (core.handle({"op": "halt"}, "p", SECOND), core.done(HaltSaved(1, ("os", "no space")), SECOND)):
            shown += [(action.halt, action.kept) for action in actions if isinstance(action, PublishHalt)]
        assert shown == [(Halt(1, on=True), Halt())]

    def test_halt_spares_what_loads_nothing(self, machine):
        """A driver's slot, which holds an embedded Ray, outlives a halt and may be renewed: its run still has to tell how it ended."""
        load, driver = machine.ticket(), machine.ticket(amounts={})
        machine.grant(load)
        machine.grant(driver)
        answer = machine.call("halt", generation=1)
        assert [one["slot"] for one in answer["killed"]] == [load["slot"]]
        assert machine.leases[load["slot"]][1] == 0
        machine.run_for(1)
        assert machine.grant(driver)["leases"]

    def test_a_newer_halt_travels_with_a_grant_and_an_older_resume_does_not(self, machine):
        """The higher generation wins."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        answer = machine.grant(ticket, 50, halt={"generation": 3, "on": True})
        assert answer["halt"] == {"generation": 3, "on": True}
        assert answer["leases"] == []
        assert machine.processes == {}
        machine.grant(ticket, 50, halt={"generation": 2, "on": False})
        refused(machine.open(), "halted")
        machine.grant(ticket, 50, halt={"generation": 4, "on": False})
        assert machine.open()["ok"]
        assert machine.saved_halt.generation == 4

    def test_halt_without_a_generation_takes_the_next(self, machine):
        """The command on a node works without an orchestrator."""
        assert machine.call("halt")["halt"] == {"generation": 1, "on": True}
        assert machine.call("halt")["halt"] == {"generation": 1, "on": True}
        assert machine.call("resume")["halt"] == {"generation": 2, "on": False}
        assert machine.call("halt")["halt"] == {"generation": 3, "on": True}

    def test_halt_answers_only_when_the_slow_are_gone(self, machine):
        """The latency in the answer is the real one."""
        machine.slow_kill_turns = 4
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        assert machine.call("halt") is None
        machine.run_for(1)
        answer = machine.replies["p"][-1]
        assert answer["last_gone_ns"] > answer["decided_ns"]
        assert answer["stuck"] == []

    def test_halt_names_what_it_could_not_end(self, machine):
        """It answers after the bound, and does not call gone what is not."""
        machine.unkillable.add(100)
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.call("halt")
        machine.run_for(4)
        assert machine.replies["p"][-1]["stuck"] == ["0.CpuLoad@n"]


class TestTakeover:
    def test_a_standby_goes_on_with_what_lives(self, machine):
        """Slots, leases, loads and fills survive the guardian; the agent goes on granting."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 5)
        machine.fill(ticket)
        machine.restart(same_page=True)
        assert machine.processes
        assert machine.files
        machine.hello()
        assert machine.grant(ticket, 6)["leases"]
        machine.run_for(5)
        assert machine.processes
        machine.run_for(1)
        assert machine.processes == {}
        assert machine.files == {}
        machine.run_for(2)
        assert machine.journal == {}

    def test_a_standby_ends_what_was_ending(self, machine):
        """A stop word of the predecessor is obeyed, and the place is not given away before it is empty."""
        machine.unkillable.add(100)
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 5)
        machine.call("stop", **ticket, mode="kill")
        machine.restart(same_page=True)
        assert machine.ticket()["slot"] != ticket["slot"]
        machine.unkillable.clear()
        machine.run_for(3)
        assert machine.processes == {}

    def test_a_fresh_guardian_sweeps_everything(self, machine):
        """Without the pages nothing of an earlier life may go on."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.fill(ticket)
        machine.restart(same_page=False)
        machine.run_for(2)
        assert machine.processes == {}
        assert machine.files == {}
        assert machine.journal == {}
        assert machine.grant(ticket)["ended"] == [[*ticket.values(), "unknown"]]

    def test_a_recycled_pid_is_not_killed(self, machine):
        """The record's start time decides."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 5)
        machine.die(100)
        machine.processes[100] = 123_456
        machine.run_for(6)
        machine.restart(same_page=False)
        machine.run_for(2)
        assert machine.processes == {100: 123_456}

    def test_a_record_of_an_unknown_kind_or_version_is_kept_and_reported(self, machine):
        """None vanishes."""
        ticket = machine.ticket()
        machine.grant(ticket, 5)
        record_id = machine.fill(ticket)
        record = machine.journal[record_id]
        machine.journal[record_id] = type(record)(record.id, "disk_fill", 0, 1, fields=record.fields, version=99)
        machine.restart(same_page=False)
        machine.run_for(3)
        assert record_id in machine.journal
        assert [one["id"] for one in machine.call("status")["records"]] == [record_id]


class TestOwnLife:
    def test_it_leaves_when_nothing_and_nobody_is_left_for_ten_seconds(self, machine):
        """A slot, a record on its way out, or a connection keep it."""
        machine.perform(machine.core.gone("p", machine.now_ns))
        machine.run_for(9.9)
        assert not machine.retired
        machine.run_for(0.2)
        assert machine.retired

    def test_a_slot_or_a_caller_keeps_it(self, machine):
        """It never leaves while it guards."""
        ticket = machine.ticket()
        machine.grant(ticket, 30)
        machine.perform(machine.core.gone("p", machine.now_ns))
        machine.run_for(25)
        assert not machine.retired
        machine.run_for(20)
        assert machine.retired
        machine.retired = False
        machine.core.stay(machine.now_ns)
        machine.hello("q")
        machine.run_for(100)
        assert not machine.retired

    def test_quit_is_refused_while_it_guards(self, machine):
        """Only an idle guardian can be sent away."""
        ticket = machine.ticket()
        refused(machine.call("quit"), "busy")
        machine.call("close_slot", **ticket, grace_s=0)
        machine.run_for(2)
        assert machine.call("quit")["ok"]
        assert machine.retired

    def test_termination_ends_every_slot(self, machine):
        """SIGTERM is an orderly end."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 50)
        machine.perform(machine.core.end_all("guardian terminated", machine.now_ns))
        assert machine.processes == {}

    @pytest.mark.parametrize(
        "request_",
        [
            {},
            {"op": None},
            {"op": []},
            {"op": "nonsense"},
            {"op": "open_slot"},
            {"op": "register", "slot": "0", "generation": 1, "pid": 2},
            {"op": "apply", "record": {}},
            {"op": "grant", "cluster": "c", "node": "n", "epoch": 10**30, "incarnation": 1},
            {"op": "throttle", "ceilings": [1]},
            {"op": "close_slot", "slot": 0, "generation": 0, "grace_s": float("nan")},
            {"op": "hello", "role": "agent", "protocol": 1, "watch": 5},
            {"op": "status", "not_after_ns": "x"},
            {"op": "halt", "generation": "x"},
        ],
    )
    def test_garbage_is_answered_with_an_error_and_changes_nothing(self, machine, request_):
        """Whatever a client sends, there is one answer, and the state stays."""
        before = json.dumps(machine.call("status"))
        machine.perform(machine.core.handle(request_, "g", machine.now_ns))
        assert [reply["ok"] for reply in machine.replies["g"]] == [False]
        assert json.dumps(machine.call("status")) == before

    def test_status_is_json_and_names_slots_and_records(self, machine):
        """What the command shows."""
        ticket = machine.ticket()
        machine.load(ticket)
        machine.grant(ticket, 5)
        status = json.loads(json.dumps(machine.call("status")))
        assert status["slots"][0]["operation"] == "0.CpuLoad@n"
        assert status["slots"][0]["pids"] == [100]
        assert status["slots"][0]["phase"] == "live"
        assert {record["kind"] for record in status["records"]} == {"container", "process"}

    def test_a_tick_without_due_work_is_free_and_next_due_is_exact(self):
        """A grant costs microseconds, an idle tick nearly nothing."""
        machine = Machine(settings=CoreSettings())
        machine.hello()
        tickets = [machine.ticket(amounts={}) for _ in range(10)]
        core = machine.core
        assert machine.core.next_due_ns < NEVER_NS
        leases = [[ticket["slot"], ticket["generation"], 0] for ticket in tickets]
        rounds = 2_000
        best_ns = 1 << 60
        for _ in range(3):
            start = time.thread_time_ns()
            for number in range(rounds):
                now_ns = machine.now_ns + number
                for lease in leases[:2]:
                    lease[2] = now_ns + 5 * SECOND
                core.handle({"op": "grant", "cluster": "c", "node": "n", "epoch": 1, "incarnation": 1, "leases": leases[:2]}, "p", now_ns)
                core.tick(now_ns)
            best_ns = min(best_ns, (time.thread_time_ns() - start) // rounds)
        assert best_ns < 60_000, f"grant and tick took {best_ns} ns of CPU"
        assert isinstance(core, GuardianCore)


def test_a_kill_is_ordered_in_the_very_tick_of_the_deadline(machine):
    """`next_due_ns` is the kill time itself."""
    ticket = machine.ticket()
    machine.load(ticket)
    machine.grant(ticket, 5)
    machine.run_for(0)
    due_ns = machine.now_ns + round(4.5 * SECOND)
    machine.perform(machine.core.tick(due_ns - 1))
    assert machine.core.next_due_ns <= due_ns
    assert any(isinstance(action, Kill) for action in machine.core.tick(due_ns))
