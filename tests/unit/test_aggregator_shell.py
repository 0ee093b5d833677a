"""The aggregator's shell without Ray: late data of a run that has its end."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pyarrow.parquet as pq
import pytest

from actors.clock import SystemClock
from actors.errors import HarnessError, InputError, RefusedError
from actors.messages import Event, NodeSpec
from actors.metrics.registry import Kind
from cluster import aggregator_shell
from cluster.aggregator_shell import AggregatorShell
from cluster.conclusion import Ending
from cluster.files import read_json, write_json_atomic
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.checksum import sound_records
from cluster.metrics.retention import Retention
from cluster.metrics.store import log_files, read_run
from cluster.metrics.windows import Row
from cluster.recovery import deliver_local
from cluster.settings import load as load_settings
from scenarios import catalogue, text
from scenarios import plan as plans
from scenarios.plan import resolve
from tests.support.waiting import until
from tests.support.windows import end, record

RUN = "20260101-120000-late-1a2b"


@pytest.mark.parametrize(("status", "want"), [("error", 3), ("running", None)])
def test_late_data_of_an_ended_run_is_in_its_files_at_once(tmp_path, monkeypatch, status, want):
    """Also by an aggregator that was started for it alone; a run that goes on gets its files at its end."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    directory = tmp_path / "state" / "runs" / RUN
    first = Aggregator(RUN, directory, SystemClock())
    first.push("n1", "a", [record("n1", 1)])
    write_json_atomic(directory / "manifest.json", {"run": RUN, "status": status})
    if status != "running":
        first.finish()
    first.close()
    shell = AggregatorShell(RUN, lambda: None)
    try:
        assert shell.push("n1", "a", [record("n1", 2), end(3)]) == 3
        streams = (read_json(directory / "manifest.json") or {}).get("streams", [])
        assert [stream["expected_end"] for stream in streams] == ([want] if want else [])
        assert bool(list(directory.glob("metrics/*.parquet"))) is bool(want)
    finally:
        shell.leave()


def test_how_even_the_start_was_is_served_while_the_run_goes_on(tmp_path, monkeypatch):
    """It has a stream that is whole at once: neither a run that goes on nor its end waits for it."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    shell = AggregatorShell(RUN, lambda: None)
    try:
        shell.started(0.25)
        assert [one.value for one in shell._core.latest() if one.key.metric == "start.skew"] == [0.25]
        assert shell.evaluate("start.skew", "max", node="orchestrator") == 0.25
        assert shell.outstanding() == []
    finally:
        shell.leave()


@pytest.mark.parametrize("step", ["_beat", "_close"])
def test_an_aggregator_whose_disk_refuses_ends_all_the_same(tmp_path, monkeypatch, step):
    """Neither a heartbeat that cannot be written nor files that cannot be finished keep its process for ever."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(aggregator_shell, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(aggregator_shell, "LINGER_S", 0.1)
    directory = tmp_path / "state" / "runs" / RUN
    directory.mkdir(parents=True)
    write_json_atomic(directory / "manifest.json", {"run": RUN, "status": "passed"})
    failed, ended = threading.Event(), threading.Event()

    def fails(_):
        failed.set()
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(AggregatorShell, step, fails)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    AggregatorShell(RUN, ended.set)
    assert ended.wait(20)
    assert failed.is_set()


def test_what_came_before_the_very_end_is_in_the_files_and_what_comes_later_is_refused(tmp_path, monkeypatch):
    """An aggregator that is told to leave loses nothing that it has acknowledged, and acknowledges nothing more."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    directory = tmp_path / "state" / "runs" / RUN
    Aggregator(RUN, directory, SystemClock()).close()
    write_json_atomic(directory / "manifest.json", {"run": RUN, "status": "error"})
    ended = threading.Event()
    shell = AggregatorShell(RUN, ended.set)
    shell._core.push("n1", "a", [record("n1", 1), end(2)])  # taken, and the process is told to leave before its files were made
    shell.leave()
    assert ended.wait(10)
    assert [stream["expected_end"] for stream in (read_json(directory / "manifest.json") or {})["streams"]] == [2]
    with pytest.raises(HarnessError, match="has ended"):
        shell.push("n1", "a", [record("n1", 3)])


def test_an_aggregator_stays_no_longer_than_its_orchestrator_would(tmp_path, monkeypatch):
    """The setting that ends an idle orchestrator ends the aggregator of a run that has its end as well."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("cluster.aggregator_shell.HEARTBEAT_S", 0.05)
    directory = tmp_path / "state" / "runs" / RUN
    Aggregator(RUN, directory, SystemClock()).close()
    write_json_atomic(
        directory / "manifest.json", {"run": RUN, "status": "error", "settings": {"idle_exit_s": {"value": 0.1, "origin": "flag"}}}
    )
    ended = threading.Event()
    AggregatorShell(RUN, ended.set)
    assert ended.wait(20)


