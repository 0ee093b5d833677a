"""A STATE of its own for each test, with whatever guardians it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A STATE folder; its guardians and children end with the test."""
    made = Site(tmp_path)
    yield made
    made.close()
