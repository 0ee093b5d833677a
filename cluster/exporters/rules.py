"""Which rows go where, and in what form: one small engine for routes, filters and transformations, validated before it acts.

A rule has a `when` (globs over metric, node, worker, phase, kind and labels; all must match) and one action. Rules act in their order
on whole Arrow columns; rows that a rule does not match pass it unchanged. As a document:

    {"when": {"metric": "probe.*", "labels": {"probe": "x*"}}, "to": ["a", "b"]}      route: rows go to every exporter so named
    {"when": {...}, "keep": false}                                                    filter; with true, only what matches stays
    {"when": {...}, "one_in": 10}                                                     whole series, chosen by a digest of their names
    {"when": {...}, "drop_labels": ["probe"]}
    {"when": {"metric": "host.cpu.busy"}, "rename": "cpu"}
    {"when": {...}, "every_s": 10, "by": ["node", "labels.probe"], "late_s": 5}       see `downsample`

Pure, but for the open windows of `every_s`.
"""

from __future__ import annotations

import difflib
import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InputError

from ..metrics.windows import METRICS
from .downsample import PLAIN, WEIGHT, Downsample

_WORDS: Final = ("metric", "kind", "node", "worker", "phase")


@dataclass(frozen=True, slots=True)
class When:
    """Globs that a row must match, all of them; a label that a row lacks matches only an absent condition."""

    columns: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Return which rows match."""
        found = pa.array(np.ones(batch.num_rows, bool))
        for name, glob in self.columns:
            found = pc.and_(found, _glob(batch.column(name), glob))
        for name, glob in self.labels:
            found = pc.and_(found, _glob(pc.map_lookup(batch.column("labels"), name, "first"), glob))
        return found


def _glob(values: pa.Array, glob: str) -> pa.BooleanArray:
    """Match each distinct value once; null matches nothing."""
    fitting = [value for value in pc.unique(values).to_pylist() if value is not None and fnmatch.fnmatchcase(value, glob)]
    return pc.is_in(values, value_set=pa.array(fitting, pa.string()))


@dataclass(frozen=True, slots=True)
class Route:
    """Rows that match go to all of these."""

    when: When
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """A filter: what matches is kept and the rest goes, or the other way round."""

    when: When
    keep: bool

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that stay."""
        mask = self.when.mask(batch)
        return batch.filter(mask if self.keep else pc.invert(mask))


@dataclass(frozen=True, slots=True)
class OneIn:
    """Of the series that match, about one in `count` stays, whole: the same ones in every batch, process and run."""

    when: When
    count: int

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that stay."""
        mask = self.when.mask(batch).to_pylist()
        columns = [batch.column(name).to_pylist() for name in (*PLAIN, "labels")]
        stay = [not hit or zlib.crc32(repr(one).encode()) % self.count == 0 for hit, *one in zip(mask, *columns, strict=True)]
        return batch.filter(pa.array(stay, pa.bool_()))


@dataclass(frozen=True, slots=True)
class DropLabels:
    """Rows that match lose these labels. Series that differed only there then share a name: add them up with `every_s`."""

    when: When
    names: tuple[str, ...]

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows without the labels."""
        mask = self.when.mask(batch).to_pylist()
        labels = batch.column("labels")
        kept = [
            [pair for pair in pairs if pair[0] not in self.names] if hit else pairs
            for hit, pairs in zip(mask, labels.to_pylist(), strict=True)
        ]
        return _with_column(batch, "labels", pa.array(kept, labels.type))


@dataclass(frozen=True, slots=True)
class Rename:
    """Rows that match get another metric name."""

    when: When
    name: str

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows under their new name."""
        renamed = pc.if_else(self.when.mask(batch), pa.scalar(self.name), batch.column("metric"))
        return _with_column(batch, "metric", renamed)


def _with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), values)


@dataclass(frozen=True, slots=True)
class Every:
    """Rows that match are merged over time and series; see `downsample.Downsample`."""

    when: When
    every_s: float
    by: tuple[str, ...]
    late_s: float


Rule = Keep | OneIn | DropLabels | Rename | Every


@dataclass(slots=True)
class ChainCounts:
    """Rows of one exporter's chain. taken = filtered + late + held + folded + passed, exactly."""

    taken: int = 0
    filtered: int = 0
    late: int = 0
    folded: int = 0  # into aggregates that were given out
    passed: int = 0  # as they were
    aggregates: int = 0  # given out, beside what passed


