"""`report`: what a run was asked for, what it achieved, and what broke, as text, JSON or a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from actors.clock import SystemClock
from actors.errors import InputError, StressError

from ..settings import Settings
from . import options, ports
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
    address: options.Address = None,
    as_json: options.Json = False,
) -> int:
    """Tell what a run was asked for, what it achieved, and what broke. Starts and ends nothing.

    Works while the run goes on and after any crash: what the run directory lacks is fetched from the state folder, or with an
    address from the cluster. The status of a run whose harness died is `error`.

    Examples:
      stress-cluster report latest
      stress-cluster report latest --format html
      stress-cluster report runs/20260101-120000-burst-1a2b --json
    """
    from ..analysis import report as reports  # noqa: PLC0415  # reads Arrow files
    from ..analysis.text import render_text  # noqa: PLC0415

    settings = options.resolve(config, out=out)
    folder, fetched = whole_run(run, settings, address)
    found = reports.read(folder, SystemClock().wall_ns())
    page = folder / "report.html"
    if form is Form.HTML or ((fetched or not page.exists()) and found.status != "running"):
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


def whole_run(run: str, settings: Settings, address: str | None) -> tuple[Path, bool]:
    """Return where a run can be read best, and whether something was fetched for that.

    That is the run directory in OUT, with what STATE or the cluster has and it lacks; STATE itself while the run goes on, and for
    a run that is in no OUT. What cannot be fetched is said, and what is here is told.
    """
    from ..fetch import is_alive, is_whole  # noqa: PLC0415  # reads Arrow files
    from ..files import read_json  # noqa: PLC0415

    stored = Path(settings.state_dir) / "runs"
    try:
        folder = find_run(run, [Path(settings.out), stored])
    except InputError:
        if not address or run == "latest" or "/" in run:
            raise
        folder = Path(settings.out) / run
    else:
        if is_whole(folder) or folder.parent == stored:
            return folder, False
        here, there = (read_json(path / "manifest.json") or {} for path in (folder, stored / folder.name))
        if here.get("status") == "running" and is_alive(there, SystemClock().wall_ns()):
            return stored / folder.name, False
    fetched = _fetch(folder, settings, address)
    if not folder.is_dir():
        raise InputError("not_found", f"no run directory {run!r} here, in {stored}, or on the cluster", "see `stress-cluster status`")
    return folder, fetched


def _fetch(folder: Path, settings: Settings, address: str | None) -> bool:
    from ..fetch import LocalDirectory, fetch  # noqa: PLC0415  # reads Arrow files

    stored = Path(settings.state_dir) / "runs" / folder.name
    try:
        if (stored / "manifest.json").is_file():
            fetch(LocalDirectory(stored), folder, SystemClock().wall_ns())
            return True
        if not address:
            return False
        with ports.linked(address, settings) as link:
            return link.fetch(folder.name, folder)
    except (OSError, StressError) as error:
        say(f"what {folder} lacks could not be fetched: {error}")
        return False


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
