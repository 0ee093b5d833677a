"""A release in equal steps, as samples from outside show it."""

from __future__ import annotations

from collections.abc import Sequence

Sample = tuple[float, float]  # when it was counted, in seconds, and what
ON_A_LEVEL = 0.9  # of the samples: the others were taken while a step was being given back


def assert_stairs(samples: Sequence[Sample], whole: float, steps: int, interval_s: float, end_s: float, margin: float) -> None:
    """Raise `AssertionError` unless `whole` is given back in equal steps, one each interval from the planned end on.

    Nearly all samples from then on lie within `margin` of a level, and the levels come in order. Each step falls at its time: between
    the last sample of a level and the first one below it, give or take a tenth of what the whole release is to take.
    """
    levels, slack_s = [whole * (steps - done) / steps for done in range(steps + 1)], 0.1 * steps * interval_s
    seen = [(at_s, count) for at_s, count in samples if end_s - slack_s <= at_s < end_s + steps * interval_s]
    landed = [(at_s, level) for at_s, count in seen for level in levels if abs(count - level) <= margin]
    off = [(round(at_s - end_s, 3), count) for at_s, count in seen if min(abs(count - level) for level in levels) > margin]
    assert len(off) <= (1 - ON_A_LEVEL) * len(seen), f"of {len(seen)} samples {len(off)} are on none of {levels}: {off}"
    order = [level for at, (_, level) in enumerate(landed) if at == 0 or landed[at - 1][1] != level]
    assert order in (levels[:-1], levels), f"{order}, not {levels}"  # the last one may be seen to fall, or not
    for done, level in enumerate(levels[: steps - 1], 1):
        due_s, before_s = end_s + done * interval_s, max(at_s for at_s, seen_level in landed if seen_level == level)
        after_s = min(at_s for at_s, count in seen if count < level - margin)
        told = f"step {done} was due at {due_s - end_s:.3f} s and fell between {before_s - end_s:.3f} and {after_s - end_s:.3f} s"
        assert before_s <= due_s + slack_s, told
        assert after_s >= due_s - slack_s, told
