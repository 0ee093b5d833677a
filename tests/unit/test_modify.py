"""A run's recording is changed while it goes on: what may be changed, and how it reaches every node and its loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actors.clock import SECOND_NS
from actors.errors import InputError
from actors.messages import Capacity
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Mode, RecordingPolicy
from actors.metrics.registry import Verbosity
from cluster import cli
from cluster.agent import Agent
from cluster.cli import ports
from cluster.modifying import modified, told
from cluster.node_metrics import NodeMetrics
from cluster.outbox import Kind, parse
from cluster.run_state import Phase
from cluster.verdict import Cause
from scenarios import Scenario, text
from tests.unit.test_node_metrics import OPERATION, made, recorder_of, rows_of
from tests.unit.test_orchestrator import admission, brought_to

S = SECOND_NS
DOCUMENT = """version: 1
name: x
hypotheses: [{threshold: {metric: host.cpu.busy, stat: max, op: <, value: 1}}]
plan: {CpuLoad: {fraction: 10%}, for: 5s}
"""
BEFORE = RecordingPolicy().to_json()
AFTER = RecordingPolicy(level=Verbosity.MINIMAL).to_json()


@pytest.fixture
def scenario() -> Scenario:
    return text.load(DOCUMENT, "f.yaml")


def test_what_a_run_records_can_be_changed(scenario: Scenario) -> None:
    """Level, mode, filters and sampling, one after the other; everything else of the scenario stays."""
    changes = ["metrics.level=verbose", "metrics.mode=detailed", "metrics.filters=[{leave_out: {metric: 'host.disk.*'}}]"]
    found = modified("r", scenario, changes)
    policy = found.metrics.policy()
    assert (policy.level, policy.mode, policy.filters[0].name) == (Verbosity.VERBOSE, Mode.DETAILED, "host.disk.*")
    assert replace(found, metrics=scenario.metrics) == scenario
    assert modified("r", found, ["metrics.mode=summary"]).metrics.policy().level is Verbosity.VERBOSE


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        pytest.param(["metrics.level=loud"], "expected one of minimal, normal, verbose", id="no-such-level"),
        pytest.param(["metrics.levle=minimal"], "did you mean 'level'", id="no-such-key"),
        pytest.param(["metrics.level"], "expected PATH=VALUE", id="no-value"),
        pytest.param(["seed=7"], "only what it records", id="the-seed"),
        pytest.param(["metrics.level=verbose", "plan.CpuLoad.fraction=90%"], "only what it records", id="the-load-beside-it"),
        pytest.param(["metrics.level=minimal"], "needs host.cpu.busy, which metrics.level minimal leaves out", id="a-hypothesis"),
    ],
)
def test_what_cannot_be_changed_is_refused(scenario: Scenario, changes: list[str], what: str) -> None:
    """Code 2, and nothing is changed."""
    with pytest.raises(InputError, match=what) as found:
        modified("r", scenario, changes)
    assert found.value.exit_code == 2
    with pytest.raises(InputError, match="no run r goes on"):
        modified("r", None, changes)


def test_a_change_is_in_force_on_every_node_after_one_exchange() -> None:
    """Each node's next answer carries it and its next question confirms it; a repeated answer changes nothing."""
    core = brought_to(Phase.PREPARING, "n1", "n2", terms={"recording": BEFORE})
    agents = {name: Agent(name, "c", f"m-{name}", 7, 3, Capacity(2.0, 1 << 30, 1 << 30)) for name in ("n1", "n2")}

    def exchanged(name: str, at_s: float) -> list[str]:
        at_ns = round(at_s * S)
        report = agents[name].report(at_ns)
        agents[name].on_reply(core.exchange(report, at_ns), at_ns, at_ns)
        return [str(one.data["recording"]) for one in agents[name].drain()[0] if one.what == "record_by"]

    assert [exchanged(name, 1.0) for name in agents] == [[], []]
    assert [exchanged(name, 1.1) for name in agents] == [[], []]
    assert core.recording_nodes("r", BEFORE) == ({"n1", "n2"}, set())
    core.drain()
    core.record_by("r", AFTER, "recording changed: metrics.level=minimal", 2 * S)
    assert [(one.what, one.nodes) for one in core.drain()] == [("poke", ("n1", "n2"))]
    assert core.runs["r"].events[-1].message == "recording changed: metrics.level=minimal"
    assert exchanged("n1", 2.1) == [AFTER]
    assert core.recording_nodes("r", AFTER) == (set(), {"n1", "n2"})
    assert exchanged("n1", 2.2) == []
    assert core.recording_nodes("r", AFTER) == ({"n1"}, {"n2"})
    assert (exchanged("n2", 2.3), exchanged("n2", 2.4)) == ([AFTER], [])
    assert core.recording_nodes("r", AFTER) == ({"n1", "n2"}, set())


