"""The form of `exporters` in a scenario document: see `form` for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .document import Leaf, Node
from .exporters import (
    LABELS,
    LINE_ENDS,
    NEW_LABELS,
    NON_FINITE,
    OVERFLOWS,
    SYNCS,
    TIMES,
    TYPES,
    Breaker,
    Destination,
    Exporters,
    Format,
    Prometheus,
    Route,
    Rule,
    When,
)
from .schema import Field, Labels, Listed, Quantity, Record, Schema, Text, Whole, Word, expected

_DURATION, _SIZE = Quantity("duration"), Quantity("size")


@dataclass(frozen=True, slots=True)
class Truth:
    """true or false."""

    def read(self, node: Node, label: str) -> bool:
        """Return which."""
        if isinstance(node, Leaf) and isinstance(node.value, bool):
            return node.value
        raise expected(node, label, "true or false")

    def write(self, value: bool) -> bool:
        """Return which."""
        return value

    def schema(self) -> Schema:
        """Return the schema."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class TruthOrPath:
    """true or false, or a path."""

    def read(self, node: Node, label: str) -> bool | str:
        """Return which."""
        if isinstance(node, Leaf) and isinstance(node.value, (bool, str)):
            return node.value
        raise expected(node, label, "true, false or a path")

    def write(self, value: bool | str) -> bool | str:
        """Return which."""
        return value

    def schema(self) -> Schema:
        """Return the schema."""
        return {"anyOf": [{"type": "boolean"}, {"type": "string"}]}


