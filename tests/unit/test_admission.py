"""Admission: the profile that a run's settings have resolved to is what governs it, from the command line to the nodes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from actors import memory_group
from actors.errors import RefusedError
from actors.messages import Capacity, NodeSpec
from actors.reference import ABLE
from actors.shape import KINDS
from actors.simulator import REGISTRY
from cluster import cli, start
from cluster.admission import admission_of
from cluster.cli import ports
from cluster.driver import Outcome, RunRequest
from cluster.driver_main import submission_of
from cluster.orchestrator_api import Submission
from cluster.records import Admission
from scenarios import plan as plans
from scenarios import text

NAMED = "profile: aggressive\n"
SCENARIO = "version: 1\nname: heavy\nplan:\n  CpuLoad: {fraction: 80%}\n  for: 5s\n"
CAPACITY = Capacity(4.0, 8 << 30, 100 << 30, tasks=10_000, descriptors=1 << 20)
CAN = {name: {"verdict": "available", "reason": ""} for name in REGISTRY}
HELLO = {"machine": "m1", "capacity": CAPACITY, "report": {"simulators": CAN, "shapes": {"theirs": "digest"}}}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder, a state folder and no settings of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRESS_CLUSTER_PROFILE", raising=False)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))


def admitted(submission: Submission) -> Admission:
    """Return what this run asks for, on a cluster of a head and one node with four cores."""
    plan = plans.resolve(text.load(submission.scenario), (NodeSpec("head", is_head=True), NodeSpec("n1")), submission.seed)
    return admission_of(submission, plan, {"n1": HELLO}, 1.0)[0]


def test_a_load_with_a_peer_is_admitted_with_its_link_or_not_at_all() -> None:
    """What each node is handed says whom it dials; where there is no second node, nothing is reserved anywhere."""
    scenario = text.load("version: 1\nname: ring\nplan:\n  Connections: {count: 7, peer: next}\n  for: 5s\n")
    nodes = (NodeSpec("n1", address="10.0.0.1"), NodeSpec("n2", address="10.0.0.2"))
    submission = Submission("r", "", 1)
    hellos = {name: {**HELLO, "machine": name, "capacity": replace(CAPACITY, descriptors=1000)} for name in ("n1", "n2")}
    made, _ = admission_of(submission, plans.resolve(scenario, nodes, 1, allow_head=True), hellos, 1.0, nodes)
    assert made.operations["n1"][0].link["dial"] == made.operations["n2"][0].link["listen"] == ["10.0.0.2", 17_700]
    with pytest.raises(RefusedError, match="no other node holds it"):
        admission_of(submission, plans.resolve(scenario, nodes[:1], 1, allow_head=True), hellos, 1.0, nodes[:1])


class FakeDriver:
    """A driver whose orchestrator only admits: ends as passed, or as the refusal that was raised."""

    def __init__(self, request: RunRequest) -> None:
        self.submission = submission_of(request)
        self.told: dict[str, Any] = {}

    def events(self) -> list[dict[str, Any]]:
        """Admit, and tell what a driver would tell."""
        try:
            admitted(self.submission)
        except RefusedError as error:
            self.told = {"type": "outcome", "code": error.code, "error": error.message, "hint": error.hint}
            return [self.told]
        return []

    def wait(self) -> Outcome:
        """Return the outcome."""
        return Outcome("refused", 6, self.told["error"]) if self.told else Outcome("passed", 0, "")


@pytest.mark.parametrize(
    ("profile", "limit"), [("conservative", "its limit is 2.80 (limits.cpu_fraction)"), ("balanced", ""), ("aggressive", "")]
)
def test_the_submissions_profile_bounds_what_is_planned_and_travels_to_the_nodes(profile: str, limit: str) -> None:
    """80 % of a node passes the conservative limit and no other; the nodes are told the profile that admitted it."""
    submission = Submission("r1", SCENARIO, 0, profile=profile)
    if limit:
        with pytest.raises(RefusedError) as caught:
            admitted(submission)
        assert (caught.value.code, caught.value.exit_code) == ("budget", 6)
        assert limit in caught.value.message
    else:
        assert admitted(submission).terms["profile"] == profile


def test_the_scenarios_own_name_of_a_profile_is_no_second_source() -> None:
    """Admission goes by the submission alone: a document that names a profile was read when the settings were resolved."""
    with pytest.raises(RefusedError):
        admitted(Submission("r1", SCENARIO + NAMED, 0, profile="conservative"))
    assert admitted(Submission("r1", SCENARIO + "profile: conservative\n", 0, profile="balanced")).terms["profile"] == "balanced"


CURVES = {
    "constant": "80%",
    "ramp": "{ramp: {start: 0%, end: 80%, over: 5s}}",
    "burst": "{burst: {base: 10%, peak: 80%, period: 5s, length: 1s}}",
    "sine": "{sine: {low: 10%, high: 80%, period: 5s}}",
    "steps": "{steps: {levels: [10%, 80%], each: 2s}}",
    "square": "{square: {low: 10%, high: 80%, period: 5s}}",
    "sawtooth": "{sawtooth: {low: 10%, high: 80%, period: 4s}}",
    "leak": "{leak: {start: 0%, rate: 16%}}",
    "custom": "{custom: {function: theirs, limit: 80%}}",
}


def test_every_curve_is_above() -> None:
    """The table has each shape that a scenario can name."""
    assert CURVES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", ["MemoryPressure", "MemoryFragment"])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_memory_over_the_limit_is_refused_in_every_pattern(kind: str, curve: str) -> None:
    """80 % at the peak where 50 % is the limit: the error has what was asked, what may be had, and which limit; half of it is admitted."""
    scenario = f"version: 1\nname: greedy\nlimits: {{memory_fraction: 50%}}\nplan:\n  {kind}: {{fraction: {curve}}}\n  for: 5s\n"
    with pytest.raises(RefusedError) as caught:
        admitted(Submission("r1", scenario, 0))
    assert caught.value.code == "budget"
    assert "asks 6.4 GiB of memory on n1, its limit is 4GiB (limits.memory_fraction)" in caught.value.message
    half = scenario.replace("80%", "40%").replace("16%", "8%")
    assert admitted(Submission("r1", half, 0)).amounts["n1"].memory_bytes == round(0.4 * CAPACITY.memory_bytes)


FLOODS = ("{MailboxFlood: {per_second: 200, actors: 4}, for: 5s}", "{TaskExplosion: {per_second: 200, workers: 4}, for: 5s}")


def test_of_patterns_at_once_the_sum_is_judged() -> None:
    """Under a limit that has room for each by itself, and for one after the other, a flood and an explosion at once are refused."""

    def flooded(word: str, *parts: str, limit: float = 0.9) -> Admission:
        plan = f"limits: {{memory_fraction: {limit:.6f}}}\nplan: {{{word}: [{', '.join(parts)}]}}\n"
        return admitted(Submission("r1", f"version: 1\nname: floods\n{plan}", 0))

    alone = [flooded("sequence", one).amounts["n1"].memory_bytes for one in FLOODS]
    assert flooded("together", *FLOODS).amounts["n1"].memory_bytes == sum(alone)
    tight = (max(alone) + sum(alone)) / 2 / CAPACITY.memory_bytes
    assert flooded("sequence", *FLOODS, limit=tight).amounts["n1"].memory_bytes == max(alone)
    with pytest.raises(RefusedError, match="memory_fraction") as caught:
        flooded("together", *FLOODS, limit=tight)
    assert caught.value.code == "budget"


def test_series_caps_go_to_the_nodes_of_their_run() -> None:
    """As the submission has them: they bind this run only."""
    assert admitted(Submission("r1", SCENARIO, 0, caps={"series": 7})).terms["caps"] == {"series": 7}


@pytest.mark.parametrize(("when", "observe_s"), [("during", 0.0), ("after", 5.0)])
def test_a_hypothesis_about_the_time_after_the_load_has_nodes_record_on(when: str, observe_s: float) -> None:
    """What nobody asks for is not waited for."""
    asks = f"hypotheses:\n- threshold: {{metric: host.cpu.busy, stat: mean, op: <=, value: 90%, when: {when}}}\n"
    assert admitted(Submission("r1", SCENARIO + asks, 0)).observe_s == observe_s


ROWS = [
    pytest.param("", "", "", [], "balanced", id="default"),
    pytest.param("", "conservative", "", [], "conservative", id="file"),
    pytest.param("", "aggressive", "conservative", [], "conservative", id="environment-beats-file"),
    pytest.param("", "", "aggressive", ["--profile", "conservative"], "conservative", id="flag-beats-environment"),
    pytest.param("conservative", "", "aggressive", [], "conservative", id="scenario-beats-environment"),
    pytest.param("balanced", "conservative", "conservative", [], "balanced", id="scenario-that-names-the-default-beats-both"),
    pytest.param("aggressive", "", "", ["--profile", "conservative"], "conservative", id="flag-beats-scenario"),
    pytest.param("conservative", "", "", ["--profile", "balanced"], "balanced", id="flag-beats-stricter-scenario"),
]


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, file: str, environment: str) -> None:
    (folder / "heavy.yaml").write_text(SCENARIO + (f"profile: {scenario}\n" if scenario else ""))
    if file:
        (folder / "stress-cluster.toml").write_text(f'profile = "{file}"\n')
    if environment:
        monkeypatch.setenv("STRESS_CLUSTER_PROFILE", environment)


@pytest.mark.parametrize(("scenario", "file", "environment", "flags", "want"), ROWS)
def test_one_profile_governs_run_and_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, file: str, environment: str, flags: list[str], want: str
) -> None:
    """Flag beats scenario beats environment beats file; `run` and `plan` answer 6 exactly where that profile forbids it."""
    lay_out(tmp_path, monkeypatch, scenario, file, environment)
    made: list[FakeDriver] = []

    def begin(**fields: Any) -> FakeDriver:
        made.append(FakeDriver(RunRequest(**fields)))
        return made[0]

    monkeypatch.setattr(ports, "start_run", begin)
    assert cli.main(["run", "heavy.yaml", *flags]) == (6 if want == "conservative" else 0)
    assert cli.main(["plan", "heavy.yaml", *flags]) == (6 if want == "conservative" else 0)
    assert made[0].submission.profile == want
    assert made[0].submission.manifest["settings"]["profile"]["value"] == want


@pytest.mark.parametrize(("scenario", "file", "environment", "flags", "want"), ROWS)
def test_a_run_from_python_takes_the_same_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, file: str, environment: str, flags: list[str], want: str
) -> None:
    """`cluster.run` resolves as the command does; its `settings` are its flags."""
    lay_out(tmp_path, monkeypatch, scenario, file, environment)
    seen: list[RunRequest] = []
    monkeypatch.setattr(start, "start", lambda request: seen.append(request) or FakeDriver(request))
    given = {"profile": flags[1]} if flags else None
    start.run_scenario(text.load_file("heavy.yaml"), settings=given, quiet=True)
    assert seen[0].settings.profile == want


def test_the_plan_does_not_depend_on_the_profile_in_force() -> None:
    """plan.json is a function of scenario, seed and node names: the resolved profile is not in it."""
    scenario = text.load(SCENARIO)
    nodes = (NodeSpec("head", is_head=True), NodeSpec("n1"))
    assert b"profile" not in plans.resolve(scenario, nodes, 0).to_json()
    assert b"conservative" in plans.resolve(replace(scenario, profile="conservative"), nodes, 0).to_json()


def test_a_kernel_that_a_node_lacks_is_refused_before_the_run() -> None:
    """What the node's processor cannot do is said in its words, and only to those who ask for it."""
    hello = {**HELLO, "report": {"simulators": CAN, "kernels_missing": {"simd": "kernel simd needs avx2 and fma"}}}

    def admit(kernel: str) -> Admission:
        scenario = f"version: 1\nname: wide\nplan:\n  CpuLoad: {{fraction: 10%, kernel: {kernel}}}\n  for: 5s\n"
        plan = plans.resolve(text.load(scenario), (NodeSpec("head", is_head=True), NodeSpec("n1")), 0)
        return admission_of(Submission("r1", scenario, 0), plan, {"n1": hello}, 1.0)[0]

    assert admit("integer").operations["n1"]
    with pytest.raises(RefusedError, match=r"n1 cannot run 0\.CpuLoad@n1: kernel simd needs avx2 and fma") as caught:
        admit("simd")
    assert caught.value.code == "capability"


def test_a_node_without_limited_groups_is_refused_what_needs_them() -> None:
    """Before any load, with the reason and what would allow it, as the record judges the node; others may run there."""
    facts = replace(ABLE, memory_group=0)
    can = {name: asdict(record.supported(facts)) for name, record in REGISTRY.items()}
    hello = {"n1": {**HELLO, "report": {**HELLO["report"], "simulators": can}}}
    stall = SCENARIO.replace("CpuLoad: {fraction: 80%}", "MemoryStall: {fraction: 10%}")
    for document, refused in ((stall, True), (SCENARIO, False)):
        submission = Submission("r1", document, 0, profile="aggressive")
        plan = plans.resolve(text.load(document), (NodeSpec("head", is_head=True), NodeSpec("n1")), 0)
        with pytest.raises(RefusedError) if refused else nullcontext() as caught:
            admission_of(submission, plan, hello, 1.0)
        if caught is not None:
            assert (caught.value.code, caught.value.exit_code, caught.value.hint) == ("capability", 6, memory_group.ALLOW)
            assert caught.value.message == f"n1 cannot run MemoryStall: {memory_group.NO_GROUP}"
