"""`exporters`: how a run's exporters stand, and changes of them while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.clock import SystemClock
from actors.errors import InputError

from ..files import read_json
from ..settings import Settings
from ..stored import judge_status
from ..words import amount
from . import options, ports
from .output import emit, table
from .report import find_run

_Names = list[str] | None


def exporters(
    run: Annotated[str, typer.Argument(help="A run id, a run directory, or `latest`.")] = "latest",
    *,
    pause: Annotated[_Names, typer.Option("--pause", metavar="NAME", help="Do not call this exporter for now; repeatable.")] = None,
    resume: Annotated[_Names, typer.Option("--resume", metavar="NAME", help="Call it again; repeatable.")] = None,
    sets: Annotated[
        _Names,
        typer.Option("--set", metavar="NAME.KEY=VALUE", help="Change a key of an exporter, or routes=, default=, drain=; repeatable."),
    ] = None,
    address: options.Address = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Show how a run's exporters stand: health, queue, what was delivered and dropped. Change them while the run goes on.

    Rows for a paused exporter wait, within its queue and by its overflow; the run's end sends them. Keys and values of --set are
    those of a scenario's `exporters`: queues, batches, overflow, breaker, rules, routes. Type, path and spill stay. Changes are all
    or nothing, in force at once, and lose and repeat no row; each is an event of the run (exporters_changed). 2 for a wrong one.

    Examples:
      stress-cluster exporters latest
      stress-cluster exporters latest --pause csv
      stress-cluster exporters latest --resume csv --set csv.queue_rows=500000 --set csv.overflow=drop_oldest
      stress-cluster exporters latest --set 'default=[csv]' --set 'routes=[{when: {metric: "probe.*"}, to: [jsonl]}]'
    """
    settings = options.resolve(config)
    found = None if pause or resume or sets else _ended(run, settings)
    if found is None:
        with ports.linked(address, settings) as link:
            found = link.exporters(run, pause or [], resume or [], sets or [])
    emit(found, as_json, exporter_lines(found))
    return 0


def _ended(run: str, settings: Settings) -> dict[str, Any] | None:
    """Return what the documents of a run that has ended say; None for one that goes on, or that is not here."""
    try:
        folder = find_run(run, [Path(settings.out), Path(settings.state_dir) / "runs"])
    except InputError:
        return None
    manifest, summary = read_json(folder / "manifest.json") or {}, read_json(folder / "summary.json") or {}
    status, _, _ = judge_status(manifest, summary, SystemClock().wall_ns())
    return None if status == "running" else {"run": folder.resolve().name, "status": status, "exporters": summary.get("exporters") or []}


def exporter_lines(found: Mapping[str, Any]) -> list[str]:
    """Return exporters as a table, with the last error of each that has one."""
    told: Sequence[Mapping[str, Any]] = found["exporters"]
    if not told:
        return [f"run {found['run']} has no exporters"]
    head = ("exporter", "state", "delivered", "rows/s", "queued", "on disk", "dropped", "calls", "failed", "p50", "p99")
    rows = [_row(one) for one in told]
    errors = [f"{one['name']}: {one['detail']}" for one in told if one.get("detail")]
    return [*table(head, rows), *(["", *errors] if errors else [])]


def _row(one: Mapping[str, Any]) -> list[Any]:
    latency, rate = one.get("latency_s") or {}, one.get("rows_per_s")
    state = "paused" if one.get("paused") else "ok" if one.get("ok") else f"failing, breaker {one.get('breaker') or 'unknown'}"
    return [
        one.get("name"),
        state,
        one.get("delivered_rows", 0),
        "-" if rate is None else f"{rate:.0f}",
        one.get("queued_rows", 0),
        one.get("spilled_rows", 0),
        sum((one.get("dropped_rows") or {}).values()),
        one.get("attempts", 0),
        sum((one.get("failures") or {}).values()),
        *(amount(latency[name] * 1e3, "ms") if name in latency else "-" for name in ("p50", "p99")),
    ]
