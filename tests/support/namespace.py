"""Commands as in a plain container: a small /dev/shm, an empty machine-id, and an ordinary user, in a mount namespace of their own."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Final

USER: Final = 65534
SHM: Final = "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm"
IDS: Final = "for id in /etc/machine-id /var/lib/dbus/machine-id; do [ ! -e $id ] || mount --bind /dev/null $id; done"


def missing() -> str:
    """Return why such a namespace cannot be made here, empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    absent = [tool for tool in ("unshare", "setpriv", "bash") if not shutil.which(tool)]
    return f"commands not found: {', '.join(absent)}" if absent else ""


def plain_container() -> tuple[str, ...]:
    """Return the prefix that runs a command as an ordinary user with 64 MB of /dev/shm and an empty machine-id."""
    return in_namespace(f"{SHM}\n{IDS}\n{reachable_python()}", user=True)


def in_namespace(script: str, *, user: bool) -> tuple[str, ...]:
    """Return the prefix that runs a command after `script` in a mount namespace of its own, as an ordinary user if wanted."""
    drop = f"exec setpriv --reuid {USER} --regid {USER} --clear-groups -- " if user else "exec "
    return ("unshare", "--mount", "--propagation", "private", "bash", "-ec", f'{script}\n{drop}"$@"', "as-in-a-container")


def reachable_python() -> str:
    """Return shell lines that make the interpreter reachable where an ordinary user may not enter the folders above it."""
    closed = [one for one in Path(sys.base_prefix).parents if not one.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return ""
    top = closed[-1]
    return (
        f"mount -t tmpfs -o mode=755 tmpfs /mnt && mkdir /mnt/base\n"
        f"mount --bind '{sys.base_prefix}' /mnt/base\n"
        f"mount -t tmpfs -o mode=755 tmpfs '{top}' && mkdir -p '{sys.base_prefix}' && mount --move /mnt/base '{sys.base_prefix}'"
    )