def page(shell):
    with urllib.request.urlopen(f"http://127.0.0.1:{shell._server.port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def manifest_with(**settings):
    told = {f"prometheus.{name}": {"value": value, "origin": "flag"} for name, value in settings.items()}
    return {"run": RUN, "settings": told}


def test_the_endpoint_is_served_as_the_settings_say_also_by_a_successor(tmp_path, monkeypatch):
    """Buckets of the settings are shown; an aggregator that takes over shows the same of what it finds in the log."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    first = AggregatorShell(RUN, lambda: None)
    first.begin(manifest_with(buckets="probe.response=0.25,0.5"), b"{}", "127.0.0.1", 0)
    first.push("n1", "a", [record("n1", 1)])
    want = [line for line in page(first).splitlines() if line.startswith("stress_cluster_probe_response_seconds")]
    assert [line.partition('le="')[2].partition('"')[0] for line in want if "_bucket" in line] == ["0.25", "0.5", "+Inf"]
    first._server.close()
    first._core.close()
    second = AggregatorShell(RUN, lambda: None)
    try:
        assert [line for line in page(second).splitlines() if line.startswith("stress_cluster_probe_response_seconds")] == want
    finally:
        first.leave()
        second.leave()


def test_a_run_that_goes_on_can_be_asked_at_its_endpoint(tmp_path, monkeypatch):
    """What was pushed is in the answer at once, with the run's name and offsets from its start, and a successor answers the same."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    first = AggregatorShell(RUN, lambda: None)
    first.begin({**manifest_with(), "scenario": {"name": "late"}}, b"{}", "127.0.0.1", 0)
    first.push("n1", "a", [record("n1", at) for at in range(1, 4)])
    want = asked(first, "metric=probe.requests&stat=sum&stat=count")
    assert (want["run"], want["scenario"], want["status"]) == (RUN, "late", "running")
    assert [(row["windows"], row["figures"]["sum"]["value"]) for row in want["rows"]] == [(3, 6.0)]
    assert asked(first, "metric=probe.requests&since=1s")["rows"] == []  # these windows are of long before the run's start
    first._server.close()
    first._core.close()
    second = AggregatorShell(RUN, lambda: None)
    try:
        assert asked(second, "metric=probe.requests&stat=sum&stat=count")["rows"] == want["rows"]
    finally:
        first.leave()
        second.leave()


def asked(shell, query):
    with urllib.request.urlopen(f"http://127.0.0.1:{shell._server.port}/api/v1/query?{query}", timeout=30) as answer:
        return json.loads(answer.read())


def test_a_wrong_endpoint_stops_the_start_and_never_a_run_under_way(tmp_path, monkeypatch):
    """Files that are not there refuse a run before its load; for a successor they cost the endpoint alone, and windows are taken."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    bad = manifest_with(auth_file=str(tmp_path / "none.toml"))
    first = AggregatorShell(RUN, lambda: None)
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        first.begin(bad, b"{}", "127.0.0.1", 0)
    first._core.close()
    write_json_atomic(first.directory / "manifest.json", {**bad, "status": "running", "prometheus": {"host": "127.0.0.1", "port": 0}})
    second = AggregatorShell(RUN, lambda: None)
    try:
        assert second._server is None
        assert second.push("n1", "a", [record("n1", 1)]) == 1
    finally:
        first.leave()
        second.leave()


def test_old_windows_of_a_run_that_goes_on_become_longer(tmp_path, monkeypatch):
    """The shell knows from settings, plan and doses what may be merged: nothing before the load's start is known, nor after the end."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    dose = Row("dose.requested", Kind.GAUGE, "ratio", plan.operations[0].id, "p", (), 1, 0.5, 0.5, 0.5, 0.5)
    busy = Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, 0.5, 0.5, 0.5, 0.5)
    shell = AggregatorShell(RUN, lambda: None)
    try:
        settings = load_settings({"metrics.fine_for_s": "2m"}, environ={}, folder=tmp_path).to_json()
        shell.begin({"run": RUN, "settings": settings}, plan.to_json(), "127.0.0.1", None)
        shell.push("n1", "a", [record("n1", at, rows=[busy]) for at in range(1, 301)])
        assert not shell.roll()
        shell.push("n1", "a", [record("n1", 301, rows=[busy, dose])])
        assert shell.roll()
        assert not shell.roll()
        lengths = shell._core.query("host.cpu.busy").sort_by("time")["window_s"].to_pylist()
        assert lengths[0] == 60.0
        assert lengths[-1] == 1.0
        assert shell.evaluate("host.cpu.busy", "sum") == 301 * 0.5
        successor = Retention.of_manifest(read_json(shell.directory / "manifest.json"))
        assert successor == Retention(120.0, 604_800.0)
    finally:
        shell.leave()


