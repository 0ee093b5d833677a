"""The guardian where the machine plays against it: a fork bomb, a process number that comes back, a disk without room."""

# pathlib is left out where /proc is read
# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors import proc
from actors.errors import StressError
from actors.guardian import GuardianError
from tests.support.site import SPINNER, Site, fill, grant, loaded, open_slot
from tests.support.waiting import never, until

BOMB_SIZE = 50  # processes at a time, each for a third of a second
DISK_BYTES = 96 << 20

# Every process forks as long as there are tokens, in a session of its own and orphaned at once, and dies soon after: what is there
# now is not what will be there when the signal arrives.
BOMB = """
import os, random, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
tokens, back = os.pipe()
os.set_blocking(tokens, False)
os.write(back, b"x" * int(sys.argv[2]))
first, end_s = os.getpid(), 0.0
sys.stdin.readline()
while True:
    try:
        token = os.read(tokens, 1)
    except BlockingIOError:
        token = b""
    if token and os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        random.seed()
        end_s = time.monotonic() + random.uniform(0.1, 0.6)
    if os.getpid() != first and time.monotonic() > end_s:
        os.write(back, b"x")
        os._exit(0)
    time.sleep(0.02)
"""


def marked(marker: str) -> list[int]:
    """Return the living processes whose command line has the marker."""
    found = []
    for stat in proc.scan():
        with contextlib.suppress(OSError), open(f"/proc/{stat.pid}/cmdline", "rb") as file:
            if marker.encode() in file.read().split(b"\0") and stat.state not in "ZX":
                found.append(stat.pid)
    return found


@pytest.mark.parametrize("how", ["close", "lease", "guardian-dies"])
def test_a_fork_bomb_leaves_nothing(site: Site, how: str) -> None:
    """Processes that daemonise as fast as they die are gone with their container, whoever ends it."""
    client, marker = site.client(), f"bomb-{os.getpid()}-{how}"
    ticket = open_slot(client)
    bomb = subprocess.Popen(
        [sys.executable, "-S", "-c", BOMB, marker, str(BOMB_SIZE)], start_new_session=True, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    site.children.append(bomb)
    assert bomb.stdin is not None
    if client.call("register", **ticket, pid=bomb.pid)["container"] != "cgroup":
        bomb.stdin.close()
        pytest.skip("no control group of its own here: loads that fork are unavailable")
    container = client.call("status")["slots"][0]["container"]
    site.containers.append(container)
    grant(client, ticket, 5.0 if how == "lease" else 30.0)
    bomb.stdin.write(b"go\n")
    bomb.stdin.close()
    until(lambda: len(marked(marker)) > BOMB_SIZE // 2, 4, lambda: f"{len(marked(marker))} processes")
    if how == "close":
        assert client.call("close_slot", **ticket, grace_s=0)["gone"]
    elif how == "guardian-dies":
        site.kill_pair(client)
        site.client(role="cli")
    until(lambda: not marked(marker), 0.5 if how == "close" else 7, lambda: f"{len(marked(marker))} processes are left")
    never(lambda: marked(marker), 1.0, "one came back")
    until(lambda: not os.path.isdir(container), 5, f"{container} is removed")  # noqa: PTH112


def reborn(pid: int) -> subprocess.Popen[bytes]:
    """Return a new process that has this number, leader of its own session as a load is."""
    for _ in range(200):
        try:
            with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
                file.write(str(pid - 1))
        except OSError as error:
            pytest.skip(f"the next process number cannot be set here: {error}")
        made = subprocess.Popen([sys.executable, "-S", "-c", SPINNER], start_new_session=True)
        if made.pid == pid:
            return made
        made.kill()
        made.wait(5)
    pytest.skip(f"others took the number {pid} each time")


def test_a_process_that_has_a_dead_loads_number_is_left_alone(site: Site) -> None:
    """The journal names a number and a start time: the next guardian signals neither the one who has the number now nor its session."""
    client = site.client()
    _, load = loaded(site, client, 30)
    site.kill_pair(client)
    load.kill()
    load.wait(5)
    innocent = reborn(load.pid)
    site.children.append(innocent)
    site.client(role="cli")
    until(lambda: not site.journal() and not site.fill_files(), 5, "everything of the dead load is undone")
    never(lambda: innocent.poll() is not None, 1.5, "an innocent process was signalled")
    stat = proc.read_stat(innocent.pid)
    assert stat is not None
    assert stat.state not in "TZX"


@pytest.fixture
def small_disk(site: Site) -> Iterator[Site]:
    """A STATE on a file system of its own that is soon full."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(site.state)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield site
    finally:
        site.close()
        subprocess.run(["umount", "--lazy", str(site.state)], check=True)


def fill_up(site: Site) -> None:
    """Take the last byte of STATE's disk."""
    with open(site.state / "filler", "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    left = os.statvfs(site.state)
    assert left.f_bavail * left.f_frsize < 4096


@pytest.mark.parametrize("guardian_dies", [False, True], ids=["guardian-lives", "guardian-dies"])
def test_a_full_disk_keeps_nothing_from_being_undone(small_disk: Site, guardian_dies: bool) -> None:
    """What is armed has its place in the journal already: load and fill go, also by a guardian that starts on the full disk."""
    site = small_disk
    client = site.client()
    ticket = open_slot(client)
    load = site.child(sys.executable, "-S", "-c", SPINNER)
    client.call("register", **ticket, pid=load.pid)
    grant(client, ticket, 30)
    fill(client, ticket, size=20 << 20, state=site.state)
    fill_up(site)
    if guardian_dies:
        site.kill_pair(client)
        site.client(role="cli")
    else:
        report = client.call("close_slot", **ticket, grace_s=0)
        assert {one["outcome"] for one in report["outcomes"]} == {"undone"}
    assert load.wait(5) == -signal.SIGKILL
    until(lambda: not site.fill_files() and not site.journal(), 5, lambda: f"left: {site.fill_files()} {site.journal()}")


def test_without_room_for_a_journal_nothing_is_opened(small_disk: Site) -> None:
    """Arming fails closed: the caller hears of the disk, and no load begins."""
    small_disk.kill_pair(small_disk.client())
    (small_disk.state / "journal").unlink(missing_ok=True)
    fill_up(small_disk)
    client = small_disk.client()
    with pytest.raises(GuardianError) as caught:
        open_slot(client)
    assert caught.value.code == "journal"
    assert "No space left on device" in str(caught.value)
    assert client.call("status")["slots"] == []


def test_without_room_for_the_guardian_itself_the_caller_is_told(small_disk: Site) -> None:
    """A STATE that was full before: the message names it and the reason."""
    fill_up(small_disk)
    with pytest.raises(StressError) as caught:
        small_disk.client()
    assert f"cannot start the guardian in {small_disk.state}" in str(caught.value)
    assert "No space left on device" in str(caught.value)
