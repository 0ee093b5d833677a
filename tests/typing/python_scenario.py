"""A scenario in Python, with each of its words."""

from __future__ import annotations

from dataclasses import replace

from actors.shape import Burst, Ramp
from scenarios import ActorProbe, Budget, CpuLoad, DiskFill, MemoryPressure, Scenario, Targets, Threshold, hold, pause, sequence, together
from scenarios.exporters import Prometheus
from scenarios.model import LimitOverrides
from scenarios.plan import Plan, resolve
from scenarios.text import dump, load

MIB = 1 << 20

scenario = Scenario(
    name="my-burst",
    seed=7,
    targets=Targets(labels={"stress": "yes"}, count=2),
    budget=Budget(nodes_max=2, memory_bytes_max=512 * MIB),
    profile="conservative",
    limits=LimitOverrides(cpu_fraction=0.5),
    on_node_lost="continue",
    hypotheses=(
        Threshold("host.memory.available", "min", ">=", 128 * MIB, name="memory stays"),
        ActorProbe(value_s=2.0, rate_hz=10.0, timeout_s=5.0, stat="p99"),
    ),
    plan=sequence(
        together(
            hold(CpuLoad(Burst(base=0.1, peak_level=0.5, period_s=10.0, length_s=5.0), mode="host_total"), for_s=20.0),
            hold(MemoryPressure(bytes=Ramp(start=0, end=64 * MIB, over_s=5.0)), for_s=20.0, phase="held"),
        ),
        pause(5.0),
        hold(DiskFill(bytes=64 * MIB, reserve_bytes=512 * MIB), for_s=5, tolerance=0.1),
    ),
)
again: Scenario = load(dump(replace(scenario, seed=8)))
plan: Plan = resolve(again, (), again.seed)

Scenario("short")  # E: [call-arg]
Scenario("wrong", CpuLoad(0.5))  # E: [arg-type]
Scenario("wrong", pause(1.0), seed="7")  # E: [arg-type]
Scenario("wrong", pause(1.0), targets={"count": 1})  # E: [arg-type]
Scenario("wrong", pause(1.0), nodes=3)  # E: [call-arg]
Scenario("wrong", pause(1.0), hypotheses=(Prometheus(),))  # E: [arg-type]
hold(CpuLoad(0.5))  # E: [call-arg]
hold(CpuLoad(0.5), for_s="20s")  # E: [arg-type]
CpuLoad("50%")  # E: [arg-type]
Threshold("host.memory.available", "min", ">=", "128MiB")  # E: [arg-type]
together(hold(CpuLoad(0.5), 1.0), MemoryPressure(bytes=1))  # E: [arg-type]
scenario.seed = 8  # E: [misc]
