"""The command line with fakes for the driver, the cluster and the job server: what it prints and how it ends."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import CODES, HarnessError, RefusedError
from actors.messages import NodeSpec
from cluster import cli
from cluster.cli import control, follow, ports, render, submit
from cluster.cli.output import plain
from cluster.cli.run import out_folder, run_id
from cluster.driver import RunRequest
from cluster.settings import load
from scenarios import catalogue
from scenarios import plan as plans


@dataclasses.dataclass
class FakeOutcome:
    status: str = "passed"
    exit_code: int = 0
    message: str = ""
    run_dir: Path | None = None
    summary: dict = dataclasses.field(default_factory=dict)


class FakeDriver:
    """Plays events; `signals` are raised in this process before the event of that index."""

    def __init__(self, events, outcome, signals=()):
        self.played, self.outcome, self.signals = events, outcome, dict(signals)
        self.calls = []

    def events(self):
        for index, event in enumerate(self.played):
            if index in self.signals:
                signal.raise_signal(self.signals[index])
            yield event

    def stop(self, reason):
        self.calls.append(("stop", reason))

    def kill(self):
        self.calls.append(("kill",))

    def wait(self):
        return self.outcome


class FakeLink:
    def __init__(self, **answers):
        self.answers, self.calls, self.closed = answers, [], False

    def __getattr__(self, name):
        def ask(*arguments):
            self.calls.append((name, *arguments))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer.pop(0) if isinstance(answer, list) and name == "status" else answer

        return ask

    def close(self):
        self.closed = True


DOSE = [{"operation": "0.0.CpuLoad@n1", "node": "n1", "requested": 0.5, "achieved": 0.49, "unit": "fraction", "reached": True}]
EVENTS = [
    {"type": "ray", "seconds": 3.2, "address": "127.0.0.1:6379"},
    {
        "type": "plan",
        "targets": ["n1", "n2"],
        "peak": {"cpu_cores": 1.0, "memory_bytes": 1 << 28},
        "duration_s": 40.0,
        "shared": [["n1", "n2"]],
        "drift": [],
    },
    {"type": "phase", "phase": "running"},
    {
        "type": "progress",
        "elapsed_s": 6,
        "duration_s": 40,
        "operations": [{"operation": "0.0.CpuLoad@n1", "node": "n1", "unit": "fraction", "requested": 0.5, "achieved": 0.49}],
        "nodes": [{"node": "n1", "cpu": 0.5, "memory_available_bytes": 1 << 30, "verdict": 2, "ceiling": 0.8, "lost": False}],
    },
    {"type": "event", "kind": "shed", "severity": "warning", "message": "memory is short [n1]", "node": "n1"},
]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Each test has a folder, a state folder and no cluster of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("STRESS_CLUSTER_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def drive(monkeypatch):
    """Put a fake driver in place and keep the request that it was given."""

    def put(events=EVENTS, outcome=None, signals=()):
        driver = FakeDriver(list(events), outcome or FakeOutcome(), signals)

        def start(**fields):
            driver.request = RunRequest(**fields)
            return driver

        monkeypatch.setattr(ports, "start_run", start)
        return driver

    return put


@pytest.fixture
def link(monkeypatch):
    def put(**answers):
        made = FakeLink(**answers)

        def connect(address, settings):
            made.address, made.settings = address, settings
            return made

        monkeypatch.setattr(ports, "connect", connect)
        return made

    return put


def document(capsys):
    """Return the one JSON document on standard output."""
    return json.loads(capsys.readouterr().out)


# ---- run


def test_run_tells_asked_achieved_and_where_the_report_lies(drive, capsys, tmp_path):
    """The last lines of a run say verdict, asked, achieved and where its directory is; progress is on standard error."""
    run_dir = tmp_path / "runs" / "r1"
    run_dir.mkdir(parents=True)
    (run_dir / "report.html").write_text("")
    drive(outcome=FakeOutcome(run_dir=run_dir, summary={"dose": DOSE}))
    assert cli.main(["run", "burst", "--nodes", "1"]) == 0
    told = capsys.readouterr()
    assert "passed: Every hypothesis held" in told.out
    assert "Asked (mean): CpuLoad 50.0 % on n1." in told.out
    assert "CpuLoad 49.0 %; reached by all 1 operations" in told.out
    assert told.out.rstrip().endswith("\nReport: runs/r1/report.html")  # as one would type it here
    for words in (
        "asks       CpuLoad up to 50.0 %, MemoryPressure up to 256.0 MiB, DiskFill up to 64.0 MiB on each target, for 40 s",
        "targets    n1, n2",
        "1.00 cores, memory 256.0 MiB",
        "n1, n2 share one machine",
        "ends       40 s",
        "to stop    Ctrl-C",
        "memory is short [n1]",
    ):
        assert words in told.err, words
    assert "asked 50.0 % achieved 49.0 %" in told.err
    assert "n1 shed" in told.err


def test_run_hands_over_a_whole_request(drive, tmp_path):
    """Flags and settings arrive at the driver as they were given."""
    driver = drive()
    flags = [
        "--nodes",
        "3",
        "--seed",
        "7",
        "--out",
        "mine",
        "--prometheus-port",
        "9464",
        "--timeout",
        "90s",
        "--allow-head",
        "--allow-starve",
        "--yes",
    ]
    assert cli.main(["run", "burst", *flags, "--profile", "conservative"]) == 0
    request = driver.request
    assert (request.nodes, request.seed, request.out, request.prometheus_port, request.timeout_s) == (3, 7, tmp_path / "mine", 9464, 90.0)
    assert (request.allow_head, request.allow_starve, request.assume_yes, request.detach) == (True, True, True, False)
    assert request.settings.profile == "conservative"
    assert request.settings.origins["profile"] == "flag"
    assert "seed: 7" in request.scenario_text
    assert "-burst-" in request.run


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("passed", 0),
        ("failed", 1),
        ("invalid", 2),
        ("error", 3),
        ("safety", 4),
        ("inconclusive", 5),
        ("refused", 6),
        ("timeout", 7),
        ("cancelled", 130),
    ],
)
def test_run_ends_with_the_outcomes_code(drive, capsys, status, code):
    """The exit code is the outcome's, and the JSON document is the summary with where the run lies."""
    drive(outcome=FakeOutcome(status, code, "why", Path("runs/r1"), {"dose": DOSE}))
    assert cli.main(["run", "burst", "--json"]) == code
    found = document(capsys)
    assert (found["status"], found["exit_code"], found["run_dir"], found["dose"]) == (status, code, "runs/r1", DOSE)


