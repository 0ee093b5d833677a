"""The form of a scenario document: which keys there are, what each means, which kind of value it takes.

Reading, writing, the JSON Schema and the reference page all follow from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from actors.errors import InputError
from actors.on_demand import OnDemand
from actors.option import Option
from actors.simulator import REGISTRY, UNITS

from .combinators import DEPTH_MAX, Hold, Operator, Pause, Tree
from .composite_form import LISTS, combined_schema, operators
from .document import Entries, Node, wrong
from .exporter_form import BREAKER, DESTINATION, EXPORTERS, FORMAT, PROMETHEUS, ROUTE, RULE, Truth, TruthOrPath
from .exporter_form import WHEN as EXPORT_WHEN
from .hypotheses import OPERATORS, PLACES, PROBE_STATS, STATS, WHEN, ActorProbe, Threshold
from .kinds import KINDS
from .model import (
    ON_NODE_LOST,
    PROFILES,
    SEED_MAX,
    VERSION,
    Budget,
    LimitOverrides,
    Scenario,
)
from .recording import (
    METRIC_KINDS,
    METRIC_LEVELS,
    METRIC_MODES,
    Adaptive,
    Always,
    First,
    Keep,
    LeaveOut,
    Metrics,
    Probability,
    Rate,
)
from .schema import (
    CoresKind,
    Field,
    Kind,
    Labels,
    Listed,
    Measure,
    Number,
    OneOf,
    Quantity,
    Record,
    Schema,
    Strength,
    Text,
    Whole,
    Word,
    expected,
    placed,
    unknown_key,
)
from .targets import CHOICES, ROLES, Targets

DURATION, SIZE, FRACTION = Quantity("duration"), Quantity("size"), Quantity("fraction")

TARGETS: Final = Record(
    Targets,
    (
        Field("role", "role", Word(ROLES), "any, worker or head; the head is protected unless named or the only node"),
        Field("names", "names", Listed(Text()), "names of nodes"),
        Field("addresses", "addresses", Listed(Text()), "addresses of nodes"),
        Field("labels", "labels", Labels(), "labels that a node must carry"),
        Field("count", "count", Whole(1), "how many of the matching nodes"),
        Field("fraction", "fraction", FRACTION, "which share of the matching nodes, at least one"),
        Field("choice", "choice", Word(CHOICES), "which of them: the first by name, or seeded"),
    ),
    "Which nodes may be harmed.",
)
BUDGET: Final = Record(
    Budget,
    (
        Field("nodes_max", "nodes_max", Whole(1), "nodes under stress at once"),
        Field("cpu_cores_max", "cpu_cores_max", Number(), "cores in all at once"),
        Field("memory_max", "memory_bytes_max", SIZE, "memory in all at once"),
        Field("disk_max", "disk_bytes_max", SIZE, "disk in all at once"),
        Field("duration_max", "duration_s_max", DURATION, "duration of the plan"),
    ),
    "What the run may take in all.",
)
_LIMIT_HELP: Final[Mapping[str, str]] = {
    "cpu_fraction": "highest planned CPU load of a node",
    "cpu_busy_fraction": "busy share of the host above which load is shed",
    "cpu_busy_for_s": "how long the host may be that busy first",
    "memory_fraction": "highest planned memory of a node",
    "memory_used_fraction": "used memory of the host above which load is shed",
    "memory_abort_fraction": "used memory of the host above which the run is aborted",
    "disk_fraction": "highest planned share of the file system",
    "counts_fraction": "highest planned share of the descriptors, tasks, inodes and locks that there may be",
    "disk_used_fraction": "used share of the file system above which load is shed",
    "disk_abort_fraction": "used share of the file system above which the run is aborted",
    "descriptors_fraction": "open share of the host's descriptors above which load is shed",
    "descriptors_abort_fraction": "open share of the host's descriptors above which the run is aborted",
    "stale_s": "age of the newest host snapshot above which the node's load is ended",
}
LIMITS: Final = Record(
    LimitOverrides,
    tuple(Field(name.removesuffix("_s"), name, DURATION if name.endswith("_s") else FRACTION, text) for name, text in _LIMIT_HELP.items()),
    "Limits of a node that differ from the profile's.",
)


class _ThresholdRecord(Record):
    """A threshold: the unit in which its value is written must be the metric's."""

    __slots__ = ()

    def read(self, node: Node, label: str) -> Threshold:
        """Return the threshold."""
        if not isinstance(node, Entries):
            raise expected(node, label, "a mapping with metric, stat, op, value")
        values = self.values(node, label, ())
        number, of = values.pop("measure")
        threshold: Threshold = self.make(node, label, {**values, "value": number})
        if of not in ("number", threshold.quantity):
            what = f"{label}.value: expected a {threshold.quantity}, as {threshold.metric} {threshold.stat} is one, found a {of}"
            raise wrong(node.nodes["value"].place, "invalid_value", what)
        return threshold

    def write(self, value: Threshold) -> dict[str, Any]:
        """Return the keys whose values differ from their defaults."""
        rest = Record(Threshold, tuple(item for item in self.table if item.key != "value")).write(value)
        measure = Measure().write((value.value, value.quantity))
        order = [item.key for item in self.table]
        return dict(sorted({**rest, "value": measure}.items(), key=lambda item: order.index(item[0])))

    def required(self) -> set[str]:
        """Return the attributes that have no default."""
        return (Record.required(self) - {"value"}) | {"measure"}


