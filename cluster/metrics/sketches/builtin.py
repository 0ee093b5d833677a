"""The accumulators that come with the product, registered as any other would be.

Those of numbers leave NaN out. Infinities count as samples and are extremes; they stay out of sums, means and variances.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import numpy as np

from actors.metrics import histogram
from actors.metrics.histogram import EDGES, ERROR, Floats, Histogram

from . import distinct, moments, tdigest, top
from .accumulator import AccumulatorRecord, Answer, Batch, Bound, Takes, UnitRule, Value
from .moments import Moments
from .tdigest import TDigest

S = TypeVar("S")

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
PENDING: Final = 1 << 14  # samples that a t-digest lets wait, unsorted, before they are folded in
TOP: Final = 10
_SIGMAS: Final = 3.0  # a distinct count is within three standard errors 997 times of 1000


@dataclass(frozen=True, slots=True)
class Fold(Generic[S]):
    """An accumulator as functions of an immutable state."""

    empty: Callable[[], S]
    of: Callable[[Batch], S]
    merge: Callable[[S, S], S]
    answers: Callable[[S], Mapping[str, Answer]]
    encode: Callable[[S], bytes]
    decode: Callable[[bytes], S]


@dataclass(slots=True)
class Folded(Generic[S]):
    """An accumulator that folds batches into a state."""

    fold: Fold[S]
    state: S

    def add(self, batch: Batch) -> None:
        """Take a batch."""
        self.state = self.fold.merge(self.state, self.fold.of(batch))

    def merge(self, other: Folded[S]) -> None:
        """Take what another took."""
        self.state = self.fold.merge(self.state, other.state)

    def result(self) -> Mapping[str, Answer]:
        """Return the figures."""
        return self.fold.answers(self.state)

    def encode(self) -> bytes:
        """Return the state as bytes."""
        return self.fold.encode(self.state)


def record_of(
    name: str, summary: str, figures: Mapping[str, UnitRule], fold: Fold[S], *, takes: Takes = "numbers", exact: bool = True
) -> AccumulatorRecord:
    """Return the record of an accumulator that is given as functions of its state."""

    def make() -> Folded[S]:
        return Folded(fold, fold.empty())

    def decode(data: bytes) -> Folded[S]:
        return Folded(fold, fold.decode(data))

    return AccumulatorRecord(name, summary, takes, figures, make, decode, exact=exact)


# count, sum, extremes, mean and variance: all of one state


def _moments(answers: Callable[[Moments], Mapping[str, Answer]]) -> Fold[Moments]:
    return Fold(Moments, lambda batch: Moments.of(batch.numbers, batch.weights), moments.merge, answers, Moments.encode, moments.decode)


def known(value: float) -> float | None:
    """Return the value, or None for NaN: a figure that nothing gives is absent, never a number."""
    return None if math.isnan(value) else value


def _count(state: Moments) -> Mapping[str, Answer]:
    return {"count": state.count, "nan": state.nan}


def _sum(state: Moments) -> Mapping[str, Answer]:
    return {"sum": known(state.sum) if state.finite else None}


def _min_max(state: Moments) -> Mapping[str, Answer]:
    return {"min": state.min, "max": state.max} if state.count else {"min": None, "max": None}


def _mean_variance(state: Moments) -> Mapping[str, Answer]:
    variance = known(state.variance)
    return {"mean": known(state.mean), "variance": variance, "standard_deviation": None if variance is None else math.sqrt(variance)}


# the newest value, and the increase per second

_LAST: Final = struct.Struct("<2sBBdd")
_RATE: Final = struct.Struct("<2sBBdddd")
_LastState = tuple[float, float] | None  # end of its batch in seconds of UTC, value
_RateState = tuple[float, float, float, float] | None  # sum in two parts, begin and end in seconds of UTC


def _last_of(batch: Batch) -> _LastState:
    held = batch.numbers[~np.isnan(batch.numbers) & (batch.weights > 0)]
    return (batch.end_s, float(held[-1])) if held.size else None


def _newer(one: _LastState, other: _LastState) -> _LastState:
    return max((found for found in (one, other) if found is not None), default=None)


def _last_encode(state: _LastState) -> bytes:
    return _LAST.pack(b"LA", 1, state is not None, *(state or (0.0, 0.0)))


def _last_decode(data: bytes) -> _LastState:
    is_there, *fields = _fields(_LAST, b"LA", data)
    return (fields[0], fields[1]) if is_there else None


def _rate_of(batch: Batch) -> _RateState:
    state = Moments.of(batch.numbers, batch.weights)
    return (state.high, state.rest, batch.start_s, batch.end_s) if batch.end_s > batch.start_s else None


def _rate_merge(one: _RateState, other: _RateState) -> _RateState:
    if one is None or other is None:
        return other if one is None else one
    high, rest = moments.two_sum(one[0], other[0])
    return high, one[1] + other[1] + rest, min(one[2], other[2]), max(one[3], other[3])


def _rate_encode(state: _RateState) -> bytes:
    return _RATE.pack(b"RA", 1, state is not None, *(state or (0.0, 0.0, 0.0, 0.0)))


def _rate_decode(data: bytes) -> _RateState:
    is_there, *fields = _fields(_RATE, b"RA", data)
    return (fields[0], fields[1], fields[2], fields[3]) if is_there else None


def _rate_answers(state: _RateState) -> Mapping[str, Answer]:
    return {"rate": None if state is None else known((state[0] + state[1]) / (state[3] - state[2]))}


def _fields(form: struct.Struct, magic: bytes, data: bytes) -> list[float]:
    if len(data) != form.size or data[:3] != magic + b"\1" or data[3] > 1:
        raise ValueError(f"expected {form.size} bytes that begin with {magic!r} and 1, got {len(data)}: {data[:4]!r}")
    return list(form.unpack(data)[2:])


# quantiles


def _histogram_answers(state: Histogram) -> Mapping[str, Answer]:
    found = state.quantiles(tuple(QUANTILES.values()))
    return {"count": state.count, **{name: _quantile(value, value_bound(value)) for name, value in zip(QUANTILES, found, strict=True)}}


def value_bound(value: float) -> Bound:
    """Return the bound of a histogram's quantile: 2^-8 within its range; next to zero and past 2^34 what the bucket spans."""
    size = abs(value)
    if size < EDGES[0]:
        return Bound("value_relative", 1.0)
    return Bound("value_relative", ERROR if size < EDGES[-1] else float(size / EDGES[-1]))


