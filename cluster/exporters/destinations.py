"""What the destinations of a scenario are made of, as a table; where their files lie; and what can be known to be wrong before a run.

Paths are on the node of the run's aggregator, which calls this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actors.breaker import BreakerPolicy
from actors.errors import RefusedError, StressError
from scenarios.exporters import Destination, Exporters, Format, Rule, When

from .base import Exporter
from .csv_file import CsvFile, CsvForm, NewLabel
from .files import rotated
from .forms import FORMS, Form
from .json_file import JsonArray, JsonForm, JsonLines, WholeFile
from .limits import Limits, Overflow
from .text import NonFinite, TextForm, TimeForm
from .wal import Sync

FOLDER: Final = "exports"  # of a run directory, for relative paths


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of destination. `is_whole`: it appears when it is closed, so another life of the aggregator begins it anew."""

    is_whole: bool
    make: Callable[[Destination, Path], Exporter]


def _file(form: Form) -> Kind:
    return Kind(not form.appends, _WITH_FORMAT.get(form.name, lambda _, path: form.make(path, ())))


def _json(one: Destination, path: Path) -> Exporter:
    return JsonArray(path, _json_form(one.format))


def _lines(one: Destination, path: Path) -> Exporter:
    return JsonLines(path, _json_form(one.format), sync=Sync(one.sync), rotate_bytes=one.rotate_bytes)


def _csv(one: Destination, path: Path) -> Exporter:
    like = one.format
    form = CsvForm(
        _text_form(like),
        new_label=NewLabel(like.new_label),
        as_json=like.labels == "json",
        separator=like.separator,
        quote_all=like.quote_all,
        line_end={"lf": "\n", "crlf": "\r\n"}[like.line_end],
    )
    return CsvFile(path, form, sync=Sync(one.sync), rotate_bytes=one.rotate_bytes)


def _json_form(like: Format) -> JsonForm:
    return JsonForm(_text_form(like), like.indent, like.sort_keys, like.nulls)


def _text_form(like: Format) -> TextForm:
    return TextForm(TimeForm(like.time), like.decimals, NonFinite(like.non_finite), like.digests)


_WITH_FORMAT: Final = {"json": _json, "jsonl": _lines, "csv": _csv}
KINDS: Final[dict[str, Kind]] = {name: _file(form) for name, form in FORMS.items()}


def path_of(destination: Destination, directory: Path) -> Path:
    """Return the file of a destination of the run whose directory this is."""
    return directory / FOLDER / destination.path.replace("{run}", directory.name)


def make(destination: Destination, path: Path) -> Exporter:
    """Return what writes a destination's file; nothing is opened yet."""
    return KINDS[destination.type].make(destination, path)


def spill_of(destination: Destination, directory: Path) -> Path | None:
    """Return the folder where a destination's rows wait on disk: `STATE/exports/RUN/NAME`, or `RUN/NAME` in the folder that it names."""
    if not destination.spill:
        return None
    parent = state_folder(directory) if destination.spill is True else Path(destination.spill) / directory.name
    return parent / destination.name


def state_folder(directory: Path) -> Path:
    """Return where the aggregator of a run keeps what it has to know of its exporters after a death: `STATE/exports/RUN`."""
    return directory.parent.parent / "exports" / directory.name


def limits_of(destination: Destination) -> Limits:
    """Return a destination's bounds."""
    return Limits(
        Overflow(destination.overflow),
        destination.queue_rows,
        destination.queue_bytes,
        destination.batch_rows,
        destination.batch_bytes,
        destination.batch_age_s,
        destination.flush_s,
        destination.sample_one_in,
    )


def policy_of(destination: Destination) -> BreakerPolicy:
    """Return when a destination is left alone."""
    breaker = destination.breaker
    return BreakerPolicy(breaker.threshold, breaker.reset_s, breaker.probes, breaker.backoff_s, breaker.backoff_s_max)


def rules_of(exporters: Exporters) -> dict[str, Any]:
    """Return routes and rules as the document that `rules.parse` reads."""
    return {
        "routes": [{"when": _when(route.when), "to": list(route.to)} for route in exporters.routes],
        "default": list(exporters.default) or None,
        "chains": {one.name: [_rule(rule) for rule in one.rules] for one in exporters.destinations if one.rules},
    }


def _when(when: When) -> dict[str, Any]:
    given = {name: getattr(when, name) for name in ("metric", "kind", "node", "worker", "phase") if getattr(when, name) is not None}
    return given | ({"labels": dict(when.labels)} if when.labels else {})


def _rule(rule: Rule) -> dict[str, Any]:
    made: dict[str, Any] = {"when": _when(rule.when)}
    if rule.every_s is not None:
        return made | {"every_s": rule.every_s, "late_s": rule.late_s} | ({"by": list(rule.by)} if rule.by else {})
    if rule.drop_labels:
        return made | {"drop_labels": list(rule.drop_labels)}
    if rule.rename:
        return made | {"rename": rule.rename}
    return made | ({"keep": rule.keep} if rule.keep is not None else {"one_in": rule.one_in})


def check(exporters: Exporters, directory: Path) -> None:
    """Refuse, before any load, what cannot be written: raises `RefusedError` with the destination, the place and what to do."""
    for one in exporters.destinations:
        path = path_of(one, directory)
        if path.is_relative_to(directory):
            continue  # the folder is ours, and new
        _check_folder(one, "path", path.parent)
        if found := [*([path] if path.exists() else []), *rotated(path)]:
            hint = "move it away, or put {run} into the path"
            raise _refused(one, "path", f"{found[0]} exists already", hint if "{run}" not in one.path else "move it away")
    for one in exporters.destinations:
        if isinstance(one.spill, str):
            _check_folder(one, "spill", Path(one.spill))


def _check_folder(destination: Destination, key: str, folder: Path) -> None:
    if not folder.is_dir():
        raise _refused(destination, key, f"{folder} is not a folder", "make it on the node of the run's aggregator, or name another")
    probe = folder / f".stress-cluster-{os.getpid()}.tmp"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        what = f"{folder} cannot be written: {errno.errorcode.get(error.errno or 0, '')} {error.strerror}"
        raise _refused(destination, key, what, "name a folder that the user of Ray may write") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def _refused(destination: Destination, key: str, what: str, hint: str) -> RefusedError:
    return RefusedError("os", f"exporters.destinations: {key} of {destination.name!r}: {what}", hint)


def cut_bytes(exporter: Exporter) -> int:
    """Return how much was cut off a growing file when it was opened: the beginning of rows that a death kept from being written."""
    return exporter.file.cut_bytes if isinstance(exporter, (JsonLines, CsvFile)) else 0


def give_up(exporter: Exporter) -> None:
    """Let go of a destination that goes on in another life: what appends is closed, what is not whole is removed."""
    with suppress(OSError, StressError):  # it must not keep the others; what it has not flushed comes again
        if isinstance(exporter, WholeFile):
            exporter.abandon()
        else:
            exporter.close()