def test_refused_run_is_an_error_document(drive, capsys):
    """What the cluster refuses carries a stable code, also when the driver only knew it late."""
    told = {
        "type": "outcome",
        "status": "refused",
        "exit_code": 6,
        "message": "too much; less",
        "code": "budget",
        "error": "too much",
        "hint": "less",
    }
    drive([told], FakeOutcome("refused", 6, "too much; less"))
    assert cli.main(["run", "burst", "--json"]) == 6
    assert document(capsys)["error"] == {"code": "budget", "message": "too much", "hint": "less"}
    drive([told], FakeOutcome("refused", 6, "too much; less"))
    assert cli.main(["run", "burst"]) == 6
    assert "refused: too much\n  less" in capsys.readouterr().out


def test_driver_that_died_without_a_word_is_an_error_document(drive, capsys):
    """A child that ended before it made a run directory is the harness's failure: 3 with a code."""
    drive([], FakeOutcome("error", 3, "the driver process was killed by signal 9"))
    assert cli.main(["run", "burst", "--json"]) == 3
    assert document(capsys)["error"]["code"] == "internal"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["run", "bursty"], "did you mean 'burst'?", id="unknown-scenario"),
        pytest.param(["run", "none.yaml"], "does not exist", id="missing-file"),
        pytest.param(["run", "burst", "--nodes", "0"], "--nodes", id="no-nodes"),
        pytest.param(["run", "burst", "--nodes", "2", "--address", "auto"], "--nodes is for the embedded Ray", id="nodes-of-a-cluster"),
        pytest.param(["run", "burst", "--detach"], "--detach needs a cluster", id="detach-from-nothing"),
        pytest.param(["run", "burst", "--timeout", "soon"], "--timeout is 'soon'", id="timeout-without-number"),
        pytest.param(["run", "burst", "--timeout", "0"], "--timeout", id="no-time"),
        pytest.param(["run", "burst", "--set", "seed"], "PATH=VALUE", id="set-without-value"),
        pytest.param(["run", "burst", "--export", "metrics.csv"], "TYPE:PATH", id="export-without-type"),
        pytest.param(["run", "burst", "--export", "cvs:m.csv"], "json, jsonl, csv, parquet, arrow", id="export-type"),
        pytest.param(["submit", "burst", "--address", "http://h:1", "--export", "csv:../m"], "without `..`", id="export-outside"),
        pytest.param(["run", "burst", "--set", "plan.together.0.CpuLoad.fraction=101%"], "100%", id="101-percent"),
        pytest.param(["run", "burst", "--profile", "brave"], "conservative, balanced, aggressive", id="unknown-profile"),
        pytest.param(["run", "replay:none"], "no run directory", id="replay-of-nothing"),
        pytest.param(["run", "replay:none", "--seed", "3"], "a replay repeats a stored plan", id="replay-with-another-seed"),
        pytest.param(["run", "burst", "--config", "none.toml"], "does not exist", id="missing-settings"),
        pytest.param(["run"], "scenario", id="no-scenario"),
        pytest.param(["run", "burst", "--bogus"], "--bogus", id="unknown-option"),
        pytest.param(["bogus"], "bogus", id="unknown-command"),
        pytest.param(["submit", "burst"], "http://HEAD:8265", id="submit-to-nowhere"),
        pytest.param(["submit", "burst", "--address", "auto"], "http://HEAD:8265", id="submit-to-no-dashboard"),
        pytest.param(["list", "everything"], "everything", id="unknown-list"),
        pytest.param(["describe", "CpuLoads"], "did you mean 'CpuLoad'?", id="unknown-name"),
        pytest.param(["report", "none"], "no run directory 'none'", id="unknown-run"),
    ],
)
def test_bad_input_is_2_with_words_and_starts_nothing(arguments, words, capsys, monkeypatch):
    """Bad input ends with 2, says what was expected, and starts nothing; with --json as one document."""

    def never(*arguments, **fields):
        raise AssertionError("started something")

    for name in ("start_run", "connect", "submit_job"):
        monkeypatch.setattr(ports, name, never)
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert cli.main([*arguments, "--json"]) == 2
    error = document(capsys)["error"]
    assert words in error["message"] + error["hint"]
    assert error["code"] in CODES


