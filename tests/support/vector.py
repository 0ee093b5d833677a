"""Data processing by vector code, each kernel beside a plain loop that does the same.

For the test that answers are the same on every processor. As a command it prints the answers for seeded samples, as JSON; `levels` names
the environments in which it then runs as on a lesser processor.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from prometheus_client.utils import floatToGoString

from actors.metrics import histogram
from actors.metrics.histogram import Histogram
from cluster.exporters.numbers import texts
from cluster.metrics.sketches.hashing import hashes
from cluster.metrics.sketches.moments import Moments

Floats = npt.NDArray[np.float64]
Answer = list[Any]
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """`vector` and `scalar` take the same samples; `answer` brings the result of the first into the form of the second's."""

    vector: Callable[[Floats], Any]
    scalar: Callable[[Sequence[float]], Answer]
    answer: Callable[[Any], Answer]


def _key(value: float) -> int:
    size = abs(value)
    if size < 2.0**-30:
        return 0
    if size >= 2.0**34:
        return histogram.OVERFLOW if value > 0 else -histogram.OVERFLOW
    mantissa, exponent = math.frexp(size)
    key = (exponent - 1 + 30) * 128 + int((mantissa * 2 - 1) * 128) + 1
    return key if value > 0 else -key


def _histogram(values: Sequence[float]) -> Answer:
    counts: Counter[int] = Counter()
    total, low, high = 0.0, math.inf, -math.inf
    for value in values:
        counts[_key(value)] += 1
        total += value
        low, high = min(low, value), max(high, value)
    return [*map(list, sorted(counts.items())), total, low, high]


def _moments(values: Sequence[float]) -> Answer:
    count, mean, squares, total, low, high = 0, 0.0, 0.0, 0.0, math.inf, -math.inf
    for value in values:
        count += 1
        total += value
        off = value - mean
        mean += off / count
        squares += off * (value - mean)
        low, high = min(low, value), max(high, value)
    return [count, total, low, high, mean, squares / count]


def _hash(value: float) -> int:
    mixed = (int(np.float64(value + 0.0).view(np.uint64)) + 0x9E3779B97F4A7C15) & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31


KERNELS = {
    "keys": Kernel(histogram.keys_of, lambda values: [_key(value) for value in values], lambda keys: keys.tolist()),
    "histogram": Kernel(
        Histogram.of,
        _histogram,
        lambda one: [*map(list, zip(one.keys.tolist(), one.counts.tolist(), strict=True)), one.sum, one.min, one.max],
    ),
    "moments": Kernel(Moments.of, _moments, lambda one: [one.count, one.sum, one.min, one.max, one.mean, one.variance]),
    "hashes": Kernel(hashes, lambda values: [_hash(value) for value in values], lambda found: found.tolist()),
    "number texts": Kernel(
        texts,
        lambda values: [floatToGoString(value) for value in values],
        lambda columns: pc.binary_join_element_wise(*columns, "").to_pylist(),
    ),
}


def samples(size: int) -> Floats:
    """Return seeded samples of a few decades, as of latencies in seconds."""
    return np.random.default_rng(17).lognormal(-4, 2, size)


def mixed(size: int) -> Floats:
    """Return seeded samples of both signs and of all sizes, zeros among them; the same to the bit everywhere, as powers of ten are not."""
    chance = np.random.default_rng(18)
    return np.where(chance.random(size) < 0.05, 0.0, np.ldexp(chance.normal(size=size), chance.integers(-46, 46, size)))


def error(found: Answer, want: Answer) -> float:
    """Return the largest relative difference of numbers that are no whole ones; infinite where anything else differs."""
    if len(found) != len(want):
        return math.inf
    worst = 0.0
    for one, other in zip(found, want, strict=True):
        if one != other:
            worst = max(worst, abs(one - other) / abs(other) if isinstance(one, float) and other else math.inf)
    return worst


def answers() -> dict[str, Answer]:
    """Return what every kernel answers for seeded samples."""
    sets = {"samples": samples(3_000), "mixed": mixed(3_001)}  # no multiples of any vector's width, so that the ends count too
    return {
        f"{name} of {which}": kernel.answer(kernel.vector(values)) for which, values in sets.items() for name, kernel in KERNELS.items()
    }


def levels() -> dict[str, dict[str, str]]:
    """Return the environments that leave numpy and Arrow less and less of this processor's vector units, down to their baseline."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    arrow = {0: "NONE", 1: "AVX2"}
    return {
        f"without {', '.join(found[at:])}": {
            "NPY_DISABLE_CPU_FEATURES": " ".join(found[at:]),
            "ARROW_USER_SIMD_LEVEL": arrow.get(at, "AVX512"),
        }
        for at in range(len(found))
    }


if __name__ == "__main__":
    print(json.dumps(answers()))
