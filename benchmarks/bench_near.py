"""What does a large batch cost from an agent to an exporter on its own machine: by its places, and by its bytes as from another machine?

Run: python benchmarks/bench_near.py [ROUNDS of each, 3 by default].

An agent's process has 100 MB of sealed windows (2,500 rows each, as they lie in memory or packed) and delivers them to an aggregator's
process with an Arrow file as its exporter. `flow`: as fast as it goes. `wait`: while the exporter is paused, so that all of it waits in
the aggregator. Both are looked at from outside: `resident` is the most memory that the aggregator had beyond what it had before (VmHWM),
`sent` what went to it, `outbox` what the batch took on disk, `views` the share of the arrays' bytes that lie in the outbox's file; CPU
seconds are those of the process from the first push until the exporter had all rows. Both ways deliver as many windows of the same rows.
Medians of the rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

from tests.support.near import Process, two_processes
from tests.support.observe import cpu_s
from tests.support.waiting import until

MB = 10**6
BATCH_BYTES = 100 * MB
GROWN_BYTES = 5 * MB
WAYS = ("places", "bytes")


def all_of(aggregator: Process, rows: int) -> dict[str, int]:
    """Wait until the exporter has these rows; return what it says."""
    until(lambda: aggregator.ask("tell")["rows"] >= rows, 120)
    return aggregator.ask("tell")


def once(way: str, *, waits: bool) -> dict[str, float]:
    """Return the figures of one batch."""
    with tempfile.TemporaryDirectory(prefix="bench-near-") as folder, two_processes(Path(folder) / "state") as (worker, aggregator):
        if way == "bytes":
            worker.ask("far")
        rows = 0
        for _ in range(4):  # warm
            rows += worker.ask("seal 1")["rows"]
            worker.ask("deliver")
        before = all_of(aggregator, rows)
        sealed = worker.ask(f"seal {BATCH_BYTES}" if way == "places" else "windows 111")
        rows += sealed["rows"]
        if waits:
            aggregator.ask("pause")
        had, used = aggregator.memory(), [cpu_s(one.pid) for one in (worker, aggregator)]
        aggregator.forget_most()
        sent = worker.ask("deliver")
        if waits:
            until(lambda: aggregator.ask("tell")["waiting"] >= 0.99 * BATCH_BYTES, 60)
            after = before
        else:
            after = all_of(aggregator, rows)
        spent = [cpu_s(one.pid) - cpu for one, cpu in zip((worker, aggregator), used, strict=True)]
        given = after["bytes"] - before["bytes"]
        return {
            "resident_mb": (aggregator.memory()["VmHWM"] - had["VmRSS"]) / MB,
            "sent_mb": sent["sent"] / MB,
            "outbox_mb": sealed["bytes"] / MB,
            "agent_cpu_s": spent[0],
            "aggregator_cpu_s": spent[1],
        } | ({"views": (after["mapped"] - before["mapped"]) / given} if given else {})


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    figures: dict[str, Any] = {}
    for kind in ("flow", "wait"):
        for way in WAYS:
            found = [once(way, waits=kind == "wait") for _ in range(rounds)]
            figures[f"{kind}, by {way}"] = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
            print(kind, way, figures[f"{kind}, by {way}"], file=sys.stderr)
    near = [figures[f"{kind}, by places"] for kind in ("flow", "wait")]
    goals = {
        "memory of the aggregator, MB": (GROWN_BYTES / MB, max(one["resident_mb"] for one in near) < GROWN_BYTES / MB),
        "arrays that are views": (1.0, near[0]["views"] == 1.0),
        "less memory than by bytes when it waits": (10.0, figures["wait, by bytes"]["resident_mb"] > 10 * near[1]["resident_mb"]),
    }
    return store("near", figures, goals, ("pyarrow",))


if __name__ == "__main__":
    sys.exit(main())
