"""Live samples for whoever asks: an async iterator for each subscriber over a queue of its own, bounded, with its own count of drops.

A sample is offered to every subscriber that is there when it is published. A queue that is full loses its oldest or refuses the newest,
as its subscriber chose; for each, `offered` = `delivered` + `dropped` + `waiting`, exactly. Publishing never waits and never awaits, so a
subscriber that stalls costs the others nothing but the memory of its own queue. One event loop; `publish_from_thread` for other threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Generic, TypeVar

from actors.errors import InputError, RefusedError

T = TypeVar("T")

BOUND: Final = 10_000
BOUND_MAX: Final = 10_000_000
SUBSCRIBERS_MAX: Final = 64
UNDER_WAY_MAX: Final = 100_000  # samples of other threads


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

    def __init__(self, feed: Feed[T], bound: int, overflow: Overflow) -> None:
        self._feed, self._bound, self._overflow = feed, bound, overflow
        self._queue: deque[T] = deque()
        self._awake = asyncio.Event()
        self._ended = False
        self._iterated = False
        self._offered = self._delivered = self._dropped = 0

    def counts(self) -> Counts:
        """Return what became of the samples so far."""
        return Counts(self._offered, self._delivered, self._dropped, len(self._queue))

    def take(self, sample: T) -> None:
        """Queue a sample, or drop one; for the feed."""
        self._offered += 1
        if len(self._queue) >= self._bound:
            self._dropped += 1
            if self._overflow is Overflow.DROP_NEWEST:
                return
            self._queue.popleft()
        self._queue.append(sample)
        self._awake.set()

    def miss(self, count: int) -> None:
        """Count samples that were lost on their way to the feed; for the feed."""
        self._offered += count
        self._dropped += count

    def end(self) -> None:
        """Let the iteration end once the queue is empty; for the feed."""
        self._ended = True
        self._awake.set()

    def cancel(self) -> None:
        """Leave the feed and free the queue; what waited counts as dropped."""
        self._feed.leave(self)
        self._dropped += len(self._queue)
        self._queue.clear()
        self.end()

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
        try:
            while True:
                while self._queue:
                    sample = self._queue.popleft()
                    self._delivered += 1
                    yield sample
                if self._ended:
                    return
                self._awake.clear()
                await self._awake.wait()
        finally:
            self.cancel()


class Feed(Generic[T]):
    """Gives every sample to every subscriber. Belongs to the event loop on which it is used."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription[T]] = []
        self._closed = False
        self._lock = threading.Lock()
        self._under_way = self._lost = 0  # samples that other threads sent and the loop has not seen; those it will not see

    @property
    def subscribers(self) -> int:
        """How many there are now."""
        return len(self._subscriptions)

    def subscribe(self, bound: int = BOUND, overflow: Overflow = Overflow.DROP_OLDEST) -> Subscription[T]:
        """Return a subscription to what is published from now on, holding at most `bound` samples.

        Raises `InputError` for a bound out of 1..10^7, `RefusedError` past 64 subscribers or when the feed is closed.
        """
        if not 1 <= bound <= BOUND_MAX:
            raise InputError("invalid_value", f"a subscription holds 1 to {BOUND_MAX} samples, got {bound}")
        if self._closed:
            raise RefusedError("expired", "this feed of samples has ended", "subscribe while the run lasts")
        if len(self._subscriptions) >= SUBSCRIBERS_MAX:
            raise RefusedError("busy", f"this feed has {SUBSCRIBERS_MAX} subscribers, its most", "end another subscription first")
        made = Subscription(self, bound, overflow)
        self._subscriptions.append(made)
        return made

    def publish(self, samples: Iterable[T]) -> None:
        """Offer samples to all subscribers; never waits."""
        for sample in samples:
            for subscription in self._subscriptions:
                subscription.take(sample)
        with self._lock:
            lost, self._lost = self._lost, 0
        for subscription in self._subscriptions if lost else ():
            subscription.miss(lost)

    def publish_from_thread(self, loop: asyncio.AbstractEventLoop, samples: Iterable[T]) -> None:
        """Offer samples from a thread other than the loop's; they arrive in order. Raises `RuntimeError` when the loop is closed.

        At most `UNDER_WAY_MAX` wait for a loop that is slow; the newest past them are lost, and each subscriber counts them as dropped.
        """
        batch = list(samples)
        with self._lock:
            kept = batch[: UNDER_WAY_MAX - self._under_way]
            self._under_way += len(kept)
            self._lost += len(batch) - len(kept)  # now: what is under way will be published after this, and charges it
        try:
            if kept or loop.is_closed():
                loop.call_soon_threadsafe(self._arrive, kept)
        except RuntimeError:
            with self._lock:
                self._under_way -= len(kept)
                self._lost -= len(batch) - len(kept)
            raise

    def _arrive(self, samples: list[T]) -> None:
        with self._lock:
            self._under_way -= len(samples)
        self.publish(samples)

    def leave(self, subscription: Subscription[T]) -> None:
        """Offer nothing more to a subscription."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End the feed: each subscriber gets what waits for it, then its iteration ends."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()
