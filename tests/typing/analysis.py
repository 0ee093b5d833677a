"""Reading a run: tables, documents that may not be there yet, and where it lies."""

from __future__ import annotations

from pathlib import Path

from cluster.analysis import RunData, find_run, follow, load

run: RunData = load("latest")
older = load(Path("runs/20260101-120000-burst-1a2b"), out="runs")
rows: list[dict[str, object]] = older.metrics.to_pylist()
folder: Path = find_run("latest", out=Path("runs"))
status = run.manifest["status"] if run.manifest is not None else "running"
frame = run.metrics_frame()
weights: list[int] = run.samples()["weight"].to_pylist()
with follow("latest", "probe.*", node=["n1", "n2"], bound="100") as windows:
    names: list[str] = [window["metric"] for window in windows]
    dropped: int = windows.counts.dropped

load()  # E: [call-arg]
follow()  # E: [call-arg]
follow("latest", bound=100)  # E: [arg-type]
load(7)  # E: [arg-type]
load("latest", folder="runs")  # E: [call-arg]
run.manifest["status"]  # E: [index]
run.sample  # E: [attr-defined]
run.path = folder  # E: [misc]
