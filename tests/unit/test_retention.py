"""Old windows become longer ones: every figure stays what it was, and no moment of a pass loses or doubles a row."""

from __future__ import annotations

import functools
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.messages import NodeSpec
from actors.metrics.histogram import Histogram
from actors.metrics.registry import Kind
from cluster.exporters.downsample import WEIGHT, Downsample
from cluster.fetch import LocalDirectory
from cluster.metrics import aggregator as module
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.live import DoseWindow
from cluster.metrics.parts import part_files, present_parts
from cluster.metrics.query import STATS
from cluster.metrics.retention import EDGE_S, Retention, Target, cuts_of
from cluster.metrics.store import RunStore, metrics_coverage, read_run
from cluster.metrics.windows import Row
from cluster.mirror import mirror
from scenarios import catalogue
from scenarios import plan as plans
from tests.support.windows import START_S, end, record

HOUR = 720  # rows, one each 5 s
METRICS_ASKED = ("probe.requests", "probe.response", "host.cpu.busy", "dose.requested", "dose.achieved")
FROM_S, TO_S = START_S + 613.0, START_S + 2999.5  # when the load of these runs starts and ends
CUTS_S = (START_S + 0.0, FROM_S, TO_S, TO_S + 60.0)


@functools.cache
def window(node: str, number: int, at_s: int) -> tuple[int, bytes]:
    """Return record `number` of a node, which begins at `at_s` seconds."""
    chance = random.Random(f"{node}{number}")
    values = [chance.lognormvariate(-6, 1) for _ in range(5)]
    made, busy = Histogram.of(values), chance.random()
    rows = [
        Row("probe.requests", Kind.COUNTER, "", "w", "p", (("probe", "x"),), 1, float(number % 7), last=float(number)),
        Row(
            "probe.response", Kind.HISTOGRAM, "seconds", "w", "p", (("probe", "x"),), 5, made.sum, made.min, made.max, digest=made.encode()
        ),
        Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 2, busy * 2, busy / 2, busy * 1.5, busy),
        Row("dose.requested", Kind.GAUGE, "ratio", f"w-{node}", "p", (), 1, 0.5, 0.5, 0.5, 0.5),
        Row("dose.achieved", Kind.GAUGE, "ratio", f"w-{node}", "p", (), 1, busy, busy, busy, busy),
    ]
    return record(node, number, rows=rows, events=0, start_s=at_s)


def fill(aggregator: Aggregator, numbers: range = range(1, HOUR + 1), nodes: tuple[str, ...] = ("n1", "n2")) -> None:
    for node in nodes:
        aggregator.push(node, "a", [window(node, number, START_S + 5 * number) for number in numbers])


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def aggregator(tmp_path: Path, clock: VirtualClock) -> Iterator[Aggregator]:
    made = Aggregator("r", tmp_path / "r", clock, cache_ttl_s=1e-6)
    yield made
    made.close()


def target(now_s: float, fine_s: float = 600.0, medium_s: float | None = 1200.0) -> Target:
    return Retention(fine_s, medium_s).target(round(now_s * 1e6), CUTS_S)


def all_now() -> Target:
    return target(START_S + 10_000.0)


def figures(aggregator: Aggregator) -> dict[Any, Any]:
    """Return every statistic of every metric, over all time, the load's time, and the minute after."""
    spans = (None, (FROM_S, TO_S), (TO_S, TO_S + 60.0))
    return {
        (metric, stat, node, span): aggregator.evaluate(metric, stat, node, between=span)
        for metric in METRICS_ASKED
        for stat in STATS
        for node in (None, "n1")
        for span in spans
    }


