"""Which code is running: one digest over the sources of the three packages.

The generic top-level names can be shadowed by a user's own `cluster.py`, overwritten by another distribution, or differ
between nodes. Every hello carries `code_id()`, and a mismatch is refused before anything starts.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from .errors import HarnessError

PACKAGES = ("actors", "scenarios", "cluster")
DISTRIBUTION = "stress-cluster"
_OURS = f'__distribution__ = "{DISTRIBUTION}"'  # a line of each package's __init__.py


def _package_dir(name: str) -> Path:
    """Return where a package lies; it is found as an import finds it, and read instead of run: that takes a tenth of a second."""
    found = getattr(importlib.util.find_spec(name), "origin", None)
    if found is None or _OURS not in Path(found).read_text(encoding="utf-8", errors="replace").splitlines():
        raise HarnessError(
            "code_mismatch",
            f"`import {name}` finds {found or 'a folder without __init__.py'}, which is not part of {DISTRIBUTION}",
            f"rename your own {name}.py or {name}/ folder, or start from another directory",
        )
    return Path(found).parent


def digest_sources(folders: dict[str, Path]) -> str:
    """Return 16 hex digits over the names and bytes of all `.py` files in these package folders."""
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@functools.cache
def code_id() -> str:
    """Return the digest of the three packages as they were found when first asked.

    Raises `HarnessError` (`code_mismatch`) with the file found when one of them is not ours.
    """
    return digest_sources({name: _package_dir(name) for name in PACKAGES})


def check_same_code(theirs: str, where: str) -> None:
    """Raise `HarnessError` when another process runs different code than this one."""
    if theirs != code_id():
        raise HarnessError(
            "code_mismatch",
            f"{where} runs code {theirs}, this process runs {code_id()} from {_package_dir('actors').parent}",
            "install the same version on every node, or pass the working directory to the job",
        )
