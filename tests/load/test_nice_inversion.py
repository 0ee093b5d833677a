"""Priority inversions among threads of different nice values: one core has to be had for them, so nothing runs beside this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load_bench import Bench, Told
from support.contests import CAPACITY, operation
from support.observe import promised
from support.waiting import until

from actors.lifecycle import Event
from actors.messages import Operation


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def start(one: Operation, told: Told) -> Bench:
        made.append(Bench(tmp_path, one, CAPACITY, told.segment.path))
        made[-1].ready()
        made[-1].go()
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("inheritance", [False, True])
@promised
def test_inversions_by_nice_values_are_found_and_end_with_inheritance(begin: Callable[..., Bench], inheritance: bool) -> None:
    """Threads at nice 19, 0 and -10 on one core: N planted give N found, and with inheritance the wait is bounded and none is."""
    if not may_raise_nice():
        pytest.skip("raising a nice value needs CAP_SYS_NICE")
    options = {"mechanism": "nice", "inheritance": inheritance, "hold_s": 0.02, "burst_s": 0.4, "bound_s": 0.3}
    told = Told()
    one = begin(operation("PriorityInversion", 1, **options), told)
    until(lambda: told.sum("concurrency.inversion.planted") >= 3, 25, "three episodes")
    nices = sorted(os.getpriority(os.PRIO_PROCESS, int(tid)) for tid in os.listdir(f"/proc/{one.load.pids[0]}/task"))  # noqa: PTH208
    assert nices[0] == -10
    one.load.drain()
    assert one.end() == (Event.FINISHED, "")
    planted, detected = told.sum("concurrency.inversion.planted"), told.sum("concurrency.inversion.detected")
    waited_s = told.sum("concurrency.lock.wait") / told.count("concurrency.lock.wait")
    told.close()
    assert detected == (0 if inheritance else planted)
    assert (waited_s < 0.3) is inheritance


def may_raise_nice() -> bool:
    """Tell whether this process may lower a nice value."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)
    except PermissionError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)
    return True
