"""Under a CPU quota the control group is the host: its quota is the denominator, and others are who else is in it. Version 1 or 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

QUOTA_US, PERIOD_US = 120_000, 100_000  # 1.2 cores
GROUPS = Path("/sys/fs/cgroup")
HERE = Path(__file__).parent

# Runs in the group: CpuLoad fills it up to half of the quota, first alone, then beside somebody who takes 0.3 cores.
IN_GROUP = """
import json, subprocess, sys, time
from pathlib import Path
from load_bench import Bench
from actors.capacity import read_capacity
from actors.messages import Operation

folder, usage = Path(sys.argv[1]), Path(sys.argv[2])
OTHER = '''
import time
while True:
    begun = time.thread_time()
    while time.thread_time() - begun < 0.003: pass
    time.sleep(max(0.0, 0.01 - 0.003))
'''
def used_s():
    text = usage.read_text()
    rows = dict(line.split() for line in text.splitlines() if " " in line)
    return int(rows["usage_usec"]) / 1e6 if rows else int(text) / 1e9
def cores(of, span_s=1.0):
    then, before = time.monotonic(), of()
    time.sleep(span_s)
    return (of() - before) / (time.monotonic() - then)

capacity = read_capacity(folder)
shape = {"kind": "constant", "level": 0.5}
one = Bench(folder, Operation("cpu", "CpuLoad", "n1", 0.0, 60.0, "fraction", shape, {"mode": "host_total", "heat_limit_c": 0}), capacity)
found = {"capacity": capacity.cpu_cores}
try:
    one.ready()
    one.go()
    time.sleep(0.7)
    found["alone"], found["own_alone"] = cores(used_s), one.cores(0.5)
    other = subprocess.Popen([sys.executable, "-S", "-c", OTHER])
    time.sleep(0.7)
    found["beside"], found["own_beside"] = cores(used_s), one.cores(0.5)
    other.kill()
    other.wait()
finally:
    one.close()
print(json.dumps(found))
"""


def write(path: Path, value: int | str) -> None:
    path.write_text(str(value))


@pytest.fixture
def group() -> Iterator[tuple[list[Path], Path]]:
    """A group with a quota, that goes before others, as the folders to enter and the file that counts its CPU time."""
    name = f"stress-cluster-test-{os.getpid()}"
    v1, v2 = [GROUPS / kind / name for kind in ("cpu", "cpuacct")], GROUPS / name
    made: list[Path] = []
    try:
        with suppress(OSError):
            if (GROUPS / "cpu" / "cpu.cfs_quota_us").exists() and (GROUPS / "cpuacct").is_dir():
                for folder in v1:
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
                write(v1[0] / "cpu.cfs_period_us", PERIOD_US)
                write(v1[0] / "cpu.cfs_quota_us", QUOTA_US)
                write(v1[0] / "cpu.shares", 262_144)
            elif "cpu" in (GROUPS / "cgroup.subtree_control").read_text().split():
                v2.mkdir()
                made.append(v2)
                write(v2 / "cpu.max", f"{QUOTA_US} {PERIOD_US}")
                write(v2 / "cpu.weight", 10_000)
        if not made:
            pytest.skip("no control group with a CPU quota can be made here")
        yield made, made[-1] / ("cpuacct.usage" if len(made) == 2 else "cpu.stat")
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a quota of 1.2 cores needs two")
def test_host_total_under_a_quota_is_of_the_group(group: tuple[list[Path], Path], tmp_path: Path) -> None:
    """Half of the quota, alone and beside another of the group, who is counted in; whoever else is on the machine is not."""
    folders, usage = group

    def enter() -> None:
        for folder in folders:
            write(folder / "cgroup.procs", os.getpid())

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))}
    command = [sys.executable, "-c", IN_GROUP, str(tmp_path), str(usage)]
    done = subprocess.run(command, env=environment, preexec_fn=enter, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    quota = QUOTA_US / PERIOD_US
    assert found["capacity"] == quota
    assert found["alone"] == pytest.approx(quota / 2, abs=0.05 * quota), found
    assert found["beside"] == pytest.approx(quota / 2, abs=0.05 * quota), found
    assert found["own_alone"] - found["own_beside"] == pytest.approx(0.3, abs=0.1), found
