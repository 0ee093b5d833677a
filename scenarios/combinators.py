"""The words that put simulators on a timeline: `hold`, `pause`, `sequence`, `together`. Pure values; nothing here runs.

`composites` has the words that choose among parts or change them; here they are an `Operator`.

    hold(simulator, for_s)   the simulator for a span                  duration = for_s
    pause(for_s)             no load for a span                        duration = for_s
    sequence(a, b, ...)      one after the other                       duration = sum of the parts
    together(a, b, ...)      all from the same instant                 duration = longest part

A node of the tree has a path: the root is `0`, the second child of the root `0.1`. A branch's seed and an operation's id
come from its path, so that a branch added at the end moves no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from actors.errors import InputError
from actors.messages import NodeSpec

from .kinds import KINDS
from .simulators import Simulator, reshaped
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
        check_phase("Hold.phase", self.phase)
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
        check_phase("Sequence.phase", self.phase)
        check_choice("Sequence.on_failure", self.on_failure, ON_FAILURE)
        if not isinstance(self.carry, bool):
            raise InputError("invalid_value", f"Sequence.carry must be true or false, got {self.carry!r}")

    @property
    def duration_s(self) -> float:
        """Return the sum of the parts' durations in seconds."""
        return sum(part.duration_s for part in self.parts)

    def changed(self, part: Placed, end_s: float) -> Placed:
        """Return one of its placed holds as `on_failure` and `carry` have it, where the sequence ends then."""
        if self.on_failure == "continue":
            part = replace(part, on_failure="continue")
        if self.carry:
            part = replace(part, hold=replace(part.hold, for_s=round(end_s - round(part.start_s, 6), 6)))
        return part


@dataclass(frozen=True, slots=True)
class Together:
    """Parts that start at the same instant. `phase` names the parts that have no name of their own."""

    parts: tuple[Tree, ...]
    phase: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _check_parts("Together.parts", self.parts))
        check_phase("Together.phase", self.phase)

    @property
    def duration_s(self) -> float:
        """Return the longest part's duration in seconds."""
        return max(part.duration_s for part in self.parts)


class Operator(ABC):
    """A part made of other parts, which says itself where their holds lie: see `composites`."""

    __slots__ = ()

    @property
    @abstractmethod
    def parts(self) -> tuple[Tree, ...]:
        """Return the parts that it is made of."""

    @property
    def times(self) -> int:
        """Return how many copies of its parts it makes."""
        return 1

    @property
    @abstractmethod
    def duration_s(self) -> float:
        """Return its duration in seconds."""

    @abstractmethod
    def place(self, spread: Spread, path: str, start_s: float, phase: str) -> Iterator[Placed]:
        """Yield its holds; `spread` yields those of a part. Starts are not rounded yet."""


Tree = Hold | Pause | Sequence | Together | Operator


class Sieve(Protocol):
    """Says on which of some nodes a hold runs, and why not on the others. Pure."""

    def sift(self, nodes: tuple[NodeSpec, ...], run_seed: int) -> tuple[tuple[NodeSpec, ...], tuple[tuple[str, str], ...]]:
        """Return the nodes that are taken, and a pair of name and reason for each whose condition does not hold."""
        ...


@dataclass(frozen=True, slots=True)
class Placed:
    """One hold with its place in the tree and on the timeline.

    `sieves` bound the nodes it runs on, from the outermost in, before its own selectors. `strength` and `pace` are what operators
    multiply its levels and the times of its shape by; `placed` applies them once, so that whole numbers are rounded once.
    """

    path: str
    start_s: float
    phase: str
    hold: Hold
    sieves: tuple[Sieve, ...] = ()
    strength: float = 1.0
    pace: float = 1.0
    on_failure: str = "stop"


Spread = Callable[[Tree, str, float, str], Iterator[Placed]]


class Composed(Protocol):
    """What is held like a simulator and is made of parts: a `Composite`."""

    def held(self, for_s: float, phase: str, targets: Targets | None, tolerance: float | None) -> Operator:
        """Return it held for a span of seconds."""
        ...