def test_bad_document_is_told_with_its_place(capsys, tmp_path):
    """A wrong key is answered with file, line, column and the nearest key."""
    (tmp_path / "bad.yaml").write_text("version: 1\nname: bad\nplann:\n  CpuLoad: {fraction: 10%}\n  for: 1s\n")
    for command in ("run", "plan", "validate"):
        assert cli.main([command, "bad.yaml"]) == 2
        told = capsys.readouterr().err
        assert "bad.yaml:3:1" in told
        assert "plan" in told


def test_run_elsewhere_than_linux_is_refused(drive, capsys, monkeypatch):
    """On another platform `run` answers 6 and says so."""
    driver = drive()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["run", "burst", "--json"]) == 6
    assert document(capsys)["error"]["code"] == "unsupported"
    assert not hasattr(driver, "request")


def test_refusal_while_starting_is_6(capsys, monkeypatch):
    """A refusal that the driver raises at once is an error like any other."""

    def refuse(**fields):
        raise RefusedError("halted", "a halt is in force", "run `stress-cluster resume`")

    monkeypatch.setattr(ports, "start_run", refuse)
    assert cli.main(["run", "burst", "--json"]) == 6
    assert document(capsys)["error"] == {"code": "halted", "message": "a halt is in force", "hint": "run `stress-cluster resume`"}


def test_unexpected_error_is_3_with_a_traceback(capsys, monkeypatch):
    """A bug is the harness's error: 3, the trace on standard error, one document on standard output."""
    monkeypatch.setattr(ports, "start_run", lambda **fields: 1 / 0)
    assert cli.main(["run", "burst", "--json"]) == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["code"] == "internal"
    assert "ZeroDivisionError" in told.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_for_a_stop_and_waits(drive, number):
    """A signal becomes one stop request, the run is followed to its outcome, and handlers are put back."""
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores it, and so would the command
    driver = drive(outcome=FakeOutcome("cancelled", 130), signals={2: number})
    assert cli.main(["run", "burst"]) == 130
    assert driver.calls == [("stop", signal.Signals(number).name)]
    assert signal.signal(number, before) == signal.SIG_DFL


