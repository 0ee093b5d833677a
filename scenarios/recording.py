"""What a run records: how much, in which form, which series not, and which single samples leave. Pure; equality is by content.

Rules name metrics by glob and say which of those that nodes and their loads record they mean. What a verdict rests on stays whatever
they say: doses, probes, failures, safety, and what was lost. Sampling thins single samples only, so it needs mode `detailed`;
the figures of windows are always made of all samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from actors.errors import InputError
from actors.metrics import policy as policies
from actors.metrics import sampling as samplings
from actors.metrics.policy import RULES_MAX, RecordingPolicy
from actors.metrics.registry import CATALOGUE, Kind, Metric, Verbosity
from actors.metrics.segment import check_policy_text

from .schema import nearest
from .units import check_choice, check_number, check_text, check_whole

METRIC_LEVELS: Final = tuple(level.value for level in Verbosity)
METRIC_MODES: Final = tuple(mode.value for mode in policies.Mode)
METRIC_KINDS: Final = tuple(kind.value for kind in Kind)
RATE_MAX_HZ: Final = 1e9
COUNT_MAX: Final = 1_000_000
OF_NODES: Final = tuple(one for one in CATALOGUE.values() if not one.vital and one.name.startswith(("host.", "load.", "agent.")))
OF_LOADS: Final = tuple(one for one in OF_NODES if one.name.startswith("load."))


def _meant(label: str, glob: object, among: tuple[Metric, ...], what: str) -> tuple[Metric, ...]:
    """Return the metrics that a glob means; raises `InputError` where there is none: such a rule would do nothing."""
    name = check_text(label, glob)
    found = tuple(one for one in among if fnmatchcase(one.name, name))
    if found:
        return found
    if any(fnmatchcase(one, name) for one in CATALOGUE):
        raise InputError("invalid_value", f"{label}: {name!r} names only metrics that no rule changes", what)
    raise InputError("unknown_name", f"{label}: no metric is called {name!r}", nearest(name, [one.name for one in among]))


@dataclass(frozen=True, slots=True)
class _Series:
    """Series by a glob on the metric's name and a kind ("": any); both must match."""

    metric: str = "*"
    kind: str = ""

    def __post_init__(self) -> None:
        name = type(self).__name__
        found = _meant(f"{name}.metric", self.metric, OF_NODES, "doses, probes, failures, safety and losses are always recorded")
        if self.kind:
            check_choice(f"{name}.kind", self.kind, METRIC_KINDS)
        if self.kind and not any(self.kind == one.kind for one in found):
            raise InputError("invalid_value", f"{name}.kind: no metric called {self.metric!r} is a {self.kind}", "see `list metrics`")

    def rule(self) -> policies.Filter:
        """Return the filter that processes go by."""
        return policies.Filter(isinstance(self, Keep), self.metric, Kind(self.kind) if self.kind else None)


@dataclass(frozen=True, slots=True)
class Keep(_Series):
    """Record these series, whatever later filters say. The level decides before any filter."""


@dataclass(frozen=True, slots=True)
class LeaveOut(_Series):
    """Do not record these series; `metrics.filtered` counts what was left out."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Loads' metrics by a glob on the name, and how their single samples are thinned."""

    metric: str

    def __post_init__(self) -> None:
        label = f"{type(self).__name__}.metric"
        _meant(label, self.metric, OF_LOADS, f"single samples leave of {', '.join(one.name for one in OF_LOADS)}")

    def rule(self) -> policies.Sampling:
        """Return the sampling that processes go by."""
        return policies.Sampling(self.metric, self._policy())

    def _policy(self) -> samplings.Policy:
        return samplings.Always()


@dataclass(frozen=True, slots=True)
class Always(_Sampled):
    """Every sample leaves: for what a later rule would thin."""


