"""Loads in a limited control group of memory that the guardian makes: they run short, others do not, and nothing is left of the group."""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from load_agent import Agent
from support.observe import promised
from support.waiting import until

from actors import memory_group, proc
from actors.clock import SECOND_NS
from actors.dose import ProcessFiles
from actors.limits import memory_stalled_s, read_integer
from actors.messages import Operation
from actors.oom import is_told

MIB = 1 << 20
STALL = Operation("0.MemoryStall@n1", "MemoryStall", "n1", 0.0, 60.0, "fraction", {"kind": "constant", "level": 0.2})
FAULTS = Operation(
    "1.VmPressure@n1", "VmPressure", "n1", 0.0, 60.0, "per_second", {"kind": "constant", "level": 400}, {"file": 8 * MIB, "limited": True}
)
TOO_MUCH = Operation("2.MemoryPressure@n1", "MemoryPressure", "n1", 0.0, 60.0, "bytes", {"kind": "constant", "level": 256 * MIB})


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    if memory_group.find() is None:
        pytest.skip(f"unsupported here: {memory_group.NO_GROUP}")
    made = Agent(tmp_path)
    yield made
    made.close()


@dataclass(frozen=True, slots=True)
class Paid:
    """What a probe paid for its work: CPU time of a piece, its major faults, and the share of the time in which it neither worked nor
    waited for a CPU: it then waited for memory."""

    work_ns: float
    major_faults: int
    blocked: float


def pay() -> Paid:
    """Do a fixed piece of work on memory of this thread's own, 40 times; the median of their CPU times counts."""
    taken, faults, begun_ns, busy_ns = [], faults_here(), time.monotonic_ns(), time.thread_time_ns() + waited_here_ns()
    for _ in range(40):
        piece_ns = time.thread_time_ns()
        held = bytearray(1 << 20)
        held[:: 1 << 12] = b"\x01" * 256
        taken.append(time.thread_time_ns() - piece_ns)
    share = (waited_here_ns() + time.thread_time_ns() - busy_ns) / (time.monotonic_ns() - begun_ns)
    return Paid(statistics.median(taken), faults_here() - faults, max(0.0, 1.0 - share))


def faults_here() -> int:
    """Return the major faults of this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def waited_here_ns() -> int:
    """Return for how long this thread was ready to run and had no CPU (man 5 proc_pid_schedstat)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def stalled_s(group: Path) -> float:
    found = memory_stalled_s(group)
    assert found is not None
    return found


def majors(pid: int) -> int:
    """Return majflt of a process (proc(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def limit_of(group: Path) -> int | None:
    return read_integer(group / "memory.max") or read_integer(group / "memory.limit_in_bytes")


def used_of(group: Path) -> int | None:
    return read_integer(group / "memory.current") or read_integer(group / "memory.usage_in_bytes")


_NEIGHBOUR = """
import mmap, sys, time
share = float(sys.argv[1])
print("ready", flush=True)
while True:
    begun = time.thread_time()
    held = mmap.mmap(-1, 1 << 22)
    held[:: 1 << 12] = bytes(1 << 10)
    held.close()
    used = time.thread_time() - begun
    time.sleep(used / share - used)
"""


@contextlib.contextmanager
def neighbour(share: float) -> Iterator[None]:
    """A process that takes memory and gives it back for a share of one core's time, and runs short of nothing."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _NEIGHBOUR, str(share)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


class Probe:
    """A probe outside of the group, which pays for its own memory while the load of some processes runs, and without it.

    What a piece of work costs in CPU time rises by a third beside anybody who works, where CPUs share a core. So it is compared with what
    it costs beside a neighbour that works as much as the load and lacks nothing.
    """

    def __init__(self) -> None:
        self.beside: list[Paid] = []
        self._is_over = threading.Event()
        self._otherwise = [self._usual()]

    def _usual(self) -> float:
        """Return what the work takes at the pace at which it is done beside the load: who comes from a rest finds colder caches."""
        seen = []
        for _ in range(9):
            time.sleep(0.1)
            seen.append(pay().work_ns)
        return statistics.median(seen)

    @contextlib.contextmanager
    def watching(self, pids: Sequence[int]) -> Iterator[None]:
        """Work beside the load."""
        processes = [ProcessFiles(pid) for pid in pids]
        used, then = self._used_s(processes), time.monotonic()
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
            self._share = (self._used_s(processes) - used) / (time.monotonic() - then)
        finally:
            self._is_over.set()
            thread.join()
            for process in processes:
                process.close()

    @staticmethod
    def _used_s(processes: Sequence[ProcessFiles]) -> float:
        return sum(process.cpu_ns() or 0 for process in processes) / SECOND_NS

    def _work(self) -> None:
        while not self._is_over.wait(0.1):
            self.beside.append(pay())

    def assert_untouched(self) -> None:
        """Its work cost as much as alone or beside that neighbour, for the machine has other guests; memory never kept it."""
        for _ in range(2):
            with neighbour(max(0.01, min(1.0, self._share))):
                self._otherwise.append(self._usual())
        self._otherwise.append(self._usual())
        assert statistics.median(paid.work_ns for paid in self.beside) / max(self._otherwise) <= 1.1, vars(self)
        assert sum(paid.major_faults for paid in self.beside) == 0, vars(self)
        assert statistics.median(paid.blocked for paid in self.beside) <= 0.1, vars(self)


