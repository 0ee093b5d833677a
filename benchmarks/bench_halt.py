"""How long does a halt take, and how far apart do loads begin? 100 halts of a run on three hosts, seen from outside.

Goals: 90 of 100 halts within 250 ms, 99 within a second, from the decision to the last load gone; start skew of 99 within 100 ms.
The hosts are network namespaces on this machine: needs root, iproute2, nftables and util-linux; says so and stores nothing elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

HALTS = 100
SHARES = (0.5, 0.9, 0.99)


def main() -> int:
    """Build the hosts, halt, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--halts", type=int, default=HALTS)
    count = parser.parse_args().halts
    sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/hosts")]
    import sweep

    if why := sweep.missing():
        print(f"skipped: no hosts on this machine: {why}")
        return 0
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import halting
    from fabric import Fabric

    with Fabric(4) as hosts:
        hosts.ray_up()
        halted = halting.halts(hosts, count)
    assert {one.code for one in halted} == {4}, halted
    seen, skews = [one.seen_ms for one in halted], [one.skew_ms or 0.0 for one in halted]
    percentiles = {
        name: {f"p{share * 100:g}_ms": round(halting.percentile(values, share), 1) for share in SHARES}
        for name, values in (("halt", seen), ("start_skew", skews))
    }
    apart = [abs(one.seen_ms - one.told_ms) for one in halted if one.told_ms is not None]
    figures = {"halts": count, "targets": 3, **percentiles, "halt_told_and_seen_apart_max_ms": round(max(apart), 1)}
    goals = {
        "halt, p90, ms": (250.0, percentiles["halt"]["p90_ms"] <= 250.0),
        "halt, p99, ms": (1000.0, percentiles["halt"]["p99_ms"] <= 1000.0),
        "start skew, p99, ms": (100.0, percentiles["start_skew"]["p99_ms"] <= 100.0),
    }
    return store("halt", figures, goals, ("ray",))


if __name__ == "__main__":
    raise SystemExit(main())
