"""From a load's recorder to live subscribers: every sample with its name, once, or counted where it was dropped."""

from __future__ import annotations

import asyncio

import numpy as np

from actors.clock import VirtualClock
from actors.metrics import Recorder, Segment
from actors.metrics.policy import Mode, RecordingPolicy, Sampling
from actors.metrics.ring import Consumer, Ring
from actors.metrics.sampling import Probability
from cluster.metrics.raw_samples import LiveSample, SampleReader
from cluster.metrics.subscription import Feed


def test_samples_reach_their_subscribers_by_name() -> None:
    """Recorded in a load, pushed through the ring, read by the agent, given to two subscribers: names, values, weights, times."""
    segment, ring, clock = Segment.create(), Ring.create(64, 3), VirtualClock()
    segment.publish(RecordingPolicy(mode=Mode.DETAILED).to_json(), ring.path)
    recorder, reader = Recorder(Segment.open(segment.path), clock), SampleReader(segment, Consumer(ring), "op", "ramp")
    recorder.histogram("load.slice").record(0.25)
    recorder.tick()
    first = reader.read()
    clock.advance(1.0)
    recorder.counter("probe.failures", probe="x", reason="y").record(2.0)
    recorder.histogram("load.slice").record_weighted(0.5, 3)
    recorder.tick()
    samples = [*first, *reader.read()]
    begun = VirtualClock().boot_ns()
    assert samples == [
        LiveSample("load.slice", "op", "ramp", (), 0.25, 1, begun),
        LiveSample("load.slice", "op", "ramp", (), 0.5, 3, begun + 10**9),
        LiveSample("probe.failures", "op", "ramp", (("probe", "x"), ("reason", "y")), 2.0, 1, begun + 10**9),
    ]

    async def main() -> None:
        feed: Feed[LiveSample] = Feed()
        both = [feed.subscribe(), feed.subscribe(bound=1)]
        feed.publish(samples)
        feed.close()
        assert [[sample async for sample in one] for one in both] == [samples, samples[-1:]]
        assert [one.counts().dropped for one in both] == [0, 2]

    asyncio.run(main())


def test_read_and_dropped_are_what_was_recorded() -> None:
    """A reader that comes late, with a limit: weights read + samples dropped = samples recorded, to the last one."""
    segment, ring = Segment.create(), Ring.create(256, 3)
    rules = (Sampling("load.operations", Probability(0.1)),)
    segment.publish(RecordingPolicy(mode=Mode.DETAILED, sampling=rules).to_json(), ring.path)
    recorder, reader = Recorder(Segment.open(segment.path), VirtualClock()), SampleReader(segment, Consumer(ring), "op", "")
    weights = {"load.slice": 0, "load.operations": 0}
    for turn in range(20):
        recorder.histogram("load.slice").record_many(np.ones(100))
        recorder.counter("load.operations").record_many(np.ones(100))
        recorder.tick()
        if turn % 5 == 4:
            for sample in reader.read(limit=200):
                weights[sample.metric] += sample.weight
    recorder.close()
    while samples := reader.read(limit=7):
        for sample in samples:
            weights[sample.metric] += sample.weight
    assert reader.dropped > 0
    lost = 4000 - sum(weights.values())
    assert reader.dropped <= lost <= reader.dropped * 10  # a dropped sample of weight 10 stands for ten
    assert ring.state().offered == 2000 + 200
