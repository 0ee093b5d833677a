"""Whether a load yields to heat: a decision from temperatures and throttling, with a distance between going and coming back. Pure.

A load yields once a sensor is at the limit or the processor has throttled itself, and goes on once all sensors are `GAP_C` below the limit
and nothing was throttled for `CALM_S`. Without any sensor there is nothing to judge: that is told as unavailable, never as a temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

GAP_C: Final = 5.0
CALM_S: Final = 2.0
LOWEST_C, HIGHEST_C = -40.0, 150.0  # beyond these a sensor tells of itself, not of the processor
THROTTLING: Final = "the processor's own throttling"


@dataclass(frozen=True, slots=True)
class Reading:
    """What sensors say: degrees Celsius by name, and how often the processor has throttled itself since boot (None: not told)."""

    celsius: Mapping[str, float]
    throttled: int | None = None

    @property
    def hottest(self) -> tuple[str, float] | None:
        """Return name and temperature of the hottest sensor that can be believed; None without one."""
        found = [(value, name) for name, value in self.celsius.items() if math.isfinite(value) and LOWEST_C <= value <= HIGHEST_C]
        if not found:
            return None
        value, name = max(found)
        return name, value

    @property
    def available(self) -> bool:
        """Whether anything can be judged."""
        return self.hottest is not None or self.throttled is not None


@dataclass(frozen=True, slots=True)
class Heat:
    """What is decided so far. `sensor` and `celsius` are those of the last change, `celsius` None where it was the throttling."""

    limit_c: float
    yields: bool = False
    sensor: str = ""
    celsius: float | None = None
    throttled: int | None = None
    throttled_s: float = -math.inf  # when it last was

    def judge(self, reading: Reading, now_s: float) -> Heat:
        """Return what is decided after a reading at `now_s`. Sensors that have gone leave a decision as it is."""
        rises = self.throttled is not None and reading.throttled is not None and reading.throttled > self.throttled
        kept = replace(self, throttled=reading.throttled, throttled_s=now_s if rises else self.throttled_s)
        hottest = reading.hottest
        if hottest is not None and hottest[1] >= self.limit_c:
            return kept if self.yields else replace(kept, yields=True, sensor=hottest[0], celsius=hottest[1])
        if rises:
            return kept if self.yields else replace(kept, yields=True, sensor=THROTTLING, celsius=None)
        cool = hottest is None or hottest[1] <= self.limit_c - GAP_C
        if self.yields and reading.available and cool and now_s - kept.throttled_s >= CALM_S:
            name, value = hottest or (THROTTLING, None)
            return replace(kept, yields=False, sensor=name, celsius=value)
        return kept
