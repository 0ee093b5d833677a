"""Windows of several lengths out of shorter ones: each row lies in exactly one window of each length, or is counted late.

A row belongs to the window in which it begins; windows begin at whole multiples of their length since 1970. A longer window holds
what one window over all its rows would have held, to the bit and in whatever order they came:

    counter     count, sum: added up; last: of the newest row
    gauge       count, sum: added up; min, max; last: of the newest row; digest: the means of its rows (`means`), for quantiles
    histogram   count, sum: added up; min, max; digest: merged, and the quantiles read from it

Sums are rounded once. Rolling up what was rolled up before gives the same as rolling up all at once, but for the rounding of sums. The
watermark of a node is the newest begin of its rows less the allowed lateness, by its own clock: a node whose clock is ahead makes no other
one late. A window closes when its node's watermark reaches its end. Pure but for the open windows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.errors import InputError
from actors.metrics import histogram
from actors.metrics.registry import Kind

from .sums import total_of
from .windows import METRICS, QUANTILES

MICROSECONDS: Final = 1_000_000
_NAMES: Final = ("metric", "kind", "unit", "node", "worker", "phase", "labels", "count", "sum", "min", "max", "last", "digest")
_HEAD: Final = struct.Struct("<2sBxI")  # magic, version, means
_MAGIC: Final = b"SG"
_VERSION: Final = 1

_DIGESTS_MAX: Final = 32  # of histograms, that wait to be merged

Means = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


class Series(NamedTuple):
    """One window of one series."""

    start_us: int
    metric: str
    kind: str
    unit: str
    node: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Group:
    """The rows of one window of one series so far. One that does not keep means gives a gauge no digest, and has a bounded size."""

    keeps_means: bool = True
    rows: int = 0
    count: int = 0
    sums: list[float] = field(default_factory=list)
    min: float | None = None
    max: float | None = None
    last: tuple[int, float] | None = None  # of the newest row; of rows that begin at once the highest
    digests: list[bytes] = field(default_factory=list)
    means: list[tuple[float, int]] = field(default_factory=list)
    undigested: int = 0

    def add(self, time_us: int, kind: str, figures: Sequence[Any]) -> None:
        """Take one row's count, sum, min, max, last and digest."""
        count, total, low, high, last, digest = figures
        self.rows += 1
        self.count += count
        if total is not None:
            self.sums.append(total)
        self.min, self.max = _pick(min, self.min, low), _pick(max, self.max, high)
        if last is not None:
            self.last = (time_us, last) if self.last is None else max(self.last, (time_us, last))
        if kind == Kind.GAUGE:
            if self.keeps_means and digest is not None:
                self.means.extend(_pairs(digest))
            elif self.keeps_means and count:
                self.means.append((total / count, count))
        elif digest is None:
            self.undigested += bool(count)
        else:
            self.digests.append(digest)
            if len(self.digests) >= _DIGESTS_MAX:
                self.digests = [histogram.merge(map(histogram.decode, self.digests)).encode()]

    def row(self, key: Series, length_us: int) -> dict[str, Any]:
        """Return the window's row with the contract's columns."""
        made: dict[str, Any] = {**key._asdict(), "time": key.start_us, "window_s": length_us / MICROSECONDS, "count": self.count}
        del made["start_us"]
        made |= {"sum": added(self.sums), "min": self.min, "max": self.max, "last": self.last and self.last[1]}
        if key.kind == Kind.GAUGE:
            made["digest"] = _packed(self.means)
        elif key.kind == Kind.HISTOGRAM and self.digests and not self.undigested:
            whole = replace(histogram.merge(map(histogram.decode, self.digests)), sum=made["sum"])
            made["digest"] = whole.encode()
            made |= zip(QUANTILES, whole.quantiles(tuple(QUANTILES.values())), strict=True)
        return made


