"""What share of small faults in the code of concurrency, Ray loads and exhaustion its fast tests find: the mutation score.

A seeded sample of faults (`faults_of_code`), the same number for each package, in an order by chance, so that a part of it is a sample
too. Each is made in a copy of the tree, and the fast tests of its file are run in a process namespace of their own. A fault is found when
a test fails, and where real threads or processes are in it fails again; or when the tests hang or cannot begin. Every tenth run has no
fault: whatever fails there fails by itself, and is told.

    mutants.py                    draw the sample, run it, store results/mutants.json
    mutants.py --minutes 30       as many of it as begin within half an hour
    mutants.py --only FRAGMENT    run the faults whose name has it, in the sample or not, and store nothing
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equivalent_faults import EQUIVALENT
from faults_of_code import Fault, faults_of
from machine import at_commit, store

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.70
EACH = 70  # of each package
SEED = 152
TIMEOUT_S = 240.0  # of a run; of a test 30 s. Without a fault the slowest take 20 s where nothing else runs
TASKS_MAX = 3000  # of a run: a fault in a fork must not fill the machine

CONTESTS = "tests/unit/test_contest_parts.py tests/unit/test_locks.py tests/unit/test_contests.py tests/load/test_contests_here.py"
HOLDERS = "tests/unit/test_exhaustion_refusals.py tests/unit/test_exhaustion_disk_io.py tests/unit/test_holder.py"
CASCADES = "tests/unit/test_cascade.py tests/property/test_cascade_properties.py"
FLOODS = "tests/unit/test_flood_parts.py tests/unit/test_ray_load.py tests/unit/test_flow.py tests/unit/test_cluster_lock.py"
MESHES = "tests/property/test_mesh_model.py"
STORES = "tests/unit/test_object_store.py"
# Files -> the tests that are fast and concern them; the first that matches counts.
PROPERTIES = "tests/property/test_wait_graph_properties.py"
SLOW = "tests/property/test_holder_properties.py::test_a_rate_is_never_passed_by_more_than_what_is_owed"
TESTS = (
    *((f"actors/concurrency/{name}.py", f"{PROPERTIES} {CONTESTS}") for name in ("wait_graph", "detection", "contest", "inversion_model")),
    ("actors/concurrency/", CONTESTS),
    *((f"actors/ray_loads/{name}.py", CASCADES) for name in ("cascade", "service_graph", "service_lane", "services")),
    *((f"actors/ray_loads/{name}.py", MESHES) for name in ("actor_mesh", "mesh", "mesh_account", "mesh_members")),
    *((f"actors/ray_loads/{name}.py", STORES) for name in ("object_store", "store_holder")),
    ("actors/ray_loads/figures.py", f"{FLOODS} {STORES} {MESHES} {CASCADES}"),
    ("actors/ray_loads/", FLOODS),
    ("actors/exhaustion/holder.py", f"{HOLDERS} tests/property/test_holder_properties.py --deselect={SLOW}"),
    ("actors/exhaustion/links.py", f"{HOLDERS} tests/unit/test_links.py"),
    ("actors/exhaustion/semaphores.py", f"{HOLDERS} tests/unit/test_exhaustion_semaphores.py"),
    ("actors/exhaustion/", HOLDERS),
)
# Tests with real threads and processes, which may fail by themselves: what they find has to be found twice.
TIMED = ("tests/load/", "tests/unit/test_contest", "tests/unit/test_locks")
# Of files with one simulator each, the tests that are of it by their names, and what all have in common.
_ALL = " or reserved or lacks or others or peak or begin or cannot_work or pages_of_this or before_a_refusal"
NAMED = {
    f"actors/exhaustion/{file}.py": names + _ALL
    for file, names in {
        "connections": "Connections or connection or time_wait or table",
        "descriptors": "Descriptors or descriptor or device",
        "disk_io": "disk or rate or block or stop or written or opened",
        "inodes": "Inodes or files or folder",
        "mappings": "Mappings or map",
        "place": "Inodes or folder or files or written",
        "ports": "Ports or port or range or namespace",
        "processes": "Processes or child",
        "refusal": "refusal or number or word",
        "shared_memory": "SharedMemory or segment",
        "sockets": "Sockets or sockets",
        "threads": "Threads or thread",
    }.items()
}
PACKAGES = ("actors/concurrency", "actors/ray_loads", "actors/exhaustion")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a fault: `found` by which test (or "hang", "no start"), else it survived."""

    fault: Fault | None
    found: str
    took_s: float


