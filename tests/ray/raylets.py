"""Raylets of this machine that tests of one session share: what they are, and how one more is started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

OBJECT_STORE_BYTES = 80_000_000


@dataclass(frozen=True, slots=True)
class Raylets:
    """A head and three targets as raylets of this machine, all in a private temp folder."""

    cluster: Any
    address: str
    folder: Path

    def node_id(self, name: str) -> str:
        """Return Ray's id of a node by its name; a driver must be connected."""
        import ray

        return str(next(node["NodeID"] for node in ray.nodes() if node["NodeName"] == name and node["Alive"]))


@contextlib.contextmanager
def private_temp(folder: Path) -> Iterator[None]:
    """Let Ray write its address file here and not in its default folder; only while its processes are started and ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        yield