def test_third_signal_kills_the_driver_and_says_what_undoes(drive, capfd):
    """The second Ctrl-C asks for patience, the third kills the driver and says when load ends and who undoes."""
    driver = drive(outcome=FakeOutcome("error", 3, "died"), signals=dict.fromkeys((1, 2, 3), signal.SIGINT))
    assert cli.main(["run", "burst"]) == 3
    assert driver.calls == [("stop", "SIGINT"), ("kill",)]
    told = capfd.readouterr().err
    assert "still undoing" in told
    assert "within its lease (5 s)" in told


def test_what_nohup_ignores_stays_ignored():
    """A run under nohup outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with follow.handling(lambda number, frame: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_away_does_not_end_the_following(drive):
    """A renderer that can no longer draw is left alone; the run is followed to its outcome."""

    class Broken(render.PlainRenderer):
        def show(self, event):
            raise OSError("gone")

    driver = drive(outcome=FakeOutcome("passed", 0))
    assert follow.follow(driver, Broken(), 5.0)[0].exit_code == 0


def test_run_id_sorts_by_time_and_names_the_scenario():
    """Run ids are `YYYYmmdd-HHMMSS-<name>-<4hex>` in UTC."""

    class Clock:
        def wall_ns(self):
            return 1_767_268_800 * 10**9

    assert run_id("burst", Clock()).startswith("20260101-120000-burst-")
    assert len(run_id("burst", Clock()).rpartition("-")[2]) == 4


def test_in_a_job_results_go_to_the_state_folder(tmp_path):
    """A job's working directory is thrown away, so its results go to STATE unless somebody said where."""
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    assert out_folder(load(), job) == tmp_path / "state" / "runs"
    assert out_folder(load(), {}) == tmp_path / "runs"
    assert out_folder(load({"out": "/mine"}), job) == Path("/mine")


@pytest.mark.parametrize("how", ["out", "config"])
def test_a_replay_is_looked_for_where_runs_are_written(drive, tmp_path, how):
    """`replay:RUN` finds the run in the folder that --out, or a settings file given with --config, names."""
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    run_dir = tmp_path / "kept" / "20260101-120000-burst-1a2b"
    run_dir.mkdir(parents=True)
    (run_dir / "manifest.json").write_text("{}")
    (run_dir / "plan.json").write_bytes(plan.to_json())
    (tmp_path / "mine.toml").write_text(f'out = "{tmp_path / "kept"}"\n')
    given = ["--out", "kept"] if how == "out" else ["--config", "mine.toml"]
    driver = drive()
    assert cli.main(["run", "replay:latest"]) == 2
    assert cli.main(["run", "replay:latest", *given]) == 0
    assert driver.request.replay_of == run_dir.name
    if how == "config":
        assert cli.main(["plan", f"replay:{run_dir.name}", "--nodes", "1", *given]) == 0


