"""From everything that was found to one status and one exit code."""

from __future__ import annotations

import itertools

import pytest

from cluster.dose import DoseResult
from cluster.verdict import EXIT_CODES, Cause, Evidence, conclude, judge
from scenarios.hypotheses import ActorProbe, HypothesisResult, Observed, Threshold
from scenarios.hypotheses import judge as judge_hypothesis

PRECEDENCE = [2, 6, 3, 4, 130, 7, 1, 5, 0]
HELD = HypothesisResult("h", True, 1.0, "<= 2", "observed 1")
BROKE = HypothesisResult("h", False, 3.0, "<= 2", "observed 3")
UNSEEN = HypothesisResult("h", None, None, "<= 2", "nothing was observed")
REACHED = DoseResult("0.CpuLoad@n1", "n1", 0.5, 0.5, "fraction", True, 30, "30 of 30")
MISSED = DoseResult("0.CpuLoad@n1", "n1", 0.5, 0.2, "fraction", False, 30, "3 of 30")
UNJUDGED = DoseResult("0.CpuLoad@n1", "n1", 0.5, 0.2, "fraction", None, 0, "no window")


def test_exit_codes_are_those_of_the_contract():
    """Each status has its code, and the table is in order of precedence."""
    assert list(EXIT_CODES.values()) == PRECEDENCE
    assert {cause.value: code for cause, code in EXIT_CODES.items()} == {
        "passed": 0, "failed": 1, "invalid": 2, "error": 3, "safety": 4, "inconclusive": 5, "refused": 6, "timeout": 7, "cancelled": 130,
    }  # fmt: skip


@pytest.mark.parametrize("causes", [pair for size in (1, 2, 3) for pair in itertools.permutations(Cause, size)])
def test_the_first_in_precedence_wins(causes):
    """Of any causes in any order the weightiest decides."""
    assert conclude(causes).exit_code == min((EXIT_CODES[cause] for cause in causes), key=PRECEDENCE.index)


def test_nothing_found_is_no_pass():
    """Without a single cause the outcome is unknown, which is an error."""
    assert conclude(()) == conclude([Cause.ERROR])


@pytest.mark.parametrize(
    ("evidence", "status"),
    [
        pytest.param(Evidence((HELD,), (REACHED,), 1), "passed", id="all-held"),
        pytest.param(Evidence((HELD, BROKE), (REACHED,), 1), "failed", id="one-broke"),
        pytest.param(Evidence((HELD, UNSEEN), (REACHED,), 1), "error", id="one-unobserved"),
        pytest.param(Evidence((HELD,), (REACHED, MISSED), 2), "inconclusive", id="dose-missed"),
        pytest.param(Evidence((HELD,), (REACHED, UNJUDGED), 2), "inconclusive", id="dose-not-judged"),
        pytest.param(Evidence((HELD,), (REACHED,), 2), "inconclusive", id="dose-missing"),
        pytest.param(Evidence((BROKE,), (MISSED,), 1), "failed", id="broke-beats-missed"),
        pytest.param(Evidence((HELD,), (REACHED,), 1, unknown=("n3 lost",)), "error", id="unknown-outcome"),
        pytest.param(Evidence((HELD,), (REACHED,), 1, outstanding=("n3",)), "error", id="open-stream"),
        pytest.param(Evidence((HELD,), (REACHED,), 1, unclean=("fill on n3",)), "error", id="undo-not-verified"),
        pytest.param(Evidence((HELD,), (REACHED,), 1, partial=("n3",)), "inconclusive", id="partial"),
        pytest.param(Evidence((BROKE,), (REACHED,), 1, causes=((Cause.CANCELLED, "Ctrl-C"),)), "cancelled", id="cancelled"),
        pytest.param(Evidence((BROKE,), (), 1, causes=((Cause.SAFETY, "halt"), (Cause.TIMEOUT, "late"))), "safety", id="halt"),
        pytest.param(Evidence((UNSEEN,), (), 1, causes=((Cause.REFUSED, "budget"),)), "refused", id="refused"),
        pytest.param(Evidence((BROKE,), (REACHED,), 1, causes=((Cause.PASSED, ""),)), "failed", id="nobody-may-say-passed"),
    ],
)
def test_a_run_passes_on_evidence_only(evidence, status):
    """`passed` needs every hypothesis held, every dose reached, nothing unknown, open, unclean or partial."""
    conclusion, findings = judge(evidence)
    assert conclusion.status == status
    assert findings[0].cause == status
    assert all(finding.reason for finding in findings)


FREE = Threshold("host.memory.available", "min", ">=", 128 << 20)
PROBE = ActorProbe(value_s=2.0, errors_fraction_max=0.01, name="answers")


@pytest.mark.parametrize(
    ("hypothesis", "observed", "held", "words"),
    [
        pytest.param(FREE, Observed(128 << 20), True, "observed 128MiB", id="at-the-bound"),
        pytest.param(FREE, Observed((128 << 20) - 1), False, "expected >= 128MiB", id="one-byte-under"),
        pytest.param(FREE, Observed(None, reason="no row"), None, "no row", id="no-row"),
        pytest.param(FREE, Observed(float("nan")), None, "nothing was observed", id="nan"),
        pytest.param(FREE, None, None, "nothing was observed", id="nothing"),
        pytest.param(Threshold("probe.failures", "sum", "<", 1), Observed(0.0), True, "observed 0", id="none-failed"),
        pytest.param(Threshold("host.cpu.busy", "max", "<=", 0.6), Observed(0.61), False, "observed 61%, expected <= 60%", id="busier"),
        pytest.param(Threshold("load.slice", "p99", ">", 0.001), Observed(0.001), False, "expected > 1ms", id="strictly-greater"),
        pytest.param(PROBE, Observed(2.0, 350), True, "0 of 350 calls failed", id="probe-at-the-bound"),
        pytest.param(PROBE, Observed(2.5, 350), False, "observed 2.5s, expected <= 2s", id="probe-late"),
        pytest.param(PROBE, Observed(0.1, 100, 1), True, "1 of 100", id="probe-errors-allowed"),
        pytest.param(PROBE, Observed(0.1, 100, 2), False, "2 of 100 calls failed, at most 1% may", id="probe-errors"),
        pytest.param(PROBE, Observed(0.1, 0), None, "no call was made", id="probe-without-calls"),
        pytest.param(PROBE, Observed(float("inf"), 10), False, "observed inf", id="probe-never-answered"),
    ],
)
def test_hypotheses_are_judged_on_both_sides_of_their_bound(hypothesis, observed, held, words):
    """A hypothesis holds, breaks, or is unknown; unknown is never held."""
    result = judge_hypothesis(hypothesis, observed)
    assert result.held is held
    assert words in result.reason
    assert result.name == (hypothesis.name or hypothesis.tolerance)
