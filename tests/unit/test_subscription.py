"""Live samples: every subscriber gets all or an exact count of its own drops, a stalled one holds its bound, leaving frees the queue."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import InputError, RefusedError
from cluster.metrics import subscription
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
        await asyncio.sleep(0)
        thread = threading.Thread(target=feed.publish_from_thread, args=(asyncio.get_running_loop(), [2, 3]))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        feed.close()
        assert await reading == [1, 2, 3]

    asyncio.run(main())


def test_a_loop_that_is_slow_loses_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop stands still a thread's samples wait up to a bound; the rest is each subscriber's to count, and then there is room."""
    monkeypatch.setattr(subscription, "UNDER_WAY_MAX", 25)

    async def main() -> None:
        feed: Feed[int] = Feed()
        loop = asyncio.get_running_loop()
        one, two = feed.subscribe(), feed.subscribe(bound=5)
        scheduled = []
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call, *args: scheduled.append((call, args)))

        def send() -> None:
            for first in range(0, 100, 10):
                feed.publish_from_thread(loop, range(first, first + 10))

        for sent, waiting in ((100, 25), (200, 50)):
            thread = threading.Thread(target=send)
            thread.start()
            thread.join()
            assert len(scheduled) == 3
            while scheduled:
                call, args = scheduled.pop(0)
                call(*args)
            assert one.counts() == Counts(sent, 0, sent - waiting, waiting)
            assert two.counts() == Counts(sent, 0, sent - 5, 5)
        feed.publish_from_thread(loop, range(1000))
        for call, args in scheduled:
            call(*args)
        feed.close()
        assert await read(one) == [*range(25), *range(25), *range(25)]
        assert one.counts() == Counts(1200, 75, 1125, 0)

    asyncio.run(main())


def test_a_closed_loop_is_said_however_full() -> None:
    """A thread whose loop is gone is told, each time, and nothing stays under way or lost."""
    feed: Feed[int] = Feed()
    loop = asyncio.new_event_loop()
    loop.close()
    for samples in ([1], [], range(subscription.UNDER_WAY_MAX + 1)):
        with pytest.raises(RuntimeError):
            feed.publish_from_thread(loop, samples)
    one = feed.subscribe()
    feed.publish([])
    assert one.counts() == Counts(0, 0, 0, 0)
    assert feed._under_way == 0


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
