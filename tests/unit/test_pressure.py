"""Level and category of a node's memory, and that its denominator is the container's limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actors.pressure import Pressure, category, level
from tests.support.memory_limit import memory_limited

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LIMIT = 700 * MIB
TELL = """
import json, sys
from pathlib import Path
from actors.capacity import read_capacity
from actors.host import HostSampler
snapshot = HostSampler("n", Path("/")).snapshot()
print(json.dumps([snapshot.memory_limit_bytes, snapshot.memory_available_bytes, read_capacity(Path("/")).memory_bytes]))
"""


@pytest.mark.parametrize(
    ("share", "want"),
    [
        (0.0, Pressure.LOW),
        (0.4999, Pressure.LOW),
        (0.50, Pressure.MODERATE),
        (0.6999, Pressure.MODERATE),
        (0.70, Pressure.HIGH),
        (0.8499, Pressure.HIGH),
        (0.85, Pressure.CRITICAL),
        (1.2, Pressure.CRITICAL),
        (float("nan"), Pressure.CRITICAL),
    ],
)
def test_categories_change_at_their_bounds(share: float, want: Pressure) -> None:
    """The edge belongs to the higher one; what is not known is critical."""
    assert category(share) is want


def test_a_level_is_a_share_of_the_limit() -> None:
    """And full where there is no limit to be a share of."""
    assert (level(350, 700), level(1, 0)) == (0.5, 1.0)


def test_in_a_container_with_a_limit_the_limit_is_the_denominator() -> None:
    """What a snapshot and a capacity are shares of is exactly the limit, whatever the machine has; in either version of control groups."""
    with memory_limited(LIMIT) as group:
        enter = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{TELL}'"
        done = subprocess.run(["sh", "-c", enter], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    limit, available, capacity = json.loads(done.stdout)
    assert (limit, capacity) == (LIMIT, LIMIT)
    assert 0.5 * LIMIT < available < LIMIT
