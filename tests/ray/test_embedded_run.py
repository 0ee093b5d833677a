"""`stress-cluster run` on an embedded Ray of three raylets: it passes, leaves the run directory of the contract, and nothing else."""

from __future__ import annotations

import json
import math
import os
import stat
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import documents
from support.embedded import FinishedRun, temporary_names

from actors.host import read_heat
from actors.metrics.labels import strange
from actors.simulator import REGISTRY
from actors.undo import SLOT_BYTES, decode
from cluster.analysis import load

TARGETS = ("n1", "n2", "n3")
GUARDIAN_IDLE_S = 10.0  # how long a guardian stays after its last work
TEXT = ("metric", "kind", "unit", "node", "worker", "phase")
NUMBERS = ("window_s", "sum", "min", "max", "last", "p50", "p90", "p99", "p999")
COLUMNS = ("time", "window_s", "metric", "kind", "unit", "node", "worker", "phase", "labels", "count", "sum", "min", "max", "last")
QUANTILES = ("p50", "p90", "p99", "p999", "digest")
SUMMARY = (
    "status",
    "exit_code",
    "hypotheses",
    "dose",
    "peaks",
    "high_water",
    "violations",
    "losses",
    "outstanding",
    "start_skew_ms",
    "halt_latency_ms",
)


