"""Hot metrics through a recorder and its ring: what leaves keeps to its rate, and what left tells of all there was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from actors.clock import SECOND_NS, VirtualClock
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Mode, RecordingPolicy, Sampling
from actors.metrics.raw import columns
from actors.metrics.ring import Consumer, Ring
from actors.metrics.sampling import Adaptive, FirstN, Policy, Probability, RateLimit

TICK_S = 0.1
FAILURES = 3  # a tick


class Hot:
    """A load that records, and an agent that drains its ring; both on virtual time."""

    def __init__(self, policy: Policy, ring: int) -> None:
        self.clock, self.segment = VirtualClock(), Segment.create()
        self.ring = Ring.create(ring, 3)
        self.segment.publish(RecordingPolicy(mode=Mode.DETAILED, sampling=(Sampling("*", policy),)).to_json(), self.ring.path)
        self.recorder, self.consumer = Recorder(Segment.open(self.segment.path), self.clock, seed=3), Consumer(self.ring)
        self.slices = self.recorder.histogram("load.slice")
        self.failures = self.recorder.counter("probe.failures", probe="x", reason="failed")
        self.chance = np.random.default_rng(5)
        self.left: list[np.ndarray] = []
        self.count, self.sum, self.ticks = 0, 0.0, 0

    def load(self, seconds: float, per_second: int) -> None:
        """Record at a rate for so long; each tick is drained at once."""
        for _ in range(round(seconds / TICK_S)):
            values = self.chance.uniform(0.9, 1.1, round(per_second * TICK_S))
            self.count, self.sum, self.ticks = self.count + values.size, self.sum + float(values.sum()), self.ticks + 1
            self.slices.record_many(values)
            self.failures.record_many(np.ones(FAILURES))
            self.clock.advance(TICK_S)
            self.recorder.tick()
            self.left.append(self.consumer.drain().copy())

    def samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Close, and return values, weights and times of the slices that left; every failure has left whole."""
        self.recorder.close()
        values, rows, weights, times = columns(np.concatenate([*self.left, self.consumer.drain()], axis=1))
        assert self.ring.state().dropped == 0
        assert weights[rows == 1].tolist() == [1] * (FAILURES * self.ticks)
        assert self.segment.read(1).count == FAILURES * self.ticks
        return values[rows == 0], weights[rows == 0], times[rows == 0]


def test_a_hundredfold_burst_is_thinned_to_its_budget_and_forgotten() -> None:
    """5 s at 100 times the rate: no second keeps more than the budget, the ring drops none, the weighted count is right, and the
    rate of sampling is 1 again within 10 s."""
    budget = 1_000
    hot = Hot(Adaptive(budget), ring=2_048)
    hot.load(2, 500)
    begun_ns = hot.clock.boot_ns()
    hot.load(5, 50_000)
    ended_ns = hot.clock.boot_ns()
    hot.load(12, 500)
    values, weights, times = hot.samples()
    by_second = Counter(((times - 1) // SECOND_NS).tolist())
    assert max(by_second.values()) <= budget * 1.1, "a stamp is that of its drain, up to a tenth of a second late"
    assert ((times > begun_ns) & (times <= ended_ns)).sum() <= 5.1 * budget
    assert abs(weights.sum() - hot.count) <= 0.02 * hot.count
    assert (values * weights).sum() == pytest.approx(hot.sum, rel=0.02)
    assert max(weights) > 1
    late = weights[times > ended_ns + 10 * SECOND_NS]
    assert late.tolist() == [1] * 1_000


@pytest.mark.parametrize(
    ("policy", "most"), [(Probability(0.01), 1_000), (RateLimit(1_000), 1_000), (Adaptive(1_000), 1_000), (FirstN(10), 11)], ids=repr
)
def test_hot_operations_keep_to_their_rate_and_totals_stay_right(policy: Policy, most: int) -> None:
    """100,000 operations/s for 3 s: what leaves in a second keeps to the rate, count and sum are right within 1 %, failures whole."""
    hot = Hot(policy, ring=1 << 14)
    for _ in range(3):
        hot.load(1, 100_000)
        hot.segment.next_window()
    values, weights, _ = hot.samples()
    assert values.size <= 3 * most + 1
    assert weights.sum() == hot.segment.read(0).count == hot.count == 300_000
    assert hot.segment.read(0).sum == pytest.approx(hot.sum)
    if not isinstance(policy, FirstN):  # the rest of a window is one sample there, by its rule
        assert (values * weights).sum() == pytest.approx(hot.sum, rel=0.01)