def gone(agent: Agent, groups: list[Path]) -> bool:
    """Close the slot and say whether nothing of its groups is left."""
    assert agent.close_slot()["gone"]
    until(lambda: not any(group.exists() for group in groups), 5, lambda: str([proc.cgroup_pids(str(group)) for group in groups]))
    return not any(group.parent.exists() for group in groups if group.parent.name.startswith("stress-cluster-"))


@pytest.mark.parametrize("share", [0.2, *(pytest.param(other, marks=pytest.mark.soak) for other in (0.1, 0.4))])
def test_somebody_waits_for_memory_for_a_share_of_the_time(agent: Agent, share: float) -> None:
    """As the kernel counts it, in a group of the load's own."""
    waits(agent, share)


@promised
def waits(agent: Agent, share: float) -> None:
    """In its own group as the kernel counts it, ten times the baseline and more; within the limit, and a probe outside does not feel it."""
    probe = Probe()
    if not agent.client.call("status")["pid"] or not proc.cgroup_root():
        pytest.skip("unsupported here: no group of version 2, whose pressure could be read")
    shell = agent.run(replace(STALL, shape={"kind": "constant", "level": share}))
    groups = agent.groups
    assert limit_of(groups[-1]) == 64 * MIB
    assert set(shell.status().pids) <= set(proc.cgroup_pids(str(groups[-1]))) & set(proc.cgroup_pids(str(groups[0])))
    until(lambda: agent.client.stats.read(agent.ticket.slot).own > share / 2, 10, "somebody waits")
    before, then = stalled_s(groups[0]), time.monotonic()
    with probe.watching(shell.status().pids):
        time.sleep(3.0)
        found = (stalled_s(groups[0]) - before) / (time.monotonic() - then)
        used = used_of(groups[-1])
    assert found == pytest.approx(share, abs=0.05)  # nobody waited before: 0 in a group that is new
    assert used is not None
    assert used <= 64 * MIB
    assert gone(agent, groups)
    probe.assert_untouched()


@promised
def test_faults_in_a_group_of_their_own(agent: Agent) -> None:
    """Ten times the baseline and more, by major faults; a probe outside pays within 10 % what it pays otherwise."""
    probe = Probe()
    shell = agent.shell(FAULTS)
    shell.prepare()
    agent.leases[agent.key] = 2.0
    until(lambda: shell.status().phase == "ready", 60, lambda: str(shell.status()))
    (pid,), groups = shell.status().pids, agent.groups
    assert limit_of(groups[-1]) == 72 * MIB
    assert pid in proc.cgroup_pids(str(groups[-1]))
    still = majors(pid)
    time.sleep(0.5)
    baseline = (majors(pid) - still) / 0.5
    agent.start()
    until(lambda: shell.status().phase == "running", 10, lambda: str(shell.status()))
    before, then = majors(pid), time.monotonic()
    with probe.watching([pid]):
        time.sleep(1.5)
        found = (majors(pid) - before) / (time.monotonic() - then)
    assert found >= 10 * max(baseline, 1.0)
    assert gone(agent, groups)
    probe.assert_untouched()


def test_a_load_that_the_kernel_ends_for_lack_of_memory_says_so(agent: Agent) -> None:
    """It is ended and nothing else is: its simulator tells the cause; it had the highest score of whom the kernel may choose."""
    shell = agent.run(TOO_MUCH, limit_bytes=64 * MIB, until_it_runs=False)
    groups, (pid,) = agent.groups, shell.status().pids
    status = until(lambda: (now := shell.status()).phase == "failed" and now, 10, lambda: str(shell.status()))
    assert status.exit_code == -9
    assert "was killed by signal 9: the kernel's out-of-memory killer ended" in status.reason
    assert is_told(status.reason)
    assert agent.client.call("status")["pid"]
    assert not Path(f"/proc/{pid}/task").is_dir()
    assert gone(agent, groups)


def test_loads_are_ended_before_those_who_watch_them(agent: Agent) -> None:
    """Where the machine runs short, the kernel chooses by score: a load has the highest there is, the guardian less than this process."""
    score = lambda pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    shell = agent.run(FAULTS)
    (pid,), status = shell.status().pids, agent.client.call("status")
    assert score(pid) == 1000
    assert max(score(status["pid"]), score(status["standby_pid"])) <= 0
