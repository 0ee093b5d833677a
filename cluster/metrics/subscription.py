"""Live samples for whoever asks: for each subscriber a queue of its own, bounded, with its own count of drops.

A sample is offered to every subscriber that is there when it is published. A queue that is full loses its oldest or refuses the newest,
as its subscriber chose; for each, `offered` = `delivered` + `dropped` + `waiting`, exactly. Publishing never waits for a subscriber, so
one that stalls costs the others nothing but the memory of its own queue. Any thread may publish; a subscriber is an async iterator, or
takes what waits from a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Final, Generic, TypeVar

from actors.errors import InputError, RefusedError

T = TypeVar("T")

BOUND: Final = 10_000
BOUND_MAX: Final = 1_000_000
SUBSCRIBERS_MAX: Final = 64


class Overflow(StrEnum):
    """What a full queue does with one more sample."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples of one subscriber: `offered` = `delivered` + `dropped` + `waiting`."""

    offered: int
    delivered: int
    dropped: int
    waiting: int


class Subscription(Generic[T]):
    """One subscriber: `async with feed.subscribe() as samples: async for sample in samples: ...`. It ends when the feed closes."""

    def __init__(self, feed: Feed[T], bound: int, overflow: Overflow, choose: Callable[[Sequence[T]], Sequence[T]] | None) -> None:
        self._feed, self._bound, self._overflow, self._choose = feed, bound, overflow, choose
        self._changed = threading.Condition()
        self._queue: deque[T] = deque(maxlen=bound)
        self._ended = False
        self._iterated = False
        self._wake: Callable[[], object] | None = None  # an async reader
        self._offered = self._delivered = self._dropped = 0

    def counts(self) -> Counts:
        """Return what became of the samples so far."""
        with self._changed:
            return Counts(self._offered, self._delivered, self._dropped, len(self._queue))

    @property
    def is_over(self) -> bool:
        """Whether it has ended and nothing waits."""
        with self._changed:
            return self._ended and not self._queue

    def offer(self, samples: Sequence[T]) -> None:
        """Queue what is wanted of these samples, or drop some; for the feed."""
        chosen = samples if self._choose is None else self._choose(samples)
        with self._changed:
            room = self._bound - len(self._queue)
            self._offered += len(chosen)
            self._dropped += max(0, len(chosen) - room)
            self._queue.extend(chosen if self._overflow is Overflow.DROP_OLDEST else chosen[:room])
            self._notify()

    def take(self, timeout_s: float, most: int = 1000) -> list[T]:
        """Return up to `most` samples, waiting this long at most for the first; none when nothing came or it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended, timeout_s)
            return self._popped(most)

    def end(self) -> None:
        """Let the reading end once the queue is empty; for the feed."""
        with self._changed:
            self._ended = True
            self._notify()

    def cancel(self) -> None:
        """Leave the feed and free the queue; what waited counts as dropped."""
        self._feed.leave(self)
        with self._changed:
            self._dropped += len(self._queue)
            self._queue.clear()
            self._ended = True
            self._notify()

    async def __aenter__(self) -> Subscription[T]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[T]:
        if self._iterated:
            raise RefusedError("busy", "this subscription is iterated already", "subscribe once more for a second reader")
        self._iterated = True
        return self._samples()

    async def _samples(self) -> AsyncIterator[T]:
        arrived = asyncio.Event()
        try:
            with self._changed:
                self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
            while True:
                arrived.clear()
                is_last = self._ended
                while found := self.take(0.0, 1):
                    yield found[0]
                if is_last:
                    return
                await arrived.wait()
        finally:
            self.cancel()

    def _popped(self, most: int) -> list[T]:
        found = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        self._delivered += len(found)
        return found

    def _notify(self) -> None:
        """Wake whoever waits. Under the lock."""
        self._changed.notify_all()
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # its loop is closed: nobody will read this any more
                self._wake = None
                self._feed.leave(self)


class Feed(Generic[T]):
    """Gives every sample to every subscriber. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription[T], ...] = ()
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many there are now."""
        return len(self._subscriptions)

    def subscribe(
        self,
        bound: int = BOUND,
        overflow: Overflow = Overflow.DROP_OLDEST,
        choose: Callable[[Sequence[T]], Sequence[T]] | None = None,
    ) -> Subscription[T]:
        """Return a subscription to what is published from now on, holding at most `bound` samples.

        `choose` returns which of some samples are wanted; the others are not offered. It must not wait or raise.
        Raises `InputError` for a bound out of 1..10^6, `RefusedError` past 64 subscribers (`busy`) or when the feed is closed (`expired`).
        """
        if not 1 <= bound <= BOUND_MAX:
            raise InputError("invalid_value", f"a subscription holds 1 to {BOUND_MAX} samples, got {bound}")
        with self._lock:
            if self._closed:
                raise RefusedError("expired", "this feed of samples has ended", "subscribe while the run lasts")
            if len(self._subscriptions) >= SUBSCRIBERS_MAX:
                raise RefusedError("busy", f"this feed has {SUBSCRIBERS_MAX} subscribers, its most", "end another subscription first")
            made = Subscription(self, bound, overflow, choose)
            self._subscriptions = (*self._subscriptions, made)
        return made

    def publish(self, samples: Sequence[T]) -> None:
        """Offer samples to all subscribers; never waits for one. They arrive in order where one thread publishes at a time."""
        for subscription in self._subscriptions:
            subscription.offer(samples)

    def leave(self, subscription: Subscription[T]) -> None:
        """Offer nothing more to a subscription."""
        with self._lock:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)

    def close(self) -> None:
        """End the feed: each subscriber gets what waits for it, then its iteration ends."""
        with self._lock:
            self._closed = True
        for subscription in self._subscriptions:
            subscription.end()
