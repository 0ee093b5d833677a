"""The Parquet parts of a run's metrics, by name: which of them count.

    metrics/part-<n>.parquet     windows as they came
    metrics/rolled-<n>.parquet   windows that took the place of others; the footer names those files, and all that they had replaced

A rolled part counts from the moment that it has its name; from then on what it replaces does not count, be it there or not. Numbers only
rise, and the newest part is never replaced without a newer one, so no name is ever given twice.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from .checksum import check_parquet

DAMAGED: Final = "damaged"  # the folder of what was set aside
FOOTER: Final = b"stress_cluster"
_NAME: Final = re.compile(r"(part|rolled)-(\d+)\.parquet")


def _number(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    return int(found[2]) if found else -1


def present_parts(directory: Path) -> list[Path]:
    """Return all parts that are there, in the order of their making, counted or not."""
    return sorted((path for path in (directory / "metrics").glob("*.parquet") if _number(path) >= 0), key=_number)


def is_rolled(path: Path) -> bool:
    """Tell whether a part is one that took the place of others."""
    return path.name.startswith("rolled-")


def replaced_by(path: Path) -> list[str]:
    """Return the names of the parts whose place a part took, also of those that they had replaced. Raises `FileNotFoundError`."""
    if not is_rolled(path):
        return []
    footer = json.loads((pq.read_schema(path).metadata or {}).get(FOOTER, b"{}"))
    return [str(name) for name in footer.get("replaces", [])]


def part_files(directory: Path) -> list[Path]:
    """Return the parts that count, in the order of their making. Raises `FileNotFoundError` when one goes meanwhile.

    Raises `HarnessError` that names a part which is damaged.
    """
    found = present_parts(directory)
    for path in found:
        check_parquet(path)
    gone = {name for path in found for name in replaced_by(path)}
    return [path for path in found if path.name not in gone]


def next_path(directory: Path, *, rolled: bool = False) -> Path:
    """Return the path of the next part."""
    found = [*present_parts(directory), *(directory / DAMAGED).glob("*.parquet")]
    number = max(map(_number, found), default=-1) + 1
    return directory / "metrics" / f"{'rolled' if rolled else 'part'}-{number:04d}.parquet"


def sweep_replaced(directory: Path) -> None:
    """Remove parts that do not count any more: who replaced them died before it could. For the one writer only."""
    counted = set(part_files(directory))
    for path in present_parts(directory):
        if path not in counted:
            path.unlink()