THRESHOLD: Final = _ThresholdRecord(
    Threshold,
    (
        Field("name", "name", Text(), "what the report calls it"),
        Field("metric", "metric", Text(), "a metric of the catalogue"),
        Field("stat", "stat", Word(STATS), "which statistic of it"),
        Field("op", "op", Word(OPERATORS), "how it compares"),
        Field("value", "measure", Measure(), "with what, in the metric's unit"),
        Field("unit", "unit", Text(), "which unit, where the metric has several"),
        Field("node", "node", Text(), "on one node only"),
        Field("labels", "labels", Labels(), "only rows with these labels"),
        Field("when", "when", Word(WHEN), "during the load, or in the 5 s after its undo"),
    ),
    "A statistic of a metric compared with a value.",
)
PROBE: Final = Record(
    ActorProbe,
    (
        Field("name", "name", Text(), "what the report calls it"),
        Field("rate_hz", "rate_hz", Number(), "calls a second, on schedule whether or not earlier ones returned"),
        Field("timeout", "timeout_s", DURATION, "after which a call is an error"),
        Field("target", "target", Word(PLACES), "where the probed actors live"),
        Field("stat", "stat", Word(PROBE_STATS), "which statistic of the response time"),
        Field("op", "op", Word(("<=", "<")), "how it compares"),
        Field("value", "value_s", DURATION, "with what"),
        Field("errors_fraction_max", "errors_fraction_max", FRACTION, "which share of the calls may fail"),
    ),
    "An open-loop probe of an actor call; response time counts from the intended start.",
)
HYPOTHESES: Final = Listed(OneOf({"threshold": THRESHOLD, "actor_probe": PROBE}))

STRENGTHS: Final[Mapping[str, Strength]] = {
    "fraction": Strength("fraction"),
    "bytes": Strength("size"),
    "count": Strength("count"),
    "per_second": Strength("number"),
}


def _option_kind(option: Option) -> Kind:
    """Return how an option of a simulator is written."""
    if option.kind == "choice":
        return Word(option.choices)
    if option.kind == "integer":
        return Whole(int(option.low), None if option.high is None else int(option.high))
    return _OPTION_KINDS[option.kind]


_OPTION_KINDS: Final[Mapping[str, Kind]] = {
    "text": Text(),
    "path": Text(),
    "flag": Truth(),
    "number": Number(),
    "fraction": FRACTION,
    "bytes": SIZE,
    "duration": DURATION,
    "cores": CoresKind(),
}


def _simulator(name: str) -> Record:
    """Return the keys of a simulator: its units, then its options; what has a unit of its own loses it in its name."""
    record = REGISTRY[name]
    strengths = [Field(unit, unit, STRENGTHS[unit], UNITS[unit]) for unit in record.units]
    options = [
        Field(option.name.removesuffix("_bytes").removesuffix("_s"), option.name, _option_kind(option), option.help)
        for option in record.options
    ]
    return Record(KINDS[name], (*strengths, *options), record.summary)


SIMULATORS: Final[Mapping[str, Record]] = OnDemand(REGISTRY, _simulator)
_HOLD_KEYS: Final = (
    Field("for", "for_s", DURATION, "how long"),
    Field("phase", "phase", Text(), "name of the phase"),
    Field("targets", "targets", TARGETS, "which of the scenario's targets"),
    Field("tolerance", "tolerance", FRACTION, "how far achieved may differ from asked"),
)
_HOLD: Final = Record(Hold, _HOLD_KEYS)


