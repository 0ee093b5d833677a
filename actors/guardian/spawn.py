"""Starting the guardian: its archive, copied by digest into STATE, run by the base interpreter. Decides nothing.

The archive holds only standard-library code of ours, so that the guardian outlives virtual environments and working
directories. It makes itself a daemon; the process started here ends at once, so nothing of Ray's clean-up finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import HarnessError
from .main import IDLE_EXIT_ENV
from .server import LOG_BYTES_MAX

PACKAGE: Final = Path(__file__).resolve().parent.parent
MODULES: Final = (
    "__init__",
    "clock",
    "control",
    "errors",
    "limits",
    "memory_group",
    "messages",
    "proc",
    "procfs",
    "undo",
    "guardian/__init__",
    "guardian/blocks",
    "guardian/core",
    "guardian/disk",
    "guardian/engine",
    "guardian/fields",
    "guardian/files",
    "guardian/killing",
    "guardian/links",
    "guardian/lock",
    "guardian/main",
    "guardian/model",
    "guardian/owners",
    "guardian/reports",
    "guardian/server",
    "guardian/standby",
)
MAIN: Final = "import sys\nfrom actors.guardian.main import main\nsys.exit(main(sys.argv))\n"
REMOTE_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "gpfs", "afs", "fuse.sshfs", "fuse.glusterfs", "beegfs"}
)
PASSED_ON: Final = ("LD_LIBRARY_PATH", "PATH", IDLE_EXIT_ENV)
START_S: Final = 20.0


@functools.cache
def archive() -> bytes:
    """Return the archive: stored, with fixed times, so that the same sources give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in MODULES:
            _add(file, f"actors/{name}.py", (PACKAGE / f"{name}.py").read_bytes())
        _add(file, "__main__.py", MAIN.encode())
    return buffer.getvalue()


def _add(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


@functools.cache
def guardian_code_id() -> str:
    """Return 16 hex digits that name the guardian's code, which hello compares."""
    return hashlib.sha256(archive()).hexdigest()[:16]


def file_system_type(path: Path) -> str:
    """Return the type of the file system that holds a folder, "" when unknown."""
    device = os.stat(path).st_dev  # noqa: PTH116  # one call, no other use of pathlib
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split(" ", 1)[0]
    return ""


def write_archive(state_dir: Path) -> Path:
    """Copy the archive into STATE under its digest unless it is there; returns its path. Raises OSError."""
    path = state_dir / f"guardian-{guardian_code_id()}.pyz"
    if not path.exists():
        fd, temporary = tempfile.mkstemp(dir=state_dir, prefix=".guardian-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(archive())
            Path(temporary).rename(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error counts
                Path(temporary).unlink()
            raise
    return path


@contextlib.contextmanager
def turn(state_dir: Path) -> Iterator[bool]:
    """Yield whether it is this caller's turn to start a guardian, so that many callers do not start one each.

    A courtesy that saves work: the guardian's own lock decides who stays.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(state_dir / "guardian.start", flags, 0o600)
    try:
        yield _try_lock(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def start_guardian(state_dir: Path) -> None:
    """Start a guardian for this STATE; where one is at work the new one leaves by itself.

    Raises `HarnessError`: `unsupported` on a remote file system, `os` when it cannot be started.
    """
    state_dir = state_dir.absolute()
    kind = file_system_type(state_dir)
    if kind in REMOTE_FILE_SYSTEMS:
        raise HarnessError("unsupported", f"the state folder {state_dir} lies on {kind}", "set STRESS_CLUSTER_STATE_DIR to a local disk")
    base = getattr(sys, "_base_executable", None) or sys.executable
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"LC_ALL": "C.UTF-8"}
    try:
        command = [base, "-I", "-S", str(write_archive(state_dir)), str(state_dir)]
        with _open_log(state_dir) as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=state_dir, env=environment, check=True, timeout=START_S
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise HarnessError("os", f"cannot start the guardian in {state_dir}: {error}", f"see {state_dir}/guardian.log") from error


def _open_log(state_dir: Path) -> io.FileIO:
    path = state_dir / "guardian.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_size > LOG_BYTES_MAX:
        os.ftruncate(fd, 0)
    return io.FileIO(fd, "w")
