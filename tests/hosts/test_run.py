"""A run on four hosts, from one command on the head: the load is what was asked, seen from outside, and nothing stays behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pytest
import runs
from fabric import Fabric
from support import census
from support.observe import Witness, boot_s

FOR_S = 12.0
CPU_STEPS = """
version: 1
name: shapes
limits: {cpu_busy_fraction: 100%, cpu_busy_for: 1h}
plan:
  together:
  - CpuLoad:
      fraction: {steps: {levels: [15%, 5%], each: 6s}}
      mode: own
    for: 12s
  - MemoryPressure:
      bytes: {ramp: {start: 0, end: 96MiB, over: 3s}}
    for: 12s
  - DiskFill: {bytes: 16MiB}
    for: 12s
"""
CORES = len(os.sched_getaffinity(0))


@dataclass
class Shown:
    """One run and what was seen of it."""

    fabric: Fabric
    run: runs.Run
    ended: runs.Ended
    watch: runs.Watch
    witness: Witness
    fill_bytes: dict[str, int]
    head_roles: set[str]


@pytest.fixture(scope="module")
def shown(hosts_session: Fabric) -> Iterator[Shown]:
    """Run the shapes once, watched every 3 ms."""
    fabric = hosts_session
    fills: dict[str, int] = {}
    head_roles: set[str] = set()
    with Witness() as witness, runs.Watch(fabric.hosts, every_s=0.003) as watch:
        run = runs.Run(fabric, CPU_STEPS)
        runs.await_load(watch, run, fabric.targets)
        begun_s = boot_s()
        while run.process.poll() is None:
            if 3 < boot_s() - begun_s < 4 and not fills:
                fills |= {host.name: runs.filled(host) for host in fabric.hosts}
                head_roles |= {role for role in ("agent", "simulator", "load") if runs.pids_of(fabric.head, role)}
            assert boot_s() - begun_s < 60, run.said()
            watch._end.wait(0.1)
        ended = run.wait(5)
    yield Shown(fabric, run, ended, watch, witness, fills, head_roles)
    runs.assert_nothing_left(fabric.hosts)


def test_passes_with_code_zero(shown: Shown) -> None:
    """The command ends with 0 and says where the run lies."""
    assert shown.ended.code == 0, str(shown.ended)
    assert shown.ended.document["status"] == "passed"
    assert shown.ended.document["run_dir"].endswith(shown.run.id)


def asked_cores(after_s: float) -> float:
    """The shape's formula, written down once more: 15 % of the host for 6 s, then 5 %."""
    return CORES * (0.15 if after_s < 6 else 0.05)


def begins(shown: Shown) -> dict[str, float]:
    """Return by host when its CPU load began."""
    found = {}
    for host in shown.fabric.targets:
        near_s = shown.watch.fills[host.name][0]
        begun = [sight.begun_s(near_s, asked_cores(0)) for sight in shown.watch.of(host)]
        found[host.name] = min((at_s for at_s in begun if at_s), default=0.0)
    return found


def test_cpu_follows_its_shape_on_each_target(shown: Shown) -> None:
    """In each settled second the loads of a target use the asked cores within 5 points of the host, seen in /proc."""
    for host in shown.fabric.targets:
        begun_s = begins(shown)[host.name]
        assert begun_s, f"no load was seen to begin on {host.name}"
        for second in (2, 3, 4, 8, 9, 10):
            used = sum(sight.cores(begun_s + second, begun_s + second + 1) for sight in shown.watch.of(host))
            asked = asked_cores(second + 0.5)
            assert abs(used - asked) / CORES <= 0.05, f"{host.name}, second {second}: {used:.3f} cores, asked {asked:.3f}"


def test_memory_follows_its_shape_on_each_target(shown: Shown) -> None:
    """The loads' anonymous bytes ramp up, hold the asked bytes within 2 %, and are given back."""
    for host in shown.fabric.targets:
        begun_s = begins(shown)[host.name]
        holder = max(shown.watch.of(host), key=lambda sight: max((held for _, held in sight.memory), default=0))
        before = [held for at_s, held in holder.memory if at_s < begun_s][-1]
        held = [held - before for at_s, held in holder.memory if begun_s + 4 < at_s < begun_s + 11]
        half = [held - before for at_s, held in holder.memory if begun_s + 1.2 < at_s < begun_s + 1.8]
        assert abs(mean(held) / (96 * runs.MIB) - 1) <= 0.02, f"{host.name} holds {mean(held) / runs.MIB:.1f} MiB"
        assert 0.3 < mean(half) / (96 * runs.MIB) < 0.7, f"{host.name} is at {mean(half) / runs.MIB:.1f} MiB in mid-ramp"


