"""The dashboard in deploy/grafana before a run that lives: a real Prometheus scrapes it, and every panel has something to draw."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support import documents
from support.prometheus import PROMETHEUS, ask, serving
from support.terminal import Terminal
from support.waiting import until

from cluster.analysis import load
from cluster.exporters import grafana

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/dashboards/stress-cluster.json"
VARIABLES = {"$__rate_interval": "8s", "$node": ".*"}
FOR_S = 60  # longer than it is looked at: the run is ended from outside
SMALL: dict[str, dict[str, Any]] = {  # of each family what its panels tell of
    "CpuLoad": {"fraction": "6%", "mode": "own", "affinity": "pinned"},
    "MemoryPressure": {"bytes": {"sine": {"low": "16MiB", "high": "48MiB", "period": "4s"}}},
    "MemoryFragment": {"bytes": "32MiB"},
    "MemoryAccess": {"fraction": "5%", "working_set": "16MiB"},
    "ObjectStorePressure": {"bytes": "16MiB"},
    "DiskFill": {"bytes": "16MiB", "reserve": "64MiB"},
    "DiskIO": {"per_second": 1 << 20, "file": "8MiB"},
    "Threads": {"count": 20},
    "LockContention": {"count": 3},
    "LockConvoy": {"count": 5},
}
CALLED: dict[str, dict[str, Any]] = {
    "MailboxFlood": {"per_second": 20, "actors": 1, "payload": "16KiB"},
    "ClusterLock": {"per_second": 10, "contenders": 2},
    "Cascade": {"per_second": 20, "services": 4, "levels": 3, "fan_out": 1, "graph_seed": 7},
}
ON_BOTH: dict[str, dict[str, Any]] = {"ActorMesh": {"per_second": 20, "actors": 1}}  # its actors call those of other nodes
BRIEF: dict[str, dict[str, Any]] = {  # tell some of their figures at their end
    "StressNg": {"fraction": "5%", "stressor": "cpu"},
    "Connections": {"count": 20, "close": "orderly"},
}
RECORDED = {"level": "verbose", "filters": [{"leave_out": {"metric": "host.descriptors.limit"}}]}  # so that what is left out is counted
pytestmark = pytest.mark.skipif(
    not (PROMETHEUS and shutil.which("stress-ng")), reason="prometheus or stress-ng is not installed (Debian packages of these names)"
)


def scenario() -> dict[str, Any]:
    """Return a run of small loads of every family with a probe and an exporter, on two nodes."""
    placed = ((SMALL, ["n1"], FOR_S), (BRIEF, ["n1"], 8), (CALLED, ["n2"], FOR_S), (ON_BOTH, ["n1", "n2"], FOR_S))
    parts = [
        {kind: options, "for": f"{for_s}s", "targets": {"names": nodes}, **({} if "bytes" in options else {"tolerance": "100%"})}
        for loads, nodes, for_s in placed
        for kind, options in loads.items()
    ]
    return {
        "version": 1,
        "name": "drawn",
        "profile": "aggressive",
        "limits": {"stale": "20s"},
        "metrics": RECORDED,
        "targets": {"names": ["n1", "n2"]},
        "hypotheses": [documents.ACTORS_ANSWER],
        "exporters": {"destinations": [{"type": "jsonl", "path": "all.jsonl"}]},
        "plan": {"together": parts},
    }


class Panels:
    """The panels of the dashboard that had no point yet, by row and title."""

    def __init__(self, api: str, run: str, begun_s: float) -> None:
        self._api, self._run, self._begun_s = api, run, begun_s
        self.empty: dict[tuple[str, str], list[str]] = {}
        row = ""
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            row = panel["title"] if panel["type"] == "row" else row
            if panel["type"] != "row":
                self.empty[row, panel["title"]] = [target["expr"] for target in panel["targets"]]

    def look(self) -> bool:
        """Ask for all that had nothing yet, as Grafana does: over the time since the run's start, each second."""
        for key, queries in list(self.empty.items()):
            if any(self._points(query) for query in queries):
                del self.empty[key]
        return not self.empty

    def _points(self, query: str) -> list[float]:
        for name, value in {**VARIABLES, "$run": self._run}.items():
            query = query.replace(name, value)
        found = ask(self._api, "query_range", query=query, start=f"{self._begun_s}", end=f"{time.time()}", step="1")["result"]
        values = [float(value) for series in found for _, value in series["values"]]
        return [value for value in values if math.isfinite(value)]  # the quantile of nothing is no number, and is not drawn


def test_every_panel_has_a_point_while_a_run_lives(standing: Terminal, tmp_path: Path) -> None:
    """Each panel of every row has at least one point of this run, asked of a Prometheus that scrapes it while it is running.

    No panel is left to a sample: simulators of each family take part. The run, stopped in the midst of it, concludes with its metrics.
    """
    begun_s = time.time()
    command = standing.start("run", documents.write(standing.folder, scenario()), "--yes", "--json", "--prometheus-port", "0")
    command.await_text("running", 90)
    folder = standing.run_dir()
    port = json.loads((folder / "manifest.json").read_text())["prometheus"]["port"]
    job = f'\n  - {{job_name: run, honor_labels: true, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}'
    with serving(tmp_path, job, every_s=1) as api:
        panels = Panels(api, folder.name, begun_s)
        assert len(panels.empty) == sum(len(row.panels) for row in grafana.rows())
        until(panels.look, 45, lambda: f"nothing to draw in {sorted(panels.empty)}; said {command.text()[-2000:]}", every_s=0.5)
        print(f"every panel had a point {time.time() - begun_s:.1f} s after the command")
        assert command.process.poll() is None, "the points are those of a run that lives"
    command.send(signal.SIGTERM)
    ended = command.wait(60)
    assert (ended.code, ended.document["status"]) == (130, "cancelled"), str(ended)
    assert ended.document["losses"]["lost_records"] == 0, ended.document["losses"]
    kinds = {worker.partition("@")[0].rpartition(".")[2] for worker in load(folder).metrics["worker"].to_pylist()}
    assert kinds >= SMALL.keys() | CALLED.keys() | ON_BOTH.keys() | BRIEF.keys()
