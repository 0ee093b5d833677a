"""An out-of-memory killer as the cause of an end: what the kernel counts, the words, and what a run makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.oom import MACHINE, is_told, read_kills, told
from cluster.load_end import NO_LOAD, ended
from cluster.orchestrator import _cause_of
from cluster.run_state import Phase
from cluster.verdict import Cause

VMSTAT = "pgfault 7\noom_kill 3\n"


def test_what_the_kernel_counts_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Of the machine, of a group of version 2 and of one of version 1; a kernel that counts nothing is no group."""
    for folder in ("proc/self", "two/a", "one/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text(VMSTAT)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/a\n0::/a\n")
    mounts = f"1 2 0:3 / {tmp_path}/two rw - cgroup2 cgroup2 rw\n1 2 0:4 / {tmp_path}/one rw - cgroup cgroup rw,memory\n"
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "two/a/memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    (tmp_path / "one/a/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    (tmp_path / "one/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert read_kills(tmp_path / "proc") == {MACHINE: 3, f"{tmp_path}/two/a": 1, f"{tmp_path}/one/a": 5}
    assert read_kills(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        pytest.param({MACHINE: 3, "/g": 0}, "", id="none"),
        pytest.param({MACHINE: 4, "/g": 0}, "ended 1 process of this machine meanwhile", id="of-the-machine"),
        pytest.param({MACHINE: 5, "/g": 2}, "ended 2 processes of /g meanwhile", id="of-a-group"),
        pytest.param({"/new": 9}, "", id="a-group-that-was-not-there"),
    ],
)
def test_the_words_name_the_nearest_group(after: dict[str, int], words: str) -> None:
    """Only what rose while the load lived; the words are known again."""
    found = told({MACHINE: 3, "/g": 0}, after)
    assert found.endswith(words)
    assert bool(found) == bool(words) == is_told(f"the load was killed by signal 9: {found}")


@pytest.mark.parametrize(
    ("phase", "reason", "code"),
    [
        pytest.param("failed", f"the load was killed by signal 9: {told({MACHINE: 0}, {MACHINE: 1})}", "oom", id="the-kernels"),
        pytest.param("dead", "its simulator is dead: OutOfMemoryError: Task was killed", "oom", id="rays"),
        pytest.param("failed", "the load was killed by signal 9", "internal", id="anybody-elses"),
        pytest.param("failed", "", "internal", id="nothing-said"),
    ],
)
def test_an_end_for_lack_of_memory_has_a_code_of_its_own(phase: str, reason: str, code: str) -> None:
    """Whoever's killer it was, the reason stays."""
    found = ended("running", NO_LOAD, {"phase": phase, "reason": reason}, 0, is_over=False)
    assert found is not None
    assert found.code == code
    assert reason in found.reason


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.RUNNING])
def test_a_run_whose_load_was_ended_for_lack_of_memory_is_inconclusive(phase: Phase) -> None:
    """The dose was not reached; the harness has not failed."""
    assert _cause_of("oom", phase) is Cause.INCONCLUSIVE
    assert _cause_of("internal", phase) is Cause.ERROR
