"""One environment for all tests: a STATE folder of the session, no settings from the caller's shell, long forms only on request."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Said aloud on every node: without it Ray writes a token into HOME, and later nodes are turned away for not sending it.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
STATE = pytest.StashKey[Path]()
BEGUN_S = pytest.StashKey[float]()
SUITE_S = 2700.0  # what the whole suite may take on two cores

_FIND = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
# No deadline: examples share the cores with other work. No database: a failure prints the line that replays it.
hypothesis.settings.register_profile("suite", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("suite")
# For who asks only whether a test fails, and not by which smallest example: `--hypothesis-profile fails`.
hypothesis.settings.register_profile("fails", hypothesis.settings.get_profile("suite"), phases=_FIND)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make soak` and `make simulate` pass."""
    group = parser.getgroup("stress-cluster")
    group.addoption("--soak", action="store_true", help="run the long forms too")
    group.addoption("--seeds", type=int, default=0, metavar="N", help="run simulations with this many seeds instead of their own number")
    group.addoption("--only-seed", type=int, default=None, metavar="SEED", help="run simulations with this one seed, to replay a failure")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session its own STATE and take the caller's settings away."""
    for name in [name for name in os.environ if name.startswith(("STRESS_CLUSTER_", "RAY_"))]:
        del os.environ[name]
    for left in Path(tempfile.gettempdir()).glob("sc-state-*-*"):  # by sessions that were killed
        if not Path(f"/proc/{left.name.split('-')[2]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    config.stash[BEGUN_S] = time.time()
    config.stash[STATE] = Path(tempfile.mkdtemp(prefix=f"sc-state-{os.getpid()}-"))
    os.environ.update(RAY_ENVIRONMENT, STRESS_CLUSTER_STATE_DIR=str(config.stash[STATE]))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's STATE."""
    shutil.rmtree(config.stash[STATE], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how long the suite has taken so far, collection and fixtures included; its begin is told by who runs it in parts."""
    took_s = time.time() - float(os.environ.get("SUITE_BEGUN_S") or config.stash[BEGUN_S])
    late = took_s > SUITE_S and not config.getoption("--soak")
    terminalreporter.write_line(
        f"the tests took {took_s / 60:.1f} min, of at most {SUITE_S / 60:.0f} on two cores{': TOO LONG' if late else ''}"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what failed where CI wants to know it."""
    if report.failed and (noted := os.environ.get("CI_FAILED_TESTS")):
        with Path(noted).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms out unless they are asked for."""
    long = [item for item in items if item.get_closest_marker("soak")]
    if long and not config.getoption("--soak"):
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after each test of exhaustion that this process is as it was when the fixtures of module and session were set up."""
    from support.leftovers import is_checked, nothing_left

    if not is_checked(request.path):
        yield
        return
    with nothing_left():
        yield


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> Callable[[int], range]:
    """Return the seeds to use, given how many the test wants by itself: `for seed in seeds(200)`."""
    count, only = request.config.getoption("--seeds"), request.config.getoption("--only-seed")

    def choose(wanted: int) -> range:
        return range(only, only + 1) if only is not None else range(count or wanted)

    return choose
