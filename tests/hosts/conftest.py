"""A Ray cluster on hosts with addresses of their own: the head h1 and the targets h2, h3, h4, built once for the tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import fabric
import pytest
import runs
import sweep

HERE = Path(__file__).parent
HOSTS_TIMEOUT_S = 900  # a death, its run's verdict and a mended cluster, twice where the machine stalled
STANDING: list[fabric.Fabric] = []
CLOSING = contextlib.ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `-m 'not hosts'` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(HOSTS_TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """Take the hosts down after the last test of this folder: other tests must not share the cores with their Ray.

    By then they are as they were before the first one, or this raises: no process, rule, mount, setting or record is new.
    """
    try:
        yield
    finally:
        if nextitem is None or HERE not in nextitem.path.parents:
            STANDING.clear()
            CLOSING.close()


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip with the reason where hosts cannot be made; remove what a crashed session left."""
    if why := sweep.missing():
        pytest.skip(f"no hosts on this machine: {why}")
    sweep.sweep_dead()


@pytest.fixture(scope="session")
def hosts_standing(namespaces: None) -> fabric.Fabric:
    """Four hosts with Ray, for fixtures of a wider scope; a test asks for `hosts`."""
    if not STANDING:
        STANDING.append(CLOSING.enter_context(fabric.Fabric(4)))
        STANDING[0].ray_up(dashboard=True, env=runs.HEALTH_CHECK)
        CLOSING.enter_context(runs.unchanged(STANDING[0]))
    return STANDING[0]


@pytest.fixture
def hosts(hosts_standing: fabric.Fabric) -> Iterator[fabric.Fabric]:
    """Head and three targets with Ray, whole again after each test."""
    yield hosts_standing
    hosts_standing.mend()