def hold(
    simulator: Simulator | Composed, for_s: float, phase: str = "", targets: Targets | None = None, tolerance: float | None = None
) -> Tree:
    """Return a simulator, or a composite of them, held for a span of seconds."""
    if not isinstance(simulator, Simulator) and hasattr(simulator, "held"):
        return simulator.held(for_s, phase, targets, tolerance)
    return Hold(simulator, for_s, phase, targets, tolerance)  # type: ignore[arg-type]  # it refuses what is no simulator


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
        raise InputError(
            "invalid_value", f"Scenario.plan must be made of hold, pause, sequence, together and operators of them, got {tree!r}"
        )
    depth, parts, holds = _size(tree)
    if depth > DEPTH_MAX or parts > PARTS_MAX:
        bounds = f"{DEPTH_MAX} levels and {PARTS_MAX} parts"
        raise InputError("invalid_value", f"Scenario.plan may have at most {bounds}, got {depth} levels and {parts} parts")
    if not holds:
        raise InputError("invalid_value", "Scenario.plan holds no load", "add at least one simulator")
    check_number("Scenario.plan: its duration", tree.duration_s, SPAN_MIN_S, DURATION_MAX_S)
    if not sum(1 for _ in placed(tree)):  # all of them: each is checked as it is placed
        raise InputError("invalid_value", "Scenario.plan holds no load", "its limits leave none")
    return tree


def placed(tree: Tree) -> Iterator[Placed]:
    """Yield every hold in order of its path, with seconds from the start; starts are rounded to a microsecond.

    Raises `InputError` (`invalid_value`) where an operator makes a strength or a time that its simulator does not take.
    """
    for part in _placed(tree, ROOT, 0.0, ""):
        yield replace(_changed(part), start_s=round(part.start_s, 6))


def _changed(part: Placed) -> Placed:
    """Return the part with its strength and pace in its simulator's shape."""
    if part.strength == part.pace == 1.0:
        return part
    try:
        simulator = reshaped(part.hold.simulator, part.strength, part.pace)
    except InputError as error:
        raise InputError(error.code, f"Scenario.plan: part {part.path}: {error.message}", error.hint) from error
    return replace(part, hold=replace(part.hold, simulator=simulator), strength=1.0, pace=1.0)


def _placed(tree: Tree, path: str, start_s: float, phase: str) -> Iterator[Placed]:
    if isinstance(tree, Hold):
        yield Placed(path, start_s, tree.phase or phase, tree)
    elif isinstance(tree, Operator):
        yield from tree.place(_placed, path, start_s, phase)
    elif isinstance(tree, Sequence):
        end_s = start_s + tree.duration_s
        for at, part in enumerate(tree.parts):
            for one in _placed(part, f"{path}.{at}", start_s, tree.phase or phase):
                yield tree.changed(one, end_s)
            start_s += part.duration_s
    elif isinstance(tree, Together):
        for at, part in enumerate(tree.parts):
            yield from _placed(part, f"{path}.{at}", start_s, tree.phase or phase)


def _size(tree: Tree) -> tuple[int, int, int]:
    """Return depth, parts with all copies, and holds without recursion, so that a deep tree is counted and not followed."""
    depth, parts, holds, level = 0, 0, 0, [(tree, 1)]
    while level and depth <= DEPTH_MAX and parts <= PARTS_MAX:
        depth, parts = depth + 1, parts + sum(copies for _, copies in level)
        holds += sum(isinstance(node, Hold) for node, _ in level)
        level = [(part, copies * _copies(node)) for node, copies in level if isinstance(node, _INNER) for part in node.parts]
    return depth, parts, holds


_INNER: Final = (Sequence, Together, Operator)


def _copies(node: Tree) -> int:
    return node.times if isinstance(node, Operator) else 1


def _check_parts(label: str, parts: object) -> tuple[Tree, ...]:
    if not isinstance(parts, (list, tuple)) or not parts:
        raise InputError("invalid_value", f"{label} must be a list with at least one part, got {parts!r}")
    for at, part in enumerate(parts):
        if not isinstance(part, Tree):
            raise InputError(
                "invalid_value", f"{label}[{at}] must be made of hold, pause, sequence, together and operators of them, got {part!r}"
            )
    return tuple(parts)


def check_phase(label: str, phase: object) -> None:
    """Raise `InputError` (`invalid_value`) for what is no line of at most 60 characters."""
    check_text(label, phase, 60)
    if "\n" in str(phase):
        raise InputError("invalid_value", f"{label} must be one line of text, got {phase!r}")
