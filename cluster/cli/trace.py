"""`trace`: the path of one row of a run, from the window in which it was recorded to each exporter."""

from __future__ import annotations

from typing import Annotated

import typer

from actors.errors import InputError
from scenarios.units import parse_duration

from ..words import moment
from . import options
from .export import readable
from .output import emit, say
from .report import whole_run

_Text = str | None


def trace(
    run: Annotated[str, typer.Argument(help="A run id, a run directory, or `latest`.")],
    point: Annotated[str, typer.Argument(metavar="METRIC|TRACE", help="A metric of `list metrics`, a glob, or a trace id.")],
    *,
    node: Annotated[_Text, typer.Option("--node", metavar="NODE", help="Only this node, or a glob.")] = None,
    worker: Annotated[_Text, typer.Option("--worker", metavar="WORKER", help="Only this operation or part, or a glob.")] = None,
    phase: Annotated[_Text, typer.Option("--phase", metavar="PHASE", help="Only this phase, or a glob.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Only with this label; repeatable.")] = None,
    at: Annotated[_Text, typer.Option("--at", help="The row whose window holds this: 10s after the run's start, or a UTC time.")] = None,
    config: options.Config = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> int:
    """Follow one row: when it was recorded, in which record it left its node, when the aggregator had it, what each exporter did.

    The newest row that fits is followed; --at chooses another. Each record of a run with exporters is traced, so any row can be
    chosen, while the run goes on and afterwards. The trace id, RUN:NODE:INCARNATION:RECORD:SERIES, is made of what a record carries
    on its way in any case; given instead of METRIC it names the same row again.

    An outcome is of the row itself, save `shared`: then only some rows of its record were dropped, and which is not kept.
    Times before `aggregated` are by the node's clock.

    Examples:
      stress-cluster trace latest probe.response
      stress-cluster trace latest host.cpu.busy --node n1 --at 12s
      stress-cluster trace latest dose.achieved --json
    """
    from ..files import read_json  # noqa: PLC0415
    from ..run_exports import exporters_of  # noqa: PLC0415  # reads Arrow files
    from ..traced import Point, lines_of  # noqa: PLC0415
    from ..traced import trace as follow  # noqa: PLC0415

    settings = options.resolve(config)
    labels = tuple(_label(one) for one in label or ())
    with readable(run, settings):
        folder, _ = whole_run(run, settings, address)
        manifest = read_json(folder / "manifest.json") or {}
        name = str(manifest.get("run") or folder.resolve().name)
        if ":" in point:
            wanted = Point.of_id(point, name)
        else:
            wanted = Point(point, node or "*", worker or "*", phase or "*", labels, _at_s(at, manifest.get("start")))
        found = follow(folder, name, exporters_of(manifest), wanted)
    if manifest.get("status") == "running":
        say(f"{name} still runs: the path is told as far as it goes by now")
    emit(found, as_json, lines_of(found))
    return 0


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError("invalid_value", f"--label {text!r}: expected NAME=VALUE", "such as --label probe=front")
    return name, value


def _at_s(text: str | None, start: object) -> float | None:
    """Return the moment of `--at` in seconds of UTC."""
    if text is None:
        return None
    at_s = moment(text)
    if at_s is not None:
        return at_s
    begin_s = moment(start)
    try:
        offset_s = parse_duration(text)
    except InputError as error:
        raise InputError("invalid_value", f"--at is {text!r}: {error.message}", "write 10s, or 2026-01-01T12:00:10Z") from error
    if begin_s is None:
        raise InputError("invalid_value", f"--at is {text!r}, and when this run began is not known", "give a UTC time")
    return begin_s + offset_s