@dataclass(frozen=True, slots=True)
class PlanKind:
    """The composition tree: a simulator with `for`, a `pause`, parts under `sequence` or `together`, or an operator's own keys."""

    depth: int = 1

    def read(self, node: Node, label: str) -> Tree:
        """Return the tree."""
        if not isinstance(node, Entries):
            raise expected(node, label, f"a mapping with one of {', '.join(_WORDS)}")
        words = [key for key in node.nodes if key in _WORDS]
        if len(words) != 1:
            self._refuse(node, label, words)
        word = words[0]
        if word == "pause":
            return self._pause(node, label)
        if word in COMBINED:
            operator: Operator = COMBINED[word].read(node, label)
            return operator
        return self._parts(node, label, word) if word in LISTS else self._hold(node, label, word)

    def _refuse(self, node: Entries, label: str, words: list[str]) -> None:
        for key in node.nodes:
            if not words and key not in _BESIDE:
                raise unknown_key(node, key, label, (*_WORDS, *_BESIDE))
        what = " and ".join(words) or "none of them"
        raise wrong(node.place, "invalid_document", f"{label}: expected exactly one of {', '.join(_WORDS)}, found {what}")

    def _pause(self, node: Entries, label: str) -> Pause:
        for key in node.nodes:
            if key != "pause":
                raise unknown_key(node, key, label, ("pause",))
        span = DURATION.read(node.nodes["pause"], f"{label}.pause")
        try:
            return Pause(span)
        except InputError as error:
            raise placed(node.nodes["pause"], label, error) from error

    def _hold(self, node: Entries, label: str, word: str) -> Hold:
        values = _HOLD.values(node, label, (word,)) if "for" in node.nodes else self._no_span(node, label, word)
        simulator = SIMULATORS[word].read(node.nodes[word], f"{label}.{word}")
        made: Hold = _HOLD.make(node, label, {**values, "simulator": simulator})
        return made

    def _no_span(self, node: Entries, label: str, word: str) -> dict[str, Any]:
        known = {item.key for item in _HOLD_KEYS} | {word}
        strange = next((key for key in node.nodes if key not in known), None)
        if strange is not None:
            raise unknown_key(node, strange, label, [*(item.key for item in _HOLD_KEYS), word])
        raise wrong(node.place, "invalid_document", f"{label}: {word} needs the key 'for', such as for: 30s")

    def _parts(self, node: Entries, label: str, word: str) -> Tree:
        beside = LISTS[word].values(node, label, (word,))
        if self.depth > DEPTH_MAX:
            raise wrong(node.place, "invalid_document", f"{label}: the plan is nested deeper than {DEPTH_MAX} levels")
        inner = node.nodes[word]
        parts = Listed(PlanKind(self.depth + 1)).read(inner, f"{label}.{word}")
        try:
            tree: Tree = LISTS[word].cls(parts, **beside)
        except InputError as error:
            raise placed(inner, label, error) from error
        return tree

    def write(self, value: Tree) -> dict[str, Any]:
        """Return the tree as data."""
        if isinstance(value, Pause):
            return {"pause": DURATION.write(value.for_s)}
        if isinstance(value, Operator):
            return next(record for record in COMBINED.values() if type(value) is record.cls).write(value)
        if isinstance(value, Hold):
            word = value.simulator.record.name
            beside = Record(Hold, _HOLD_KEYS).write(value)
            return {word: SIMULATORS[word].write(value.simulator), **beside}
        word = next(name for name, lists in LISTS.items() if type(value) is lists.cls)
        return {**LISTS[word].write(value), word: [self.write(part) for part in value.parts]}

    def schema(self) -> Schema:
        """Return the schema, by reference: it contains itself."""
        return {"$ref": "#/$defs/plan"}

    def definition(self) -> Schema:
        """Return what the reference stands for."""
        beside = {item.key: {**item.kind.schema(), "description": item.help} for item in _HOLD_KEYS}
        holds = [_object({word: record.schema(), **beside}, (word, "for")) for word, record in SIMULATORS.items()]
        parts = {"type": "array", "items": self.schema(), "minItems": 1}
        lists = [_object({word: parts, **{item.key: item.kind.schema() for item in made.table}}, (word,)) for word, made in LISTS.items()]
        return {"oneOf": [*holds, *lists, _object({"pause": DURATION.schema()}, ("pause",)), combined_schema(COMBINED)]}


COMBINED: Final = operators(PlanKind(), TARGETS)
_WORDS: Final = (*LISTS, "pause", *COMBINED, *SIMULATORS)
_BESIDE: Final = ("for", "phase", "targets", "tolerance", "of", "otherwise", "strength")


