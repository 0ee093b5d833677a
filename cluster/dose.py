"""Was the asked load really there? One rule over one-second windows, the same for every simulator. Pure.

A window counts when it is whole, lies within the operation, and is settled: at least 2 s after a change of the asked value. The dose
is reached when in at least 95 % of those windows achieved and asked differ by at most the tolerance:

    fraction    5 points of the node's CPU           |achieved - asked| <= 0.05
    bytes       2 % of the asked bytes, at least 1 MiB (page tables and block rounding of small amounts)
    count       2 % of the asked number, at least 2
    per_second  2 % of the asked rate, at least 1 a second

The least is half of what is asked where that is smaller: of two that are asked, none is no dose.

All but CPU that is asked as a fraction of the node's capacity is `relative`: 2 % of the asked fraction, at least a thousandth of the
capacity. A simulator or a scenario may state another tolerance.

A change is a step between neighbouring windows that is larger than the tolerance, the operation's start, or a gap in the windows.
A shape that moves more slowly than that (a long ramp, a long sine) is judged window by window against each window's mean. A shape that
never rests for 2 s has no settled window: then the means over all its moving windows from 2 s on are compared, where there are
at least 5 of them. With fewer the dose is not judged (`reached=None`), which is no pass.

In host-total mode an excess that others cause is no miss: what counts then is that our own share did not pass what was left to fill.
Where others' use moved by more than the tolerance from one window to the next, the move lies in one of the two, and neither is settled:
no loop can fill up to a level that moves within the second. Where others left fewer than half of the windows in peace, the dose is not
judged.

`requested` is what the shape asks, before any ceiling: a dose that safety throttled was not reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .words import amount

SETTLE_S: Final = 2.0
SHARE_MIN: Final = 0.95
WHOLE_MIN_S: Final = 0.9
GAP_MAX_S: Final = 0.5
MOVING_MIN: Final = 5
CALM_MIN: Final = 0.5
FRACTION_TOLERANCE: Final = 0.05
RELATIVE_TOLERANCE: Final = 0.02
FLOORS: Final[Mapping[str, float]] = {"fraction": 0.001, "bytes": 1 << 20, "count": 2, "per_second": 1}
EDGE_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class DoseWindow:
    """One window of one operation: start in seconds from the operation's start, asked and achieved means in its unit.

    `own` is the part of `achieved` that is our own load; it matters in host-total mode only.
    """

    start_s: float
    requested: float
    achieved: float
    window_s: float = 1.0
    own: float | None = None

    @property
    def others(self) -> float:
        """Return the part of `achieved` that is not ours."""
        return max(self.achieved - (self.own or 0.0), 0.0)


@dataclass(frozen=True, slots=True)
class DoseResult:
    """How an operation's dose ended. `requested` and `achieved` are means over the judged windows."""

    operation: str
    node: str
    requested: float
    achieved: float
    unit: str
    reached: bool | None
    windows: int
    reason: str


def reached(
    windows: Sequence[DoseWindow],
    *,
    operation: str = "",
    node: str = "",
    unit: str = "fraction",
    duration_s: float | None = None,
    tolerance: float | None = None,
    host_total: bool = False,
    relative: bool | None = None,
    floor: float | None = None,
) -> DoseResult:
    """Return whether the dose of one operation was reached.

    `unit` is that of the windows' values, one of `FLOORS`. `relative` says what `tolerance` is a share of: the asked value, or the node's
    capacity (CPU); by default fractions are of the capacity, and all else is relative. `floor` is the least that it may be off by, where
    the simulator has another than `FLOORS`.
    """
    judge = _Judge(unit, tolerance, host_total, unit != "fraction" if relative is None else relative, floor)
    whole = _whole(windows, duration_s)
    settled = _settled(whole, judge)
    stirred = judge.stirred(whole)
    calm = [window for window in settled if window.start_s not in stirred]
    chosen = calm or settled or [window for window in whole if window.start_s >= SETTLE_S - EDGE_S]
    if len(calm) < CALM_MIN * len(settled):
        verdict, reason = None, f"what others used changed in {len(settled) - len(calm)} of {len(settled)} settled windows"
    else:
        verdict, reason = judge.settled(calm) if calm else judge.moving(chosen)
    requested, achieved = _mean([window.requested for window in chosen]), _mean([window.achieved for window in chosen])
    return DoseResult(operation, node, requested, achieved, unit, verdict, len(chosen), reason)


def at_target(
    windows: Sequence[DoseWindow],
    *,
    unit: str,
    duration_s: float,
    tolerance: float | None,
    host_total: bool,
    relative: bool,
    floor: float | None = None,
) -> list[tuple[float, float]]:
    """Return begin and end of each whole window in which something was asked and achieved, settled or not. Arguments as of `reached`."""
    judge = _Judge(unit, tolerance, host_total, relative, floor)
    hits = (window for window in _whole(windows, duration_s) if window.requested > 0.0 and judge.is_hit(window))
    return [(window.start_s, window.start_s + window.window_s) for window in hits]


