"""Runs whose driver goes away, on purpose or by SIGKILL: they end as they should, and `report` and `recover` tell it whole."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support import documents, waiting
from support.terminal import Ended, Terminal

from cluster.analysis import load
from cluster.fetch import is_whole


@pytest.fixture
def standing(standing: Terminal) -> Terminal:
    """Give the standing cluster with a lease that is soon over."""
    standing.settings["STRESS_CLUSTER_LEASE_S"] = "2"
    return standing


def reported(here: Terminal, run: str) -> dict[str, Any]:
    """Return what `report` says of a run once it has ended."""
    found: list[dict[str, Any]] = []

    def ended() -> bool:
        found.append(here.run("report", run, "--json").document)
        return found[-1]["status"] != "running"

    waiting.until(ended, 60, lambda: f"the end of {run}: {found[-1]}")
    return found[-1]


def windows_of(run_dir: Path) -> set[str]:
    """Return the nodes of which the run directory has windows."""
    return {row["node"] for row in load(run_dir).metrics.to_pylist() if row["metric"] == "dose.achieved"}


def test_a_detached_run_goes_on_and_is_reported_to_its_end(standing: Terminal) -> None:
    """`run --detach` is back with 0 and `running` while load runs; `report` follows it from `running` to its verdict, all files in OUT."""
    scenario = documents.write(standing.folder, documents.document("detached", 8, cpu="10%", targets={"count": 1}))
    begun: Ended = standing.run("run", scenario, "--detach", "--yes", "--json")
    assert (begun.code, begun.document["status"]) == (0, "running"), str(begun)
    assert standing.loads(), "nothing runs"
    run, home = begun.document["run"], Path(begun.document["run_dir"])
    assert not standing.belonging("driver")
    first = standing.run("report", run, "--json").document
    assert first["status"] == "running"
    last = reported(standing, run)
    assert last["status"] in {"passed", "inconclusive"}, last
    assert last["run_dir"] == str(home)
    assert is_whole(home)
    assert windows_of(home) == {"n1"}
    assert (home / "report.html").exists()
    assert json.loads((home / "manifest.json").read_text())["out"] == str(home)


def test_what_a_detached_run_fails_of_before_load_is_its_code(standing: Terminal) -> None:
    """A detached run that is refused says so with 6, as an attached one does."""
    scenario = documents.write(standing.folder, documents.document("refused", 8, memory="10TiB", targets={"count": 1}))
    refused = standing.run("run", scenario, "--detach", "--yes", "--json")
    assert (refused.code, refused.document["status"]) == (6, "refused"), str(refused)


def test_a_killed_command_and_driver_leave_a_run_that_is_told_whole(standing: Terminal) -> None:
    """Both killed by SIGKILL: the run ends by the driver's lease, OUT has a manifest only, and `recover` brings it up to date."""
    scenario = documents.write(standing.folder, documents.document("orphaned", 60, cpu="10%", targets={"count": 1}))
    command = standing.start("run", scenario, "--yes", "--json")
    command.await_text("running", 60)
    standing.await_load(1)
    home = standing.run_dir()
    for one in standing.belonging("driver"):
        if one.parent == command.pid:
            one.signal(signal.SIGKILL)
    command.send(signal.SIGKILL)
    command.process.wait(20)
    waiting.until(lambda: not standing.loads(), 20, "the end of the load")
    assert not is_whole(home)
    told = reported(standing, home.name)
    assert (told["status"], told["exit_code"]) not in {("passed", 0), ("running", None)}, told
    recovered = standing.run("recover", "--json")
    assert recovered.code == 0, str(recovered)
    assert is_whole(home)
    assert windows_of(home) == {"n1"}
