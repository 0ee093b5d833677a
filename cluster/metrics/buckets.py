"""Upper bounds of classic histogram buckets, by metric: what a person set, else what the catalogue says, else by unit. Pure.

Counts come from the log-linear histogram. A bound that lies inside one of its buckets takes the whole of it, so that a value equal to
the bound is always within, as `le` says, and a value above it by less than 2^-7 = 0.8 % may be. Quantiles taken from buckets are off
by a whole bucket anyway. The bounds by unit are powers of two: sizes are, and their error is that of the value itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from actors.errors import InputError
from actors.metrics.histogram import Keys, keys_of
from actors.metrics.registry import CATALOGUE, Kind, Metric, find

BOUNDS_MAX: Final = 200  # a bucket is a series of its own at Prometheus
BY_UNIT: Final[Mapping[str, tuple[float, ...]]] = {
    "seconds": tuple(2.0**power for power in range(-17, 7)),
    "bytes": tuple(2.0**power for power in range(10, 34, 2)),
}
_OTHER: Final = tuple(2.0**power for power in range(-10, 21, 2))
_FORM: Final = "METRIC=BOUND,BOUND,...; bounds ascend, in the metric's unit: probe.response=0.005,0.01,0.1; load.slice=0.001,0.01"


@dataclass(frozen=True, slots=True)
class Buckets:
    """Bounds by metric and unit; `given` by metric beats the rest."""

    given: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    catalogue: Mapping[str, Metric] = field(default_factory=lambda: CATALOGUE)

    def bounds(self, metric: str, unit: str) -> tuple[float, ...]:
        """Return the upper bounds of a metric's buckets in this unit, ascending, +Inf left out."""
        if metric in self.given:
            return self.given[metric]
        entry = self.catalogue.get(metric)
        if entry is not None and entry.buckets and unit == entry.unit:
            return entry.buckets
        return BY_UNIT.get(unit, _OTHER)

    def ends(self, metric: str, unit: str) -> Keys:
        """Return for each bound the first key past it, for `Histogram.cumulative`."""
        return ends_of(self.bounds(metric, unit))


def ends_of(bounds: tuple[float, ...]) -> Keys:
    """Return the first key past each bound: below it lie all values up to the bound."""
    ends: Keys = keys_of(np.array(bounds, np.float64)) + np.int16(1)
    return ends


def parse(text: str) -> Buckets:
    """Return the buckets that a setting gives; see `_FORM`. Raises `InputError` (`invalid_setting`) that names metric and bound."""
    given: dict[str, tuple[float, ...]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, listed = (piece.strip() for piece in part.partition("="))
        if name in given:
            raise _wrong(f"{name} is given twice")
        given[name] = _bounds(name, listed)
    return Buckets(given)


def _bounds(name: str, listed: str) -> tuple[float, ...]:
    try:
        metric = find(name)
    except InputError as error:
        raise InputError("invalid_setting", f"prometheus.buckets: {error.message}", error.hint) from None
    if metric.kind is not Kind.HISTOGRAM:
        raise _wrong(f"{name} is a {metric.kind}, and only histograms have buckets")
    try:
        bounds = tuple(float(one) for one in listed.split(","))
    except ValueError:
        raise _wrong(f"{listed!r} of {name} is no list of numbers") from None
    if not all(map(math.isfinite, bounds)):
        raise _wrong(f"{listed!r} of {name} has a bound that is not finite; +Inf is always there")
    if any(low >= high for low, high in itertools.pairwise(bounds)):
        raise _wrong(f"the bounds {listed!r} of {name} do not ascend")
    if len(bounds) > BOUNDS_MAX:
        raise _wrong(f"{name} has {len(bounds)} bounds, at most {BOUNDS_MAX} are allowed")
    if len(set(ends_of(bounds).tolist())) < len(bounds):
        raise _wrong(f"two bounds in {listed!r} of {name} are nearer than a histogram can tell apart (0.8 %), or out of its range")
    return bounds


def _wrong(what: str) -> InputError:
    return InputError("invalid_setting", f"prometheus.buckets: {what}", f"expected {_FORM}")
