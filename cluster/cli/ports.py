"""What the commands need of the rest: fetched when it is used, because Ray and Arrow take a second to import.

Tests put fakes in place of these functions; the commands call them as `ports.NAME(...)`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.messages import NodeSpec

from ..settings import Settings


class Outcome(Protocol):
    """How a run ended."""

    @property
    def status(self) -> str:
        """Return the status of the contract's table."""
        ...

    @property
    def exit_code(self) -> int:
        """Return the exit code of the contract's table."""
        ...

    @property
    def message(self) -> str:
        """Return why, in words."""
        ...

    @property
    def run_dir(self) -> Path | None:
        """Return the run directory, or None when nothing was started."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return what summary.json holds."""
        ...


class DriverProcess(Protocol):
    """The child process that drives a run."""

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happens until the run has ended."""
        ...

    def stop(self, reason: str) -> None:
        """Ask for a graceful stop; safe in a signal handler."""
        ...

    def kill(self) -> None:
        """End the child at once; leases end the load."""
        ...

    def wait(self) -> Outcome:
        """Return how the run ended."""
        ...


class Connection(Protocol):
    """A short-lived connection to a cluster's orchestrator and this machine's guardian."""

    def status(self, run: str | None) -> dict[str, Any]: ...  # noqa: D102
    def stop(self, run: str | None) -> dict[str, Any]: ...  # noqa: D102
    def modify(self, run: str, changes: Sequence[str]) -> dict[str, Any]: ...  # noqa: D102
    def halt(self, note: Callable[[str], None]) -> dict[str, Any]: ...  # noqa: D102
    def resume(self, note: Callable[[str], None]) -> dict[str, Any]: ...  # noqa: D102
    def forget(self, node: str) -> dict[str, Any]: ...  # noqa: D102
    def exporters(self, run: str, pause: Sequence[str], resume: Sequence[str], sets: Sequence[str]) -> dict[str, Any]: ...  # noqa: D102
    def recover(self) -> dict[str, Any]: ...  # noqa: D102
    def doctor(self) -> dict[str, Any]: ...  # noqa: D102
    def nodes(self) -> Sequence[NodeSpec]: ...  # noqa: D102
    def fetch(self, run: str, run_dir: Path) -> bool: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Job(Protocol):
    """A submitted Ray job."""

    @property
    def id(self) -> str:
        """Return Ray's id of the job."""
        ...

    def logs(self) -> Iterator[str]:
        """Yield the job's output as it appears."""
        ...

    def status(self) -> tuple[str, int | None]:
        """Return Ray's word for the job's state, and the driver's exit code once there is one."""
        ...

    def stop(self) -> None:
        """Ask Ray to end the job."""
        ...


def start_run(**fields: Any) -> DriverProcess:
    """Start a run in a child process; the fields are those of `driver.RunRequest`."""
    from ..driver import RunRequest, start  # noqa: PLC0415  # see the module's docstring

    return start(RunRequest(**fields))


def connect(address: str | None, settings: Settings) -> Connection:
    """Connect to a cluster, or with no address to what this machine's state folder knows."""
    from ..client import Connection as ClusterConnection  # noqa: PLC0415

    return ClusterConnection.open(address, settings)


@contextlib.contextmanager
def linked(address: str | None, settings: Settings) -> Iterator[Connection]:
    """Connect for the length of a command.

    Ray prints what happens to its nodes to standard output, whatever it was told; there it would spoil the command's own document.
    """
    with contextlib.redirect_stdout(sys.stderr), contextlib.closing(connect(address, settings)) as link:
        yield link


def submit_job(address: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> Job:
    """Submit a Ray job at a dashboard address."""
    from .. import ray_port  # noqa: PLC0415

    return ray_port.submit_job(address, entrypoint, runtime_env, metadata)
