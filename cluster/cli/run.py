"""`run`: checks the document and the settings, starts the driver, follows it, and ends with what was asked and achieved."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from actors.clock import Clock, SystemClock
from actors.errors import InputError, RefusedError
from actors.origin import code_id
from scenarios.combinators import placed

from ..safety.profiles import limits_for
from ..settings import Settings
from ..words import amount, closing_lines
from . import options, ports, source
from .follow import follow
from .output import emit, say
from .plan import show_plan
from .render import make_renderer

NOT_STARTED: Final = frozenset({"invalid", "refused"})


def run(
    scenario: options.Scenario,
    *,
    address: options.Address = None,
    nodes: options.Nodes = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    export: options.Exports = None,
    profile: options.Profile = None,
    out: options.Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only: the same as the `plan` command.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once load runs, with 0 and the status `running`; the run goes on without this command.")
    ] = False,
    prometheus_port: Annotated[
        int | None, typer.Option("--prometheus-port", min=0, max=65535, help="Serve the run's metrics on this port of the loopback.")
    ] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", help="End the run after this long, such as 90s or 5m: exit code 7.")] = None,
    allow_head: options.AllowHead = False,
    allow_starve: options.AllowStarve = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not wait 3 s before loading a cluster that was running already.")] = False,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Run a scenario: put measured load on the nodes, watch it, undo it, and judge.

    Without --address it starts a Ray of its own on this machine and removes it afterwards. Ctrl-C stops the run and
    undoes everything; leases end the load even when this command is killed.

    Examples:
      stress-cluster run burst                      one node: this machine
      stress-cluster run burst --nodes 3            three raylets on this machine
      stress-cluster run burst --address auto       the Ray cluster that runs here
      stress-cluster run mine.yaml --set seed=7 --profile conservative
      stress-cluster run replay:latest              the same plan once more

    Exit codes: 0 passed, 1 failed, 2 invalid, 3 error, 4 safety, 5 inconclusive, 6 refused, 7 timeout, 130 cancelled.
    """
    if not sys.platform.startswith("linux"):
        raise RefusedError("unsupported", f"load needs Linux, this is {sys.platform}", "reports and `cluster.analysis` work here")
    if nodes is not None and address:
        raise InputError("invalid_value", "--nodes is for the embedded Ray, but an address is given", "leave out one of the two")
    if detach and not address:
        raise InputError("invalid_value", "--detach needs a cluster that outlives this command", "give --address, or leave out --detach")
    timeout_s = source.duration(timeout, "--timeout")
    loaded = source.load(scenario, sets or [], seed, config, out, exports=export or ())
    settings = source.resolve_settings(loaded, config, profile=profile, out=out, prometheus__port=prometheus_port)
    loaded = source.recorded(loaded, settings)
    if dry_run:
        limits = limits_for(settings.profile, loaded.scenario.limits, allow_starve=allow_starve)
        return show_plan(loaded, settings, limits, address=address, nodes=nodes, allow_head=allow_head, as_json=as_json)
    request = {
        "scenario_text": loaded.text,
        "scenario_name": scenario,
        "run": run_id(loaded.name, SystemClock()),
        "out": out_folder(settings, os.environ),
        "settings": settings,
        "address": address,
        "nodes": nodes,
        "seed": loaded.seed,
        "detach": detach,
        "prometheus_port": settings.prometheus.port,
        "timeout_s": timeout_s,
        "allow_head": allow_head,
        "allow_starve": allow_starve,
        "assume_yes": yes,
        "replay_plan": loaded.replay_plan,
        "replay_of": loaded.replay_of,
    }
    return _drive(request, loaded, as_json=as_json)


def run_id(name: str, clock: Clock) -> str:
    """Return a new run id: `YYYYmmdd-HHMMSS-<name>-<4hex>`, in UTC."""
    at = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    return f"{at:%Y%m%d-%H%M%S}-{name}-{os.urandom(2).hex()}"


def out_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return where run directories go; in a Ray job, whose working directory is thrown away, that is STATE unless it was set."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in environ and settings.origins["out"] == "default":
        return Path(settings.state_dir) / "runs"
    return Path(settings.out).absolute()


def _drive(request: dict[str, Any], loaded: source.Loaded, *, as_json: bool) -> int:
    code_id()  # refuses a shadowed or mixed installation before anything starts
    say(f"run        {request['run']}\nasks       {asked_words(loaded)}")
    process = ports.start_run(**request)
    outcome, told = follow(process, make_renderer(), request["settings"].lease_s)
    summary = {**outcome.summary, "status": outcome.status, "exit_code": outcome.exit_code, "message": outcome.message}
    if outcome.status in NOT_STARTED or (outcome.run_dir is None and outcome.exit_code):
        code = str(told.get("code") or "internal")
        summary["error"] = {"code": code, "message": str(told.get("error") or outcome.message), "hint": str(told.get("hint") or "")}
    document = {"run": request["run"], "run_dir": None if outcome.run_dir is None else str(outcome.run_dir), **summary}
    emit(document, as_json, ["", *last_words(summary, outcome.run_dir)])
    return outcome.exit_code


def asked_words(loaded: source.Loaded) -> str:
    """Return what a scenario asks of each target at its peak, in words."""
    peaks: dict[tuple[str, str], float] = {}
    for part in placed(loaded.scenario.plan):
        simulator, for_s = part.hold.simulator, part.hold.for_s
        key = (type(simulator).__name__, simulator.unit)
        peaks[key] = max(peaks.get(key, 0.0), float(simulator.shape.peak(for_s)))
    asked = ", ".join(f"{kind} up to {amount(peak, unit)}" for (kind, unit), peak in peaks.items())
    return f"{asked} on each target, for {loaded.scenario.plan.duration_s:g} s"


def last_words(summary: Mapping[str, Any], run_dir: Path | None) -> list[str]:
    """Return the last lines of the command: of a run, or of one that was not started."""
    if summary["status"] in NOT_STARTED:
        error = summary["error"]
        return [line for line in (f"{summary['status']}: {error['message']}", f"  {error['hint']}" if error["hint"] else "") if line]
    return closing_lines(summary, from_here(run_dir))


def from_here(path: Path | None) -> Path | None:
    """Return a path as a user would type it: relative where it lies below the working directory."""
    if path is not None and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd())
    return path
