"""The pipeline with sinks that take, fail, hang and reject: what reaches them, what is counted, and who waits for whom."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from actors.breaker import BreakerPolicy
from actors.clock import VirtualClock
from actors.errors import InputError
from actors.metrics.registry import CATALOGUE, Kind
from cluster.exporters import port
from cluster.exporters.base import RejectedError, UnfinishedError
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.pressure import Pressure, PressurePolicy
from cluster.exporters.rules import parse
from cluster.metrics.windows import METRICS, metrics_batch
from tests.support.exporting import EAGER, FAST, balanced, beside_a_hung_sink, run, turns_until
from tests.support.sinks import GateSink, ListSink, numbered, numbers

FIVE = numbered(0, 5)


def test_rows_arrive_in_order_and_once() -> None:
    """What was exported is delivered by shutdown, and every sink is opened, flushed and closed."""

    async def test() -> None:
        pipeline, sinks = ExportPipeline(), [ListSink(), ListSink()]
        for at, sink in enumerate(sinks):
            pipeline.add(f"s{at}", sink, FAST)
        for first in range(0, 500, 7):
            await pipeline.export(numbered(first, 7))
        report = await pipeline.shutdown(60)
        for at, sink in enumerate(sinks):
            assert sink.numbers == list(range(504))
            assert balanced(report.exporters[f"s{at}"]).lane.delivered == 504
            assert (sink.calls[0], sink.calls[-2:]) == ("open", ["flush", "close"])

    run(test)


def test_failures_equal_the_plan() -> None:
    """attempts = successes + failures, each with its reason, exactly as planned; nothing is lost and nothing comes twice."""

    async def test() -> None:
        chance = random.Random(7)
        plan = [chance.choice([None, OSError("down"), TimeoutError("slow"), ConnectionError("gone")]) for _ in range(60)]
        sink = ListSink(plan)
        pipeline = ExportPipeline(seed=1)
        pipeline.add("a", sink, FAST, EAGER)
        for first in range(0, 300, 10):
            await pipeline.export(numbered(first, 10))
        lane = balanced((await pipeline.shutdown(30)).exporters["a"]).lane
        used = plan[: sink.calls.count("write")]
        for name in ("OSError", "TimeoutError", "ConnectionError"):
            assert lane.failures.get(name, 0) == sum(type(one).__name__ == name for one in used)
        assert lane.attempts == sink.calls.count("write") == lane.successes + sum(lane.failures.values())
        assert sink.numbers == list(range(300))

    run(test)


def test_a_rejected_batch_is_dropped_and_the_next_goes_on() -> None:
    """What a sink will never take is counted as rejected, and opens no breaker."""

    async def test() -> None:
        sink = ListSink([None, RejectedError("400"), None])
        pipeline = ExportPipeline()
        pipeline.add("a", sink, FAST, BreakerPolicy(threshold=1))
        for first in range(0, 30, 10):
            await pipeline.export(numbered(first, 10))
        lane = balanced((await pipeline.shutdown(60)).exporters["a"]).lane
        assert sink.numbers == [*range(10), *range(20, 30)]
        assert (lane.dropped, lane.breaker_opened) == ({"rejected": 10}, 0)

    run(test)


def test_rows_that_a_sink_loses_when_it_closes_are_not_called_delivered() -> None:
    """A file that cannot be finished takes its rows back from what was delivered."""

    class Losing(ListSink):
        def close(self) -> None:
            raise UnfinishedError(20, "disk full")

    async def test() -> None:
        pipeline = ExportPipeline()
        pipeline.add("a", Losing(), FAST)
        await pipeline.export(numbered(0, 30))
        lane = balanced((await pipeline.shutdown(60)).exporters["a"]).lane
        assert (lane.delivered, lane.dropped, lane.last_error) == (10, {"unfinished": 20}, "disk full")

    run(test)


@pytest.mark.parametrize("overflow", [one for one in Overflow if one not in (Overflow.BLOCK, Overflow.SPILL)])
def test_a_hung_sink_sheds_by_its_policy_and_the_other_loses_nothing(overflow: Overflow) -> None:
    """Under overload each policy keeps its bound and its count; export never waits and the fast sink gets all."""

    async def test() -> None:
        pipeline, slow, fast, state = await beside_a_hung_sink(overflow)
        assert sum(state.dropped.values()) == 900 if overflow is not Overflow.SAMPLE else state.dropped["sampled"] > 0
        slow.gate.set()
        lane = balanced((await pipeline.shutdown(60)).exporters["slow"]).lane
        assert fast.numbers == list(range(1000))
        assert len(slow.numbers) == lane.delivered == 1000 - sum(lane.dropped.values())
        kept = {
            Overflow.DROP_NEWEST: list(range(100)),
            Overflow.DROP_OLDEST: [*range(10), *range(910, 1000)],
        }
        assert slow.numbers == kept.get(overflow, slow.numbers)

    run(test)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(Overflow.BLOCK, queue_rows=40, batch_rows=10, batch_age_s=0.001),
        Limits(Overflow.BLOCK, queue_bytes=8 * FIVE.nbytes, batch_bytes=2 * FIVE.nbytes, batch_age_s=0.001),
    ],
    ids=["rows", "bytes"],
)
def test_a_full_lane_makes_producers_wait_in_turn(limits: Limits) -> None:
    """16 producers against one slow sink: all rows arrive, shares are even, the queue keeps its bound."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, limits)
        done = [0] * 16

        async def produce(at: int) -> None:
            for _ in range(20):
                await pipeline.export(FIVE)
                done[at] += 5

        tasks = [asyncio.create_task(produce(at)) for at in range(16)]
        await turns_until(lambda: pipeline.report().exporters["a"].waiting == 16 * 5)
        assert sum(done) == 40
        sink.gate.set()
        while sum(done) < 800:
            await asyncio.sleep(0)
            state = pipeline.report().exporters["a"].lane
            assert state.queued <= 40
            assert state.queued_bytes <= limits.queue_bytes
            assert max(done) - min(done) <= 2 * 5, "nobody is let in twice before another once"
            assert sum(done) < 16 * 20 or max(done) <= 2 * min(done)
        await asyncio.gather(*tasks)
        lane = balanced((await pipeline.shutdown(60)).exporters["a"]).lane
        assert (lane.produced, lane.delivered) == (1600, 1600)

    run(test)