def momentary(requested: float, achieved: float, **terms: Any) -> str:
    """Return how one window's dose stands, settled or not: "short", "over", or "well". `terms` as of `at_target`, without the duration."""
    judge = _Judge(terms["unit"], terms["tolerance"], terms["host_total"], terms["relative"], terms["floor"])
    if abs(achieved - requested) <= judge.margin(requested):
        return "well"
    return "over" if achieved > requested else "short"


def _whole(windows: Sequence[DoseWindow], duration_s: float | None) -> list[DoseWindow]:
    """Return the whole windows within the operation, in order; windows cut by its edges are left out."""
    end_s = float("inf") if duration_s is None else duration_s + EDGE_S
    inside = [w for w in windows if w.start_s >= -EDGE_S and w.start_s + w.window_s <= end_s and w.window_s >= WHOLE_MIN_S]
    return sorted(inside, key=lambda window: window.start_s)


def _settled(windows: list[DoseWindow], judge: _Judge) -> list[DoseWindow]:
    """Return the windows that begin at least 2 s after the last change of the asked value."""
    found: list[DoseWindow] = []
    changed_s, before = 0.0, None
    for window in windows:
        if before is not None and judge.is_change(before, window):
            changed_s = window.start_s
        before = window
        if window.start_s - changed_s >= SETTLE_S - EDGE_S:
            found.append(window)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class _Judge:
    """The tolerance of one operation."""

    unit: str
    tolerance: float | None
    host_total: bool
    relative: bool
    floor: float | None = None

    def margin(self, requested: float) -> float:
        """Return how far achieved may differ from this asked value, in the operation's unit."""
        if not self.relative:
            return (FRACTION_TOLERANCE if self.tolerance is None else self.tolerance) + 1e-9
        floor = FLOORS[self.unit] if self.floor is None else self.floor
        if requested > 0.0:  # or nothing at all would be enough of a little
            floor = min(floor, requested / 2)
        return max((RELATIVE_TOLERANCE if self.tolerance is None else self.tolerance) * requested, floor)

    def is_change(self, before: DoseWindow, window: DoseWindow) -> bool:
        """Tell whether the asked value changed between two windows, or may have in a gap between them."""
        gap_s = window.start_s - (before.start_s + before.window_s)
        step = abs(window.requested - before.requested)
        return gap_s > GAP_MAX_S or step > self.margin(min(window.requested, before.requested))

    def stirred(self, windows: Sequence[DoseWindow]) -> set[float]:
        """Return the starts of the windows beside a move of others' use by more than the tolerance; it matters in host-total mode only."""
        if not self.host_total:
            return set()
        return {
            one.start_s
            for before, window in itertools.pairwise(windows)
            if before.own is not None and window.own is not None and abs(window.others - before.others) > self.margin(window.requested)
            for one in (before, window)
        }

    def is_hit(self, window: DoseWindow) -> bool:
        """Tell whether one window's achieved value is within the tolerance; NaN never is."""
        margin = self.margin(window.requested)
        if abs(window.achieved - window.requested) <= margin:
            return True
        return self.host_total and window.achieved > window.requested and self._others_excess(window, margin)

    def _others_excess(self, window: DoseWindow, margin: float) -> bool:
        """Tell whether an excess is others': our share did not pass what they left (not measured: taken as theirs)."""
        if window.own is None:
            return True
        return window.own <= max(window.requested - window.others, 0.0) + margin

    def settled(self, windows: Sequence[DoseWindow]) -> tuple[bool, str]:
        """Judge settled windows: 95 % of them must be hits."""
        hits = sum(map(self.is_hit, windows))
        if hits >= SHARE_MIN * len(windows):
            return True, f"{hits} of {len(windows)} settled windows within tolerance"
        worst = max((w for w in windows if not self.is_hit(w)), key=lambda w: _distance(w.achieved, w.requested))
        seen = f"asked {self._show(worst.requested)}, achieved {self._show(worst.achieved)} at {worst.start_s:.0f} s"
        return False, f"{hits} of {len(windows)} settled windows within tolerance; worst: {seen}"

    def moving(self, windows: Sequence[DoseWindow]) -> tuple[bool | None, str]:
        """Judge a shape that never rests by its means, where there are enough windows."""
        if len(windows) < MOVING_MIN:
            return None, f"no settled window and only {len(windows)} whole ones from {SETTLE_S:.0f} s on"
        asked, achieved = _mean([w.requested for w in windows]), _mean([w.achieved for w in windows])
        owns = [w.own for w in windows if w.own is not None]
        mean = DoseWindow(windows[0].start_s, asked, achieved, own=_mean(owns) if len(owns) == len(windows) else None)
        seen = f"mean asked {self._show(asked)}, achieved {self._show(achieved)} over {len(windows)} windows"
        return self.is_hit(mean), f"no settled window, judged by means: {seen}"

    def _show(self, value: float) -> str:
        if self.unit == "bytes":
            return f"{value / (1 << 20):.1f} MiB"
        return f"{value * 100:.1f}%" if self.unit == "fraction" else amount(value, self.unit)


def _distance(left: float, right: float) -> float:
    distance = abs(left - right)
    return distance if distance == distance else float("inf")  # noqa: PLR0124  # NaN is the farthest
