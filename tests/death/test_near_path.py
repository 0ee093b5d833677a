"""A hundred megabytes from an agent to an exporter on one machine, watched from outside both processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.near import Process, two_processes
from tests.support.waiting import until

MB = 10**6
BATCH_BYTES = 100 * MB


class Most:
    """The most resident memory that a process had while it was watched, beyond what it had before, in bytes."""

    resident = 0


@contextmanager
def watched(process: Process) -> Iterator[Most]:
    """Have the kernel note the most memory that a process has, pages of files that it looks at included."""
    before, found = process.memory()["VmRSS"], Most()
    process.forget_most()
    yield found
    found.resident = process.memory()["VmHWM"] - before


def delivered(aggregator: Process, rows: int) -> dict[str, int]:
    """Wait until the exporter has taken this many rows; return what it says."""
    until(lambda: aggregator.ask("tell")["rows"] >= rows, 60)
    return aggregator.ask("tell")


def test_a_batch_of_100_mb_takes_no_memory_on_its_way_to_an_exporter(tmp_path: Path) -> None:
    """The aggregator's resident memory grows by less than 5 MB, and all arrays that the exporter is given are views of the outbox's file.

    Also when the batch waits for an exporter that is paused, all 100 MB at once.
    """
    with two_processes(tmp_path / "state") as (worker, aggregator):
        rows = 0
        for size in (1, 16 * MB, 16 * MB):  # after the first window the agent knows that it has a neighbour
            rows += worker.ask(f"seal {size}")["rows"]
            assert worker.ask("deliver")["left"] == 0
            before = delivered(aggregator, rows)
        time.sleep(1.0)

        sealed = worker.ask(f"seal {BATCH_BYTES}")
        with watched(aggregator) as grown:
            sent = worker.ask("deliver")
            rows += sealed["rows"]
            after = delivered(aggregator, rows)
        given = after["bytes"] - before["bytes"]
        assert sent["left"] == 0
        assert sent["sent"] < 200 * sealed["bytes"] // MB, "more than places went over"
        assert given >= 0.99 * BATCH_BYTES
        assert after["mapped"] - before["mapped"] == given, "an array lies elsewhere"
        assert after["owned"] == before["owned"], "a buffer has memory of its own"
        assert after["dropped"] == 0
        assert grown.resident < 5 * MB, grown.resident

        sealed = worker.ask(f"seal {BATCH_BYTES}")
        aggregator.ask("pause")
        with watched(aggregator) as grown:
            worker.ask("deliver")
            until(lambda: aggregator.ask("tell")["waiting"] >= 0.99 * BATCH_BYTES, 30)
        assert grown.resident < 5 * MB, grown.resident
        aggregator.ask("resume")
        rows += sealed["rows"]
        last = delivered(aggregator, rows)
        assert (last["rows"], last["dropped"]) == (rows, 0)
        assert last["mapped"] - after["mapped"] == last["bytes"] - after["bytes"]
