"""Exporters that are watched and changed while rows flow: pauses, settings, figures, health, and callers that are cancelled."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.breaker import BreakerPolicy
from actors.clock import SystemClock, VirtualClock
from actors.errors import InputError, RefusedError
from actors.metrics import histogram
from actors.metrics.registry import Kind
from cluster import run_exports
from cluster.exporters.base import RejectedError
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.rules import parse
from cluster.exporters.spill import SpillLog
from cluster.exporters.wal import WriteAheadLog
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.store import read_run
from cluster.run_exports import TICK_S, RunExports
from scenarios.exporters import Breaker, Destination, Exporters, Route, When
from tests.support.exporting import EAGER, FAST, RUN, balanced, beside_a_hung_sink, run, turns_until, write_manifest
from tests.support.sinks import FlakySink, GateSink, ListSink, numbered
from tests.support.waiting import until
from tests.support.windows import record

CLOCK = SystemClock()


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Aggregator]:
    made = Aggregator(RUN, tmp_path / "state" / "runs" / RUN, CLOCK)
    yield made
    made.close()


# pauses


def test_a_paused_destination_is_not_called_and_loses_nothing_for_it() -> None:
    """Rows wait within its bounds; resumed, it gets them in order; a drain and the end send them all the same."""

    async def test() -> None:
        sinks = {"a": ListSink(), "b": ListSink()}
        pipeline = ExportPipeline()
        pipeline.add("a", sinks["a"], Limits(queue_rows=100, batch_rows=10, batch_age_s=0.001))
        pipeline.add("b", sinks["b"], FAST)
        with pytest.raises(InputError, match="no exporter 'c'"):
            pipeline.pause("c")
        pipeline.pause("a")
        for first in range(0, 120, 10):
            await pipeline.export(numbered(first, 10))
        await turns_until(lambda: len(sinks["b"].numbers) == 120)
        told = balanced(pipeline.report().exporters["a"])
        assert (sinks["a"].calls, told.lane.queued, told.lane.dropped, told.is_paused) == ([], 100, {"newest": 20}, True)
        assert (told.health.ok, told.health.detail) == (True, "paused")
        pipeline.pause("a", paused=False)
        await turns_until(lambda: len(sinks["a"].numbers) == 100)
        assert not pipeline.report().exporters["a"].is_paused
        pipeline.pause("a")
        await pipeline.export(numbered(200, 5))
        await pipeline.drain()
        await pipeline.export(numbered(205, 5))
        await pipeline.shutdown(60)
        assert sinks["a"].numbers == [*range(100), *range(200, 210)]
        assert [one.what for one in pipeline.audit if "a" in one.what.split()[1:]][1:4] == ["paused a", "resumed a", "paused a"]

    run(test)


# changes of a run


def two(**more: Any) -> Exporters:
    return Exporters(destinations=(Destination("jsonl", "a.jsonl", name="a"), Destination("jsonl", "b.jsonl", name="b")), **more)


def numbers_in(path: Path) -> list[tuple[str, float]]:
    """Return (node, number) of each record in a file, by its counter."""
    rows = map(json.loads, path.read_text().splitlines())
    return [(row["node"], row["sum"]) for row in rows if row["metric"] == "probe.requests"]


def test_a_run_whose_routes_change_loses_and_repeats_nothing(core: Aggregator) -> None:
    """While two nodes push, routes are swapped again and again: each record is in exactly one file, and so is none that nobody pushed."""
    wanted = two(routes=(Route(("a",), When(metric="probe.*")),), default=("b",), drain_s=60.0)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK)
    swapped = threading.Event()

    def push(node: str) -> None:
        for number in range(1, 101):
            core.push(node, "life", [record(node, number)])
        swapped.wait(60)
        core.push(node, "life", [record(node, 101)])

    nodes = [threading.Thread(target=push, args=(name,)) for name in ("n1", "n2")]
    for node in nodes:
        node.start()
    for at in range(12):
        to = "ba"[at % 2]
        exports.change(sets=[f'routes=[{{when: {{metric: "probe.*"}}, to: [{to}]}}]', f"{to}.batch_rows={at + 5}"])
    exports.change(sets=['routes=[{when: {metric: "probe.*"}, to: [b]}]'])
    swapped.set()
    for node in nodes:
        node.join()
    reports = exports.finish()
    core.finish()
    assert all(one["complete"] for one in reports), reports
    in_a, in_b = (numbers_in(core.directory / "exports" / f"{name}.jsonl") for name in "ab")
    assert Counter(in_a + in_b) == Counter((node, float(number)) for node in ("n1", "n2") for number in range(1, 102))
    assert {("n1", 101.0), ("n2", 101.0)} <= set(in_b)
    changes = [row for row in read_run(core.directory).events.to_pylist() if row["kind"] == "exporters_changed"]
    assert len(changes) == 13
    assert "routes=" in changes[0]["message"]
    assert json.loads(changes[-1]["data"])["exporters"]["routes"][0]["to"] == ["b"]


def test_limits_and_pauses_of_a_run_change_and_the_next_life_goes_on_with_them(core: Aggregator) -> None:
    """In force at once, told with the figures, and known to the aggregator that takes over."""
    wanted = two(drain_s=0.2)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK, tells=False)
    told = exports.change(["a"], [], ["a.queue_rows=7", "a.batch_rows=5", "a.breaker.threshold=9", "a.overflow=drop_oldest"])
    assert [(one["name"], one["paused"], one["path"]) for one in told] == [("a", True, "exports/a.jsonl"), ("b", False, "exports/b.jsonl")]
    core.push("n1", "life", [record("n1", number) for number in range(1, 31)])
    until(lambda: exports.status()[1]["delivered_rows"] >= 90, 20)
    a, _ = exports.status()
    assert (a["delivered_rows"], a["queued_rows"] <= 7, set(a["dropped_rows"])) == (0, True, {"oldest"})
    exports.give_up()
    second = RunExports(core, wanted, CLOCK, tells=False)
    assert [one["paused"] for one in second.status()] == [True, False]
    assert second._pipeline._ports["a"].limits == Limits(Overflow.DROP_OLDEST, queue_rows=7, batch_rows=5)
    assert second._pipeline._ports["a"].lane.policy.threshold == 9
    assert [one["paused"] for one in second.change([], ["a"])] == [False, False]
    second.finish()


def test_rules_do_not_change_under_a_destination_that_is_behind(core: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records come one by one, and each must go by the rules of all the others: refused with its name, and nothing is changed."""
    monkeypatch.setattr(run_exports, "BEHIND_S", 0.1)
    go_on = threading.Event()
    held = core.held

    def slow_held() -> Any:
        assert go_on.wait(60)
        return held()

    monkeypatch.setattr(core, "held", slow_held)  # a run that takes long to be looked through
    wanted = two(drain_s=60.0)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK, tells=False)
    changed = ["a.batch_rows=7", 'routes=[{when: {metric: "probe.*"}, to: [a]}]']
    with pytest.raises(RefusedError, match="a, b: rows from before"):
        exports.change(sets=changed)
    assert exports._pipeline._ports["a"].limits.batch_rows == wanted.destinations[0].batch_rows
    assert exports.change(["a"])[0]["paused"]
    go_on.set()
    monkeypatch.setattr(run_exports, "BEHIND_S", 20.0)
    exports.change([], ["a"], changed)
    assert exports._pipeline._ports["a"].limits.batch_rows == 7
    exports.finish()


