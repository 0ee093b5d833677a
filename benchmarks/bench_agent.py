"""What do node agent and guardian cost on an idle node, and the guardian under leases? A bare Ray actor of the same node is the peer.

Goals: agent at 10 Hz at most 1 % of a core and 60 MB of private memory over a bare Ray actor; guardian at most 0.1 % and 15 MB.
Measured from outside: /proc/PID/task/*/schedstat over the span, Private_* of smaps_rollup at its end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

SPAN_S = 20.0
LEASES = 9  # three operations on each of three raylets of this machine


def private_bytes(pid: int) -> int:
    """Return the memory that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads that live."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


class Bare:
    """A Ray actor that does nothing."""

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()


def measure(span_s: float) -> dict[str, Any]:
    """Start an embedded Ray with one agent and a bare actor on it, and watch all three processes."""
    from actors.clock import SystemClock
    from actors.guardian import GuardianClient
    from cluster.driver_main import orchestrator_config
    from cluster.embedded import EmbeddedRay, environment
    from cluster.settings import load

    state = Path(tempfile.mkdtemp(prefix="sc-bench-"))
    os.environ["STRESS_CLUSTER_STATE_DIR"] = str(state)
    settings = load({})
    clock = SystemClock()
    guardian = GuardianClient.connect(
        state, role="driver", cluster="embedded", node=f"driver-{os.getpid()}", epoch=0, incarnation=os.getpid()
    )
    embedded = EmbeddedRay(guardian, state, "bench", 1, settings.lease_s)
    os.environ.update(environment(embedded.folder))
    try:
        embedded.start()
        from cluster import ray_port

        ray_port.connect(embedded.address)
        embedded.await_nodes()
        orchestrator = ray_port.orchestrator(orchestrator_config(settings))
        orchestrator.call("doctor", timeout_s=60.0, group="control")
        node = next(node.id for node in ray_port.nodes() if not node.spec.is_head)
        bare = ray_port.create(Bare, "bare", node, ())
        agents = ray_port.find_all("agent-n1")
        hello = next(iter(agents.values())).call("hello", group="control")
        pids = {"agent": hello["pid"], "bare_actor": bare.call("pid"), "guardian": hello["guardian_pid"]}
        clock.sleep(5.0)
        before, begun_ns = {name: cpu_s(pid) for name, pid in pids.items()}, clock.boot_ns()
        clock.sleep(span_s)
        elapsed_s = (clock.boot_ns() - begun_ns) / 1e9
        found: dict[str, Any] = {
            name: {"cpu_percent": 100 * (cpu_s(pid) - before[name]) / elapsed_s, "private_mb": private_bytes(pid) / 1e6}
            for name, pid in pids.items()
        }
        found["guardian_under_leases"] = under_leases(state, pids["guardian"], settings.lease_s, span_s)
        ray_port.disconnect()
    finally:
        embedded.stop()
        guardian.close()
    return found


def under_leases(state: Path, pid: int, lease_s: float, span_s: float) -> dict[str, float]:
    """Return the guardian's share of a core while it renews the leases of some slots each second, as an agent has it do."""
    from actors.clock import SystemClock
    from actors.guardian import GuardianClient

    clock, owner = SystemClock(), {"cluster": "bench", "node": "bench", "epoch": 1, "incarnation": 1}
    limits = {"cpu_cores": 64, "memory_bytes": 1 << 40, "disk_bytes": 1 << 40}
    with GuardianClient.connect(state, role="agent", **owner) as client:
        opened = [
            client.call(
                "open_slot", **owner, run="bench", operation=f"{at}.CpuLoad@bench", amounts={}, machine_limits=limits, release_s=0.0
            )
            for at in range(LEASES)
        ]

        def renew() -> None:
            until_ns = clock.boot_ns() + round(lease_s * 1e9)
            refused = client.call("grant", **owner, leases=[[one["slot"], one["generation"], until_ns] for one in opened])["ended"]
            assert not refused, refused

        renew()
        before_s, begun_ns = cpu_s(pid), clock.boot_ns()
        for _ in range(round(span_s)):
            clock.sleep(1.0)
            renew()
        spent = (cpu_s(pid) - before_s) / ((clock.boot_ns() - begun_ns) / 1e9)
        for one in opened:
            client.call("close_slot", slot=one["slot"], generation=one["generation"], grace_s=0.0)
    return {"leases": LEASES, "cpu_percent": 100 * spent, "private_mb": private_bytes(pid) / 1e6}


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SPAN_S)
    span_s = parser.parse_args().seconds
    found = measure(span_s)
    agent, bare, guardian = found["agent"], found["bare_actor"], found["guardian"]
    over = {name: agent[name] - bare[name] for name in agent}
    figures = {"seconds": span_s, **found, "agent_over_bare_actor": over}
    goals = {
        "agent over a bare actor, % of a core": (1.0, over["cpu_percent"] <= 1.0),
        "agent over a bare actor, private MB": (60.0, over["private_mb"] <= 60.0),
        "guardian, % of a core": (0.1, guardian["cpu_percent"] <= 0.1),
        "guardian under leases, % of a core": (0.1, found["guardian_under_leases"]["cpu_percent"] <= 0.1),
        "guardian, private MB": (15.0, guardian["private_mb"] <= 15.0),
    }
    return store("agent", figures, goals, ("ray",))


if __name__ == "__main__":
    raise SystemExit(main())