def test_what_hooks_found_before_an_aggregator_died_is_in_the_run(tmp_path, monkeypatch):
    """Findings are written as they come: the successor's run has those of the dead life, each once, and ends its stream."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    settings = load_settings({"metrics.anomaly": "robust_z", "metrics.anomaly_window_s": "1s"}, environ={}, folder=tmp_path).to_json()
    levels = [0.5] * 120 + [0.9] + [0.5] * 9
    rows = [Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, level, level, level, level) for level in levels]
    first = AggregatorShell(RUN, lambda: None)
    first.begin({"run": RUN, "settings": settings}, plan.to_json(), "127.0.0.1", None)
    first.push("n1", "a", [record("n1", at, rows=[row], events=0) for at, row in enumerate(rows, 1)])
    until(lambda: "anomaly" in read_run(first.directory).events["kind"].to_pylist(), 20)
    first._core.close()
    second = AggregatorShell(RUN, lambda: None)
    try:
        second.conclude(Ending(RUN, (), (), (), 0, None, None))
        events = read_run(second.directory).events.to_pylist()
        assert [one["node"] for one in events if one["kind"] == "anomaly"][:1] == ["n1"]
        assert second.evaluate("anomaly.found", "sum") == sum(one["kind"] == "anomaly" for one in events)
        assert [one["node"] for one in second.outstanding()] == ["n1"]
    finally:
        first.leave()
        second.leave()


def lines_of(shell, query=""):
    return urllib.request.urlopen(f"http://127.0.0.1:{shell._server.port}/api/v1/stream?{query}", timeout=30)


def test_windows_of_a_run_are_streamed_until_its_end(tmp_path, monkeypatch):
    """Clients get what comes once it is on disk, whose it is in each line, and the end with the verdict; a successor streams as well."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    first = AggregatorShell(RUN, lambda: None)
    first.begin({**manifest_with(), "scenario": {"name": "late"}}, plan.to_json(), "127.0.0.1", 0)
    with lines_of(first, "metric=probe.requests") as answer:
        assert json.loads(answer.readline())["stream"]["offered"] == 0
        first.push("n1", "a", [record("n1", 1), record("n1", 2)])
        told = [json.loads(answer.readline()) for _ in range(2)]
        assert [(one["run"], one["scenario"], one["node"], one["sum"]) for one in told] == [(RUN, "late", "n1", at) for at in (1.0, 2.0)]
        first._feed.close()
        first._server.close()
    first._core.close()
    second = AggregatorShell(RUN, lambda: None)
    try:
        with lines_of(second) as answer:
            answer.readline()
            second.push("n1", "a", [record("n1", 2), record("n1", 3), end(4)])
            second.conclude(Ending(RUN, (), (), (), 0, None, None))
            with pytest.raises(RefusedError, match="has ended"):
                second._feed.subscribe({})
            lines = [json.loads(line) for line in answer.read().splitlines()]
        assert lines[-1]["stream"]["ended"]
        assert [one["sum"] for one in lines if one.get("metric") == "probe.requests"] == [3.0]
    finally:
        first.leave()
        second.leave()


