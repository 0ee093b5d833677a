"""From what every series stands at to the page that Prometheus reads; fast, because what does not change is made once.

A page's layout is its headers and, as one Arrow column, what stands before each number. It is kept as long as the series are the same.
Then a scrape is: collect the numbers into one array, turn it into text (`numbers`), join the columns. The joined column's
buffer is the page. Not thread-safe.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.metrics.registry import CATALOGUE, CONTEXT, Kind, Metric

from ..metrics.buckets import Buckets
from ..metrics.live import Sample, SeriesKey
from .exposition import END, Family, Form, exemplar_text
from .numbers import Floats, texts

_NAN: Final = float("nan")
_NEWLINE: Final = pa.scalar("\n")
_NOTHING: Final = pa.scalar("")
_key_of: Final[Callable[[Sample], SeriesKey]] = operator.attrgetter("key")
_value_of: Final[Callable[[Sample], float]] = operator.attrgetter("value")

Rows = npt.NDArray[np.intp]


class Rendered(NamedTuple):
    """A page, its number of lines with a number, and how many series OpenMetrics does not allow and that are therefore not in it."""

    body: bytes
    lines: int
    malformed: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A family's place: its samples by their index, its first row, and the rows that each of them has."""

    family: Family
    indices: tuple[int, ...]
    start: int
    height: int
    header: str

    @property
    def end(self) -> int:
        return self.start + self.height * len(self.indices)

    def rows(self, line: int) -> Rows:
        """Return the rows of this line of each sample."""
        return np.arange(self.start + line, self.end, self.height)


@dataclass(frozen=True, slots=True)
class _Layout:
    keys: list[SeriesKey]
    has_created: bool
    blocks: tuple[_Block, ...]
    starts: pa.Array
    scalar_rows: Rows  # rows of counters and gauges, and the samples that they show
    scalar_samples: Rows


class Page:
    """Renders samples of one run in one form. Metrics that the catalogue does not know are left out."""

    def __init__(
        self, run: str, form: Form, buckets: Buckets | None = None, catalogue: Mapping[str, Metric] = CATALOGUE, *, scenario: str = ""
    ) -> None:
        self._run, self._scenario = run, scenario
        self._form, self._buckets, self._catalogue = form, buckets or Buckets(), catalogue
        self._layout = _Layout([], False, (), pa.array([], pa.string()), np.empty(0, np.intp), np.empty(0, np.intp))
        self._starts: dict[SeriesKey, list[str]] = {}
        self._heights: dict[tuple[str, str], int] = {}

    def render(self, samples: Sequence[Sample]) -> Rendered:
        """Return the page of these samples. A series may be among them once."""
        layout = self._fitting(samples)
        values = self._values(layout, samples)
        malformed, keep = self._allowed(layout, values) if self._form is Form.OPENMETRICS else (0, None)
        ends = self._exemplars(layout, samples) if self._form is Form.OPENMETRICS else None
        body = _assembled(layout, values, ends, keep)
        return Rendered(body + END if self._form is Form.OPENMETRICS else body, values.size, malformed)

    # how long it is

    def fitting(self, samples: Sequence[Sample], most: int) -> tuple[Sequence[Sample], int]:
        """Return the first samples that have no more than this many lines together, and how many these have.

        A line is what Prometheus stores as a series: a histogram has one for each bucket, and `_count` and `_sum`.
        """
        lines = self.lines(samples)
        if lines <= most:
            return samples, lines
        ends = list(itertools.accumulate(map(self._height, samples)))
        at = bisect.bisect_right(ends, most)
        return samples[:at], ends[at - 1] if at else 0

    def lines(self, samples: Sequence[Sample]) -> int:
        """Return how many lines with a number these have in this form; those that OpenMetrics does not allow count as well."""
        histogram, counter = Kind.HISTOGRAM, Kind.COUNTER  # a member costs more to look up than the rest of a turn
        tall = [one for one in samples if one.kind is histogram]
        lines = len(samples) - len(tall) + sum(map(self._height, tall))
        if self._form is Form.OPENMETRICS:
            lines += sum([one.created_s is not None for one in samples if one.kind is counter])
        return lines

    def _height(self, one: Sample) -> int:
        kind = one.key.metric, one.key.unit
        if kind not in self._heights:
            metric = self._catalogue.get(one.key.metric)
            self._heights[kind] = family_of(metric, one.key.unit, self._buckets).height() if metric else 0
        has_created = self._form is Form.OPENMETRICS and one.created_s is not None and one.kind is not Kind.GAUGE
        return self._heights[kind] + has_created

    # the layout

    def _fitting(self, samples: Sequence[Sample]) -> _Layout:
        """Return the layout of these samples: the last one, if it fits. Keys that are the same objects cost next to nothing here."""
        keys = list(map(_key_of, samples))
        has_created = self._form is Form.OPENMETRICS and any(one.created_s is not None for one in samples)
        if has_created != self._layout.has_created:
            self._starts.clear()
        elif keys == self._layout.keys:
            return self._layout
        self._layout = self._laid_out(keys, has_created)
        return self._layout

    def _laid_out(self, keys: list[SeriesKey], has_created: bool) -> _Layout:
        groups: dict[tuple[str, str], list[int]] = {}
        for at, key in enumerate(keys):
            if key.metric in self._catalogue:
                groups.setdefault((key.metric, key.unit), []).append(at)
        blocks: list[_Block] = []
        starts: dict[SeriesKey, list[str]] = {}
        for (name, unit), indices in sorted(groups.items()):
            metric = self._catalogue[name]
            family = family_of(metric, unit, self._buckets)
            for key in (keys[at] for at in indices):
                starts[key] = self._starts.get(key) or family.starts(self._labels(metric, key), created=has_created)
            start = blocks[-1].end if blocks else 0
            blocks.append(_Block(family, tuple(indices), start, family.height(created=has_created), family.header(self._form)))
        self._starts = starts
        scalars = [block for block in blocks if block.family.kind is not Kind.HISTOGRAM]
        return _Layout(
            keys,
            has_created,
            tuple(blocks),
            pa.array(list(itertools.chain.from_iterable(starts.values())), pa.string()),
            np.concatenate([np.empty(0, np.intp), *(block.rows(0) for block in scalars)]),
            np.fromiter(itertools.chain.from_iterable(block.indices for block in scalars), np.intp),
        )

    def _labels(self, metric: Metric, key: SeriesKey) -> list[str]:
        declared = dict(key.labels)
        return [self._run, self._scenario, key.node, key.worker, key.phase, *(declared.get(label, "") for label in metric.labels)]

    # the numbers

    def _values(self, layout: _Layout, samples: Sequence[Sample]) -> Floats:
        values = np.empty(len(layout.starts))
        scalars = np.fromiter(map(_value_of, samples), np.float64, len(samples))
        values[layout.scalar_rows] = scalars[layout.scalar_samples]
        for block in layout.blocks:
            if block.family.kind is Kind.HISTOGRAM:
                columns = _histograms(block.family, [samples[at] for at in block.indices])
                values[block.start : block.end].reshape(-1, block.height)[:, : columns.shape[1]] = columns
            if layout.has_created and block.family.kind is not Kind.GAUGE:
                created = (samples[at].created_s for at in block.indices)
                values[block.rows(block.height - 1)] = [_NAN if one is None else one for one in created]
        return values

    def _allowed(self, layout: _Layout, values: Floats) -> tuple[int, npt.NDArray[np.bool_] | None]:
        """Return how many series break OpenMetrics, where totals and sums are never negative or NaN, and which rows stay; None is all.

        Such a counter goes; such a histogram keeps its buckets. A time of creation that is not known goes too.
        """
        keep = np.ones(values.size, np.bool_)
        malformed = 0
        for block in layout.blocks:
            kind, bounds = block.family.kind, len(block.family.bounds)
            if kind is Kind.GAUGE:
                continue
            if layout.has_created:
                created = block.rows(block.height - 1)
                keep[created[np.isnan(values[created])]] = False
            summed = [0] if kind is Kind.COUNTER else [bounds + 2, bounds + 1] if block.family.has_sum else []
            bad = ~(values[block.rows(summed[0])] >= 0) if summed else np.empty(0, np.bool_)
            malformed += int(bad.sum())
            gone = [*summed, block.height - 1] if kind is Kind.COUNTER and layout.has_created else summed
            for line in gone:
                keep[block.rows(line)[bad]] = False
        return malformed, None if keep.all() else keep

    def _exemplars(self, layout: _Layout, samples: Sequence[Sample]) -> pa.Array | None:
        """Return the end of each line, if there are exemplars: in the bucket of their value, or with the counter."""
        if all(one.exemplar is None for one in samples):
            return None
        ends = ["\n"] * len(layout.starts)
        for block in layout.blocks:
            if block.family.kind is Kind.GAUGE:
                continue
            bounds = np.array(block.family.bounds)
            for at, row in zip(block.indices, block.rows(0).tolist(), strict=True):
                exemplar = samples[at].exemplar
                if exemplar is not None:
                    line = int(np.searchsorted(bounds, exemplar.value)) if block.family.kind is Kind.HISTOGRAM else 0
                    ends[row + line] = f"{exemplar_text(exemplar, self._run)}\n"
        return pa.array(ends, pa.string())


