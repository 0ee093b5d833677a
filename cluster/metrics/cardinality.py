"""How many series a stream may have: a cap in all, by metric and by label, and an end for series that nobody feeds. Pure.

What is past a cap goes into one series of its metric, whose labels all read `__overflow__`, so that no value is lost; each such value is
counted. Series that were known before keep their place. A series that got no value for the time to live is forgotten and makes
room; when it comes back it is a new one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from actors.clock import SECOND_NS
from actors.metrics.handle import OVERFLOW_LABEL

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, str, str, str, Labels]  # metric, unit, worker, phase, labels

EXEMPT: Final = "metrics."  # what tells of other metrics has few series, and must not fall to the cap that it tells of


@dataclass(frozen=True, slots=True)
class Caps:
    """The most series in all and of one metric, the most values of one label of a metric, and how long a series may be idle."""

    series: int = 10_000
    by_metric: int = 10_000
    by_label: int = 5_000
    idle_s: float = 3600.0


class Cardinality:
    """The series of one stream. Not thread-safe."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._idle_ns = round(caps.idle_s * SECOND_NS)
        self._seen: OrderedDict[Key, int] = OrderedDict()  # the longest idle first
        self._by_metric: Counter[str] = Counter()
        self._by_label: dict[tuple[str, str], Counter[str]] = {}
        self.rejected = 0
        self.pruned = 0

    def __len__(self) -> int:
        return len(self._seen)

    def admit(self, key: Key, now_ns: int) -> Key:
        """Return the series that a value goes into: its own, or its metric's overflow."""
        if key[0].startswith(EXEMPT):
            return key
        if key not in self._seen:
            if not self._has_room(key):
                self.rejected += 1
                return overflow_of(key)
            self._enter(key)
        self._seen[key] = now_ns
        self._seen.move_to_end(key)
        return key

    def prune(self, now_ns: int) -> list[Key]:
        """Forget the series that are idle for longer than the time to live, and return them."""
        gone = []
        while self._seen:
            key, seen_ns = next(iter(self._seen.items()))
            if now_ns - seen_ns <= self._idle_ns:
                break
            del self._seen[key]
            self._leave(key)
            gone.append(key)
        if len(gone) > len(self._seen):
            self._seen = OrderedDict(self._seen)  # a dict that has shrunk keeps its room
        self.pruned += len(gone)
        return gone

    def _has_room(self, key: Key) -> bool:
        metric, *_, labels = key
        if len(self._seen) >= self._caps.series or self._by_metric[metric] >= self._caps.by_metric:
            return False
        return all(value in values or len(values) < self._caps.by_label for values, value in self._values(metric, labels))

    def _values(self, metric: str, labels: Labels) -> Iterable[tuple[Counter[str], str]]:
        return ((self._by_label.get((metric, label), Counter()), value) for label, value in labels)

    def _enter(self, key: Key) -> None:
        metric, *_, labels = key
        self._by_metric[metric] += 1
        for label, value in labels:
            self._by_label.setdefault((metric, label), Counter())[value] += 1

    def _leave(self, key: Key) -> None:
        metric, *_, labels = key
        _take_one(self._by_metric, metric)
        for label, value in labels:
            values = self._by_label[metric, label]
            _take_one(values, value)
            if not values:
                del self._by_label[metric, label]


def _take_one(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def overflow_of(key: Key) -> Key:
    """Return the one series of a metric and unit that takes what is past a cap."""
    metric, unit, _, _, labels = key
    return (metric, unit, "", "", tuple((label, OVERFLOW_LABEL) for label, _ in labels))