class Chain:
    """One exporter's rules in action; holds the open windows of its `Every` rules."""

    def __init__(self, rules: Sequence[Rule] = (), counts: ChainCounts | None = None) -> None:
        self.rules = tuple(rules)
        self.counts = counts or ChainCounts()  # go on when rules are replaced
        self._steps: list[Keep | OneIn | DropLabels | Rename | Downsample] = [
            Downsample(rule.when.mask, rule.every_s, rule.by, rule.late_s) if isinstance(rule, Every) else rule for rule in self.rules
        ]

    @property
    def held(self) -> int:
        """Source rows in windows that are still open."""
        return sum(step.held for step in self._steps if isinstance(step, Downsample))

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return what comes out now: rows that pass, and windows that these rows closed."""
        self.counts.taken += batch.num_rows
        if not self._steps or not batch.num_rows:
            self.counts.passed += batch.num_rows
            return batch
        return self._through(self._steps, batch.append_column(WEIGHT, pa.array(np.zeros(batch.num_rows, np.int64))))

    def drain(self) -> list[pa.RecordBatch]:
        """Close every window and return what comes out."""
        schema = METRICS.append(pa.field(WEIGHT, pa.int64()))
        steps = [(at, step) for at, step in enumerate(self._steps) if isinstance(step, Downsample)]
        found = [self._through(self._steps[at + 1 :], step.drain(schema)) for at, step in steps]
        return [batch for batch in found if batch.num_rows]

    def _through(self, steps: Sequence[Keep | OneIn | DropLabels | Rename | Downsample], batch: pa.RecordBatch) -> pa.RecordBatch:
        for step in steps:
            if isinstance(step, Downsample):
                batch, late = step.take(batch)
                self.counts.late += late
            else:
                before = _sources(batch)
                batch = step.apply(batch)
                self.counts.filtered += before - _sources(batch)
        aggregates = int(np.count_nonzero(batch.column(WEIGHT)))
        self.counts.passed += batch.num_rows - aggregates
        self.counts.aggregates += aggregates
        self.counts.folded += _sources(batch) - (batch.num_rows - aggregates)
        return batch.drop_columns([WEIGHT])


def _sources(batch: pa.RecordBatch) -> int:
    """Return how many source rows these rows stand for."""
    return int(np.maximum(batch.column(WEIGHT), 1).sum())


# from documents


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Routes and each exporter's chain. Rows that no route matches go to `default`. Rows that reach nobody are counted as unrouted."""

    routes: tuple[Route, ...] = ()
    default: tuple[str, ...] | None = None  # None: every exporter, if there is no route at all
    chains: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    def split(self, batch: pa.RecordBatch, exporters: Sequence[str]) -> tuple[dict[str, pa.RecordBatch], int]:
        """Return the rows of each exporter, each row once, and how many rows go nowhere.

        A name that is not there, of an exporter that was removed, is passed over; the rows of its routes do not fall to `default`.
        """
        if not self.routes:
            to = [name for name in exporters if self.default is None or name in self.default]
            return dict.fromkeys(to, batch), 0 if to else batch.num_rows
        masks = {name: np.zeros(batch.num_rows, bool) for name in exporters}
        routed = np.zeros(batch.num_rows, bool)
        for route in self.routes:
            hit = route.when.mask(batch).to_numpy(zero_copy_only=False)
            for name in masks.keys() & set(route.to):
                masks[name] |= hit
            routed |= hit
        for name in masks.keys() & set(self.default or ()):
            masks[name] |= ~routed
        reached = np.logical_or.reduce([np.zeros(batch.num_rows, bool), *masks.values()])
        lost = int(batch.num_rows - reached.sum())
        return {name: batch.filter(pa.array(mask)) for name, mask in masks.items() if mask.any()}, lost

    def check(self, exporters: Sequence[str]) -> None:
        """Raise `InputError` when a route or chain names an exporter that is not there."""
        named = {name for route in self.routes for name in route.to} | set(self.default or ()) | set(self.chains)
        for name in sorted(named - set(exporters)):
            close = difflib.get_close_matches(name, exporters, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(exporters) or 'none'}"
            raise InputError("unknown_name", f"a rule names the exporter {name!r}, which is not there", hint)