def same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Tell whether figures are equal: what rests on rounded sums within rounding, all else to the bit."""
    rounded = {"sum", "rate", "mean"}
    assert one.keys() == other.keys()
    for key, value in one.items():
        want = pytest.approx(value, rel=1e-12) if key[1] in rounded and value is not None else value
        assert other[key] == want, (key, value, other[key])
    return True


def test_every_figure_stays_and_the_files_shrink(aggregator: Aggregator) -> None:
    """After a pass with windows of three lengths each statistic is what it was, over the whole and between the edges of the load."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    before, rows = figures(aggregator), read_run(aggregator.directory).metrics.num_rows
    assert aggregator.roll(target(START_S + 3600.0))
    assert same(before, figures(aggregator))
    found = read_run(aggregator.directory).metrics
    lengths = set(found["window_s"].to_pylist())
    assert lengths == {1.0, 10.0, 60.0}
    assert found.filter(pc.equal(found["metric"], "probe.response")).num_rows < rows / 5 * 0.5
    counts = found.group_by("metric").aggregate([("count", "sum")]).sort_by("metric")
    assert counts["count_sum"].to_pylist() == [2 * HOUR, 2 * HOUR, 2 * 2 * HOUR, 2 * HOUR, 2 * 5 * HOUR]


def test_doses_and_edges_stay_as_they_came(aggregator: Aggregator) -> None:
    """Dose windows, and a minute around each edge, are never merged; elsewhere nothing short is left."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    doses = aggregator.dose_windows()
    assert aggregator.roll(all_now())
    found = read_run(aggregator.directory).metrics
    times = found["time"].cast(pa.int64()).to_pylist()
    for time_us, length_s, metric in zip(times, found["window_s"].to_pylist(), found["metric"].to_pylist(), strict=True):
        near = any(abs(time_us / 1e6 - cut_s) <= EDGE_S for cut_s in CUTS_S)
        if near or metric.startswith("dose."):
            assert length_s == 1.0
        elif all(abs(time_us / 1e6 - cut_s) > EDGE_S + 60 for cut_s in CUTS_S):
            assert length_s == 60.0
    aggregator.close()
    again = Aggregator("r", aggregator.directory, VirtualClock())
    assert {name: sorted(windows) for name, windows in again.dose_windows().items()} == {name: sorted(one) for name, one in doses.items()}
    again.close()


def test_passes_one_after_the_other_end_where_one_does(aggregator: Aggregator, tmp_path: Path) -> None:
    """Rolled up step by step while the run goes on, the files hold the windows of a single pass; then there is nothing left to do."""
    for first in range(1, HOUR + 1, 120):
        fill(aggregator, range(first, first + 120))
        aggregator.roll(target(START_S + 5.0 * (first + 120)))
    fill(aggregator, range(HOUR + 1, HOUR + 2))
    assert aggregator.roll(all_now())
    assert not aggregator.roll(all_now())
    single = Aggregator("s", tmp_path / "s", VirtualClock())
    fill(single, range(1, HOUR + 2))
    assert single.roll(all_now())
    tables = [read_run(one.directory).metrics for one in (aggregator, single)]
    order = [(name, "ascending") for name in ("time", "metric", "node")]
    stepped, direct = (table.drop_columns(["digest", "labels", "sum"]).sort_by(order) for table in tables)
    assert stepped.equals(direct)
    assert metrics_coverage(aggregator.directory) == metrics_coverage(single.directory)
    single.close()


def test_rows_that_come_late_join_the_window_they_belong_to(aggregator: Aggregator) -> None:
    """A node's outbox that is delivered long after is merged into windows that were rolled up; no series has two rows in one window."""
    fill(aggregator, nodes=("n1",))
    fill(aggregator, range(1, 300), nodes=("n2",))
    assert aggregator.roll(all_now())
    fill(aggregator, range(300, HOUR + 1), nodes=("n2",))
    assert aggregator.roll(all_now())
    found = read_run(aggregator.directory).metrics
    keys = list(zip(*(found[name].to_pylist() for name in ("time", "metric", "node", "worker")), strict=True))
    assert len(set(keys)) == len(keys)
    assert aggregator.evaluate("probe.requests", "count") == 2 * HOUR


