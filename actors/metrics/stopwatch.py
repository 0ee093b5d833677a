"""How long something takes, into a histogram of seconds: as a block or as a decorator, with its errors counted and raised again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from ..clock import SECOND_NS, Clock
from .error_ledger import ErrorSink
from .reporter import Recordable

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Measures with the clock's boot time, which never goes back. Safe from any thread and any task, nested as well.

        watch = Stopwatch(reporter.histogram("load.slice"), clock, errors.note)
        with watch.running(): ...

        @watch
        def work(): ...        # or async def

    What raises is measured too; its error goes to `on_error` and on to the caller. A generator is measured until it is made, not run.
    """

    __slots__ = ("_boot_ns", "_on_error", "_record")

    def __init__(self, series: Recordable, clock: Clock, on_error: ErrorSink | None = None) -> None:
        self._record, self._boot_ns, self._on_error = series.record, clock.boot_ns, on_error

    def running(self) -> Running:
        """Return a block's measurement; use it once, in a `with`."""
        return Running(self._record, self._boot_ns, self._on_error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, measured at each call; a coroutine function until it is done."""
        if inspect.iscoroutinefunction(function):
            awaited: Callable[..., Any] = function

            @functools.wraps(function)
            async def measured_task(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self.running():
                    return await awaited(*args, **kwargs)

            return measured_task  # type: ignore[return-value]  # a coroutine function, as the one it wraps

        @functools.wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.running():
                return function(*args, **kwargs)

        return measured


class Running:
    """One measurement."""

    __slots__ = ("_begun_ns", "_boot_ns", "_on_error", "_record")

    def __init__(self, record: Callable[[float], None], boot_ns: Callable[[], int], on_error: ErrorSink | None) -> None:
        self._record, self._boot_ns, self._on_error = record, boot_ns, on_error
        self._begun_ns = 0

    def __enter__(self) -> None:
        self._begun_ns = self._boot_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._record((self._boot_ns() - self._begun_ns) / SECOND_NS)
        if error is not None and self._on_error is not None:
            self._on_error(error)
