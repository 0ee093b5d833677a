"""A run directory that its driver left unwhole: `report`, `status` and `recover` go by what STATE or the cluster has."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from actors.clock import SystemClock
from actors.errors import HarnessError, InputError, RefusedError
from actors.messages import NodeSpec
from cluster import cli, fetch
from cluster.aggregator_shell import AggregatorShell
from cluster.analysis import load
from cluster.cli import ports
from cluster.client import Connection
from cluster.driver import mark_died
from cluster.fetch import LocalDirectory, homes_of, is_whole
from cluster.files import read_json, write_json_atomic
from cluster.journal import Journal
from cluster.metrics.aggregator import Aggregator
from cluster.orchestrator_api import OrchestratorConfig
from cluster.orchestrator_shell import OrchestratorShell
from cluster.recovery import on_absent_nodes
from cluster.settings import load as load_settings
from tests.support.windows import end, record

RUN = "20260101-120000-small-1a2b"
NOW_NS = SystemClock().wall_ns()


def ago(seconds: float) -> str:
    return dt.datetime.fromtimestamp(SystemClock().wall_ns() / 1e9 - seconds, dt.UTC).isoformat()


class Place:
    """A user's OUT and STATE on one machine, with one run in STATE."""

    def __init__(self, folder: Path) -> None:
        self.state, self.out = folder / "state", folder / "runs"
        self.stored, self.home = self.state / "runs" / RUN, self.out / RUN
        self.state.mkdir(mode=0o700)
        self.settings = load_settings({"out": str(self.out), "state_dir": str(self.state)}, environ={})

    def live(self, records: int, *, heartbeat_s: float = 0.0, ended: bool = False) -> Aggregator:
        """Have an aggregator of the run take windows; its manifest says `running` with a heartbeat of some seconds ago."""
        manifest = {"run": RUN, "status": "running", "exit_code": None, "heartbeat": ago(heartbeat_s), "out": str(self.home)}
        aggregator = Aggregator(RUN, self.stored, SystemClock())
        write_json_atomic(self.stored / "manifest.json", manifest)
        (self.stored / "plan.json").write_text("{}")
        aggregator.push("n1", "a", [*(record("n1", at) for at in range(1, records + 1)), *([end(records + 1)] if ended else [])])
        return aggregator

    def finish(self, aggregator: Aggregator, status: str = "passed") -> None:
        """Give the run its end, as its orchestrator does."""
        manifest = read_json(self.stored / "manifest.json") or {}
        manifest.pop("heartbeat", None)
        aggregator.finish({"status": status, "exit_code": 0, "run": RUN}, {**manifest, "status": status, "exit_code": 0})
        aggregator.close()

    def mirrored_early(self) -> None:
        """Leave in OUT what a driver has there after its first seconds."""
        self.home.mkdir(parents=True)
        for name in ("manifest.json", "plan.json"):
            shutil.copy(self.stored / name, self.home / name)

    def windows(self) -> list[int]:
        """Return which windows a reader of OUT sees."""
        rows = load(self.home).metrics.to_pylist()
        return sorted(int(row["sum"]) for row in rows if row["metric"] == "probe.requests")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place of its own, which the commands' environment names."""
    for name in ("RAY_ADDRESS", "STRESS_CLUSTER_LEASE_S"):
        monkeypatch.delenv(name, raising=False)
    made = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRESS_CLUSTER_STATE_DIR", str(made.state))
    monkeypatch.setenv("STRESS_CLUSTER_OUT", str(made.out))
    return made


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


# ---- report


def test_a_run_that_passed_after_its_driver_went_is_reported_as_passed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """OUT stands as a detached or killed driver left it, long ago; STATE has the end: the report is STATE's, and OUT becomes whole."""
    aggregator = place.live(3, heartbeat_s=600, ended=True)
    place.mirrored_early()
    (place.home / "report.html").write_text("an early page")
    place.finish(aggregator)
    assert not is_whole(place.home)
    found = told(capsys, "report", RUN)
    assert (found["status"], found["exit_code"], found["run_dir"]) == ("passed", 0, str(place.home))
    assert is_whole(place.home)
    assert place.windows() == [1, 2, 3]
    assert "passed" in (place.home / "report.html").read_text()


