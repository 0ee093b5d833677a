"""A cascade's simulator without Ray: when it makes a service fail, what it tells of the answers it gets, and how it ends."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_ray import FakeServices

from actors import control
from actors.clock import SECOND_NS, VirtualClock
from actors.control import ControlWriter, StatsPage
from actors.disk import leave_by_raising
from actors.errors import InputError
from actors.lease import LeaseWatch, read_cascade
from actors.messages import Capacity, Operation
from actors.metrics.reporter import MemoryReporter
from actors.ray_loads.cascade import RECORD, Cascade, graph_of
from actors.ray_loads.service_graph import name_of
from actors.simulator import check, check_here, peak_amounts
from cluster.load_notes import LoadNotes
from scenarios import kinds

CAPACITY = Capacity(8.0, 1 << 34, 1 << 34, tasks=10_000)
CASCADE = Operation("c@n1", "Cascade", "n1", 0.0, 6.0, "per_second", {"kind": "constant", "level": 20.0}, seed=5)
SLOT, GENERATION = 3, 5


def lived(operation: Operation) -> tuple[FakeServices, MemoryReporter, LeaseWatch]:
    """Run one to its end."""
    clock = VirtualClock()
    pages, _ = ControlWriter.create()
    stats, _ = StatsPage.create()
    pages.reset_slot(SLOT, GENERATION, 1, 1)
    pages.write_lease(SLOT, GENERATION, clock.boot_ns() + 1000 * SECOND_NS)
    watch = LeaseWatch(pages, stats, SLOT, GENERATION, clock, leave=leave_by_raising)
    stats.begin(SLOT, GENERATION, os.getpid())
    work, reporter = FakeServices(clock), MemoryReporter()
    made = Cascade(operation, CAPACITY, watch, work, reporter, "/nowhere")
    made.warm_up()
    made.run(clock.boot_ns())
    made.close()
    return work, reporter, watch


def values(reporter: MemoryReporter, name: str, **labels: str) -> list[float]:
    return [value for value, _ in reporter.samples(name, **labels)]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_one_service_fails_when_its_time_has_come_and_what_follows_is_told(how: str) -> None:
    """It is the graph's first; all figures are those of the services' answers, and all of them are ended at the end."""
    operation = replace(CASCADE, options={"how": how, "fail_after": 2.0})
    work, reporter, watch = lived(operation)
    graph = graph_of(operation)
    others = sorted(set(graph.services) - {graph.first})
    assert work.failed is not None
    assert work.failed[:2] == (how, graph.first)
    assert (work.failed[2] - 1000 * SECOND_NS) / SECOND_NS == pytest.approx(2.0, abs=0.1)
    assert sorted({*work.killed}) == sorted(graph.services)
    assert (values(reporter, "cascade.depth")[0], values(reporter, "cascade.depth")[-1]) == (0, 1)
    assert values(reporter, "cascade.blast.radius")[-1] == 1.0
    assert values(reporter, "cascade.failed")[-1] == len(graph.services)
    assert values(reporter, "cascade.time")[-1] == pytest.approx(0.9, abs=0.01)
    assert values(reporter, "cascade.round", service=graph.first) == [0.0]
    assert all(values(reporter, "cascade.round", service=name)[-1] == 1.0 for name in others)
    assert values(reporter, "cascade.after", service=graph.first) == [0.0]
    assert max(values(reporter, "cascade.after", service=name)[-1] for name in others) == pytest.approx(0.9, abs=0.01)
    assert sum(values(reporter, "cascade.calls", fate="timed_out")) == len(graph.services)  # a count is told once
    assert sum(values(reporter, "cascade.requests", fate="taken")) == sum(values(reporter, "load.operations"))
    assert watch.stats.read(SLOT).state == control.LOAD_RUNNING
    assert read_cascade(watch.stats, SLOT) == (((graph.first,), tuple(others)), len(graph.services), 1, 0.9)
    (event,) = LoadNotes().look("r", operation.id, watch.stats, SLOT)
    assert event.message == f"c@n1: 8 of 8 services have failed within 0.9 s, 1 deep: {graph.first}, then {' and '.join(others)}"
    assert event.data["rounds"] == [[graph.first], others]


def test_what_each_service_is_told_of_the_others() -> None:
    """Entries count on the board, the others do not; each has room for a second of its requests; a breaker only where it is asked for."""
    for options in ({}, {"breaker": True, "failures": 4, "reset": 7.0}):
        operation = replace(CASCADE, options=options)
        work, *_ = lived(operation)
        graph = graph_of(operation)
        for name, (_, board, room, timeout_s, policy, others) in work.spawned.items():
            assert bool(board) is (name in graph.levels[-1])
            assert room == max(2, round(graph.traffic(20.0)[name]))
            assert (timeout_s, tuple(others)) == (0.1, graph.dependencies[name])
            assert (None if policy is None else (policy.threshold, policy.reset_s)) == ((4, 7.0) if options else None)


def test_the_graph_follows_from_the_run_unless_it_has_a_seed_of_its_own() -> None:
    """So a scenario can have the same graph on every node, and one of its own on each."""
    assert graph_of(CASCADE) == graph_of(replace(CASCADE, node="n2"))
    assert graph_of(replace(CASCADE, options={"graph_seed": 5})) == graph_of(CASCADE)
    assert len({str(graph_of(replace(CASCADE, seed=seed))) for seed in range(10)}) > 3
    assert len({str(graph_of(replace(CASCADE, seed=seed, options={"graph_seed": 9}))) for seed in range(10)}) == 1


def test_what_cannot_be_is_refused() -> None:
    """A failure so late that nothing would be seen of it; more levels than services are as many as there are services."""
    check(replace(CASCADE, options={"services": 3, "levels": 4}))
    assert [len(tier) for tier in graph_of(replace(CASCADE, options={"services": 3, "levels": 4})).levels] == [1, 1, 1]
    with pytest.raises(InputError, match=r"fail_after is 5.5 s, and it lasts 6 s"):
        check_here(replace(CASCADE, options={"fail_after": 5.5}), Path("/nowhere"))
    check_here(replace(CASCADE, options={"fail_after": 5.4}), Path("/nowhere"))


def test_what_a_cascade_reserves() -> None:
    """A process for each service, and no more cores than the calls need."""
    few, many = (peak_amounts(replace(CASCADE, options={"services": count}), CAPACITY) for count in (4, 8))
    assert many.memory_bytes - few.memory_bytes >= 4 * 100e6
    assert (few.tasks, many.tasks) == (160, 320)
    assert 0.0 < few.cpu_cores <= many.cpu_cores <= 2.0


def test_all_names_fit_the_page() -> None:
    """32 services in 32 rounds travel through the stats page, and in one."""
    stats, _ = StatsPage.create()
    pages, _ = ControlWriter.create()
    watch = LeaseWatch(pages, stats, SLOT, GENERATION, VirtualClock())
    assert read_cascade(stats, SLOT) is None
    names = tuple(name_of(number) for number in reversed(range(32)))
    for rounds in (tuple((name,) for name in names), (names,)):
        watch.cascade(rounds, services=32, depth=31, span_s=12.345)
        assert read_cascade(stats, SLOT) == (rounds, 32, 31, 12.345)


def test_it_is_written_as_any_other_simulator() -> None:
    """In Python by its class, with options and strength."""
    made = kinds.Cascade(per_second=20, services=8, breaker=True)
    assert (type(made).__name__, made.unit, made.options()["breaker"]) == ("Cascade", "per_second", True)
    assert RECORD.carrier == "ray"
