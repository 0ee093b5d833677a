"""The commands beside `run`: from a second terminal while a run lives, and on its results afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

from support import documents, waiting
from support.embedded import FinishedRun
from support.observe import boot_s
from support.terminal import Terminal, terminal

from actors.simulator import REGISTRY


def fetch(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


def test_a_live_run_from_a_second_terminal() -> None:
    """STATE alone lets `status`, `watch`, `doctor` and `stop` find the embedded run; its metrics are served; `stop` ends it with 130."""
    with terminal() as here:
        made = documents.document("live", 120, cpu="10%", hypotheses=(documents.ACTORS_ANSWER,))
        command = here.start("run", documents.write(here.folder, made), "--nodes", "2", "--json", "--prometheus-port", "0")
        command.await_text("running", 90)
        run = here.run_dir().name
        told = here.run("status", "--json").document
        assert [(one["run"], one["phase"]) for one in told["runs"]] == [(run, "running")]
        kinds = {operation["operation"].split(".")[-1] for operation in told["runs"][0]["operations"]}
        assert kinds == {f"{kind}@{node}" for kind in ("CpuLoad", "MemoryPressure", "DiskFill") for node in ("n1", "n2")}
        held = [op for op in told["runs"][0]["operations"] if "MemoryPressure" in op["operation"]]
        assert all(op["requested"] == 64 * documents.MIB for op in held)
        served(here, run)
        watched(here, command.process.poll)
        doctored(here)
        stopped = here.run("stop", "latest", "--json")
        assert stopped.code == 0, str(stopped)
        assert stopped.document["runs"] == [{"run": run, "status": "cancelled", "exit_code": 130}]
        assert not here.loads()
        assert not here.fills()
        ended = command.wait(40)
        assert (ended.code, ended.document["status"]) == (130, "cancelled"), str(ended)
        manifest = json.loads((here.run_dir() / "manifest.json").read_text())
        assert (manifest["status"], manifest["exit_code"]) == ("cancelled", 130)


def served(here: Terminal, run: str) -> None:
    """Check the run's Prometheus endpoint: loopback, healthy, and clean in promtool's eyes where that is installed."""
    endpoint = json.loads((here.run_dir() / "manifest.json").read_text())["prometheus"]
    assert endpoint["host"] == "127.0.0.1"
    base = f"http://127.0.0.1:{endpoint['port']}"
    assert fetch(f"{base}/healthz")[0] == 200
    assert fetch(f"{base}/readyz")[0] == 200
    waiting.until(lambda: "stress_cluster_dose_achieved" in fetch(f"{base}/metrics")[1], 20, "the dose among the metrics")
    text = fetch(f"{base}/metrics")[1]
    samples = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith("stress_cluster_") for line in samples)
    assert all(f'run="{run}",scenario="live"' in line and 'node=""' not in line for line in samples), samples
    assert all(f'node="{node}"' in text for node in ("n1", "n2", "aggregator"))
    if shutil.which("promtool"):
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def watched(here: Terminal, ended: object) -> None:
    """Watch for a moment: it draws asked against achieved, and Ctrl-C ends the watching, never the run."""
    watch = here.start("watch", "latest")
    watch.await_text("asked", 30)
    watch.send(signal.SIGINT)
    assert watch.wait(20).code in (0, 130)
    assert callable(ended)
    assert ended() is None
    assert len(here.loads()) == 4


def doctored(here: Terminal) -> None:
    """Ask the doctor: every node, every simulator, a verdict; nothing of it disturbs the run."""
    told = here.run("doctor", "--json").document
    assert {"n1", "n2"} <= told["nodes"].keys()
    for facts in told["nodes"].values():
        assert facts["simulators"].keys() == set(REGISTRY)
        assert all(can["verdict"] in {"available", "fallback", "unavailable"} for can in facts["simulators"].values())
        assert facts["kernel"]
        assert facts["ray"]["RAY_AUTH_MODE"] == "token"  # the embedded Ray is not open to others
        assert facts["ray"]["RAY_health_check_period_ms"]


def test_ctrl_c_stops_and_undoes(standing: Terminal) -> None:
    """SIGINT in the run's terminal: load gone at once, everything undone when the command returns, 130.

    This one sends its code to every node, as a run does where nobody says that it is there.
    """
    standing.settings["STRESS_CLUSTER_SHIP"] = "always"
    made = documents.document("interrupted", 60, cpu="10%")
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    command.await_text("running", 60)
    standing.await_load(6)
    command.send(signal.SIGINT)
    at_s = boot_s()
    waiting.until(lambda: not standing.loads(), 10, "the end of all loads")
    print(f"load gone {boot_s() - at_s:.2f} s after Ctrl-C")
    ended = command.wait(30)
    print(f"the command ended {boot_s() - at_s:.2f} s after Ctrl-C")
    assert (ended.code, ended.document["status"]) == (130, "cancelled"), str(ended)
    assert not standing.fills()
    assert "stopping and undoing" in ended.err
    assert all(one["clean"] and one["delivered"] for one in ended.document["nodes"])


def test_the_profile_flag_decides_on_a_cluster(standing: Terminal) -> None:
    """80 % of one node is refused with 6 under `--profile conservative`, where nothing starts, and admitted under `balanced`."""
    made = documents.document("heavy", 3, cpu="80%", memory=None, disk=None, targets={"count": 1})
    scenario = documents.write(standing.folder, made)
    refused = standing.run("run", scenario, "--yes", "--json", "--profile", "conservative")
    assert (refused.code, refused.document["error"]["code"]) == (6, "budget"), str(refused)
    assert "limits.cpu_fraction" in refused.document["error"]["message"]
    admitted = standing.run("run", scenario, "--yes", "--json", "--profile", "balanced")
    assert admitted.code in {0, 5}, str(admitted)  # the dose is not this test's business
    assert json.loads((Path(admitted.document["run_dir"]) / "manifest.json").read_text())["profile"] == "balanced"


def test_report_of_a_finished_run(finished: FinishedRun) -> None:
    """`report` tells a run by id, folder or `latest`, as text, JSON and a page, from any folder."""
    here = finished.terminal
    by_id = here.run("report", finished.folder.name, "--json").document
    assert by_id["status"] == finished.ended.document["status"]
    assert by_id["run_dir"] == str(finished.folder)
    assert here.run("report", "latest", "--json").document == by_id
    text = here.run("report", str(finished.folder))
    assert text.code == 0
    for word in ("small", "memory stays", "actors answer", "n1", "n2", "n3", "MemoryPressure"):
        assert word in text.out
    page = here.run("report", "latest", "--format", "html")
    assert page.out.strip() == str(finished.folder / "report.html")
    missing = here.run("report", "no-such-run", "--json")
    assert (missing.code, missing.document["error"]["code"]) == (2, "not_found")


def test_the_catalogue_and_the_plan_need_no_cluster(finished: FinishedRun) -> None:
    """`list`, `describe`, `schema`, `validate` and `plan` answer without starting anything."""
    here = finished.terminal
    for what in ("simulators", "scenarios", "metrics", "errors"):
        assert here.run("list", what, "--json").document
    assert here.run("describe", "burst", "--json").code == 0
    assert here.run("schema").code == 0
    assert here.run("validate", finished.scenario, "--json").code == 0
    plan = here.run("plan", finished.scenario, "--nodes", "3", "--json")
    assert plan.code == 0, str(plan)
    assert plan.document["targets"] == ["n1", "n2", "n3"]
    assert not here.belonging("host", "gcs", "raylet")


def test_commands_without_a_cluster_answer_for_this_machine() -> None:
    """Without any cluster `status`, `doctor` and `recover` speak of this machine, and `stop` says that there is nothing."""
    with terminal() as here:
        assert here.run("status", "--json").document["runs"] == []
        assert "CpuLoad" in json.dumps(here.run("doctor", "--json").document["nodes"])
        assert here.run("recover", "--json").document["remaining"] == []
        stopped = here.run("stop", "--json")
        assert (stopped.code, stopped.document["error"]["code"]) == (6, "lost")
        assert {path.suffix for path in Path(here.state).iterdir()} & {".pyz"}