def test_a_run_that_goes_on_is_read_where_it_is_written(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """While the run lives OUT may be old and is its driver's to write: the report reads STATE, and touches nothing."""
    aggregator = place.live(2)
    place.mirrored_early()
    write_json_atomic(place.home / "manifest.json", {**(read_json(place.home / "manifest.json") or {}), "heartbeat": ago(600)})
    before = {path: path.stat().st_mtime_ns for path in place.home.rglob("*")}
    found = told(capsys, "report", RUN)
    assert (found["status"], found["run_dir"]) == ("running", str(place.stored))
    assert {path: path.stat().st_mtime_ns for path in place.home.rglob("*")} == before
    aggregator.close()


def test_what_a_dead_run_measured_is_in_its_report_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything was killed: the log is fetched under the verdict that the starter wrote; after `recover` the same windows stand once."""
    aggregator = place.live(4, heartbeat_s=600)
    place.mirrored_early()
    aggregator.close()
    mark_died(place.home, "the driver process was killed by signal 9")
    found = told(capsys, "report", RUN)
    assert (found["status"], found["exit_code"]) == ("error", 3)
    assert place.windows() == [1, 2, 3, 4]
    assert (read_json(place.home / "manifest.json") or {})["message"] == "the driver process was killed by signal 9"
    again = place.live(4)
    again.push("n1", "a", [record("n1", 5), end(6)])
    place.finish(again, "error")
    assert told(capsys, "report", RUN)["run_dir"] == str(place.home)
    assert place.windows() == [1, 2, 3, 4, 5]
    assert not (place.home / "log").exists()


def test_a_run_of_another_machine_is_fetched_from_its_cluster(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an address `report` asks the cluster for a run that STATE here does not have, and says so when it cannot be had."""
    aggregator = place.live(2, ended=True)
    place.finish(aggregator)
    elsewhere = place.state.with_name("elsewhere")
    place.stored.rename(elsewhere)

    class Link:
        answer: Callable[[str, Path], bool]

        def fetch(self, run: str, run_dir: Path) -> bool:
            return Link.answer(run, run_dir)

        def close(self) -> None:
            pass

    def there(run: str, run_dir: Path) -> bool:
        assert run == RUN
        fetch.fetch(LocalDirectory(elsewhere), run_dir, NOW_NS)
        return True

    def unreachable(run: str, run_dir: Path) -> bool:
        raise RefusedError("lost", "nobody answers")

    monkeypatch.setattr(ports, "connect", lambda address, settings: Link())
    for answer in (lambda run, run_dir: False, unreachable):
        Link.answer = staticmethod(answer)
        assert cli.main(["report", RUN, "--address", "head:6379"]) == 2
        assert "no run directory" in capsys.readouterr().err
    Link.answer = staticmethod(there)
    assert told(capsys, "report", RUN, "--address", "head:6379")["status"] == "passed"
    assert is_whole(place.home)
    monkeypatch.setattr(ports, "connect", None)  # what is whole asks nobody
    assert told(capsys, "report", RUN, "--address", "head:6379")["status"] == "passed"


def test_a_log_that_becomes_parquet_meanwhile_is_fetched_as_such(place: Place) -> None:
    """A file that vanished between its listing and its reading makes the fetch begin again; nothing is lost or doubled."""
    aggregator = place.live(3, heartbeat_s=600, ended=True)
    place.mirrored_early()
    mark_died(place.home, "gone")

    class Settling(LocalDirectory):
        def call(self, method: str, *args: Any, timeout_s: float = 10.0) -> Any:
            if method == "read" and str(args[0]).startswith("log/") and (self.directory / "log").is_dir():
                aggregator.finish()
            return super().call(method, *args)

    fetch.fetch(Settling(place.stored), place.home, NOW_NS)
    aggregator.close()
    assert place.windows() == [1, 2, 3]
    assert not (place.home / "log").exists()


@pytest.mark.parametrize("run", ["../x", "", ".hidden", "a/b"])
def test_a_run_id_is_no_way_out_of_the_folder(run: str) -> None:
    """What becomes part of a path on another machine is a run id and nothing else."""
    with pytest.raises(InputError, match="no run id"):
        fetch.checked_run(run)


# ---- recover and status


class FakeGuardian:
    """A guardian that holds nothing, or load of one run."""

    def __init__(self, *runs: str) -> None:
        self.slots = [{"run": run, "operation": "0.CpuLoad@n1"} for run in runs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, method: str) -> dict[str, Any]:
        assert method == "status"
        return {"slots": self.slots, "records": [], "halt": {"generation": 0, "on": False}}


@pytest.fixture
def alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """A connection without a cluster, whose guardian is a fake."""
    monkeypatch.setattr(Connection, "_guardian", lambda self: FakeGuardian())
    return Connection(place.settings, "")


def test_recover_ends_a_dead_run_and_brings_its_out_up_to_date(place: Place, alone: Connection) -> None:
    """The run directory that the dead driver wrote is found by what the manifest says, ends as an error, and has every window."""
    aggregator = place.live(3, heartbeat_s=600)
    place.mirrored_early()
    aggregator.close()
    found = Connection(dataclasses.replace(place.settings, out="another/folder"), "").recover()
    assert (found["delivered"], found["fetched"], found["remaining"]) == ([RUN], [RUN], [])
    manifest = read_json(place.home / "manifest.json") or {}
    assert (manifest["status"], manifest["exit_code"]) == ("error", 3)
    assert place.windows() == [1, 2, 3]
    assert alone.recover() == {"delivered": [], "fetched": [RUN], "undone": [], "remaining": []}  # its stream never ended: asked again


def test_recover_does_not_bring_back_what_a_user_removed(place: Place, alone: Connection) -> None:
    """A run directory that is gone from OUT, or is another run's by now, is nobody's home."""
    place.finish(place.live(1, ended=True))
    assert alone.recover()["fetched"] == []
    assert not place.home.exists()
    place.home.mkdir(parents=True)
    write_json_atomic(place.home / "manifest.json", {"run": "another"})
    assert homes_of(place.state, place.state / "none") == {}


def test_status_of_one_run_without_a_cluster(place: Place, alone: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUN selects, by id, folder or `latest`: load that is here, else what STATE says; a run that is unknown here is an error."""
    monkeypatch.setattr(Connection, "_guardian", lambda self: FakeGuardian("20260101-000000-a-0001", "20260101-000000-b-0002"))
    assert [one["run"] for one in alone.status(None)["runs"]] == ["20260101-000000-a-0001", "20260101-000000-b-0002"]
    assert alone.status("runs/20260101-000000-a-0001")["runs"] == [{"run": "20260101-000000-a-0001", "phase": "on this machine"}]
    assert [one["run"] for one in alone.status("latest")["runs"]] == ["20260101-000000-b-0002"]
    with pytest.raises(InputError, match="known: 20260101-000000-a-0001"):
        alone.status("none")
    place.finish(place.live(1, ended=True))
    assert alone.status("latest")["runs"] == [{"run": RUN, "status": "passed", "exit_code": 0, "message": ""}]
    (place.stored / "manifest.json").write_text(json.dumps({"run": RUN, "status": "running", "heartbeat": ago(600)}))
    assert alone.status(RUN)["runs"][0]["status"] == "error"


# ---- a cluster's recovery


class FakeAggregator:
    """The remote end of an aggregator's core, of a run without exporters."""

    _exports = _anomalies = None
    _is_concluded = False
    _end_anomalies = AggregatorShell._end_anomalies
    _export_late, _summary_with = AggregatorShell._export_late, AggregatorShell._summary_with

    def __init__(self, core: Aggregator) -> None:
        self.core, self.directory, self.calls = core, core.directory, list[tuple[Any, ...]]()

    def call(self, method: str, *args: Any, timeout_s: float = 30.0) -> Any:
        self.calls.append((method, *args))
        return getattr(AggregatorShell, method)(self, *args)

    @property
    def _core(self) -> Aggregator:
        return self.core

    @property
    def _manifest_lock(self) -> Any:
        import threading

        return threading.Lock()


class FakePort:
    """A cluster without nodes, with living aggregators."""

    def __init__(self, state_dir: Path, living: dict[str, Any]) -> None:
        self.folder, self.living = state_dir, living

    def nodes(self) -> list[Any]:
        return []

    def aggregators(self) -> list[str]:
        return list(self.living)

    def aggregator(self, run: str, manifest: dict[str, Any], *, create: bool) -> Any:
        return self.living.get(run) or (create and FakeAggregator) or None

    def state_dir(self) -> Path:
        return self.folder

    def exit(self) -> None:
        pass


@pytest.fixture
def shell(place: Place, tmp_path: Path) -> Any:
    made = OrchestratorShell(OrchestratorConfig(), FakePort(place.state, {}), "c", 2, Journal(tmp_path / "journal.log"))
    yield made
    made._ending.set()


def test_a_clusters_recovery_ends_runs_that_no_orchestrator_has(place: Place, shell: OrchestratorShell) -> None:
    """A run whose aggregator outlived its orchestrator ends as an error (3); one that is being admitted is left alone."""
    aggregator = place.live(2)
    living = FakeAggregator(aggregator)
    shell._port.living[RUN] = living
    shell._admitting.add(RUN)
    assert shell.recover(0.0) == {"recovered": [], "remaining": [], "nodes": [], "alive": [RUN]}
    assert (read_json(place.stored / "manifest.json") or {})["status"] == "running"
    assert living.calls == []
    shell._admitting.clear()
    assert shell.recover(0.0)["recovered"] == [RUN]
    manifest, summary = (read_json(place.stored / name) or {} for name in ("manifest.json", "summary.json"))
    assert (manifest["status"], manifest["exit_code"], summary["status"]) == ("error", 3, "error")
    assert "heartbeat" not in manifest
    aggregator.close()


def test_a_clusters_recovery_names_what_only_an_absent_node_has(place: Place, shell: OrchestratorShell) -> None:
    """A stream without its end is outstanding while its node is away: that is no clean end. A node that is there has said what it has."""
    place.live(2, heartbeat_s=600).close()
    (told,) = shell.recover(0.0)["remaining"]
    node = told.partition(":")[0]
    assert told.startswith(f"{node}: metrics of run {RUN} from window 3 on have not arrived")
    assert on_absent_nodes(place.state, (), {node}) == []
    assert on_absent_nodes(place.state, {RUN}, ()) == []


@pytest.mark.parametrize("living", [False, True], ids=["on-disk", "its-aggregator-lives"])
def test_a_forgotten_nodes_streams_are_closed(place: Place, shell: OrchestratorShell, living: bool) -> None:
    """Refused while nothing waits for the node, or Ray has it; then `recover` has no more to wait for, and OUT follows."""
    place.live(2, heartbeat_s=600).close()
    assert [one.partition(":")[0] for one in shell.recover(0.0)["remaining"]] == ["n1"]
    with pytest.raises(RefusedError, match="waits for anything of n7"):
        shell.forget("n7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shell._port, "nodes", lambda: [NodeSpec("n1", "127.0.0.1")])
        with pytest.raises(RefusedError, match="waits for anything of n1"):
            shell.forget("n1")
    aggregator = Aggregator(RUN, place.stored, SystemClock()) if living else None
    if aggregator is not None:
        shell._port.living[RUN] = FakeAggregator(aggregator)
        shell._port.living[RUN]._is_concluded = True
    assert shell.forget("n1") == {"node": "n1", "runs": [], "streams": [RUN]}
    if aggregator is not None:
        del shell._port.living[RUN]
        aggregator.close()
    assert shell.recover(0.0)["remaining"] == []
    summary = read_json(place.stored / "summary.json") or {}
    assert (summary["status"], summary["exit_code"], summary["losses"]["forgotten_streams"]) == ("error", 3, 1)
    assert is_whole(place.stored)
    with pytest.raises(RefusedError, match="waits for anything of n1"):
        shell.forget("n1")


def test_a_clusters_recovery_ends_runs_without_an_aggregator(place: Place, shell: OrchestratorShell) -> None:
    """The run directories on the orchestrator's node are ended as `recover` on that machine would end them; they can be opened again."""
    place.live(2, heartbeat_s=600).close()
    assert shell.recover(0.0)["recovered"] == [RUN]
    assert (read_json(place.stored / "manifest.json") or {})["status"] == "error"
    assert shell.reopen(RUN) is True
    assert shell.reopen("20260101-000000-none-0000") is False
    with pytest.raises(InputError):
        shell.reopen("../runs")


def test_an_aggregator_that_cannot_finish_remains(place: Place, shell: OrchestratorShell) -> None:
    """What failed is named, and ends `recover` with 3."""

    class Broken:
        def call(self, *_: Any, **__: Any) -> Any:
            raise HarnessError("os", "no room")

    shell._port.living["20260101-000000-a-0001"] = Broken()
    assert shell.recover(0.0)["remaining"] == ["run 20260101-000000-a-0001: its aggregator could not finish: no room"]
