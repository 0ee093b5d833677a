"""What counts as held together: histories of two nodes and three things, sampled every tenth of a second for ten seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.together import Sample, assert_together

TARGETS = {"descriptors": range(198, 203), "maps": range(495, 506), "disk": range(990, 1011)}
WHOLE = {"descriptors": 200, "maps": 500, "disk": 1000}
FOR_S = 10.0
TIMES = [number / 10 for number in range(101)]


def history(is_held: Callable[[str, float], bool], times: list[float] = TIMES) -> list[Sample]:
    return [Sample(at_s, {what: [whole * is_held(what, at_s)] * 2 for what, whole in WHOLE.items()}) for at_s in times]


def always(*_: object) -> bool:
    return True


def in_turn(what: str, at_s: float) -> bool:
    """Be held like one after the other: each for the same time, and no two at once."""
    return list(WHOLE).index(what) == int(at_s / FOR_S * len(WHOLE))


def judge(samples: list[Sample]) -> None:
    assert_together(samples, TARGETS, 2, FOR_S)


def test_all_that_is_held_the_whole_time_is_together() -> None:
    """With a sample every tenth of a second, and with some of them late."""
    judge(history(always))
    judge(history(always, [at_s for at_s in TIMES if not 3.05 < at_s < 3.45]))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        pytest.param(history(in_turn), "not all at target in 101 of 101", id="one-after-the-other"),
        pytest.param(history(lambda what, at_s: what != "maps" or at_s < 9.95), "not all at target in 1 of", id="one-ends-too-early"),
        pytest.param(history(lambda what, at_s: what != "disk" or at_s >= 0.1), "not all at target in 1 of", id="one-comes-too-late"),
        pytest.param(history(lambda what, at_s: what != "maps" or at_s != 5.0), "not all at target in 1 of", id="one-is-away-for-a-moment"),
        pytest.param([Sample(at_s, {"maps": [500, 500], "disk": [1000, 1000]}) for at_s in TIMES], "not all", id="one-was-never-there"),
        pytest.param([Sample(one.at_s, {**one.counted, "disk": [1000]}) for one in history(always)], "not all", id="on-one-node-only"),
        pytest.param(history(always, [at_s for at_s in TIMES if not 3.05 < at_s < 3.65]), "nobody looked for 0.70 s", id="a-gap"),
        pytest.param(history(always, TIMES[::2]), "51 samples", id="half-as-many-samples"),
        pytest.param(history(always, TIMES[:95]), "samples of 9.40 s only", id="too-short"),
        pytest.param([], "0 samples", id="nobody-looked"),
    ],
)
def test_anything_less_is_not(samples: list[Sample], words: str) -> None:
    """Holds in turn, one that is missing anywhere at any time, and times at which nobody looked."""
    with pytest.raises(AssertionError, match=words):
        judge(samples)
