"""Pipelines in tests: a loop that is bounded, limits and breakers that act at once, and counts that add up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from actors.breaker import BreakerPolicy
from cluster.exporters.figures import ExporterReport
from cluster.exporters.limits import Limits, Overflow
from cluster.exporters.pipeline import ExportPipeline
from cluster.exporters.rows import LaneState, Spill
from cluster.files import write_json_atomic
from cluster.metrics.aggregator import Aggregator
from scenarios.exporter_form import EXPORTERS
from scenarios.exporters import Exporters

from .sinks import GateSink, ListSink, numbered

RUN: Final = "20260101-120000-small-1a2b"
FAST: Final = Limits(batch_rows=10, queue_rows=1000, batch_age_s=0.001)
EAGER: Final = BreakerPolicy(threshold=3, reset_s=0.002, probes=1, backoff_s=0.0005, backoff_s_max=0.001)


def run(test: Callable[[], Coroutine[Any, Any, None]], within_s: float = 60) -> None:
    """Run one test in a loop of its own; it ends within a minute or fails, and leaves no task behind."""

    async def bounded() -> None:
        async with asyncio.timeout(within_s):
            await test()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(bounded())


async def turns_until(holds: Callable[[], object]) -> None:
    """Let the other tasks run until this holds."""
    while not holds():  # noqa: ASYNC110  # what is waited for is a state, not an event; `run` bounds it
        await asyncio.sleep(0)


async def beside_a_hung_sink(overflow: Overflow, spill: Spill | None = None) -> tuple[ExportPipeline, GateSink, ListSink, LaneState]:
    """Offer 1,000 rows to `slow`, whose sink hangs and whose queue holds 100, and to `fast`; return both and how `slow` stands then.

    Asserts at each step that the queue keeps its bound and every row is accounted for. The caller opens the gate and ends the pipeline.
    """
    slow, fast, bounds = GateSink(), ListSink(), {"queue_rows": 100, "batch_rows": 10, "batch_age_s": 0.001}
    pipeline = ExportPipeline()
    pipeline.add("slow", slow, Limits(overflow, **bounds), spill=spill)
    pipeline.add("fast", fast, Limits(Overflow.BLOCK, **bounds))
    await pipeline.export(numbered(0, 10))
    await turns_until(slow.entered.is_set)
    for first in range(10, 1000, 10):
        await pipeline.export(numbered(first, 10))
        state = balanced(pipeline.report().exporters["slow"]).lane
        assert state.queued <= 100
    assert state.produced == 1000
    return pipeline, slow, fast, state


def balanced(report: ExporterReport) -> ExporterReport:
    """Return a report in which every row is accounted for."""
    assert report.balance == 0, report
    return report


def write_manifest(core: Aggregator, exporters: Exporters, status: str = "running") -> None:
    """Write the manifest of a run with these exporters."""
    scenario = {"version": 1, "name": "small", "plan": {"CpuLoad": {"fraction": 0.1}, "for": 5}, "exporters": EXPORTERS.write(exporters)}
    write_json_atomic(core.directory / "manifest.json", {"run": RUN, "status": status, "scenario": scenario})
