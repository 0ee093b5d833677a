"""What exhaustion and disks may be asked for: what is bad is refused by its name, in Python and YAML, before anything is taken.

The table is made of the records, so that a new simulator, unit or option is in it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import held

from actors.errors import InputError
from actors.messages import Operation
from actors.option import LARGEST, Option
from actors.shape import Constant, Leak, Ramp, Steps
from actors.simulator import REGISTRY, SimulatorRecord, check
from scenarios import text
from scenarios.kinds import KINDS

RECORDS = [record for record in REGISTRY.values() if record.family in {"exhaustion", "disk"}]
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
GOOD = {"fraction": 0.5, "count": 10, "bytes": 1 << 20, "per_second": 1 << 20}

EVERYWHERE: dict[str, Any] = {
    "negative": -1,
    "zero": 0,
    "zero-all-the-time": Constant(0.0),
    "NaN": math.nan,
    "infinite": math.inf,
    "minus-infinite": -math.inf,
    "huge": 1e30,
    "a-truth": True,
    "a-text": "many",
    "a-list": [1],
}
OF_A_UNIT: dict[str, dict[str, Any]] = {
    "fraction": {"above-1": 1.01, "percent-without-its-sign": 60, "a-ramp-above-1": Ramp(0.5, 1.5, 10.0), "bytes-of-it": "64MiB"},
    "count": {"a-half": 1.5, "of-another-unit": "64MiB", "a-share": "50%", "huge-and-whole": 2 * LARGEST},
    "bytes": {"a-half": 1.5, "of-another-unit": "10s", "huge-and-whole": 2 * LARGEST},
    "per_second": {"of-another-unit": "10s", "huge-and-whole": 2 * LARGEST},
}
WRITTEN = {  # as a document has them
    "count": ("-1", "0", "1.5", ".nan", ".inf", "1e30", "50%", "64MiB", "10s", "true", "~", "[1]"),
    "fraction": ("-1", "-5%", "0", "0%", "1.01", "101%", "60", ".nan", ".inf", "1e30", "64MiB", "10s", "true", "~", "[1]"),
    "bytes": ("-1", "0", "0MiB", "1.5", ".nan", ".inf", "1e30", "50%", "10s", "true", "~", "[1]"),
    "per_second": ("-1", "0", ".nan", ".inf", "1e30", "50%", "10s", "true", "~", "[1]"),
}


def counted() -> tuple[int, ...]:
    """Return what this process holds of all that exhaustion takes, as an outsider counts it."""
    me = os.getpid()
    return (held.descriptors(me), held.sockets(me, "TCP"), held.sockets(me, "UDP"), held.threads(me), len(held.children(me)))


def bad_for(option: Option) -> dict[str, Any]:
    """Return values that an option may not have."""
    bad: dict[str, Any] = {"nothing": None, "a-list": [1], "an-object": object()}
    if option.kind == "choice":
        return bad | {"another": "another", "number": 7}
    if option.kind == "flag":
        return bad | {"number": 1, "text": "yes"}
    if option.kind in ("text", "path"):
        return bad | {"relative": "here", "number": 7, "unprintable": "/\0"}
    bad |= {"negative": -1, "NaN": math.nan, "infinite": math.inf, "huge": 1e30, "unit": "5 parsecs", "above": 2 * option.top}
    return bad | ({"below": option.low / 2} if option.low else {})


def said(ask: Callable[[], object]) -> str:
    """Return the words of a refusal, or what came instead of it."""
    try:
        return f"taken: {ask()!r}"
    except InputError as error:
        return str(error)


@pytest.fixture
def untouched() -> Iterator[None]:
    """Have the kernel say that nothing was taken in a test."""
    before = counted()
    yield
    assert counted() == before


@each_record
def test_a_bad_strength_is_refused_by_its_name(record: SimulatorRecord, untouched: None) -> None:
    """Negative, none, above the whole, not a number, without an end, huge, or of another unit."""
    for unit in record.units:
        for name, bad in {**EVERYWHERE, **OF_A_UNIT[unit]}.items():
            words = said(lambda: KINDS[record.name](**{unit: bad}))  # noqa: B023  # called at once
            assert words.startswith(f"{record.name}.{unit}"), (name, words)


@each_record
def test_a_bad_option_is_refused_by_its_name(record: SimulatorRecord, untouched: None) -> None:
    """In the value, and once more on the node, where it could have come another way."""
    unit = record.units[0]
    shape = {"kind": "constant", "level": GOOD[unit]}
    for option in record.options:
        for name, bad in bad_for(option).items():
            operation = Operation("0@n1", record.name, "n1", 0.0, 10.0, unit, shape, {option.name: bad})
            for words in (said(lambda: KINDS[record.name](**{unit: GOOD[unit], option.name: bad})), said(lambda: check(operation))):  # noqa: B023
                assert re.search(rf"\b{option.name}\b.* must be ", words), (name, words)


@each_record
def test_a_bad_strength_in_a_document_is_refused_at_its_place(record: SimulatorRecord, untouched: None) -> None:
    """By the name of its key, with line and column."""
    for unit in record.units:
        for word in WRITTEN[unit]:
            words = said(lambda: text.load(f"version: 1\nname: x\nplan:\n  {record.name}: {{{unit}: {word}}}\n  for: 10s\n", "x.yaml"))  # noqa: B023
            assert words.startswith("x.yaml:4:"), words
            assert unit in words, words


@each_record
def test_the_base_is_good(record: SimulatorRecord) -> None:
    """What the rows above change by one thing is taken, and so is a shape that begins or ends at nothing."""
    for unit in record.units:
        assert KINDS[record.name](**{unit: GOOD[unit]}).unit == unit
        KINDS[record.name](**{unit: Ramp(0.0, float(GOOD[unit]), 10.0)})
        KINDS[record.name](**{unit: Steps((float(GOOD[unit]), 0.0), 1.0)})
        KINDS[record.name](**{unit: Leak(0.0, float(GOOD[unit]))})
