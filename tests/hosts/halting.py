"""Many halts of a running cluster, each one's latency and its run's start skew: told by the product, and seen from outside.

Used by the test of the promise and by benchmarks/bench_halt.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import runs
import watching
from fabric import Fabric
from support.waiting import until

ROOT: Final = Path(__file__).parents[2]
CPU: Final = 0.1

# Runs a tiny scenario again and again through one orchestrator, each ended by a halt; tells each halt's instant in boot time.
HALTER: Final = """
import json, os, sys, time
from pathlib import Path
from actors.origin import code_id
from cluster import ray_port, settings
from cluster.driver_main import orchestrator_config
from cluster.orchestrator_api import Submission

address, text, count = sys.argv[1], Path(sys.argv[2]).read_text(), int(sys.argv[3])
resolved = settings.load({}, environ=os.environ)
ray_port.connect(address)
orchestrator = ray_port.orchestrator(orchestrator_config(resolved))

def until(done, what):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)

for number in range(count):
    run = f"20260101-000000-halted-{number:04x}"
    manifest = {"schema": 1, "run": run, "code_id": code_id()}
    orchestrator.call(
        "submit", Submission(run, text, 1, detached=True, manifest=manifest, code_id=code_id()), timeout_s=120, group="control"
    )
    follow = lambda: orchestrator.call("follow", run, 0, group="control")
    until(lambda: follow()["phase"] == "running", f"{run} runs")
    time.sleep(0.3)
    halted_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    orchestrator.call("halt", True, group="control")
    until(lambda: follow()["outcome"], f"{run} ended")
    outcome = follow()["outcome"]
    orchestrator.call("halt", False, group="control")
    aggregator = ray_port.aggregator(run)
    if aggregator is not None:
        aggregator.send("leave")
    summary = outcome["summary"]
    told = {"told_ms": summary.get("halt_latency_ms"), "skew_ms": summary.get("start_skew_ms")}
    told |= {"halted_s": halted_s, "code": outcome["exit_code"]}
    print(json.dumps(told), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Halted:
    """One halt: the run's code, the latency and the skew as told, and the latency as seen (decision to the look without any load)."""

    code: int
    told_ms: float | None
    skew_ms: float | None
    seen_ms: float


def halts(fabric: Fabric, count: int, env: Mapping[str, str] | None = None) -> list[Halted]:
    """Start and halt a run on all targets so many times."""
    head = fabric.head
    (head.folder / "halter.py").write_text(HALTER)
    lines = [line for line in runs.scenario("halted", 60, cpu=f"{CPU:.0%}").splitlines() if "DiskFill" not in line]
    (head.folder / "halted.yaml").write_text("\n".join(lines[:-1]) + "\n")
    argv = (sys.executable, f"{head.here}/halter.py", fabric.address, f"{head.here}/halted.yaml", str(count))
    with watching.Watch(fabric.hosts, every_s=0.003) as watch:
        halter = runs.Command(head, *argv, env={"PYTHONPATH": str(ROOT), **(env or {})})
        said = Path(f"{halter.stem}.out")
        until(lambda: halter.process.poll() is not None, 60 + 12 * count, lambda: f"{count} halts; {said.read_text()}{halter.said()}", 0.2)
    assert halter.process.returncode == 0, halter.said()
    told = [json.loads(line) for line in said.read_text().splitlines() if line.startswith("{")]  # Ray prints there too
    assert len(told) == count
    before_s = [0.0, *(one["halted_s"] for one in told)]
    return [
        Halted(one["code"], one["told_ms"], one["skew_ms"], 1e3 * (gone_s(watch, fabric, since_s, one["halted_s"]) - one["halted_s"]))
        for since_s, one in zip(before_s, told, strict=False)
    ]


def gone_s(watch: watching.Watch, fabric: Fabric, since_s: float, halted_s: float) -> float:
    """Return when the loads that began between the last halt and this one were all gone: each target must have had one."""
    ours = [sight for sight in watch.sights.values() if since_s < sight.first_s < halted_s]
    assert sorted(sight.host for sight in ours) == [host.name for host in fabric.targets], [(one.host, one.first_s) for one in ours]
    assert all(sight.gone_s for sight in ours)
    return max(sight.gone_s for sight in ours)


def percentile(values: list[float], share: float) -> float:
    """Return the least value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]
