"""The page docs/reference/simulators.md, made from the records: what a simulator takes, does, measures, needs and leaves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from .capability import CAPABILITIES, NodeFacts
from .option import Option
from .simulator import REGISTRY, UNITS, Capability, SimulatorRecord

# A node that lacks nothing.
ABLE: Final = NodeFacts(
    system="Linux",
    kernel="",
    machine="",
    python="",
    euid=0,
    capabilities=tuple(CAPABILITIES),
    nice=15,
    nice_limit=20,
    oom_score_adj=0,
    cgroup="v2",
    cgroup_folder="/sys/fs/cgroup",
    cpu_cores=1.0,
    cpu_quota=False,
    memory_limit_bytes=1,
    memory_limited=False,
    swap_bytes=0,
    populates_memory=True,
    has_numba=True,
    kernels_missing={},
    has_pidfd=True,
    state_dir="`state_dir`",
    state_filesystem="ext4",
    state_local=True,
    systemd=True,
    stress_ng="0",
    lists_children=True,
    makes_nameless=True,
    direct_io=True,
    has_cpu_pressure=True,
    has_memory_pressure=True,
    memory_group=2,
)
# What a node may lack, one at a time.
LACKS: Final[tuple[Mapping[str, Any], ...]] = (
    {"has_numba": False},
    {"populates_memory": False},
    {"stress_ng": ""},
    {"state_local": False, "state_filesystem": "nfs4"},
    {"state_filesystem": "overlay"},
    {"cgroup": "none", "cgroup_folder": ""},
    {"swap_bytes": 1 << 30},
    {"lists_children": False},
    {"makes_nameless": False},
    {"direct_io": False},
    {"has_cpu_pressure": False},
    {"has_memory_pressure": False},
    {"memory_group": 0},
    {"memory_group": 1, "cgroup_folder": ""},
    *({"capabilities": tuple(name for name in CAPABILITIES if name != left_out)} for left_out in CAPABILITIES),
)

_HEAD: Final = """# Simulators

Every simulator there is, from the records in `actors/`. `stress-cluster describe NAME` tells the same of one, `stress-cluster doctor` what
each node can do of it, and [Scenarios](scenario.md) how it is written. [Add a simulator](../how-to/add-a-simulator.md) tells how to have
another one.

| simulator | family | strength | what it does |
|---|---|---|---|
"""
_OPTIONS: Final = "| option | takes | default | what it is |\n|---|---|---|---|\n"


def elsewhere(record: SimulatorRecord) -> tuple[Capability, ...]:
    """Return what a simulator says of nodes that lack something, each verdict once."""
    found = (record.supported(replace(ABLE, **lack)) for lack in LACKS)
    return tuple(dict.fromkeys(one for one in found if one.verdict != "available"))


def families(registry: Mapping[str, SimulatorRecord] = REGISTRY) -> str:
    """Return the simulators by family, as a Markdown table with links from the repository's root."""
    by_family: dict[str, list[str]] = {}
    for record in registry.values():
        by_family.setdefault(record.family, []).append(f"[{record.name}](docs/reference/simulators.md#{record.name.lower()})")
    return "| family | simulators |\n|---|---|\n" + "".join(f"| {family} | {', '.join(names)} |\n" for family, names in by_family.items())


def page(registry: Mapping[str, SimulatorRecord] = REGISTRY) -> str:
    """Return the page, as Markdown."""
    rows = ""
    for record in registry.values():
        units = ", ".join(f"`{unit}`" for unit in record.units)
        rows += f"| [{record.name}](#{record.name.lower()}) | {record.family} | {units} | {record.summary} |\n"
    return _HEAD + rows + "".join(map(_section, registry.values()))


def _section(record: SimulatorRecord) -> str:
    about = [
        ("strength", "; ".join(f"`{unit}`: {UNITS[unit]}" for unit in record.units)),
        ("of", f"`{record.resource}`: what a fraction is of, and whose ceiling throttles it"),
        ("dose", f"{record.measure}; by {_meters(record)}"),
        ("tolerance", f"{record.tolerance:g}"),
        ("lease", f"looked at every {record.look_ms} ms"),
        ("metrics", ", ".join(f"[`{name}`](metrics.md)" for name in record.metrics) or "none of its own"),
        ("needs", record.needs or "nothing beside Linux"),
        ("undo", record.undo),
        *((one.verdict, one.reason + (f"; what would allow it: {one.allow}" if one.allow else "")) for one in elsewhere(record)),
    ]
    table = "".join(f"| {name} | {told} |\n" for name, told in about)
    return f"\n## {record.name}\n\n{record.summary}\n\n| | |\n|---|---|\n{table}{_options(record.options)}"


def _meters(record: SimulatorRecord) -> str:
    meters = {record.meter_of(unit): unit for unit in record.units}
    if len(meters) == 1:
        return f"`{record.meter}`"
    return " and ".join(f"`{meter}` of a `{unit}`" for meter, unit in meters.items())


def _options(options: Iterable[Option]) -> str:
    rows = "".join(f"| `{one.name}` | {one.expected} | `{_written(one.default)}` | {one.help} |\n" for one in options)
    return f"\n{_OPTIONS}{rows}" if rows else ""


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value) or '""'
