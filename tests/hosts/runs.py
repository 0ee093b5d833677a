"""Runs of the product on the test hosts, started as a user starts them and watched from outside.

Nothing here asks the product what it does: loads are processes in /proc, fills are blocks on disk, times are this process's own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import watching
from fabric import Fabric
from host import Host
from support import census
from support.observe import boot_s
from support.waiting import until
from sweep import start_time

from actors.undo import SLOT_BYTES, Record, decode

MIB: Final = 1 << 20
LEASE_S: Final = 2.0
DEFAULT_LEASE_S: Final = 5.0  # of the setting: one row per promise shows it there
SETTINGS: Final = {"STRESS_CLUSTER_LEASE_S": "2", "STRESS_CLUSTER_IDLE_EXIT_S": "20", "STRESS_CLUSTER_SHIP": "never"}

# Ray's health check on the test hosts: short enough to wait for a declared death, long enough that a cut of 12 s is none.
DECLARED_DEAD_S: Final = 27  # well beyond the longest cut that is to heal, and the back-off of TCP after it
HEALTH_CHECK: Final = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "8000",  # few long ones: a host that refuses is dead within seconds, one that is silent is not
    "RAY_health_check_failure_threshold": "3",
}

# What to look for on a command line, by who it is.
ROLES: Final[Mapping[str, str]] = {
    "driver": "cluster.driver_main",
    "orchestrator": "ray::_OrchestratorActor",
    "aggregator": "ray::_AggregatorActor",
    "agent": "ray::_AgentActor",
    "simulator": "ray::SimulatorShell",
    "load": watching.LOAD,
    "guardian": "/guardian-",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}

# Load is never shed for being beside others: a busy machine must not turn a test of deaths into one of safety.
SCENARIO: Final = """
version: 1
name: {name}
on_node_lost: {on_node_lost}
targets: {targets}
limits: {{cpu_busy_fraction: 100%, cpu_busy_for: 1h}}
plan:
  together:
  - CpuLoad: {{fraction: {cpu}, mode: own}}
    for: {for_s}s
  - DiskFill: {{bytes: {disk}}}
    for: {for_s}s
"""
MEMORY: Final = """
  - MemoryPressure: {{bytes: {memory}}}
    for: {for_s}s
"""


def scenario(
    name: str,
    for_s: float = 10,
    *,
    cpu: str = "10%",
    memory: str = "",
    disk: str = "16MiB",
    on_node_lost: str = "stop",
    targets: str = "{}",
) -> str:
    """Return a scenario with a load process and a fill on every target; with memory too where some is asked."""
    text = SCENARIO.format(name=name, for_s=for_s, cpu=cpu, disk=disk, on_node_lost=on_node_lost, targets=targets)
    return text + (MEMORY.lstrip("\n").format(memory=memory, for_s=for_s) if memory else "")


# ---- processes


def pids_of(host: Host, role: str) -> list[int]:
    """Return the host's processes in a role, oldest first; of guardians the one that serves before its standby."""
    found = [pid for pid, line in host.pids(ROLES[role]).items() if "setsid" not in line and "nsenter" not in line]
    if role == "guardian":
        return sorted(found, key=lambda pid: (_parent(pid) in found, pid))
    return sorted(found, key=lambda pid: (int(start_time(pid) or 0), pid))


@dataclass(frozen=True, slots=True)
class Struck:
    """Who was signalled, and when in boot time."""

    at_s: float
    victims: tuple[tuple[int, str], ...]  # pid and start time

    def living(self) -> list[int]:
        """Return the victims that are not dead, whatever state they are in."""
        return [pid for pid, started in self.victims if start_time(pid) == started]


def kill(host: Host, role: str, number: int = signal.SIGKILL, *, all_of_them: bool = False) -> Struck:
    """Signal the newest process in a role (of guardians the serving one), or all of them, none of which then sees another go."""
    found = pids_of(host, role)
    assert found, f"no {role} on {host.name}: {sorted(host.pids().values())}"
    if all_of_them:
        found = stopped(host, role)
    chosen = found if all_of_them else [found[0] if role == "guardian" else found[-1]]
    struck = Struck(boot_s(), tuple((pid, start_time(pid)) for pid in chosen))
    for pid in chosen:
        os.kill(pid, number)
    return struck


def stopped(host: Host, role: str) -> list[int]:
    """SIGSTOP all processes in a role until no new one has come: a guardian that sees its standby die forks another."""
    held: list[int] = []
    while found := [pid for pid in pids_of(host, role) if pid not in held]:
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        held += found
    return held


def resume(pid: int) -> None:
    """Let a stopped process go on; it may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# ---- runs


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its code, the JSON document it printed, and what it said meanwhile."""

    code: int
    document: dict[str, Any]
    said: str

    def __str__(self) -> str:
        return f"code {self.code}: {self.message}; it said: {self.said[-1500:]}"

    @property
    def message(self) -> str:
        return str(self.document.get("message") or self.document.get("error", {}).get("message", ""))