def _pick(of: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    """Return the picked one of two values; what is absent or NaN gives way to the other."""
    if one is None or (other is not None and math.isnan(one)):
        return other
    return one if other is None or math.isnan(other) else of(one, other)


def added(values: Sequence[float]) -> float | None:
    """Return the sum, the same in any order; None of nothing."""
    return total_of(values) if values else None


def means(digest: bytes) -> Means:
    """Return the means of a gauge's rolled up rows, ascending, and how many values each is of. Raises `ValueError` for another digest."""
    head = _HEAD.unpack_from(digest) if len(digest) >= _HEAD.size else (b"", 0, 0)
    if head[:2] != (_MAGIC, _VERSION) or len(digest) != _HEAD.size + 16 * head[2]:
        raise ValueError(f"not the means of a gauge's windows of version {_VERSION}: starts with {digest[:4]!r}")
    values = np.frombuffer(digest, "<f8", head[2], _HEAD.size).astype(np.float64)
    return values, np.frombuffer(digest, "<i8", head[2], _HEAD.size + 8 * head[2]).astype(np.int64)


def _pairs(digest: bytes) -> Iterable[tuple[float, int]]:
    values, counts = means(digest)
    return zip(values.tolist(), counts.tolist(), strict=True)


def _packed(pairs: list[tuple[float, int]]) -> bytes | None:
    if not pairs:
        return None
    values, counts = zip(*sorted(pairs), strict=True)
    return _HEAD.pack(_MAGIC, _VERSION, len(pairs)) + np.array(values, "<f8").tobytes() + np.array(counts, "<i8").tobytes()


class Windows:
    """The windows of one length that are being made."""

    def __init__(self, length_s: float) -> None:
        self.length_us = round(length_s * MICROSECONDS)
        self._groups: dict[Series, Group] = {}

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Take rows with the contract's columns."""
        for time_us, names, figures in _each(rows):
            self.put(time_us, names, figures)

    def put(self, time_us: int, names: Sequence[Any], figures: Sequence[Any]) -> None:
        """Take one row."""
        key = Series(time_us // self.length_us * self.length_us, *names)
        self._groups.setdefault(key, Group()).add(time_us, key.kind, figures)

    def pop(self, is_done: Callable[[Series], bool] = lambda _: True) -> pa.Table:
        """Return the windows that are done, by time and series, and forget them."""
        done = sorted(key for key in self._groups if is_done(key))
        return table_of([self._groups.pop(key).row(key, self.length_us) for key in done])

    @property
    def rows(self) -> int:
        """Rows that are in windows here."""
        return sum(group.rows for group in self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table with the contract's columns."""
    return pa.table([pa.array([row.get(column.name) for row in rows], column.type) for column in METRICS], schema=METRICS)


def _each(rows: pa.RecordBatch | pa.Table) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield begin, names and figures of each row."""
    times = rows.column("time").cast(pa.int64()).to_pylist()
    for time_us, *found in zip(times, *(rows.column(name).to_pylist() for name in _NAMES), strict=True):
        yield time_us, (*found[:6], tuple(sorted(found[6]))), tuple(found[7:])


class Rollup:
    """Windows of several lengths, given out as they close. Not thread-safe.

    Raises `InputError` for a length that is not above 0 or is there twice, and for a lateness below 0.
    """

    def __init__(self, lengths_s: Sequence[float], *, lateness_s: float = 0.0) -> None:
        if not lengths_s or min(lengths_s) <= 0 or len(set(lengths_s)) < len(lengths_s) or lateness_s < 0:
            words = f"windows of {list(lengths_s)} s with a lateness of {lateness_s} s"
            raise InputError("invalid_value", words, "give lengths above 0 s, each once, and a lateness of at least 0 s")
        self._open = {length_s: Windows(length_s) for length_s in lengths_s}
        self._lateness_us = round(lateness_s * MICROSECONDS)
        self._newest_us: dict[str, int] = {}
        self.late = dict.fromkeys(lengths_s, 0)  # rows by length that came after their window had closed

    def take(self, rows: pa.RecordBatch | pa.Table) -> dict[float, pa.Table]:
        """Take rows; return by length the windows that closed before these rows or by them."""
        for time_us, names, figures in _each(rows):
            node = names[3]
            closed_us = self._newest_us.get(node, time_us) - self._lateness_us
            for length_s, windows in self._open.items():
                if time_us // windows.length_us * windows.length_us + windows.length_us <= closed_us:
                    self.late[length_s] += 1
                else:
                    windows.put(time_us, names, figures)
            self._newest_us[node] = max(self._newest_us.get(node, time_us), time_us)
        return {length_s: windows.pop(self._is_closed(windows.length_us)) for length_s, windows in self._open.items()}

    def drain(self) -> dict[float, pa.Table]:
        """Close every window and return them by length."""
        return {length_s: windows.pop() for length_s, windows in self._open.items()}

    @property
    def held(self) -> dict[float, int]:
        """Rows in open windows, by length."""
        return {length_s: windows.rows for length_s, windows in self._open.items()}

    def _is_closed(self, length_us: int) -> Callable[[Series], bool]:
        return lambda key: key.start_us + length_us <= self._newest_us[key.node] - self._lateness_us
