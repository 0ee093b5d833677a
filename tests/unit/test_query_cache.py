from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from actors.clock import VirtualClock
from actors.errors import HarnessError, InputError
from actors.metrics.histogram import Histogram
from cluster.metrics import store
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.cache import QueryCache
from cluster.metrics.store import read_log, read_run
from cluster.metrics.windows import METRICS
from tests.support.windows import START_S, end, record


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def cache(clock: VirtualClock) -> QueryCache:
    return QueryCache(clock, ttl_s=10, max_entries=3, max_bytes=4000)


def value(cache: QueryCache, question: object, revision: int = 1) -> object:
    found = cache.get(question, revision)
    return "miss" if found is None else found.value


# the cache by itself


def test_an_answer_is_given_again_for_its_revision(cache: QueryCache) -> None:
    """A question of the same revision is a hit, another question or revision is not, and None is an answer."""
    cache.put("a", 1, 7)
    cache.put("b", 1, None)
    assert (value(cache, "a"), value(cache, "b"), value(cache, "c")) == (7, None, "miss")
    assert value(cache, "a", 2) == "miss"
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.invalidated, counts.entries, counts.bytes) == (2, 2, 2, 0, 0)


def test_no_answer_is_older_than_the_ttl(cache: QueryCache, clock: VirtualClock) -> None:
    """Just before its time an answer is given, at its time it is expired; its age counts from when it was begun."""
    cache.put("a", 1, 7)
    clock.advance(9.999_999)
    assert value(cache, "a") == 7
    clock.advance(0.000_001)
    assert value(cache, "a") == "miss"
    assert (cache.counts().expired, cache.counts().misses, cache.counts().entries) == (1, 1, 0)
    begun_ns = clock.boot_ns()
    clock.advance(9)
    cache.put("a", 1, 8, made_ns=begun_ns)
    clock.advance(1)
    assert value(cache, "a") == "miss"


def test_an_answer_of_old_data_is_not_kept(cache: QueryCache) -> None:
    """What was computed of a revision that is gone meanwhile does not come in."""
    cache.put("new", 5, 1)
    cache.put("late", 4, 2)
    assert (value(cache, "late", 5), value(cache, "late", 4), value(cache, "new", 5)) == ("miss", "miss", 1)
    assert cache.counts().invalidated == 1


def test_the_least_recently_used_goes_first(cache: QueryCache) -> None:
    """Past its number of entries the one that was not asked for longest goes."""
    for name in "abc":
        cache.put(name, 1, name)
    assert value(cache, "a") == "a"
    cache.put("d", 1, "d")
    assert [value(cache, name) for name in "abcd"] == ["a", "miss", "c", "d"]
    assert cache.counts().evicted == 1


def test_memory_is_bounded(cache: QueryCache) -> None:
    """Past its bytes entries go until it fits; one that is larger than a quarter never comes in; replacing counts once."""
    for size in (900, 900, 950):
        cache.put("same", 1, size, size=size)
    assert (value(cache, "same"), cache.counts().bytes) == (950, 950)
    cache.put("huge", 1, 0, size=1001)
    assert (value(cache, "huge"), cache.counts().oversized) == ("miss", 1)
    small = QueryCache(VirtualClock(), max_bytes=1000)
    for at in range(100):
        small.put(at, 1, at, size=250)
        assert small.counts().bytes <= 1000
    assert (small.counts().evicted, small.counts().entries) == (96, 4)


def test_a_hundred_thousand_questions_stay_within_bounds(clock: VirtualClock) -> None:
    """10^5 different questions leave no more than the bound, and every one that came in is accounted for."""
    cache = QueryCache(clock, max_entries=500)
    for at in range(100_000):
        cache.put(("figure", at), 1, at)
    counts = cache.counts()
    assert (counts.entries, counts.evicted, counts.bytes) == (500, 99_500, 500 * 64)


@pytest.mark.parametrize("bad", [{"ttl_s": 0}, {"ttl_s": float("nan")}, {"max_entries": 0}, {"max_bytes": 0}])
def test_bad_bounds_are_refused(bad: dict) -> None:
    """A cache without a time to live or a bound is an error."""
    with pytest.raises(InputError, match="cache"):
        QueryCache(VirtualClock(), **bad)


# in the aggregator


