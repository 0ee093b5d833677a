"""What simulators of exhaustion share: hold as many things as the shape asks, and tell what was refused.

    asked ──▶ taken and given back in batches, with a look at the lease after each ──▶ held
    refused (EMFILE, ENOMEM, ...) ──▶ a little is given back, so that this process can go on; tried again every `retry_s`
    planned end ──▶ given back in `release_steps` equal steps; a stop gives everything back at once

A simulator brings a `Stock`: how one of its things is taken and given back. Nothing here outlives the process.
"""

from __future__ import annotations

import errno
import math
import mmap
import resource
from typing import TYPE_CHECKING, Final, Protocol

from ..clock import SECOND_NS, process_cpu_ns
from ..lease import NOTE_NO_RECORDING, LeaseWatch
from ..messages import Capacity, Operation
from ..meters import open_reporter
from ..option import Option
from ..release import Release, release_options, wait_until
from ..simulator import absolute, record_of
from . import tuning
from .refusal import ERRNOS, errno_word

if TYPE_CHECKING:
    from ..metrics.reporter import Recordable, Reporter

METRICS: Final = ("load.operations", "load.refused", "load.slice")  # what every holder records


class Stock(Protocol):
    """What is held, as a stack. Used by one thread."""

    @property
    def held(self) -> int:
        """How many are held."""
        ...

    def open(self) -> None:
        """Get ready: what is opened here is no dose. Raises `OSError`."""
        ...

    def take(self, count: int) -> None:
        """Take so many more, one by one; raises `OSError` at the first that is refused, and keeps those before it.

        One whose things take long may take fewer, and one at least: it is asked for the rest after a look at the lease.
        """
        ...

    def give_back(self, count: int) -> None:
        """Give back the `count` that were taken last; at most what is held."""
        ...

    def figures(self) -> dict[str, float]:
        """Return gauges of the catalogue to record once all is given back."""
        ...


def holding_options(kind: str) -> tuple[Option, ...]:
    """Return the options of every holder, with the defaults that suit what this one holds."""
    tuned, pace = tuning.used, tuning.used.paces[kind]
    return (
        Option("allow_partial", "flag", True, "keep what could be taken where the kernel refuses more; false: give all of it back"),
        Option("batch", "integer", pace.batch, "how many are taken or given back between two looks at the lease", low=1, high=100_000),
        Option(
            "spare", "integer", pace.spare, "how many are given back when the kernel refuses more, so that the load itself can go on", low=0
        ),
        Option("retry_s", "duration", tuned.retry_s, "seconds until more is asked for again after a refusal", low=0.1),
        *release_options(tuned.release_steps, tuned.release_interval_s),
    )


def next_step(asked: int, held: int, most: int, batch: int) -> int:
    """Return how many to take (above 0) or to give back (below 0) now: towards the asked, never past `most`, a batch at a time. Pure."""
    return max(-batch, min(batch, min(asked, most) - held))


def whole(value: float) -> int:
    """Return how many things a strength asks: no part of one, but for what rounding took."""
    return math.floor(value + tuning.used.rounding)


def raise_descriptor_limit(count: int) -> None:
    """Raise this process's soft limit so that `count` more descriptors fit, at most to its hard limit; never lowers it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + tuning.used.own_descriptors
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _headroom() -> mmap.mmap:
    """Return address space that nothing else gets while it is open: once more is refused, this process needs some of it itself.

    What is given back may free none: the C library keeps the stacks of threads that have ended. Raises `OSError`.
    """
    return mmap.mmap(-1, tuning.used.headroom_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)


class HolderFigures:
    """The series of a holder."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._operations = reporter.counter("load.operations")
        self._slice = reporter.histogram("load.slice")
        self._refused: dict[str, Recordable] = {word: reporter.counter("load.refused", errno=word) for word in ERRNOS}

    def moved(self, duration_s: float, count: int) -> None:
        """Record a batch: one call for each series, however many things it moved."""
        self._slice.record(duration_s)
        self._operations.record(float(count))

    def refused(self, word: str) -> None:
        """Record that the kernel refused, by the name of its error number."""
        self._refused[word].record(1.0)


