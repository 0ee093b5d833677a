"""The laws that every accumulator keeps, as a check of its record: for plug-ins at their registration, and for their own tests.

`problems(record)` returns what is broken, in words, and an empty list when nothing is. It takes some milliseconds and gives the same
each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from .accumulator import Accumulator, AccumulatorRecord, Answer, Batch, Bound

_CLOSE: Final = 1e-9  # relative: what rounding may do
_UNITS: Final = ("same", "none", "squared", "per_second")


def problems(record: AccumulatorRecord) -> list[str]:
    """Return the laws that the accumulator breaks; an error that it raises is one."""
    found: list[str] = []
    for law in _LAWS:
        try:
            found.extend(f"{law.__name__.strip('_').replace('_', ' ')}: {words}" for words in law(record, _batches(record)))
        except Exception as error:  # a law that cannot be tried is not kept
            found.append(f"{law.__name__.strip('_').replace('_', ' ')}: {type(error).__name__}: {error}")
    return found


def _batches(record: AccumulatorRecord) -> list[Batch]:
    """Return batches of the record's kind: usual, weighted, empty, of one, with equal values, with what is no number."""
    chance = np.random.default_rng(7)
    if record.takes == "texts":
        rows: list[list[str]] = [["a", "b", "a"], [], ["c"], [f"k{at % 7}" for at in range(50)], ["", "ä"]]
        made = [Batch.of(row, start_s=float(at), end_s=at + 1.0) for at, row in enumerate(rows)]
        return [*made, Batch.of(["a", "z"], [3, 0], start_s=9.0, end_s=10.0)]
    arrays = [chance.lognormal(size=500), np.empty(0), np.array([-2.0]), np.zeros(5), np.array([np.nan, 1.0, np.inf, -np.inf])]
    made = [Batch.of(array, start_s=float(at), end_s=at + 1.0) for at, array in enumerate(arrays)]
    return [*made, Batch.of(chance.normal(size=4), [1, 0, 7, 2], start_s=9.0, end_s=10.0)]


def _of(record: AccumulatorRecord, batches: list[Batch]) -> Accumulator:
    made = record.make()
    for batch in batches:
        made.add(batch)
    return made


def _its_record_is_whole(record: AccumulatorRecord, _: list[Batch]) -> Iterator[str]:
    if record.takes not in ("numbers", "texts"):
        yield f"it takes numbers or texts, not {record.takes!r}"
    if not record.figures or not set(record.figures.values()) <= set(_UNITS):
        yield f"it gives one figure or more in the units {', '.join(_UNITS)}; got {dict(record.figures)}"
    if not isinstance(record.version, int) or not 0 <= record.version <= 0xFFFF:
        yield f"its version lies in 0 to 65,535, got {record.version!r}"


def _its_figures_are_those_of_the_record(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    for taken in ([], batches):
        if (found := set(_of(record, taken).result())) != set(record.figures):
            yield f"stated are {sorted(record.figures)}, given {sorted(found)}"


def _asking_changes_nothing(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    asked, other = _of(record, batches[:3]), _of(record, batches[:3])
    asked.result()
    asked.encode()
    for batch in batches[3:]:
        asked.add(batch)
        other.add(batch)
    yield from _differences(asked, other, record.exact)


def _merging_is_the_same_both_ways(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    one, other = _of(record, batches[:2]), _of(record, batches[2:])
    back, forth = record.decode(one.encode()), record.decode(other.encode())
    one.merge(other)
    forth.merge(back)
    yield from _differences(one, forth, exact=True)


def _merging_groups_as_it_likes(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    first, second, third = (_of(record, batches[at : at + 2]) for at in (0, 2, 4))
    left = record.decode(first.encode())
    left.merge(second)
    left.merge(third)
    second.merge(third)
    first.merge(second)
    yield from _differences(left, first, record.exact)


def _merged_parts_are_the_whole(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    parts = [_of(record, [batch]) for batch in batches]
    merged = record.make()
    for part in parts:
        merged.merge(part)
    yield from _differences(merged, _of(record, batches), record.exact)


def _an_empty_one_adds_nothing(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    for empty in (record.make(), record.decode(record.make().encode())):
        made, before = _of(record, batches), _of(record, batches)
        made.merge(empty)
        yield from _differences(made, before, record.exact)


def _merging_leaves_the_other_alone(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    one, other = _of(record, batches[:3]), _of(record, batches[3:])
    before = other.encode()
    one.merge(other)
    one.add(batches[0])
    if other.encode() != before:
        yield "the other one is no longer what it was"


def _bytes_bring_it_back(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    for taken in ([], batches[:1], batches):
        made = _of(record, taken)
        data = made.encode()
        if not isinstance(data, bytes):
            yield f"encode gives a {type(data).__name__}"
            return
        back = record.decode(data)
        if back.encode() != data:
            yield "what was read from bytes has other bytes"
        yield from _differences(back, made, exact=True)


def _bytes_that_are_none_are_refused(record: AccumulatorRecord, batches: list[Batch]) -> Iterator[str]:
    data = _of(record, batches).encode()
    for broken, what in ((data[: len(data) // 2], "the first half of its bytes"), (b"", "no bytes"), (b"\xff" * 64, "64 bytes of 255")):
        if len(broken) == len(data):
            continue
        try:
            record.decode(broken)
        except ValueError:
            continue
        yield f"decode takes {what}"


_LAWS: Final[tuple[Callable[[AccumulatorRecord, list[Batch]], Iterator[str]], ...]] = (
    _its_record_is_whole,
    _its_figures_are_those_of_the_record,
    _asking_changes_nothing,
    _merging_is_the_same_both_ways,
    _merging_groups_as_it_likes,
    _merged_parts_are_the_whole,
    _an_empty_one_adds_nothing,
    _merging_leaves_the_other_alone,
    _bytes_bring_it_back,
    _bytes_that_are_none_are_refused,
)


def _differences(one: Accumulator, other: Accumulator, exact: bool) -> Iterator[str]:
    """Name the figures that differ: by more than rounding when `exact`, else those that have no bound."""
    first, second = dict(one.result()), dict(other.result())
    for name in sorted(first.keys() | second.keys()):
        pair = first.get(name), second.get(name)
        if not exact and any(_bounded(answer) for answer in pair):
            continue
        if not _alike(*(_value(answer) for answer in pair)):
            yield f"{name} is {_value(pair[0])!r} one way and {_value(pair[1])!r} the other"


def _bounded(answer: Answer | None) -> bool:
    return isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Bound)


def _value(answer: Answer | None) -> object:
    return answer[0] if isinstance(answer, tuple) and _bounded(answer) else answer


def _alike(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE) or (math.isnan(one) and math.isnan(other))
    return one == other
