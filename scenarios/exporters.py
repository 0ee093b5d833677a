"""Where a run's metrics go beside its run directory: an endpoint to be scraped, and destinations that rows are sent to. Pure data.

What the words of a destination do is decided elsewhere (`cluster.run_exports`); here they are checked, as far as a document alone can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from actors.errors import InputError

from .targets import label_tuples
from .units import DURATION_MAX_S, SIZE_MAX_BYTES, check_choice, check_number, check_text, check_whole

TYPES: Final = ("json", "jsonl", "csv", "parquet", "arrow")
OVERFLOWS: Final = ("drop_oldest", "drop_newest", "sample", "spill")
SYNCS: Final = ("always", "interval", "never")
GROWING: Final = ("jsonl", "csv")  # files that grow while the run goes on; the others appear whole
TIMES: Final = ("iso", "unix_ms", "unix_s")
NON_FINITE: Final = ("text", "null")
LINE_ENDS: Final = ("lf", "crlf")
LABELS: Final = ("columns", "json")
NEW_LABELS: Final = ("rewrite", "rest", "refuse")
DESTINATIONS_MAX: Final = 20
RULES_MAX: Final = 100
ROWS_MAX: Final = 100_000_000
DRAIN_S_MAX: Final = 60.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}\Z")
_PATH_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Serve this run's metrics at `http://host:port/metrics`; port 0 takes a free one."""

    port: int = 0
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "port", check_whole("Prometheus.port", self.port, 0, 65_535))
        if not check_text("Prometheus.host", self.host, 253) or "\n" in self.host:
            raise InputError("invalid_value", f"Prometheus.host must be a host name or address, got {self.host!r}")


@dataclass(frozen=True, slots=True)
class When:
    """Globs that a row must match, all that are given; a label that a row lacks matches none."""

    metric: str | None = None
    kind: str | None = None
    node: str | None = None
    worker: str | None = None
    phase: str | None = None
    labels: tuple[tuple[str, str], ...] | Mapping[str, str] = ()

    def __post_init__(self) -> None:
        for name in ("metric", "kind", "node", "worker", "phase"):
            if getattr(self, name) is not None:
                check_text(f"When.{name}", getattr(self, name))
        object.__setattr__(self, "labels", label_tuples("When.labels", self.labels))


@dataclass(frozen=True, slots=True)
class Route:
    """Rows that match go to all of these destinations."""

    to: tuple[str, ...]
    when: When = field(default_factory=When)

    def __post_init__(self) -> None:
        object.__setattr__(self, "to", _texts("Route.to", self.to))
        _keep_record(self, "when", When)


@dataclass(frozen=True, slots=True)
class Rule:
    """One step of what is done to rows before they go to one destination: whom it concerns, and exactly one action.

    `keep`: what matches goes (false), or all the rest (true). `one_in`: of the series that match, one in so many stays, whole.
    `drop_labels`, `rename`: of rows that match. `every_s`: rows that match are merged into windows of this length, one for each of
    `by`; rows that come up to `late_s` after a window's end still count in it.
    """

    when: When = field(default_factory=When)
    keep: bool | None = None
    one_in: int | None = None
    drop_labels: tuple[str, ...] = ()
    rename: str = ""
    every_s: float | None = None
    by: tuple[str, ...] = ()
    late_s: float = 0.0

    def __post_init__(self) -> None:
        _keep_record(self, "when", When)
        given = [name for name, unset in _UNSET.items() if getattr(self, name) not in unset]
        if len(given) != 1:
            words = " and ".join(name.removesuffix("_s") for name in given) or "no action"
            raise InputError("invalid_value", f"Rule has {words}", "give exactly one of keep, one_in, drop_labels, rename, every")
        if self.keep is not None:
            _check_truth("Rule.keep", self.keep)
        if self.one_in is not None:
            object.__setattr__(self, "one_in", check_whole("Rule.one_in", self.one_in, 1, ROWS_MAX))
        object.__setattr__(self, "drop_labels", _texts("Rule.drop_labels", self.drop_labels))
        check_text("Rule.rename", self.rename)
        self._check_windows()

    def _check_windows(self) -> None:
        object.__setattr__(self, "late_s", float(check_number("Rule.late_s", self.late_s, 0.0, DURATION_MAX_S)))
        object.__setattr__(self, "by", _texts("Rule.by", self.by))
        for name in self.by:
            if name not in {"node", "worker", "phase", "labels"} and not name.startswith("labels."):
                raise InputError("invalid_value", f"Rule.by has {name!r}", "known: node, worker, phase, labels, labels.NAME")
        if self.every_s is not None:
            object.__setattr__(self, "every_s", float(check_number("Rule.every_s", self.every_s, 1e-3, DURATION_MAX_S)))
        elif self.by or self.late_s:
            name = "by" if self.by else "late_s"
            raise InputError("invalid_value", f"Rule.{name} belongs to `every`", "leave it out, or give every: 10s")