def test_a_detached_run_is_told_to_go_on(drive, capsys, tmp_path):
    """`run --detach` ends with 0 and says that the run goes on; nothing is called passed, and nothing asked or achieved."""
    outcome = FakeOutcome("running", 0, "Follow it with `stress-cluster watch r1`", tmp_path / "r1")
    drive([], outcome)
    assert cli.main(["run", "burst", "--detach", "--address", "auto"]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert told == [
        "running: The run is still going on. Follow it with `stress-cluster watch r1`",
        "Run directory: r1",
    ]
    drive([], outcome)
    assert cli.main(["run", "burst", "--detach", "--address", "auto", "--json"]) == 0
    assert (found := document(capsys))["status"] == "running"
    assert "error" not in found


# ---- plan


def test_plan_starts_nothing_and_is_the_same_twice(capsys, monkeypatch):
    """`plan` without an address resolves against raylets of this machine: same digest twice, reservations, budget, capability."""
    monkeypatch.setattr(ports, "connect", None)
    found = []
    for _ in range(2):
        assert cli.main(["plan", "burst", "--nodes", "3", "--json"]) == 0
        found.append(document(capsys))
    assert found[0] == found[1]
    assert found[0]["targets"] == ["n1", "n2", "n3"]
    assert found[0]["shared_machine"] is True
    assert len(found[0]["timeline"]) == 9
    assert [one["node"] for one in found[0]["nodes"]] == ["n1", "n2", "n3"]
    assert found[0]["budget"][0]["nodes"] == 3
    assert set(found[0]["nodes"][0]["capability"]) == {"CpuLoad", "MemoryPressure", "DiskFill"}


def test_dry_run_is_plan(capsys):
    """`run --dry-run` prints what `plan` prints."""
    assert cli.main(["plan", "burst", "--nodes", "2"]) == 0
    planned = capsys.readouterr().out
    assert cli.main(["run", "burst", "--nodes", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out == planned
    assert "0.0.CpuLoad@n2" in planned


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param(["--set", "plan.together.1.MemoryPressure.bytes=8000TiB"], "limits.memory_fraction", id="more-than-any-node-has"),
        pytest.param(["--set", "budget.disk_max=1MiB"], "budget", id="the-scenarios-own-budget"),
    ],
)
def test_plan_that_passes_a_budget_is_6(capsys, more, words):
    """What a run would be refused for, a plan says with code 6 and the reason."""
    code = cli.main(["plan", "burst", "--json", *more])
    found = document(capsys)
    assert code == 6
    assert found["error"]["code"] == "budget"
    assert words in found["error"]["message"]


def test_plan_under_a_node_budget(capsys, monkeypatch):
    """A cluster-wide budget on nodes is held against each stretch of the timeline."""
    monkeypatch.setenv("STRESS_CLUSTER_BUDGET__MAX_NODES", "2")
    assert cli.main(["plan", "burst", "--nodes", "3", "--json"]) == 6
    assert document(capsys)["budget"][0]["over"] == ["3 nodes, budget.max_nodes is 2"]
    assert cli.main(["plan", "burst", "--nodes", "2", "--json"]) == 0


def test_plan_asks_a_cluster_for_its_nodes(link, capsys):
    """With an address the nodes, capacities and capabilities are the cluster's."""
    capacity = {"cpu_cores": 4.0, "memory_bytes": 1 << 34, "disk_bytes": 1 << 40, "sharers": 1}
    facts = {
        name: {"capacity": capacity, "simulators": {"CpuLoad": {"verdict": "fallback", "reason": "nice 15"}}, "machine": name}
        for name in ("a", "b")
    }
    made = link(nodes=[NodeSpec("h", is_head=True), NodeSpec("a"), NodeSpec("b")], doctor={"nodes": facts})
    assert cli.main(["plan", "burst", "--address", "auto"]) == 0
    told = capsys.readouterr().out
    assert made.closed
    assert "CpuLoad fallback (nice 15)" in told
    assert "@h" not in told
    assert "2.00 cores" in told


# ---- control


def test_status_shows_runs_and_a_halt(link, capsys):
    """`status` says what runs where, asked against achieved, and that a halt is in force."""
    run = {"phase": "running", "elapsed_s": 3, "duration_s": 35, "operations": EVENTS[3]["operations"]}
    runs = [{"run": "r1", **run}, {"run": "r0", "status": "passed", "exit_code": 0}]
    made = link(status={"runs": runs, "halt": {"generation": 2, "on": True}})
    assert cli.main(["status"]) == 0
    told = capsys.readouterr().out
    assert "r1  running  3 of 35 s" in told
    assert "0.0.CpuLoad@n1  50.0 %  49.0 %" in told
    assert "r0  passed" in told
    assert "halt is in force" in told
    assert made.calls == [("status", None)]
    assert made.closed


@pytest.mark.parametrize(
    ("harmed", "runs", "named"),
    [
        pytest.param(["n2"], [{"run": "r", "phase": "running", "nodes": [{"node": "n2"}]}], False, id="a-run-is-live-there"),
        pytest.param(["n2"], [{"run": "r", "phase": "running", "nodes": [{"node": "n1"}]}], True, id="a-run-is-live-elsewhere"),
        pytest.param(["n2"], [{"run": "r", "status": "error", "nodes": [{"node": "n2"}]}], True, id="its-run-has-ended"),
        pytest.param([], [], False, id="nobody-is-charged"),
    ],
)
def test_status_names_nodes_that_are_still_charged(link, capsys, harmed, runs, named):
    """A node that no live run uses and that holds a place all the same is named, with the way out."""
    link(status={"runs": runs, "budget": {"nodes_harmed": harmed}})
    assert cli.main(["status"]) == 0
    assert ("stress-cluster forget n2" in capsys.readouterr().out) is named


def test_forget_says_which_runs_the_node_was_charged_to(link, capsys):
    """`forget NODE` passes the name on; a refusal keeps its code."""
    made = link(forget={"node": "n3", "runs": ["r1", "r2"], "streams": ["r3"]})
    assert cli.main(["forget", "n3"]) == 0
    told = capsys.readouterr().out
    assert ("charged to r1, r2" in told, "given up in r3" in told) == (True, True)
    assert made.calls == [("forget", "n3")]
    link(forget=RefusedError("busy", "load on n3 may live for another 2.0 s", "try again then"))
    assert cli.main(["forget", "n3"]) == 6


def test_watch_follows_until_the_run_has_ended(capsys):
    """`watch` asks each second, draws, and returns once the run is over."""

    class Clock:
        slept = 0.0

        def sleep(self, seconds):
            self.slept += seconds

    run = {"run": "r1", "phase": "running", "elapsed_s": 3, "duration_s": 35}
    ended = {"runs": [{"run": "r1", "status": "passed", "exit_code": 0}]}
    link = FakeLink(status=[{"runs": [run]}, {"runs": [{**run, "elapsed_s": 9}]}, ended])
    clock = Clock()
    assert control.follow_status(link, "latest", clock) == ended
    assert clock.slept == 2 * control.WATCH_EVERY_S
    assert "9 of 35 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "answer", "code", "words"),
    [
        pytest.param("stop", {"runs": [{"run": "r1", "status": "cancelled", "exit_code": 130}]}, 0, "stopped r1: cancelled", id="stop"),
        pytest.param("stop", {"runs": []}, 0, "no run to stop", id="stop-nothing"),
        pytest.param("halt", {"killed": [{"operation": "0.0.CpuLoad@n1"}], "halt_latency_ms": 84.0}, 0, "84 ms", id="halt"),
        pytest.param("halt", {"runs": [{"run": "r1"}], "nodes": ["n1", "n2"]}, 0, "on the disk of n1, n2", id="halt-says-who-keeps-it"),
        pytest.param("halt", {"killed": [], "unreached": ["n3: silent"]}, 3, "unreached: n3: silent", id="halt-that-missed-a-node"),
        pytest.param("resume", {"on": False}, 0, "the halt is lifted; runs may start", id="resume"),
        pytest.param("resume", {"on": False, "unreached": ["n3: silent"]}, 3, "lifted, but not everywhere", id="resume-that-missed-a-node"),
        pytest.param("recover", {"remaining": []}, 0, "nothing was left behind", id="recover-nothing"),
        pytest.param(
            "recover", {"undone": [{"node": "n1", "message": "disk_fill"}], "remaining": []}, 0, "n1: disk_fill", id="recover-something"
        ),
        pytest.param("recover", {"remaining": [{"node": "n2", "message": "stuck"}]}, 3, "remaining: n2: stuck", id="recover-not-all"),
    ],
)
def test_orders_answer_in_words_and_codes(link, capsys, command, answer, code, words):  # one row of the table
    """Orders return 0, or 3 when something was left or not reached, and print the answer as it is with --json."""
    made = link(**{command: answer})
    assert cli.main([command]) == code
    assert words in capsys.readouterr().out
    assert cli.main([command, "--json"]) == code
    assert document(capsys) == answer
    assert made.closed


