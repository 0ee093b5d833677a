"""`export`: a run's metrics as one file for another program."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.clock import SystemClock
from actors.errors import HarnessError, InputError

from ..settings import Settings
from . import options
from .output import emit, say
from .report import find_run, whole_run

_BATCH_ROWS = 8192


class To(StrEnum):
    """What kind of file."""

    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


def export(
    run: Annotated[str, typer.Argument(help="A run id, a run directory, or `latest`.")] = "latest",
    *,
    to: Annotated[To, typer.Option("--to", help="Kind of file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file. Default: the run's id with the kind's suffix, in this folder.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric, or a glob; repeatable.")] = None,
    node: Annotated[list[str] | None, typer.Option("--node", metavar="NODE", help="Only this node, or a glob; repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    config: options.Config = None,
    address: options.Address = None,
    as_json: options.Json = False,
) -> int:
    """Write a run's metrics to one file: a row for each series and window, with the columns of the run directory.

    Before those columns each row names its run and scenario. The file appears whole or not at all; one that is there is replaced
    only with --force. JSON and CSV leave out the digests (binary, mergeable) and write NaN and infinities as NaN, Infinity and
    -Infinity; parquet and arrow keep everything. A run that still runs is exported as it stands; that, and what of its log
    cannot be read, is said on standard error.

    Examples:
      stress-cluster export latest --to csv
      stress-cluster export latest --to jsonl --metric "probe.*" --node n1
      stress-cluster export runs/20260101-120000-burst-1a2b --to parquet --out burst.parquet --force
    """
    from actors.metrics.registry import CATALOGUE  # noqa: PLC0415

    from ..exporters.base import UnfinishedError  # noqa: PLC0415
    from ..exporters.context import Context  # noqa: PLC0415
    from ..exporters.files import check_destination  # noqa: PLC0415
    from ..exporters.forms import FORMS, write_file  # noqa: PLC0415

    form = FORMS[to]
    settings = options.resolve(config)
    folder, data, status = _read(run, settings, address)
    context = Context.of(data.manifest or {}, folder.resolve().name)
    path = out or Path(f"{folder.resolve().name}{form.suffix}")
    check_destination(path, may_replace=force)
    table = data.metrics
    nodes = table.column("node").unique().to_pylist()
    table = _chosen(table, "metric", metric or [], CATALOGUE)
    table = _chosen(table, "node", node or [], nodes)
    labels = sorted({name for batch in table.column("labels").chunks for name in batch.keys.unique().to_pylist()})
    try:
        size = write_file(form, path, table.to_batches(max_chunksize=_BATCH_ROWS), context, labels)
    except (OSError, UnfinishedError) as error:
        stands = "; the old file stands" if path.exists() else "; no file was left"
        raise HarnessError("os", f"cannot write {path}: {error}{stands}", "make room, or give another --out") from error
    if not table.num_rows:
        say(f"no row of {folder.name} was chosen: the file has none")
    told = {"run": folder.name, "to": form.name, "status": status, "path": str(path), "rows": table.num_rows, "bytes": size}
    emit(told, as_json, [f"{path}: {table.num_rows} rows, {size} bytes"])
    return 0


def _read(run: str, settings: Settings, address: str | None) -> tuple[Path, Any, str]:
    """Return where a run is, what it holds, and its status; say what the file will lack. Raises `HarnessError` for damaged files."""
    from ..analysis.load import load  # noqa: PLC0415
    from ..metrics.store import unread_bytes  # noqa: PLC0415
    from ..stored import judge_status  # noqa: PLC0415

    with readable(run, settings):
        folder, _ = whole_run(run, settings, address)
        unread = unread_bytes(folder)  # before reading: the log of a run that ended is turned into Parquet then
        data = load(folder)
    status, _, died = judge_status(data.manifest or {}, data.summary or {}, SystemClock().wall_ns())
    if status == "running":
        say(f"{folder.name} still runs: the file holds what has arrived by now")
    if died:
        say(died)
    for path, size in unread.items():
        say(f"the last {size} bytes of {path} are no whole record: they are not in the file")
    return folder, data, status


@contextlib.contextmanager
def readable(run: str, settings: Settings) -> Iterator[None]:
    """Turn errors of reading a run's files into a `HarnessError` that names those that are damaged."""
    import pyarrow as pa  # noqa: PLC0415  # reads Arrow files

    try:
        yield
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        raise _damaged(find_run(run, [Path(settings.out), Path(settings.state_dir) / "runs"]), error) from error


def _damaged(folder: Path, error: Exception) -> HarnessError:
    """Return an error that names each file of a run that cannot be read."""
    import pyarrow as pa  # noqa: PLC0415  # reads Arrow files
    import pyarrow.parquet as pq  # noqa: PLC0415

    from ..files import read_json  # noqa: PLC0415

    found = []
    for path in [*sorted(folder.glob("*.json")), *sorted(folder.glob("metrics/*.parquet")), *sorted(folder.glob("*.parquet"))]:
        try:
            if path.suffix == ".json":
                read_json(path)
            else:
                pq.read_table(path)
        except (pa.ArrowInvalid, ValueError, OSError) as reason:
            found.append(f"{path}: {reason}")
    hint = "copy the file again from where the run was made, or move it away to export the rest"
    return HarnessError("os", f"{folder.name} cannot be read: {'; '.join(found) or error}", hint)


def _chosen(table: Any, column: str, globs: list[str], known: Iterable[str]) -> Any:
    """Return the rows whose value fits a glob. Raises `InputError` for a glob that fits nothing here and no known name."""
    import pyarrow as pa  # noqa: PLC0415  # reads Arrow files
    import pyarrow.compute as pc  # noqa: PLC0415

    if not globs:
        return table
    present = sorted(table.column(column).unique().to_pylist())
    names = sorted({*present, *known})
    for glob in globs:
        if not fnmatch.filter(names, glob):
            close = difflib.get_close_matches(glob, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the run has: {', '.join(present) or 'none'}"
            raise InputError("unknown_name", f"no {column} {glob!r} in this run", hint)
    wanted = [name for name in present if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    return table.filter(pc.is_in(table.column(column), value_set=pa.array(wanted, pa.string())))
