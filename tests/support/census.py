"""What there is on a machine, as sets of lines: taken before and after, their difference is what was left behind.

Looks from outside only: /proc, /dev/shm, SysV and POSIX IPC, cgroups, namespaces, mounts, links, nft and tc, and given folders. As a
script it prints the census as JSON, so that it can be taken inside of another host: `python census.py --mark TEXT FOLDER ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# Kinds that only root can see in full are empty for others, before as after.
Census = dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look.

    marks: a process counts if one of these texts is in its command line or its first environment; without marks every process does.
    folders: their files count, with type and size. cgroup: a group counts if this text is in its path.
    ignore: a regular expression; lines `kind: entry` that it finds do not count.
    """

    marks: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    cgroup: str = "stress-cluster"
    ignore: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What came and what went between two censuses, as lines `kind: entry`."""

    left_behind: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.left_behind or self.missing)

    def __str__(self) -> str:
        return "\n".join([f"+ {line}" for line in self.left_behind] + [f"- {line}" for line in self.missing]) or "no difference"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _processes(scope: Scope) -> Iterator[str]:
    """Give `pid@start command` of every live process in scope but this one, kernel threads and zombies."""
    for folder in Path("/proc").iterdir():
        fields = _text(folder / "stat").rpartition(")")[2].split() if folder.name.isdigit() else []
        command = _text(folder / "cmdline") if fields and fields[0] not in "ZX" and int(folder.name) != os.getpid() else ""
        marked = not scope.marks or any(mark in command or mark in _text(folder / "environ") for mark in scope.marks)
        if command and marked:
            yield f"{folder.name}@{fields[19]} {command[:300]}"


def _names(folder: Path) -> Iterator[str]:
    yield from (path.name for path in (folder.iterdir() if folder.is_dir() else ()))


def _sysv(_: Scope) -> Iterator[str]:
    for kind in ("shm", "sem", "msg"):
        lines = _text(Path("/proc/sysvipc") / kind).splitlines()[1:]
        yield from (f"{kind} {' '.join(line.split()[:2])}" for line in lines)


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Give (mount point, file system, source) of each mount of this namespace; format in proc_pid_mountinfo(5)."""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        left, _, right = line.partition(" - ")
        yield left.split()[4], right.split()[0], right.split()[1]


def _cgroups(scope: Scope) -> Iterator[str]:
    roots = sorted({point for point, kind, _ in _mounts() if kind in ("cgroup", "cgroup2")})
    for root in roots:
        yield from (folder for folder, _, _ in os.walk(root) if scope.cgroup in folder)


def _output(*argv: str) -> list[str]:
    """Return the lines of a command; none where it is missing or not permitted."""
    if not shutil.which(argv[0]):
        return []
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def _files(scope: Scope) -> Iterator[str]:
    for folder in scope.folders:
        for path in [folder, *folder.rglob("*")]:
            try:
                found = path.lstat()
            except OSError:  # gone while we looked
                continue
            size = f" {found.st_size} B" if stat.S_ISREG(found.st_mode) else ""
            yield f"{stat.filemode(found.st_mode)} {path}{size}"


def _rules() -> Iterator[str]:
    """Give each line of the rule set after its table's name, without counters and remaining times."""
    table = ""
    for line in _output("nft", "list", "ruleset"):
        table = line.strip(" {") if line.startswith("table ") else table
        bare = re.sub(r"counter packets \d+ bytes \d+|expires \w+", "", line).strip()
        if bare.strip("{}"):
            yield f"{table}: {bare}"


# What the kernel changes by itself, or gives a new answer to each reader.
_RESTLESS: Final = re.compile(
    r"/random/|ns_last_pid|pty/nr|perf_|tainted|conntrack_count|hung_task_detect|/sched_domain/|/keys/|/stat_refresh|lifetime"
)


def _sysctls() -> Iterator[str]:
    """Give `name value` of the network's, the memory's and the scheduler's settings."""
    for root in ("net", "vm", "kernel"):
        for path in Path("/proc/sys", root).rglob("*"):
            if not _RESTLESS.search(str(path)) and path.is_file():
                yield f"{path} {_text(path)}"


LOOKS: Final[dict[str, Callable[[Scope], Iterable[str]]]] = {
    "process": _processes,
    "shared memory": lambda _: _names(Path("/dev/shm")),
    "message queue": lambda _: _names(Path("/dev/mqueue")),
    "SysV IPC": _sysv,
    "cgroup": _cgroups,
    "network namespace": lambda _: _names(Path("/run/netns")),
    "mount": lambda _: (" ".join(mount) for mount in _mounts()),
    "link": lambda _: _names(Path("/sys/class/net")),
    "nft rule": lambda _: _rules(),
    "queueing": lambda _: (re.sub(r"refcnt \d+", "", line).strip() for line in _output("tc", "qdisc", "show")),
    "sysctl": lambda _: _sysctls(),
    "file": _files,
}


def take(scope: Scope | None = None) -> Census:
    """Return what there is now, by kind."""
    scope = scope or Scope()
    skip = re.compile(scope.ignore) if scope.ignore else None
    return {kind: frozenset(line for line in look(scope) if not (skip and skip.search(f"{kind}: {line}"))) for kind, look in LOOKS.items()}


def difference(before: Census, after: Census) -> Difference:
    """Return what is in one census and not in the other."""
    kinds = sorted(before.keys() | after.keys())
    empty: frozenset[str] = frozenset()
    return Difference(
        left_behind=tuple(f"{kind}: {line}" for kind in kinds for line in sorted(after.get(kind, empty) - before.get(kind, empty))),
        missing=tuple(f"{kind}: {line}" for kind in kinds for line in sorted(before.get(kind, empty) - after.get(kind, empty))),
    )


@dataclass(slots=True)
class Comparison:
    """Takes a census at the start and tells later what was left behind; `look` may take it in another place."""

    look: Callable[[], Census] = take
    before: Census = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self.before or self.look()

    def left_behind(self) -> tuple[str, ...]:
        """Return what is here now and was not at the start."""
        return difference(self.before, self.look()).left_behind

    def assert_clean(self, within_s: float = 0.0) -> None:
        """Raise `AssertionError` that names what is still left behind after `within_s`."""
        end = time.monotonic() + within_s
        while left := self.left_behind():
            assert time.monotonic() < end, f"left behind after {within_s:g} s:\n" + "\n".join(left)
            time.sleep(0.05)


def to_json(census: Census) -> str:
    """Return the census as one line of JSON."""
    return json.dumps({kind: sorted(lines) for kind, lines in census.items()})


def from_json(text: str) -> Census:
    """Return the census that `to_json` wrote."""
    return {kind: frozenset(lines) for kind, lines in json.loads(text).items()}


def main() -> None:
    """Print the census of where this runs, as JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mark", action="append", default=[])
    options.add_argument("--cgroup", default=Scope().cgroup)
    options.add_argument("--ignore", default="")
    options.add_argument("folders", nargs="*", type=Path)
    given = options.parse_args()
    sys.stdout.write(to_json(take(Scope(tuple(given.mark), tuple(given.folders), given.cgroup, given.ignore))) + "\n")


if __name__ == "__main__":
    main()
