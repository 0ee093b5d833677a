"""The words that put simulators on a timeline: `hold`, `pause`, `sequence`, `together`. Pure values; nothing here runs.

    hold(simulator, for_s)   the simulator for a span                  duration = for_s
    pause(for_s)             no load for a span                        duration = for_s
    sequence(a, b, ...)      one after the other                       duration = sum of the parts
    together(a, b, ...)      all from the same instant                 duration = longest part

A node of the tree has a path: the root is `0`, the second child of the root `0.1`. A branch's seed and an operation's id
come from its path, so that a branch added at the end moves no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actors.errors import InputError

from .kinds import KINDS
from .simulators import Simulator
from .targets import Targets
from .units import DURATION_MAX_S, check_choice, check_number, check_text

ROOT: Final = "0"
DEPTH_MAX: Final = 16
PARTS_MAX: Final = 1_000
SPAN_MIN_S: Final = 0.1
ON_FAILURE: Final = ("stop", "continue")


@dataclass(frozen=True, slots=True)
class Hold:
    """One simulator for a span, on all targets or those that its own selectors take of them.

    `tolerance`: how far achieved may differ from asked, as a fraction (of the node's CPU, or of the bytes); `None` means the
    simulator's own.
    """

    simulator: Simulator
    for_s: float
    phase: str = ""
    targets: Targets | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.simulator, Simulator):
            raise InputError("invalid_value", f"Hold.simulator must be one of {', '.join(KINDS)}, got {self.simulator!r}")
        object.__setattr__(self, "for_s", float(check_number("Hold.for_s", self.for_s, SPAN_MIN_S, DURATION_MAX_S)))
        _check_phase("Hold.phase", self.phase)
        if self.targets is not None and not isinstance(self.targets, Targets):
            raise InputError("invalid_value", f"Hold.targets must be Targets, got {self.targets!r}")
        if self.tolerance is not None:
            check_number("Hold.tolerance", self.tolerance, 0.001, 1.0)

    @property
    def duration_s(self) -> float:
        """Return the span in seconds."""
        return self.for_s


@dataclass(frozen=True, slots=True)
class Pause:
    """No load for a span."""

    for_s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "for_s", float(check_number("Pause.for_s", self.for_s, SPAN_MIN_S, DURATION_MAX_S)))

    @property
    def duration_s(self) -> float:
        """Return the span in seconds."""
        return self.for_s


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts one after the other. `phase` names the parts that have no name of their own.

    `on_failure`: a load that fails in a part ends the run ("stop"), or its own part only ("continue"), also within parts of parts.
    `carry`: what a part loads is kept up until the sequence ends, by its shape, rather than given back when the part is over.
    """

    parts: tuple[Tree, ...]
    phase: str = ""
    on_failure: str = "stop"
    carry: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _check_parts("Sequence.parts", self.parts))
        _check_phase("Sequence.phase", self.phase)
        check_choice("Sequence.on_failure", self.on_failure, ON_FAILURE)
        if not isinstance(self.carry, bool):
            raise InputError("invalid_value", f"Sequence.carry must be true or false, got {self.carry!r}")

    @property
    def duration_s(self) -> float:
        """Return the sum of the parts' durations in seconds."""
        return sum(part.duration_s for part in self.parts)


@dataclass(frozen=True, slots=True)
class Together:
    """Parts that start at the same instant. `phase` names the parts that have no name of their own."""

    parts: tuple[Tree, ...]
    phase: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _check_parts("Together.parts", self.parts))
        _check_phase("Together.phase", self.phase)

    @property
    def duration_s(self) -> float:
        """Return the longest part's duration in seconds."""
        return max(part.duration_s for part in self.parts)


Tree = Hold | Pause | Sequence | Together


@dataclass(frozen=True, slots=True)
class Placed:
    """One hold with its place in the tree and on the timeline. `for_s` is how long it loads, with what is carried on."""

    path: str
    start_s: float
    phase: str
    hold: Hold
    for_s: float
    on_failure: str = "stop"


