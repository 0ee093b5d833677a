"""No simulator is left out: each runs by command on two nodes with all that it records, and has its place in the death matrix."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from actors.simulator import REGISTRY
from scenarios import text
from tests.support.by_command import NODES, Runs, lives_of
from tests.support.samples import SAMPLES

RAY = Path(__file__).parents[1] / "ray"
OCCASIONAL = {  # what no run shows for certain, and why; where there is occasion it is asked for in tests/ray
    "ObjectStorePressure": {"store.spilled", "store.restored"},  # on the one node that is asked for more than its store has
    "Processes": {"load.refused"},  # where no group of tasks can be made: that part is told as skipped
}


@cache
def runs() -> dict[str, tuple[Any, ...]]:
    """Return what each module of tests/ray runs by command on two nodes: its RUNS, one or several."""
    found = {}
    sys.path.insert(0, str(RAY))  # they import each other
    for path in sorted(RAY.glob("test_*.py")):
        if "\nRUNS = " in path.read_text():
            spec = importlib.util.spec_from_file_location(f"runs_of_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # its dataclasses look themselves up there
            spec.loader.exec_module(module)
            found[path.name] = module.RUNS if isinstance(module.RUNS, tuple) else (module.RUNS,)
    sys.path.remove(str(RAY))
    return found


def test_every_simulator_runs_by_command_on_two_nodes() -> None:
    """A new one needs a run in tests/ray: have a module there hold it, and name it in the module's RUNS."""
    assert set[str]().union(*(one.kinds for of in runs().values() for one in of)) == set(REGISTRY)


def test_every_documented_name_of_every_simulator_is_recorded_by_such_a_run() -> None:
    """Whatever a simulator is documented to record is asked for in at least one run that holds it, refusals by the kernel too."""
    shown: dict[str, set[str]] = defaultdict(set)
    for one in (one for of in runs().values() for one in of):
        for kind, names in one.recorded().items():
            shown[kind] |= names - one.maybe.get(kind, set())
    lacking = {kind: set(record.metrics) - shown[kind] for kind, record in REGISTRY.items()}
    assert {kind: names for kind, names in lacking.items() if names} == OCCASIONAL


def test_each_run_is_asserted() -> None:
    """A module that names its runs also holds what was recorded against each of them."""
    assert [name for name, of in runs().items() if (RAY / name).read_text().count(".assert_recorded(") < len(of)] == []


def finished(kinds: set[str], without: tuple[str, str, str] | None = None, more: tuple[str, str, str] | None = None) -> Any:
    """Return a run of simulators on two nodes that recorded what is documented, but for one (kind, node, metric)."""
    wanted = {(kind, node, metric) for kind in kinds for node in NODES for metric in REGISTRY[kind].metrics}
    kept = (wanted - {without}) | ({more} if more else set())
    rows = [{"metric": metric, "node": node, "worker": f"0.1.{kind}@{node}", "count": 1} for kind, node, metric in kept]
    rows += [{"metric": "dose.achieved", "node": "n1", "worker": "0.1.CpuLoad@n1", "count": 1}]
    rows += [{"metric": without[2], "node": without[1], "worker": f"0.1.{without[0]}@{without[1]}", "count": 0}] if without else []
    return SimpleNamespace(metrics=pa.Table.from_pylist(rows))


@pytest.mark.parametrize("kind", sorted(kind for kind, record in REGISTRY.items() if record.metrics))
def test_a_name_that_is_not_recorded_is_missed(kind: str) -> None:
    """On either node, whichever it is; so is one too many. What a run has no occasion for may lack, what is not certain may be there."""
    kinds = {kind, "CpuLoad"}
    document = {"together": [{one: {}} for one in kinds]}
    Runs(document).assert_recorded(finished(kinds))
    for name in REGISTRY[kind].metrics:
        for node in NODES:
            lacking = finished(kinds, without=(kind, node, name))
            with pytest.raises(AssertionError, match=name):
                Runs(document).assert_recorded(lacking)
            Runs(document, maybe={kind: {name}}).assert_recorded(lacking)
        with pytest.raises(AssertionError, match=name):
            Runs(document, never={kind: {name}}).assert_recorded(finished(kinds))
    other = next(name for name in ("flood.calls", "memory.live") if name not in REGISTRY[kind].metrics)
    with pytest.raises(AssertionError, match=re.escape(other)):
        Runs(document).assert_recorded(finished(kinds, more=(kind, "n1", other)))


def test_every_simulator_has_a_sample_for_the_death_matrix() -> None:
    """A new one needs a line in tests/support/samples.py: a small load, and how an outsider sees it; a scenario may ask for it so."""
    assert set(SAMPLES) == set(REGISTRY)
    units = {"fraction", "bytes", "count", "per_second"}
    for kind, sample in SAMPLES.items():
        assert len(units & set(sample.options)) == 1, kind
        made = {"version": 1, "name": "sample", "plan": {kind: dict(sample.options), "for": "5s"}}
        assert text.to_data(text.from_data(made))["plan"].keys() >= {kind, "for"}


def lived(*told: tuple[str, str, float]) -> Any:
    """Return a finished run of one operation on each node, of whose life this was told: node, metric, count."""
    rows = [
        {"metric": name, "node": node, "worker": f"0.CpuLoad@{node}", "labels": [("simulator", "CpuLoad"), ("shape", "ramp")], "sum": count}
        for node, name, count in [*told, *((node, "dose.requested", 0.1) for node in NODES)]
    ]
    kinds = [("metric", pa.string()), ("node", pa.string()), ("worker", pa.string()), ("sum", pa.float64())]
    return SimpleNamespace(metrics=pa.Table.from_pylist(rows, pa.schema([*kinds, ("labels", pa.map_(pa.string(), pa.string()))])))


def test_a_life_without_its_begin_or_end_is_missed() -> None:
    """Of each simulator and shape on each node as many have ended, one way or the other, as have begun; and each has begun once."""
    begun = [(node, "operation.started", 1.0) for node in NODES]
    lives = lives_of(lived(*begun, ("n1", "operation.completed", 1.0), ("n2", "operation.failed", 1.0)))
    assert lives["failed"] == {("n2", "CpuLoad", "ramp"): 1}
    ends = [(node, "operation.completed", 1.0) for node in NODES]
    for wrong in (
        [*begun, ends[0]],
        [*begun, *ends, ("n1", "operation.failed", 1.0)],
        [begun[0], ends[0]],
        [*begun, begun[0], *ends, ("n1", "operation.failed", 1.0)],
    ):
        with pytest.raises(AssertionError):
            lives_of(lived(*wrong))
