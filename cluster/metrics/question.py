"""A question to a run's metrics, from the words in which it is asked: the same at the command line, over HTTP and in a notebook. Pure."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from actors.errors import InputError
from actors.metrics.registry import CATALOGUE, find
from scenarios.units import parse_duration

from .query import STATS

Words = Mapping[str, Sequence[str]]  # what was said, by word; texts as they were typed

DIMENSIONS: Final = ("node", "worker", "phase")
REPEATABLE: Final = ("stat", *DIMENSIONS, "label", "by")
ONCE: Final = ("metric", "since", "until", "every", "accumulator", "of", "with", "lag")
PAIRED_STEP_S: Final = 1.0  # of a correlation that names none: the length of a window
_MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """A question. Nodes, workers, phases and values of labels are globs: of several one must fit, of labels every one.

    `since_us` and `until_us` are microseconds of UTC: windows that begin at or after the first and before the second. Time steps have
    `every_us` and are counted from `origin_us`, which is a full second; 0 is a step for each window. `other` is a metric to correlate
    with, its windows shifted by up to `lag_us` either way.
    """

    metrics: tuple[str, ...]
    stats: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    since_us: int | None = None
    until_us: int | None = None
    by: tuple[str, ...] = ()
    every_us: int = 0
    origin_us: int = 0
    accumulator: str = ""
    of: str = ""
    other: str = ""
    lag_us: int = 0


def parse(words: Words, begin_s: float = 0.0) -> Query:
    """Return the question that these words ask of a run that began at `begin_s` (UTC).

    Raises `InputError` for a word that is not known, one that is said twice, and a name or value that is none, with the nearest that is.
    """
    for word, texts in words.items():
        if word not in (*REPEATABLE, *ONCE):
            raise InputError("unknown_key", f"a query has no {word!r}", _nearest(word, (*ONCE, *REPEATABLE)))
        if len(texts) > 1 and word in ONCE:
            raise InputError("invalid_value", f"{word} can be said once, got {', '.join(map(repr, texts))}")
    metrics = metrics_of(_once(words, "metric"))
    since, until = (_moment(word, _once(words, word), begin_s) for word in ("since", "until"))
    if since is not None and until is not None and since >= until:
        raise InputError("invalid_value", "a query's time ends before it begins: until must be later than since")
    every, by = _step_of(words), dict.fromkeys(words.get("by", ()))
    query = Query(
        metrics,
        tuple(dict.fromkeys(_known("statistic", stat, STATS) for stat in words.get("stat", ()))),
        nodes=tuple(words.get("node", ())),
        workers=tuple(words.get("worker", ())),
        phases=tuple(words.get("phase", ())),
        labels=tuple(sorted(_label(text, metrics) for text in words.get("label", ()))),
        since_us=since,
        until_us=until,
        by=tuple(_dimension(name, metrics) for name in (by | {"time": None} if every else by)),
        every_us=every,
        origin_us=int((begin_s if since is None else since / _MICRO) // 1) * _MICRO,
        accumulator=_once(words, "accumulator"),
        of=_once(words, "of"),
    )
    return _paired(query, words) if words.get("with") or words.get("lag") else _alone(query)


def metrics_of(text: str) -> tuple[str, ...]:
    """Return the metrics of a name or a glob such as `probe.*`. Raises `InputError` with the nearest name when there is none."""
    if not text:
        raise InputError("invalid_value", "a query needs a metric", "name one of `list metrics`, or a glob such as 'probe.*'")
    if not re.search(r"[*?\[]", text):
        return (find(text).name,)
    found = tuple(fnmatch.filter(CATALOGUE, text))
    if not found:
        raise InputError("unknown_name", f"no metric fits {text!r}", _nearest(text, CATALOGUE))
    return found


def _alone(query: Query) -> Query:
    if query.accumulator and query.stats:
        raise InputError("invalid_value", "a query asks for statistics or for an accumulator, not for both", "ask twice")
    if query.of and not query.accumulator:
        raise InputError("invalid_value", f"of={query.of!r} says which label an accumulator takes, and there is no accumulator")
    return query


def _paired(query: Query, words: Words) -> Query:
    """Return the question as one for a correlation."""
    other = find(_once(words, "with")).name if words.get("with") else ""
    if not other:
        raise InputError("invalid_value", "a lag is between two metrics", "name the other one: --with METRIC")
    if len(query.metrics) > 1:
        raise InputError("invalid_value", f"a correlation is of two metrics, got {len(query.metrics)} for the first", "name one")
    if other == query.metrics[0]:
        raise InputError("invalid_value", f"{other} cannot be correlated with itself", "name another metric")
    if query.accumulator or query.of or len(query.stats) > 2 or set(query.by) - {"node", "time"}:
        hint = "give one --stat for both or one for each, and nothing but --by node"
        raise InputError("invalid_value", "a correlation compares one statistic of each metric, by node at most", hint)
    every = query.every_us or round(PAIRED_STEP_S * _MICRO)
    lag = _duration("lag", _once(words, "lag")) if words.get("lag") else 0
    if lag % every:
        hint = f"round it, or choose another --every: one step is {every / _MICRO:g} s"
        raise InputError("invalid_value", f"a lag of {lag / _MICRO:g} s is no whole number of steps", hint)
    by = (*(name for name in query.by if name != "time"), "time")
    return replace(query, by=by, every_us=every, other=other, lag_us=lag)


def _once(words: Words, word: str) -> str:
    return next(iter(words.get(word, ())), "")


def _step_of(words: Words) -> int:
    if not words.get("every"):
        return 0
    step = _duration("every", _once(words, "every"))
    if not step:
        raise InputError("invalid_value", "every must be longer than nothing", "such as 5s or 1m")
    return step


def _duration(word: str, text: str) -> int:
    """Return microseconds of a duration with its unit."""
    try:
        return round(parse_duration(text) * _MICRO)
    except InputError as error:
        raise InputError("invalid_value", f"{word}: {error.message}", error.hint) from None


def _moment(word: str, text: str, begin_s: float) -> int | None:
    """Return microseconds of UTC of an offset from the run's begin, or of a time; a time without a zone is UTC."""
    if not text:
        return None
    if re.fullmatch(r"[0-9.]+[a-z].*", text):
        return round(begin_s * _MICRO) + _duration(word, text)
    try:
        found = datetime.fromisoformat(text)
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * _MICRO)
    except (ValueError, OverflowError):
        hint = "give an offset from the run's start such as 10s, or a time such as 2026-01-01T12:00:30Z"
        raise InputError("invalid_value", f"{word}: {text!r} is no time", hint) from None


def _label(text: str, metrics: Sequence[str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError("invalid_value", f"a label is NAME=VALUE, got {text!r}")
    return _declared(name, metrics), value


def _declared(name: str, metrics: Sequence[str]) -> str:
    """Return a label that one of the metrics declares."""
    known = list(dict.fromkeys(label for metric in metrics for label in CATALOGUE[metric].labels))
    if name in known:
        return name
    of = metrics[0] if len(metrics) == 1 else "these metrics"
    if name in DIMENSIONS:
        raise InputError("unknown_key", f"{name} is no label of {of}", f"choose it with --{name} instead")
    raise InputError("unknown_key", f"no label {name!r} of {of}", _nearest(name, known) if known else f"{of} has no labels")


def _dimension(name: str, metrics: Sequence[str]) -> str:
    if name in (*DIMENSIONS, "time"):
        return name
    try:
        return _declared(name, metrics)
    except InputError:
        known = [*DIMENSIONS, "time", *dict.fromkeys(label for metric in metrics for label in CATALOGUE[metric].labels)]
        raise InputError("unknown_key", f"an answer cannot be split by {name!r}", _nearest(name, known)) from None


def _known(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise InputError("unknown_name", f"unknown {what} {name!r}", _nearest(name, known))
    return name


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
