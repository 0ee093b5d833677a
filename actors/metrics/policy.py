"""What a process records: its level, its mode, its filters and the sampling of its raw samples, as one value.

A policy travels as JSON in the header of a process's metrics segment, so a new one is in force from the next drain on, whatever handles
the process holds. No policy touches a vital metric: failures, safety and doses are recorded always and whole. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from ..errors import InputError
from .registry import Kind, Metric, Verbosity, find
from .sampling import Adaptive, Always, FirstN, Policy, Probability, RateLimit

Labels = tuple[tuple[str, str], ...]

RULES_MAX: Final = 32
_WILD: Final = frozenset("*?[")


class Mode(StrEnum):
    """Whether single samples leave the process."""

    SUMMARY = "summary"  # counts, sums, extremes and histograms by window
    DETAILED = "detailed"  # these, and each sample


@dataclass(frozen=True, slots=True)
class Filter:
    """Includes or excludes the series that match all of it: a glob on the name, a kind (None: any), labels by glob."""

    include: bool
    name: str = "*"
    kind: Kind | None = None
    labels: Labels = ()

    def __post_init__(self) -> None:
        if not self.include and not _WILD & set(self.name) and find(self.name).vital:
            raise InputError("invalid_value", f"{self.name!r} cannot be filtered out: it tells of failures, of safety or of the dose")

    def matches(self, metric: Metric, labels: Labels) -> bool:
        """Tell whether a series is meant."""
        have = dict(labels)
        return (
            fnmatchcase(metric.name, self.name)
            and self.kind in (None, metric.kind)
            and all(name in have and fnmatchcase(have[name], glob) for name, glob in self.labels)
        )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the series that match a glob are sampled."""

    name: str
    policy: Policy

    def __post_init__(self) -> None:
        if not _WILD & set(self.name) and find(self.name).vital and not isinstance(self.policy, Always):
            raise InputError("invalid_value", f"{self.name!r} cannot be sampled: it tells of failures, of safety or of the dose")


@dataclass(frozen=True, slots=True)
class RecordingPolicy:
    """The first filter that matches a series decides, and so does the first sampling; without one it is recorded, and kept whole."""

    level: Verbosity = Verbosity.NORMAL
    mode: Mode = Mode.SUMMARY
    filters: tuple[Filter, ...] = ()
    sampling: tuple[Sampling, ...] = ()

    def __post_init__(self) -> None:
        if len(self.filters) > RULES_MAX or len(self.sampling) > RULES_MAX:
            raise InputError("invalid_value", f"a policy has at most {RULES_MAX} filters and {RULES_MAX} samplings")

    def leaves_out(self, metric: Metric, labels: Labels) -> str:
        """Return why a series is not recorded, `level` or `filter`, or "" when it is."""
        if metric.vital:
            return ""
        if not self.level.records(metric):
            return "level"
        decided = next((one.include for one in self.filters if one.matches(metric, labels)), True)
        return "" if decided else "filter"

    def sampling_of(self, metric: Metric) -> Policy:
        """Return how a series of this metric is sampled."""
        if metric.vital:
            return Always()
        return next((one.policy for one in self.sampling if fnmatchcase(metric.name, one.name)), Always())

    def to_json(self) -> str:
        """Return the document that `from_json` reads."""
        filters = [[one.include, one.name, one.kind, list(map(list, one.labels))] for one in self.filters]
        sampling = [[one.name, *_written(one.policy)] for one in self.sampling]
        return json.dumps({"level": self.level, "mode": self.mode, "filters": filters, "sampling": sampling}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RecordingPolicy:
        """Return the policy of a document. Raises `InputError` when it is none."""
        try:
            document: Mapping[str, Any] = json.loads(text)
            filters = tuple(
                Filter(bool(include), _text(name), Kind(kind) if kind else None, tuple((_text(one), _text(glob)) for one, glob in labels))
                for include, name, kind, labels in document["filters"]
            )
            sampling = tuple(Sampling(_text(name), _read(word, argument)) for name, word, argument in document["sampling"])
            return cls(Verbosity(document["level"]), Mode(document["mode"]), filters, sampling)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError("invalid_document", f"not a recording policy: {type(error).__name__}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is expected, got {value!r}")
    return value


def _written(policy: Policy) -> tuple[str, float]:
    match policy:
        case Probability(probability):
            return ("probability", probability)
        case RateLimit(per_second):
            return ("rate", per_second)
        case FirstN(count):
            return ("first", count)
        case Adaptive(per_second):
            return ("adaptive", per_second)
    return ("always", 0)


def _read(word: str, argument: float) -> Policy:
    match word:
        case "always":
            return Always()
        case "probability":
            return Probability(argument)
        case "rate":
            return RateLimit(argument)
        case "first":
            return FirstN(int(argument))
        case "adaptive":
            return Adaptive(argument)
    raise ValueError(f"no sampling {word!r}; known: always, probability, rate, first, adaptive")