def document_of(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_run_passes_and_says_so_in_one_document(finished: FinishedRun) -> None:
    """Exit code 0, status passed, and standard output is one JSON document."""
    assert finished.ended.code == 0, str(finished.ended)
    told = finished.ended.document
    assert (told["status"], told["exit_code"]) == ("passed", 0)
    assert told["run_dir"] == str(finished.folder)
    assert told["run"] == finished.folder.name


def settled_seconds(values: list[float]) -> list[float]:
    """Return the six seconds before the load's last: it compiles before it begins, for as long as that takes, and ends within one."""
    return values[-7:-1]


def test_load_follows_the_shape_seen_from_outside(finished: FinishedRun) -> None:
    """Each CPU load takes its fifth of a raylet's share within 5 points once settled, each memory load its bytes within 2 %.

    Two seconds in six may miss: observer and Ray's own late starts share the cores, and a late reading moves time between two neighbours.
    The mean may not.
    """
    share = len(os.sched_getaffinity(0)) / len(TARGETS)
    memory = sorted(finished.memory_bytes)[-len(TARGETS) :]
    loads = {pid: [reading.cores / share for reading in readings if pid in reading.pids] for pid, readings in finished.cpu.items()}
    settled = sorted((settled_seconds(values) for values in loads.values()), key=sum)[-len(TARGETS) :]
    assert all(len(values) == 6 for values in settled), settled
    assert all(sum(abs(value - 0.2) > 0.05 for value in values) <= 2 for values in settled), settled
    assert all(abs(sum(values) / 6 - 0.2) <= 0.04 for values in settled), settled
    assert all(64 * documents.MIB <= held <= 64 * documents.MIB * 1.02 + 40 * documents.MIB for held in memory), memory
    assert finished.fills_bytes == pytest.approx(3 * 16 * documents.MIB, rel=0.02)


def test_the_run_directory_holds_what_the_contract_names(finished: FinishedRun) -> None:
    """Every file of the contract is there, whole, and nothing else."""
    names = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    parts = {name for name in names if name.startswith("metrics/") and name.endswith(".parquet")}
    assert parts
    assert names - parts == {"manifest.json", "plan.json", "summary.json", "events.parquet", "report.html"}


def test_manifest(finished: FinishedRun) -> None:
    """The manifest names run, verdict, scenario, seed, plan, code, versions, nodes, settings with origins, and times."""
    manifest = document_of(finished.folder / "manifest.json")
    told = finished.ended.document
    assert (manifest["run"], manifest["status"], manifest["exit_code"]) == (finished.folder.name, told["status"], finished.ended.code)
    assert manifest["scenario"]["name"] == "small"
    assert manifest["seed"] == 3
    assert "heartbeat" not in manifest  # it lives no more
    assert {"schema", "plan_digest", "code_id", "versions", "settings", "start", "end"} <= manifest.keys()
    assert manifest["settings"]["lease_s"] == {"value": 2.0, "origin": "environment STRESS_CLUSTER_LEASE_S"}
    assert manifest["profile"] == "aggressive"  # what admission and nodes went by
    assert manifest["settings"]["profile"] == {"value": "aggressive", "origin": "scenario"}
    assert tuple(node["name"] for node in manifest["nodes"]) == TARGETS
    for node in manifest["nodes"]:
        assert {"machine", "address", "capacity", "capabilities"} <= node.keys()
        assert node["address"]
        assert set(node["capabilities"]) == set(REGISTRY)
    assert all(stream["received"] == stream["expected_end"] for stream in manifest["streams"])


def test_raylets_of_one_machine_are_named_as_sharing_it(finished: FinishedRun) -> None:
    """Manifest, summary, report and plan say which nodes are one machine, and the embedded head is no target."""
    manifest = document_of(finished.folder / "manifest.json")
    assert len({node["machine"] for node in manifest["nodes"]}) == 1
    assert all(set(node["shares_machine_with"]) == set(TARGETS) - {node["name"]} for node in manifest["nodes"])
    assert finished.ended.document["shared_machines"] == [list(TARGETS)]
    report = finished.terminal.run("report", str(finished.folder))
    page = (finished.folder / "report.html").read_text()
    for text in (report.out, page):
        assert "Share one machine" in text
        assert "n1, n2, n3" in text
    assert "n1, n2, n3 share one machine" in finished.ended.err
    plan = finished.terminal.run("plan", finished.scenario, "--nodes", "3", "--json")
    assert plan.code == 0
    assert "shares" in plan.out or "shared" in plan.out


def test_plan_is_stored_and_enough_to_know_each_operation(finished: FinishedRun) -> None:
    """The stored plan names each operation on each node, and nothing of this cluster's life."""
    text = (finished.folder / "plan.json").read_text()
    manifest = document_of(finished.folder / "manifest.json")
    volatile = (finished.folder.name, "127.0.0", str(finished.terminal.state), manifest["nodes"][0]["machine"])
    assert not [word for word in volatile if word in text]
    for kind in ("CpuLoad", "MemoryPressure", "DiskFill"):
        for node in TARGETS:
            assert f"{kind}@{node}" in text


def test_summary(finished: FinishedRun) -> None:
    """The summary holds the contract's fields, each hypothesis held, and a dose for every operation on every node."""
    summary = document_of(finished.folder / "summary.json")
    assert set(SUMMARY) <= summary.keys()
    assert [one["held"] for one in summary["hypotheses"]] == [True, True]
    doses = summary["dose"]
    assert {(one["operation"].split(".")[-1].split("@")[0], one["node"]) for one in doses} == {
        (kind, node) for kind in ("CpuLoad", "MemoryPressure", "DiskFill") for node in TARGETS
    }
    assert all(one["reached"] is True for one in doses if one["unit"] == "bytes")
    assert all({"operation", "node", "requested", "achieved", "unit", "reached"} <= one.keys() for one in doses)
    assert summary["outstanding"] == []
    assert summary["violations"] == []
    assert 0 <= summary["start_skew_ms"] <= 1000
    told = finished.ended.document
    assert {key: told[key] for key in SUMMARY} == {key: summary[key] for key in SUMMARY}


def test_metrics_columns_and_types(finished: FinishedRun) -> None:
    """Metrics are one row per series and window with the contract's columns and types, and load() gives the same rows."""
    parts = sorted((finished.folder / "metrics").glob("*.parquet"))
    tables = [pq.read_table(path) for path in parts]
    for table in tables:
        assert set(COLUMNS + QUANTILES) <= set(table.column_names)
        types = {field.name: field.type for field in table.schema}
        assert pa.types.is_timestamp(types["time"])
        assert types["time"].tz == "UTC"
        assert all(pa.types.is_floating(types[name]) for name in NUMBERS)
        assert pa.types.is_integer(types["count"])
        assert pa.types.is_map(types["labels"])
        assert pa.types.is_binary(types["digest"]) or pa.types.is_large_binary(types["digest"])
        values = {name: types[name].value_type if pa.types.is_dictionary(types[name]) else types[name] for name in TEXT}
        assert all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in values.values()), values
    rows = pa.concat_tables([table.select(COLUMNS) for table in tables], promote_options="permissive")
    series = [tuple(str(row[name]) for name in ("time", "metric", "node", "worker", "phase", "labels")) for row in rows.to_pylist()]
    assert len(series) == len(set(series))
    assert load(finished.folder).metrics.num_rows == rows.num_rows
    assert strange((row["metric"], dict(row["labels"])) for row in rows.to_pylist()) == []
    told = {(row["metric"], row["node"]) for row in rows.to_pylist()}
    for node in TARGETS:
        assert {("dose.requested", node), ("dose.achieved", node), ("host.cpu.busy", node), ("probe.response", "head")} <= told


