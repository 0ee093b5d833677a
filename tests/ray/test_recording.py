"""The `metrics` section of a scenario in a run: what its run directory holds, and what it does not."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
from support import documents
from support.terminal import Terminal, processes

from cluster.analysis import load

RATE_HZ = 20
SECOND = timedelta(seconds=1)
METRICS = {
    "level": "verbose",
    "mode": "detailed",
    "filters": [{"keep": {"metric": "host.memory.*"}}, {"leave_out": {"metric": "host.disk.*"}}],
    "sampling": [{"rate": {"metric": "load.slice", "rate_hz": RATE_HZ}}],
}


def rings_of(here: Terminal) -> list[str]:
    """Return which processes of a terminal's STATE hold shared memory of a ring."""
    found = []
    for process in processes():
        if str(here.state) in process.marked:
            with contextlib.suppress(OSError):  # it ended meanwhile
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                files = [path.readlink() for path in Path(f"/proc/{process.pid}/fd").iterdir()]
                found += [f"{process.pid} {process.role}"] * ("stress-cluster-ring" in maps + str(files))
    return found


def test_a_run_records_what_its_scenario_says(standing: Terminal) -> None:
    """Level, filters, mode and sampling: rows, counts of what was left out, single samples whose weights are the windows' counts."""
    made = documents.document("recorded", 6, cpu="10%", disk=None, hypotheses=(documents.MEMORY_STAYS,), metrics=METRICS)
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=90)
    assert ended.code == 0, str(ended)
    run = load(Path(ended.document["run_dir"]))
    assert run.manifest is not None
    assert run.manifest["scenario"]["metrics"] == METRICS
    names = Counter(run.metrics["metric"].to_pylist())
    assert {"host.load.average", "agent.outbox", "host.memory.available", "dose.achieved", "safety.verdict"} <= names.keys()
    assert not [name for name in names if name.startswith("host.disk.")]
    filtered = run.metrics.filter(pc.field("metric") == "metrics.filtered")
    assert {tuple(labels) for labels in filtered["labels"].to_pylist()} == {(("reason", "filter"),)}
    assert pc.sum(filtered["sum"]).as_py() > 0

    assert run.summary is not None
    samples = run.samples()
    assert run.summary["samples"] == {"produced": samples.num_rows, "written": samples.num_rows}
    assert (run.summary["losses"]["single_samples"], run.summary["losses"]["unflushed_recorders"]) == ({}, 0)
    weights, whole = Counter(), Counter()
    for row in samples.select(["metric", "node", "worker", "weight"]).to_pylist():
        weights[row["metric"], row["node"], row["worker"]] += row["weight"]
    of_loads = pc.starts_with(pc.field("metric"), "load.") | pc.starts_with(pc.field("metric"), "memory.")
    for row in run.metrics.filter(of_loads).select(["metric", "node", "worker", "count"]).to_pylist():
        whole[row["metric"], row["node"], row["worker"]] += row["count"]
    assert weights == whole
    assert len(whole) == (2 + 3) * 3, "two metrics of one load and three of the other on each of three nodes"
    slices = samples.filter(pc.field("metric") == "load.slice")
    each = Counter(zip(slices["node"].to_pylist(), (time.replace(microsecond=0) for time in slices["time"].to_pylist()), strict=True))
    assert max(each.values()) <= RATE_HZ * 1.2 + 2, "a stamp is that of its drain, up to a tenth of a second late"
    operations = samples.filter(pc.field("metric") == "load.operations")
    assert set(operations["weight"].to_pylist()) == {1}
    assert rings_of(standing) == []


def test_minimal_records_no_host_until_it_is_changed_under_way(standing: Terminal) -> None:
    """The verdict rests on doses, which no level leaves out. `modify` brings the host, but for what its filter leaves out, and the single
    samples in, on every node, from the next window on."""
    made = documents.document("minimal", 14, cpu="10%", disk=None, metrics={"level": "minimal"})
    command = standing.start("run", documents.write(standing.folder, made), "--yes", "--json")
    command.await_text("running", 60)
    standing.await_load(6)
    time.sleep(4.0)  # windows of before, two seconds from the change
    rule = 'metrics.filters=[{leave_out: {metric: "host.memory.*"}}]'
    told = standing.run("modify", "latest", "metrics.level=normal", "metrics.mode=detailed", rule, "--json")
    assert (told.code, told.document["nodes"], told.document["unreached"]) == (0, ["n1", "n2", "n3"], []), str(told)
    ended = command.wait(90)
    assert ended.code == 0, str(ended)
    assert all(one["reached"] for one in ended.document["dose"])
    folder = Path(ended.document["run_dir"])
    run = load(folder)
    (changed,) = [row["time"] for row in run.events.to_pylist() if row["kind"] == "modified"]
    rows = run.metrics.select(["metric", "node", "time"]).to_pylist()
    early = {row["metric"] for row in rows if row["time"] < changed - 2 * SECOND}
    assert early >= {"dose.requested", "dose.achieved", "safety.verdict"}
    assert not [name for name in early if name.startswith(("host.", "agent.")) or name == "load.slice"]
    late: dict[tuple[str, object], set[str]] = {}
    for row in rows:
        if row["time"] >= changed + SECOND and row["node"] in {"n1", "n2", "n3"}:
            late.setdefault((row["node"], row["time"]), set()).add(row["metric"])
    assert {node for node, _ in late} == {"n1", "n2", "n3"}
    assert all("host.cpu.busy" in names for names in late.values() if "dose.achieved" in names)
    assert not [name for name in set().union(*late.values()) if name.startswith("host.memory.")]
    samples = run.samples()
    assert run.summary is not None
    assert run.summary["samples"] == {"produced": samples.num_rows, "written": samples.num_rows}
    assert set(samples["node"].to_pylist()) == {"n1", "n2", "n3"}
    assert min(samples["time"].to_pylist()) >= changed - 2 * SECOND
    report = standing.run("report", str(folder))
    assert report.code == 0, str(report)
    assert report.out.startswith("PASSED")


def test_a_wrong_section_starts_nothing(standing: Terminal) -> None:
    """A hypothesis that the section leaves without rows is refused with 2, before any load."""
    made = documents.document("blind", 5, hypotheses=(documents.MEMORY_STAYS,), metrics={"level": "minimal"})
    ended = standing.run("run", documents.write(standing.folder, made), "--yes", "--json", within_s=60)
    assert ended.code == 2, str(ended)
    assert "host.memory.available" in ended.document["error"]["message"]