def test_a_producer_waits_no_longer_than_its_deadline() -> None:
    """At the deadline what did not fit is dropped and counted; a cancelled producer's rows are counted too."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, Limits(Overflow.BLOCK, queue_rows=20, batch_rows=10, batch_age_s=0.001))
        await pipeline.export(numbered(0, 20))
        await pipeline.export(numbered(20, 25), timeout_s=0.001)
        waiting = asyncio.create_task(pipeline.export(numbered(45, 7)))
        await turns_until(lambda: pipeline.report().exporters["a"].waiting > 0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        state = balanced(pipeline.report().exporters["a"])
        assert (state.lane.dropped, state.waiting) == ({"deadline": 25, "cancelled": 7}, 0)
        sink.gate.set()
        assert (await pipeline.shutdown(60)).exporters["a"].lane.delivered == 20

    run(test)


def test_a_hung_sink_does_not_hold_up_the_end() -> None:
    """Shutdown returns within its time plus half a second, and says what was not delivered."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, FAST)
        await pipeline.export(numbered(0, 100))
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane = balanced((await pipeline.shutdown(0.05)).exporters["a"]).lane
        assert loop.time() - began < 30, "it would hang for ever"
        assert (lane.delivered, lane.dropped, lane.queued) == (0, {"shutdown": 100}, 0)
        sink.gate.set()

    run(test)


def test_after_the_end_nothing_is_taken() -> None:
    """A pipeline that was shut down refuses rows and exporters."""

    async def test() -> None:
        pipeline = ExportPipeline()
        await pipeline.shutdown()
        with pytest.raises(InputError, match="shut down"):
            await pipeline.export(numbered(0, 1))
        with pytest.raises(InputError, match="shut down"):
            pipeline.add("a", ListSink())

    run(test)


def test_destinations_come_go_and_change_while_rows_flow() -> None:
    """Adding, removing and changing limits loses and repeats nothing; each change stands in the audit."""

    async def test() -> None:
        first, second = ListSink(), ListSink()
        pipeline = ExportPipeline()
        pipeline.add("first", first, FAST)
        with pytest.raises(InputError, match="already"):
            pipeline.add("first", second)
        await pipeline.export(numbered(0, 50))
        pipeline.add("second", second, FAST)
        pipeline.configure("first", Limits(queue_rows=600, batch_rows=3, batch_age_s=0.001))
        with pytest.raises(InputError, match="at least 1"):
            pipeline.configure("first", Limits(queue_rows=0))
        await pipeline.export(numbered(50, 50))
        assert (await pipeline.remove("first", 60)).lane.delivered == 100
        await pipeline.export(numbered(100, 50))
        with pytest.raises(InputError, match="no exporter 'first'"):
            pipeline.configure("first")
        await pipeline.shutdown(60)
        assert (first.numbers, second.numbers) == (list(range(100)), list(range(50, 150)))
        assert max(batch.num_rows for batch in first.taken[-10:]) <= 3
        assert [event.what.split(":")[0] for event in pipeline.audit] == [
            "added first",
            "added second",
            "configured first",
            "removed first",
            "removed second",
        ]

    run(test)


