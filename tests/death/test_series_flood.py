"""Memory under a flood of label sets, and after it, watched from outside the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = 4096

CHILD = """
import sys, tempfile
from pathlib import Path
from actors.clock import VirtualClock
from cluster.metrics.cardinality import Caps
from cluster.metrics.stream import MetricStream
from cluster.outbox import Outbox

offers, cap = int(sys.argv[1]), int(sys.argv[2])
clock = VirtualClock()
box = Outbox(Path(sys.argv[3]) / "n1-a.box", node="n1", incarnation="a", run="r")
stream = MetricStream("n1", "a", "r", box, clock, caps=Caps(series=cap, by_metric=cap, by_label=cap, idle_s=60.0))

def close():
    clock.advance(1.0)
    sequence = stream.close_window(clock.wall_ns())
    assert sequence
    stream.ack(sequence)

def say(*words):
    print(*words, flush=True)
    sys.stdin.readline()

for value in range(100):
    stream.observe("probe.requests", 1, labels={"probe": f"v{value}"})
close()
clock.advance(100.0)
close()
say("start")
for value in range(offers):
    stream.observe("probe.requests", 1, labels={"probe": f"v{value}"})
    if value % 20_000 == 19_999:
        close()
        for old in range(100):
            stream.observe("probe.requests", 0, labels={"probe": f"v{old}"})
say("flooded", len(stream._series), stream._series.rejected)
clock.advance(100.0)
close()
close()
say("idle", len(stream._series), stream._series.pruned)
"""


def test_a_flood_of_series_takes_bounded_memory_and_gives_it_back(tmp_path: Path) -> None:
    """Far more label sets than the cap take at most 24 MiB, each refused one is counted, and once idle the memory is given back."""
    flood(tmp_path, offers=120_000, cap=10_000, budget_bytes=24 << 20)


def flood(folder: Path, *, offers: int, cap: int, budget_bytes: int) -> None:
    command = [sys.executable, "-c", CHILD, str(offers), str(cap), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            seen = [(step(child), resident_bytes(child.pid)) for _ in range(1)]
            for _ in range(2):
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
                seen.append((step(child), resident_bytes(child.pid)))
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.wait(30) == 0
        finally:
            child.kill()
    (_, start), (flooded, most), (idle, after) = seen
    assert flooded == ["flooded", str(cap), str(offers - cap)]
    assert idle == ["idle", "0", str(cap + 100)]
    assert most - start <= budget_bytes, f"{(most - start) / (1 << 20):.1f} MiB more"
    assert after <= start * 1.1, f"{start} bytes at the start, {after} after"


def step(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    return child.stdout.readline().split()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
