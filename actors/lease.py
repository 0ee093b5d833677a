"""A load's side of the control page: may I load now, how strongly, and what I say of myself. Holds no authority.

A look is one read of the lease word and one of the stop word. An expired lease is terminal, also when the page says
otherwise later; the load then leaves through `expire`, which runs no clean-up that could wait.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

from . import control
from .clock import Clock
from .control import ControlPage, StatsPage
from .exhaustion.refusal import errno_word
from .lifecycle import EXIT_LEASE
from .messages import Shortfall
from .ray_loads.service_graph import name_of, number_of

# Words of a load's stats slot beyond those that `control` names.
BASELINE: Final = 9  # anonymous bytes before the ramp
NOTES: Final = 10  # bits of Note
SHORT_ERRNO: Final = 11  # the first error number of a partial allocation, 0 while there is none
SHORT_REQUESTED: Final = 12  # the most that was asked for and not got
SHORT_ALLOCATED: Final = 13  # what is held instead
HEAT: Final = 14  # 0 while nothing was decided; else 1 while the load yields, 2 once it goes on, and thousandths of a degree + 1 above
SENSOR: Final = 15  # and the two words after it: the sensor's name
NOTE_NICE_REFUSED: Final = 1  # the load runs at a lower priority than asked: raising it is not permitted
NOTE_NO_POPULATE: Final = 2  # memory is touched page by page: the kernel cannot populate it
NOTE_NO_RECORDING: Final = 4  # the agent's segment could not be opened: the load records nothing
NOTE_NO_SENSOR: Final = 8  # no temperature can be read: the load does not yield to heat
NOTE_SIMULATED_CLOCK: Final = 16  # a lower clock rate is simulated: by taking cores, not by the governor
NOTE_NO_DIRECT: Final = 32  # the file system has no direct access: input and output go through the page cache
CASCADE: Final = 18  # what a cascade of failures has reached, 0 while none began; the services that failed are in the words after it
_NAME_WORDS: Final = 3
_FAILED_WORDS: Final = 4
_FAILED_EACH: Final = 10  # services in one of them
_FAILED_BITS: Final = 6  # of which the highest says that a round begins with this one
_HEAT_SHIFT: Final = 2


def read_shortfall(stats_page: StatsPage, slot: int, generation: int) -> Shortfall | None:
    """Return what a load of this generation could not get, None when it got all."""
    code, requested, allocated = (stats_page.word(slot, word) for word in (SHORT_ERRNO, SHORT_REQUESTED, SHORT_ALLOCATED))
    ours = stats_page.word(slot, control.GENERATION) == generation
    return Shortfall(errno_word(code), requested, allocated) if ours and requested else None


def read_heat(stats: StatsPage, slot: int) -> tuple[bool, str, float | None] | None:
    """Return what a load published by `LeaseWatch.heat`: whether it yields, the sensor, its degrees; None while it published nothing."""
    word = stats.word(slot, HEAT)
    if not word:
        return None
    name = struct.pack(f"={_NAME_WORDS}Q", *(stats.word(slot, SENSOR + index) for index in range(_NAME_WORDS)))
    milli = word >> _HEAT_SHIFT
    return word & 3 == 1, name.rstrip(b"\0").decode("utf-8", "replace"), (milli - 1) / 1000 if milli else None


def read_cascade(stats: StatsPage, slot: int) -> tuple[tuple[tuple[str, ...], ...], int, int, float] | None:
    """Return what a load published by `LeaseWatch.cascade`: rounds, of how many services, depth, span; None while it published nothing."""
    head = stats.word(slot, CASCADE)
    if not head:
        return None
    rounds: list[list[str]] = []
    for at in range(head & 0xFF):
        word = stats.word(slot, CASCADE + 1 + at // _FAILED_EACH)
        told = word >> at % _FAILED_EACH * _FAILED_BITS & (1 << _FAILED_BITS) - 1
        if told >> _FAILED_BITS - 1 or not rounds:
            rounds.append([])
        rounds[-1].append(name_of(told & (1 << _FAILED_BITS - 1) - 1))
    return tuple(map(tuple, rounds)), head >> 8 & 0xFF, head >> 16 & 0xFF, (head >> 24) / 1000


class Order(IntEnum):
    """What the control page says."""

    GO = 0
    WAIT = 1  # no lease was given yet
    DRAIN = 2
    DEAD = 3


class LeaseWatch:
    """One load's view of its slot. Thread safe: every figure is one aligned word."""

    def __init__(
        self,
        control_page: ControlPage,
        stats_page: StatsPage,
        slot: int,
        generation: int,
        clock: Clock,
        *,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.control = control_page
        self.stats = stats_page
        self.slot = slot
        self.generation = generation
        self.clock = clock
        self._leave = leave
        self._words = control_page.as_words()
        self._lease_at = control.word_index(slot, control.LEASE)
        self._stop_at = control.word_index(slot, control.STOP)
        self._ceiling_at = control.word_index(slot, control.CEILING)
        self._stop_drain = generation << control.GENERATION_SHIFT | control.STOP_DRAIN
        self._stop_kill = generation << control.GENERATION_SHIFT | control.STOP_KILL
        self._seen_live = False
        self._expired = False
        self._notes = 0

    def look(self) -> Order:
        """Return what to do now; DEAD stays DEAD."""
        if self._expired:
            return Order.DEAD
        order = self._judge(self.clock.boot_ns())
        self._expired = order is Order.DEAD
        return order

    def _judge(self, now_ns: int) -> Order:
        generation, deadline_ns = control.unpack_lease(self._words[self._lease_at])
        stop = self._words[self._stop_at]
        if generation != self.generation or stop == self._stop_kill:
            return Order.DEAD
        if now_ns >= deadline_ns and (self._seen_live or deadline_ns):
            return Order.DEAD
        if stop == self._stop_drain:
            return Order.DRAIN
        if not deadline_ns:
            return Order.WAIT
        self._seen_live = True
        return Order.GO

    def may_go_on(self) -> bool:
        """Tell whether to load on; leaves the process at once when the lease is over."""
        order = self.look()
        if order is Order.DEAD:
            self.expire()
        return order is Order.GO

    def expire(self) -> None:
        """End this process now: no handler, no flush, no wait."""
        self._leave(EXIT_LEASE)

    def ceiling(self) -> float:
        """Return the throttle, 0..1; a word that is no number in that range counts as 0."""
        (value,) = struct.unpack("=d", struct.pack("=Q", self._words[self._ceiling_at]))
        return float(value) if 0.0 <= value <= 1.0 else 0.0

    def start_ns(self) -> int:
        """Return when load begins, 0 while that is not decided."""
        return self.control.start_ns(self.slot)

    def state(self, state: int) -> None:
        """Publish a state of `control.LOAD_*`."""
        self.stats.put(self.slot, control.STATE, state)

    def first_slice(self) -> None:
        """Publish that load began, once."""
        if not self.stats.word(self.slot, control.FIRST_SLICE):
            self.stats.put(self.slot, control.FIRST_SLICE, self.clock.boot_ns())
            self.state(control.LOAD_RUNNING)

    def baseline(self, held_bytes: int) -> None:
        """Publish the anonymous bytes held before the ramp."""
        self.stats.put(self.slot, BASELINE, held_bytes)

    def note(self, bit: int) -> None:
        """Publish one of the `NOTE_*` facts."""
        self._notes |= bit
        self.stats.put(self.slot, NOTES, self._notes)

    def shortfall(self, code: int, requested: int, allocated: int) -> None:
        """Publish that `requested` were asked for and only `allocated` are held, for the kernel refused with `code`; zeros take it back."""
        for word, value in ((SHORT_ERRNO, code), (SHORT_ALLOCATED, allocated), (SHORT_REQUESTED, requested)):
            self.stats.put(self.slot, word, value)

    def heat(self, *, yields: bool, sensor: str, celsius: float | None) -> None:
        """Publish that the load yields to heat, or that it goes on: the sensor's name (24 bytes of it) and its temperature."""
        name = sensor.encode()[: 8 * _NAME_WORDS].ljust(8 * _NAME_WORDS, b"\0")
        for index, word in enumerate(struct.unpack(f"={_NAME_WORDS}Q", name)):
            self.stats.put(self.slot, SENSOR + index, word)
        milli = 0 if celsius is None else max(0, round(celsius * 1000)) + 1
        self.stats.put(self.slot, HEAT, milli << _HEAT_SHIFT | (1 if yields else 2))

    def cascade(self, rounds: Sequence[Sequence[str]], *, services: int, depth: int, span_s: float) -> None:
        """Publish who has failed (`service_graph.name_of`, at most 32), by rounds, of how many services, how deep and within which time."""
        words = [0] * _FAILED_WORDS
        failed = [(number_of(name), at == 0) for some in rounds for at, name in enumerate(some)]
        for at, (number, is_first) in enumerate(failed):
            words[at // _FAILED_EACH] |= (is_first << _FAILED_BITS - 1 | number) << at % _FAILED_EACH * _FAILED_BITS
        for at, word in enumerate(words):
            self.stats.put(self.slot, CASCADE + 1 + at, word)
        self.stats.put(self.slot, CASCADE, round(span_s * 1000) << 24 | depth << 16 | services << 8 | len(failed))

    def report(self, *, asked: float, own: float, cpu_ns: int, operations: int) -> None:
        """Publish figures: asked (after the ceiling) and own measure in the operation's unit, CPU time, work units."""
        put = self.stats.put
        self.stats.put_float(self.slot, control.ASKED, asked)
        self.stats.put_float(self.slot, control.OWN, own)
        put(self.slot, control.CPU, cpu_ns)
        put(self.slot, control.OPERATIONS, operations)
        put(self.slot, control.BEAT, self.clock.boot_ns())