class Command:
    """One `stress-cluster` command on a host, running beside the test."""

    def __init__(self, host: Host, *argv: str, env: Mapping[str, str] | None = None) -> None:
        self.host, self.argv = host, argv
        folder = host.folder / "commands"
        folder.mkdir(exist_ok=True)
        self.stem = folder / f"{len(list(folder.iterdir())):04}"
        with Path(f"{self.stem}.out").open("wb") as out, Path(f"{self.stem}.err").open("wb") as err:
            self.process = host.popen(*argv, env={**SETTINGS, **(env or {})}, stdout=out, stderr=err)

    def signal(self, number: int) -> float:
        """Send a signal to the command itself; return when, in boot time."""
        pid = self.host.pid_of(self.process)
        at_s = boot_s()
        os.kill(pid, number)
        return at_s

    def wait(self, timeout_s: float) -> Ended:
        """Wait for its end; raises `AssertionError` with what it said when it does not come."""
        until(lambda: self.process.poll() is not None, timeout_s, lambda: f"{' '.join(self.argv)} ended; it said:\n{self.said()}", 0.05)
        out = Path(f"{self.stem}.out").read_text()
        try:
            document = json.loads(out)
        except ValueError:
            document = {"text": out}
        return Ended(self.process.returncode, document if isinstance(document, dict) else {"list": document}, self.said())

    def said(self) -> str:
        """Return what it wrote on standard error so far."""
        return Path(f"{self.stem}.err").read_text(errors="replace")


def command(host: Host, *argv: str, timeout_s: float = 60.0, env: Mapping[str, str] | None = None) -> Ended:
    """Run `stress-cluster ... --json` on a host to its end."""
    return Command(host, "stress-cluster", *argv, "--json", env=env).wait(timeout_s)