def test_a_run_that_lost_records_to_a_damaged_file_has_not_passed(tmp_path, monkeypatch):
    """The successor goes on, and the verdict says whose figures are not whole: an unknown outcome, with the loss in the summary."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    first = AggregatorShell(RUN, lambda: None)
    first.begin({"run": RUN}, plan.to_json(), "127.0.0.1", None)
    first.push("n1", "a", [record("n1", at) for at in range(1, 5)])
    first._core.close()
    (log,) = log_files(first.directory, "metrics")
    _, after = list(sound_records(log.read_bytes()))[1]
    log.write_bytes(log.read_bytes()[: after - 1] + b"\xaa" + log.read_bytes()[after:])
    second = AggregatorShell(RUN, lambda: None)
    try:
        assert second.push("n1", "a", [record("n1", 5), end(6)]) == 6
        told = second.conclude(Ending(RUN, (), (), (), 0, None, None))
        assert (told["status"], told["exit_code"]) == ("error", 3)
        assert "metrics of n1 from sequence 2 on" in told["message"]
        assert told["summary"]["losses"]["lost_records"] == 1
    finally:
        first.leave()
        second.leave()


def test_an_anomaly_is_an_event_of_its_run(tmp_path, monkeypatch):
    """With a hook in the settings a planted step is in events.parquet and counted; a hook that nobody offers stops the start."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("head", is_head=True), NodeSpec("n1")), 3)
    shell = AggregatorShell(RUN, lambda: None)
    try:
        bad = load_settings({"metrics.anomaly": "robust_zz"}, environ={}, folder=tmp_path).to_json()
        with pytest.raises(InputError, match="offered by none"):
            shell.begin({"run": RUN, "settings": bad}, plan.to_json(), "127.0.0.1", None)
        good = load_settings({"metrics.anomaly": "robust_z", "metrics.anomaly_window_s": "1s"}, environ={}, folder=tmp_path).to_json()
        shell.begin({"run": RUN, "settings": good}, plan.to_json(), "127.0.0.1", None)
        levels = [0.5] * 120 + [0.9]
        rows = [Row("host.cpu.busy", Kind.GAUGE, "ratio", "", "p", (), 1, level, level, level, level) for level in levels]
        shell.push("n1", "a", [record("n1", at, rows=[row], events=0) for at, row in enumerate(rows, 1)])
        shell.conclude(Ending(RUN, (), (), (), 0, None, None))
        events = read_run(shell.directory).events.to_pylist()
        assert [(one["node"], one["severity"]) for one in events if one["kind"] == "anomaly"] == [("n1", "warning")]
        assert shell.evaluate("anomaly.found", "sum", labels={"hook": "robust_z"}) == 1.0
    finally:
        shell.leave()


