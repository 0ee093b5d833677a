"""A control group of our own with a limit of memory, for a process that joins it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.limits import chain
from tests.support.waiting import until


@contextlib.contextmanager
def memory_limited(limit_bytes: int) -> Iterator[Path]:
    """Make a group with this limit, and give its folder; a process joins by writing its pid to `cgroup.procs` there.

    Skips the test where that cannot be had.
    """
    cgroup, mounts = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    parents = chain("memory", cgroup, mounts) or chain("", cgroup, mounts)
    if not parents:
        pytest.skip("no control group of memory is mounted here")
    group = parents[0] / f"stress-cluster-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
        try:
            (group / name).write_text(str(limit_bytes))
        except OSError as error:
            pytest.skip(f"a control group of ours has no limit of memory: {error}")
        yield group
    finally:
        until(lambda: _is_gone(group), 10, "the end of the control group")


def _is_gone(group: Path) -> bool:
    with contextlib.suppress(OSError):  # its process is still ending
        group.rmdir()
    return not group.exists()