def test_rules_that_waited_do_not_change_a_run_that_has_begun_to_end(core: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a destination to be up to date finds the end begun: refused, and the rows go by the rules of before."""
    wanted = two(routes=(Route(("b",), When(metric="probe.*")),), default=("b",), drain_s=60.0)
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK, tells=False)

    async def ends_meanwhile() -> None:
        exports._closing.set()

    monkeypatch.setattr(exports, "_all_up_to_date", ends_meanwhile)
    core.push("n1", "life", [record("n1", 1)])
    with pytest.raises(InputError, match="the run is ending"):
        exports.change(sets=['routes=[{when: {metric: "probe.*"}, to: [a]}]'])
    exports.finish()
    assert not (core.directory / "exports" / "a.jsonl").exists()
    assert numbers_in(core.directory / "exports" / "b.jsonl") == [("n1", 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(([], [], ["a.queue_rows=200000", "b.queue_rows=none"]), "none", id="value"),
        pytest.param(([], [], ["a.queue_rows=200000", "b.queue_rowz=5"]), "queue_rowz", id="key"),
        pytest.param(([], [], ["a.queue_rows=200000", "c.queue_rows=5"]), "names no exporter", id="name"),
        pytest.param(([], [], ["a.queue_rows=200000", "routes=[{to: [c]}]"]), "names 'c'", id="route"),
        pytest.param(([], [], ["a.queue_rows=200000", "b.path=c.jsonl"]), "path of 'b' cannot change", id="path"),
        pytest.param(([], [], ["a.queue_rows=200000", "b.overflow=spill"]), "needs a disk", id="spill"),
        pytest.param((["a", "c"], [], ["a.queue_rows=200000"]), "no exporter 'c'", id="pause"),
        pytest.param(([], ["c"], ["a.queue_rows=200000"]), "no exporter 'c'", id="resume"),
    ],
)
def test_a_change_that_is_wrong_in_one_part_changes_nothing(core: Aggregator, change: tuple[Any, ...], message: str) -> None:
    """All or nothing: neither limits, nor rules, nor pauses, nor what the next life knows; and no event says otherwise."""
    wanted = two()
    write_manifest(core, wanted)
    exports = RunExports(core, wanted, CLOCK)
    with pytest.raises(InputError, match=message):
        exports.change(*change)
    assert [one["paused"] for one in exports.status()] == [False, False]
    assert exports._pipeline._ports["a"].limits == Limits()
    exports.finish()
    core.finish()
    assert "exporters_changed" not in read_run(core.directory).events["kind"].to_pylist()
    assert not list((core.directory.parent.parent / "exports").rglob("changed.json"))


# health


def test_an_exporter_that_breaks_is_seen_at_the_next_look_and_so_is_one_that_is_well_again(core: Aggregator) -> None:
    """Looks are a second apart, so that health flips within two; readiness also with a pause and a full queue."""
    assert TICK_S <= 1.0
    down, asked = threading.Event(), threading.Event()

    def decide() -> Exception | None:
        asked.set()
        return OSError("no route") if down.is_set() else None

    breaker = Breaker(threshold=1, reset_s=0.01, backoff_s=0.005, backoff_s_max=0.005)
    wanted = Exporters(
        destinations=(Destination("jsonl", "a.jsonl", name="a", breaker=breaker, batch_age_s=0.01, queue_rows=4, batch_rows=3),)
    )
    write_manifest(core, wanted)
    sink = FlakySink(decide)
    exports = RunExports(core, wanted, CLOCK, tells=False, make=lambda *_: sink)
    check = exports.health_checks()["a"]

    def seen(ready: bool, well: bool) -> bool:
        exports._loop.call_soon_threadsafe(exports._look)
        found = check()
        return (found[0].ok, found[1].ok) == (well, ready)

    core.push("n1", "a", [record("n1", 1)])
    until(lambda: seen(ready=True, well=True) and check()[0].detail["last_success_s_ago"] is not None, 20)
    exports.change(["a"])
    until(lambda: seen(ready=False, well=True), 20)
    assert check()[1].reason == "paused"
    exports.change([], ["a"])
    down.set()
    core.push("n1", "a", [record("n1", 2)])
    until(lambda: seen(ready=False, well=False) and check()[0].detail["breaker"] != "closed", 20)
    assert "no route" in check()[0].reason
    assert (check()[0].detail["queued_rows"], check()[0].detail["spilled_rows"]) == (3, 0)
    down.clear()
    until(lambda: seen(ready=True, well=True), 20)
    assert check()[0].detail["breaker"] == "closed"
    exports.finish(1.0)


def test_a_full_queue_is_not_ready(core: Aggregator) -> None:
    """One that hangs with its queue full is alive and takes no more."""
    wanted = Exporters(destinations=(Destination("jsonl", "a.jsonl", name="a", batch_age_s=0.01, queue_rows=3, batch_rows=3),))
    write_manifest(core, wanted)
    hung = GateSink()
    exports = RunExports(core, wanted, CLOCK, tells=False, make=lambda *_: hung)
    core.push("n1", "a", [record("n1", 1)])
    assert hung.entered.wait(20)
    exports._loop.call_soon_threadsafe(exports._look)
    check = exports.health_checks()["a"]
    until(lambda: not check()[1].ok, 20)
    assert (check()[0].ok, check()[1].reason) == (True, "its queue is full")
    hung.gate.set()
    exports.finish(1.0)


# figures


def test_latency_throughput_and_depth_are_the_scripted_ones() -> None:
    """A sink that takes 50 ms a batch: median and tail say so; rows a second and the queue's depth are what the script makes them."""

    async def test() -> None:
        clock = VirtualClock()

        class Slow(GateSink):
            def write(self, batch: Any) -> None:
                super().write(batch)
                clock.advance(0.050)

        sink = Slow()
        pipeline = ExportPipeline(clock=clock)
        pipeline.add("a", sink, Limits(queue_rows=500, batch_rows=10, batch_age_s=0.001))
        pipeline.self_metrics()
        began_ns = clock.boot_ns()
        for first in range(0, 300, 10):
            await pipeline.export(numbered(first, 10))
        await turns_until(sink.entered.is_set)
        rows = {row.metric: row for row in pipeline.self_metrics()}
        assert (rows["export.queue"].last, rows["export.delivered"].sum, rows["export.batches"].sum) == (300, 0, 1), "sent is not taken"
        sink.gate.set()
        await pipeline.drain()
        rows = {row.metric: row for row in pipeline.self_metrics()}
        seconds = (clock.boot_ns() - began_ns) / 1e9
        assert rows["export.queue"].last == 0
        assert rows["export.delivered"].sum / seconds == pytest.approx(300 / (30 * 0.050))
        found = histogram.decode(rows["export.write"].digest or b"")
        assert found.count == 30
        for quantile in found.quantiles((0.5, 0.99)):
            assert quantile == pytest.approx(0.050, rel=0.01)
        told = pipeline.report().exporters["a"].to_json()
        assert told["latency_s"]["p50"] == pytest.approx(0.050, rel=0.01)  # type: ignore[index]
        await pipeline.shutdown()

    run(test)


def test_successes_and_failures_by_reason_are_the_fault_plan_and_nothing_counts_before_its_sink_said_so() -> None:
    """The metrics' sums over all windows equal the plan of faults; delivered rows are never more than the sink has confirmed."""

    async def test() -> None:
        plan = [None, OSError("x"), None, RejectedError("y"), TimeoutError("z"), OSError("x"), None, None] * 5
        sink = ListSink(plan)
        pipeline = ExportPipeline(seed=0)
        pipeline.add("a", sink, FAST, EAGER)
        sums: Counter[tuple[str, str]] = Counter()

        def look() -> None:
            for row in pipeline.self_metrics():
                if row.metric.startswith("export.") and row.kind is Kind.COUNTER:
                    sums[row.metric, dict(row.labels).get("reason", "")] += int(row.sum)
            assert sums["export.delivered", ""] <= len(sink.numbers)

        for first in range(0, 250, 10):
            await pipeline.export(numbered(first, 10))
            look()
        await pipeline.shutdown(30)
        look()
        used = plan[: sink.calls.count("write")]
        assert len(used) > 30
        want = Counter("rejected" if isinstance(one, RejectedError) else type(one).__name__ for one in used if one is not None)
        assert {reason: sums["export.failures", reason] for reason in want} == dict(want)
        assert sums["export.batches", ""] == len(used) == sums["export.successes", ""] + sum(want.values())
        assert sums["export.delivered", ""] == len(sink.numbers) == 250 - sums["export.dropped", "rejected"]
        assert sums["export.dropped", "rejected"] == 10 * want["rejected"]

    run(test)


# back-pressure


def test_a_hung_sink_that_spills_holds_its_bound_and_loses_nothing(tmp_path: Path) -> None:
    """As for the policies that shed: memory is bounded, counts are exact, the other exporter has all; and so has this one in the end."""

    async def test() -> None:
        spill = SpillLog(WriteAheadLog(tmp_path / "spill"))
        pipeline, slow, fast, state = await beside_a_hung_sink(Overflow.SPILL, spill)
        assert (state.queued, state.spilled, state.dropped) == (100, 900, {})
        slow.gate.set()
        await pipeline.drain()
        await pipeline.shutdown(60)
        assert slow.numbers == fast.numbers == list(range(1000))
        spill.close()

    run(test)


# cancellation


class _CancelledAt:
    """Runs a coroutine in its task and cancels that task at the n-th await; counts the awaits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int) -> None:
        self._coroutine, self._at, self.awaits = coroutine, at, 0

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                waited = go_on()
            except StopIteration as ended:
                return ended.value
            task = asyncio.current_task()
            assert task is not None
            if self.awaits == self._at:
                task.cancel()
            self.awaits += 1
            try:
                yield waited
                go_on = partial(self._coroutine.send, None)
            except BaseException as error:
                go_on = partial(self._coroutine.throw, error)


async def _stream(batches: int) -> Any:
    for at in range(batches):
        yield numbered(at * 10, 10)


async def _exports(pipeline: ExportPipeline) -> None:
    for first in range(0, 80, 10):
        await pipeline.export(numbered(first, 10), timeout_s=30.0)


async def _swap(pipeline: ExportPipeline) -> None:
    await pipeline.set_rules(parse({"chains": {"a": [{"when": {"metric": "probe.*"}, "every_s": 60}]}}))
    await pipeline.export(numbered(0, 40, metric="probe.requests"))
    await pipeline.set_rules(parse({}))


SCENES: dict[str, Callable[[ExportPipeline], Coroutine[Any, Any, Any]]] = {
    "export": _exports,
    "stream": lambda pipeline: pipeline.export_stream(_stream(8)),
    "rules": _swap,
    "drain": lambda pipeline: pipeline.drain(),
    "room": lambda pipeline: pipeline.room("a", numbered(0, 10)),
    "remove": lambda pipeline: pipeline.remove("a", 30.0),
    "shutdown": lambda pipeline: pipeline.shutdown(30.0),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_caller_that_is_cancelled_at_any_await_leaves_no_task_and_loses_no_row(scene: str) -> None:
    """For each of its awaits: the sink is let go some turns later, all ends, and every row that came in is delivered or counted."""

    def cancelled_at(at: int) -> bool:
        reached = False

        async def test() -> None:
            nonlocal reached
            sink = GateSink()
            pipeline = ExportPipeline()
            pipeline.add("a", sink, Limits(Overflow.BLOCK, queue_rows=20, batch_rows=10, batch_age_s=0.001))
            await pipeline.export(numbered(1000, 20))
            driven = _CancelledAt(SCENES[scene](pipeline), at)

            async def drive() -> None:
                await driven

            caller = asyncio.create_task(drive())
            for _ in range(5):
                await asyncio.sleep(0)
            sink.gate.set()
            (done,) = await asyncio.gather(caller, return_exceptions=True)
            reached = driven.awaits > at
            assert done is None or (reached and isinstance(done, asyncio.CancelledError)), done
            report = await pipeline.shutdown(30.0)
            lane = balanced(report.exporters["a"]).lane
            assert (lane.queued, report.exporters["a"].waiting, report.exporters["a"].held) == (0, 0, 0)
            assert len(sink.numbers) == lane.delivered
            assert set(lane.dropped) <= {"cancelled"}
            folded = report.exporters["a"].chain.folded
            assert report.received == lane.delivered + sum(lane.dropped.values()) + folded - report.exporters["a"].chain.aggregates

        run(test)
        return reached

    awaits = 0
    while cancelled_at(awaits):
        awaits += 1
        assert awaits < 200, "it never ends"
    assert awaits > 0


def test_the_destination_that_is_cancelled_at_its_end_counts_what_it_did_not_send() -> None:
    """The lane's own task is cancelled by the end's deadline wherever it stands: waiting, backing off, or behind an open breaker."""

    async def test() -> None:
        pipeline, hung = ExportPipeline(), GateSink()
        failing = [ListSink(OSError("x") for _ in range(10**6)) for _ in range(2)]
        pipeline.add("waits", hung, FAST)
        pipeline.add("backs off", failing[0], FAST, BreakerPolicy(threshold=10**6, backoff_s=10.0, backoff_s_max=20.0))
        pipeline.add("is left alone", failing[1], FAST, BreakerPolicy(threshold=1, reset_s=3600.0))
        await pipeline.export(numbered(0, 30))
        await turns_until(lambda: all(one.lane.attempts for one in pipeline.report().exporters.values()))
        for report in (await pipeline.shutdown(0.01)).exporters.values():
            assert (balanced(report).lane.delivered, report.lane.dropped) == (0, {"shutdown": 30}), report.name
        hung.gate.set()

    run(test)
