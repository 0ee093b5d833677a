"""Reading a run: tables, documents that may not be there yet, and where it lies."""

from __future__ import annotations

from pathlib import Path

from cluster.analysis import RunData, find_run, load

run: RunData = load("latest")
older = load(Path("runs/20260101-120000-burst-1a2b"), out="runs")
rows: list[dict[str, object]] = older.metrics.to_pylist()
folder: Path = find_run("latest", out=Path("runs"))
status = run.manifest["status"] if run.manifest is not None else "running"
frame = run.metrics_frame()
weights: list[int] = run.samples()["weight"].to_pylist()

load()  # E: [call-arg]
load(7)  # E: [arg-type]
load("latest", folder="runs")  # E: [call-arg]
run.manifest["status"]  # E: [index]
run.sample  # E: [attr-defined]
run.path = folder  # E: [misc]
