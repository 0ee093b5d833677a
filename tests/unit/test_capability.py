from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.capability import NodeFacts, cgroup_kind, effective_capabilities, filesystem_of, judge, nice_limit, read_facts
from actors.simulator import REGISTRY
from cluster.cli.doctor import doctor_lines


@pytest.fixture
def facts(tmp_path: Path) -> NodeFacts:
    able = {"nice": 15, "nice_limit": -20, "capabilities": ("CAP_SYS_NICE", "CAP_SYS_ADMIN"), "populates_memory": True, "swap_bytes": 0}
    able |= {"lists_children": True, "makes_nameless": True, "direct_io": True, "memory_group": 2, "has_memory_pressure": True}
    able |= {"stress_ng": "0.15.06", "cgroup_folder": "/sys/fs/cgroup/a"}
    return replace(read_facts(tmp_path), **able, has_numba=True, state_local=True, state_filesystem="ext4", system="Linux", has_pidfd=True)


def test_an_able_node_can_do_all(facts: NodeFacts) -> None:
    """Where nothing is missing, everything is available and no reason is given."""
    assert {(name, found.verdict, found.reason) for name, found in judge(facts).items()} == {(name, "available", "") for name in REGISTRY}


@pytest.mark.parametrize(
    ("change", "simulator", "verdict", "word"),
    [
        pytest.param({"capabilities": (), "nice_limit": 20}, "CpuLoad", "fallback", "nice 15", id="nice-cannot-be-raised"),
        pytest.param({"has_numba": False}, "CpuLoad", "unavailable", "numba", id="no-compiler"),
        pytest.param({"populates_memory": False}, "MemoryPressure", "fallback", "POPULATE", id="older-kernel"),
        pytest.param({"swap_bytes": 1}, "MemoryPressure", "fallback", "swap", id="swap"),
        pytest.param({"state_local": False, "state_filesystem": "nfs4"}, "DiskFill", "unavailable", "nfs4", id="network-disk"),
        pytest.param({"state_filesystem": "overlay"}, "DiskFill", "fallback", "overlay", id="overlay"),
        pytest.param({"system": "Darwin"}, "DiskFill", "unavailable", "Darwin", id="another-system"),
        pytest.param({"capabilities": ()}, "Ports", "unavailable", "CAP_SYS_ADMIN", id="no-namespace"),
        pytest.param({"capabilities": ()}, "Semaphores", "unavailable", "IPC namespace", id="no-ipc-namespace"),
        pytest.param({"lists_children": False}, "Processes", "unavailable", "CONFIG_PROC_CHILDREN", id="children-are-not-listed"),
        pytest.param({"makes_nameless": False}, "Inodes", "unavailable", "O_TMPFILE", id="no-files-without-a-name"),
        pytest.param({"makes_nameless": False}, "DiskIO", "unavailable", "O_TMPFILE", id="no-file-to-move"),
        pytest.param({"state_filesystem": "tmpfs"}, "DiskIO", "unavailable", "no disk", id="no-disk-behind-it"),
        pytest.param({"direct_io": False}, "DiskIO", "fallback", "no direct access", id="no-direct-access"),
        pytest.param({"populates_memory": False}, "Mappings", "fallback", "touch", id="no-touching"),
        pytest.param({"memory_group": 0}, "MemoryStall", "unavailable", "no control group of memory", id="memory-not-delegated"),
        pytest.param({"has_memory_pressure": False}, "MemoryStall", "unavailable", "does not tell", id="no-pressure-information"),
        pytest.param({"memory_group": 1, "cgroup_folder": ""}, "MemoryStall", "unavailable", "does not tell", id="no-tree-of-version-2"),
        pytest.param({"stress_ng": ""}, "StressNg", "unavailable", "stress-ng is not installed", id="no-stress-ng"),
        pytest.param({"cgroup_folder": ""}, "StressNg", "fallback", "SIGSTOP", id="no-control-group"),
        pytest.param({"capabilities": ()}, "StressNg", "fallback", "namespaces", id="no-namespaces"),
        pytest.param({"has_pidfd": False}, "CpuLoad", "unavailable", "pidfd", id="no-pidfd"),
    ],
)
def test_what_is_missing_is_named(facts: NodeFacts, change: dict[str, object], simulator: str, verdict: str, word: str) -> None:
    """A verdict other than available names what is missing."""
    found = judge(replace(facts, **change))[simulator]
    assert found.verdict == verdict
    assert word in found.reason
    assert found.allow or simulator == "DiskFill" or "system" in change or "has_pidfd" in change


def test_parsers() -> None:
    """Capabilities, the nice limit, control group trees and file systems are read as the kernel writes them."""
    assert effective_capabilities("Name:\tx\nCapEff:\t0000000000801000\n") == ("CAP_NET_ADMIN", "CAP_SYS_NICE")
    assert [nice_limit(f"Max nice priority         {soft}   0  \n") for soft in ("0", "40", "unlimited")] == [20, -20, -20]
    both = "1 0 0:1 / /a rw - cgroup2 none rw\n2 0 0:2 / /b rw - cgroup none rw,cpu\n"
    assert [cgroup_kind(text) for text in (both, both.splitlines()[0], both.splitlines()[1], "")] == ["hybrid", "v2", "v1", "none"]
    mounts = "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /data rw - xfs /dev/b rw\n3 1 0:3 / /dat rw - tmpfs none rw\n"
    assert filesystem_of(Path("/data/x"), mounts) == "xfs"
    assert filesystem_of(Path("/database"), mounts) == "ext4"


def test_doctor_says_what_would_allow_what_a_node_cannot_do(facts: NodeFacts) -> None:
    """Each simulator has a line: its verdict, and where that is not `available` the reason and the way out of it."""
    can = {name: found.to_json() for name, found in judge(replace(facts, stress_ng="")).items()}
    lines = doctor_lines({"nodes": {"n1": {"simulators": can}}})
    for name in REGISTRY:
        (line,) = (line.strip() for line in lines if line.strip().startswith(f"{name} "))
        if name == "StressNg":
            assert "unavailable  (stress-ng is not installed on this node; what would allow it: install the package stress-ng" in line
        else:
            assert line.endswith("available")