@pytest.fixture
def aggregator(tmp_path: Path, clock: VirtualClock) -> Aggregator:
    made = Aggregator("run-1", tmp_path / "run-1", clock, cache_ttl_s=10)
    made.push("n1", "a", [record("n1", at) for at in range(1, 11)])
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the files that are opened for metrics: logs and Parquet parts."""
    found: list[str] = []

    def counting(original):
        def call(path, *args, **kwargs):
            found.append("log" if isinstance(path, bytes) else str(path))
            return original(path, *args, **kwargs)

        return call

    monkeypatch.setattr(store, "_read_log", counting(store._read_log))
    monkeypatch.setattr(store.pq, "read_table", counting(store.pq.read_table))
    monkeypatch.setattr(store.pq, "read_schema", counting(store.pq.read_schema))
    return found


@pytest.fixture
def quantiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the quantiles that are computed, one by one or of many."""
    found: list[int] = []
    single, many = Histogram.quantiles, __import__("actors.metrics.histogram", fromlist=["x"]).quantiles_of
    monkeypatch.setattr(Histogram, "quantiles", lambda self, qs: (found.append(1), single(self, qs))[1])
    monkeypatch.setattr("actors.metrics.histogram.quantiles_of", lambda made, qs: (found.append(len(made)), many(made, qs))[1])
    return found


@pytest.mark.parametrize("settled", [False, True])
def test_repeated_questions_read_no_file_twice(aggregator: Aggregator, reads: list[str], settled: bool) -> None:
    """The same question again, or another statistic of the same windows, opens no file; another question does."""
    if settled:
        aggregator.finish()
        reads.clear()
    first = aggregator.evaluate("probe.response", "p50", "n1", {"probe": "x"})
    once = len(reads)
    assert once > 0
    assert [aggregator.evaluate("probe.response", "p50", "n1", {"probe": "x"}) for _ in range(5)] == [first] * 5
    assert aggregator.evaluate("probe.response", "p50", "n1", {"probe": "y"}) is None
    assert aggregator.evaluate("probe.response", "max", "n1") == pytest.approx(0.010)
    assert len(reads) == once
    table = aggregator.query("probe.response")
    assert len(reads) > once
    once = len(reads)
    assert aggregator.query("probe.response") is table
    assert len(reads) == once
    aggregator.evaluate("probe.response", "p50", "n2")
    assert len(reads) > once
    assert aggregator.answers.counts().hits == 5 + 2 + 1


@pytest.mark.parametrize("change", ["push", "finish", "early"])
def test_new_data_is_seen_at_once(tmp_path: Path, clock: VirtualClock, change: str) -> None:
    """A push, a settling and an early settling each end what was kept: answers are never of older data."""
    aggregator = Aggregator("r", tmp_path / "r", clock, settle_bytes=1 if change == "early" else 1 << 30)
    aggregator.push("n1", "a", [record("n1", 1)])
    assert aggregator.evaluate("probe.requests", "sum") == 1.0
    before = aggregator.answers.counts().misses
    if change == "finish":
        aggregator.finish()
        assert aggregator.evaluate("probe.requests", "sum") == 1.0
    else:
        aggregator.push("n1", "a", [record("n1", 2)])
        assert aggregator.evaluate("probe.requests", "sum") == 3.0
    assert aggregator.answers.counts().misses > before
    assert aggregator.answers.counts().invalidated > 0


def test_a_push_that_brings_nothing_new_keeps_the_answers(aggregator: Aggregator, reads: list[str]) -> None:
    """A repeated push changes no data, so what was answered stays answered."""
    aggregator.evaluate("probe.requests", "sum")
    once = len(reads)
    aggregator.push("n1", "a", [record("n1", 10)])
    assert aggregator.evaluate("probe.requests", "sum") == 55.0
    assert len(reads) == once


def test_a_failed_push_ends_the_answers_too(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    """What a failed push left in the log may be read, so nothing older is given again."""
    aggregator.evaluate("probe.requests", "sum")
    once = len(reads)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HarnessError, match="No space"):
            aggregator.push("n1", "a", [record("n1", 11)])
    aggregator.evaluate("probe.requests", "sum")
    assert len(reads) > once


def test_an_answer_expires_in_the_aggregator(aggregator: Aggregator, clock: VirtualClock, reads: list[str]) -> None:
    """After the time to live the files are read again, also when nothing was pushed."""
    aggregator.evaluate("probe.requests", "sum")
    once = len(reads)
    clock.advance(9)
    aggregator.evaluate("probe.requests", "sum")
    assert len(reads) == once
    clock.advance(1)
    aggregator.evaluate("probe.requests", "sum")
    assert len(reads) > once
    assert aggregator.answers.counts().expired == 2  # the figure and its rows