class Holding:
    """Runs in a load process: `warm_up`, then `run`. `descriptors_each` is how many descriptors one thing takes here."""

    def __init__(
        self,
        stock: Stock,
        operation: Operation,
        capacity: Capacity,
        watch: LeaseWatch,
        segment_path: str = "",
        *,
        descriptors_each: int = 0,
        tries: bool = True,
    ) -> None:
        record = record_of(operation.kind)
        options = record.resolve_options(operation.options)
        self._stock, self._operation, self._watch = stock, operation, watch
        self._shape = absolute(operation, capacity)
        self._unit = float(getattr(capacity, record.resource)) if operation.unit == "fraction" else 1.0
        self._batch, self._spare = int(options["batch"]), int(options["spare"])
        self._allow_partial, self._retry_ns = bool(options["allow_partial"]), round(float(options["retry_s"]) * SECOND_NS)
        self._release = Release.of(options)
        self._tries = tries
        self._descriptors = descriptors_each * whole(self._shape.peak(operation.duration_s))
        self._segment_path = segment_path
        self._figures: HolderFigures | None = None
        self._moved = 0
        self._ticked_ns = 0
        # where the kernel refused: no more than this until then
        self._most: int | None = None
        self._again_ns = 0
        self._first_errno = 0
        self._short_of = 0  # the most that was asked for and refused, 0 once it is held

    def warm_up(self) -> None:
        """Open what is needed and, unless not to, take one thing for a moment, so that what cannot work at all is said before the start."""
        reporter, is_kept = open_reporter(self._segment_path, self._operation.seed)
        if self._segment_path and not is_kept:
            self._watch.note(NOTE_NO_RECORDING)
        self._figures = HolderFigures(reporter)
        raise_descriptor_limit(self._descriptors)
        self._stock.open()
        if self._tries:
            self._stock.take(1)
            self._stock.give_back(1)
        reporter.tick()  # the first of them is slow
        self._ticked_ns = self._watch.clock.boot_ns()
        self.idle()

    def idle(self) -> None:
        """Publish a sign of life."""
        self._watch.report(asked=0.0, own=0.0, cpu_ns=process_cpu_ns(), operations=0)

    def run(self, start_ns: int) -> None:
        """Follow the shape until the operation's end or a stop, give all back; leaves the process when the lease ends."""
        assert self._figures is not None, "warm_up comes before run"
        self._watch.first_slice()
        try:
            self._follow(start_ns, start_ns + round(self._operation.duration_s * SECOND_NS))
            self._release_in_steps()
            self._stock.give_back(self._stock.held)
            for name, value in self._stock.figures().items():
                self._figures.reporter.gauge(name).record(value)
        finally:  # also of a load that fails nothing is lost
            self._figures.reporter.close()

    def _follow(self, start_ns: int, end_ns: int) -> None:
        clock = self._watch.clock
        while (now_ns := clock.boot_ns()) < end_ns and self._watch.may_go_on():
            asked = self._shape.value((now_ns - start_ns) / SECOND_NS) * self._watch.ceiling()
            is_there = self._move(whole(asked), now_ns)
            self._publish(asked)
            if is_there:
                clock.sleep(min(tuning.used.look_s, max(0.0, (end_ns - clock.boot_ns()) / SECOND_NS)))

    def _move(self, asked: int, now_ns: int) -> bool:
        """Take or give back one batch; return whether there is nothing more to do now."""
        if self._most is not None and now_ns >= self._again_ns:
            self._most = None
        held = self._stock.held
        step = next_step(asked, held, asked if self._most is None else self._most, self._batch)
        if step == 0:
            return True
        try:
            if step > 0:
                with _headroom():
                    self._stock.take(step)
            else:
                self._stock.give_back(-step)
        except MemoryError:
            self._refuse(errno.ENOMEM, asked)
        except OSError as error:
            self._refuse(error.errno or 0, asked)
        else:
            self._meet()
        self._record(now_ns, abs(self._stock.held - held))
        return self._most is not None and self._stock.held >= self._most

    def _refuse(self, code: int, asked: int) -> None:
        """Give some back first: others of this process's limits may be reached with it. Then tell, and wait for the time to ask again."""
        self._stock.give_back(min(self._spare, self._stock.held) if self._allow_partial else self._stock.held)
        now_ns = self._watch.clock.boot_ns()
        self._most = self._stock.held
        self._again_ns = now_ns + self._retry_ns if self._allow_partial else now_ns + round(self._operation.duration_s * SECOND_NS)
        self._first_errno = self._first_errno or code
        self._short_of = max(self._short_of, asked)
        self._watch.shortfall(self._first_errno, self._short_of, self._stock.held)
        if self._figures is not None:
            self._figures.refused(errno_word(code))

    def _meet(self) -> None:
        """Take a refusal back once all that was refused is held."""
        if self._short_of and self._stock.held >= self._short_of:
            self._short_of = 0
            self._watch.shortfall(0, 0, 0)

    def _release_in_steps(self) -> None:
        """Give back in equal steps after the planned end, as long as nobody asks for the end before."""
        self._release.follow(self._stock.held, self._watch.clock.boot_ns(), self._wait_until, self._lower_to)

    def _lower_to(self, level: int) -> bool:
        """Give back batch by batch down to a level; false when the load is to end now."""
        while (surplus := self._stock.held - level) > 0:
            now_ns, step = self._watch.clock.boot_ns(), min(self._batch, surplus)
            self._stock.give_back(step)
            self._record(now_ns, step)
            if not self._watch.may_go_on():
                return False
        return True

    def _wait_until(self, at_ns: int) -> bool:
        return wait_until(self._watch, at_ns, lambda: self._publish(float(self._stock.held)), tuning.used.look_s)

    def _record(self, since_ns: int, moved: int) -> None:
        assert self._figures is not None, "warm_up comes before run"
        self._moved += moved
        self._figures.moved((self._watch.clock.boot_ns() - since_ns) / SECOND_NS, moved)

    def _publish(self, asked: float) -> None:
        now_ns = self._watch.clock.boot_ns()
        if self._figures is not None and now_ns - self._ticked_ns >= tuning.used.tick_s * SECOND_NS:
            self._ticked_ns = now_ns
            self._figures.reporter.tick()
        own = self._stock.held / self._unit
        self._watch.report(asked=asked / self._unit, own=own, cpu_ns=process_cpu_ns(), operations=self._moved)