def manifest_exporting(*destinations):
    plan = {"CpuLoad": {"fraction": 0.1}, "for": 5}
    return {
        "run": RUN,
        "scenario": {"version": 1, "name": "small", "plan": plan, "exporters": {"destinations": list(destinations)}},
    }


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        pytest.param({"type": "csv", "path": "{tmp}/none/m.csv"}, "none is not a folder", id="no-folder"),
        pytest.param({"type": "csv", "path": "{tmp}/there.csv"}, "there.csv exists already", id="there-already"),
        pytest.param({"type": "csv", "path": "{tmp}/late.csv"}, "late.0007.csv exists already", id="a-numbered-one-is-there"),
        pytest.param({"type": "csv", "path": "/proc/m.csv"}, "/proc cannot be written", id="not-to-be-written"),
        pytest.param({"type": "csv", "path": "m.csv", "spill": "{tmp}/none"}, "spill of 'csv'", id="spill"),
    ],
)
def test_a_destination_that_cannot_be_written_refuses_the_run(tmp_path, monkeypatch, destination, words):
    """Before any load, with what is wrong and where (6); nothing is left."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    for name in ("there.csv", "late.0007.csv"):
        (tmp_path / name).write_text("mine")
    said = {key: value.replace("{tmp}", str(tmp_path)) for key, value in destination.items()}
    shell = AggregatorShell(RUN, lambda: None)
    with pytest.raises(RefusedError, match=words) as caught:
        shell.begin(manifest_exporting(said), b"{}", "127.0.0.1", None)
    assert caught.value.exit_code == 6
    shell.abandon()
    assert not shell.directory.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late.0007.csv", "state", "there.csv"]
    assert {path.read_text() for path in tmp_path.glob("*.csv")} == {"mine"}


def rows_of(path):
    """Return the rows of a file of JSON lines, in order; each says that it is of this run and scenario."""
    rows = list(map(json.loads, path.read_text().splitlines()))
    assert {(row["run"], row["scenario"], bool(row["node"])) for row in rows} == {(RUN, "small", True)}
    return sorted((row["metric"], row["node"], row["sum"]) for row in rows)


def ready(shell, path="/readyz"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{shell._server.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def ending_of_nothing():
    return Ending(RUN, (), (), (Event("k", "told"),), 0, None, None)


def test_a_run_with_exporters_says_so_in_its_documents_and_on_its_endpoint(tmp_path, monkeypatch):
    """Metrics, /readyz, summary and files agree; a verdict is what it would be without; late data is there when all has ended."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "out").mkdir()
    said = [{"type": "jsonl", "path": f"{tmp_path}/out/{{run}}.jsonl"}, {"type": "parquet", "path": "m.parquet"}]
    ended = threading.Event()
    shell = AggregatorShell(RUN, ended.set)
    plan = resolve(text.from_data(manifest_exporting()["scenario"]), [NodeSpec("n1", "127.0.0.1")], 0)
    shell.begin(manifest_exporting(*said), plan.to_json(), "127.0.0.1", 0)
    shell.push("n1", "a", [record("n1", number) for number in range(1, 11)])
    checks = {one["name"]: one for one in ready(shell)["checks"]}
    assert checks["exporter jsonl"]["ok"]
    assert checks["exporter parquet"]["detail"]["breaker"] == "closed"
    assert shell.exporters(["jsonl"])[0]["paused"]
    until(lambda: ready(shell, "/exporters/jsonl/readyz")["status"] == "not ok", 10)
    assert ready(shell, "/exporters/jsonl/readyz")["checks"][0]["reason"] == "paused"
    assert ready(shell, "/exporters/jsonl/healthz")["status"] == "ok" == ready(shell, "/exporters/parquet/readyz")["status"]
    assert [one["paused"] for one in shell.exporters([], ["jsonl"])] == [False, False]
    until(
        lambda: 'export_delivered_total{exporter="jsonl"' in page(shell).replace(f'run="{RUN}",', "") or "export_queue" in page(shell), 10
    )
    series = [line for line in page(shell).splitlines() if not line.startswith("#")]
    assert all(f'run="{RUN}",scenario="small"' in line and 'node=""' not in line for line in series), series
    outcome = shell.conclude(ending_of_nothing())
    told = outcome["summary"]["exporters"]
    rows = [(row["metric"], row["node"], row["sum"]) for row in read_run(shell.directory).metrics.to_pylist()]
    assert [(one["name"], one["complete"], one["delivered_rows"]) for one in told] == [
        ("jsonl", True, len(rows)),
        ("parquet", True, len(rows)),
    ]
    assert rows_of(tmp_path / "out" / f"{RUN}.jsonl") == sorted(rows)
    assert "exports/m.parquet" in {file["name"] for file in shell.files()}
    assert [one["node"] for one in shell.outstanding()] == ["n1"]  # its stream has no end yet; that of the exporters has
    assert shell.push("n1", "a", [record("n1", 11), end(12)]) == 12
    told = read_json(shell.directory / "summary.json")["exporters"]
    assert [(one["complete"], one["is_behind"]) for one in told] == [(False, True)] * 2
    with pytest.raises(InputError, match="no exporters at work"):
        shell.exporters()
    shell.leave()
    assert ended.wait(30)
    told = read_json(shell.directory / "summary.json")["exporters"]
    rows = [(row["metric"], row["node"], row["sum"]) for row in read_run(shell.directory).metrics.to_pylist()]
    assert [one["complete"] for one in told] == [True, True]
    assert rows_of(tmp_path / "out" / f"{RUN}.jsonl") == sorted(rows)
    assert pq.read_metadata(shell.directory / "exports" / "m.parquet").num_rows == len(rows)


def test_a_run_that_died_has_its_exports_after_recovery(tmp_path, monkeypatch):
    """What the aggregator had on disk when it went for good is in every file once the run was recovered."""
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(tmp_path / "state"))
    ended = threading.Event()
    shell = AggregatorShell(RUN, ended.set)
    said = [{"type": "jsonl", "path": "m.jsonl"}, {"type": "json", "path": "m.json"}]
    shell.begin(manifest_exporting(*said), b"{}", "127.0.0.1", None)
    shell.push("n1", "a", [record("n1", number) for number in range(1, 11)])
    shell.leave()  # without a conclusion
    assert ended.wait(30)
    assert not (shell.directory / "exports" / "m.json").exists()
    assert list(deliver_local(tmp_path / "state")) == [RUN]
    told = read_json(shell.directory / "summary.json")
    rows = sorted((row["metric"], row["node"], row["sum"]) for row in read_run(shell.directory).metrics.to_pylist())
    assert (told["status"], [one["complete"] for one in told["exporters"]]) == ("error", [True, True])
    assert set(rows_of(shell.directory / "exports" / "m.jsonl")) == set(rows)
    found = json.loads((shell.directory / "exports" / "m.json").read_text())
    assert sorted((row["metric"], row["node"], row["sum"]) for row in found) == rows
    assert [one for one in told["outstanding"] if one["node"] == "aggregator"] == []
