"""Leaks by slope: planted ones are found in time, with their rate and owner; warm-ups and sawteeth never are. And by handle."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from random import Random

import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.metrics.registry import Kind
from cluster.handles import Handle, told, unreleased
from cluster.metrics.anomaly import Reading, hooks_of
from cluster.metrics.anomaly_watch import AnomalyWatch
from cluster.metrics.leaks import Leaks, LeakSlope
from cluster.metrics.store import Entry
from cluster.metrics.windows import Row, events_batch, metrics_batch

MB, MIB = 1e6, 1 << 20
START_NS = 1_700_000_000 * 10**9
SEEDS = range(50)


def noise(chance: Random, level: float) -> float:
    """What the kernel and others add: some pages, at times a megabyte."""
    return level + chance.gauss(0.0, 64e3) + (MB if chance.random() < 0.02 else 0.0)


def flags(curve: Callable[[float], float], chance: Random, lasts_s: int = 120) -> list[tuple[float, float]]:
    """Return when a curve seen once a second was flagged, and with which rate."""
    watch, found = LeakSlope(), []
    for at_s in range(lasts_s):
        leak = watch.take(float(at_s), noise(chance, curve(at_s)))
        if leak is not None:
            found.append((float(at_s), leak.rate))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_of_a_megabyte_a_second_is_flagged_within_30_s(seed: int) -> None:
    """From any level, its slope within 10 %, whatever the noise."""
    chance = Random(seed)
    base = chance.uniform(0.0, 2e9)
    (at_s, rate), *_ = flags(lambda t: base + MB * t, chance)
    assert at_s <= 30
    assert rate == pytest.approx(MB, rel=0.1)


def warm_up(chance: Random) -> Callable[[float], float]:
    """Caches that fill: towards a level ever more slowly, or in a line that ends."""
    level, tau_s, line_s = chance.uniform(20 * MB, 2000 * MB), chance.uniform(0.5, 6.0), chance.uniform(1.0, 12.0)
    if chance.random() < 0.5:
        return lambda t: level * (1.0 - math.exp(-t / tau_s))
    return lambda t: level * min(t / line_s, 1.0)


def sawtooth(chance: Random) -> Callable[[float], float]:
    """Memory that is collected now and then: up for some seconds, down at once."""
    base, high, period_s = chance.uniform(0, 500 * MB), chance.uniform(2 * MB, 500 * MB), chance.uniform(2.0, 18.0)
    begin_s = chance.uniform(0.0, period_s)
    return lambda t: base + high * math.fmod(t + begin_s, period_s) / period_s


def steps(chance: Random) -> Callable[[float], float]:
    """A level that changes now and then, for good."""
    each_s, size = chance.uniform(8.0, 30.0), chance.uniform(5 * MB, 200 * MB)
    return lambda t: size * math.floor(t / each_s)


def wave(chance: Random) -> Callable[[float], float]:
    """Up and down."""
    high, period_s = chance.uniform(5 * MB, 500 * MB), chance.uniform(4.0, 24.0)
    return lambda t: high * (1.0 - math.cos(2.0 * math.pi * t / period_s))


@pytest.mark.parametrize("make", [warm_up, sawtooth, steps, wave])
def test_what_pauses_or_falls_back_is_no_leak(make: Callable[[Random], Callable[[float], float]]) -> None:
    """0 flags in 50 seeds of two minutes each."""
    found = {seed: seen for seed in SEEDS if (seen := flags(make(Random(seed)), Random(seed + 1_000)))}
    assert found == {}


def test_a_leak_after_a_warm_up_is_flagged_too() -> None:
    """Within 30 s of its begin, and once in each span, not in each second."""
    found = flags(lambda t: 300 * MB * min(t / 5.0, 1.0) + MB * max(0.0, t - 30.0), Random(3))
    assert 30 < found[0][0] <= 60
    assert found[0][1] == pytest.approx(MB, rel=0.1)
    assert all(later - earlier >= 20 for (earlier, _), (later, _) in itertools.pairwise(found))


def test_a_leak_on_top_of_a_sawtooth_of_another_is_its_owners() -> None:
    """Series do not mix: the hook names the operation and the node of the one that leaks."""
    (hook,) = hooks_of("leak").values()
    chance, found = Random(1), []
    for at_s in range(40):
        for worker, curve in (("0.MemoryPressure@n1", lambda t: MB * t), ("1.MemoryPressure@n1", lambda t: 50 * MB * (t % 7.0))):
            reading = Reading("dose.achieved", "bytes", "n1", worker, "", (), float(at_s), 1.0, noise(chance, curve(at_s)))
            if words := hook(reading):
                found.append((at_s, reading.worker, words))
    assert found[0][0] <= 30
    assert {worker for _, worker, _ in found} == {"0.MemoryPressure@n1"}
    assert found[0][2].startswith("0.MemoryPressure@n1 rises by 0.9")


def windows(at_s: int, held: dict[tuple[str, str], float]) -> Entry:
    """Return the doses of a second, by node and operation, as an aggregator has them."""
    rows = [Row("dose.achieved", Kind.GAUGE, "bytes", worker, "main", (), 1, *[value] * 4) for (_, worker), value in held.items()]
    (node,) = {node for node, _ in held}
    metrics = metrics_batch(rows, node=node, start_ns=START_NS + at_s * 10**9, window_s=1.0)
    return Entry((node, "a"), at_s + 1, metrics, events_batch([]))


def test_the_watch_of_a_run_tells_of_a_leak_once_and_with_its_owner() -> None:
    """Of the doses of two nodes one leaks 1 MB/s: one event within 30 s, with its node, operation, phase and slope; others are silent."""
    watch, chance = AnomalyWatch(hooks_of("leak"), 1.0, VirtualClock()), Random(4)
    curves: dict[tuple[str, str], Callable[[float], float]] = {
        ("n1", "0.MemoryPressure@n1"): lambda t: 300 * MB * (1.0 - math.exp(-t / 4.0)),
        ("n1", "1.MemoryPressure@n1"): lambda t: 20 * MB * (t % 7.0),
        ("n2", "0.MemoryPressure@n2"): lambda t: 50 * MB + MB * t,
        ("n2", "1.MemoryPressure@n2"): lambda t: 50 * MB,
    }
    for at_s in range(35):
        for node in ("n1", "n2"):
            watch.take([windows(at_s, {key: noise(chance, curve(at_s)) for key, curve in curves.items() if key[0] == node})])
    watch.end(30.0)
    rows, (event,) = watch.news()
    assert (event.kind, event.severity) == ("anomaly", "warning")
    assert (event.node, event.worker, event.phase) == ("n2", "0.MemoryPressure@n2", "main")
    assert (event.data["metric"], event.data["hook"]) == ("dose.achieved", "leak")
    assert 0 < event.wall_ns - START_NS <= 30 * 10**9
    words = re.search(r"0\.MemoryPressure@n2 rises by ([0-9.]+) MiB/s without a pause", event.message)
    assert words is not None, event.message
    assert float(words[1]) * MIB == pytest.approx(MB, rel=0.1)
    assert [(row.metric, row.labels, row.sum) for row in rows] == [("anomaly.found", (("hook", "leak"),), 1.0)]


def test_only_what_is_held_is_watched() -> None:
    """A fraction, a counter and a file's size are not; a node's used memory is, and the node is the owner."""
    hook = Leaks()

    def seen(metric: str, unit: str, worker: str = "") -> list[str]:
        return [found for at_s in range(40) if (found := hook(Reading(metric, unit, "n1", worker, "", (), at_s, 1.0, MB * at_s)))]

    assert seen("dose.achieved", "ratio", "w") == seen("memory.populated", "bytes", "w") == []
    assert len(seen("host.memory.used", "bytes")) == 1
    assert seen("dose.achieved", "bytes", "w")[0].startswith("w rises")


def test_longer_windows_take_longer() -> None:
    """With windows of 10 s ten of them are needed; a window that comes twice counts once."""
    hook, found = Leaks(), []
    for number in range(12):
        for _ in range(2):
            reading = Reading("host.memory.used", "bytes", "n1", "", "", (), 10.0 * number, 10.0, MB * 10 * number)
            found += [number] if hook(reading) else []
    assert found == [9]


STATUS = {
    "slots": [
        {"slot": 1, "generation": 4, "operation": "a@n", "run": "r", "phase": "live", "pids": [10], "amounts": {"memory_bytes": 5}},
        {"slot": 2, "generation": 5, "operation": "b@n", "run": "r", "phase": "live", "pids": [11], "amounts": {"memory_bytes": 7}},
        {"slot": 3, "generation": 6, "operation": "c@n", "run": "r", "phase": "open", "pids": [], "amounts": {}},
        {"slot": 4, "generation": 7, "operation": "d@n", "run": "r", "phase": "free", "pids": [12], "amounts": {}},
    ],
    "records": [
        {"id": "x", "kind": "process", "operation": "a@n", "run": "r", "slot": 1, "generation": 4},
        {"id": "y", "kind": "disk_fill", "operation": "a@n", "run": "r", "slot": 1, "generation": 4},
        {"id": "z", "kind": "disk_fill", "operation": "b@n", "run": "r", "slot": 2, "generation": 5},
    ],
}


def test_handles_of_dead_processes_are_listed_with_their_owner() -> None:
    """Slots whose processes are all gone, and what else they have; not those of the living, of nobody yet, or given back."""
    found = unreleased(STATUS, lambda pid: pid == 11)
    assert [(one.owner, one.kind, one.name, one.pids) for one in found] == [("a@n", "slot", "1/4", (10,)), ("a@n", "disk_fill", "y", (10,))]
    assert str(found[0]) == "slot 1/4 of a@n in r: process 10 is gone, memory_bytes=5 reserved"
    assert unreleased(STATUS, lambda _: True) == []
    assert isinstance(found[0], Handle)


def test_a_guardian_that_does_not_answer_is_said_so() -> None:
    """The list is in words; where it cannot be had the reason is."""

    def broken() -> dict[str, object]:
        raise HarnessError("timeout", "no answer within 1 s")

    assert told(broken) == ["not known: no answer within 1 s"]
    gone = {**STATUS, "slots": [{**STATUS["slots"][0], "pids": [2**22 + 1]}]}
    assert told(lambda: gone)[0].startswith("slot 1/4 of a@n in r: process")
