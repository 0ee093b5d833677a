"""How long killed memory takes to be freed: as one process or as two, idle and beside two spinners.

Run: python benchmarks/bench_release.py. Each row kills holders as the guardian does (nice up, SIGKILL by pidfd, process_mrelease from
threads) and waits until every pidfd is readable; milliseconds per GiB, median of 3 rounds. Holders run at nice 0 (as loads do where that is
allowed) and at nice 15 (as Ray's workers do). `unhelped` kills without raised nice and without process_mrelease.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import store

from actors.guardian.killing import Killer
from actors.undo import Record

GIB = 1 << 30
SIZE_GIB = 2
ROUNDS = 3
HOLDER = """
import mmap, os, sys, time
os.nice(int(sys.argv[2]))
held = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.madvise(23)
print("held", flush=True)
time.sleep(600)
"""


def hold(count: int, nice: int) -> list[subprocess.Popen[bytes]]:
    """Start holders of `SIZE_GIB` together, and wait until they hold it."""
    command = [sys.executable, "-S", "-c", HOLDER, str(SIZE_GIB * GIB // count), str(nice)]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) for _ in range(count)]
    for holder in holders:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
    return holders


def release_ms_per_gib(count: int, nice: int, *, helped: bool) -> float:
    """Kill holders, and return how long it took until the last was gone."""
    holders = hold(count, nice)
    killer = Killer(lambda *_: None, lambda _: None)
    identities = [killer.identify(holder.pid, "")[0] for holder in holders]
    pidfds = [os.pidfd_open(holder.pid) for holder in holders]
    begun = time.monotonic()
    for index, identity in enumerate(identities):
        assert identity is not None
        if helped:
            killer.kill(Record(str(index), "process", 0, 0, "c", "n", "r", "o", {**identity.to_json(), "container": "cgroup"}))
        else:
            signal.pidfd_send_signal(pidfds[index], signal.SIGKILL)
    for pidfd in pidfds:
        select.select([pidfd], [], [])
    took_s = time.monotonic() - begun
    for holder, pidfd in zip(holders, pidfds, strict=True):
        holder.wait()
        os.close(pidfd)
    killer.close()
    return took_s * 1e3 / SIZE_GIB


def main() -> int:
    """Measure every combination and store it."""
    figures: dict[str, float] = {}
    for spinners in (0, 2):
        busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(spinners)]
        try:
            for nice in (0, 15):
                for count in (1, 2):
                    for helped in (True, False):
                        name = f"{count}_process_nice_{nice}_{spinners}_spinners_{'helped' if helped else 'unhelped'}_ms_per_gib"
                        times = [release_ms_per_gib(count, nice, helped=helped) for _ in range(ROUNDS)]
                        figures[name] = round(statistics.median(times), 1)
                        print(name, figures[name], flush=True)
        finally:
            for child in busy:
                child.kill()
                child.wait()
    figures["size_gib"] = SIZE_GIB
    return store("release", figures, {})


if __name__ == "__main__":
    sys.exit(main())
