"""What must hold for a run to pass: a threshold on a metric, or an open-loop probe of an actor call. Pure.

`judge` turns what was observed into a result. What nobody observed holds no hypothesis: its result is `held=None`, and a run
with such a result never passes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from actors.errors import InputError
from actors.metrics.registry import CATALOGUE

from .targets import label_tuples
from .units import check_choice, check_number, check_text, format_duration, format_fraction, format_size

STATS: Final = ("min", "max", "mean", "last", "sum", "count", "p50", "p90", "p99", "p999")
PROBE_STATS: Final = ("mean", "max", "p50", "p90", "p99", "p999")
OPERATORS: Final = ("<=", "<", ">=", ">")
WHEN: Final = ("during", "after")
PLACES: Final = ("targets", "head")
RATE_MAX_HZ: Final = 1_000.0
TIMEOUT_MAX_S: Final = 600.0
VALUE_MAX: Final = 1e18
UNITS: Final[Mapping[str, str]] = {"seconds": "duration", "bytes": "size", "ratio": "fraction"}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A statistic of a catalogue metric compared with a value in the metric's unit.

    `unit` chooses where a metric has several (the doses: ratio or bytes); empty means its first.
    The statistic is taken over every row of the metric that `node` and `labels` leave ("" = all nodes): `min`, `max`, `sum`,
    `count` and quantiles over all of them together. `when`: while the load runs, or after it is undone.
    """

    metric: str
    stat: str
    op: str
    value: float
    unit: str = ""
    node: str = ""
    labels: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    when: str = "during"
    name: str = ""

    def __post_init__(self) -> None:
        metric = CATALOGUE.get(self.metric) if isinstance(self.metric, str) else None
        if metric is None:
            raise InputError("unknown_name", f"Threshold.metric: no metric is called {self.metric!r}", _near_metric(self.metric))
        if self.unit not in ("", metric.unit, *metric.other_units):
            units = ", ".join((metric.unit, *metric.other_units)) or "none"
            raise InputError("invalid_value", f"Threshold.unit: {self.metric} has no unit {self.unit!r}", f"its units: {units}")
        check_choice("Threshold.stat", self.stat, STATS)
        check_choice("Threshold.op", self.op, OPERATORS)
        object.__setattr__(self, "value", float(check_number("Threshold.value", self.value, -VALUE_MAX, VALUE_MAX)))
        check_text("Threshold.node", self.node)
        labels = label_tuples("Threshold.labels", self.labels)
        object.__setattr__(self, "labels", labels)
        strange = next((key for key, _ in labels if key not in metric.labels), None)
        if strange is not None:
            declared = ", ".join(metric.labels) or "none"
            raise InputError("unknown_key", f"Threshold.labels: {self.metric} has no label {strange!r}", f"its labels: {declared}")
        check_choice("Threshold.when", self.when, WHEN)
        check_text("Threshold.name", self.name)

    @property
    def quantity(self) -> str:
        """Return what `value` is: `duration` (s), `size` (bytes), `fraction`, or `number`."""
        return "number" if self.stat == "count" else UNITS.get(self.unit or CATALOGUE[self.metric].unit, "number")

    @property
    def tolerance(self) -> str:
        """Return what must hold, in words."""
        where = f" on {self.node}" if self.node else ""
        after = " after the load" if self.when == "after" else ""
        return f"{self.metric} {self.stat}{where} {self.op} {show(self.value, self.quantity)}{after}"