def family_of(metric: Metric, unit: str, buckets: Buckets) -> Family:
    """Return the family that shows a metric in a unit."""
    name = metric.family(unit).removesuffix("_total") if metric.kind is Kind.COUNTER else metric.family(unit)
    bounds = buckets.bounds(metric.name, unit) if metric.kind is Kind.HISTOGRAM else ()
    return Family(name, metric.kind, metric.help, unit, (*CONTEXT, *metric.labels), bounds)


def _histograms(family: Family, samples: Sequence[Sample]) -> Floats:
    """Return a row for each: cumulative buckets, then all, and count and sum where the family has them."""
    width = len(family.bounds)
    columns = np.empty((len(samples), width + 1 + 2 * family.has_sum))
    columns[:, :width] = [one.buckets or (0,) * width for one in samples]
    columns[:, width] = [one.count for one in samples]
    if family.has_sum:
        columns[:, width + 1] = columns[:, width]
        columns[:, width + 2] = [one.sum for one in samples]
    return columns


def _assembled(layout: _Layout, values: Floats, ends: pa.Array | None, keep: npt.NDArray[np.bool_] | None) -> bytes:
    """Join the columns and put the headers between. Rows that are not in `keep` are left out."""
    digits, zeros = texts(values)
    starts, last = layout.starts, _NEWLINE if ends is None else ends
    if keep is not None:
        mask = pa.array(keep)
        starts, digits, zeros = starts.filter(mask), digits.filter(mask), zeros.filter(mask)
        last = last if ends is None else ends.filter(mask)
    lines = pc.binary_join_element_wise(starts, digits, zeros, last, _NOTHING)
    if not len(lines):
        return "".join(block.header for block in layout.blocks).encode()
    _, offsets, text = lines.buffers()
    at = np.frombuffer(offsets, np.int32, len(lines) + 1)
    kept = np.arange(values.size + 1) if keep is None else np.concatenate([[0], np.cumsum(keep)])
    view = memoryview(text)
    parts: list[bytes | memoryview] = []
    for block in layout.blocks:
        parts += [block.header.encode(), view[at[kept[block.start]] : at[kept[block.end]]]]
    return b"".join(parts)
