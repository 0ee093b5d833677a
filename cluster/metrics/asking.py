"""From words to an answer: what the command line, the HTTP endpoint and notebooks have in common. What reads windows is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InputError
from actors.metrics.registry import CATALOGUE, Metric, find

from ..stored import scenario_name
from ..words import moment
from .answer import Answer, answer
from .query import Between
from .question import Query, Words, parse
from .related import Related, relate
from .sketches import AccumulatorRecord

Found = Answer | Related


@dataclass(frozen=True, slots=True)
class About:
    """Whose metrics they are, for whoever gets an answer: run, scenario, status, and its begin (ISO text and seconds of UTC)."""

    run: str
    scenario: str = ""
    status: str = ""
    start: str = ""

    @classmethod
    def of(cls, manifest: Mapping[str, Any], run: str, status: str) -> About:
        """Return what a manifest says."""
        return cls(str(manifest.get("run") or run), scenario_name(manifest), status, str(manifest.get("start") or ""))


def understand(words: Words, about: About, span: Between | None) -> Query:
    """Return the question. Offsets count from the run's start, or from its first window where the start is not known."""
    begin_s = moment(about.start)
    if begin_s is None:
        begin_s = span[0] if span else 0.0
    return parse(words, begin_s)


def ask(query: Query, table: pa.Table, span: Between | None, record: AccumulatorRecord | None = None) -> Found:
    """Return what these windows answer, with the columns `answer.READ` at least; `span` is the time (s of UTC) that all of the run cover.

    `record` is the accumulator that the question names. Raises `InputError` for what cannot be answered; see `answer` and `relate`.
    """
    if query.other:
        return relate(table, query, span)
    if record is not None and record.takes == "texts" and not query.of:
        declared = dict.fromkeys(label for metric in query.metrics for label in find(metric).labels)
        hint = f"say which with of: {', '.join(declared) or 'this metric has none'}"
        raise InputError("invalid_value", f"accumulator {record.name!r} takes the values of a label", hint)
    return answer(table, query, span, record)


def condition_of(query: Query) -> Any:
    """Return the filter (a `pyarrow.compute` expression) of the windows that a question may be about."""
    wanted = pc.field("metric").isin([*query.metrics, *filter(None, [query.other])])
    stamp = pa.timestamp("us", tz="UTC")
    if query.since_us is not None:
        wanted &= pc.field("time") >= pa.scalar(query.since_us, stamp)
    if query.until_us is not None:
        wanted &= pc.field("time") < pa.scalar(query.until_us, stamp)
    return wanted


def document(found: Found, about: About) -> dict[str, Any]:
    """Return the answer as the one JSON document that `query --json` and /api/v1/query give."""
    names = [*found.query.metrics, *filter(None, [found.query.other])]
    metrics = {name: _described(CATALOGUE[name]) for name in names}
    run = {"run": about.run, "scenario": about.scenario, "status": about.status, "start": about.start}
    return {**run, "metrics": metrics, **found.to_json()}


def _described(metric: Metric) -> dict[str, Any]:
    families = {unit: metric.family(unit) for unit in (metric.unit, *metric.other_units)}
    return {"kind": metric.kind, "help": metric.help, "labels": list(metric.labels), "level": metric.level, "families": families}