def test_an_answer_is_no_younger_than_the_rows_it_was_made_from(aggregator: Aggregator, clock: VirtualClock, reads: list[str]) -> None:
    """A figure that was made late from kept rows goes with them: no answer is of files read longer ago than the time to live."""
    aggregator.evaluate("probe.requests", "sum")
    once = len(reads)
    clock.advance(9)
    aggregator.evaluate("probe.requests", "count")
    assert len(reads) == once
    clock.advance(1)
    aggregator.evaluate("probe.requests", "count")
    assert len(reads) > once


def test_errors_are_not_kept(aggregator: Aggregator) -> None:
    """A question that is refused is refused again, and counts for nothing."""
    for _ in range(2):
        with pytest.raises(InputError, match="unknown metric"):
            aggregator.evaluate("host.cpu.bussy", "max")
        with pytest.raises(InputError, match="known: count"):
            aggregator.evaluate("host.cpu.busy", "p98")
    assert aggregator.answers.counts().entries == 0


def test_no_quantile_is_computed_while_windows_are_taken(tmp_path: Path, clock: VirtualClock, quantiles: list[int]) -> None:
    """A hundred windows compute no quantile; the first question computes one, the same question none, new data one again."""
    aggregator = Aggregator("r", tmp_path / "r", clock)
    for at in range(1, 101):
        aggregator.push("n1", "a", [record("n1", at)])
    assert (quantiles, aggregator.answers.quantile_computations) == ([], 0)
    assert aggregator.evaluate("probe.response", "p99") == pytest.approx(0.099, rel=0.004)
    aggregator.evaluate("probe.response", "p99")
    assert (len(quantiles), aggregator.answers.quantile_computations) == (1, 1)
    aggregator.push("n1", "a", [record("n1", 101)])
    assert len(quantiles) == 1
    aggregator.evaluate("probe.response", "p99")
    assert (len(quantiles), aggregator.answers.quantile_computations) == (2, 2)


def test_files_and_readers_have_the_quantiles_that_the_log_lacks(aggregator: Aggregator) -> None:
    """Quantiles are empty in the log, and filled in for who reads it and in Parquet: to the bit those of the digests."""
    for path in store.log_files(aggregator.directory, "metrics"):
        assert all(tagged.batch["p50"].null_count == tagged.batch.num_rows for tagged in read_log(path, METRICS))
    for _ in range(2):
        rows = read_run(aggregator.directory).metrics.to_pylist()
        assert len(rows) == 30
        for row in rows:
            want = [None] * 2 if row["digest"] is None else store_quantiles(row["digest"])
            assert [row["p50"], row["p999"]] == want
        assert aggregator.query("probe.response")["p99"].null_count == 0
        aggregator.push("n1", "a", [end(11)])
        aggregator.finish()
    assert store.log_files(aggregator.directory, "metrics") == []


def store_quantiles(digest: bytes) -> list[float]:
    from actors.metrics.histogram import decode

    return decode(digest).quantiles((0.5, 0.999))


def test_questions_while_windows_come(tmp_path: Path, clock: VirtualClock) -> None:
    """Asked from threads while windows are pushed, a total never falls and ends at all that was pushed."""
    aggregator = Aggregator("r", tmp_path / "r", clock, settle_bytes=50_000)
    done, seen = threading.Event(), [[0.0] for _ in range(3)]

    def ask(totals: list[float]) -> None:
        while not done.is_set():
            totals.append(aggregator.evaluate("probe.requests", "sum") or 0.0)
        totals.append(aggregator.evaluate("probe.requests", "sum") or 0.0)

    threads = [threading.Thread(target=ask, args=(totals,)) for totals in seen]
    for thread in threads:
        thread.start()
    for at in range(1, 61):
        aggregator.push("n1", "a", [record("n1", at)])
    done.set()
    for thread in threads:
        thread.join()
    for totals in seen:
        assert (np.diff(totals) >= 0).all()
        assert totals[-1] == sum(range(1, 61))
    assert aggregator.evaluate("probe.requests", "rate", between=(START_S + 1.0, START_S + 61.0)) == pytest.approx(30.5)