def hold(simulator: Simulator, for_s: float, phase: str = "", targets: Targets | None = None, tolerance: float | None = None) -> Hold:
    """Return a simulator held for a span of seconds."""
    return Hold(simulator, for_s, phase, targets, tolerance)


def pause(for_s: float) -> Pause:
    """Return a span of seconds without load."""
    return Pause(for_s)


def sequence(*parts: Tree, phase: str = "", on_failure: str = "stop", carry: bool = False) -> Sequence:
    """Return parts that follow each other."""
    return Sequence(parts, phase, on_failure, carry)


def together(*parts: Tree, phase: str = "") -> Together:
    """Return parts that start at the same instant."""
    return Together(parts, phase)


def check_tree(tree: object) -> Tree:
    """Return the tree when it is one, holds some load, and is within the bounds of depth, parts and duration.

    Raises `InputError` (`invalid_value`) otherwise.
    """
    if not isinstance(tree, Tree):
        raise InputError("invalid_value", f"Scenario.plan must be made of hold, pause, sequence and together, got {tree!r}")
    depth, parts, holds = _size(tree)
    if depth > DEPTH_MAX or parts > PARTS_MAX:
        bounds = f"{DEPTH_MAX} levels and {PARTS_MAX} parts"
        raise InputError("invalid_value", f"Scenario.plan may have at most {bounds}, got {depth} levels and {parts} parts")
    if not holds:
        raise InputError("invalid_value", "Scenario.plan holds no load", "add at least one simulator")
    check_number("Scenario.plan: its duration", tree.duration_s, SPAN_MIN_S, DURATION_MAX_S)
    return tree


def placed(tree: Tree) -> Iterator[Placed]:
    """Yield every hold in order of its path, with seconds from the start; starts are rounded to a microsecond."""
    yield from _placed(tree, ROOT, 0.0, "", None, "stop")


def _placed(tree: Tree, path: str, start_s: float, phase: str, until_s: float | None, on_failure: str) -> Iterator[Placed]:
    """`until_s`: when what is carried ends, None where nothing is."""
    if isinstance(tree, Hold):
        for_s = tree.for_s if until_s is None else round(until_s - round(start_s, 6), 6)
        yield Placed(path, round(start_s, 6), tree.phase or phase, tree, for_s, on_failure)
    elif isinstance(tree, (Sequence, Together)):
        if isinstance(tree, Sequence):
            until_s = start_s + tree.duration_s if tree.carry and until_s is None else until_s
            on_failure = "continue" if tree.on_failure == "continue" else on_failure
        for at, part in enumerate(tree.parts):
            yield from _placed(part, f"{path}.{at}", start_s, tree.phase or phase, until_s, on_failure)
            start_s += part.duration_s if isinstance(tree, Sequence) else 0.0


def _size(tree: Tree) -> tuple[int, int, int]:
    """Return depth, parts and holds without recursion, so that a deep tree is counted and not followed."""
    depth, parts, holds, level = 0, 0, 0, [tree]
    while level and depth <= DEPTH_MAX and parts <= PARTS_MAX:
        depth, parts = depth + 1, parts + len(level)
        holds += sum(isinstance(node, Hold) for node in level)
        level = [part for node in level if isinstance(node, (Sequence, Together)) for part in node.parts]
    return depth, parts, holds


def _check_parts(label: str, parts: object) -> tuple[Tree, ...]:
    if not isinstance(parts, (list, tuple)) or not parts:
        raise InputError("invalid_value", f"{label} must be a list with at least one part, got {parts!r}")
    for at, part in enumerate(parts):
        if not isinstance(part, Tree):
            raise InputError("invalid_value", f"{label}[{at}] must be made of hold, pause, sequence and together, got {part!r}")
    return tuple(parts)


def _check_phase(label: str, phase: object) -> None:
    check_text(label, phase, 60)
    if "\n" in str(phase):
        raise InputError("invalid_value", f"{label} must be one line of text, got {phase!r}")
