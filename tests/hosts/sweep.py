"""What test hosts leave on a machine, found by its name and removed: processes, namespaces, cgroups, folders.

Everything that a fabric makes carries its tag, with the owner's pid and start time in it. As a script this file is the fabric's janitor,
which waits until the owner is gone, however it went, and sweeps after it; `sweep_dead` does the same for owners whose janitor died too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from support.waiting import until

PREFIX: Final = "sch"
TOOLS: Final = ("ip", "nft", "unshare", "nsenter", "setsid", "mount")
COMMAND_TIMEOUT_S: Final = 120.0
_SERIAL: Final = itertools.count()


class FabricError(RuntimeError):
    """A command of the fabric failed; the message has the command and what it said."""


def sh(*argv: str, check: bool = True, stdin: str | None = None) -> str:
    """Run a command on this machine and return its output; raises `FabricError`."""
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=COMMAND_TIMEOUT_S, check=False)
    if check and done.returncode:
        raise FabricError(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def missing() -> str:
    """Return why hosts cannot be made here, empty when they can; meant for `pytest.skip`."""
    if sys.platform != "linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "not root"
    if absent := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"commands not found: {', '.join(absent)}"
    probe = f"{PREFIX}-probe-{os.getpid()}"
    try:
        sh("ip", "netns", "add", probe)
        sh("ip", "-n", probe, "link", "add", "br0", "type", "bridge")
        sh("nsenter", f"--net=/run/netns/{probe}", "nft", "add table bridge probe")
        sh("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "true")
    except FabricError as error:
        return str(error)
    finally:
        sh("ip", "netns", "del", probe, check=False)
    return ""


def start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, empty when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def new_tag() -> str:
    """Return a tag that names this process for good, by its pid and its start time, and a fabric of it."""
    return f"{PREFIX}-{os.getpid()}-{start_time(os.getpid())}-{next(_SERIAL)}"


def folder_of(tag: str) -> Path:
    """Return where a fabric keeps its hosts' folders; short, because paths of unix sockets end at 107 bytes."""
    return Path(tempfile.gettempdir()) / tag


def unified_root() -> Path | None:
    """Return where the version 2 cgroup hierarchy is mounted."""
    roots = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    return next((root for root in roots if (root / "cgroup.procs").exists()), None)


def own_cgroup() -> Path | None:
    """Return the folder of this process in the version 2 hierarchy, if groups may be made there."""
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None)
    root = unified_root()
    folder = root / own.strip("/") if own is not None and root else None
    return folder if folder is not None and os.access(folder, os.W_OK) else None


def _netns_of(tag: str) -> list[str]:
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.glob(f"{tag}-*")) if folder.is_dir() else []


def _kill_all_in(netns: str) -> None:
    """SIGKILL what runs in a network namespace, and wait until nothing does."""

    def gone() -> bool:
        pids = [int(pid) for pid in sh("ip", "netns", "pids", netns, check=False).split()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not [pid for pid in pids if start_time(pid)]

    until(gone, 10, f"all processes of {netns} gone")


def remove_cgroups(name: str) -> None:
    """Remove the group of a host, wherever it hangs, with what was made below it."""
    root = unified_root()
    groups = [Path(folder) for folder, _, _ in os.walk(root, topdown=False) if name in Path(folder).parts] if root else []

    def removed() -> bool:
        for group in groups:
            with contextlib.suppress(OSError):  # a dying process is still in it, or it is gone
                group.rmdir()
        return not any(group.exists() for group in groups)

    until(removed, 5, f"cgroup {name} removed")


def sweep(tag: str) -> None:
    """Remove everything that carries this tag: processes, namespaces, cgroups, folders. May be called twice."""
    names = _netns_of(tag)
    for name in names:
        _kill_all_in(name)
    for name in names:
        remove_cgroups(name)
        sh("ip", "netns", "del", name, check=False)  # takes its links along
    shutil.rmtree(folder_of(tag), ignore_errors=True)


def sweep_dead() -> list[str]:
    """Sweep the fabrics whose owner is gone, and return their tags."""
    folders = [Path(tempfile.gettempdir()), Path("/run/netns")]
    names = [path.name for folder in folders if folder.is_dir() for path in folder.glob(f"{PREFIX}-*")]
    found = {match[0]: (int(match[1]), match[2]) for name in names if (match := re.match(rf"{PREFIX}-(\d+)-(\d+)-\d+", name))}
    dead = sorted(tag for tag, (pid, started) in found.items() if start_time(pid) != started)
    for tag in dead:
        sweep(tag)
    return dead


def janitor(tag: str) -> None:
    """Wait until the owner is gone, however it went, and sweep after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(tag)


if __name__ == "__main__":
    janitor(sys.argv[1])