def test_a_rule_swap_loses_and_repeats_nothing() -> None:
    """Routes change between two batches: each row goes by exactly one table; open windows come out; bad rules change nothing."""

    async def test() -> None:
        sinks = {"a": ListSink(), "b": ListSink()}
        pipeline = ExportPipeline()
        for name, sink in sinks.items():
            pipeline.add(name, sink, FAST)
        await pipeline.set_rules(parse({"routes": [{"to": ["a"]}], "chains": {"a": [{"when": {"metric": "probe.*"}, "every_s": 60}]}}))
        await pipeline.export(numbered(0, 10))
        await pipeline.export(numbered(100, 4, metric="probe.requests"))
        with pytest.raises(InputError, match="names the exporter 'c'"):
            await pipeline.set_rules(parse({"routes": [{"to": ["c"]}]}))
        assert pipeline.report().exporters["a"].held == 4
        await pipeline.set_rules(parse({"routes": [{"when": {"metric": "host.*"}, "to": ["b"]}]}))
        await pipeline.export(numbered(10, 10))
        await pipeline.export(numbered(104, 6, metric="probe.requests"))
        report = await pipeline.shutdown(60)
        assert (report.received, report.unrouted) == (30, 6)
        assert [(row.sum, row.last) for row in pipeline.self_metrics() if row.metric == "export.unrouted"] == [(6, 6)]
        assert sinks["a"].numbers == [*range(10), 103]
        assert sinks["b"].numbers == list(range(10, 20))
        assert balanced(report.exporters["a"]).chain.folded == 4

    run(test)


@pytest.mark.parametrize("document", [{"routes": [{"to": ["a"]}]}, {"default": ["a"]}, {"routes": [{"to": []}]}])
def test_rows_for_an_exporter_that_was_removed_are_unrouted(document: dict[str, Any]) -> None:
    """Rules that name it stay in force: its rows go nowhere and are counted as such, from the moment of the removal."""

    async def test() -> None:
        pipeline, hung, other = ExportPipeline(), GateSink(), ListSink()
        pipeline.add("a", hung, FAST)
        pipeline.add("b", other, FAST)
        await pipeline.set_rules(parse(document))
        await pipeline.export(numbered(0, 10))
        before = pipeline.report().unrouted
        removing = asyncio.create_task(pipeline.remove("a"))
        await asyncio.sleep(0)
        await pipeline.export(numbered(10, 5))
        hung.gate.set()
        await removing
        await pipeline.export(numbered(15, 5))
        report = await pipeline.shutdown(60)
        assert (report.received, report.unrouted - before, other.numbers) == (20, 10, [])
        assert balanced(report.exporters["a"]).lane.delivered == 10 - before

    run(test)


def test_a_drain_ends_when_the_end_overtakes_it() -> None:
    """Who drains a hung destination is let go by its removal, and by one that died; a drain after the end returns at once."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, FAST)
        await pipeline.export(numbered(0, 10))
        await turns_until(sink.entered.is_set)
        draining = asyncio.create_task(pipeline.drain())
        await asyncio.sleep(0)
        leaving = pipeline._ports["a"]
        await pipeline.remove("a", 0.01)
        await draining
        await leaving.drain()
        sink.gate.set()
        await pipeline.shutdown()

    run(test)


def test_producers_are_let_go_when_a_destination_dies() -> None:
    """A bug that ends its task leaves no producer waiting for ever: rows are refused and counted, and the bug comes out at the end."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, Limits(Overflow.BLOCK, queue_rows=20, batch_rows=10, batch_age_s=0.001))
        await pipeline.export(numbered(0, 20))
        producing = asyncio.create_task(pipeline.export(numbered(20, 15)))
        draining = asyncio.create_task(pipeline.drain())
        await turns_until(lambda: pipeline.report().exporters["a"].waiting == 15)

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        pipeline._ports["a"].lane.succeeded = broken  # type: ignore[method-assign]
        sink.gate.set()
        await producing
        await draining
        await pipeline.export(numbered(35, 7))
        state = balanced(pipeline.report().exporters["a"])
        assert (state.waiting, state.lane.dropped, state.health.ok) == (0, {"shutdown": 22}, False)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await pipeline.shutdown()
        assert sink.calls[-1] == "close"
        assert balanced(pipeline.report().exporters["a"]).lane.dropped == {"shutdown": 42}

    run(test)