def test_errors_of_a_cluster_carry_their_codes(link, capsys):
    """What the cluster raises ends with the error's own exit code."""
    link(halt=HarnessError("lost", "no answer", "try again"), stop=RefusedError("busy", "another version", "wait"))
    assert (cli.main(["halt"]), cli.main(["stop"])) == (3, 6)
    assert "no answer" in capsys.readouterr().err


def test_doctor_shows_verdicts_with_reasons(link, capsys):
    """`doctor` prints each simulator's verdict with its reason, node by node."""
    facts = {"kernel": "6.18", "may_raise_nice": False, "simulators": {"CpuLoad": {"verdict": "fallback", "reason": "nice 15"}}}
    link(doctor={"authentication": "token", "nodes": {"n1": facts}})
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "authentication token" in told
    assert "CpuLoad fallback  (nice 15)" in told
    assert "may_raise_nice no" in told


# ---- submit


class FakeJob:
    id = "job-1"

    def __init__(self, word="SUCCEEDED", code=0, signal_at=None):
        self.word, self.code, self.signal_at, self.stopped = word, code, signal_at, False

    def logs(self):
        for index, line in enumerate(("one\n", "two\n")):
            if index == self.signal_at:
                signal.raise_signal(signal.SIGINT)
            yield line

    def status(self):
        return self.word, self.code

    def stop(self):
        self.stopped = True


