"""Load shapes of installed packages: pure functions of the seconds since the start, by the entry point group `stress_cluster.shapes`.

    def saw(elapsed_s: float) -> float: ...        a value in the unit of the strength that names it: a fraction, or bytes

Before a load takes anything its function is called on a grid over the whole duration, twice and in both directions: what is negative, no
number, above the stated limit, or differs between two calls is refused. At run time every value is held within [0, limit].
Nodes tell a digest of what they have, so that a run in which two nodes would follow different functions is refused before it starts.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "stress_cluster.shapes"
POINTS: Final = 1_000  # of the grid, beside both ends

ShapeFunction = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class PlugIn:
    """One function with where it comes from; the digest is of its distribution, its name there and the module that holds it."""

    function: ShapeFunction
    source: str
    digest: str


def _installed() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415  # a hundredth of a second, where shapes of packages are asked for alone

    return entry_points(group=GROUP)


def find(name: str, found: Iterable[EntryPoint] | None = None) -> PlugIn:
    """Return what installed packages (or these entry points) offer under a name.

    Raises `InputError`: `unknown_name` where none or more than one package offers it, `invalid_value` where it cannot be loaded.
    """
    points = list(_installed() if found is None else found)
    offered = {(_source(point), point.value): point for point in points if point.name == name}  # a path that is listed twice offers twice
    if len(offered) != 1:
        known = ", ".join(sorted({point.name for point in points})) or "none"
        sources = " and ".join(sorted(source for source, _ in offered))
        raise InputError("unknown_name", f"the shape {name!r} is offered by {sources or 'no installed package'}", f"known: {known}")
    (((source, value), point),) = offered.items()
    try:
        function = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        raise InputError("invalid_value", f"the shape {name!r} of {source}: loading {value} failed: {error!r}") from error
    if not callable(function):
        raise InputError("invalid_value", f"the shape {name!r} of {source}: {value} is a {type(function).__name__}, which is no function")
    return PlugIn(function, source, _digest(point))


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _digest(point: EntryPoint) -> str:
    """Return a digest of a function's distribution, name and module file; nothing of it is run but the packages around the module."""
    digest = hashlib.sha256(f"{_source(point)}\0{point.value}\0".encode())
    try:
        spec = importlib.util.find_spec(point.module)
        digest.update(Path(spec.origin if spec and spec.origin else "").read_bytes())
    except Exception:  # not there, or a package around it that fails: loading it says why
        digest.update(b"no module")
    return digest.hexdigest()[:16]


def digests(found: Iterable[EntryPoint] | None = None) -> dict[str, str]:
    """Return a digest of all that installed packages offer under each name: alike on two nodes where they have the same."""
    offered: dict[str, set[str]] = {}
    for point in _installed() if found is None else found:
        offered.setdefault(point.name, set()).add(_digest(point))
    return {name: "+".join(sorted(values)) for name, values in sorted(offered.items())}


@functools.cache
def function_of(name: str) -> ShapeFunction:
    """Return a function, looked up once in this process. Raises `InputError` as `find` does."""
    return find(name).function


def problem(function: ShapeFunction, limit: float, duration_s: float) -> str:
    """Return the first thing that is wrong with a function over a duration, "" when it is fit to be a shape."""
    times = [duration_s * at / (POINTS + 1) for at in range(POINTS + 2)]
    first: dict[float, float] = {}
    for elapsed_s in times:
        found = _value_or_problem(function, elapsed_s, limit)
        if isinstance(found, str):
            return found
        first[elapsed_s] = found
    for elapsed_s in reversed(times):
        again = _value_or_problem(function, elapsed_s, limit)
        if again != first[elapsed_s]:
            return f"its value at {elapsed_s:g} s was {first[elapsed_s]:g} and is now {again}: a shape depends on the time alone"
    return ""


def _value_or_problem(function: ShapeFunction, elapsed_s: float, limit: float) -> float | str:
    try:
        found = function(elapsed_s)
        number = float(found)
    except Exception as error:
        return f"at {elapsed_s:g} s it raises {error!r}"
    if isinstance(found, bool) or not math.isfinite(number):
        return f"at {elapsed_s:g} s it gives {found!r}, which is no finite number"
    if number < 0.0:
        return f"at {elapsed_s:g} s it gives {number:g}, which is negative"
    return f"at {elapsed_s:g} s it gives {number:g}, above its limit of {limit:g}" if number > limit else number


def check(name: str, limit: float, duration_s: float) -> None:
    """Raise `InputError` where no such function is installed (`unknown_name`) or it is not fit to be a shape (`invalid_value`)."""
    wrong = problem(function_of(name), limit, duration_s)
    if wrong:
        raise InputError("invalid_value", f"the shape {name!r} cannot be followed: {wrong}", "correct the function or raise its limit")


def value(name: str, elapsed_s: float, limit: float) -> float:
    """Return a function's value within [0, limit]; what is no number, and a call that raises, counts as 0."""
    function = function_of(name)
    try:
        number = float(function(elapsed_s))
    except Exception:  # it was checked before the start: from here on the safe side counts
        return 0.0
    return min(max(number, 0.0), limit) if number == number else 0.0  # noqa: PLR0124  # NaN