def test_a_cancelled_end_goes_on_and_a_second_one_waits_for_it() -> None:
    """Who is cancelled while it removes or shuts down loses no destination; the next call waits for the same end, and may hurry it."""

    async def test() -> None:
        pipeline, sinks = ExportPipeline(), {"a": GateSink(), "b": GateSink()}
        for name, sink in sinks.items():
            pipeline.add(name, sink, FAST)
        await pipeline.export(numbered(0, 10))
        for ending in (pipeline.remove("a", 60), pipeline.shutdown(60)):
            task: asyncio.Task[Any] = asyncio.create_task(ending)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert {name: state.lane.queued for name, state in pipeline.report().exporters.items()} == {"a": 10, "b": 10}
        sinks["a"].gate.set()
        second = asyncio.create_task(pipeline.shutdown(60))
        await turns_until(lambda: "close" in sinks["a"].calls)
        report = await pipeline.shutdown(0.01)
        assert (await second).exporters["a"].lane.delivered == 10
        assert balanced(report.exporters["b"]).lane.dropped == {"shutdown": 10}
        assert [sink.calls.count("close") for sink in sinks.values()] == [1, 0]
        sinks["b"].gate.set()

    run(test)


def test_to_spill_needs_a_spill() -> None:
    """An exporter that has none is refused, when it is added and when it is changed, and nothing changes."""

    async def test() -> None:
        pipeline = ExportPipeline()
        for limits, ahead in ((Limits(Overflow.SPILL), False), (Limits(), True)):
            with pytest.raises(InputError, match="without a spill"):
                pipeline.add("a", ListSink(), limits, write_ahead=ahead)
        pipeline.add("a", ListSink(), FAST)
        with pytest.raises(InputError, match="without a spill"):
            pipeline.configure("a", Limits(Overflow.SPILL))
        pipeline.memory(0.01)
        assert pipeline._ports["a"].limits == FAST
        await pipeline.shutdown()

    run(test)


@pytest.mark.parametrize("exports", [20, pytest.param(4000, marks=pytest.mark.soak)], ids=["short", "100000-rows-each"])
def test_64_producers_are_counted_exactly(exports: int) -> None:
    """Rows and attempts of 64 producers into a flapping sink with a small queue add up, at every look in between."""

    async def test() -> None:
        chance = random.Random(3)
        sink = ListSink(chance.choice([None, None, None, OSError("flap"), RejectedError("no")]) for _ in range(10**9))
        pipeline = ExportPipeline(seed=2)
        pipeline.add("a", sink, Limits(queue_rows=300, batch_rows=50, batch_age_s=0.001), EAGER)
        batch = numbered(0, 25)

        async def produce() -> None:
            for _ in range(exports):
                await pipeline.export(batch)
                told = balanced(pipeline.report().exporters["a"]).lane
                assert 0 <= told.attempts - told.successes - sum(told.failures.values()) <= 1, "one may be under way"
                await asyncio.sleep(0)

        await asyncio.gather(*(produce() for _ in range(64)))
        lane = balanced((await pipeline.shutdown(30)).exporters["a"]).lane
        assert lane.produced == 64 * exports * 25 == lane.delivered + sum(lane.dropped.values())
        assert sum(taken.num_rows for taken in sink.taken) == lane.delivered
        assert lane.attempts == lane.successes + sum(lane.failures.values()) == sink.calls.count("write")
        assert {"OSError", "rejected"} == set(lane.failures)
        assert lane.dropped["rejected"] > 0 < lane.dropped["newest"]

    run(test, within_s=3 * exports)


def test_other_columns_are_refused() -> None:
    """Rows without the contract's columns are an error of the caller, and nothing is counted."""

    async def test() -> None:
        pipeline = ExportPipeline()
        pipeline.add("a", ListSink())
        with pytest.raises(InputError, match="expected"):
            await pipeline.export(numbered(0, 3).select(["time", "metric"]))
        assert (await pipeline.shutdown()).received == 0

    run(test)


