"""`list`, `describe`, `validate`, `schema`: generated from the records in the code, never from a list kept beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from actors.errors import CODES, InputError

from ..settings import PROFILES
from . import options, source
from .output import emit, plain, print_json, table


class Subject(StrEnum):
    """What can be listed."""

    SIMULATORS = "simulators"
    FAULTS = "faults"
    SCENARIOS = "scenarios"
    METRICS = "metrics"
    PROBES = "probes"
    EXPORTERS = "exporters"
    LIMITS = "limits"
    ERRORS = "errors"


Records = dict[str, dict[str, Any]]


def _simulators() -> Records:
    from actors.reference import elsewhere  # noqa: PLC0415
    from actors.simulator import REGISTRY  # noqa: PLC0415  # each list loads only what it shows

    return {name: {**record.to_json(), "elsewhere": [one.to_json() for one in elsewhere(record)]} for name, record in REGISTRY.items()}


def _faults() -> Records:
    """Return what outlives a process here: effects that the guardian itself applies and undoes."""
    from actors.simulator import REGISTRY  # noqa: PLC0415

    undo = "the guardian arms the undo in its journal before it applies anything, and undoes at the lease's end"
    return {
        name: {"name": name, "summary": record.summary, "undo": undo} for name, record in REGISTRY.items() if record.carrier == "guardian"
    }


def _scenarios() -> Records:
    from scenarios import catalogue, text  # noqa: PLC0415

    told = catalogue.describe()
    return {
        name: {"name": name, "summary": _first_line(told[name]), "proves": told[name], "document": text.to_data(catalogue.get(name))}
        for name in told
    }


def _metrics() -> Records:
    from actors.metrics.registry import CATALOGUE, CONTEXT  # noqa: PLC0415

    return {
        name: {**plain(metric), "summary": metric.help, "family": metric.family(), "context": list(CONTEXT)}
        for name, metric in CATALOGUE.items()
    }


def _probes() -> Records:
    from scenarios.hypotheses import ActorProbe  # noqa: PLC0415

    return {"ActorProbe": _documented(ActorProbe)}


def _exporters() -> Records:
    from ..exporters.forms import FORMS  # noqa: PLC0415
    from ..settings import FIELDS  # noqa: PLC0415

    files = {
        name: {
            "name": name,
            "summary": form.summary,
            "options": {
                "export --to": name,
                "export --out": f"the file, by default RUN_ID{form.suffix}",
                "run --export": f"{name}:PATH, while the run goes on; more in a scenario's exporters.destinations",
            },
        }
        for name, form in FORMS.items()
    }
    return {
        "run directory": {
            "name": "run directory",
            "summary": "metrics/*.parquet and events.parquet, always written.",
            "options": {"out": "folder of run directories"},
        },
        **files,
        "prometheus": {
            "name": "prometheus",
            "summary": "One HTTP endpoint per run with /metrics, /healthz and /readyz, off unless a port is given.",
            "options": {one.path: one.help for one in FIELDS if one.path.startswith("prometheus.")},
        },
    }


def _limits() -> Records:
    from ..safety.profiles import listing  # noqa: PLC0415

    return {str(one["name"]): {**one, "summary": one["help"]} for one in listing()}


def _errors() -> Records:
    return {code: {"name": code, "category": category, "summary": meaning} for code, (category, meaning) in CODES.items()}


SUBJECTS: Final[Mapping[Subject, Callable[[], Records]]] = {
    Subject.SIMULATORS: _simulators,
    Subject.FAULTS: _faults,
    Subject.SCENARIOS: _scenarios,
    Subject.METRICS: _metrics,
    Subject.PROBES: _probes,
    Subject.EXPORTERS: _exporters,
    Subject.LIMITS: _limits,
    Subject.ERRORS: _errors,
}


COLUMNS: Final[Mapping[Subject, tuple[str, ...]]] = {
    Subject.SIMULATORS: ("family", "units"),
    Subject.METRICS: ("kind", "unit"),
    Subject.LIMITS: PROFILES,
    Subject.ERRORS: ("category",),
}


def _documented(kind: type) -> dict[str, Any]:
    """Return a record class as a description: its docstring, its fields and their defaults."""
    fields = {
        name: "required" if parameter.default is parameter.empty else plain(parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    about = inspect.getdoc(kind) or ""
    return {"name": kind.__name__, "summary": _first_line(about), "about": about, "options": fields}


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple, Mapping)) else value


def _first_line(told: str) -> str:
    return told.strip().split("\n", 1)[0]


def list_records(
    subject: Annotated[Subject, typer.Argument(help="What to list.")],
    address: options.NoAddress = None,  # noqa: ARG001  # every command takes an address
    as_json: options.Json = False,
) -> int:
    """List what this version has. `describe NAME` tells more about one of them.

    Examples:
      stress-cluster list simulators
      stress-cluster list metrics --json
    """
    records = SUBJECTS[subject]()
    columns = COLUMNS.get(subject, ())
    rows = [(name, *(_cell(record.get(column, "")) for column in columns), record.get("summary", "")) for name, record in records.items()]
    lines = table(("name", *columns, "what it is"), rows) or [f"no {subject.value} in this version"]
    emit({subject.value: list(records.values())}, as_json, lines)
    return 0


def describe(
    name: Annotated[str, typer.Argument(help="The name of anything that `list` shows, or of a setting.")],
    address: options.NoAddress = None,  # noqa: ARG001  # as above
    as_json: options.Json = False,
) -> int:
    """Describe one simulator, scenario, metric, probe, exporter, limit, error code or setting by its name.

    Examples:
      stress-cluster describe CpuLoad
      stress-cluster describe burst
      stress-cluster describe lease_s
    """
    found = find(name)
    emit(found, as_json, described_lines(found))
    return 0


def find(name: str) -> dict[str, Any]:
    """Return the record of a name, whatever it is; raises `InputError` (`unknown_name`) with the nearest one."""
    from ..settings import nearest, reference_rows  # noqa: PLC0415

    known: Records = {}
    for subject, records in SUBJECTS.items():
        if subject is not Subject.FAULTS:  # they are simulators as well, and told there
            known |= {one: {"is": subject.value.removesuffix("s"), **record} for one, record in records().items()}
    for path, default, expected, variable, told in reference_rows():
        known[path] = {"is": "setting", "name": path, "summary": told, "default": default, "expected": expected, "variable": variable}
    if name not in known:
        raise InputError("unknown_name", f"nothing here is called {name!r}", nearest(name, known))
    return known[name]


def described_lines(found: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return a record as indented lines."""
    lines = []
    for key, value in found.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *described_lines(value, indent + "  ")]
        elif isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            lines.append(f"{indent}{key}:")
            for one in value:
                lines += [f"{indent}  -", *described_lines(one, indent + "    ")] if isinstance(one, Mapping) else [f"{indent}  - {one}"]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{key}: {', '.join(map(str, value)) or '-'}")
        else:
            told = str("-" if value in {None, ""} else value).splitlines()
            lines += [f"{indent}{key}: {told[0]}", *[f"{indent}  {line}".rstrip() for line in told[1:]]]
    return lines


def validate(
    file: Annotated[str, typer.Argument(help="A .yaml or .py file, or a catalogue name.")],
    address: options.NoAddress = None,  # noqa: ARG001  # as above
    as_json: options.Json = False,
) -> int:
    """Check a scenario document. 2 with line, column and the nearest known key when it is wrong.

    Example:
      stress-cluster validate mine.yaml
    """
    loaded = source.load(file, [], None)
    document = {"valid": True, "name": loaded.name, "duration_s": loaded.scenario.plan.duration_s, "canonical": loaded.text}
    emit(document, as_json, [f"{file} is valid: {loaded.name}, {loaded.scenario.plan.duration_s:g} s"])
    return 0


def schema(
    address: options.NoAddress = None,  # noqa: ARG001  # as above
    as_json: options.Json = False,  # noqa: ARG001  # a schema is JSON in any case
) -> int:
    """Print the JSON Schema of a scenario document, for an editor or a check of your own.

    Example:
      stress-cluster schema > scenario.schema.json
    """
    from scenarios import text  # noqa: PLC0415  # as above

    print_json(text.json_schema())
    return 0
