from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors import counted
from actors.capacity import read_capacity
from actors.limits import Container, chain, find_container, own_groups, quota_cores

GIB = 1 << 30
ROOT = Path(__file__).parents[2]


def make_proc(root: Path, cgroup: str, mounts: list[tuple[str, str, str, Path]]) -> Path:
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {32 * GIB // 1024} kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    rows = [f"30 1 0:1 {inside} {point} rw - {kind} {kind} {options}" for kind, options, inside, point in mounts]
    (proc / "self/mountinfo").write_text("\n".join(rows) + "\n")
    return proc


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    """Where no group limits anything, the denominators are the machine's."""
    tree = put(tmp_path / "cg", cpu__max="max 100000\n", memory__max="max\n")
    found = find_container(make_proc(tmp_path, "0::/\n", [("cgroup2", "rw", "/", tree)]))
    assert (found.cpu_quota_cores, found.memory_limit_bytes, found.memory_levels) == (None, 64 * GIB, ())
    assert found.cpu_cores == len(found.cpus)


def test_the_tightest_level_of_version_2_counts(tmp_path: Path) -> None:
    """A limit of any group above ours is ours too."""
    tree = put(tmp_path / "cg", cpu__max="max 100000\n")
    put(tree / "pod", cpu__max="150000 100000\n", cpu__stat="usage_usec 5\n", memory__max=str(4 * GIB), memory__current="1")
    put(tree / "pod/box", cpu__max="400000 100000\n", memory__max=str(8 * GIB), memory__current="1")
    found = find_container(make_proc(tmp_path, "0::/pod/box\n", [("cgroup2", "rw", "/", tree)]))
    assert (found.cpu_quota_cores, found.memory_limit_bytes) == (1.5, 4 * GIB)
    assert found.cpu_usage == tree / "pod/cpu.stat"


def test_version_1_in_a_container_limits_at_its_root(tmp_path: Path) -> None:
    """A container that sees a path of its host reads the limit at the mounted root."""
    cpu = put(tmp_path / "cpu", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    acct = put(tmp_path / "cpuacct", cpuacct__usage="7\n")
    memory = put(tmp_path / "memory", memory__limit_in_bytes=str(2 * GIB), memory__usage_in_bytes="1")
    mounts = [("cgroup", "rw,cpu", "/", cpu), ("cgroup", "rw,cpuacct", "/", acct), ("cgroup", "rw,memory", "/docker/ab", memory)]
    found = find_container(make_proc(tmp_path, "3:cpu:/docker/ab\n2:cpuacct:/docker/ab\n1:memory:/docker/ab\n", mounts))
    assert (found.cpu_quota_cores, found.memory_limit_bytes, found.cpu_usage) == (0.5, 2 * GIB, acct / "cpuacct.usage")
    assert found.cpu_cores == 0.5


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    """Version 1 writes "no limit" as a huge number."""
    memory = put(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712\n")
    found = find_container(make_proc(tmp_path, "1:memory:/\n", [("cgroup", "rw,memory", "/", memory)]))
    assert (found.memory_limit_bytes, found.memory_levels) == (64 * GIB, ())


def test_the_chain_goes_up_to_the_mounted_root(tmp_path: Path) -> None:
    """Own group first, mounted root last; a controller that is not mounted has none."""
    tree = tmp_path / "cg"
    (tree / "a/b").mkdir(parents=True)
    mountinfo = f"30 1 0:1 / {tree} rw - cgroup2 cgroup2 rw\n"
    assert chain("", "0::/a/b\n", mountinfo) == (tree / "a/b", tree / "a", tree)
    assert chain("memory", "0::/a/b\n", mountinfo) == ()
    assert own_groups("4:cpu,cpuacct:/x:y\n0::/\n") == {"cpu": "/x:y", "cpuacct": "/x:y", "": "/"}


@pytest.mark.parametrize(
    ("files", "want"),
    [
        pytest.param({"cpu__max": "max 100000"}, None, id="v2-none"),
        pytest.param({"cpu__max": "25000 100000"}, 0.25, id="v2-a-quarter"),
        pytest.param({"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, None, id="v1-none"),
        pytest.param({"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}, 3.0, id="v1-three"),
        pytest.param({}, None, id="no-files"),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], want: float | None) -> None:
    """A quota is in cores, and "max" is none."""
    assert quota_cores(put(tmp_path, **files)) == want


def test_sharers_divide_the_machine(tmp_path: Path) -> None:
    """Raylets that share a machine get equal parts of it."""
    container = Container(frozenset({0, 1}), None, None, 8 * GIB, ())
    alone, third = read_capacity(tmp_path / "not/there/yet", container=container), read_capacity(tmp_path, 3, container)
    assert (third.cpu_cores, third.memory_bytes, third.sharers) == (pytest.approx(2 / 3), 8 * GIB // 3, 3)
    assert third.disk_bytes == alone.disk_bytes // 3 > 0


def test_counted_limits_are_the_tightest(tmp_path: Path) -> None:
    """The group's limit of tasks counts where it is below the machine's, and a limit that is not stated does not."""
    group = put(tmp_path / "cg", **{"pids.max": "500"})
    put(tmp_path / "proc/self", cgroup="0::/\n", mountinfo=f"30 23 0:26 / {group} rw - cgroup2 cgroup2 rw\n")
    put(tmp_path / "proc/sys/kernel", **{"threads-max": "9000", "pid_max": "4000"})
    put(tmp_path / "proc/sys/fs", **{"file-max": "77"})
    proc = tmp_path / "proc"
    assert (counted.tasks(proc), counted.descriptors(proc)) == (500, 77)
    (group / "pids.max").write_text("max")
    assert counted.tasks(proc) == 4000
    assert (counted.mappings(proc), counted.ports(proc)) == (counted.LARGEST, 0)


LIMITED = """
import os, resource, sys
from pathlib import Path
from actors import counted
resource.setrlimit(resource.RLIMIT_NPROC, (200, 300))
for uid in (1000, 0):
    os.geteuid = lambda: uid
    print(counted.tasks(Path(sys.argv[1])))
"""


def test_a_users_limit_of_processes_counts_for_all_but_root(tmp_path: Path) -> None:
    """The hard one (RLIMIT_NPROC), which a load may raise its soft one to, where it is below what the machine has."""
    put(tmp_path / "sys/kernel", **{"threads-max": "9000", "pid_max": "4000"})
    found = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["300", "4000"]