def test_a_stream_is_taken_one_batch_at_a_time() -> None:
    """A long stream into a slow sink that blocks is never more than one batch ahead; cancelling it leaves the counts exact."""

    async def test() -> None:
        sink = GateSink()
        pipeline = ExportPipeline()
        pipeline.add("a", sink, Limits(Overflow.BLOCK, queue_rows=20, batch_rows=10, batch_age_s=0.001))
        given = 0

        async def source() -> AsyncIterator[Any]:
            nonlocal given
            for first in range(0, 1000, 10):
                given += 10
                yield numbered(first, 10)

        task = asyncio.create_task(pipeline.export_stream(source()))
        await turns_until(lambda: pipeline.report().exporters["a"].waiting > 0)
        assert given == 30, "the queue's bound and the one in hand"
        sink.gate.set()
        assert await task == 1000
        await pipeline.shutdown()
        assert sink.numbers == list(range(1000))

    run(test)


def test_its_own_metrics_are_in_the_catalogue_and_true() -> None:
    """Queue, deliveries, failures and drops of the report come as rows of `export.*`; counters hold what came since the last time."""

    async def test() -> None:
        pipeline = ExportPipeline(seed=0)
        sink = ListSink([None, OSError("x")])
        pipeline.add("a", sink, FAST, EAGER)
        await pipeline.export(numbered(0, 10))
        await pipeline.drain()
        first = {(row.metric, row.labels): row for row in pipeline.self_metrics()}
        await pipeline.export(numbered(10, 10))
        await pipeline.drain()
        rows = pipeline.self_metrics()
        second = {(row.metric, row.labels): row for row in rows}
        at = (("exporter", "a"),)
        assert (first["export.delivered", at].sum, second["export.delivered", at].sum, second["export.delivered", at].last) == (10, 10, 20)
        assert second["export.failures", (*at, ("reason", "OSError"))].sum == 1
        assert second["export.batches", at].sum == 2
        sizes = [found["export.delivered.size", at].sum for found in (first, second)]
        assert sizes == [numbered(start, 10).nbytes for start in (0, 10)]
        assert second["export.delivered.size", at].last == sum(sizes) == pipeline.report().exporters["a"].lane.delivered_bytes
        assert [found["export.unrouted", ()].sum for found in (first, second)] == [0, 0]
        assert (first["export.write", at].count, second["export.write", at].count) == (1, 2)
        assert second["export.queue", at].last == 0
        for row in rows:
            metric = CATALOGUE[row.metric]
            assert (row.kind, row.unit) == (metric.kind, metric.unit)
            assert metric.checked_labels(dict(row.labels)) == row.labels
        assert metrics_batch(rows, node="n1", start_ns=0, window_s=1.0).schema == METRICS
        await pipeline.shutdown()

    run(test)


def test_its_own_metrics_hold_over_a_removal() -> None:
    """Counters of a destination that ends, and of a namesake that comes after it, add up to what was delivered; none is negative."""

    async def test() -> None:
        pipeline = ExportPipeline()
        told = 0.0

        def look() -> float:
            found = [row for row in pipeline.self_metrics() if row.labels == (("exporter", "a"),)]
            assert min((row.sum for row in found if row.kind is Kind.COUNTER), default=0) >= 0
            return sum(row.sum for row in found if row.metric == "export.delivered")

        first = GateSink()
        pipeline.add("a", first, FAST)
        first.gate.set()
        await pipeline.export(numbered(0, 10))
        await pipeline.drain()
        told += look()
        first.gate.clear()
        await pipeline.export(numbered(10, 10))
        removing = asyncio.create_task(pipeline.remove("a", 60))
        await asyncio.sleep(0)
        told += look()
        with pytest.raises(InputError, match="already"):
            pipeline.add("a", ListSink(), FAST)
        first.gate.set()
        await removing
        rows = pipeline.self_metrics()
        told += sum(row.sum for row in rows if row.metric == "export.delivered")
        assert [row.count for row in rows if row.metric == "export.write"] == [1], "the last calls are told too"
        pipeline.add("a", ListSink(), FAST)
        told += look()
        await pipeline.export(numbered(20, 5))
        await pipeline.drain()
        told += look()
        assert told == 25
        await pipeline.shutdown(60)

    run(test)