@dataclass(frozen=True, slots=True)
class Probability(_Sampled):
    """This share of the samples leaves."""

    share: float

    def __post_init__(self) -> None:
        _Sampled.__post_init__(self)
        object.__setattr__(self, "share", float(check_number("Probability.share", self.share, 1e-9, 1.0)))

    def _policy(self) -> samplings.Policy:
        return samplings.Probability(self.share)


@dataclass(frozen=True, slots=True)
class Rate(_Sampled):
    """At most so many samples a second leave, evenly spaced."""

    rate_hz: float

    def __post_init__(self) -> None:
        _Sampled.__post_init__(self)
        object.__setattr__(self, "rate_hz", float(check_number("Rate.rate_hz", self.rate_hz, 1e-6, RATE_MAX_HZ)))

    def _policy(self) -> samplings.Policy:
        return samplings.RateLimit(self.rate_hz)


@dataclass(frozen=True, slots=True)
class First(_Sampled):
    """The first samples of each window leave, and one for all the rest of it."""

    count: int

    def __post_init__(self) -> None:
        _Sampled.__post_init__(self)
        object.__setattr__(self, "count", check_whole("First.count", self.count, 0, COUNT_MAX))

    def _policy(self) -> samplings.Policy:
        return samplings.FirstN(self.count)


@dataclass(frozen=True, slots=True)
class Adaptive(_Sampled):
    """Every sample leaves while at most so many a second come; a burst is thinned down to it. At least 10 a second."""

    rate_hz: float

    def __post_init__(self) -> None:
        _Sampled.__post_init__(self)
        object.__setattr__(self, "rate_hz", float(check_number("Adaptive.rate_hz", self.rate_hz, samplings.STEPS, RATE_MAX_HZ)))

    def _policy(self) -> samplings.Policy:
        return samplings.Adaptive(self.rate_hz)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is recorded. The first filter that matches a series decides, and so does the first sampling."""

    level: str = Verbosity.NORMAL.value
    mode: str = policies.Mode.SUMMARY.value
    filters: tuple[Keep | LeaveOut, ...] = ()
    sampling: tuple[_Sampled, ...] = ()

    def __post_init__(self) -> None:
        check_choice("Metrics.level", self.level, METRIC_LEVELS)
        check_choice("Metrics.mode", self.mode, METRIC_MODES)
        object.__setattr__(self, "filters", _rules("Metrics.filters", self.filters, (Keep, LeaveOut)))
        object.__setattr__(self, "sampling", _rules("Metrics.sampling", self.sampling, SAMPLINGS))
        if self.sampling and self.mode != policies.Mode.DETAILED:
            raise InputError(
                "invalid_value",
                "Metrics.sampling thins single samples, which leave in mode detailed only",
                "add mode: detailed, or leave it",
            )
        try:
            check_policy_text(self.policy().to_json())
        except InputError as error:
            raise InputError(error.code, f"Metrics.filters: {error.message}", error.hint) from error

    def policy(self) -> RecordingPolicy:
        """Return what processes go by."""
        filters, sampling = tuple(one.rule() for one in self.filters), tuple(one.rule() for one in self.sampling)
        return RecordingPolicy(Verbosity(self.level), policies.Mode(self.mode), filters, sampling)

    def leaves_out(self, metric: str) -> str:
        """Return what of this value keeps nodes from recording a metric, or "" when they do."""
        if CATALOGUE[metric] not in OF_NODES:
            return ""
        why = self.policy().leaves_out(CATALOGUE[metric], ())
        return {"level": f"metrics.level {self.level}", "filter": "metrics.filters"}.get(why, "")


SAMPLINGS: Final = (Always, Probability, Rate, First, Adaptive)


def _rules(label: str, given: object, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    if not isinstance(given, (list, tuple)) or len(given) > RULES_MAX:
        raise InputError("invalid_value", f"{label} must be a list of at most {RULES_MAX} rules")
    for at, item in enumerate(given):
        if type(item) not in kinds:
            raise InputError("invalid_value", f"{label}[{at}] must be one of {', '.join(kind.__name__ for kind in kinds)}, got {item!r}")
    return tuple(given)
