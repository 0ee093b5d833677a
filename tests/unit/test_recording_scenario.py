"""The `metrics` section of a scenario: what it means for processes, and what is refused before anything starts."""

from __future__ import annotations

import pytest

from actors.errors import InputError
from actors.metrics import CATALOGUE, Kind
from actors.metrics.policy import Filter, Mode, RecordingPolicy, Sampling
from actors.metrics.registry import Verbosity
from actors.metrics.sampling import Adaptive, Always, FirstN, Probability, RateLimit
from scenarios import recording, text
from scenarios.catalogue import NAMES, get
from scenarios.recording import Metrics

DOCUMENT = """version: 1
name: x
metrics:
{metrics}
{more}
plan:
  CpuLoad: {{fraction: 10%}}
  for: 5s
"""


def scenario_with(metrics: str, more: str = "seed: 1"):
    return text.load(DOCUMENT.format(metrics="\n".join(f"  {line}" for line in metrics.splitlines()), more=more), "f.yaml")


def test_the_section_becomes_the_policy_of_processes() -> None:
    """Each word of the document is in the policy, in order."""
    found = scenario_with(
        """level: verbose
mode: detailed
filters:
- keep: {metric: host.cpu.busy}
- leave_out: {metric: "host.*", kind: gauge}
sampling:
- always: {metric: load.operations}
- probability: {metric: load.slice, share: 25%}
- rate: {metric: load.slice, rate_hz: 50}
- first: {metric: load.slice, count: 3}
- adaptive: {metric: "load.*", rate_hz: 100}"""
    ).metrics.policy()
    assert found == RecordingPolicy(
        Verbosity.VERBOSE,
        Mode.DETAILED,
        (Filter(include=True, name="host.cpu.busy"), Filter(include=False, name="host.*", kind=Kind.GAUGE)),
        (
            Sampling("load.operations", Always()),
            Sampling("load.slice", Probability(0.25)),
            Sampling("load.slice", RateLimit(50.0)),
            Sampling("load.slice", FirstN(3)),
            Sampling("load.*", Adaptive(100.0)),
        ),
    )


def test_without_the_section_the_plan_and_the_policy_are_as_before() -> None:
    """The default is normal and summary, is not written, and every catalogue scenario records by it."""
    assert Metrics().policy() == RecordingPolicy(Verbosity.NORMAL, Mode.SUMMARY)
    assert scenario_with("level: normal\nmode: summary") == scenario_with("filters: []")
    assert "metrics" not in text.dump(scenario_with("mode: summary"))
    assert {get(name).metrics for name in NAMES} == {Metrics()}


@pytest.mark.parametrize(
    ("metrics", "place", "what"),
    [
        pytest.param("level: loud", "4:10", "expected one of minimal, normal, verbose", id="level"),
        pytest.param("level: detail", "4:10", "expected one of minimal, normal, verbose", id="word-of-earlier-documents"),
        pytest.param("mode: detail", "4:9", "did you mean 'detailed'", id="mode"),
        pytest.param("modes: detailed", "4:3", "did you mean 'mode'", id="key"),
        pytest.param("filters: [{drop: {}}]", "4:14", "unknown key 'drop'", id="rule"),
        pytest.param("filters:\n- leave_out: {metric: host.cpu.bussy}", "5:25", "did you mean 'host.cpu.busy'", id="no-such-metric"),
        pytest.param("filters:\n- leave_out: {metric: 'safety.*'}", "5:25", "always recorded", id="vital"),
        pytest.param("filters:\n- leave_out: {metric: dose.achieved}", "5:25", "always recorded", id="dose"),
        pytest.param("filters:\n- leave_out: {metric: 'probe.*'}", "5:25", "always recorded", id="probe"),
        pytest.param("filters:\n- keep: {metric: 'host.*', kind: counter}", "5:36", "no metric called 'host.*' is a counter", id="kind"),
        pytest.param("sampling:\n- rate: {metric: load.slice, rate_hz: 5}", "5:3", "mode detailed only", id="sampling-of-nothing"),
        pytest.param(
            "mode: detailed\nsampling:\n- rate: {metric: host.cpu.busy, rate_hz: 5}",
            "6:20",
            "load.operations, load.core.busy",
            id="no-load",
        ),
        pytest.param("mode: detailed\nsampling:\n- rate: {metric: load.slice}", "6:11", "expected the key 'rate_hz'", id="no-rate"),
        pytest.param("mode: detailed\nsampling:\n- adaptive: {metric: load.slice, rate_hz: 9}", "6:45", "at least 10", id="adaptive"),
        pytest.param("mode: detailed\nsampling:\n- probability: {metric: load.slice, share: 0%}", "6:46", "at least 1e-09", id="share"),
        pytest.param("filters:\n" + "- keep: {metric: host.cpu.busy}\n" * 33, "5:3", "at most 32 rules", id="too-many"),
    ],
)
def test_a_wrong_section_is_refused_at_its_place(metrics: str, place: str, what: str) -> None:
    """Code 2, with line and column, what was expected, and the nearest word."""
    with pytest.raises(InputError) as found:
        scenario_with(metrics)
    assert found.value.exit_code == 2
    assert str(found.value).startswith(f"f.yaml:{place}: "), str(found.value)
    assert what in str(found.value)


@pytest.mark.parametrize(
    ("metrics", "metric", "why"),
    [
        pytest.param("level: minimal", "host.memory.available", "metrics.level minimal", id="level"),
        pytest.param("level: normal", "host.load.average", "metrics.level normal", id="detail"),
        pytest.param("filters: [{leave_out: {metric: 'host.*'}}]", "host.cpu.busy", "metrics.filters", id="filter"),
        pytest.param("level: minimal", "dose.own", "", id="dose"),
        pytest.param("level: minimal\nfilters: [{leave_out: {}}]", "probe.response", "", id="probe"),
        pytest.param("filters: [{keep: {metric: host.cpu.busy}}, {leave_out: {metric: 'host.*'}}]", "host.cpu.busy", "", id="kept"),
    ],
)
def test_a_hypothesis_about_what_is_not_recorded_is_refused(metrics: str, metric: str, why: str) -> None:
    """It would be unknown at the end, after all the load."""
    more = f"hypotheses: [{{threshold: {{metric: {metric}, stat: max, op: <, value: 1}}}}]"
    if not why:
        scenario_with(metrics, more)
        return
    with pytest.raises(InputError, match=f"needs {metric}, which {why} leaves out"):
        scenario_with(metrics, more)


def test_rules_reach_what_nodes_record_and_nothing_that_a_verdict_rests_on() -> None:
    """`leave_out: {}` under level minimal leaves exactly what is vital."""
    policy = Metrics("minimal", filters=(recording.LeaveOut(),)).policy()
    of_nodes = [metric for name, metric in CATALOGUE.items() if name.split(".")[0] in {"host", "load", "agent", "dose", "safety", "errors"}]
    kept = {metric.name for metric in of_nodes if not policy.leaves_out(metric, ())}
    assert kept == {metric.name for metric in of_nodes if metric.vital}
