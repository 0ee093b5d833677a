"""The guardian as real processes: what it guards ends and is undone whatever dies, and nothing else is touched.

No Ray. Every wait is bounded; every test has a STATE of its own and leaves no process behind.
"""

# pathlib is left out where /proc is read
# ruff: noqa: PTH115, PTH123

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from actors import proc
from actors.clock import SECOND_NS
from actors.guardian import GuardianClient, GuardianError
from actors.guardian import spawn as spawning
from actors.guardian.client import connect_socket
from actors.guardian.lock import LOCK_NAME
from actors.guardian.main import IDLE_EXIT_ENV
from actors.undo import TREE_TOKEN_FILE
from tests.support.observe import promised
from tests.support.site import CLOCK, OWNER, Site, fill, gone_within, grant, keep_granting, loaded, open_slot
from tests.support.waiting import never, until


class TestStart:
    def test_it_starts_fast_small_and_in_a_session_of_its_own(self, site):
        """Started in under 0.3 s (best of two), daemonised, in STATE, with a command line that Ray's clean-up does not know."""
        start = time.monotonic()
        client = site.client()
        took = time.monotonic() - start
        pid = client.hello["pid"]
        stat = proc.read_stat(pid)
        assert stat.session not in {os.getsid(0), os.getpid()}
        assert stat.ppid != os.getpid()
        assert os.readlink(f"/proc/{pid}/cwd") == str(site.state)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode().split("\0")
        assert not any(mark in " ".join(words[:-2]) for mark in ("ray::", "raylet", "monitor.py"))
        assert words[1:3] == ["-I", "-S"]
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            private = sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
        assert private <= 15 * 1024
        if took > 0.3:
            client.call("quit")
            until(lambda: not site.guardians(), 5)
            start = time.monotonic()
            site.client()
            took = min(took, time.monotonic() - start)
        assert took <= 3.0, f"started in {took:.2f} s"  # 0.2 s on an idle machine; the suite shares its cores

    def test_an_idle_guardian_costs_next_to_nothing(self, site):
        """At most 0.1 % of a core beside heartbeats, measured over three seconds of its own CPU time."""
        client = site.client()
        pid = client.hello["pid"]

        def spent_ns():
            with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[0])

        time.sleep(0.5)
        before, start = spent_ns(), time.monotonic()
        time.sleep(3)
        share = (spent_ns() - before) / (time.monotonic() - start) / 1e9
        assert share <= 0.003, f"{share:.4%} of a core"

    def test_twenty_concurrent_starts_make_one_guardian(self, site):
        """Whoever starts, all talk to the same process, and only it and its standby stay."""
        clients, errors = [], []

        def connect(number):
            try:
                clients.append(GuardianClient.connect(site.state, role="agent", **{**OWNER, "node": f"n{number}"}))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=connect, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        site.clients += clients
        assert not errors
        assert len({client.hello["pid"] for client in clients}) == 1
        assert len({client.hello["guardian_id"] for client in clients}) == 1
        until(lambda: len(site.guardians()) == 2, 10, lambda: f"one guardian and its standby, not {site.guardians()}")

    def test_processes_that_start_at_once_leave_one_guardian(self, site):
        """Without any courtesy among the callers the lock alone decides; the others leave by themselves."""
        threads = [threading.Thread(target=spawning.start_guardian, args=(site.state,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        pid = site.client(role="cli").call("status")["pid"]
        until(lambda: len(site.guardians()) == 2, 15, lambda: f"one guardian and its standby, not {site.guardians()}")
        assert pid in site.guardians()

    def test_a_long_state_path_works(self, tmp_path):
        """A unix socket's name has 108 bytes; STATE may be longer."""
        deep = tmp_path
        for _ in range(6):
            deep = deep / ("d" * 40)
        deep.mkdir(parents=True)
        site = Site(deep)
        try:
            assert site.client().call("status")["pid"]
        finally:
            site.close()

    def test_one_of_other_code_leaves_when_idle_and_is_refused_when_busy(self, site, monkeypatch):
        """A new version replaces an idle guardian, and never one that guards."""
        old = site.client()
        pid = old.hello["pid"]
        ticket = open_slot(old)
        grant(old, ticket, 30)
        sources = spawning.archive()
        monkeypatch.setattr(spawning, "archive", lambda: sources)
        monkeypatch.setattr(spawning, "guardian_code_id", lambda: "0123456789abcdef")
        with pytest.raises(GuardianError) as caught:
            site.client(node="m")
        assert caught.value.code == "busy"
        assert site.client(role="cli").call("status")["pid"] == pid
        old.call("close_slot", **ticket)
        until(lambda: not old.call("status")["slots"], 5)
        old.close()
        until(lambda: "agent" not in site.client(role="cli").call("status")["peers"], 5)
        new = site.client(node="m")
        assert new.hello["pid"] != pid
        assert new.hello["code_id"] == "0123456789abcdef"


class TestLeaseEnd:
    @pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
    @promised
    def test_load_and_fill_are_gone_at_the_end_of_the_lease(self, site, stopped):
        """Also a load that is SIGSTOPped is killed by the deadline, and its fill is removed."""
        client = site.client()
        ticket, load = loaded(site, client, 1.5, release_s=0.3)
        deadline_ns = client.control.lease(ticket["slot"])[1]
        if stopped:
            os.kill(load.pid, signal.SIGSTOP)
        never(lambda: load.poll() is not None, 0.6, "the load ended early")
        assert load.wait(3) == -signal.SIGKILL
        until(lambda: not site.fill_files(), 1)
        assert CLOCK.boot_ns() - deadline_ns <= 0.5 * SECOND_NS
        report = client.call("close_slot", **ticket)
        assert {one["outcome"] for one in report["outcomes"]} == {"expired"}
        until(lambda: not site.journal(), 3, "the journal is empty")

    def test_children_that_left_their_parent_and_session_die_too(self, site):
        """A load that forks, sets sessions and orphans its children leaves nothing in its container."""
        client = site.client()
        ticket = open_slot(client)
        code = (
            "import os,time,sys\n"
            "sys.stdin.readline()\n"
            "for i in range(30):\n"
            "    if os.fork()==0:\n"
            f"        {'os.setsid()' if proc.cgroup_root() else 'pass'}\n"
            "        if os.fork(): os._exit(0)\n"
            "        time.sleep(300)\n"
            "time.sleep(300)\n"
        )
        load = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True, stdin=subprocess.PIPE)
        site.children.append(load)
        container = client.call("register", **ticket, pid=load.pid)["container"]
        grant(client, ticket, 30)
        before = {stat.pid for stat in proc.scan()}
        load.stdin.write(b"go\n")
        load.stdin.close()
        status = client.call("status")["slots"][0]

        def inside():
            if container == "cgroup":
                return set(proc.cgroup_pids(status["container"])) - {load.pid}
            return {stat.pid for stat in proc.session_members(load.pid)} - {load.pid}

        until(lambda: len(inside()) >= 30, 10, "the children are there")
        orphans = inside()
        assert not orphans & before
        report = client.call("close_slot", **ticket, grace_s=0)
        assert {one["outcome"] for one in report["outcomes"]} == {"undone"}
        assert not [pid for pid in orphans if (stat := proc.read_stat(pid)) and stat.state not in "ZX"]

    @promised
    def test_the_end_of_a_watched_process_ends_its_slots_at_once(self, site):
        """The agent's death is not waited out."""
        agent = site.child()
        client = site.client(watch=[agent.pid])
        _, load = loaded(site, client, 30)
        agent.kill()
        agent.wait(5)
        assert gone_within(site, load, 3) < 2.5

    @pytest.mark.parametrize("victim", ["agent", "simulator"])
    def test_an_agent_or_simulator_that_is_stopped_is_killed_at_its_leases_end(self, site, victim):
        """By SIGKILL, not before the lease's end; the one beside it, cut off but running, lives on."""
        pair = {"agent": site.child(), "simulator": site.child()}
        client = site.client(pid=pair["agent"].pid, watch=[pair["agent"].pid])
        ticket, load = loaded(site, client, 1.5)
        site.client(role="simulator", pid=pair["simulator"].pid, **ticket)
        pair[victim].send_signal(signal.SIGSTOP)
        assert pair[victim].poll() is None
        assert gone_within(site, load, 5) < 3
        assert pair[victim].wait(5) == -signal.SIGKILL
        (other,) = (child for name, child in pair.items() if name != victim)
        never(lambda: other.poll() is not None, 0.5, "the other one died")

    def test_close_reports_and_leaves_nothing(self, site):
        """A close drains, kills, undoes, and says when."""
        client = site.client()
        ticket, load = loaded(site, client, 30)
        asked_ns = CLOCK.boot_ns()
        report = client.call("close_slot", **ticket, grace_s=0.2)
        assert asked_ns < report["stopped_ns"] <= report["released_ns"] <= CLOCK.boot_ns()
        assert {one["kind"]: one["outcome"] for one in report["outcomes"]} == {
            "container": "undone",
            "process": "undone",
            "disk_fill": "undone",
        }
        assert load.wait(1) == -signal.SIGKILL
        assert site.fill_files() == []
        assert client.call("close_slot", **ticket)["outcomes"] == report["outcomes"]

    @promised
    def test_a_waiting_close_does_not_hold_up_a_grant(self, site):
        """The guardian serves others while a slot drains, through the same client."""
        client = site.client()
        slow, _ = loaded(site, client, 30)
        other = open_slot(client)
        thread = threading.Thread(target=lambda: client.call("close_slot", **slow, grace_s=1.5), daemon=True)
        thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        assert grant(client, other)["leases"]
        assert time.monotonic() - start < 0.5
        thread.join(10)
        assert not thread.is_alive()


class TestGuardianDies:
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
    @promised
    def test_the_standby_goes_on_within_two_seconds(self, site, how):
        """The load lives on under grants, the pages stay the same, and the lease still ends it."""
        client = site.client()
        ticket, load = loaded(site, client, 4.0)
        first, second = client.hello["pid"], client.hello["standby_pid"]
        stop = threading.Event()
        thread, refusals = keep_granting(client, ticket, stop, 4.0)
        struck = time.monotonic()
        os.kill(first, how)
        cli = until(lambda: _try(lambda: site.client(role="cli")), 5, "a guardian answers")
        until(lambda: cli.call("status")["pid"] == second, 5, "the standby serves")
        assert time.monotonic() - struck <= 2.5
        until(lambda: first not in site.guardians(), 1, "the old guardian is gone")
        until(lambda: len(site.guardians()) == 2, 2, "there is a new standby")
        before = client.control.lease(ticket["slot"])[1]
        until(lambda: client.control.lease(ticket["slot"])[1] > before, 3, "grants go on on the same page")
        assert load.poll() is None
        assert site.fill_files()
        stop.set()
        thread.join(5)
        assert refusals == []
        gone_within(site, load, 6)
        until(lambda: not site.journal(), 3, "the journal is empty")

    def test_no_deadline_moves_while_it_is_silent(self, site):
        """A stopped guardian extends nothing."""
        client = site.client()
        ticket, load = loaded(site, client, 1.5)
        os.kill(client.hello["standby_pid"], signal.SIGSTOP)
        os.kill(client.hello["pid"], signal.SIGSTOP)
        word = client.control.lease(ticket["slot"])
        with pytest.raises(GuardianError):
            client.call("grant", timeout_s=0.5, **OWNER, leases=[[*ticket.values(), CLOCK.boot_ns() + 30 * SECOND_NS]])
        never(lambda: client.control.lease(ticket["slot"]) != word, 0.5, "a deadline moved")
        assert load.poll() is None  # this spinner does not look at its lease: it is the next guardian's to end

    def test_guardian_and_standby_killed_the_next_one_sweeps(self, site):
        """The pair's death leaves a journal; whoever starts next undoes it before it serves others."""
        client = site.client()
        _, load = loaded(site, client, 30)
        site.kill_pair(client)
        assert site.fill_files()
        assert len(site.journal()) == 3
        site.client(role="cli")
        gone_within(site, load, 3)
        until(lambda: not site.journal(), 4, "the journal is empty")

    def test_every_file_of_a_killed_run_is_removed_at_the_next_start(self, site):
        """A fill of several written files is several records: none of them stays."""
        client = site.client()
        ticket = open_slot(client)
        grant(client, ticket, 30)
        for token in ("a", "b", "c"):
            fields = {"path": str(site.state / "fill"), "token": token, "reserve_bytes": 0}
            record = client.call("arm", **ticket, kind="disk_fill", fields=fields)["record"]
            assert client.call("apply", record=record, params={"bytes": 9 << 20, "write": True})["achieved"] >= 9 << 20
        site.kill_pair(client)
        assert len(site.fill_files()) == 3
        site.client(role="cli")
        until(lambda: not site.fill_files(), 3)
        until(lambda: not site.journal(), 4, "the journal is empty")

    def test_both_stopped_are_ended_by_the_next_start(self, site):
        """Holders of the lock that answer nobody for seconds are killed, by identity, and everything is undone."""
        client = site.client()
        _, load = loaded(site, client, 30)
        held = (client.hello["standby_pid"], client.hello["pid"])
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        spawning.start_guardian(site.state)
        load.wait(20)
        until(lambda: not site.fill_files(), 3)
        until(lambda: not set(held) & set(site.guardians()), 3)

    def test_killed_during_apply_the_standby_undoes_what_was_written(self, site):
        """Each moment of a growing fill is covered by its record."""
        client = site.client()
        ticket = open_slot(client, amounts={"disk_bytes": 4 << 30})
        grant(client, ticket, 2.5)
        record = client.call(
            "arm", **ticket, kind="disk_fill", fields={"path": str(site.state / "fill"), "token": "t", "reserve_bytes": 1 << 30}
        )["record"]
        done = threading.Event()

        def apply():
            with contextlib.suppress(GuardianError):
                client.call("apply", record=record, params={"bytes": 3 << 30}, timeout_s=5)
            done.set()

        threading.Thread(target=apply, daemon=True).start()
        until(site.fill_files, 3, every_s=0.001)
        os.kill(client.hello["pid"], signal.SIGKILL)
        assert done.wait(6)
        until(lambda: not site.fill_files(), 5)
        until(lambda: not site.journal(), 4)

    def test_a_dead_standby_is_replaced(self, site):
        """The guardian is never long without its shadow."""
        client = site.client()
        ticket, load = loaded(site, client, 30)
        first = client.hello["standby_pid"]
        os.kill(first, signal.SIGKILL)
        until(lambda: site.client(role="cli").call("status")["standby_pid"] != first, 3)
        os.kill(client.hello["pid"], signal.SIGKILL)
        until(lambda: grant(client, ticket)["leases"], 4)
        assert load.poll() is None
        client.call("close_slot", **ticket)
        assert load.wait(3) == -signal.SIGKILL

    def test_a_terminated_guardian_ends_everything_first(self, site):
        """SIGTERM undoes."""
        client = site.client()
        _, load = loaded(site, client, 30)
        os.kill(client.hello["pid"], signal.SIGTERM)
        gone_within(site, load, 3)


class TestOnlyOne:
    def test_a_removed_lock_file_is_locked_again(self, site):
        """A cleaner that takes the lock file away changes nothing while no second guardian came."""
        client = site.client()
        ticket, load = loaded(site, client, 30)
        (site.state / LOCK_NAME).unlink()
        until((site.state / LOCK_NAME).exists, 2, "the lock is taken again")
        spawning.start_guardian(site.state)
        never(lambda: client.call("status")["pid"] != client.hello["pid"], 0.8, "another serves")
        until(lambda: len(site.guardians()) == 2, 5, lambda: f"{site.guardians()}")
        assert load.poll() is None
        client.call("close_slot", **ticket)

    def test_a_guardian_whose_lock_another_took_leaves_and_its_loads_end(self, site):
        """At most one acts: the second sweeps what the first had armed."""
        client = site.client()
        first = client.hello["pid"]
        _, load = loaded(site, client, 30)
        os.kill(client.hello["standby_pid"], signal.SIGSTOP)
        os.kill(first, signal.SIGSTOP)
        (site.state / LOCK_NAME).unlink()
        spawning.start_guardian(site.state)
        load.wait(5)
        until(lambda: not site.fill_files(), 3)
        second = site.client(role="cli").call("status")["pid"]
        os.kill(first, signal.SIGCONT)
        until(lambda: first not in site.guardians(), 3, "the deposed one is gone")
        assert site.client(role="cli").call("status")["pid"] == second

    def test_an_idle_guardian_leaves_and_a_hello_that_races_it_is_served(self, site, monkeypatch):
        """Callers that come while it leaves find it or its successor, never nothing."""
        monkeypatch.setenv(IDLE_EXIT_ENV, "0.2")
        served = set()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            client = GuardianClient.connect(site.state, role="agent", **OWNER)
            served.add(client.hello["pid"])
            assert client.call("status")["slots"] == []
            client.close()
            time.sleep(0.2 + (len(served) % 5) * 0.01)
        until(lambda: not site.guardians(), 5, lambda: f"nobody stays: {site.guardians()}")
        assert not (site.state / "guardian.sock").exists()
        assert site.journal() == []
        assert len(served) >= 2


class TestStateRemoved:
    """STATE is removed under a living guardian, as by a cleaner or a test's own clean-up."""

    @pytest.mark.parametrize("die_first", [False, True], ids=["in-service", "at-a-takeover"])
    def test_load_ends_and_no_guardian_follows_another_for_ever(self, site, die_first):
        """All load ends, and soon no guardian of that folder is left: none replaces the last one again and again."""
        client = site.client()
        ticket, load = loaded(site, client)
        if die_first:
            os.kill(client.hello["pid"], signal.SIGSTOP)
        shutil.rmtree(site.state)
        if die_first:
            os.kill(client.hello["pid"], signal.SIGKILL)
            proc_end = client.control  # nobody is left to kill: the lease word forbids load instead
            until(lambda: not proc_end.live(ticket["slot"], ticket["generation"], CLOCK.boot_ns()), 5, "the lease is taken away")
        else:
            gone_within(site, load, 5)
        until(lambda: not site.guardians(), 15, lambda: f"{site.guardians()} still live")
        never(site.guardians, 1.0, "no guardian comes back")


class TestForeign:
    def test_a_file_that_is_not_ours_is_left_and_reported(self, site):
        """Foreign content in our file's place stays byte for byte, is named in the report and survives a restart."""
        client = site.client()
        ticket = open_slot(client)
        grant(client, ticket, 30)
        record = fill(client, ticket, state=site.state)
        place = site.fill_files()[0]
        place.unlink()
        place.write_bytes(b"somebody else's" * 1_000)
        report = client.call("close_slot", **ticket)
        assert {one["record"]: one["outcome"] for one in report["outcomes"]}[record] == "foreign"
        assert place.read_bytes() == b"somebody else's" * 1_000
        status = site.client(role="cli").call("status")
        assert [one["state"] for one in status["records"] if one["id"] == record] == ["foreign"]
        client.call("forget", record=record)
        until(lambda: not site.journal(), 3)
        assert place.exists()

    def test_a_process_with_another_start_time_is_never_signalled(self, site):
        """A forged record whose pid means another process now changes nothing."""
        innocent = site.child("sh", "-c", "sleep 300 & wait")

        def members():
            return {(one.pid, one.starttime) for one in proc.session_members(innocent.pid)}

        until(lambda: len(members()) == 2, 5)
        before = members()
        client = site.client()
        ticket = open_slot(client)
        grant(client, ticket, 30)
        stat = proc.read_stat(innocent.pid)
        client.call("arm", **ticket, kind="session", fields={"sid": innocent.pid, "starttime": stat.starttime + 1})
        report = client.call("close_slot", **ticket)
        assert {one["kind"]: one["outcome"] for one in report["outcomes"]}["session"] == "undone"
        never(lambda: members() != before, 1.5, "an innocent process was killed")

    def test_a_session_and_then_its_tree_are_removed_when_the_driver_dies(self, site, tmp_path):
        """The embedded Ray's record: every process of the session, also when its leader is dead, then the marked folder."""
        tree = tmp_path / "embedded"
        (tree / "logs").mkdir(parents=True)
        (tree / TREE_TOKEN_FILE).write_text("token-1")
        driver = site.child()
        code = (
            "import os,time\n"
            "for i in range(3):\n"
            f"  if os.fork()==0: open({str(tree)!r}+'/logs/'+str(i),'w').close(); time.sleep(300)\n"
            "time.sleep(300)"
        )
        leader = site.child(sys.executable, "-S", "-c", code)
        owner = {**OWNER, "node": "driver"}
        client = site.client(role="driver", node="driver", watch=[driver.pid])
        ticket = open_slot(client, **owner, operation="embedded@driver", amounts={})
        client.call("arm", **ticket, kind="tree", fields={"path": str(tree), "token": "token-1"})
        client.call("arm", **ticket, kind="session", fields={"sid": leader.pid, "starttime": proc.read_stat(leader.pid).starttime})
        grant(client, ticket, 30, **owner)
        until(lambda: len(proc.session_members(leader.pid)) == 4, 5)
        members = [stat.pid for stat in proc.session_members(leader.pid)]
        leader.kill()
        leader.wait(5)
        assert tree.exists()
        driver.kill()
        driver.wait(5)
        until(lambda: not tree.exists(), 5, "the tree is removed")
        assert not [pid for pid in members if (stat := proc.read_stat(pid)) and stat.state not in "ZX"]


class TestDisk:
    def test_a_torn_record_is_counted_and_the_others_are_undone(self, site):
        """A journal whose tail was cut in writing still undoes everything that was acknowledged."""
        client = site.client()
        _, load = loaded(site, client, 30)
        site.kill_pair(client)
        with (site.state / "journal").open("r+b") as file:
            file.seek(3 * 4_096)
            file.write(b"SCUJ\x01\x00\x01\x00\xff\x00\x00\x00" + b"half a record")
        status = site.client(role="cli").call("status")
        assert status["journal_torn"] == 1
        gone_within(site, load, 3)
        until(lambda: not site.journal(), 4)

    def test_without_a_journal_nothing_is_opened(self, site):
        """Arming fails closed with the code `journal`."""
        (site.state / "journal").mkdir()
        client = site.client()
        with pytest.raises(GuardianError) as caught:
            open_slot(client)
        assert caught.value.code == "journal"
        assert client.call("status")["slots"] == []

    def test_the_halt_is_kept_over_restarts_until_resumed(self, site):
        """Nobody opens anything on this machine before a newer resume; the answer has the real latency."""
        client = site.client()
        _, load = loaded(site, client, 30)
        answer = client.call("halt")
        assert load.wait(2) == -signal.SIGKILL
        assert [one["operation"] for one in answer["killed"]] == ["0.CpuLoad@n"]
        assert 0 <= answer["last_gone_ns"] - answer["decided_ns"] < SECOND_NS
        site.kill_pair(client)
        again = site.client()
        assert again.hello["halt"] == {"generation": 1, "on": True}
        with pytest.raises(GuardianError) as caught:
            open_slot(again)
        assert caught.value.code == "halted"
        again.call("resume")
        assert open_slot(again)

    def test_undo_twice_is_undo_once(self, site):
        """The second undo answers the same and touches nothing."""
        client = site.client()
        ticket = open_slot(client)
        grant(client, ticket, 30)
        record = fill(client, ticket, state=site.state)
        assert client.call("undo", record=record)["outcome"] == "undone"
        assert site.fill_files() == []
        (site.state / "fill" / "neighbour").write_text("stays")
        assert client.call("undo", record=record)["outcome"] == "undone"
        never(lambda: [one.name for one in site.fill_files()] != ["neighbour"], 1.3, "the folder")
        assert client.call("undo", record=record)["outcome"] == "undone"
        assert [one.name for one in site.fill_files()] == ["neighbour"]


class TestGarbage:
    def test_it_survives_whatever_a_client_sends(self, site):
        """Bad JSON, wrong types, oversize, many connections and disconnects in mid-request leave it serving."""
        client = site.client()
        pid = client.hello["pid"]
        packets = [b"{", b"[]", b"null", b"\xff\xfe", b'{"op":"hello"}', b"[" * 50_000, b"x" * 65_000, b'{"op":"status"}' + b" " * 100_000]
        for packet in packets:
            with connect_socket(site.state) as link:
                link.settimeout(5)
                link.send(packet)
                assert json.loads(link.recv(1 << 20))["ok"] in {False, True}
        for _ in range(50):
            link = connect_socket(site.state)
            link.send(b'{"op":"status"}')
            link.close()
        deaf = connect_socket(site.state)
        deaf.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(20_000):
                deaf.send(b'{"op":"status"}', socket.MSG_DONTWAIT)
        assert client.call("status")["pid"] == pid
        deaf.close()

    def test_many_silent_connections_do_not_shut_others_out_for_long(self, site):
        """Connections are bounded; closing some makes room."""
        client = site.client()
        links = []
        with contextlib.suppress(OSError):
            links.extend(connect_socket(site.state) for _ in range(600))
        assert client.call("status")["pid"]
        for link in links:
            link.close()
        assert site.client(role="cli").call("status")["pid"]


def _try(work):
    try:
        return work()
    except GuardianError:
        return None
