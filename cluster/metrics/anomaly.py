"""Does a series deviate? Detectors as values, the hooks that are called with each closed window, and how hooks are found. Pure.

    robust_z    |value - median| / scale > 5.25  of the last 240 windows; scale: 1.4826 x MAD, which is sigma of a normal distribution
    ewma        |value - mean| / sigma > 5.25    mean and variance with weights that fall by 1 % a window; steps count up to 3 sigma
    leak        bytes held that rise evenly for 20 s and 10 windows: see `leaks`

A scale is at least 1 % of the level, so that a series which hardly moves is not judged by its last digit; one that never moved from 0 is
not judged. Nothing is judged before 100 windows. After a finding a detector learns anew: a step is found once, not in each window after.

A hook is a callable that takes a `Reading` and returns what is odd about it in words, or None. Packages offer factories of hooks under the
entry point group `stress_cluster.anomaly_hooks`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from actors.errors import InputError
from actors.metrics.registry import Kind

from .leaks import Leaks

GROUP: Final = "stress_cluster.anomaly_hooks"
LEAST: Final = 100
FLOOR: Final = 0.01
CLIPPED: Final = 3.0
SERIES_MAX: Final = 10_000
_MAD_TO_SIGMA: Final = 1.4826
_COLUMNS: Final = ("kind", "metric", "unit", "node", "worker", "phase", "labels", "count", "sum", "window_s")


class Reading(NamedTuple):
    """One closed window of one series. `value`: a gauge's or histogram's mean, a counter's increase a second."""

    metric: str
    unit: str
    node: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]
    start_s: float  # UTC
    length_s: float
    value: float


Hook = Callable[[Reading], str | None]
Detector = Callable[[float], str | None]  # of one series


class RobustZ:
    """Median and median absolute deviation of the last windows; up to half of them may be outliers."""

    def __init__(self, threshold: float = 5.25, windows: int = 240) -> None:
        self._threshold = threshold
        self._values: deque[float] = deque(maxlen=windows)

    def __call__(self, value: float) -> str | None:
        """Take a value; return what is odd about it."""
        found = None
        if len(self._values) >= LEAST:
            values = np.array(self._values)
            median = float(np.median(values))
            found = _judged(value, median, _MAD_TO_SIGMA * float(np.median(np.abs(values - median))), self._threshold, "median")
        if found:
            self._values.clear()
        self._values.append(value)
        return found


class Ewma:
    """Exponentially weighted mean and variance (West 1979)."""

    def __init__(self, threshold: float = 5.25, alpha: float = 0.01) -> None:
        self._threshold, self._alpha = threshold, alpha
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def __call__(self, value: float) -> str | None:
        """Take a value; return what is odd about it."""
        found = _judged(value, self._mean, math.sqrt(self._variance), self._threshold, "mean") if self._seen >= LEAST else None
        if found:
            self._seen, self._variance = 0, 0.0
        self._seen += 1
        weight = max(self._alpha, 1.0 / self._seen)  # the plain mean, until there are enough
        step = value - self._mean
        if self._seen > LEAST:  # what is far off, and was not yet odd enough, must not hide what follows
            most = CLIPPED * max(math.sqrt(self._variance), FLOOR * abs(self._mean))
            step = min(max(step, -most), most) if most else step
        self._mean += weight * step
        self._variance = (1.0 - weight) * (self._variance + weight * step * step)
        return found


def _judged(value: float, level: float, scale: float, threshold: float, name: str) -> str | None:
    scale = max(scale, FLOOR * abs(level))
    distance = abs(value - level)
    if not scale > 0.0 or distance <= threshold * scale:
        return None
    return f"{value:.6g} is {distance / scale:.1f} deviations {'above' if value > level else 'below'} its {name} of {level:.6g}"


class PerSeries:
    """A hook of one detector for each series; past 10,000 series the one that was longest idle is forgotten."""

    def __init__(self, make: Callable[[], Detector]) -> None:
        self._make = make
        self._detectors: OrderedDict[tuple[object, ...], Detector] = OrderedDict()

    def __call__(self, reading: Reading) -> str | None:
        """Judge a window by those of its series before it."""
        key = (*reading[:6], reading.length_s)
        if key not in self._detectors:
            if len(self._detectors) >= SERIES_MAX:
                self._detectors.popitem(last=False)
            self._detectors[key] = self._make()
        self._detectors.move_to_end(key)
        return self._detectors[key](reading.value)


BUILTIN: Final[dict[str, Callable[[], Hook]]] = {
    "robust_z": lambda: PerSeries(RobustZ),
    "ewma": lambda: PerSeries(Ewma),
    "leak": Leaks,
}


def hooks_of(text: str, found: Iterable[EntryPoint] | None = None) -> dict[str, Hook]:
    """Return the hooks that a setting names, new ones, by name: `robust_z, ewma`.

    Raises `InputError` for a name that nothing or more than one package offers, and for a hook that cannot be made, with the reason.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    points = [] if not names else list(entry_points(group=GROUP) if found is None else found)
    return {name: _hook(name, points) for name in names}


def _hook(name: str, points: list[EntryPoint]) -> Hook:
    if name in BUILTIN:
        return BUILTIN[name]()
    offered = {point.value: point for point in points if point.name == name}
    if len(offered) != 1:
        known = ", ".join(sorted({*BUILTIN, *(point.name for point in points)}))
        what = "is offered by none" if not offered else f"is offered by {' and '.join(sorted(offered))}"
        raise InputError("unknown_name", f"metrics.anomaly: the hook {name!r} {what}", f"known: {known}")
    (point,) = offered.values()
    try:
        hook: Hook = point.load()()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        raise InputError("invalid_setting", f"metrics.anomaly: {name!r} ({point.value}) cannot be made: {error!r}") from error
    if not callable(hook):
        raise InputError(
            "invalid_setting", f"metrics.anomaly: {name!r} ({point.value}) makes a {type(hook).__name__}, which is no callable"
        )
    return hook


def readings(windows: pa.Table) -> Iterator[Reading]:
    """Yield closed windows as hooks take them. What a scenario asks for is left out: it changes on purpose."""
    starts = windows["time"].cast(pa.int64()).to_pylist()
    for start_us, row in zip(starts, zip(*(windows[name].to_pylist() for name in _COLUMNS), strict=True), strict=True):
        kind, metric, unit, node, worker, phase, labels, count, total, length_s = row
        per = length_s if kind == Kind.COUNTER else count
        if metric == "dose.requested" or total is None or not per or not math.isfinite(total):
            continue
        yield Reading(metric, unit, node, worker, phase, tuple(labels), start_us / 1e6, length_s, total / per)