def test_health_follows_breaker_and_sink() -> None:
    """A destination behind an open breaker is not ok and says why; the others are."""

    async def test() -> None:
        bad = ListSink(OSError("refused") for _ in range(1000))
        pipeline = ExportPipeline()
        pipeline.add("bad", bad, FAST, BreakerPolicy(threshold=2, backoff_s=0.0001, backoff_s_max=0.0001))
        pipeline.add("good", ListSink(), FAST)
        await pipeline.export(numbered(0, 5))
        await turns_until(lambda: pipeline.report().exporters["bad"].lane.breaker_opened > 0)
        health = pipeline.health()
        assert not health["bad"].ok
        assert "refused" in health["bad"].detail
        assert health["good"].ok
        told = pipeline.report().exporters["bad"].to_json()
        assert (told["breaker"], told["queued_rows"], told["ok"]) == ("open", 5, False)
        await pipeline.shutdown(0.01)

    run(test)


def test_numbers_helper_sees_what_was_taken() -> None:
    """The tests' own reading of rows is right."""
    assert numbers([numbered(3, 2), numbered(9, 1)]) == [3, 4, 9]


def test_queues_shrink_while_memory_is_short() -> None:
    """Under pressure the bounds fall at once, nothing that waits is dropped for it, and they come back by doubling when it has held."""

    async def test() -> None:
        clock, sink = VirtualClock(), GateSink()
        pipeline = ExportPipeline(clock=clock)
        pipeline.add("a", sink, Limits(queue_rows=160, batch_rows=16))
        await pipeline.export(numbered(0, 160))
        assert pipeline.memory(0.5) == 1.0
        assert pipeline.memory(0.04) == 1 / 16
        await pipeline.export(numbered(160, 10))
        state = balanced(pipeline.report().exporters["a"]).lane
        assert (state.queued, state.dropped) == (160, {"newest": 10})
        sink.gate.set()
        await pipeline.drain()
        sink.gate.clear()
        sink.entered.clear()
        await pipeline.export(numbered(170, 10))
        await pipeline.export(numbered(180, 10))
        state = balanced(pipeline.report().exporters["a"]).lane
        assert (state.queued, state.dropped) == (10, {"newest": 20}), "the bound of 160 is one of 10"
        sink.gate.set()
        shares = []
        for _ in range(40):
            clock.advance(1.0)
            shares.append(pipeline.memory(0.5))
        assert shares == sorted(shares)
        assert set(shares) == {1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0}
        assert shares.index(1 / 8) == 5
        assert pipeline.memory(float("nan")) == 1 / 16, "no news is bad news"
        assert sum(event.what.startswith("memory") for event in pipeline.audit) == 6
        await pipeline.shutdown()

    run(test)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 20)), max_size=30))
def test_pressure_never_gives_more_than_the_memory_allows(looks: list[tuple[float, float]]) -> None:
    """Whatever the memory does, the share in force is at most the wanted one and at least a sixteenth."""
    policy, pressure, now_ns = PressurePolicy(), Pressure(), 0
    for available, wait_s in looks:
        now_ns += round(wait_s * 1e9)
        pressure = pressure.look(available, now_ns, policy)
        assert 1 / 16 <= pressure.share <= policy.wanted(available)


@pytest.mark.parametrize(("easy", "short"), [(0.1, 0.2), (0.2, 0.2), (1.1, 0.1), (0.2, -0.1)])
def test_pressure_policies_are_checked(easy: float, short: float) -> None:
    """Shares that are no shares, or in the wrong order, are refused."""
    with pytest.raises(InputError, match="short"):
        PressurePolicy(easy, short)


def test_the_owner_has_no_lock_and_polls_nothing() -> None:
    """Pipeline, port and lane hold no lock of any kind; they, and what feeds them in a run, sleep only to yield.

    Memory alone is looked at from time to time: nobody tells when it becomes short.
    """
    allowed = {"pipeline.py": ["asyncio.sleep(0)"], "run_exports.py": ["asyncio.sleep(MEMORY_S)"]}
    folder = Path(port.__file__).parent
    own = [folder / name for name in ("pipeline.py", "port.py", "lane.py")]
    own.append(folder.parents[1] / "actors" / "breaker.py")
    for path in [*own, folder.parent / "export_feed.py", folder.parent / "run_exports.py"]:
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert [call for call in calls if "sleep(" in call and "await" not in call] == allowed.get(path.name, [])
        if path in own:
            assert not [call for call in calls if re.search(r"\b(R?Lock|Semaphore|Condition)\(", call)]
            assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and node.names[0].name == "threading"]
