"""Options of every simulator under fuzz: whatever is asked is refused in words or becomes a plan; nothing is taken or started by asking."""

from __future__ import annotations

import math
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors import proc
from actors.errors import InputError, RefusedError
from actors.messages import Capacity, NodeSpec
from actors.shape import Constant, Ramp, Sine, Square, Steps
from actors.simulator import REGISTRY, SimulatorRecord, check, peak_amounts
from scenarios import combinators, kinds, model
from scenarios import plan as plans

NODES = (NodeSpec("head", is_head=True), NodeSpec("n1"))
CAPACITY = Capacity(4.0, 8 << 30, 64 << 30, 1, 1 << 20, 1 << 15, 1 << 20, 65_530, 28_232)
GROWTH_BYTES = 64 << 20  # the interpreter's own, over all of one simulator's options
TIMES = 10_000

STRANGE: tuple[Any, ...] = (
    *(None, True, False, "", " ", "all", "0", "1e9", "-1", "50%", "64M", "/", "/tmp", "../x", "\0", "\n", "é", "x" * 2_000, "--timeout 1h"),
    *(0, 1, -1, 2, 7, 64, 4096, 1 << 20, 1 << 40, 1 << 53, (1 << 53) + 1, 1 << 70, -(1 << 70)),
    *(0.0, 0.1, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *([], [1], {}, {"a": 1}, b"bytes", (), object()),
)


def value(option: Any, chance: Random) -> Any:
    """Return what may be given for an option: something strange, or something that it may take, at its edges too."""
    if chance.random() < 0.3:
        return chance.choice(STRANGE)
    if option.kind == "choice":
        return chance.choice(option.choices)
    if option.kind == "flag":
        return chance.random() < 0.5
    if option.kind in ("text", "path"):
        return chance.choice((option.default, *option.examples, "/tmp", "a b", "--cpu-method all", "--vm-bytes 1T"))
    if option.kind == "cores" and chance.random() < 0.5:
        return "all"
    low, high = float(option.low), float(option.top)
    within = chance.uniform(low, min(high, 1e12))
    edge = chance.choice((low, high, low - 1, high + 1, within, float(round(within))))
    return int(edge) if chance.random() < 0.5 else edge


def strength(unit: str, chance: Random) -> Any:
    """Return a strength: more often than not one that is taken, else a number, a shape, or something that is none."""
    if chance.random() < 0.6:
        return chance.uniform(0.0, 1.0) if unit == "fraction" else chance.choice((0, 1, 7, 4096, 1 << 20))
    level = chance.choice((0.0, 0.3, 1.0, 2.0, 1e6, 1e12, 1e18, -1.0, math.nan, math.inf))
    other = chance.choice((0.0, 0.5, 1.0, 1e9))
    makers = (
        lambda: level,
        lambda: Constant(level),
        lambda: Ramp(level, other, chance.choice((0.0, 1.0, 60.0, math.inf))),
        lambda: Steps((level, other), chance.choice((0.0, 1.0, 1e9))),
        lambda: Sine(level, other, 5.0),
        lambda: Square(level, other, 5.0, chance.choice((0.0, 0.5, 2.0))),
        lambda: chance.choice(STRANGE),
    )
    return chance.choice(makers)()


def ask(record: SimulatorRecord, chance: Random) -> bool:
    """Ask for one load and return whether there is a plan of it; raises whatever is no refusal."""
    names = [option for option in record.options if chance.random() < 0.3]
    given = {option.name: value(option, chance) for option in names}
    if chance.random() < 0.1:
        given[chance.choice(("stres", "kernal", "bytess", ""))] = 1
    unit = chance.choice((*record.units, *record.units, *record.units, "fraction", "bytes", "count", "per_second"))
    try:
        load = kinds.KINDS[record.name](**{unit: strength(unit, chance)}, **given)
        span_s = chance.choice((*[60.0] * 9, 0.0, -1.0, math.nan))
        scenario = model.Scenario(name="fuzz", plan=combinators.Hold(load, span_s))
        plan = plans.resolve(scenario, NODES, 7)
        for operation in plan.operations:
            check(operation)
            peak_amounts(operation, CAPACITY)
    except (InputError, RefusedError):
        return False
    except TypeError as error:
        if "unexpected keyword" not in str(error):  # Python's own word for a keyword that a class does not have
            raise
        return False
    assert plan.operations
    return True


def held() -> tuple[int, int, int]:
    """Return this process's anonymous bytes, open descriptors and children, as /proc has them."""
    told = Path("/proc/self/status").read_text()
    anonymous = next(int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("RssAnon:"))
    children = sum(stat.ppid == os.getpid() for stat in proc.scan())
    return anonymous, len(list(Path("/proc/self/fd").iterdir())), children


@pytest.mark.parametrize("name", list(REGISTRY))
def test_options_are_refused_or_planned_and_nothing_is_taken(name: str) -> None:
    """Whatever the options, strength and span: a refusal, or a plan that passes all checks; no memory, file or process is taken."""
    record, before = REGISTRY[name], held()
    planned = sum(ask(record, Random(f"{name}-{seed}")) for seed in range(TIMES))
    after = held()
    assert TIMES * 0.02 < planned < TIMES * 0.9, planned  # neither word is the only one
    assert after[0] - before[0] < GROWTH_BYTES
    assert (after[1] <= before[1], after[2]) == (True, before[2])  # what others left may be closed meanwhile