@dataclass(frozen=True, slots=True)
class ActorProbe:
    """Call an actor on an intended schedule and compare the response time, counted from the intended start.

    The call is due `rate_hz` times a second whether or not earlier ones have returned. One that has not returned after
    `timeout_s` is an error and counts with at least that time. `target`: an actor on each target node, or on the head.
    """

    value_s: float
    rate_hz: float = 10.0
    timeout_s: float = 5.0
    stat: str = "p99"
    op: str = "<="
    errors_fraction_max: float = 0.0
    target: str = "targets"
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_s", float(check_number("ActorProbe.value_s", self.value_s, 0.0, TIMEOUT_MAX_S)))
        object.__setattr__(self, "rate_hz", float(check_number("ActorProbe.rate_hz", self.rate_hz, 0.01, RATE_MAX_HZ)))
        object.__setattr__(self, "timeout_s", float(check_number("ActorProbe.timeout_s", self.timeout_s, 0.01, TIMEOUT_MAX_S)))
        check_choice("ActorProbe.stat", self.stat, PROBE_STATS)
        check_choice("ActorProbe.op", self.op, ("<=", "<"))
        check_number("ActorProbe.errors_fraction_max", self.errors_fraction_max, 0.0, 1.0)
        check_choice("ActorProbe.target", self.target, PLACES)
        check_text("ActorProbe.name", self.name)

    @property
    def quantity(self) -> str:
        """Return what the value is."""
        return "duration"

    @property
    def tolerance(self) -> str:
        """Return what must hold, in words."""
        errors = f"{show(self.errors_fraction_max, 'fraction')} errors"
        return f"actor call {self.stat} {self.op} {show(self.value_s, 'duration')} at {self.rate_hz:g} Hz, at most {errors}"


Hypothesis = Threshold | ActorProbe


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen: the statistic in its base unit (`None`: nothing), over how many samples, how many of them errors."""

    value: float | None
    count: int = 0
    errors: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HypothesisResult:
    """How a hypothesis ended: held, broken, or `None` when nothing was observed."""

    name: str
    held: bool | None
    observed: float | None
    tolerance: str
    reason: str


def title(hypothesis: Hypothesis) -> str:
    """Return the hypothesis's name, or what it demands where it has none."""
    return hypothesis.name or hypothesis.tolerance


def judge(hypothesis: Hypothesis, observed: Observed | None) -> HypothesisResult:
    """Return whether a hypothesis held on what was observed."""
    held, reason = _judged(hypothesis, observed or Observed(None))
    value = None if observed is None or observed.value is None or not math.isfinite(observed.value) else observed.value
    return HypothesisResult(title(hypothesis), held, value, hypothesis.tolerance, reason)


def _judged(hypothesis: Hypothesis, observed: Observed) -> tuple[bool | None, str]:
    if observed.value is None or math.isnan(observed.value):
        return None, observed.reason or "nothing was observed"
    value = hypothesis.value_s if isinstance(hypothesis, ActorProbe) else hypothesis.value
    seen = f"observed {show(observed.value, hypothesis.quantity)}"
    if not compare(observed.value, hypothesis.op, value):
        return False, f"{seen}, expected {hypothesis.op} {show(value, hypothesis.quantity)}"
    if isinstance(hypothesis, ActorProbe):
        return _judged_errors(hypothesis, observed, seen)
    return True, seen


def _judged_errors(probe: ActorProbe, observed: Observed, seen: str) -> tuple[bool | None, str]:
    if observed.count <= 0:
        return None, "no call was made"
    if observed.errors / observed.count > probe.errors_fraction_max:
        allowed = show(probe.errors_fraction_max, "fraction")
        return False, f"{observed.errors} of {observed.count} calls failed, at most {allowed} may"
    return True, f"{seen}, {observed.errors} of {observed.count} calls failed"


def compare(left: float, op: str, right: float) -> bool:
    """Return whether `left op right` holds; nothing holds for NaN."""
    return {"<=": left <= right, "<": left < right, ">=": left >= right, ">": left > right}[op]


def show(value: float, quantity: str) -> str:
    """Return a number of a quantity for people: four significant digits, with its unit."""
    if not math.isfinite(value):
        return str(value)
    if quantity == "size" and value >= 1024:
        unit, scale = next((unit, scale) for unit, scale in _SIZES if value >= scale)
        return format_size(int(value)) if value == int(value) and value % scale == 0 else f"{value / scale:.4g} {unit}"
    if quantity == "fraction":
        return str(format_fraction(value)) if 0 <= value == round(value, 4) else f"{value * 100:.4g}%"
    if quantity == "duration":
        return str(format_duration(value)) if 0 <= value == round(value, 3) else f"{value:.4g} s"
    return f"{value:.4g} B" if quantity == "size" else f"{value:.6g}"


_SIZES: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def _near_metric(word: object) -> str:
    close = difflib.get_close_matches(str(word), list(CATALOGUE), n=1)
    return f"did you mean {close[0]!r}?" if close else "see `stress-cluster list metrics`"
