"""Who leaks, by slope: bytes held that rise evenly and never pause. By handle: see `cluster.handles`. Pure.

Slope of a series of bytes over its last windows, at least 20 s and 10 windows long (Theil 1950, Sen 1968: the median slope of all pairs):

    flagged when    the rise is at least 1 MiB
             and    each half of the time rises at 0.6 to 1.6 times the slope of the whole (a warm-up flattens)
             and    no step down is larger than a quarter of the rise (a sawtooth falls back)
             and    half of the values lie within 5 % of the rise of the line

Growth that pauses within the span is no leak. One that lasts longer than the span without a pause looks like one until it pauses: a ramp of
a minute, a sawtooth of that period. After a finding a series is watched anew.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .anomaly import Reading

HELD: Final = frozenset({"dose.achieved", "host.memory.used"})  # of an operation's processes, and of a node
SPAN_S: Final = 20.0
LEAST: Final = 10
RISE_MIN_BYTES: Final = 1 << 20
EVEN: Final = (0.6, 1.6)
FALL_MAX: Final = 0.25
SCATTER_MAX: Final = 0.05
SERIES_MAX: Final = 10_000
_MIB: Final = 1 << 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Leak:
    """A rise that does not pause: bytes a second, over so many seconds."""

    rate: float
    over_s: float

    def __str__(self) -> str:
        return f"rises by {self.rate / _MIB:.3g} MiB/s without a pause, {self.rate * self.over_s / _MIB:.3g} MiB in {self.over_s:.0f} s"


def median_slope(times: Floats, values: Floats) -> float:
    """Return the median slope of all pairs of points (Theil-Sen); up to 29 % of them may be outliers. Times ascend."""
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))


class LeakSlope:
    """Watches one series. `take` a value at a time, in order."""

    def __init__(self, span_s: float = SPAN_S, rise_min_bytes: float = RISE_MIN_BYTES) -> None:
        self._span_s, self._rise_min = span_s, rise_min_bytes
        self._points: deque[tuple[float, float]] = deque(maxlen=1_000)

    def take(self, at_s: float, held_bytes: float) -> Leak | None:
        """Take what is held at an instant; return a leak that the last values are."""
        if self._points and at_s <= self._points[-1][0]:
            return None  # a clock that went back, or the same window again
        self._points.append((at_s, held_bytes))
        while len(self._points) > LEAST and self._points[-1][0] - self._points[1][0] >= self._span_s:
            self._points.popleft()
        if len(self._points) < LEAST or at_s - self._points[0][0] < self._span_s:
            return None
        times, values = np.array(self._points).T
        found = judge(times, values, self._rise_min)
        if found is not None:
            self._points.clear()
        return found


def judge(times: Floats, values: Floats, rise_min_bytes: float = RISE_MIN_BYTES) -> Leak | None:
    """Return the leak that these points are, if they are one."""
    over_s = float(times[-1] - times[0])
    if values[-1] - values[0] < rise_min_bytes / 2:
        return None
    rate = median_slope(times, values)
    rise, half = rate * over_s, len(times) // 2
    if rise < rise_min_bytes or np.diff(values).min() < -FALL_MAX * rise:
        return None
    halves = (median_slope(times[:half], values[:half]), median_slope(times[half:], values[half:]))
    if not all(EVEN[0] * rate <= part <= EVEN[1] * rate for part in halves):
        return None
    line = rate * times
    rest = values - line - np.median(values - line)
    return Leak(rate, over_s) if np.median(np.abs(rest)) <= SCATTER_MAX * rise else None


class Leaks:
    """The anomaly hook `leak`: memory and disk that an operation holds, and memory that a node uses, by the series' own windows."""

    def __init__(self, make: Callable[[], LeakSlope] = LeakSlope) -> None:
        self._make = make
        self._series: OrderedDict[tuple[object, ...], LeakSlope] = OrderedDict()

    def __call__(self, reading: Reading) -> str | None:
        """Judge a window by those of its series before it; the words name the rate, the reading names the owner."""
        if reading.metric not in HELD or reading.unit != "bytes":
            return None
        key = (*reading[:6], reading.length_s)
        if key not in self._series:
            if len(self._series) >= SERIES_MAX:
                self._series.popitem(last=False)
            self._series[key] = self._make()
        self._series.move_to_end(key)
        found = self._series[key].take(reading.start_s, reading.value)
        return None if found is None else f"{reading.worker or reading.node} {found}"
