"""`report`: what a run was asked for, what it achieved, and what broke, as text, JSON or a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from actors.clock import SystemClock
from actors.errors import InputError

from . import options
from .output import print_json, put, say


class Form(StrEnum):
    """How a report is told."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


def report(
    run: Annotated[str, typer.Argument(help="A run id, a run directory, or `latest`.")] = "latest",
    *,
    form: Annotated[Form, typer.Option("--format", help="text, json, or html (writes report.html and prints its path).")] = Form.TEXT,
    out: options.Out = None,
    config: options.Config = None,
    address: options.NoAddress = None,  # noqa: ARG001  # every command takes an address
    as_json: options.Json = False,
) -> int:
    """Tell what a run was asked for, what it achieved, and what broke. Reads the run directory only.

    Works while the run goes on and after any crash. The status of a run whose harness died is `error`.

    Examples:
      stress-cluster report latest
      stress-cluster report latest --format html
      stress-cluster report runs/20260101-120000-burst-1a2b --json
    """
    from ..analysis import report as reports  # noqa: PLC0415  # reads Arrow files
    from ..analysis.text import render_text  # noqa: PLC0415

    settings = options.resolve(config, out=out)
    folder = find_run(run, [Path(settings.out), Path(settings.state_dir) / "runs"])
    found = reports.read(folder, SystemClock().wall_ns())
    page = folder / "report.html"
    if form is Form.HTML or (not page.exists() and found.status != "running"):
        page = _write_page(folder, found, must=form is Form.HTML)
    if as_json or form is Form.JSON:
        print_json({"run_dir": str(folder), **found.to_json()})
    elif form is Form.HTML:
        put(f"{page}\n")
    else:
        put(render_text(found))
        say(f"page: {page}" if page.exists() else "")
    return 0


def _write_page(folder: Path, found: object, *, must: bool) -> Path:
    from ..analysis import report as reports  # noqa: PLC0415

    assert isinstance(found, reports.Report)
    try:
        return reports.write(folder, found)
    except OSError as error:
        if must:
            raise InputError(
                "os", f"cannot write {folder / 'report.html'}: {error}", "copy the run directory to a place you may write"
            ) from error
        return folder / "report.html"  # a reader of somebody else's run still gets the text


def find_run(run: str, folders: list[Path]) -> Path:
    """Return the run directory of a path, a run id or `latest`, searching these folders in order.

    Raises `InputError` (`not_found`) that says where it looked.
    """
    direct = Path(run)
    if run != "latest" and (direct / "manifest.json").is_file():
        return direct
    places = ", ".join(map(str, folders))
    if run == "latest":
        found = [path.parent for folder in folders if folder.is_dir() for path in folder.glob("*/manifest.json")]
        if not found:
            raise InputError("not_found", f"no run directory in {places}", "run one with `stress-cluster run burst`, or give --out")
        return max(found, key=lambda path: path.name)
    for folder in folders:
        if "/" not in run and (folder / run / "manifest.json").is_file():
            return folder / run
    raise InputError("not_found", f"no run directory {run!r} here or in {places}", "give a run id, a run directory or `latest`")
