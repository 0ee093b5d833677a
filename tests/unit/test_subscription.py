"""Live samples: every subscriber gets all or an exact count of its own drops, a stalled one holds its bound, leaving frees the queue."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError, RefusedError
from cluster.metrics.subscription import SUBSCRIBERS_MAX, Counts, Feed, Overflow


async def read(subscription, limit: int | None = None) -> list[int]:
    got: list[int] = []
    async with subscription as samples:
        async for sample in samples:
            got.append(sample)
            if len(got) == limit:
                break
    return got


def test_three_subscribers_each_get_all_or_know_what_they_missed() -> None:
    """A quick one gets every sample; a stalled one holds at most its bound, loses its oldest or newest, and the others notice nothing."""

    async def main() -> None:
        feed: Feed[int] = Feed()
        quick = feed.subscribe(bound=100)
        oldest = feed.subscribe(bound=50, overflow=Overflow.DROP_OLDEST)
        newest = feed.subscribe(bound=50, overflow=Overflow.DROP_NEWEST)
        reading = asyncio.create_task(read(quick))
        for first in range(0, 10_000, 100):
            feed.publish(range(first, first + 100))
            while quick.counts().waiting:  # noqa: ASYNC110  # for one turn of the loop, or two
                await asyncio.sleep(0)
            assert oldest.counts().waiting <= 50
        feed.close()
        assert await reading == list(range(10_000))
        assert quick.counts() == Counts(10_000, 10_000, 0, 0)
        assert await read(oldest) == list(range(9_950, 10_000))
        assert await read(newest) == list(range(50))
        assert oldest.counts() == newest.counts() == Counts(10_000, 50, 9_950, 0)

    asyncio.run(main())


@given(
    st.lists(st.one_of(st.integers(1, 20).map(lambda n: ("publish", n)), st.integers(1, 9).map(lambda n: ("read", n))), max_size=40),
    st.integers(1, 12),
    st.sampled_from(Overflow),
)
def test_a_subscription_is_a_bounded_queue(steps: list[tuple[str, int]], bound: int, overflow: Overflow) -> None:
    """For any turns of publishing and reading it does what a bounded queue does, and its counts are exact after each."""

    async def main() -> None:
        feed: Feed[int] = Feed()
        subscription = feed.subscribe(bound, overflow)
        samples = aiter(subscription)
        model: deque[int] = deque()
        offered = delivered = dropped = 0
        for what, count in steps:
            if what == "publish":
                feed.publish(range(offered, offered + count))
                for number in range(offered, offered + count):
                    if len(model) >= bound:
                        dropped += 1
                        if overflow is Overflow.DROP_NEWEST:
                            continue
                        model.popleft()
                    model.append(number)
                offered += count
            for _ in range(min(count, len(model)) if what == "read" else 0):
                assert await anext(samples) == model.popleft()
                delivered += 1
            assert subscription.counts() == Counts(offered, delivered, dropped, len(model))
        feed.close()
        assert [sample async for sample in samples] == list(model)

    asyncio.run(main())


def test_leaving_frees_the_queue() -> None:
    """Breaking out, being cancelled while waiting, and an error in the body each leave the feed; what waited counts as dropped."""

    async def main() -> None:
        feed: Feed[int] = Feed()
        one = feed.subscribe()
        feed.publish(range(10))
        assert await read(one, limit=3) == [0, 1, 2]
        assert (feed.subscribers, one.counts()) == (0, Counts(10, 3, 7, 0))
        two = feed.subscribe()

        async def bare() -> None:
            async for _ in two:
                pass

        waiting = asyncio.create_task(bare())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert feed.subscribers == 0

        async def fail() -> None:
            async with feed.subscribe() as samples:
                feed.publish([1])
                async for _ in samples:
                    raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert feed.subscribers == 0
        feed.publish([2])
        assert two.counts() == Counts(0, 0, 0, 0)

    asyncio.run(main())


def test_a_waiting_reader_wakes() -> None:
    """A reader that came first gets what is published later, also from another thread, and ends when the feed does."""

    async def main() -> None:
        feed: Feed[int] = Feed()
        reading = asyncio.create_task(read(feed.subscribe()))
        await asyncio.sleep(0)
        feed.publish([1])
        thread = threading.Thread(target=feed.publish, args=([2, 3],))
        thread.start()
        await asyncio.to_thread(thread.join)
        feed.close()
        assert await reading == [1, 2, 3]

    asyncio.run(main())


def test_a_thread_takes_what_waits() -> None:
    """Without a loop: what waits at once, up to a most; nothing after the time without samples; the end is told apart from silence."""
    feed: Feed[int] = Feed()
    one = feed.subscribe()
    feed.publish(range(5))
    assert (one.take(60, 3), one.take(60), one.take(0.0)) == ([0, 1, 2], [3, 4], [])
    assert not one.is_over
    taken: list[list[int]] = []
    reader = threading.Thread(target=lambda: taken.append(one.take(60)))
    reader.start()
    feed.publish([5])
    reader.join()
    feed.publish([6])
    feed.close()
    assert not one.is_over
    assert (taken, one.take(60), one.take(60), one.is_over) == ([[5]], [6], [], True)
    assert one.counts() == Counts(7, 7, 0, 0)


def test_threads_that_publish_and_read_lose_nothing() -> None:
    """Three threads publish while three subscribers read at once: each has every sample, or knows how many it has not."""
    feed: Feed[int] = Feed()
    subscriptions = [feed.subscribe(bound) for bound in (100_000, 100, 1)]
    found: list[list[int]] = [[] for _ in subscriptions]

    def drain(at: int) -> None:
        while not subscriptions[at].is_over:
            found[at] += subscriptions[at].take(60)

    readers = [threading.Thread(target=drain, args=(at,)) for at in range(3)]
    writers = [threading.Thread(target=lambda: [feed.publish(range(10)) for _ in range(500)]) for _ in range(3)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    feed.close()
    for thread in readers:
        thread.join()
    for one, got in zip(subscriptions, found, strict=True):
        assert one.counts() == Counts(15_000, len(got), 15_000 - len(got), 0)
    assert sorted(found[0]) == sorted([*range(10)] * 1500)


def test_only_what_is_chosen_is_offered() -> None:
    """A subscriber's own choice comes before its queue, so that neither its bound nor its counts know of the rest."""
    feed: Feed[int] = Feed()
    even = feed.subscribe(bound=3, choose=lambda samples: [one for one in samples if one % 2 == 0])
    feed.publish(range(10))
    assert (even.take(0.0), even.counts()) == ([4, 6, 8], Counts(5, 3, 2, 0))


def test_a_reader_whose_loop_is_gone_is_forgotten() -> None:
    """Its loop was closed over it: publishing goes on for the others, and does not offer it anything more."""
    feed: Feed[int] = Feed()
    lost, other = feed.subscribe(), feed.subscribe()
    loop = asyncio.new_event_loop()
    lost._wake = partial(loop.call_soon_threadsafe, print)
    loop.close()
    feed.publish([1])
    assert (feed.subscribers, other.take(0.0)) == (1, [1])


def test_bounds_are_kept() -> None:
    """No queue without a bound, no more subscribers than the most, no second reader of one queue, nothing after the end."""

    async def main() -> None:
        feed: Feed[int] = Feed()
        for bound in (0, -1, 10**9):
            with pytest.raises(InputError):
                feed.subscribe(bound)
        many = [feed.subscribe() for _ in range(SUBSCRIBERS_MAX)]
        with pytest.raises(RefusedError, match="its most"):
            feed.subscribe()
        many[0].cancel()
        one = feed.subscribe()
        aiter(one)
        with pytest.raises(RefusedError, match="iterated already"):
            aiter(one)
        feed.close()
        with pytest.raises(RefusedError, match="has ended"):
            feed.subscribe()

    asyncio.run(main())