class Run(Command):
    """`stress-cluster run` on the head, as a user of a standing cluster calls it."""

    def __init__(self, fabric: Fabric, text: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        head = fabric.head
        name = next(line.split()[1] for line in text.splitlines() if line.startswith("name:"))
        (head.folder / f"{name}.yaml").write_text(text)
        (head.folder / "out").mkdir(exist_ok=True)
        self.fabric = fabric
        where = ["--address", fabric.address, "--out", f"{head.here}/out", "--yes", "--json"]
        super().__init__(head, "stress-cluster", "run", f"{head.here}/{name}.yaml", *where, *options, env=env)

    @property
    def id(self) -> str:
        """The run's id, which is the first thing that the command says."""
        words = until(lambda: self.said().split()[:2], 20, "the run's id", 0.05)
        return words[1]

    @property
    def out(self) -> Path:
        """The run directory that the command fills."""
        return self.host.folder / "out" / self.id

    @property
    def kept(self) -> Path:
        """The run directory in STATE of the head, where the aggregator writes."""
        return self.host.state / "runs" / self.id


def await_load(watch: watching.Watch, run: Run, hosts: Sequence[Host], timeout_s: float = 60.0) -> None:
    """Wait until each of these hosts is under load with its fill armed."""

    def loaded() -> bool:
        assert run.process.poll() is None, f"the run ended before it loaded: {run.wait(1)}"
        return all(watch.loading(host) for host in hosts)

    until(loaded, timeout_s, lambda: f"load on all of {[host.name for host in hosts]}; it said:\n{run.said()}", 0.05)


# ---- what is left


def scope(host: Host) -> list[str]:
    """Return what of ours and of processes lives on a host, besides Ray itself and what it starts in advance."""
    lines = host.pids().items()
    return [f"{pid} {line[:120]}" for pid, line in lines if any(mark in line for mark in ROLES.values()) and not _is_ray(line)]


def _is_ray(line: str) -> bool:
    return ROLES["raylet"] in line or ROLES["gcs"] in line


def journal_of(host: Host) -> list[str]:
    """Return what a host's undo journal holds on disk: records of effects that may still be there."""
    path = host.state / "journal"
    data = path.read_bytes() if path.exists() else b""
    found = (decode(data[at : at + SLOT_BYTES].ljust(SLOT_BYTES, b"\0")) for at in range(0, len(data), SLOT_BYTES))
    return [f"{record.kind} of {record.operation}" if isinstance(record, Record) else record for record in found if record]


def assert_undone(hosts: Sequence[Host], within_s: float = 3.0) -> None:
    """Raise `AssertionError` when a host has loads, fills, groups or undo records after `within_s`."""

    def left() -> list[str]:
        loads = {host.name: [f"load {pid}" for pid in host.pids(watching.LOAD)] for host in hosts}
        return [f"{host.name}: {line}" for host in hosts for line in (*loads[host.name], *_groups(host), *_fills(host), *journal_of(host))]

    until(lambda: not left(), within_s, lambda: "everything undone, but:\n" + "\n".join(left()), 0.1)


def assert_nothing_left(hosts: Sequence[Host], within_s: float = 20.0) -> None:
    """Raise `AssertionError` when a host has any process of ours either after `within_s`; a guardian may idle."""
    until(lambda: not any(_ours(host) for host in hosts), within_s, lambda: f"nothing left, but: {[_ours(host) for host in hosts]}", 0.2)
    assert_undone(hosts)


def _ours(host: Host) -> list[str]:
    return [line for line in scope(host) if ROLES["guardian"] not in line]


def _groups(host: Host) -> list[str]:
    folders = [folder for folder, _, _ in os.walk(host.cgroup)] if host.cgroup else []
    return [folder for folder in folders if "stress-cluster" in folder and Path(folder).name[:1].isdigit()]


def _fills(host: Host) -> list[str]:
    folder = host.state / "fill"
    return [str(path) for path in folder.iterdir()] if folder.is_dir() else []


def census_of(hosts: Sequence[Host]) -> Callable[[], census.Census]:
    """Return a look at the hosts from inside: shared memory, IPC, mounts, links, rules; merged, each line with its host's name."""

    def look() -> census.Census:
        found: dict[str, frozenset[str]] = {}
        for host in hosts:
            text = host.run(
                sys.executable, "-S", census.__file__, "--mark", "no process counts", "--ignore", "^(network namespace|cgroup): "
            ).stdout
            for kind, lines in census.from_json(text).items():
                found[kind] = found.get(kind, frozenset()) | {f"{host.name}: {line}" for line in lines}
        return found

    return look


@contextlib.contextmanager
def unchanged(fabric: Fabric) -> Iterator[None]:
    """Assert at the end that when the control plane has gone idle, no host has anything of ours, nor anything else that is new."""
    before = census.Comparison(census_of(fabric.hosts))
    yield
    fabric.mend()
    recover(fabric, {"STRESS_CLUSTER_IDLE_EXIT_S": "4"})  # whom it calls leaves soon
    assert_nothing_left(fabric.hosts, 60)
    before.assert_clean(5)


def recover(fabric: Fabric, env: Mapping[str, str] | None = None) -> None:
    """Call `recover` as an operator would: nothing remains."""
    found = command(fabric.head, "recover", "--address", fabric.address, timeout_s=150, env=env)
    assert found.code == 0, str(found.document)


# ---- what was recorded


def assert_exact(path: Path, *, gapless: Sequence[str] = ()) -> Any:
    """Load a run directory and assert that each window is there once and each stream without a hole; return the data.

    `gapless`: nodes whose windows must follow each other without a missing second.
    """
    from cluster.analysis.load import load

    data = load(path)
    rows = data.metrics.select(KEY).to_pylist()
    _assert_once(rows, "as loaded")
    _assert_once(
        [row for part in sorted((path / "metrics").glob("*.parquet")) for row in pq.read_table(part, columns=KEY).to_pylist()], "in Parquet"
    )
    for node in gapless:
        times = sorted(row["time"].timestamp() for row in rows if row["node"] == node and row["metric"] == "host.cpu.busy")
        gaps = [(before, after) for before, after in itertools.pairwise(times) if after - before > 1.5]
        assert times, f"no window of {node}"
        assert not gaps, f"{node} lacks windows: {gaps}"
    _assert_totals(data)
    return data


KEY: Final = ["time", "metric", "node", "worker", "phase", "labels"]


def _assert_once(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Assert that no series has two rows of one window."""
    keys = Counter((row["time"], row["metric"], row["node"], row["worker"], row["phase"], tuple(row["labels"])) for row in rows)
    doubled = [key for key, count in keys.items() if count > 1]
    assert not doubled, f"{len(doubled)} windows twice {where}, such as {doubled[:3]}"


def _assert_totals(data: Any) -> None:
    """Assert that a counter's increases add up to its last total, for each stream of a load."""
    rows = data.metrics.select(["time", "metric", "kind", "node", "worker", "labels", "sum", "last"]).to_pylist()
    sums: dict[tuple[Any, ...], float] = {}
    lasts: dict[tuple[Any, ...], tuple[Any, float]] = {}
    for row in rows:
        if row["kind"] != "counter" or not row["worker"]:
            continue
        key = (row["metric"], row["node"], row["worker"], tuple(row["labels"]))
        sums[key] = sums.get(key, 0.0) + row["sum"]
        lasts[key] = max(lasts.get(key, (row["time"], row["last"])), (row["time"], row["last"]))
    wrong = {key: (total, lasts[key][1]) for key, total in sums.items() if abs(total - lasts[key][1]) > 1e-6 * max(1.0, total)}
    assert not wrong, f"counts that do not add up (windows' sum, last total): {wrong}"


def streams(path: Path) -> list[dict[str, Any]]:
    """Return what a manifest says of the streams that came and how far."""
    return list(json.loads((path / "manifest.json").read_text()).get("streams", []))


def seeded(name: str, low_s: float, high_s: float, number: int = 0) -> float:
    """Return an instant for a victim, the same in every session: the form with many instants counts `number` up."""
    return random.Random(f"{name}/{number}").uniform(low_s, high_s)
