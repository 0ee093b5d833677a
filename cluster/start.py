"""`cluster.run`: a run from a notebook, a script or a Ray job. The Ray driver is a child process, as for the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict, Unpack

from actors.clock import SystemClock
from actors.errors import InputError
from scenarios import text
from scenarios.model import Scenario

from . import settings as all_settings
from .cli.run import out_folder, run_id
from .driver import DriverProcess, Outcome, RunRequest, start


def run_scenario(
    scenario: Scenario,
    *,
    address: str | None = None,
    nodes: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    timeout_s: float | None = None,
    allow_head: bool = False,
    allow_starve: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run a scenario to its end and return the outcome (`status`, `exit_code`, `message`, `run_dir`, `summary`).

    `address`: default RAY_ADDRESS (set inside a Ray job), else the cluster that this process is connected to, else an embedded Ray
    with `nodes` target raylets. `settings` are dotted paths to values, as flags are. Signals stop the run gracefully meanwhile.
    Raises `InputError` for wrong options.
    """
    request = request_of(
        scenario,
        address=address,
        nodes=nodes,
        seed=seed,
        out=out,
        timeout_s=timeout_s,
        allow_head=allow_head,
        allow_starve=allow_starve,
        settings=settings,
    )
    process = start(request)
    with _stopping_on_signals(process):
        for event in process.events():
            if not quiet:
                say(event)
        outcome = process.wait()
    if not quiet:
        print(f"{outcome.status}: {outcome.message}", file=sys.stderr)
        print(f"run directory: {outcome.run_dir}", file=sys.stderr)
    return outcome


class Where(TypedDict, total=False):
    """Where and how a scenario runs: the options of `run_scenario` but `quiet`, with the same meanings."""

    address: str | None
    nodes: int | None
    seed: int | None
    out: str | Path | None
    timeout_s: float | None
    allow_head: bool
    allow_starve: bool
    settings: Mapping[str, Any] | None


def request_of(scenario: Scenario, **where: Unpack[Where]) -> RunRequest:
    """Return what the driver of a run is started with. Raises `InputError` for wrong options."""
    address = where.get("address") or os.environ.get("RAY_ADDRESS") or _connected_address()
    nodes, out, seed = where.get("nodes"), where.get("out"), where.get("seed")
    if nodes is not None and address:
        raise InputError("invalid_value", f"nodes is for the embedded Ray, but there is an address: {address}", "leave out one of the two")
    flags = {**(where.get("settings") or {}), **({"out": str(out)} if out is not None else {})}
    resolved = all_settings.load(flags, scenario=all_settings.said_by(scenario), environ=os.environ)
    return RunRequest(
        scenario_text=text.dump(all_settings.recorded(scenario, resolved)),
        run=run_id(scenario.name, SystemClock()),
        out=out_folder(resolved, os.environ),
        settings=resolved,
        address=address,
        nodes=nodes,
        seed=scenario.seed if seed is None else seed,
        timeout_s=where.get("timeout_s"),
        allow_head=where.get("allow_head", False),
        allow_starve=where.get("allow_starve", False),
        assume_yes=True,
    )


def say(event: Mapping[str, Any]) -> None:
    """Print what a driver tells of its run, but for its progress."""
    if event["type"] in {"event", "phase"}:
        print(event.get("message") or event.get("phase"), file=sys.stderr)


def _connected_address() -> str | None:
    """Return the cluster that this process is connected to, if Ray is in use here."""
    if "ray" not in sys.modules:
        return None
    from . import ray_port  # noqa: PLC0415

    return ray_port.gcs_address() if ray_port.is_connected() else None


@contextmanager
def _stopping_on_signals(process: DriverProcess) -> Iterator[None]:
    """Turn signals into a graceful stop while a run lives, where this thread may set handlers."""

    def stop(number: int, _frame: FrameType | None) -> None:
        process.stop(f"signal {signal.Signals(number).name}")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread: the caller's handlers stay
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
