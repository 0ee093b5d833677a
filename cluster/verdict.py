"""How a run ends: from everything that was found to one status and one exit code. Pure.

    code  status         when
    0     passed         every hypothesis and threshold held, and the dose was reached
    1     failed         a hypothesis or threshold broke
    2     invalid        bad scenario, option or setting, visible in the document alone
    3     error          the harness failed, or an outcome is unknown
    4     safety         a safety policy aborted, or a halt
    5     inconclusive   nothing broke, but a dose was missed or an allocation was partial
    6     refused        wrong only on this cluster
    7     timeout        the run's own time limit
    130   cancelled      Ctrl-C, stop, a signal

With several causes the first of 2, 6, 3, 4, 130, 7, 1, 5, 0 counts. Nothing found is no pass: a run passes on evidence only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from scenarios.hypotheses import HypothesisResult

from .dose import DoseResult


class Cause(StrEnum):
    """Why a run ended as it did; its value is the status."""

    INVALID = "invalid"
    REFUSED = "refused"
    ERROR = "error"
    SAFETY = "safety"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    PASSED = "passed"


EXIT_CODES: Final[dict[Cause, int]] = {
    # in order of precedence
    Cause.INVALID: 2,
    Cause.REFUSED: 6,
    Cause.ERROR: 3,
    Cause.SAFETY: 4,
    Cause.CANCELLED: 130,
    Cause.TIMEOUT: 7,
    Cause.FAILED: 1,
    Cause.INCONCLUSIVE: 5,
    Cause.PASSED: 0,
}


@dataclass(frozen=True, slots=True)
class Conclusion:
    """A run's status and exit code."""

    status: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause with its reason in words."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known at a run's end. Each text is a reason for people; an empty tuple means that nothing of it was found."""

    hypotheses: Sequence[HypothesisResult] = ()
    doses: Sequence[DoseResult] = ()
    operations_expected: int = 0  # how many operations the plan has: each must have a dose
    unknown: Sequence[str] = ()  # operations whose outcome is not known, nodes only presumed ended
    outstanding: Sequence[str] = ()  # metric streams that have not arrived whole
    unclean: Sequence[str] = ()  # effects whose undo is not verified
    partial: Sequence[str] = ()  # targets that were planned and not loaded, loads that did not get all they asked for
    causes: Sequence[tuple[Cause, str]] = ()  # what ended the run: stop, safety, timeout, error


def conclude(causes: Iterable[Cause]) -> Conclusion:
    """Return the status and exit code of the first cause in order of precedence; of nothing, `error`."""
    found = set(causes)
    cause = next((cause for cause in EXIT_CODES if cause in found), Cause.ERROR)
    return Conclusion(cause.value, EXIT_CODES[cause])


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Return every cause that the evidence gives, the weightiest first; `passed` only when there is no other."""
    found = sorted(_found(evidence), key=lambda finding: _RANK[finding.cause])
    return tuple(found) or (Finding(Cause.PASSED, _passed(evidence)),)


def judge(evidence: Evidence) -> tuple[Conclusion, tuple[Finding, ...]]:
    """Return how the run ended and all the reasons."""
    found = findings(evidence)
    return conclude(finding.cause for finding in found), found


_RANK: Final = {cause: rank for rank, cause in enumerate(EXIT_CODES)}


def _found(evidence: Evidence) -> Iterator[Finding]:
    yield from (Finding(cause, reason) for cause, reason in evidence.causes if cause is not Cause.PASSED)
    for words in (evidence.unknown, evidence.outstanding, evidence.unclean):
        yield from (Finding(Cause.ERROR, reason) for reason in words)
    yield from _of_hypotheses(evidence.hypotheses)
    yield from (Finding(Cause.INCONCLUSIVE, reason) for reason in evidence.partial)
    yield from _of_doses(evidence)


def _of_hypotheses(results: Sequence[HypothesisResult]) -> Iterator[Finding]:
    for result in results:
        if result.held is None:
            yield Finding(Cause.ERROR, f"hypothesis {result.name!r} is unknown: {result.reason}")
        elif not result.held:
            yield Finding(Cause.FAILED, f"hypothesis {result.name!r} broke: {result.reason}")


def _of_doses(evidence: Evidence) -> Iterator[Finding]:
    missing = evidence.operations_expected - len(evidence.doses)
    if missing > 0:
        yield Finding(Cause.INCONCLUSIVE, f"{missing} of {evidence.operations_expected} operations have no measured dose")
    for dose in evidence.doses:
        if dose.reached is None:
            yield Finding(Cause.INCONCLUSIVE, f"dose of {dose.operation} was not judged: {dose.reason}")
        elif not dose.reached:
            yield Finding(Cause.INCONCLUSIVE, f"dose of {dose.operation} was missed: {dose.reason}")


def _passed(evidence: Evidence) -> str:
    return f"{len(evidence.hypotheses)} hypotheses held, {len(evidence.doses)} doses were reached"
