"""File systems of a test's own: what is free there changes by what the test does alone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(kind: str, folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty file system of this kind (ext4 in a file, or tmpfs) and give its top; skips the test where none can be mounted."""
    top = folder / "mounted"
    top.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(top))
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run(f"mkfs.{kind}", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(top))
    try:
        yield top
    finally:
        subprocess.run(["umount", "--lazy", str(top)], check=True)


def _run(*command: str) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"no file system of its own here: {command[0]} is not installed")
    if ended.returncode:
        pytest.skip(f"no file system of its own here: {' '.join(command)}: {ended.stderr.strip()}")
