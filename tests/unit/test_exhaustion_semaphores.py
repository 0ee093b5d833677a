"""The limit of an IPC namespace, in a folder that looks like /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.exhaustion.semaphores import limit_sets

KERNELS_OWN = "32000\t1024000000\t500\t32000\n"


@pytest.mark.parametrize(("most", "want"), [(0, KERNELS_OWN), (40, "32000 1024000000 500 40")])
def test_the_number_of_sets_is_limited_and_nothing_else(tmp_path: Path, most: int, want: str) -> None:
    """The last of four figures is what may be there at once; with 0 nothing is written."""
    limits = tmp_path / "sys/kernel/sem"
    limits.parent.mkdir(parents=True)
    limits.write_text(KERNELS_OWN)
    limit_sets(most, tmp_path)
    assert limits.read_text() == want