def test_a_finished_run_can_be_asked(finished: FinishedRun) -> None:
    """Achieved dose by node and over steps is that of the rows, and offsets count from the run's start."""
    data = load(finished.folder)
    rows = [row for row in data.metrics.to_pylist() if row["metric"] == "dose.achieved" and row["unit"] == "ratio"]
    found = [row for row in data.query("dose.achieved", "count", "max", by="node").rows if row.unit == "ratio"]
    assert {dict(row.by)["node"] for row in found} == set(TARGETS)
    for one in found:
        mine = [row for row in rows if row["node"] == dict(one.by)["node"]]
        assert (one.figures["count"].value, one.figures["max"].value) == (sum(r["count"] for r in mine), max(r["max"] for r in mine))
    steps = data.query("dose.achieved", "count", every="2s", worker="*CpuLoad*").rows
    assert len(steps) > 1
    assert sum(row.figures["count"].value for row in steps) == sum(row["count"] for row in rows if "CpuLoad" in row["worker"])
    assert data.query("dose.achieved", since="1d").note
    start_s = datetime.fromisoformat(document_of(finished.folder / "manifest.json")["start"]).timestamp()
    part = data.query("safety.c*", "count", "sum", label="resource=cpu_cores", since="5s", until="10s", by="node")
    mine = [
        row
        for row in data.metrics.to_pylist()
        if (row["metric"], dict(row["labels"])) == ("safety.ceiling", {"resource": "cpu_cores"})
        and start_s + 5 <= row["time"].timestamp() < start_s + 10
    ]
    assert {dict(row.by)["node"] for row in part.rows} == set(TARGETS)
    for one in part.rows:
        of_node = [row for row in mine if row["node"] == dict(one.by)["node"]]
        counts, sums = sum(row["count"] for row in of_node), math.fsum(row["sum"] for row in of_node)
        assert (one.figures["count"].value, one.figures["sum"].value) == (counts, sums)


def test_events(finished: FinishedRun) -> None:
    """Events have the contract's columns, their data is JSON, and they tell the run from begin to end in the order of time."""
    table = pq.read_table(finished.folder / "events.parquet")
    assert set(table.column_names) >= {"time", "sequence", "node", "worker", "phase", "kind", "severity", "message", "data"}
    rows = table.to_pylist()
    assert all(isinstance(json.loads(row["data"]), dict) for row in rows)
    assert {row["severity"] for row in rows} <= {"info", "warning", "error"}
    unavailable = [row["node"] for row in rows if row["kind"] == "load_note" and "temperatures are unavailable" in row["message"]]
    assert sorted(unavailable) == ([] if read_heat().available else sorted(TARGETS))
    story = [row["message"] for row in sorted(rows, key=lambda row: row["time"]) if row["node"] == "orchestrator"]
    wanted = ("preparing", "running", "stopping")
    places = [next((at for at, message in enumerate(story) if word in message), -1) for word in wanted]
    assert -1 not in places, story
    assert places == sorted(places), story


class References(HTMLParser):
    """Collects what a page asks from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [f"{tag} {value}" for name, value in attributes if name in ("src", "href", "data", "srcset", "action") and value]


def test_report_is_one_page_on_its_own(finished: FinishedRun) -> None:
    """The page draws asked against achieved and asks nothing from elsewhere."""
    text = (finished.folder / "report.html").read_text()
    page = References()
    page.feed(text)
    assert not [one for one in page.found if not one.split(" ", 1)[1].startswith(("#", "data:"))]
    assert "@import" not in text
    assert "url(http" not in text
    assert "svg" in page.tags
    for word in (finished.ended.document["status"], "asked", "achieved", *TARGETS):
        assert word in text


def test_nothing_is_left_behind(finished: FinishedRun) -> None:
    """Processes, shared memory, IPC, cgroups, mounts, HOME and temporary folders are as before; STATE keeps an empty journal."""
    finished.before.assert_clean(within_s=GUARDIAN_IDLE_S + 5)
    assert temporary_names() <= finished.temporary
    state = finished.terminal.state
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    journal = (state / "journal").read_bytes()
    slots = [journal[at : at + SLOT_BYTES] for at in range(0, len(journal), SLOT_BYTES)]
    assert [found for found in map(decode, slots) if found is not None] == []
    for folder in ("outbox", "embedded", "fill"):
        assert not [path for path in (state / folder).rglob("*") if path.is_file()]
    assert not list(state.rglob("*.sock"))
