"""The bounds of a simulated clock rate: how much of a core may be taken, who may take it first, and what the kernel ends."""

from __future__ import annotations

import os
import resource
from typing import Any

import pytest

from actors import slowdown
from actors.errors import InputError, RefusedError


@pytest.mark.parametrize(("share", "fits"), [(0.0, True), (0.9, True), (0.901, False), (1.0, False)])
def test_a_tenth_of_each_core_is_left(share: float, fits: bool) -> None:
    """More than nine tenths are refused, in the words of the scenario."""
    if fits:
        slowdown.check_slowdown(share, "0.CpuLoad@n")
        return
    with pytest.raises(InputError, match=r"0\.CpuLoad@n takes .* at most 90%"):
        slowdown.check_slowdown(share, "0.CpuLoad@n")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_kernel_bounds_it_before_it_gets_priority(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """The limit on work without a rest is set first; without the right to the priority it is refused, and the process keeps none."""
    calls: list[Any] = []

    def schedule(pid: int, policy: int, _: os.sched_param) -> None:
        calls.append((pid, policy))
        if not allowed:
            raise PermissionError(1, "no")

    monkeypatch.setattr(resource, "setrlimit", lambda *given: calls.append(given))
    monkeypatch.setattr(os, "sched_setscheduler", schedule)
    bound = (resource.RLIMIT_RTTIME, (slowdown.REALTIME_US, slowdown.REALTIME_US))
    if allowed:
        slowdown.bound_realtime()
        assert calls == [bound, (0, os.SCHED_RR), (0, os.SCHED_OTHER)]
        return
    with pytest.raises(RefusedError, match="real-time priority") as caught:
        slowdown.bound_realtime()
    assert (caught.value.code, calls) == ("capability", [bound, (0, os.SCHED_RR)])
