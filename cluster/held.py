"""`cluster.exhaust`: something used up on the nodes, for a time, or, with `hold=True`, for as long as the caller has its handle.

A hold is a run of a scenario that holds the simulators for `for_s` at most and that may be ended before; there is no second path. So what
is held ends whatever becomes of the caller:

    handle.release(), end of the `with`       at once, and the caller waits for it
    the handle is dropped, the caller exits    at once: the run's driver is told, or hears its pipe close
    the caller is stopped, or killed with a    within the lease: the run's driver holds its own lease for a caller that runs, and for no
    child of it that keeps the pipe            other
    caller and driver are killed together      within the lease
    the caller never lets go                   after `for_s`

Several handles are held side by side: each is a run of its own under the same budgets.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack, overload

from actors.errors import HarnessError, InputError, RefusedError, StressError
from scenarios import combinators
from scenarios.model import Scenario
from scenarios.simulators import Simulator
from scenarios.targets import Targets

from .driver import DriverProcess, Outcome, start
from .start import Where, request_of, run_scenario, say

NAME: Final = "exhaust"
ALLOCATE_S: Final = 120.0  # from the start of the run's driver, an embedded Ray's included, until all is held
_ERRORS: Final[Mapping[int, type[StressError]]] = {2: InputError, 6: RefusedError}


@overload
def exhaust(
    *simulators: Simulator,
    for_s: float,
    hold: Literal[True],
    targets: Targets | None = None,
    profile: str | None = None,
    within_s: float = ALLOCATE_S,
    quiet: bool = False,
    **where: Unpack[Where],
) -> Held: ...


@overload
def exhaust(
    *simulators: Simulator,
    for_s: float,
    hold: Literal[False] = False,
    targets: Targets | None = None,
    profile: str | None = None,
    within_s: float = ALLOCATE_S,
    quiet: bool = False,
    **where: Unpack[Where],
) -> Outcome: ...


def exhaust(
    *simulators: Simulator,
    for_s: float,
    hold: bool = False,
    targets: Targets | None = None,
    profile: str | None = None,
    within_s: float = ALLOCATE_S,
    quiet: bool = False,
    **where: Unpack[Where],
) -> Outcome | Held:
    """Hold what the simulators ask on all targets at once for `for_s` seconds, give it back, and return the run's outcome.

    With `hold=True`: return a handle as soon as all is held, or refused by the kernel in part, and keep it until the handle lets go,
    `for_s` seconds at most. `within_s` is how long that may take. `targets` and `profile` are those of a scenario, `where` are options of
    `cluster.run`. Raises `InputError` and `RefusedError` for what is wrong or does not fit, `HarnessError` where it could not be held;
    nothing is held then.
    """
    scenario = _scenario(simulators, for_s, targets, profile)
    if not hold:
        return run_scenario(scenario, quiet=quiet, **where)
    request = replace(request_of(scenario, **where), held=True)
    held = Held(start(request), quiet=quiet)
    try:
        held.await_held(within_s)
    except BaseException:
        held.release()
        raise
    return held


def _scenario(simulators: Sequence[Simulator], for_s: float, targets: Targets | None, profile: str | None) -> Scenario:
    parts = [combinators.hold(simulator, for_s) for simulator in simulators]
    if not parts:
        raise InputError("invalid_value", "exhaust needs at least one simulator", "such as Descriptors(count=200)")
    plan = parts[0] if len(parts) == 1 else combinators.together(*parts)
    return Scenario(NAME, plan, targets=targets or Targets(), profile=profile)


@dataclass(frozen=True, slots=True)
class Dose:
    """What one operation holds: asked, and as counted from outside its load process in the last second. `unit`: count, bytes, ..."""

    operation: str
    node: str
    unit: str
    requested: float
    achieved: float
    errno: str = ""  # where the kernel refused more: the name of its error number


class Held:
    """A handle of what is held on the nodes. Dropping it lets go, as `release` does; see the module."""

    def __init__(self, process: DriverProcess, *, quiet: bool) -> None:
        self._story = _Story(process, quiet=quiet)
        self.run: str = process.request.run
        # Neither this nor the story knows the handle: it lets go when nobody has it any more.
        self._let_go = weakref.finalize(self, _let_go, process, os.getpid())
        threading.Thread(target=self._story.read, name=f"hold-{self.run}", daemon=True).start()

    def __enter__(self) -> Self:
        """Return the handle."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go and wait until all is given back."""
        self.release()

    @property
    def held(self) -> tuple[Dose, ...]:
        """Return what is held, by operation and node, as counted from outside; empty once the run has ended."""
        return self._story.doses()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the nodes on which something is held."""
        return tuple(sorted({dose.node for dose in self.held}))

    @property
    def is_held(self) -> bool:
        """Tell whether the run goes on."""
        return self._story.outcome is None

    def release(self) -> Outcome:
        """Let go, wait until all is given back and undone, and return how the run ended. Again: the same outcome."""
        self._let_go()
        return self._story.ended()

    def await_held(self, within_s: float) -> None:
        """Wait until every operation holds what it asks, or was refused a part. Raises `StressError` where that does not come to be."""
        self._story.await_held(within_s)


def _let_go(process: DriverProcess, owner: int) -> None:
    if os.getpid() == owner:  # a copy in a forked child lets go of nothing
        process.stop("the holder let go", as_planned=True)


class _Story:
    """What a run's driver tells, read on a thread of its own."""

    def __init__(self, process: DriverProcess, *, quiet: bool) -> None:
        self._process, self._quiet = process, quiet
        self._changed = threading.Condition()
        self._progress: Mapping[str, Any] = {}
        self._told: Mapping[str, Any] = {}
        self.outcome: Outcome | None = None

    def read(self) -> None:
        """Read to the end of the run."""
        for event in self._process.events():
            if not self._quiet:
                say(event)
            with self._changed:
                self._progress = event if event["type"] == "progress" else self._progress
                self._told = event if event["type"] == "outcome" else self._told
                self._changed.notify_all()
        outcome = self._process.wait()
        with self._changed:
            self.outcome, self._progress = outcome, {}
            self._changed.notify_all()

    def ended(self) -> Outcome:
        """Wait for the outcome."""
        with self._changed:
            self._changed.wait_for(lambda: self.outcome is not None)
            assert self.outcome is not None
            return self.outcome

    def doses(self) -> tuple[Dose, ...]:
        """Return what the last progress said of each operation under load."""
        with self._changed:
            told = self._progress.get("operations", ())
        return tuple(
            Dose(one["operation"], one["node"], one["unit"], one["requested"], one["achieved"], (one["shortfall"] or {}).get("errno", ""))
            for one in told
            if one["requested"] is not None and one["achieved"] is not None
        )

    def await_held(self, within_s: float) -> None:
        """See `Held.await_held`."""
        with self._changed:
            self._changed.wait_for(lambda: self.outcome is not None or self._is_held(), within_s)
            outcome, is_held, told = self.outcome, self._is_held(), self._told
        if outcome is not None:
            made = _ERRORS.get(outcome.exit_code, HarnessError)
            message = str(told.get("error") or f"nothing is held: the run ended as {outcome.status}: {outcome.message}")
            raise made(str(told.get("code") or "internal"), message, str(told.get("hint") or ""))
        if not is_held:
            raise HarnessError("timeout", f"not all was held within {within_s:g} s", "see what the run's events say, or allow it more time")

    def _is_held(self) -> bool:
        operations = self._progress.get("operations", ())
        return bool(operations) and all(map(_has_its_share, operations))


def _has_its_share(told: Mapping[str, Any]) -> bool:
    """Tell whether an operation of a progress holds what it asks, or what of that the kernel gave."""
    return bool(told["requested"]) and (bool(told["shortfall"]) or told["health"] == "well")