WHEN: Final = Record(
    When,
    (
        Field("metric", "metric", Text(), "glob over the metric's name, such as probe.*"),
        Field("kind", "kind", Text(), "glob over counter, gauge, histogram"),
        Field("node", "node", Text(), "glob over the node's name"),
        Field("worker", "worker", Text(), "glob over the worker"),
        Field("phase", "phase", Text(), "glob over the phase"),
        Field("labels", "labels", Labels(), "globs over labels"),
    ),
    "Which rows a route or rule is about: all that is given must match.",
)
ROUTE: Final = Record(
    Route,
    (
        Field("when", "when", WHEN, "which rows"),
        Field("to", "to", Listed(Text(), least=1), "names of the destinations that get them"),
    ),
)
RULE: Final = Record(
    Rule,
    (
        Field("when", "when", WHEN, "which rows; the others pass unchanged"),
        Field("keep", "keep", Truth(), "false: these rows go; true: only these stay"),
        Field("one_in", "one_in", Whole(1), "of these series one in so many stays, whole"),
        Field("drop_labels", "drop_labels", Listed(Text()), "labels that these rows lose"),
        Field("rename", "rename", Text(), "the metric's name from here on"),
        Field("every", "every_s", _DURATION, "merge these rows into windows of this length"),
        Field("by", "by", Listed(Text()), "with `every`: which of node, worker, phase, labels, labels.NAME stay apart; else all"),
        Field("late", "late_s", _DURATION, "with `every`: how long after its end a window still takes rows"),
    ),
    "A step before one destination, in order; exactly one of keep, one_in, drop_labels, rename, every.",
)
BREAKER: Final = Record(
    Breaker,
    (
        Field("threshold", "threshold", Whole(1), "failures in a row after which a destination is left alone"),
        Field("reset", "reset_s", _DURATION, "for how long"),
        Field("probes", "probes", Whole(1), "successes after that until it counts as well"),
        Field("backoff", "backoff_s", _DURATION, "wait after a first failure; doubled after each further one"),
        Field("backoff_max", "backoff_s_max", _DURATION, "longest such wait"),
    ),
)
FORMAT: Final = Record(
    Format,
    (
        Field("time", "time", Word(TIMES), "ISO 8601 with microseconds, or numbers since 1970"),
        Field("decimals", "decimals", Whole(0, 15), "digits behind the point that are kept; without it all"),
        Field(
            "non_finite", "non_finite", Word(NON_FINITE), "NaN and infinities: NaN, Infinity and -Infinity as text, or like a missing value"
        ),
        Field("digests", "digests", Truth(), "with the digests of histograms, as base64"),
        Field("nulls", "nulls", Truth(), "json, jsonl: write keys without a value too"),
        Field("sort_keys", "sort_keys", Truth(), "json, jsonl: keys by name, else in the order of the columns"),
        Field("indent", "indent", Whole(0, 8), "json: a key a line, indented by so many spaces"),
        Field("separator", "separator", Text(), "csv: what stands between two fields"),
        Field("quote_all", "quote_all", Truth(), "csv: quotes around every field, else where they are needed"),
        Field("line_end", "line_end", Word(LINE_ENDS), "csv: newline alone, or behind a carriage return"),
        Field("labels", "labels", Word(LABELS), "csv: a column for each label, or one column of JSON"),
        Field(
            "new_label",
            "new_label",
            Word(NEW_LABELS),
            "csv: of a label that the header lacks: write the file anew, put it into a JSON column, or reject its batch",
        ),
    ),
    "How the text of a json, jsonl or csv file looks. What a type does not have is refused.",
)
DESTINATION: Final = Record(
    Destination,
    (
        Field("type", "type", Word(TYPES), "what is written"),
        Field(
            "path",
            "path",
            Text(),
            "the file: under exports/ of the run directory, or absolute on the aggregator's node; `{run}` is its id",
        ),
        Field("name", "name", Text(), "what report, metrics and routes call it; without it the type"),
        Field("overflow", "overflow", Word(OVERFLOWS), "what becomes of rows when its queue is full; each is counted"),
        Field("queue_rows", "queue_rows", Whole(1), "rows that may wait in memory"),
        Field("queue_size", "queue_bytes", _SIZE, "bytes that may wait in memory"),
        Field("batch_rows", "batch_rows", Whole(1), "rows written at once"),
        Field("batch_size", "batch_bytes", _SIZE, "bytes written at once"),
        Field("batch_age", "batch_age_s", _DURATION, "how long rows wait for their batch to fill"),
        Field("flush", "flush_s", _DURATION, "how often what was written is forced to the disk"),
        Field(
            "sync",
            "sync",
            Word(SYNCS),
            "jsonl, csv, and the disk of `spill`: forced to the disk with each batch, also once a second while rows come, or never",
        ),
        Field("rotate", "rotate_bytes", _SIZE, "jsonl, csv: a file that would be longer gets a number, and another is begun"),
        Field("format", "format", FORMAT, "how its text looks"),
        Field("sample_one_in", "sample_one_in", Whole(1), "with overflow sample: from half full on, one row in so many is kept"),
        Field("breaker", "breaker", BREAKER, "when it is left alone, and how it is tried again"),
        Field("spill", "spill", TruthOrPath(), "a disk for what finds no room: true is the state folder of the aggregator's node"),
        Field("spill_max", "spill_bytes_max", _SIZE, "bytes that may wait on that disk"),
        Field("write_ahead", "write_ahead", Truth(), "all rows go to that disk first, and outlive the process there"),
        Field("rules", "rules", Listed(RULE), "what is done to its rows first"),
    ),
    "A file that the run's metrics are written to while it goes on.",
)
PROMETHEUS: Final = Record(
    Prometheus,
    (
        Field("port", "port", Whole(0, 65_535), "0 takes a free one"),
        Field("host", "host", Text(), "address to listen at"),
    ),
)
EXPORTERS: Final = Record(
    Exporters,
    (
        Field("prometheus", "prometheus", PROMETHEUS, "serve metrics over HTTP"),
        Field("destinations", "destinations", Listed(DESTINATION), "where rows are sent while the run goes on"),
        Field("routes", "routes", Listed(ROUTE), "which rows go where; without any, all go everywhere"),
        Field("default", "default", Listed(Text()), "destinations of the rows that no route matches"),
        Field("drain", "drain_s", _DURATION, "how long destinations have at the end to take what waits"),
    ),
)
