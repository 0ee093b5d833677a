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
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fabric import Fabric
from host import Host
from support import census
from support.observe import allocated_bytes, anonymous_bytes, boot_s, cpu_fine_s
from support.waiting import until
from sweep import start_time

from actors.undo import SLOT_BYTES, Record, decode

MIB: Final = 1 << 20
LEASE_S: Final = 2.0
SETTINGS: Final = {"STRESS_CLUSTER_LEASE_S": "2", "STRESS_CLUSTER_IDLE_EXIT_S": "8"}
LOAD: Final = "actors.load"

# Ray's health check on the test hosts: short enough to wait for a declared death, long enough that a cut of 20 s is none.
DECLARED_DEAD_S: Final = 30
HEALTH_CHECK: Final = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "6",
}

# What to look for on a command line, by who it is.
ROLES: Final[Mapping[str, str]] = {
    "driver": "cluster.driver_main",
    "orchestrator": "ray::_OrchestratorActor",
    "aggregator": "ray::_AggregatorActor",
    "agent": "ray::_AgentActor",
    "simulator": "ray::SimulatorShell",
    "load": LOAD,
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


def kill(host: Host, role: str, number: int = signal.SIGKILL, *, all_of_them: bool = False) -> float:
    """Signal the newest process in a role (of guardians the serving one), or all; return when, in boot time."""
    found = pids_of(host, role)
    assert found, f"no {role} on {host.name}: {sorted(host.pids().values())}"
    at_s = boot_s()
    for pid in found if all_of_them else [found[0] if role == "guardian" else found[-1]]:
        os.kill(pid, number)
    return at_s


def resume(pid: int) -> None:
    """Let a stopped process go on; it may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# ---- watching loads and fills


@dataclass(slots=True)
class Sight:
    """One load process as seen from outside; times in boot time."""

    host: str
    pid: int
    first_s: float
    last_s: float
    samples: list[tuple[float, float]] = field(default_factory=list)  # (time, CPU seconds), at every look
    memory: list[tuple[float, int]] = field(default_factory=list)  # (time, anonymous bytes), a few times a second

    def cores(self, since_s: float, until_s: float) -> float:
        """Return the mean cores that it used between two times."""
        inside = [sample for sample in self.samples if since_s <= sample[0] <= until_s]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) if len(inside) > 1 else 0.0

    def begun_s(self, near_s: float, cores: float) -> float:
        """Return when, within a second of a time, it began to use so many cores; 0 if it did not.

        The first tenth of a second with a third of that use, and in it the first look that saw more than a millisecond spent.
        """
        near = [sample for sample in self.samples if abs(sample[0] - near_s) < 1.0]
        for first, (at_s, used_s) in enumerate(near):
            window = list(itertools.takewhile(lambda sample: sample[0] <= at_s + 0.1, near[first:]))  # noqa: B023  # used at once
            if window[-1][1] - used_s > cores * 0.1 / 3:
                return next(seen_s for seen_s, spent_s in window if spent_s - used_s > 0.001)
        return 0.0


class Watch:
    """Follows all load processes and fills of some hosts, every few milliseconds, in a thread: `with Watch(hosts) as watch`."""

    def __init__(self, hosts: Sequence[Host], every_s: float = 0.005) -> None:
        self.hosts, self.every_s = hosts, every_s
        self.sights: dict[int, Sight] = {}
        self.fills: dict[str, tuple[float, float]] = {}  # by host when one was first and last seen
        self._young: dict[int, float] = {}
        self._known: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def of(self, host: Host) -> list[Sight]:
        """Return the loads seen on a host so far."""
        return [sight for sight in list(self.sights.values()) if sight.host == host.name]

    def loads(self, host: Host) -> list[int]:
        """Return the loads that live on a host now."""
        return [sight.pid for sight in self.of(host) if boot_s() - sight.last_s < 0.5 and start_time(sight.pid)]

    def loading(self, host: Host) -> bool:
        """Tell whether a host is under load now: its fill begins together with its load processes."""
        return bool(self.loads(host)) and bool(filled(host))

    def load_gone_s(self, host: Host) -> float:
        """Return when load was last seen on a host; 0 if never."""
        return max((sight.last_s for sight in self.of(host)), default=0.0)

    def gone_s(self, host: Host) -> float:
        """Return when load or fill was last seen on a host; 0 if never."""
        return max(self.load_gone_s(host), self.fills.get(host.name, (0.0, 0.0))[1])

    def quiet(self, host: Host) -> bool:
        """Tell whether neither load nor fill is on a host now."""
        return not self.loads(host) and not filled(host)

    def forget(self) -> None:
        """Start afresh with what is there from now on."""
        self.sights = {pid: sight for pid, sight in self.sights.items() if start_time(pid)}
        self.fills.clear()

    def _loop(self) -> None:
        next_memory_s = 0.0
        while not self._end.wait(self.every_s):
            now_s = boot_s()
            self._find_new(now_s)
            for sight in list(self.sights.values()):
                if start_time(sight.pid):
                    sight.samples.append((boot_s(), cpu_fine_s(sight.pid)))
                    sight.last_s = boot_s()
                    if now_s > next_memory_s:
                        sight.memory.append((now_s, anonymous_bytes(sight.pid)))
            next_memory_s = now_s + 0.2 if now_s > next_memory_s else next_memory_s
            for host in self.hosts:
                if filled(host):
                    self.fills[host.name] = (self.fills.get(host.name, (now_s, 0.0))[0], boot_s())

    def _find_new(self, now_s: float) -> None:
        """Look at each process while it is young: its command line becomes its own only at exec."""
        present = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208  # many times a second
        for pid in present - self._known:
            self._young.setdefault(pid, now_s)
        self._known = present
        for pid, born_s in list(self._young.items()):
            if pid not in present or now_s - born_s > 3.0:
                del self._young[pid]
            elif _is_load(pid) and (host := self._host_of(pid)):
                del self._young[pid]
                self.sights[pid] = Sight(host, pid, now_s, now_s)

    def _host_of(self, pid: int) -> str:
        for host in self.hosts:
            with contextlib.suppress(OSError):  # gone
                if os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{host.init_pid}/ns/net"):  # noqa: PTH115  # often
                    return host.name
        return ""


def _is_load(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return LOAD.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def filled(host: Host) -> int:
    """Return the bytes that fills occupy in a host's STATE."""
    folder = host.state / "fill"
    return sum(allocated_bytes(path) for path in folder.iterdir()) if folder.is_dir() else 0


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


def await_load(watch: Watch, run: Run, hosts: Sequence[Host], timeout_s: float = 60.0) -> None:
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
        loads = {host.name: [f"load {pid}" for pid in host.pids(LOAD)] for host in hosts}
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


# ---- what was recorded


def assert_exact(path: Path, *, gapless: Sequence[str] = ()) -> Any:
    """Load a run directory and assert that each window is there once and each stream without a hole; return the data.

    `gapless`: nodes whose windows must follow each other without a missing second.
    """
    from cluster.analysis.load import load

    data = load(path)
    columns = ["time", "metric", "node", "worker", "phase", "labels"]
    rows = data.metrics.select(columns).to_pylist()
    keys = Counter((row["time"], row["metric"], row["node"], row["worker"], row["phase"], tuple(row["labels"])) for row in rows)
    doubled = [key for key, count in keys.items() if count > 1]
    assert not doubled, f"{len(doubled)} windows twice, such as {doubled[:3]}"
    for node in gapless:
        times = sorted(row["time"].timestamp() for row in rows if row["node"] == node and row["metric"] == "host.cpu.busy")
        gaps = [(before, after) for before, after in itertools.pairwise(times) if after - before > 1.5]
        assert times, f"no window of {node}"
        assert not gaps, f"{node} lacks windows: {gaps}"
    _assert_totals(data)
    return data


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