_UNSET: Final[Mapping[str, tuple[Any, ...]]] = {
    "keep": (None,),
    "one_in": (None,),
    "drop_labels": ((), []),
    "rename": ("",),
    "every_s": (None,),
}


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a destination that fails is left alone, and how calls are tried again."""

    threshold: int = 5
    reset_s: float = 60.0
    probes: int = 1
    backoff_s: float = 0.1
    backoff_s_max: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", check_whole("Breaker.threshold", self.threshold, 1, 1_000))
        object.__setattr__(self, "probes", check_whole("Breaker.probes", self.probes, 1, 1_000))
        for name in ("reset_s", "backoff_s", "backoff_s_max"):
            object.__setattr__(self, name, float(check_number(f"Breaker.{name}", getattr(self, name), 1e-3, DURATION_MAX_S)))
        if self.backoff_s > self.backoff_s_max:
            raise InputError("invalid_value", f"Breaker.backoff_s is {self.backoff_s:g}, more than backoff_max, {self.backoff_s_max:g}")


@dataclass(frozen=True, slots=True)
class Format:
    """How the text of a json, jsonl or csv file looks; `FORMAT_OF` says what belongs to which. The others have no choice."""

    time: str = "iso"
    decimals: int | None = None
    non_finite: str = "text"
    digests: bool = False
    nulls: bool = True
    sort_keys: bool = False
    indent: int | None = None
    separator: str = ","
    quote_all: bool = False
    line_end: str = "lf"
    labels: str = "columns"
    new_label: str = "rewrite"

    def __post_init__(self) -> None:
        words = {"time": TIMES, "non_finite": NON_FINITE, "line_end": LINE_ENDS, "labels": LABELS, "new_label": NEW_LABELS}
        for name, known in words.items():
            check_choice(f"Format.{name}", getattr(self, name), known)
        for name in ("digests", "nulls", "sort_keys", "quote_all"):
            _check_truth(f"Format.{name}", getattr(self, name))
        for name, most in (("decimals", 15), ("indent", 8)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_whole(f"Format.{name}", getattr(self, name), 0, most))
        if not isinstance(self.separator, str) or len(self.separator) != 1 or not self.separator.isascii() or self.separator in '"\r\n\0':
            what = f"Format.separator must be one ASCII character, no quote or newline, got {self.separator!r}"
            raise InputError("invalid_value", what)


_TEXT: Final = ("time", "decimals", "non_finite", "digests")
_JSON: Final = (*_TEXT, "nulls", "sort_keys")
FORMAT_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "json": (*_JSON, "indent"),
    "jsonl": _JSON,
    "csv": (*_TEXT, "separator", "quote_all", "line_end", "labels", "new_label"),
    "parquet": (),
    "arrow": (),
}


@dataclass(frozen=True, slots=True)
class Destination:
    """A file that rows are written to while the run goes on.

    A relative `path` lies in `exports/` of the run directory, an absolute one on the node of the run's aggregator; `{run}` stands for
    the run's id. `spill` is true, or a folder on that node: what finds no room goes to disk there, up to `spill_bytes_max`. A jsonl or
    csv file that would become longer than `rotate_bytes` gets a number, and another one is begun.
    """

    type: str
    path: str
    name: str = ""
    overflow: str = "drop_newest"
    queue_rows: int = 100_000
    queue_bytes: int = 32 << 20
    batch_rows: int = 5_000
    batch_bytes: int = 4 << 20
    batch_age_s: float = 1.0
    flush_s: float = 10.0
    sample_one_in: int = 10
    breaker: Breaker = field(default_factory=Breaker)
    spill: bool | str = False
    spill_bytes_max: int = 1 << 30
    write_ahead: bool = False
    rules: tuple[Rule, ...] = ()
    sync: str = "interval"
    rotate_bytes: int | None = None
    format: Format = field(default_factory=Format)

    def __post_init__(self) -> None:
        check_choice("Destination.type", self.type, TYPES)
        object.__setattr__(self, "name", self.name or self.type)
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise InputError("invalid_value", f"Destination.name must be a short word, got {self.name!r}", "such as csv or probes-only")
        _check_path("Destination.path", self.path)
        hint = "nothing in a run may wait for a destination; spill keeps all rows" if self.overflow == "block" else ""
        if self.overflow not in OVERFLOWS:
            raise InputError("invalid_value", f"Destination.overflow must be one of {', '.join(OVERFLOWS)}, got {self.overflow!r}", hint)
        _keep_record(self, "breaker", Breaker)
        self._check_bounds()
        self._check_spill()
        self._check_file()
        object.__setattr__(self, "rules", _records("Destination.rules", self.rules, Rule, RULES_MAX))

    def _check_bounds(self) -> None:
        for name in ("queue_rows", "batch_rows", "sample_one_in"):
            object.__setattr__(self, name, check_whole(f"Destination.{name}", getattr(self, name), 1, ROWS_MAX))
        for name in ("queue_bytes", "batch_bytes"):
            object.__setattr__(self, name, check_whole(f"Destination.{name}", getattr(self, name), 1, SIZE_MAX_BYTES))
        for name in ("batch_age_s", "flush_s"):
            object.__setattr__(self, name, float(check_number(f"Destination.{name}", getattr(self, name), 1e-3, DURATION_MAX_S)))
        for name in ("rows", "bytes"):
            batch, queue = getattr(self, f"batch_{name}"), getattr(self, f"queue_{name}")
            if batch > queue:
                what = f"Destination.batch_{name} is {batch}, more than its queue holds, {queue}"
                raise InputError("invalid_value", what, "lower the batch's bound, or raise the queue's")

    def _check_spill(self) -> None:
        if isinstance(self.spill, str):
            _check_path("Destination.spill", self.spill)
            if not self.spill.startswith("/"):
                raise InputError("invalid_value", f"Destination.spill must be true or an absolute path, got {self.spill!r}")
        else:
            _check_truth("Destination.spill", self.spill)
        _check_truth("Destination.write_ahead", self.write_ahead)
        low = 1 << 20
        object.__setattr__(self, "spill_bytes_max", check_whole("Destination.spill_bytes_max", self.spill_bytes_max, low, SIZE_MAX_BYTES))
        needs = "overflow" if self.overflow == "spill" else "write_ahead" if self.write_ahead else ""
        if needs and not self.spill:
            raise InputError("invalid_value", f"Destination.{needs} needs a disk to spill to", "add spill: true, or a folder")

    def _check_file(self) -> None:
        """Refuse what would have no effect on a file of this type."""
        check_choice("Destination.sync", self.sync, SYNCS)
        if self.type not in GROWING and not self.spill and self.sync != "interval":
            what = f"Destination.sync does not belong to {self.type} without a spill: the file is synced once, when it is whole"
            raise InputError("invalid_value", what, f"leave it out, or choose {' or '.join(GROWING)}")
        if self.rotate_bytes is not None:
            object.__setattr__(self, "rotate_bytes", check_whole("Destination.rotate_bytes", self.rotate_bytes, 1, SIZE_MAX_BYTES))
            if self.type not in GROWING:
                what = f"Destination.rotate_bytes does not belong to {self.type}, which is one file that appears whole"
                raise InputError("invalid_value", what, f"leave it out, or choose {' or '.join(GROWING)}")
        _keep_record(self, "format", Format)
        plain = Format()
        for name in (one for one in Format.__dataclass_fields__ if one not in FORMAT_OF[self.type]):
            if getattr(self.format, name) != getattr(plain, name):
                known = f"{self.type} has {', '.join(FORMAT_OF[self.type])}" if FORMAT_OF[self.type] else f"{self.type} has no format"
                raise InputError("invalid_value", f"Destination.format.{name} does not belong to {self.type}", known)


@dataclass(frozen=True, slots=True)
class Exporters:
    """Where metrics go beside the run directory.

    Without a route every destination gets all rows, or those named in `default` do. With routes, rows that none matches go to
    `default`. `drain_s` is how long destinations have, when the run ends, to take what still waits.
    """

    prometheus: Prometheus | None = None
    destinations: tuple[Destination, ...] = ()
    routes: tuple[Route, ...] = ()
    default: tuple[str, ...] = ()
    drain_s: float = 5.0

    def __post_init__(self) -> None:
        if self.prometheus is not None and not isinstance(self.prometheus, Prometheus):
            raise InputError("invalid_value", f"Exporters.prometheus must be Prometheus, got {self.prometheus!r}")
        object.__setattr__(self, "destinations", _records("Exporters.destinations", self.destinations, Destination, DESTINATIONS_MAX))
        object.__setattr__(self, "routes", _records("Exporters.routes", self.routes, Route, RULES_MAX))
        object.__setattr__(self, "default", _texts("Exporters.default", self.default))
        object.__setattr__(self, "drain_s", float(check_number("Exporters.drain_s", self.drain_s, 0.0, DRAIN_S_MAX)))
        _check_alone("destinations", "name", [one.name for one in self.destinations])
        _check_alone("destinations", "path", [one.path for one in self.destinations])
        self._check_names("routes", {name for route in self.routes for name in route.to})
        self._check_names("default", set(self.default))

    def _check_names(self, where: str, names: set[str]) -> None:
        known = [one.name for one in self.destinations]
        for name in sorted(names - set(known)):
            there = f"there are: {', '.join(known) or 'none'}"
            raise InputError("invalid_value", f"Exporters.{where} names {name!r}, which is no destination", there)


def _check_path(label: str, path: object) -> None:
    text = check_text(label, path, _PATH_MAX)
    if not text.strip() or "\n" in text or text.endswith("/") or ".." in PurePosixPath(text).parts:
        raise InputError("invalid_value", f"{label} must be a path without `..`, got {path!r}", "such as metrics.csv or /data/{run}.csv")


def _check_truth(label: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError("invalid_value", f"{label} must be true or false, got {value!r}")


def _check_alone(where: str, what: str, values: list[str]) -> None:
    twice = next((value for at, value in enumerate(values) if value in values[:at]), None)
    if twice is not None:
        raise InputError("invalid_value", f"Exporters.{where}: two have the {what} {twice!r}", f"give each a {what} of its own")


def _keep_record(owner: Any, name: str, cls: type) -> None:
    if not isinstance(getattr(owner, name), cls):
        raise InputError("invalid_value", f"{type(owner).__name__}.{name} must be {cls.__name__}, got {getattr(owner, name)!r}")


def _records(label: str, value: object, cls: type, most: int) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > most or not all(isinstance(one, cls) for one in value):
        raise InputError("invalid_value", f"{label} must be a list of at most {most} {cls.__name__}, got {value!r}")
    return tuple(value)


def _texts(label: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > RULES_MAX:
        raise InputError("invalid_value", f"{label} must be a list of at most {RULES_MAX} names, got {value!r}")
    for one in value:
        if not check_text(label, one):
            raise InputError("invalid_value", f"{label} has an empty name")
    return tuple(value)
