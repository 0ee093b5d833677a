"""Accumulators by name: the product's own, those of installed packages (entry points of one group), and those registered by hand.

What cannot be used is refused by itself, with its name and the reason, and takes nothing else down. The product's names cannot be taken.
Two packages that offer the same name are both refused: which of them won would depend on the order of a path, and two
nodes could then merge what is not alike.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from actors.errors import InputError, StressError

from .accumulator import NAME, AccumulatorRecord
from .builtin import RECORDS
from .conformance import problems

GROUP: Final = "stress_cluster.accumulators"

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry point that is not used: its name, where it comes from, and why."""

    name: str
    source: str
    reason: str


class Accumulators:
    """Kinds of accumulators by name. The product's own are there from the beginning. Not thread-safe while kinds are added."""

    def __init__(self) -> None:
        self._records: dict[str, AccumulatorRecord] = {record.name: record for record in RECORDS}
        self._sources: dict[str, str] = dict.fromkeys(self._records, "stress-cluster")
        self._refused: dict[tuple[str, str], Refusal] = {}

    def register(self, record: AccumulatorRecord, source: str = "explicit registration") -> None:
        """Add a kind. Raises `InputError` for a name that is bad or taken, and for a kind that breaks the laws of merging."""
        if not isinstance(record, AccumulatorRecord):
            raise InputError("invalid_value", f"an accumulator from {source} is a {type(record).__name__}", "give an AccumulatorRecord")
        name = record.name
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError("invalid_value", f"accumulator {name!r} from {source}: a name is {NAME.pattern}")
        if name in self._records:
            hint = "give it another name"
            raise InputError("invalid_value", f"accumulator {name!r} from {source}: {self._sources[name]} has that name already", hint)
        if found := problems(record):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            hint = "run cluster.metrics.sketches.conformance.problems on its record"
            raise InputError("invalid_value", f"accumulator {name!r} from {source}: {found[0]}{more}", hint)
        self._records[name], self._sources[name] = record, source

    def load(self, found: Iterable[EntryPoint] | None = None) -> list[Refusal]:
        """Add what installed packages offer (or these entry points), and return what of it was refused; each is logged once."""
        offered: dict[str, dict[tuple[str, str], EntryPoint]] = {}
        for point in entry_points(group=GROUP) if found is None else found:
            offered.setdefault(point.name, {})[_source(point), point.value] = point  # a path that is listed twice offers twice
        refused = [one for _, points in sorted(offered.items()) for one in self._load(list(points.values()))]
        for one in refused:
            if (one.name, one.source) not in self._refused:
                _LOG.warning("accumulator %r from %s is not used: %s", one.name, one.source, one.reason)
            self._refused[one.name, one.source] = one
        return refused

    def _load(self, points: list[EntryPoint]) -> Iterator[Refusal]:
        if len(points) > 1:
            sources = " and ".join(sorted(_source(point) for point in points))
            yield from (Refusal(point.name, _source(point), f"{sources} offer the same name; uninstall one") for point in points)
            return
        (point,) = points
        if self._sources.get(point.name) == _source(point):
            return  # loaded before
        try:
            self.register(_named(point.load(), point.name), _source(point))
        except StressError as error:
            yield Refusal(point.name, _source(point), str(error))
        except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
            yield Refusal(point.name, _source(point), f"loading {point.value} failed: {type(error).__name__}: {error}")

    def find(self, name: str) -> AccumulatorRecord:
        """Return a kind. Raises `InputError` with the nearest name, or with the reason when one of that name was refused."""
        record = self._records.get(name)
        if record is not None:
            return record
        if refused := [one for one in self._refused.values() if one.name == name]:
            words = "; ".join(f"{one.source}: {one.reason}" for one in refused)
            raise InputError("unknown_name", f"accumulator {name!r} was refused: {words}")
        close = difflib.get_close_matches(name, self._records, n=1)
        raise InputError(
            "unknown_name", f"unknown accumulator {name!r}", f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self)}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._records))

    def source(self, name: str) -> str:
        """Return where a kind comes from: a distribution with its version, or how it was registered."""
        self.find(name)
        return self._sources[name]

    @property
    def refused(self) -> list[Refusal]:
        """What was refused so far."""
        return list(self._refused.values())


def _named(record: AccumulatorRecord, name: str) -> AccumulatorRecord:
    if isinstance(record, AccumulatorRecord) and record.name != name:
        raise InputError("invalid_value", f"its record is named {record.name!r}", "give entry point and record one name")
    return record


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