def test_submit_carries_scenario_code_and_settings(capsys, monkeypatch):
    """The job gets the scenario's text, our three packages by path, what was set here, and time to undo."""
    seen = {}

    def take(address, entrypoint, runtime_env, metadata):
        text = (Path(runtime_env["working_dir"]) / submit.FILE_NAME).read_text()
        seen.update(address=address, entrypoint=entrypoint, env=runtime_env, text=text)
        return FakeJob()

    monkeypatch.setattr(ports, "submit_job", take)
    monkeypatch.setenv("STRESS_CLUSTER_LEASE_S", "3")
    arguments = ["submit", "burst", "--address", "http://h:8265", "--set", "name=my-burst", "--timeout", "5m", "--allow-head"]
    assert cli.main(arguments) == 0
    assert seen["address"] == "http://h:8265"
    assert "name: my-burst" in seen["text"]
    assert seen["entrypoint"] == "python -m cluster.cli run scenario.yaml --yes --profile balanced --seed 1 --timeout 5m --allow-head"
    assert [Path(path).name for path in seen["env"]["py_modules"]] == ["actors", "scenarios", "cluster"]
    assert seen["env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "STRESS_CLUSTER_LEASE_S": "3.0"}
    assert "one\ntwo\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "code", "want"),
    [
        pytest.param("SUCCEEDED", 0, 0, id="passed"),
        pytest.param("FAILED", 5, 5, id="the-runs-own-code"),
        pytest.param("STOPPED", None, 130, id="stopped"),
        pytest.param("STOPPED", 3, 3, id="stopped-but-not-undone"),
        pytest.param("FAILED", -9, 3, id="driver-was-killed"),
        pytest.param("FAILED", None, 3, id="never-got-to-the-driver"),
    ],
)
def test_submit_returns_the_runs_code(monkeypatch, word, code, want):
    """Exit codes carry over from the job's driver."""
    monkeypatch.setattr(ports, "submit_job", lambda *arguments: FakeJob(word, code))
    assert cli.main(["submit", "burst", "--address", "http://h:8265"]) == want


def test_submit_passes_ctrl_c_on(monkeypatch):
    """Ctrl-C stops the job and waits for its end."""
    job = FakeJob("STOPPED", 130, signal_at=1)
    monkeypatch.setattr(ports, "submit_job", lambda *arguments: job)
    assert cli.main(["submit", "burst", "--address", "http://h:8265"]) == 130
    assert job.stopped


# ---- lists, schema, settings


@pytest.mark.parametrize("subject", ["simulators", "faults", "scenarios", "metrics", "probes", "exporters", "limits", "errors"])
def test_all_that_is_listed_can_be_described(subject, capsys):
    """`list` is made from the records, and `describe` knows every name of it."""
    assert cli.main(["list", subject, "--json"]) == 0
    records = document(capsys)[subject]
    assert records
    for record in records:
        assert record["summary"], record["name"]
        assert cli.main(["describe", record["name"], "--json"]) == 0
        assert document(capsys)["name"] == record["name"]
    assert cli.main(["list", subject]) == 0
    assert records[0]["name"] in capsys.readouterr().out


def test_schema_accepts_what_validate_prints(capsys):
    """The schema that `schema` prints accepts the catalogue's documents."""
    import jsonschema

    assert cli.main(["schema"]) == 0
    schema = document(capsys)
    assert cli.main(["describe", "burst", "--json"]) == 0
    jsonschema.validate(document(capsys)["document"], schema)


