"""A Ray cluster on hosts with addresses of their own: the head h1 and the targets h2, h3, h4, built once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fabric
import pytest
import runs
import sweep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m 'not hosts'` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.hosts)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip with the reason where hosts cannot be made; remove what a crashed session left."""
    if why := sweep.missing():
        pytest.skip(f"no hosts on this machine: {why}")
    sweep.sweep_dead()


@pytest.fixture(scope="session")
def hosts_session(namespaces: None) -> Iterator[fabric.Fabric]:
    """Four hosts with Ray, for fixtures of a wider scope; a test asks for `hosts`."""
    with fabric.Fabric(4) as built:
        built.ray_up(dashboard=True, env=runs.HEALTH_CHECK)
        yield built


@pytest.fixture
def hosts(hosts_session: fabric.Fabric) -> Iterator[fabric.Fabric]:
    """Head and three targets with Ray, whole again after each test."""
    yield hosts_session
    hosts_session.mend()
