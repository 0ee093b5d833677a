"""`halt` and `resume` against real clusters: whole, half dead, dead, and given on the node itself."""

from __future__ import annotations

import json
import signal

import pytest
from support import documents, waiting
from support.observe import boot_s
from support.terminal import Terminal, terminal

from actors.guardian import GuardianClient

EVERYWHERE = ["head", "n1", "n2", "n3"]


@pytest.fixture
def lifted(standing: Terminal):
    """Give the standing cluster, and leave it without a halt whatever happens."""
    yield standing
    standing.run("resume", "--json", within_s=120)


def test_an_idle_cluster_is_halted_and_resumed_everywhere(lifted: Terminal) -> None:
    """No run, no agents, no orchestrator needed: they are started, each node confirms, and a resume lifts what is in the journal."""
    halted = lifted.run("halt", "--json", within_s=120)
    assert (halted.code, halted.document["nodes"], halted.document["unreached"]) == (0, EVERYWHERE, []), str(halted)
    assert lifted.run("status", "--json").document["halt"] == {"generation": halted.document["generation"], "on": True}
    made = documents.write(lifted.folder, documents.document("refused", 5, cpu="5%"))
    refused = lifted.run("run", made, "--yes", "--json", within_s=120)
    assert (refused.code, refused.document["error"]["code"]) == (6, "halted"), str(refused)
    resumed = lifted.run("resume", "--json", within_s=120)
    assert (resumed.code, resumed.document["nodes"], resumed.document["on"]) == (0, EVERYWHERE, False), str(resumed)
    assert resumed.document["generation"] > halted.document["generation"]
    forgotten = lifted.run("forget", "n1", "--json")
    assert (forgotten.code, forgotten.document["error"]["code"]) == (6, "no_target"), str(forgotten)


def test_a_dead_address_keeps_no_halt_from_this_machine() -> None:
    """The local halt stands at once, the answer names the cluster, and 3 says that it was not reached."""
    with terminal(settings={"RAY_ADDRESS": "127.0.0.1:9"}) as here:
        halted = here.run("halt", "--json", within_s=30)
        assert (halted.code, halted.document["on"], halted.document["nodes"]) == (3, True, []), str(halted)
        assert "127.0.0.1:9" in halted.document["unreached"][0]
        assert json.loads((here.state / "halt.json").read_text())["on"] is True
        assert here.run("resume", "--json", within_s=30).code == 3
        assert json.loads((here.state / "halt.json").read_text())["on"] is False


def running(here: Terminal, name: str):
    made = documents.write(here.folder, documents.document(name, 120, cpu="5%", memory="32MiB"))
    command = here.start("run", made, "--nodes", "2", "--json")
    command.await_text("running", 120)
    here.await_load(4)
    return command


def test_a_halt_at_the_guardians_socket_ends_the_run_as_safety() -> None:
    """Given on the node without any command of a cluster, it travels: the run ends with 4 on all nodes, nothing is lost or failed."""
    with terminal() as here:
        command = running(here, "halted-here")
        with GuardianClient.connect(here.state, role="cli") as guardian:
            guardian.call("halt")
        assert not here.loads()
        ended = command.wait(60)
        assert (ended.code, ended.document["status"]) == (4, "safety"), str(ended)
        causes = {reason["cause"] for reason in ended.document["reasons"]}
        assert causes <= {"safety", "inconclusive"}, ended.document["reasons"]  # its dose cannot be judged; nothing is an error
        assert "emergency halt" in ended.document["message"]


def test_a_half_dead_embedded_ray_keeps_no_halt_from_its_load() -> None:
    """With a control store that is stopped, and accepts connections all the same, load is gone in a second; the rest is told in time."""
    with terminal() as here:
        command = running(here, "half-dead")
        gcs = here.one("gcs")
        gcs.signal(signal.SIGSTOP)
        try:
            begun_s = boot_s()
            halting = here.start("halt", "--json")
            waiting.until(lambda: not here.loads(), 10, "the end of all loads")
            print(f"load gone {boot_s() - begun_s:.2f} s after the command's start")
            halted = halting.wait(60)
            assert halted.code in (0, 3), str(halted)
            assert halted.document["on"] is True
            assert len(halted.document["killed"]) == 6
        finally:
            gcs.signal(signal.SIGCONT)
        assert command.wait(90).code in (3, 4)
