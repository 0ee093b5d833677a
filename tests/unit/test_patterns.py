"""All patterns, every simulator with every load shape: what a node records of them, and that each that began has ended one way."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from actors import plugin_shapes
from actors import shape as shapes
from actors.clock import SECOND_NS, SystemClock
from actors.messages import Operation
from actors.meters import open_meters
from actors.metrics import CATALOGUE, Kind
from actors.metrics.policy import RecordingPolicy
from actors.metrics.registry import Verbosity
from actors.simulator import REGISTRY
from cluster.metrics.reference import OF_EACH_RUN
from tests.simulation.world.agent_host import quiet
from tests.unit.test_node_metrics import CAPACITY, made, rows_of

SHAPES = (
    shapes.Constant(0.5),
    shapes.Ramp(0.1, 0.5, 2.0),
    shapes.Steps((0.1, 0.5), 1.0),
    shapes.Sine(0.1, 0.3, 2.0),
    shapes.Square(0.1, 0.5, 2.0),
    shapes.Burst(0.1, 0.5, 2.0, 1.0),
    shapes.Sawtooth(0.1, 0.5, 2.0),
    shapes.Leak(0.1, 0.001),
    shapes.Custom("half", 0.5),
)


def patterns() -> list[Operation]:
    """Return an operation for each simulator, unit and shape."""
    found = []
    for record in REGISTRY.values():
        for unit in record.units:
            for one in SHAPES:
                spec = (one if unit == "fraction" else one.scaled(1 << 20)).to_spec()
                options = {"mode": "host_total"} if record.name == "CpuLoad" else {}
                name = f"{len(found)}.{record.name}@n"
                found.append(Operation(name, record.name, "n", 0.0, 60.0, unit, spec, record.resolve_options(options), "main"))
    return found


def test_every_shape_is_a_pattern() -> None:
    """The list above has each shape that a scenario can name."""
    assert {one.to_spec()["kind"] for one in SHAPES} == set(shapes.KINDS)


@pytest.fixture(autouse=True)
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package offers the function of the custom shape."""
    monkeypatch.setattr(plugin_shapes, "function_of", lambda _: lambda _: 0.5)


@pytest.mark.parametrize("level", Verbosity)
def test_what_all_patterns_record_is_what_is_documented(tmp_path: Path, level: Verbosity) -> None:
    """No name is missing and none is more, at each level; each has one kind and its declared units; started = completed + failed."""
    metrics = made(tmp_path, deadline_ns=SystemClock().boot_ns() + 100 * SECOND_NS)
    metrics.begin("all", RecordingPolicy(level=level))
    for number, operation in enumerate(patterns()):
        path = metrics.open_segment("all", operation)
        metrics.watch("all", operation, CAPACITY, 3, 4, [os.getpid()])
        metrics.started("all", operation.id, SystemClock().boot_ns())
        metrics.started("all", operation.id, SystemClock().boot_ns())
        meters = open_meters(path, 1)
        meters.record_slice(0.001, 5)
        meters.close()
        metrics.measure()
        metrics.on_snapshot(replace(quiet("n"), boot_ns=SystemClock().boot_ns()), 0, {"cpu_cores": 1.0}, 0.0)
        metrics.unwatch("all", operation.id, completed=bool(number % 3))
    never = replace(patterns()[0], id="never@n")
    metrics.watch("all", never, CAPACITY, 3, 4, [os.getpid()])
    metrics.unwatch("all", never.id)  # before its start: it has no life to tell of
    metrics.close_windows()
    rows = rows_of(metrics, "all")
    names = {row["metric"] for row in rows} - {"metrics.filtered"}
    assert names == {name for name in {*OF_EACH_RUN, "load.operations", "load.slice"} if level.records(CATALOGUE[name])}
    if level is Verbosity.MINIMAL:
        series = {(row["worker"], row["metric"], tuple(row["labels"])) for row in rows if row["worker"]}
        assert max(Counter(worker for worker, *_ in series).values()) <= 10
    for row in rows:
        metric = CATALOGUE[row["metric"]]
        assert (Kind(row["kind"]), row["unit"] in (metric.unit, *metric.other_units)) == (metric.kind, True)
    life = {what: Counter() for what in ("started", "completed", "failed")}
    for row in rows:
        if row["metric"].startswith("operation."):
            labels = dict(row["labels"])
            life[row["metric"].partition(".")[2]][labels["simulator"], labels["shape"]] += row["sum"]
    assert life["started"] == life["completed"] + life["failed"]
    assert min(life["failed"].total(), life["completed"].total()) > 0
    assert life["started"] == Counter((one.kind, one.shape["kind"]) for one in patterns())