def _quantile(value: float, bound: Bound) -> Answer:
    return None if math.isnan(value) else (value, bound)


class TDigestAccumulator:
    """A t-digest that lets samples wait and folds them in when there are enough of them, or when it is asked: adding sorts nothing."""

    def __init__(self, digest: TDigest | None = None) -> None:
        self._digest = TDigest.of(()) if digest is None else digest
        self._waiting: list[tuple[Floats, histogram.Counts]] = []
        self._size = 0

    def add(self, batch: Batch) -> None:
        """Take a batch."""
        self._waiting.append((batch.numbers, batch.weights))
        self._size += batch.numbers.size
        if self._size >= PENDING or len(self._waiting) >= PENDING:
            self._fold()

    def merge(self, other: TDigestAccumulator) -> None:
        """Take what another took."""
        self._digest = tdigest.merge((self.digest(), other.digest()))

    def digest(self) -> TDigest:
        """Return the digest of all samples so far."""
        if self._waiting:
            self._fold()
        return self._digest

    def result(self) -> Mapping[str, Answer]:
        """Return the figures."""
        digest = self.digest()
        found = digest.quantiles(tuple(QUANTILES.values()))
        answers: dict[str, Answer] = {"count": digest.count}
        for (name, q), value in zip(QUANTILES.items(), found, strict=True):
            answers[name] = _quantile(value, Bound("rank", digest.rank_error(q)))
        return answers

    def encode(self) -> bytes:
        """Return the digest as bytes."""
        return self.digest().encode()

    def _fold(self) -> None:
        values, weights = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._size = [], 0
        self._digest = tdigest.merge((self._digest, TDigest.of(values, weights)))


