"""What a dead load still has at a real guardian is listed with its owner, until its lease has given it back."""

from __future__ import annotations

from actors import proc
from cluster.handles import unreleased
from tests.support.site import Site, grant, loaded, open_slot
from tests.support.waiting import until


def alive(pid: int) -> bool:
    stat = proc.read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def test_handles_of_a_dead_load_are_listed_until_they_are_given_back(site: Site) -> None:
    """Slot and disk fill, with operation, run and process; none while the load lives, and none after its lease."""
    client = site.client()
    ticket, load = loaded(site, client, 3.0)
    living, other = open_slot(client, operation="1.CpuLoad@n"), site.child()
    client.call("register", **living, pid=other.pid)
    grant(client, living, 60.0)
    assert unreleased(client.call("status"), alive) == []
    load.kill()
    load.wait(5)
    found = until(lambda: unreleased(client.call("status"), alive), 2, "the handles are listed", 0.02)
    assert {(one.owner, one.run, one.pids) for one in found} == {("0.CpuLoad@n", "r", (load.pid,))}
    assert {one.kind for one in found} >= {"slot", "disk_fill"}  # and its control group, where it has one
    assert f"process {load.pid} is gone" in str(found[0])
    assert found[0].amounts["disk_bytes"] == 1 << 30
    until(lambda: not any(one.kind == "disk_fill" for one in unreleased(client.call("status"), alive)), 6, "the fill is given back")
    client.call("close_slot", **ticket)
    assert unreleased(client.call("status"), alive) == []
    assert other.poll() is None
    client.call("close_slot", **living)