def test_a_window_that_lasted_longer_stays(aggregator: Aggregator) -> None:
    """What an agent could not seal for half a minute is no window of ten seconds, and becomes part of one of a minute."""
    long = Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 30, 15.0, 0.5, 0.5, 0.5)
    aggregator.push("n1", "a", [record("n1", 1, rows=[long], start_s=START_S + 1225, window_s=30.0)])
    assert not aggregator.roll(target(START_S + 10_000.0, medium_s=None))
    assert aggregator.roll(all_now())
    assert read_run(aggregator.directory).metrics["window_s"].to_pylist() == [60.0]


class Died(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def half_rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of three parts, two of which became one."""
    made = Aggregator("r", tmp_path_factory.mktemp("half") / "r", VirtualClock())
    for first in (1, 241, 481):
        fill(made, range(first, first + 240))
        made.finish({"status": "x"})
    assert made.roll(target(START_S + 1800.0))
    made.close()
    return made.directory


@pytest.mark.parametrize("step", range(8))
def test_a_death_at_any_step_of_a_pass_leaves_each_row_once(
    half_rolled: Path, tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whichever sync, rename or removal a pass dies at, a reader and a successor find the same counts, and the successor ends the pass."""
    shutil.copytree(half_rolled, tmp_path / "r")
    aggregator = Aggregator("r", tmp_path / "r", clock)
    left = [step]

    def counting(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                left[0] -= 1
                if left[0] < 0:
                    raise Died
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", counting(os.fsync))
        patched.setattr(Path, "replace", counting(Path.replace))
        patched.setattr(Path, "unlink", counting(Path.unlink))
        with suppress(Died):
            aggregator.roll(all_now())
            assert left[0] >= 0, "a death that was swallowed"
            assert step >= 6, "a pass has fewer steps than are tried here"
    assert sum(read_run(aggregator.directory).metrics["count"].to_pylist()) == 10 * 2 * HOUR
    aggregator.close()
    successor = Aggregator("r", aggregator.directory, clock)
    assert present_parts(successor.directory) == part_files(successor.directory), "what was replaced is swept"
    successor.roll(all_now())
    assert successor.push("n1", "a", []) == HOUR
    assert sum(read_run(successor.directory).metrics["count"].to_pylist()) == 10 * 2 * HOUR
    assert not list(successor.directory.rglob("*.tmp"))
    successor.close()


def test_a_full_disk_changes_nothing(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses, the pass fails with its reason, nothing is left of it, and the next one works."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    parts = present_parts(aggregator.directory)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HarnessError, match="No space"):
            aggregator.roll(all_now())
    assert present_parts(aggregator.directory) == parts
    assert not list(aggregator.directory.rglob("*.tmp"))
    assert aggregator.roll(all_now())


def test_windows_arrive_while_a_pass_works(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushes are taken, and become parts, between the reading of a pass and its end; a closed aggregator lets it come to nothing."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    real = module.roll

    def meanwhile(*args: Any) -> Any:
        fill(aggregator, range(HOUR + 1, HOUR + 3))
        aggregator.finish({"status": "x"})
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(module, "roll", meanwhile)
        assert aggregator.roll(all_now())
    assert aggregator.evaluate("probe.requests", "count") == 2 * (HOUR + 2)
    late = Aggregator("q", aggregator.directory.parent / "q", VirtualClock())
    fill(late)
    monkeypatch.setattr(module, "roll", lambda *args: (real(*args), late.close())[0])
    assert not late.roll(all_now())
    assert sum(read_run(late.directory).metrics["count"].to_pylist()) == 10 * 2 * HOUR


def test_a_copy_of_a_run_loses_what_was_replaced(aggregator: Aggregator, tmp_path: Path) -> None:
    """A mirror that has old parts gets the rolled one, and the old ones go: also a reader that takes all files counts each row once."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    copy = tmp_path / "copy"
    mirror(LocalDirectory(aggregator.directory), copy)
    aggregator.roll(target(START_S + 1800.0))
    mirror(LocalDirectory(aggregator.directory), copy)
    aggregator.roll(all_now())
    old = [path.read_bytes() for path in present_parts(copy)]
    mirror(LocalDirectory(aggregator.directory), copy)
    assert [path.name for path in present_parts(copy)] == [path.name for path in present_parts(aggregator.directory)]
    assert sum(pq.read_table(copy / "metrics")["count"].to_pylist()) == 10 * 2 * HOUR
    (copy / "metrics" / "part-0000.parquet").write_bytes(old[0])
    assert sum(read_run(copy).metrics["count"].to_pylist()) == 10 * 2 * HOUR, "a part that was replaced counts for no reader of ours"


def test_settled_late_data_is_numbered_after_a_rolled_part(aggregator: Aggregator) -> None:
    """No name is given twice, so that no new part can be taken for one that was replaced."""
    fill(aggregator)
    aggregator.finish({"status": "x"})
    aggregator.roll(all_now())
    fill(aggregator, range(HOUR + 1, HOUR + 2))
    aggregator.push("n1", "a", [end(HOUR + 2)])
    aggregator.finish({"status": "x"})
    assert [path.name for path in present_parts(aggregator.directory)] == ["rolled-0001.parquet", "part-0002.parquet"]
    aggregator.close()
    RunStore(aggregator.directory).close()
    assert sum(read_run(aggregator.directory).metrics["count"].to_pylist()) == 10 * 2 * (HOUR + 1)


def test_retention_comes_from_the_manifest() -> None:
    """A manifest says how long windows stay; one that says nothing, or none, keeps them all."""
    told = {"settings": {"metrics.fine_for_s": {"value": 960.0}, "metrics.medium_for_s": {"value": None}}}
    assert Retention.of_manifest(told) == Retention(960.0, None)
    assert Retention.of_manifest(told).every_s == 120.0
    assert [
        Retention.of_manifest(one).every_s for one in ({}, {"settings": {}}, {"settings": {"metrics.fine_for_s": {"value": None}}})
    ] == [
        None,
        None,
        None,
    ]
    assert Retention().target(10**15, ()).steps == ()


def test_cuts_follow_from_the_first_dose() -> None:
    """The load's start is the first dose less its operation's offset; before any dose nothing is known."""
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    operation = plan.operations[-1]
    assert cuts_of(plan, {}, 5.0, 60.0) is None
    start_s = 1000.0 + operation.start_s
    doses = {operation.id: [DoseWindow(start_s, 0.5, 0.5, "ratio")]}
    assert cuts_of(plan, doses, 5.0, 60.0) == (5.0, 1000.0, 1000.0 + plan.duration_s, 1060.0 + plan.duration_s)


def test_accumulators_see_the_rows_of_a_rolled_up_gauge(aggregator: Aggregator) -> None:
    """What an accumulator says of a gauge is the same before and after: each row's mean, as often as it had values."""
    fill(aggregator, nodes=("n1",))
    aggregator.finish({"status": "x"})
    before = aggregator.answers.summarise("host.cpu.busy", "mean_variance")
    assert aggregator.roll(all_now())
    after = aggregator.answers.summarise("host.cpu.busy", "mean_variance")
    assert {name: one.value for name, one in after.items()} == {name: pytest.approx(one.value, rel=1e-9) for name, one in before.items()}


def test_an_export_that_merges_windows_takes_rolled_up_gauges(aggregator: Aggregator) -> None:
    """The means that a longer window of a gauge keeps are no histogram: who merges such windows passes them over."""
    fill(aggregator, nodes=("n1",))
    assert aggregator.roll(all_now())
    rows = read_run(aggregator.directory).metrics
    batch = rows.append_column(WEIGHT, pa.array([0] * rows.num_rows, pa.int64())).combine_chunks().to_batches()[0]
    merger = Downsample(lambda found: pa.array([True] * found.num_rows), 86_400.0, ("node",), 0.0)
    merger.take(batch)
    counts = {row["metric"]: row["count"] for row in merger.drain(batch.schema).to_pylist()}
    assert (counts["host.cpu.busy"], counts["probe.response"]) == (2 * HOUR, 5 * HOUR)