def test_only_a_run_that_loads_is_changed() -> None:
    """One that is being stopped, and one that nobody knows, are refused; a lost node is not waited for."""
    core = brought_to(Phase.RUNNING, "n1", "n2", terms={"recording": BEFORE}, on_node_lost="continue")
    core.node_gone("n2", "its agent died", 3 * S)
    core.record_by("r", AFTER, "x", 3 * S)
    assert core.recording_nodes("r", AFTER) == (set(), {"n1"})
    core.stop("r", Cause.CANCELLED, "asked", 4 * S)
    for run in ("r", "unknown"):
        with pytest.raises(InputError, match="does not load any more"):
            core.record_by(run, BEFORE, "x", 4 * S)
    assert core.recording_nodes("unknown", AFTER) == (set(), set())
    assert admission("n1").terms == {}


def test_the_answer_names_who_did_not_confirm() -> None:
    """As `halt` does."""
    assert told("r", ["metrics.level=minimal"], {"n2", "n1"}, {"n3"}, 5.0) == {
        "run": "r",
        "changed": ["metrics.level=minimal"],
        "nodes": ["n1", "n2"],
        "unreached": ["n3: it has not confirmed within 5 s"],
    }


def samples_of(metrics: NodeMetrics) -> list[int]:
    """Return how many samples each record of them holds."""
    from cluster.metrics.windows import unseal_samples

    records = [parse(data) for _, data in metrics._streams["r"].unacked(1 << 30)]
    return [unseal_samples(record.payload).num_rows for record in records if record.kind is Kind.SAMPLES]


def test_the_mode_changes_for_loads_that_began_without_a_ring(tmp_path) -> None:
    """Summary, detailed, summary, detailed: the samples of detailed times leave, all of them; count and sum are those of the windows."""
    metrics = made(tmp_path)
    recorder = recorder_of(metrics)
    values = np.random.default_rng(1).lognormal(size=400)
    for turn, mode in enumerate([Mode.SUMMARY, Mode.DETAILED, Mode.SUMMARY, Mode.DETAILED]):
        metrics.set_policy("r", RecordingPolicy(mode=mode))
        recorder.tick()
        recorder.histogram("load.slice").record_many(values[100 * turn : 100 * turn + 100])
        recorder.tick()
        metrics.close_windows()
    assert samples_of(metrics) == [100, 100]
    recorder.close()
    metrics.unwatch("r", OPERATION.id)
    metrics.close_windows()
    rows = rows_of(metrics)
    slices = [row for row in rows if row["metric"] == "load.slice"]
    assert (sum(row["count"] for row in slices), sum(row["sum"] for row in slices)) == (400, pytest.approx(values.sum()))
    assert sum(row["sum"] for row in rows if row["metric"] == "samples.produced") == 200.0


def test_a_load_that_is_gone_gets_no_ring(tmp_path) -> None:
    """Between its end and a change of mode there is nothing to read."""
    metrics = made(tmp_path)
    recorder_of(metrics).close()
    metrics.unwatch("r", OPERATION.id)
    metrics.set_policy("r", RecordingPolicy(mode=Mode.DETAILED))
    segment = Segment.create()
    assert not metrics._streams["r"].has_samples(segment)
    assert Recorder(Segment.open(metrics.open_segment("r", OPERATION))).policy.mode is Mode.DETAILED


@pytest.mark.parametrize(("missing", "code"), [([], 0), (["n2: it has not confirmed within 5 s"], 3)])
def test_the_command_says_where_a_change_is_in_force(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: list[str], code: int
) -> None:
    """`modify RUN PATH=VALUE...` passes run and changes on; 3 where a node did not confirm."""
    calls: list[tuple[str, list[str]]] = []

    class Link:
        def modify(self, run: str, changes: list[str]) -> dict[str, object]:
            calls.append((run, changes))
            return {"run": "r1", "changed": changes, "nodes": ["n1"], "unreached": missing}

        def close(self) -> None:
            pass

    monkeypatch.setattr(ports, "connect", lambda *_: Link())
    assert cli.main(["modify", "latest", "metrics.level=minimal", "metrics.mode=detailed"]) == code
    assert calls == [("latest", ["metrics.level=minimal", "metrics.mode=detailed"])]
    assert capsys.readouterr().out.splitlines() == [
        "r1: metrics.level=minimal, metrics.mode=detailed",
        "in force on n1",
        *(f"unreached: {one}" for one in missing),
    ]
    assert cli.main(["modify", "latest"]) == 2