# items


def _distinct_of(batch: Batch) -> distinct.Distinct:
    texts = batch.texts if batch.weights.all() else [text for text, weight in zip(batch.texts, batch.weights, strict=True) if weight]
    return distinct.Distinct.of(texts)


def _distinct_answers(state: distinct.Distinct) -> Mapping[str, Answer]:
    return {"distinct": (state.count, Bound("count_relative", _SIGMAS * state.error))}


def _top_of(batch: Batch) -> top.Top:
    counts: dict[str, int] = {}
    for text, weight in zip(batch.texts, batch.weights.tolist(), strict=True):
        counts[text] = counts.get(text, 0) + weight
    return top.Top.of(counts)


def _top_answers(state: top.Top) -> Mapping[str, Answer]:
    held: Value = tuple((one.item, one.at_least, one.at_most) for one in state.top(TOP))
    return {"count": state.count, "top": (held, Bound("count_absolute", float(state.error)))}


def _pair(merge: Callable[[tuple[S, S]], S]) -> Callable[[S, S], S]:
    return lambda one, other: merge((one, other))


_FIGURES: Final[dict[str, UnitRule]] = {"count": "none", **dict.fromkeys(QUANTILES, "same")}

_LAST_FOLD: Final[Fold[_LastState]] = Fold(
    lambda: None, _last_of, _newer, lambda state: {"last": None if state is None else state[1]}, _last_encode, _last_decode
)
_RATE_FOLD: Final[Fold[_RateState]] = Fold(lambda: None, _rate_of, _rate_merge, _rate_answers, _rate_encode, _rate_decode)
_HISTOGRAM_FOLD: Final = Fold(
    partial(Histogram.of, ()),
    lambda batch: Histogram.of(batch.numbers, batch.weights),
    _pair(histogram.merge),
    _histogram_answers,
    Histogram.encode,
    histogram.decode,
)
_DISTINCT_FOLD: Final = Fold(
    partial(distinct.Distinct.of, ()), _distinct_of, _pair(distinct.merge), _distinct_answers, distinct.Distinct.encode, distinct.decode
)
_TOP_FOLD: Final = Fold(top.Top, _top_of, _pair(top.merge), _top_answers, top.Top.encode, top.decode)

RECORDS: Final = (
    record_of("count", "Number of samples, and of NaNs, which are none.", {"count": "none", "nan": "none"}, _moments(_count)),
    record_of("sum", "Sum of the samples, with what its additions rounded off.", {"sum": "same"}, _moments(_sum)),
    record_of("min_max", "The smallest and the largest sample.", {"min": "same", "max": "same"}, _moments(_min_max)),
    record_of("last", "The last sample of the batch that ended last.", {"last": "same"}, _LAST_FOLD),
    record_of(
        "mean_variance",
        "Mean, population variance and its root, by formulae that do not cancel.",
        {"mean": "same", "variance": "squared", "standard_deviation": "same"},
        _moments(_mean_variance),
    ),
    record_of("rate", "Sum per second from the begin of the first batch to the end of the last.", {"rate": "per_second"}, _RATE_FOLD),
    record_of("histogram", "Quantiles within 0.4 % of the value; merging is exact.", _FIGURES, _HISTOGRAM_FOLD),
    AccumulatorRecord(
        "t_digest",
        "Quantiles of any range in 4 KB, best at the ends; merging is nearly exact.",
        "numbers",
        _FIGURES,
        TDigestAccumulator,
        lambda data: TDigestAccumulator(tdigest.decode(data)),
        exact=False,
    ),
    record_of("distinct", "Number of different texts, within 2 %.", {"distinct": "none"}, _DISTINCT_FOLD, takes="texts"),
    record_of(
        "top",
        "The ten most frequent texts of 256 counters, with bounds of their counts.",
        {"count": "none", "top": "none"},
        _TOP_FOLD,
        takes="texts",
        exact=False,
    ),
)
