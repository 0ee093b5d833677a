"""Changes of a run's exporters while it goes on: worked out whole before anything is done, and kept for the aggregator's next life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from actors.errors import InputError
from scenarios.exporters import Exporters
from scenarios.model import Scenario

from .files import read_json, write_json_atomic

FIXED: Final = ("type", "path", "name", "spill", "spill_bytes_max", "write_ahead")  # of a destination: hang on what is open
_FILE: Final = "changed.json"
_WHOLE: Final = ("routes", "default", "drain")


def applied(scenario: Scenario, now: Exporters, sets: Sequence[str]) -> Exporters:
    """Return the exporters with `NAME.KEY=VALUE`, `routes=...`, `default=...` or `drain=...` applied, keys and values as in a scenario.

    Raises `InputError` for a word or value that is wrong, or that only another run can have.
    """
    from scenarios import text  # noqa: PLC0415  # reads YAML too, which a run without changes has no use for

    changed = text.apply_settings(replace(scenario, exporters=now), [_placed(one, now) for one in sets]).exporters
    for before, after in zip(now.destinations, changed.destinations, strict=True):
        for name in FIXED:
            if getattr(before, name) != getattr(after, name):
                raise InputError("invalid_setting", f"{name} of {before.name!r} cannot change while the run goes on", "start another run")
    return changed


def _placed(setting: str, now: Exporters) -> str:
    head, dot, rest = setting.partition(".")
    names = [one.name for one in now.destinations]
    if dot and head in names:
        return f"exporters.destinations.{names.index(head)}.{rest}"
    if setting.partition("=")[0].strip() in _WHOLE:
        return f"exporters.{setting}"
    known = f"NAME.KEY=VALUE with one of {', '.join(names)}, or {', '.join(f'{word}=...' for word in _WHOLE)}"
    raise InputError("invalid_setting", f"--set {setting!r} names no exporter of this run", f"expected {known}")


def check_names(names: Sequence[str], now: Exporters) -> None:
    """Raise `InputError` for a name that no exporter has."""
    known = [one.name for one in now.destinations]
    for name in names:
        if name not in known:
            raise InputError("unknown_name", f"this run has no exporter {name!r}", f"there are: {', '.join(known)}")


def document(now: Exporters) -> dict[str, Any]:
    """Return exporters as a scenario document has them."""
    from scenarios.exporter_form import EXPORTERS  # noqa: PLC0415

    written: dict[str, Any] = EXPORTERS.write(now)
    return written


def read(data: Any) -> Exporters:
    """Return the exporters of such a document."""
    from scenarios.document import Place, from_data  # noqa: PLC0415
    from scenarios.exporter_form import EXPORTERS  # noqa: PLC0415

    found: Exporters = EXPORTERS.read(from_data(data, Place("the run's exporters")), "exporters")
    return found


def load(folder: Path, said: Exporters) -> tuple[Exporters, set[str]]:
    """Return what an earlier life was changed to, and who is paused; else what the scenario says."""
    kept = read_json(folder / _FILE)
    return (said, set()) if kept is None else (read(kept["exporters"]), set(kept["paused"]))


def save(folder: Path, now: Exporters, paused: set[str]) -> None:
    """Keep it, whole and on disk. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json_atomic(folder / _FILE, {"schema": 1, "exporters": document(now), "paused": sorted(paused)})