def all_faults() -> dict[str, list[Fault]]:
    """Return the faults of each package, but for those that change nothing."""
    return {
        package: [
            fault
            for path in sorted(ROOT.glob(f"{package}/*.py"))
            for fault in faults_of(ROOT, path.relative_to(ROOT).as_posix())
            if fault.name not in EQUIVALENT
        ]
        for package in PACKAGES
    }


def sample(faults: dict[str, list[Fault]], each: int, seed: int) -> list[Fault]:
    """Draw so many of each package. Each has a place of its own in the order, so what changes elsewhere moves few others."""
    drawn: list[Fault] = []
    for package, some in faults.items():
        drawn += sorted(some, key=lambda fault: random.Random(f"{seed}/{package}/{fault.name}").random())[:each]
    random.Random(seed).shuffle(drawn)
    return drawn


def tests_of(path: str) -> list[str]:
    """Return the arguments for pytest that run the tests of a file."""
    given = next(tests for start, tests in TESTS if path.startswith(start)).split()
    words = [one for one in given if one.startswith("-") or (ROOT / one).exists()]
    return [*words, "-k", NAMED[path]] if path in NAMED else words


class Bench:
    """A copy of the tree in which faults are made, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.temp = folder / "tree", folder / "t"
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        # checked by their content: a fault of the same length within a second would not be seen by time and size
        compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "actors", "cluster", "scenarios"]
        subprocess.run(compiled, cwd=self.tree, check=True)

    def judge(self, fault: Fault | None, path: str) -> Verdict:
        """Make a fault (or none), run the tests of its file, take it back."""
        begun_s, file = time.monotonic(), self.tree / path
        whole = file.read_bytes()
        if fault is not None:
            file.write_bytes(fault.apply(whole))
        try:
            found = self._found(tests_of(path))
        finally:
            file.write_bytes(whole)
        return Verdict(fault, found, time.monotonic() - begun_s)

    def _found(self, tests: list[str]) -> str:
        code, said = self._run(tests)
        if code == 0:
            return ""
        if code is None or code not in (1, 2):
            return "hang" if code is None else "no start"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+::[^\s]+)", said, re.MULTILINE)
        if failed is None:
            return "no start"
        if not failed[1].startswith(TIMED):
            return failed[1]
        again, _ = self._run([failed[1]])
        if again == 0:  # not alone: then it has to fail with the others once more
            again, _ = self._run(tests)
        return failed[1] if again != 0 else ""

    def _run(self, tests: list[str]) -> tuple[int | None, str]:
        """Run tests in namespaces of their own, which end with them; return their exit code, None where they hang."""
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir()
        environ = {**os.environ, "TMPDIR": str(self.temp), "PYTHONPATH": str(self.tree)}
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "pytest"]
        command += ["-x", "-q", "-rfE", "-p", "no:cacheprovider", "--timeout", "30", "--hypothesis-profile", "fails", *tests]
        # a session of its own: where the kernel shares the processor by sessions, runs do not share one part of it
        child = subprocess.Popen(
            command, cwd=self.tree, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        try:
            said, _ = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            child.kill()  # and all of its namespace
            child.wait()
        return child.returncode, said


@contextmanager
def few_tasks() -> Iterator[None]:
    """Bound the tasks of all runs by a control group, where there is one."""
    group = Path(f"/sys/fs/cgroup/pids/stress-cluster-mutants-{os.getpid()}")
    if not group.parent.is_dir():
        yield
        return
    before = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line)
    group.mkdir()
    (group / "pids.max").write_text(str(TASKS_MAX))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (Path("/sys/fs/cgroup/pids") / before.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(100):
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                break


def run(faults: list[Fault], jobs: int, *, controls: bool, minutes: float = 1e6) -> list[Verdict]:
    """Judge all that begin in time, so many at once; tell each as it comes."""
    late_s = time.monotonic() + 60.0 * minutes
    todo: queue.SimpleQueue[tuple[Fault | None, str]] = queue.SimpleQueue()
    for index, fault in enumerate(faults):
        if controls and index % 10 == 5:
            todo.put((None, fault.path))
        todo.put((fault, fault.path))
    verdicts: list[Verdict] = []
    troubles: list[BaseException] = []

    def work(folder: Path) -> None:
        try:
            bench = Bench(folder)
            while not todo.empty() and time.monotonic() < late_s:
                fault, path = todo.get_nowait()
                verdict = bench.judge(fault, path)
                verdicts.append(verdict)
                print(
                    f"{len(verdicts)} {verdict.took_s:.0f} s {verdict.found or 'SURVIVED'}: {fault.name if fault else 'no fault'}",
                    flush=True,
                )
        except queue.Empty:
            return
        except BaseException as error:
            troubles.append(error)

    with tempfile.TemporaryDirectory(prefix="scm-") as folder, few_tasks():
        workers = [threading.Thread(target=work, args=(Path(folder) / str(number),)) for number in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if troubles:
        raise troubles[0]
    return verdicts


def figures_of(verdicts: list[Verdict], faults: dict[str, list[Fault]], seed: int) -> dict[str, Any]:
    """Return the scores, and every fault that was drawn."""
    packages: dict[str, Any] = {}
    for package, some in faults.items():
        mine = [one for one in verdicts if one.fault is not None and one.fault.path.startswith(f"{package}/")]
        packages[package] = {
            "faults": len(some),
            "drawn": len(mine),
            "found": sum(bool(one.found) for one in mine),
            "score": round(sum(bool(one.found) for one in mine) / len(mine), 4),
            "hangs": sum(one.found == "hang" for one in mine),
            "survivors": sorted(f"{one.fault.name} (line {one.fault.line})" for one in mine if one.fault is not None and not one.found),
        }
    controls = [one for one in verdicts if one.fault is None]
    return {
        "seed": seed,
        "commit": at_commit(),
        "drawn": sum(one["drawn"] for one in packages.values()),
        "score": round(sum(one["found"] for one in packages.values()) / sum(one["drawn"] for one in packages.values()), 4),
        "packages": packages,
        "controls": {"runs": len(controls), "failed": [one.found for one in controls if one.found]},
        "equivalent": EQUIVALENT,
    }


def main(arguments: list[str]) -> int:
    """Run the sample and store its score; or run some faults and store nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--each", type=int, default=EACH, help="faults of each package")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin none after so many")
    parser.add_argument("--only", action="append", default=[], metavar="FRAGMENT", help="run the faults whose name has this")
    parser.add_argument("--package", choices=PACKAGES, help="only of this one; stores nothing")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("it needs root: each run gets a process namespace of its own, so that what a fault does ends with it", file=sys.stderr)
        return 2
    faults = all_faults()
    if given.only:
        chosen = [fault for some in faults.values() for fault in some if any(part in fault.name for part in given.only)]
        return int(any(not one.found for one in run(chosen, given.jobs, controls=False)))
    faults = {given.package: faults[given.package]} if given.package else faults
    verdicts = run(sample(faults, given.each, given.seed), given.jobs, controls=True, minutes=given.minutes)
    figures = figures_of(verdicts, faults, given.seed)
    if given.package:
        return print(json.dumps(figures["packages"], indent=2)) or 0
    goals = {package: (GOAL, one["score"] >= GOAL) for package, one in figures["packages"].items()}
    return store("mutants", figures, {**goals, "controls": (0.0, not figures["controls"]["failed"])}, ("pytest", "hypothesis"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
