"""What do sketches cost, and how far off are they? Histogram, t-digest, distinct count, top list, moments, query cache, with peers.

Run: python benchmarks/bench_sketches.py. Peers that are not installed are named with that reason. Rates are million samples a second of
CPU time, best of some rounds; errors are of seeded data against an exact sort. `rank` tables are shares of all samples, `value` tables
per cent. `ingest` is 100,000 samples into one series and into many, by our recorder (which copies, drains into shared memory, and is the
only one that is safe against a kill) and by the quickest peers (sorted by series first, then a sketch of each). `bytes` of a histogram are
those of its digest, `bytes_zstd` what is left of it in a run's files, `bytes_lz4` on its way and in the log. `interpolated_percent` is
what the same buckets would answer by interpolation, which guarantees half as much (docs/decisions/0013).
"""

from __future__ import annotations

import math
import pickle
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
from machine import at_least, at_most, store
from peers import installed, measured

from actors.clock import SystemClock
from actors.metrics import Recorder, Segment
from actors.metrics import histogram as histograms
from actors.metrics.histogram import Histogram, quantiles_of
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.sketches import Distinct, Moments, TDigest, Top
from cluster.metrics.sketches import tdigest as digests
from tests.support.windows import record

QS = [0.5, 0.9, 0.99, 0.999, 0.9999]
SIZE = 1_000_000
MANY = 10_000_000
CHANCE = np.random.default_rng(7)
ROUNDS = 5
INGEST = {100: 150.0, 1_000: 75.0, 10_000: 20.0}  # series: goal in million samples a second


def seconds(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the best CPU time of a call."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def shape(name: str, size: int) -> np.ndarray:
    """Return seeded samples."""
    if name == "lognormal":
        return CHANCE.lognormal(size=size)
    if name == "pareto":
        return CHANCE.pareto(1.5, size) + 1.0
    if name == "bimodal":
        return np.where(CHANCE.random(size) < 0.85, CHANCE.normal(10, 1, size), CHANCE.normal(100, 10, size))
    return np.full(size, 3.3) if name == "constant" else np.arange(1.0, size + 1)


def value_errors(want: np.ndarray, got: list[float]) -> list[float]:
    return [round(abs(float(one) / float(other) - 1) * 100, 4) for one, other in zip(got, want, strict=True)]


def rank_errors(ordered: np.ndarray, got: list[float]) -> list[float]:
    """Return how far each answer is from its rank; 0 where samples equal to it span the rank."""
    found = []
    for q, value in zip(QS, got, strict=True):
        first, last = (np.searchsorted(ordered, value, side) / ordered.size for side in ("left", "right"))
        found.append(round(float(max(first - q, q - last, 0.0)), 7))
    return found


def rank_table() -> dict[str, Any]:
    """Return rank errors of 10^7 samples at once, and of 64 nodes merged in random order."""
    table = {}
    for name in ("lognormal", "pareto", "bimodal", "constant", "sorted"):
        values = shape(name, MANY)
        parts = [TDigest.of(part) for part in np.array_split(values, 64)]
        random.Random(3).shuffle(parts)
        whole, merged = TDigest.of(values), TDigest.of(())
        for part in parts:
            merged = digests.merge((merged, part))
        ordered = np.sort(values)
        table[name] = {
            "at_once": rank_errors(ordered, whole.quantiles(QS)),
            "64_merged": rank_errors(ordered, merged.quantiles(QS)),
            "bytes": len(whole.encode()),
        }
    return table


def reservoir_table() -> dict[str, list[float]]:
    """Return the 5th and 95th percentile of p99.9 over 200 trials of log-normal data: exact, digest, reservoir of 1,000."""
    found: dict[str, list[float]] = {"exact": [], "t_digest": [], "reservoir_1000": []}
    for _ in range(200):
        values = CHANCE.lognormal(size=100_000)
        found["exact"].append(float(np.quantile(values, 0.999)))
        found["t_digest"].append(TDigest.of(values).quantile(0.999))
        found["reservoir_1000"].append(float(np.quantile(CHANCE.choice(values, 1000, replace=False), 0.999)))
    return {name: [round(float(one), 2) for one in np.quantile(values, [0.05, 0.95])] for name, values in found.items()}


class Reservoir:
    """What the digest replaced: 1,000 samples by Algorithm R, sorted at each question."""

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.seen = 0
        self.chance = random.Random(1)

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self.kept) < 1000:
            self.kept.append(value)
        elif (at := self.chance.randrange(self.seen)) < 1000:
            self.kept[at] = value

    def quantiles(self, qs: list[float]) -> list[float]:
        ordered = sorted(self.kept)
        return [ordered[int(q * (len(ordered) - 1))] for q in qs]