def _object(properties: Schema, required: tuple[str, ...]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_SERIES: Final = (
    Field("metric", "metric", Text(), "glob on the metric's name"),
    Field("kind", "kind", Word(METRIC_KINDS), "of this kind only"),
)
FILTERS: Final[Mapping[str, Record]] = {
    "leave_out": Record(LeaveOut, _SERIES, "These series are not recorded."),
    "keep": Record(Keep, _SERIES, "These series are recorded, whatever later filters say."),
}
_SAMPLED: Final = Field("metric", "metric", Text(), "glob on the name of a load's metric")
SAMPLING: Final[Mapping[str, Record]] = {
    "always": Record(Always, (_SAMPLED,), "Every sample."),
    "probability": Record(
        Probability, (_SAMPLED, Field("share", "share", FRACTION, "which share of the samples")), "A share of the samples."
    ),
    "rate": Record(Rate, (_SAMPLED, Field("rate_hz", "rate_hz", Number(), "samples a second at most")), "So many a second, evenly spaced."),
    "first": Record(
        First, (_SAMPLED, Field("count", "count", Whole(), "how many")), "The first of each window, and one for the rest of it."
    ),
    "adaptive": Record(
        Adaptive,
        (_SAMPLED, Field("rate_hz", "rate_hz", Number(), "samples a second that a burst is thinned to, at least 10")),
        "Every sample, but in a burst.",
    ),
}
METRICS: Final = Record(
    Metrics,
    (
        Field("level", "level", Word(METRIC_LEVELS), "how many metrics: doses, failures and few more; all but details; all"),
        Field("mode", "mode", Word(METRIC_MODES), "windows only, or also the single samples of loads in samples/*.parquet"),
        Field("filters", "filters", Listed(OneOf(FILTERS)), "which series not; the first that matches decides"),
        Field("sampling", "sampling", Listed(OneOf(SAMPLING)), "how single samples are thinned; the first that matches decides"),
    ),
)
SCENARIO: Final = Record(
    Scenario,
    (
        Field("version", "version", Whole(VERSION, VERSION), "version of this form"),
        Field("name", "name", Text(), "a short word; part of the run's id"),
        Field("description", "description", Text(), "what it is for"),
        Field("seed", "seed", Whole(0, SEED_MAX), "every choice follows from it"),
        Field("targets", "targets", TARGETS, "which nodes may be harmed"),
        Field("budget", "budget", BUDGET, "what the run may take in all"),
        Field("profile", "profile", Word(PROFILES), "set of limits of a node; without it the settings' own"),
        Field("limits", "limits", LIMITS, "limits that differ from the profile's"),
        Field("on_node_lost", "on_node_lost", Word(ON_NODE_LOST), "what the rest does when a node is lost"),
        Field("hypotheses", "hypotheses", HYPOTHESES, "what must hold"),
        Field("metrics", "metrics", METRICS, "what is recorded"),
        Field("exporters", "exporters", EXPORTERS, "where metrics go beside the run directory"),
        Field("plan", "plan", PlanKind(), "what happens when"),
    ),
    "A stress-cluster scenario.",
)


SCHEMA_ID: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a scenario document."""
    body = SCENARIO.schema()
    body["required"] = ["version", "name", "plan"]
    definitions = {
        "plan": PlanKind().definition(),
        **{f"strength_{one.of}": one.definition() for one in STRENGTHS.values()},
    }
    return {"$schema": SCHEMA_ID, "title": "stress-cluster scenario", **body, "$defs": definitions}


def reference() -> str:
    """Return the reference page of the scenario document, as Markdown, from the tables above."""
    parts = [_INTRODUCTION, _rows("Top level", SCENARIO)]
    parts += [_rows(f"`{name}`", record) for name, record in (("targets", TARGETS), ("budget", BUDGET), ("limits", LIMITS))]
    parts += [_rows("`hypotheses`: `threshold`", THRESHOLD), _rows("`hypotheses`: `actor_probe`", PROBE)]
    parts += [_rows("`metrics`", METRICS), _RULES]
    parts += [_rows(f"`metrics`: `filters`: `{name}`", record) for name, record in FILTERS.items()]
    parts += [_rows(f"`metrics`: `sampling`: `{name}`", record) for name, record in SAMPLING.items()]
    parts += [_rows("`exporters`", EXPORTERS)]
    parts += [_rows(f"`exporters`: {name}", record) for name, record in _EXPORT_PARTS.items()]
    parts += [_PLAN, *(_rows(f"`{name}`", record) for name, record in COMBINED.items()), _rows("Beside a simulator", _HOLD)]
    parts += [_rows(f"`{name}`", record) for name, record in SIMULATORS.items()]
    parts += [_SHAPES, *(_rows(f"`{name}`", record) for name, record in Strength("fraction").kinds().items())]
    return "\n".join(parts)


def _rows(heading: str, record: Record) -> str:
    lines = [f"### {heading}", "", *([record.help, ""] if record.help else []), "| key | takes | default | means |", "|---|---|---|---|"]
    lines += [f"| `{item.key}` | {_takes(item.kind)} | {_default(record, item)} | {item.help} |" for item in record.table]
    return "\n".join([*lines, ""])


def _default(record: Record, item: Field) -> str:
    if item.attribute in record.required() or item.key == "version":
        return "required"
    default = record.defaults().get(item.attribute)
    if default is None or default in ((), "") or isinstance(item.kind, (Record, Listed, Labels)):
        return "all" if isinstance(item.kind, CoresKind) else "-"
    written = item.kind.write(default)
    return f"`{str(written).lower() if isinstance(written, bool) else written}`"


def _takes(kind: Any) -> str:
    if isinstance(kind, Word):
        return ", ".join(f"`{word}`" for word in kind.known)
    if isinstance(kind, Strength):
        return "share or shape" if kind.of == "fraction" else "size or shape"
    if isinstance(kind, Quantity):
        return {"fraction": "share"}.get(kind.of, kind.of)
    if isinstance(kind, Listed):
        return f"list of {_takes(kind.item)}"
    return _KIND_WORDS.get(type(kind), "mapping")


_KIND_WORDS: Final[Mapping[type, str]] = {
    Text: "text",
    Whole: "whole number",
    Number: "number",
    Measure: "number, duration, size or share",
    CoresKind: "`all` or a number",
    OneOf: "mapping with one key",
    Labels: "mapping of texts",
    Truth: "`true` or `false`",
    TruthOrPath: "`true`, `false` or a path",
}
_EXPORT_PARTS: Final[Mapping[str, Record]] = {
    "`prometheus`": PROMETHEUS,
    "each of `destinations`": DESTINATION,
    "`format`": FORMAT,
    "`breaker`": BREAKER,
    "each of `rules`": RULE,
    "each of `routes`": ROUTE,
    "`when`": EXPORT_WHEN,
}
_INTRODUCTION: Final = """# Scenario documents

A scenario is a YAML document or its Python twin `scenarios.Scenario`. Durations (`250ms`, `30s`, `2m`, `1h30m`), sizes (`512MiB`,
`1GB`) and shares (`60%`) take units; plain numbers are seconds, bytes and fractions of 1. Unknown keys, anchors, aliases and tags are
refused with line and column. `stress-cluster validate FILE` checks a document, `stress-cluster schema` prints its JSON Schema, and
`--set PATH=VALUE` sets a key: `--set plan.together.0.CpuLoad.fraction=30%`.
"""
_PLAN: Final = """### `plan`

One of: a simulator with `for`; `pause: 5s`; a list of parts under `sequence` (one after the other) or `together` (from the same
instant), with a `phase` which names the parts that have no name of their own; or one of the words below, most of which stand around one
part under `of`. [Combine loads](../how-to/combine-loads.md) has examples.

A `sequence` takes `on_failure`: a load that fails while the run goes on ends the run (`stop`, the default), or only itself (`continue`),
which is told and keeps the run from passing; and `carry: true`: what each part loads is kept up until the sequence ends, by its shape
(a ramp at its end), and the sum is reserved. Without it a part gives back what it has when it is over.
"""
_RULES: Final = """Doses, probes, failures, safety and losses are always recorded, and whole. What is left out is counted in
`metrics.filtered`. Sampling needs `mode: detailed`; each sample says by its `weight` how many it stands for, and
the figures of windows are of all samples.

```yaml
metrics:
  level: verbose
  mode: detailed
  filters:
    - keep: {metric: host.cpu.busy}
    - leave_out: {metric: "host.*"}
  sampling:
    - rate: {metric: load.slice, rate_hz: 100}
    - probability: {metric: "load.*", share: 10%}
```
"""
_SHAPES: Final = """### Load shapes

Wherever a strength stands, a level is a constant load and `{NAME: {...}}` is a shape of that name. Levels are shares or sizes like the
strength's.
"""
