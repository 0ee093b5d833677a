"""Whatever dies, the control groups of a load with a limit of memory are emptied and removed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from actors import memory_group, proc
from tests.support.site import SPINNER, Site, grant, open_slot
from tests.support.waiting import until

MIB = 1 << 20


@pytest.mark.parametrize("who", ["load", "guardians"])
def test_a_limited_group_goes_whoever_dies(site: Site, who: str) -> None:
    """With its load, or by the guardian that comes after two that were killed; a process that hides in it is ended with it."""
    if memory_group.find() is None:
        pytest.skip(f"unsupported here: {memory_group.NO_GROUP}")
    client = site.client()
    ticket = open_slot(client, memory_limit_bytes=64 * MIB)
    (slot,) = client.call("status")["slots"]
    groups = memory_group.of({"path": slot["container"], "memory_group": slot["memory_group"]})
    load, hidden = (site.child(sys.executable, "-S", "-c", SPINNER) for _ in range(2))
    proc.enter_cgroup(slot["memory_group"], load.pid)
    proc.enter_cgroup(slot["memory_group"], hidden.pid)  # of another session and, with version 1, of another container
    client.call("register", **ticket, pid=load.pid)
    grant(client, ticket, 1.0)
    assert [path for path in groups if not Path(path).is_dir()] == []
    if who == "load":
        load.kill()
    else:
        site.kill_pair(client)
        site.client()  # starts another, which reads the journal
    load.wait(10)
    hidden.wait(10)
    until(lambda: not any(Path(path).exists() for path in groups), 10, lambda: str(groups))
    for shared in {str(Path(path).parent) for path in groups}:
        with contextlib.suppress(FileNotFoundError):
            assert list(Path(shared).iterdir()) == []
