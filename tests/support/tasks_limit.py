"""No more tasks for a process: a control group of our own for it, which may have as many as there are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from actors.limits import chain
from tests.support import held
from tests.support.waiting import until

NO_GROUP = "no control group of tasks (version 1) can be made here, and nothing else keeps a process of root from forking"


@contextlib.contextmanager
def tasks_limited() -> Iterator[Path | None]:
    """Make a folder for such groups; None where that cannot be had. See `let_no_more_begin`.

    Version 2 has one tree: a process that moves there leaves the group in which the product counts and ends it.
    """
    parents = chain("pids", Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    folder = parents[0] / f"stress-cluster-test-{os.getpid()}" if parents else None
    try:
        if folder is not None:
            folder.mkdir()
    except OSError:
        folder = None
    try:
        yield folder
    finally:
        if folder is not None:
            until(lambda: _are_gone(folder), 10, "the end of the control groups")


def let_no_more_begin(folder: Path, pids: Iterable[int]) -> None:
    """Move each process and then its children into a group of its own, which may have no task more than they are by then."""
    for pid in pids:
        group = folder / str(pid)
        group.mkdir()
        for one in (pid, *held.children(pid)):
            with contextlib.suppress(ProcessLookupError):  # it was given back meanwhile
                (group / "cgroup.procs").write_text(str(one))
        (group / "pids.max").write_text((group / "pids.current").read_text())


def _are_gone(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # their processes are still ending
        for group in (*(one for one in folder.iterdir() if one.is_dir()), folder):
            group.rmdir()
    return not folder.exists()