def costs(values: np.ndarray) -> dict[str, dict[str, float]]:
    """Return nanoseconds a sample added and microseconds a question of five quantiles: digest, histogram and reservoir."""
    few = values[:100_000]
    reservoir, digest, held = Reservoir(), TDigest.of(few), Histogram.of(few)

    def fill() -> None:
        for value in few.tolist():
            reservoir.add(value)

    found = {
        "t_digest": (seconds(lambda: TDigest.of(few)), seconds(lambda: digest.quantiles(QS), 50), len(digest.encode())),
        "histogram": (seconds(lambda: Histogram.of(few)), seconds(lambda: held.quantiles(QS), 50), len(held.encode())),
        "reservoir_1000": (seconds(fill, 2), seconds(lambda: reservoir.quantiles(QS), 50), 8_000),
    }
    return {
        name: {"add_ns": round(add / few.size * 1e9, 2), "query_us": round(query * 1e6, 1), "bytes": size}
        for name, (add, query, size) in found.items()
    }


def own_digest(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    """Return rate, size, errors and the cost of merging of our digest."""
    parts = [TDigest.of(part) for part in np.array_split(values, 1000)]
    held = Histogram.of(values)
    whole = TDigest.of(values)
    return {
        "from_10k_M_per_s": round(0.01 / seconds(lambda: TDigest.of(values[:10_000])), 1),
        "from_100k_M_per_s": round(0.1 / seconds(lambda: TDigest.of(values[:100_000])), 1),
        "of_histogram_us": round(seconds(lambda: TDigest.of_histogram(held)) * 1e6, 1),
        "merge_1000_us_each": round(seconds(lambda: digests.merge(parts)) * 1e3, 2),
        "merge_two_us": round(seconds(lambda: digests.merge(parts[:2]), 50) * 1e6, 1),
        "query_of_5_us": round(seconds(lambda: whole.quantiles(QS), 50) * 1e6, 1),
        "bytes": len(whole.encode()),
        "value_error_percent": value_errors(want, whole.quantiles(QS)),
        "after_1000_merges_percent": value_errors(want, digests.merge(parts).quantiles(QS)),
        "of_histogram_percent": value_errors(want, TDigest.of_histogram(held).quantiles(QS)),
    }


def interpolated(held: Histogram, qs: list[float]) -> list[float]:
    """Return quantiles by a straight line through the bucket of each, for positive values."""
    below = np.concatenate([[0], held.counts.cumsum()])
    ranks = np.array(qs) * (below[-1] - 1)
    at = np.searchsorted(below[1:], ranks, side="right")
    low, high = histograms.EDGES[held.keys[at] - 1], histograms.EDGES[held.keys[at]]
    return [float(one) for one in low + (high - low) * (ranks - below[at] + 0.5) / held.counts[at]]


def own_histogram(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    """Return rate, size, errors and the cost of merging of our histogram."""
    parts = [Histogram.of(part) for part in np.array_split(values, 1000)]
    whole = Histogram.of(values)
    digest = whole.encode()
    return {
        "from_10k_M_per_s": round(0.01 / seconds(lambda: Histogram.of(values[:10_000])), 1),
        "from_100k_M_per_s": round(0.1 / seconds(lambda: Histogram.of(values[:100_000])), 1),
        "merge_1000_us_each": round(seconds(lambda: histograms.merge(parts)) * 1e3, 2),
        "merge_two_us": round(seconds(lambda: histograms.merge(parts[:2]), 50) * 1e6, 1),
        "query_of_5_us": round(seconds(lambda: whole.quantiles(QS), 50) * 1e6, 1),
        "encode_us": round(seconds(whole.encode, 50) * 1e6, 1),
        "decode_us": round(seconds(lambda: histograms.decode(digest), 50) * 1e6, 1),
        "bytes": len(digest),
        "bytes_zstd": len(pa.Codec("zstd", 1).compress(digest, asbytes=True)),
        "bytes_lz4": len(pa.Codec("lz4").compress(digest, asbytes=True)),
        "value_error_percent": value_errors(want, whole.quantiles(QS)),
        "interpolated_percent": value_errors(want, interpolated(whole, QS)),
        "after_1000_merges_percent": value_errors(want, histograms.merge(parts).quantiles(QS)),
        "guaranteed_percent": round(histograms.ERROR * 100, 3),
    }


def steps_down(quantile: Callable[[float], float]) -> int:
    """Return at how many of 4,999 steps the answer falls though the rank rises."""
    answers = np.array([quantile(at / 5000) for at in range(1, 5000)])
    return int((np.diff(answers) < 0.0).sum())


def monotone(values: np.ndarray) -> dict[str, Any]:
    """Return where quantiles fall as the rank rises, ours and the peers'."""

    def of_fastdigest() -> int:
        from fastdigest import TDigest as Peer

        return steps_down(Peer.from_values(values, max_centroids=200).quantile)

    def of_datasketches() -> int:
        from datasketches import tdigest_double

        made = tdigest_double(200)
        made.update(values)
        return steps_down(made.get_quantile)

    return {
        "histogram": steps_down(Histogram.of(values).quantile),
        "t_digest": steps_down(TDigest.of(values).quantile),
        "fastdigest": measured("fastdigest", of_fastdigest),
        "datasketches": measured("datasketches", of_datasketches),
    }


def recorded(samples: np.ndarray, series: int) -> float:
    """Return the seconds in which a recorder copies and drains these samples, evenly over this many series."""
    segment = Segment.create(series)
    recorder = Recorder(segment, label_sets_max=series)
    handles = [recorder.histogram("probe.response", probe=f"p{at}") for at in range(series)]
    parts = np.array_split(samples, series)

    def round_() -> None:
        for handle, part in zip(handles, parts, strict=True):
            handle.record_many(part)
        recorder.tick()

    taken = seconds(round_)
    segment.close()
    return taken


def ingest(values: np.ndarray) -> dict[str, Any]:
    """Return rates of 100,000 samples into one series and into many."""
    samples = values[:100_000]
    found: dict[str, Any] = {}
    for series in (1, 100, 1_000, 10_000):
        ids = CHANCE.integers(0, series, samples.size)

        def sorted_parts(ids: np.ndarray = ids, series: int = series) -> list[np.ndarray]:
            order = np.argsort(ids, kind="stable")
            return np.split(samples[order], np.cumsum(np.bincount(ids, minlength=series))[:-1])

        def of_fastdigest(parts: Callable[[], list[np.ndarray]] = sorted_parts) -> float:
            from fastdigest import TDigest as Peer

            return round(0.1 / seconds(lambda: [Peer.from_values(part, max_centroids=200) for part in parts() if part.size], 2), 2)

        def of_kll(parts: Callable[[], list[np.ndarray]] = sorted_parts) -> float:
            from datasketches import kll_doubles_sketch

            def fill(part: np.ndarray) -> Any:
                made = kll_doubles_sketch(200)
                made.update(part)
                return made

            return round(0.1 / seconds(lambda: [fill(part) for part in parts()], 2), 2)

        found[f"{series}_series"] = {
            "recorder_M_per_s": round(0.1 / recorded(samples, series), 2),
            "histogram_M_per_s": round(0.1 / seconds(lambda parts=sorted_parts: [Histogram.of(one) for one in parts()], 2), 2),
            "fastdigest_M_per_s": measured("fastdigest", of_fastdigest),
            "kll_M_per_s": measured("datasketches", of_kll),
        }
    return found


def fastdigest(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    from fastdigest import TDigest as Peer
    from fastdigest import merge_all

    made = Peer.from_values(values, max_centroids=200)
    rate = 0.1 / seconds(lambda: Peer.from_values(values[:100_000], max_centroids=200))
    parts = [Peer.from_values(part, max_centroids=200) for part in np.array_split(values, 1000)]
    return {
        "from_100k_M_per_s": round(rate, 1),
        "merge_1000_us_each": round(seconds(lambda: merge_all(parts)) * 1e3, 2),
        "value_error_percent": value_errors(want, [made.quantile(q) for q in QS]),
        "after_1000_merges_percent": value_errors(want, [merge_all(parts).quantile(q) for q in QS]),
        "bytes": len(pickle.dumps(made)),
    }


def datasketches(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    from datasketches import tdigest_double

    def fill(given: np.ndarray) -> Any:
        made = tdigest_double(200)
        made.update(given)
        return made

    made = fill(values)
    errors = value_errors(want, [made.get_quantile(q) for q in QS])
    return {"from_100k_M_per_s": round(0.1 / seconds(lambda: fill(values[:100_000])), 1), "value_error_percent": errors}


def ddsketch(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    from ddsketch import DDSketch

    def fill(given: np.ndarray) -> Any:
        made = DDSketch(0.01)
        for value in given.tolist():
            made.add(value)
        return made

    made = fill(values)
    errors = value_errors(want, [made.get_quantile_value(q) for q in QS])
    return {"from_10k_M_per_s": round(0.01 / seconds(lambda: fill(values[:10_000])), 2), "value_error_percent": errors}


def hdrh(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    from hdrh.histogram import HdrHistogram

    def fill(given: np.ndarray) -> Any:
        made = HdrHistogram(1, 10**12, 3)
        for value in (given * 1e6).astype(np.int64).tolist():
            made.record_value(value)
        return made

    made = fill(values)
    errors = value_errors(want, [made.get_value_at_percentile(q * 100) / 1e6 for q in QS])
    return {"from_10k_M_per_s": round(0.01 / seconds(lambda: fill(values[:10_000])), 2), "value_error_percent": errors}


PEERS = {"fastdigest": fastdigest, "datasketches": datasketches, "ddsketch": ddsketch, "hdrh": hdrh}


def peers(values: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    """Return each peer's figures, or why there are none."""
    return {name: measured(name, lambda measure=measure: measure(values, want)) for name, measure in PEERS.items()}


def moments(values: np.ndarray) -> dict[str, Any]:
    """Return vector statistics against a plain loop, with numpy's dispatch as evidence of vector code."""
    listed = values.tolist()

    def loop() -> tuple[float, ...]:
        count, mean, squares, total, low, high = 0, 0.0, 0.0, 0.0, math.inf, -math.inf
        for value in listed:
            count += 1
            total += value
            off = value - mean
            mean += off / count
            squares += off * (value - mean)
            low, high = min(low, value), max(high, value)
        return count, total, low, high, mean, squares / count

    ours, plain = seconds(lambda: Moments.of(values)), seconds(loop, 2)
    made, exact = Moments.of(values), math.fsum(listed)
    dispatch = np.lib.introspect.opt_func_info(func_name="^(add|subtract|multiply|minimum|maximum|isfinite)$", signature="float64")
    return {
        "ns_a_sample": round(ours / values.size * 1e9, 2),
        "loop_ns_a_sample": round(plain / values.size * 1e9, 1),
        "times_faster_than_loop": round(plain / ours, 1),
        "sum_relative_error": abs(made.sum / exact - 1),
        "variance_relative_error": abs(made.variance / loop()[5] - 1),
        "dispatch": {name: sorted({one["current"] for one in found.values()}) for name, found in dispatch.items()},
    }


def items() -> dict[str, Any]:
    """Return rates and errors of the distinct count and the top list."""
    numbers = np.arange(float(SIZE))
    texts = [f"pod-{at % 5000}" for at in range(100_000)]
    zipf = [f"k{at}" for at in CHANCE.zipf(1.3, 100_000).tolist()]
    return {
        "distinct_numbers_M_per_s": round(SIZE / 1e6 / seconds(lambda: Distinct.of(numbers)), 1),
        "distinct_texts_M_per_s": round(0.1 / seconds(lambda: Distinct.of(texts)), 2),
        "distinct_error_percent": [round((Distinct.of(CHANCE.random(size)).count / size - 1) * 100, 3) for size in (1000, 30_000, SIZE)],
        "top_texts_M_per_s": round(0.1 / seconds(lambda: Top.of(zipf)), 2),
        "top_error_share": round(Top.of(zipf).error / len(zipf), 6),
    }


def cache() -> dict[str, Any]:
    """Return the median time of a question that reads files, and of the same question again."""
    with tempfile.TemporaryDirectory(prefix="bench-sketches-") as folder:
        aggregator = Aggregator("r", Path(folder) / "r", SystemClock(), cache_ttl_s=3600)
        aggregator.push("n1", "a", [record("n1", at) for at in range(1, 301)])
        aggregator.finish()
        cold, warm = [], []
        for at in range(30):
            between = (0.0, 4e9 + at)  # another question each time
            for times in (cold, warm):
                begun = time.perf_counter()
                aggregator.evaluate("probe.response", "p99", between=between)
                times.append((time.perf_counter() - begun) * 1e6)
        aggregator.close()
    return {"miss_us": round(statistics.median(cold), 1), "hit_us": round(statistics.median(warm), 1)}


def window_quantiles() -> dict[str, float]:
    """Return microseconds a series for the four quantiles of 1,000 histograms, together and one by one."""
    made = [Histogram.of(CHANCE.lognormal(-6, 1, 1000)) for _ in range(1000)]
    qs = (0.5, 0.9, 0.99, 0.999)
    together = seconds(lambda: quantiles_of(made, qs)) * 1e3
    return {"together_us": round(together, 2), "one_by_one_us": round(seconds(lambda: [one.quantiles(qs) for one in made]) * 1e3, 2)}


def main() -> int:
    values = shape("lognormal", SIZE)
    want = np.quantile(values, QS)
    figures: dict[str, Any] = {"histogram": own_histogram(values, want), "t_digest": own_digest(values, want)}
    figures |= {"peers": peers(values, want), "steps_down": monotone(values), "ingest": ingest(values), "moments": moments(values)}
    figures |= {"items": items(), "cache": cache(), "window_quantiles": window_quantiles()}
    figures |= {"p999_5th_to_95th": reservoir_table(), "costs": costs(values), "rank_error_1e7": rank_table()}
    own, buckets, rates = figures["t_digest"], figures["histogram"], figures["ingest"]
    spread, peer = figures["cache"], figures["peers"]["fastdigest"]
    goals = {**errors_within(figures), **times_a_peer(buckets, own, peer)}
    goals |= {
        "moments, times faster than a loop, at least": (20.0, figures["moments"]["times_faster_than_loop"] >= 20.0),
        "moments, relative error of the sum": (1e-9, figures["moments"]["sum_relative_error"] <= 1e-9),
        "distinct count, error in %": (2.0, max(map(abs, figures["items"]["distinct_error_percent"])) <= 2.0),
        "t-digest, times faster to fill than a reservoir, at least": (
            10.0,
            figures["costs"]["reservoir_1000"]["add_ns"] / figures["costs"]["t_digest"]["add_ns"] >= 10.0,
        ),
        "cached answer, times faster, at least": (10.0, spread["miss_us"] / spread["hit_us"] >= 10.0),
    }
    reported = {
        "ingest, one series, 10k at once, M/s": at_least(800.0, buckets["from_10k_M_per_s"]),
        **{f"ingest, {at} series, M/s": at_least(goal, rates[f"{at}_series"]["recorder_M_per_s"]) for at, goal in INGEST.items()},
        "histogram, measured value error in %": at_most(0.2, max(buckets["value_error_percent"])),
        "histogram, bytes": at_most(3277, buckets["bytes"]),
        "histogram, bytes in a run's files": at_most(3277, buckets["bytes_zstd"]),
        "histogram, bytes on its way": at_most(3277, buckets["bytes_lz4"]),
        "merge of a histogram, us": at_most(12.0, buckets["merge_1000_us_each"]),
        "merge of a t-digest, us": at_most(30.0, own["merge_1000_us_each"]),
    }
    packages = ("numpy", "pyarrow", *installed("fastdigest", "datasketches", "ddsketch", "hdrhistogram"))
    return store("sketches", figures, goals, packages, reported=reported)


def errors_within(figures: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return the goals for errors and sizes: they hang on seeded data, not on the machine."""
    own, buckets, table = figures["t_digest"], figures["histogram"], figures["rank_error_1e7"]
    worst = {at: max(max(row["at_once"][at], row["64_merged"][at]) for row in table.values()) for at in range(len(QS))}
    down = figures["steps_down"]
    return {
        "histogram, guaranteed error in %": (0.4, buckets["guaranteed_percent"] <= 0.4),
        "histogram, value error in %, p50 to p99.99": (0.4, max(buckets["value_error_percent"]) <= 0.4),
        "the same after 1000 merges, equal": (0.0, buckets["value_error_percent"] == buckets["after_1000_merges_percent"]),
        "t-digest, value error in %, p50 to p99.99": (0.3, max(own["value_error_percent"]) <= 0.3),
        "t-digest after 1000 merges, value error in %": (0.3, max(own["after_1000_merges_percent"]) <= 0.3),
        "t-digest, bytes": (4096, own["bytes"] <= 4096),
        "quantiles that fall as the rank rises": (0.0, down["histogram"] == down["t_digest"] == 0),
        "rank error at p50, 10^7 samples and 64 merged": (0.005, worst[0] <= 0.005),
        "rank error at p99 and p99.9": (0.001, max(worst[2], worst[3]) <= 0.001),
    }


def times_a_peer(buckets: dict[str, Any], own: dict[str, Any], peer: Any) -> dict[str, tuple[float, bool]]:
    """Return the goals against fastdigest in the same run; none when it is missing, as the figures say."""
    if isinstance(peer, str):
        return {}
    return {
        "histogram, times faster than fastdigest, at least": (1.0, buckets["from_100k_M_per_s"] / peer["from_100k_M_per_s"] >= 1.0),
        "t-digest, times faster than fastdigest, at least": (1.0, own["from_100k_M_per_s"] / peer["from_100k_M_per_s"] >= 1.0),
        "t-digest, worst value error as a share of fastdigest's": (
            1.0,
            max(own["value_error_percent"]) <= max(peer["value_error_percent"]),
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
