"""The guardian's own start: becomes a daemon, takes the lock, makes the pages, forks the standby, serves.

Run as `python -I -S STATE/guardian-<digest>.pyz STATE`.
"""

# pathlib is left out: files of STATE are reached through its descriptor
# ruff: noqa: PTH117, PTH119, PTH123

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from typing import Final

from .. import proc
from ..clock import SECOND_NS, Clock, SystemClock
from ..control import ControlWriter, StatsPage
from . import standby
from .disk import write_whole
from .links import Links
from .lock import Lock, end_silent_holders
from .model import CoreSettings
from .server import Ending, Guardian, World, forbid_all, log

LOCK_PATIENCE_S: Final = 0.4
HOLDERS_PATIENCE_S: Final = 4.0
TAKEOVERS_MAX: Final = 4
TAKEOVERS_WITHIN_S: Final = 10.0
IDLE_EXIT_ENV: Final = "STRESS_CLUSTER_GUARDIAN_IDLE_EXIT_S"


def main(argv: list[str]) -> int:
    """Become a daemon and guard the STATE folder named in the arguments; 0 also when another guardian is there."""
    if len(argv) != 2 or not os.path.isabs(argv[1]):
        sys.stderr.write("usage: guardian.pyz STATE (an absolute path)\n")
        return 2
    state_dir = argv[1]
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        sys.stderr.write(f"{state_dir} must belong to uid {os.geteuid()} with mode 0700\n")
        return 2
    if not _become_daemon(folder):
        return 0
    try:
        _guard(state_dir, folder, code_id=_code_id(argv[0]))
    except BaseException:
        log(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _code_id(archive: str) -> str:
    return os.path.basename(archive).removeprefix("guardian-").removesuffix(".pyz")


def _become_daemon(folder: int) -> bool:
    """Fork twice into a session of its own; True in the daemon, False in the process that was started."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    os.fchdir(folder)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _raise_own_priority()
    return True


def _raise_own_priority() -> None:
    for nice in (-10, 0):
        with contextlib.suppress(OSError):  # not allowed: the next best value
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            break
    for adjustment in ("-900", "0"):
        with contextlib.suppress(OSError):  # not allowed: the next best value
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(adjustment)
            break


def _guard(state_dir: str, folder: int, code_id: str) -> None:
    clock = SystemClock()
    lock = _take_lock(folder, clock)
    if lock is None:
        return
    page, control_fd = ControlWriter.create()
    _, stats_fd = StatsPage.create()
    settings = CoreSettings()
    if os.environ.get(IDLE_EXIT_ENV):
        settings = CoreSettings(idle_exit_ns=round(float(os.environ[IDLE_EXIT_ENV]) * SECOND_NS))
    world = World(
        state_dir,
        folder,
        lock,
        page,
        (control_fd, stats_fd),
        _guardian_id(folder),
        os.urandom(4).hex(),
        code_id,
        settings,
        clock,
    )
    _remove_old_archives(folder, code_id)
    takeovers: list[int] = []
    while True:
        if _is_hopeless(folder, takeovers, clock.boot_ns()):
            forbid_all(world.page)
            return
        world.page.beat(clock.boot_ns())
        me = proc.identify(os.getpid())
        assert me is not None
        shadow = standby.fork()
        if shadow is None:
            standby.wait_for_silence(me, world.page)
            takeovers.append(clock.boot_ns())
            continue
        if takeovers:
            log(f"the guardian fell silent; its standby {os.getpid()} takes over")
        if Guardian(world, shadow, takeover=bool(takeovers)).run() is not Ending.PROMOTED:
            return
        takeovers.append(clock.boot_ns())


def _is_hopeless(folder: int, takeovers: list[int], now_ns: int) -> bool:
    """Tell whether a standby must not take over: STATE is gone, or guardian after guardian has just failed.

    Without this a guardian that fails at its start would be replaced by the next one for ever.
    """
    if takeovers and not os.fstat(folder).st_nlink:
        log("the state folder was removed; load is forbidden and nobody guards it any more")
        return True
    recent = [at_ns for at_ns in takeovers if now_ns - at_ns < TAKEOVERS_WITHIN_S * SECOND_NS]
    if len(recent) > TAKEOVERS_MAX:
        log(f"{len(recent)} guardians failed within {TAKEOVERS_WITHIN_S:g} s; load is forbidden, and the next start replays the journal")
        return True
    return False


def _take_lock(folder: int, clock: Clock) -> Lock | None:
    """Take the lock. Holders that answer are left alone; those that hang for seconds are ended."""
    for patience_s in (LOCK_PATIENCE_S, HOLDERS_PATIENCE_S):
        lock = Lock.take(folder, clock, patience_s)
        if lock is not None or Links(folder).answers():
            return lock
    log(f"the lock is held by processes that answer nobody; {end_silent_holders(folder)} of them killed")
    return Lock.take(folder, clock, HOLDERS_PATIENCE_S)


def _guardian_id(folder: int) -> str:
    """Return this machine's id: random, made once per boot in STATE."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or illegible: a new one
        fd = os.open("guardian.id", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(fd, "rb") as file:
            known = json.loads(file.read(4_096))
        if known["boot_id"] == proc.boot_id():
            return str(known["id"])
    made = os.urandom(8).hex()
    write_whole(folder, "guardian.id", json.dumps({"boot_id": proc.boot_id(), "id": made}).encode())
    return made


def _remove_old_archives(folder: int, code_id: str) -> None:
    for name in os.listdir(folder):
        if name.startswith("guardian-") and name.endswith(".pyz") and name != f"guardian-{code_id}.pyz":
            with contextlib.suppress(OSError):  # another starter removed it
                os.unlink(name, dir_fd=folder)