def test_validate_prints_the_canonical_form(capsys, tmp_path):
    """A valid document comes back in its canonical form, and that form is valid and the same again."""
    assert cli.main(["validate", "burst", "--json"]) == 0
    (tmp_path / "again.yaml").write_text(document(capsys)["canonical"])
    assert cli.main(["validate", "again.yaml", "--json"]) == 0
    assert document(capsys)["canonical"] == (tmp_path / "again.yaml").read_text()


def test_config_show_says_where_from(capsys, monkeypatch):
    """`config show` prints value and origin of every setting."""
    monkeypatch.setenv("STRESS_CLUSTER_LEASE_S", "3")
    assert cli.main(["config", "show", "--json"]) == 0
    assert document(capsys)["lease_s"] == {"value": 3.0, "origin": "environment STRESS_CLUSTER_LEASE_S"}
    monkeypatch.setenv("STRESS_CLUSTER_LEASE_S", "long")
    assert cli.main(["config", "show"]) == 2
    assert "STRESS_CLUSTER_LEASE_S" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_nothing_asked_is_answered_with_help(arguments, capsys):
    """Without a command the help is shown."""
    cli.main(arguments)
    told = capsys.readouterr()
    assert "Commands:" in told.out + told.err


def test_every_command_takes_json_and_address():
    """The contract's two common options are on every command."""
    import inspect

    for name, command, _ in cli.COMMANDS:
        assert {"as_json", "address"} <= set(inspect.signature(command).parameters), name


def test_help_is_quick_and_imports_nothing_heavy():
    """`--help` loads neither Ray nor Arrow, and takes under half a second of processor time."""
    code = "import resource, sys\nfrom cluster.cli import main\nmain(['--help'])\n"
    code += "print(sorted({'ray', 'pyarrow', 'pandas', 'numba', 'pydantic'} & set(sys.modules)), file=sys.stderr)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    root = Path(cli.__file__).parents[2]
    best = 9.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60)
        modules, seconds = done.stderr.split("\n")[:2]
        assert modules == "[]"
        best = min(best, float(seconds))
    assert best < 0.5


# ---- small parts


def test_json_has_no_nan():
    """What JSON has no word for becomes null, and records become mappings."""
    assert plain({"a": float("nan"), "b": NodeSpec("n1"), "c": {3, 1}, "d": Path("/x")}) == {
        "a": None,
        "b": {"name": "n1", "labels": {}, "address": "", "is_head": False},
        "c": [1, 3],
        "d": "/x",
    }


def test_plain_progress_is_a_line_each_five_seconds():
    """Off a terminal progress is a line each five seconds of the run, not of the wall."""
    renderer = render.PlainRenderer()
    lines = [renderer.lines({"type": "progress", "elapsed_s": second, "duration_s": 20}) for second in range(20)]
    assert [second for second, told in enumerate(lines) if told] == [0, 5, 10, 15]


def test_live_table_draws_what_it_is_told():
    """The live view shows asked, achieved and verdict, and takes brackets in names as they are."""
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render.progress_table(EVENTS[3], "running [x]"))
    told = console.export_text()
    for words in ("running [x]", "6 of 40 s", "0.0.CpuLoad", "50.0 %", "49.0 %", "1.0 GiB", "shed", "80.0 %"):
        assert words in told, words


@pytest.mark.parametrize(("arguments", "code"), [("list metrics --json", 0), ("plan burst --set budget.nodes_max=1 --nodes 2 --json", 6)])
def test_a_closed_pipe_changes_no_exit_code(arguments, code):
    """`list | head` ends quietly, and a reader that went away hides no refusal."""
    root = Path(cli.__file__).parents[2]
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cluster.cli", *arguments.split()]
    done = subprocess.run(command, cwd=root, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


def test_what_ray_prints_meanwhile_is_no_part_of_a_commands_document(link, capsys):
    """Ray tells of dead nodes on standard output: the one JSON document stays one."""
    made = link()
    made.recover = lambda: print("(raylet) The node with node id 1 has been marked dead") or {"remaining": []}
    assert cli.main(["recover", "--address", "head:6379", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"remaining": []}
    assert "has been marked dead" in told.err