def test_fill_takes_real_blocks_on_each_target(shown: Shown) -> None:
    """The fill occupies 16 MiB of blocks in mid-run and nothing afterwards."""
    for host in shown.fabric.targets:
        assert abs(shown.fill_bytes[host.name] / (16 * runs.MIB) - 1) <= 0.02
        assert runs.filled(host) == 0


def test_loads_begin_together(shown: Shown) -> None:
    """The targets' loads begin within 100 ms of each other, by the summary and as seen from outside."""
    at = begins(shown)
    seen_ms = (max(at.values()) - min(at.values())) * 1e3
    told_ms = shown.ended.document["start_skew_ms"]
    print(f"start skew: told {told_ms:.1f} ms, seen {seen_ms:.1f} ms; stalls {len(shown.witness.stalls)}")
    assert told_ms <= 100
    # The outside look adds its own turn, and the stalls that it saw itself.
    worst_ms = max((stall.late_ms for stall in shown.witness.stalls), default=0.0)
    assert seen_ms <= 100 + 10 + worst_ms


def test_head_is_untouched(shown: Shown) -> None:
    """The protected head has no load, no simulator, no agent and no fill at any time."""
    assert shown.watch.of(shown.fabric.head) == []
    assert shown.fabric.head.name not in shown.watch.fills
    assert shown.head_roles == set()


def test_run_directory_holds_what_the_contract_names(shown: Shown) -> None:
    """Manifest, plan, metrics, events, summary and report are there, whole, and say the same."""
    path = shown.run.out
    manifest, summary = (json.loads((path / f"{name}.json").read_text()) for name in ("manifest", "summary"))
    assert (manifest["status"], manifest["exit_code"], summary["status"], summary["exit_code"]) == ("passed", 0, "passed", 0)
    assert {"run", "scenario", "seed", "code_id", "versions", "nodes", "settings", "start", "end", "plan_digest"} <= set(manifest)
    assert {dose["node"] for dose in summary["dose"]} == {"h2", "h3", "h4"}
    assert all(dose["reached"] for dose in summary["dose"])
    assert summary["outstanding"] == []
    assert all(not count for count in summary["losses"]["dropped_samples"].values())
    assert json.loads((path / "plan.json").read_text())["targets"] == ["h2", "h3", "h4"]
    assert "<html" in (path / "report.html").read_text().lower()
    assert not list((path / "log").glob("*")) if (path / "log").exists() else True


def test_recorded_doses_are_those_seen_from_outside(shown: Shown) -> None:
    """Every window is there once, and the recorded CPU time of each target is what /proc showed, within 3 %."""
    data = runs.assert_exact(shown.run.out, gapless=("h2", "h3", "h4"))
    assert all(stream["received"] == stream["expected_end"] for stream in runs.streams(shown.run.out))
    for host in shown.fabric.targets:
        recorded = recorded_core_s(data, host.name)
        seen = sum(sight.samples[-1][1] - used_before(sight, begins(shown)[host.name]) for sight in shown.watch.of(host))
        assert abs(recorded - seen) < 0.03 * seen + 0.1, f"{host.name}: recorded {recorded:.2f} core s, seen {seen:.2f}"


def used_before(sight: runs.Sight, at_s: float) -> float:
    """CPU seconds at a time."""
    return max((used_s for seen_s, used_s in sight.samples if seen_s <= at_s), default=0.0)


def recorded_core_s(data: Any, node: str) -> float:
    """Core seconds of a node's CPU load as recorded: mean share of each window times its length."""
    rows = data.metrics.select(["metric", "node", "worker", "window_s", "sum", "count"]).to_pylist()
    wanted = [row for row in rows if row["metric"] == "dose.achieved" and row["node"] == node and "CpuLoad" in row["worker"]]
    return sum(row["sum"] / row["count"] * CORES * row["window_s"] for row in wanted)


def test_nothing_is_left_on_any_host(hosts: Fabric) -> None:
    """A short run changes nothing on the hosts that a look before and after can tell."""
    before = census.Comparison(runs.census_of(hosts.hosts))
    ended = runs.Run(hosts, runs.scenario("brief", 3)).wait(90)
    assert ended.code in {0, 5}, str(ended)
    runs.assert_nothing_left(hosts.hosts)
    before.assert_clean(15)
