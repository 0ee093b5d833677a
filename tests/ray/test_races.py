"""Several runs, clusters and users on one machine: who is admitted, what they share, and what they must not notice of each other."""

from __future__ import annotations

from support import documents, waiting
from support.embedded import temporary_names
from support.terminal import Command, Ended, Terminal, terminal

LATER = "10m"  # when the large amount would be asked for: it is reserved now, and never taken


def greedy(name: str) -> dict:
    """Return a scenario that reserves 60 % of the machine's memory and takes hardly any of it before it is stopped."""
    steps = {"steps": {"levels": ["0.5%", "60%"], "each": LATER}}
    plan = {"together": [{"MemoryPressure": {"fraction": steps}, "for": "15m"}, {"DiskFill": {"bytes": "16MiB"}, "for": "15m"}]}
    return {"version": 1, "name": name, "plan": plan}


def start(here: Terminal, name: str, *arguments: str) -> Command:
    return here.start("run", documents.write(here.folder, greedy(name)), "--json", *arguments)


def end_of_one(commands: list[Command], within_s: float) -> tuple[Ended, Command]:
    """Wait until one of two commands has ended; return its end and the other command."""
    waiting.until(lambda: any(one.process.poll() is not None for one in commands), within_s, lambda: "\n".join(c.text() for c in commands))
    done = next(one for one in commands if one.process.poll() is not None)
    return done.wait(5), next(one for one in commands if one is not done)


def test_budgets_and_strangers(standing: Terminal) -> None:
    """Of two runs that race for the last budget one is admitted, a cluster of the same STATE is refused too, another user is not touched.

    One long run on the standing cluster serves three checks.
    """
    commands = [start(standing, name, "--yes") for name in ("one", "other")]
    loser, winner = end_of_one(commands, 60)
    assert (loser.code, loser.document["status"]) == (6, "refused"), str(loser)
    assert loser.document["error"]["code"] == "budget"
    assert "memory" in loser.document["error"]["message"]
    assert "other runs hold" in loser.document["error"]["message"]
    winner.await_text("running", 60)
    standing.await_load(3)
    before = sorted(standing.loads())
    fills = {path: path.stat().st_ino for path in standing.fills()}
    assert len(fills) == 3

    refused_beside(standing)
    assert sorted(standing.loads()) == before
    stranger_halts(before, standing)
    assert sorted(standing.loads()) == before
    assert {path: path.stat().st_ino for path in standing.fills()} == fills
    told = standing.run("status", "--json").document
    assert told["halt"]["on"] is False
    assert [one["phase"] for one in told["runs"] if one.get("phase")] == ["running"]

    stopped = standing.run("stop", "--json")
    assert [one["status"] for one in stopped.document["runs"]] == ["cancelled"], str(stopped)
    ended = winner.wait(40)
    assert ended.code == 130, str(ended)
    assert all(one["clean"] for one in ended.document["nodes"])
    assert not standing.fills()


def refused_beside(standing: Terminal) -> None:
    """A second cluster with the same STATE is the same machine to the guardian: the same amount is refused, with 6."""
    with terminal(shared_state=standing.state) as beside:
        ended = start(beside, "beside", "--nodes", "1").wait(90)
        assert (ended.code, ended.document["status"]) == (6, "refused"), str(ended)
        assert "its limit is" in ended.document["message"]
        print(f"refused beside: {ended.document['message']}")


def stranger_halts(before: list[int], standing: Terminal) -> None:
    """A user with another STATE may run beside, halt everything that is theirs and resume: nothing of it is seen here.

    Their halt ends their run with 4, its load within a second, and blocks them until `resume`.
    """
    with terminal() as stranger:
        made = documents.document("stranger", 120, cpu="5%", memory="32MiB")
        command = stranger.start("run", documents.write(stranger.folder, made), "--nodes", "1", "--json")
        command.await_text("running", 90)
        stranger.await_load(2)
        halting = stranger.start("halt", "--json")
        waiting.until(lambda: not stranger.loads(), 20, lambda: f"loads {stranger.loads()} of a run that was halted")
        halted = halting.wait(20)
        assert halted.code == 0, str(halted)
        assert not stranger.loads()
        assert not stranger.fills()
        assert halted.document["on"] is True
        assert sorted(standing.loads()) == before
        ended = command.wait(60)
        assert (ended.code, ended.document["status"]) == (4, "safety"), str(ended)
        print(
            f"halt latency: {halted.document.get('halt_latency_ms')} ms by the guardian, {ended.document['halt_latency_ms']} ms by the run"
        )
        assert 0 <= ended.document["halt_latency_ms"] < 1000
        blocked(stranger)


def blocked(stranger: Terminal) -> None:
    """Until `resume` every run is refused with 6, and leaves nothing."""
    path = documents.write(stranger.folder, documents.document("again", 60, cpu="5%", memory="32MiB"))
    names = temporary_names()
    refused = stranger.run("run", path, "--nodes", "1", "--json", within_s=90)
    assert temporary_names() <= names
    assert (refused.code, refused.document["error"]["code"]) == (6, "halted"), str(refused)
    assert stranger.run("resume", "--json").code == 0
    assert not stranger.loads()
