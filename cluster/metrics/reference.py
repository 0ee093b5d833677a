"""The page docs/reference/metrics.md, made from the catalogue. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from actors.metrics.labels import CLOSED, NAMES
from actors.metrics.registry import CATALOGUE, CONTEXT, Kind, Metric, Verbosity

from .buckets import BY_UNIT, Buckets

OF_NODES: Final = ("agent.", "dose.", "host.", "operation.", "safety.")
OF_EACH_RUN: Final = frozenset(name for name in CATALOGUE if name.startswith(OF_NODES))

_HEAD: Final = """# Metrics

Every metric there is; a name that is not here cannot be recorded. `stress-cluster describe NAME` tells the same of one. In the files
a metric is a row for each series and window ([columns](files.md#metrics)); `stress-cluster query` puts windows together.

| | meaning |
|---|---|
| kind | `counter`: increases add up; `gauge`: states, the last one counts; `histogram`: distributions merge |
| family | name at the Prometheus endpoint, where each has the labels {context} beside its own; exported rows have these as columns |
| recorded | from which level on: `minimal`, `normal` (the default), `verbose`; `always` is under every level, filter and sampling |

At its level a run has of its nodes all that begins with {prefixes}, and of its loads what each
[simulator](simulators.md) lists; others are there where what they tell of happens, or was asked for.

""".format(prefixes=", ".join(f"`{one}`" for one in OF_NODES), context=", ".join(f"`{one}`" for one in CONTEXT))
_COLUMNS: Final = "| metric | kind | unit | family | labels | recorded | what it is |\n|---|---|---|---|---|---|---|\n"
_OWN: Final = """
## Of the Prometheus endpoint itself

These are on its page alone, not in the files.

"""
_LABELS: Final = """
## Values of labels

A value is one of a closed set of words, or a name that somebody gave; it is never made from an object or a message. Label sets beyond 32 of
a metric in one process share one that reads `__overflow__`.

| metric | label | values |
|---|---|---|
"""
_BUCKETS: Final = """
## Buckets

Upper bounds of the classic buckets that Prometheus gets of a histogram, `+Inf` beside them; the setting `prometheus.buckets` gives others.
Quantiles of `query` and of the files come from 128 buckets an octave and do not depend on these.

| histogram | unit | bounds |
|---|---|---|
"""


def page(own: Iterable[Metric] = (), catalogue: Mapping[str, Metric] = CATALOGUE) -> str:
    """Return the page; `own` are metrics that the endpoint has of itself."""
    table = "".join(map(_row, catalogue.values()))
    others = "".join(map(_row, own))
    bounds = "".join(_bounds_row(metric) for metric in catalogue.values() if metric.kind is Kind.HISTOGRAM)
    values = "".join(_label_row(metric.name, label) for metric in catalogue.values() for label in metric.labels)
    return _HEAD + _COLUMNS + table + _OWN + _COLUMNS + others + _LABELS + values + _BUCKETS + bounds


def _row(metric: Metric) -> str:
    units = (metric.unit, *metric.other_units)
    families = ", ".join(f"`{metric.family(unit)}`" for unit in units)
    shown = (f"`{metric.name}`", metric.kind, " or ".join(filter(None, units)), families, ", ".join(f"`{name}`" for name in metric.labels))
    return f"| {' | '.join([*shown, _recorded(metric), metric.help])} |\n"


def _recorded(metric: Metric) -> str:
    return "always" if metric.vital else next(one.value for one in Verbosity if one.records(metric))


def _label_row(metric: str, label: str) -> str:
    words = CLOSED.get(metric, {}).get(label)
    return f"| `{metric}` | `{label}` | {', '.join(f'`{word}`' for word in words) if words else NAMES[label]} |\n"


def _bounds_row(metric: Metric) -> str:
    bounds = Buckets().bounds(metric.name, metric.unit)
    powers = not metric.buckets and metric.unit in BY_UNIT
    told = f"powers of two from {bounds[0]:g} to {bounds[-1]:g}" if powers else ", ".join(f"{bound:g}" for bound in bounds)
    return f"| `{metric.name}` | {metric.unit} | {told} |\n"
