"""Where a machine's durable state lies (STATE). Standard library only: the guardian uses it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import HarnessError

ENV_STATE_DIR = "STRESS_CLUSTER_STATE_DIR"


def default_state_dir(environ: Mapping[str, str], euid: int) -> Path:
    """Return STATE: the setting, else /var/lib/stress-cluster for root, else the user's XDG state folder.

    A user without HOME gets a folder under /var/tmp named by uid, which survives a reboot as STATE must.
    """
    if environ.get(ENV_STATE_DIR):
        return Path(environ[ENV_STATE_DIR])
    if euid == 0:
        return Path("/var/lib/stress-cluster")
    if environ.get("XDG_STATE_HOME"):
        return Path(environ["XDG_STATE_HOME"]) / "stress-cluster"
    home = environ.get("HOME", "")
    if home and os.access(home, os.W_OK):
        return Path(home) / ".local" / "state" / "stress-cluster"
    return Path(f"/var/tmp/stress-cluster-{euid}")  # noqa: S108  # owner and mode are checked by open_state_dir


def open_state_dir(path: Path) -> Path:
    """Create STATE with mode 0700 where missing and check that it is a folder of ours.

    Raises `HarnessError` when it is a symbolic link, belongs to another user, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise HarnessError("os", f"cannot make the state folder {path}: {error}", f"set {ENV_STATE_DIR} to a folder you own") from error
    if not stat.S_ISDIR(found.st_mode):
        raise HarnessError("os", f"the state folder {path} is not a plain folder", f"set {ENV_STATE_DIR} to a folder you own")
    if found.st_uid != os.geteuid():
        raise HarnessError("os", f"the state folder {path} belongs to uid {found.st_uid}, not {os.geteuid()}", f"set {ENV_STATE_DIR}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path
