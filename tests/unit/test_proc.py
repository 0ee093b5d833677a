"""Processes by identity: nothing is signalled that is not exactly what was meant."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from pathlib import Path

import pytest

from actors import proc


@pytest.fixture
def sleeper():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_command_with_blanks_and_parentheses_is_parsed():
    """The command cannot shift the fields behind it."""
    tail = " ".join(str(n) for n in range(4, 53))
    stat = proc.parse_stat(f"77 (a b) R) (x) S 1 2 3 {tail}")
    assert (stat.pid, stat.state, stat.ppid, stat.pgrp, stat.session) == (77, "S", 1, 2, 3)
    assert stat.starttime == 19


def test_this_process_is_identified_and_found_in_its_session():
    """Identity and session of the living process agree with the kernel's calls."""
    identity = proc.identify(os.getpid())
    assert identity is not None
    assert proc.lives(identity)
    assert os.getpid() in {stat.pid for stat in proc.session_members(os.getsid(0))}


def test_an_identity_survives_its_document(sleeper):
    """from_json inverts to_json, and refuses what is none."""
    identity = proc.identify(sleeper.pid)
    assert proc.Identity.from_json(identity.to_json()) == identity
    with pytest.raises(KeyError):
        proc.Identity.from_json({"pid": 1})


@pytest.mark.parametrize("field", ["starttime", "boot_id", "pid_ns"])
def test_no_pidfd_is_given_for_another_start_boot_or_namespace(sleeper, field):
    """A record that differs in one part names nobody here."""
    identity = proc.identify(sleeper.pid)
    other = {"starttime": identity.starttime + 1, "boot_id": "another", "pid_ns": identity.pid_ns + 1}[field]
    assert proc.open_pidfd(dataclasses.replace(identity, **{field: other})) is None
    assert not proc.lives(dataclasses.replace(identity, **{field: other}))
    assert sleeper.poll() is None


def test_a_kill_through_a_pidfd_ends_the_process_even_when_stopped(sleeper):
    """SIGKILL arrives at a stopped process, and its pidfd says so."""
    fd = proc.open_pidfd(proc.identify(sleeper.pid))
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert not proc.has_exited(fd)
    proc.kill_pidfd(fd)
    proc.raise_priority(sleeper.pid)
    proc.release_memory(fd)
    assert sleeper.wait(5) == -signal.SIGKILL
    assert proc.has_exited(fd)
    proc.kill_pidfd(fd)  # gone already: nothing happens
    os.close(fd)


def test_a_zombie_counts_as_gone():
    """A process that ended but was not reaped has no identity any more."""
    child = subprocess.Popen(["true"])
    fd = os.pidfd_open(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert proc.identify(child.pid) is None
    assert proc.has_exited(fd)
    child.wait()
    os.close(fd)


def test_blocks_are_allocated_for_real(tmp_path):
    """fallocate gives blocks, not a hole."""
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        proc.allocate(fd, 0, 1 << 20)
    except OSError as error:
        pytest.skip(f"this file system has no fallocate: {error}")
    finally:
        os.close(fd)
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_a_group_is_emptied_and_removed(sleeper):
    """Everything inside of a group of ours dies at once, and the group goes."""
    root = proc.cgroup_root()
    if not root:
        pytest.skip("no writable v2 cgroup here")
    path = f"{root}/stress-cluster-test-{os.getpid()}/0-1"
    proc.make_cgroup(path)
    try:
        proc.enter_cgroup(path, sleeper.pid)
        assert proc.cgroup_pids(path) == [sleeper.pid]
        assert proc.is_populated(path)
        proc.kill_cgroup(path)
        assert sleeper.wait(5) == -signal.SIGKILL
        assert not proc.is_populated(path)
    finally:
        proc.kill_cgroup(path)
        proc.remove_cgroup(path)
    assert not Path(path).parent.exists()


def test_a_child_dies_with_its_parent_only_if_the_parent_is_the_expected_one():
    """Another parent than expected is reported, because the signal will never come."""
    try:
        with pytest.raises(ProcessLookupError):
            proc.die_with_parent(os.getppid() + 1_000_000)
    finally:
        proc._libc().prctl(proc.PR_SET_PDEATHSIG, 0, 0, 0, 0)