def parse(document: Mapping[str, Any]) -> RuleSet:
    """Return the rules of `{"routes": [...], "default": [...], "chains": {exporter: [...]}}`. Raises `InputError` with the place."""
    _known(document, ("routes", "default", "chains"), "rules")
    routes = tuple(_route(one, f"routes[{at}]") for at, one in enumerate(document.get("routes", ())))
    default = None if document.get("default") is None else _texts(document["default"], "default")
    chains = {
        str(name): tuple(_rule(one, f"chains.{name}[{at}]") for at, one in enumerate(rules))
        for name, rules in document.get("chains", {}).items()
    }
    return RuleSet(routes, default, chains)


def _route(document: Mapping[str, Any], place: str) -> Route:
    _known(document, ("when", "to"), place)
    if "to" not in document:
        raise InputError("invalid_document", f"{place} has no `to`", "name the exporters that get these rows")
    return Route(_when(document.get("when", {}), place), _texts(document["to"], f"{place}.to"))


def _rule(document: Mapping[str, Any], place: str) -> Rule:
    actions = ("keep", "one_in", "drop_labels", "rename", "every_s")
    _known(document, ("when", *actions, "by", "late_s"), place)
    given = [name for name in actions if name in document]
    if len(given) != 1:
        raise InputError(
            "invalid_document", f"{place} has {' and '.join(given) or 'no action'}", f"give exactly one of {', '.join(actions)}"
        )
    if given != ["every_s"] and {"by", "late_s"} & set(document):
        raise InputError("unknown_key", f"{place}: `by` and `late_s` belong to `every_s`")
    when, value = _when(document.get("when", {}), place), document[given[0]]
    match given[0]:
        case "keep" if isinstance(value, bool):
            return Keep(when, value)
        case "one_in" if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return OneIn(when, value)
        case "drop_labels":
            return DropLabels(when, _texts(value, f"{place}.drop_labels"))
        case "rename" if isinstance(value, str) and value:
            return Rename(when, value)
        case "every_s" if _is_number(value) and value >= 1e-6:
            return Every(when, float(value), _by(document.get("by"), place), _late(document.get("late_s", 0), place))
    expected = {"keep": "true or false", "one_in": "a whole number from 1", "rename": "a name", "every_s": "seconds, more than 0"}
    raise InputError("invalid_value", f"{place}.{given[0]} is {value!r}, expected {expected[given[0]]}")


def _when(document: Mapping[str, Any], place: str) -> When:
    _known(document, (*_WORDS, "labels"), f"{place}.when")
    labels = document.get("labels", {})
    for name, glob in [*document.items(), *labels.items()]:
        if name != "labels" and not isinstance(glob, str):
            raise InputError("invalid_value", f"{place}.when.{name} is {glob!r}, expected text, such as 'probe.*'")
    return When(tuple((name, document[name]) for name in _WORDS if name in document), tuple(sorted(labels.items())))


def _by(value: Any, place: str) -> tuple[str, ...]:
    if value is None:
        return ("node", "worker", "phase", "labels")
    names = _texts(value, f"{place}.by")
    for name in names:
        if name not in ("node", "worker", "phase", "labels") and not name.startswith("labels."):
            raise InputError("unknown_name", f"{place}.by has {name!r}", "known: node, worker, phase, labels, labels.NAME")
    return names


def _late(value: Any, place: str) -> float:
    if not _is_number(value) or value < 0:
        raise InputError("invalid_value", f"{place}.late_s is {value!r}, expected seconds, 0 or more")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _texts(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise InputError("invalid_value", f"{place} is {value!r}, expected a list of names")
    return tuple(value)


def _known(document: Any, words: Sequence[str], place: str) -> None:
    if not isinstance(document, Mapping):
        raise InputError("invalid_document", f"{place} is {document!r}, expected keys and values")
    for word in document:
        if word not in words:
            close = difflib.get_close_matches(str(word), words, n=1)
            raise InputError(
                "unknown_key", f"{place}: unknown key {word!r}", f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"
            )
