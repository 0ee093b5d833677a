"""What do vector kernels give over scalar code, kernel by kernel and size by size, and how far are the figures apart?

Run: python benchmarks/bench_vector.py. Each kernel of the data processing stands beside two scalar forms: the same arithmetic as a loop
that is compiled with both vectorizers of the compiler switched off, and as a loop of Python. Times are the best of some rounds, in
nanoseconds a sample; `error` is the largest relative difference of the figures. `narrow_times_slower` is the same kernel in a process
whose vector units were switched off as far as numpy lets it: what is faster by them is vector code.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":  # before numba is imported: the scalar form is to be scalar
    os.environ |= {"NUMBA_LOOP_VECTORIZE": "0", "NUMBA_SLP_VECTORIZE": "0"}

import numba
import numpy as np
from machine import store
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from actors.metrics.histogram import cells_of
from cluster.metrics.sketches import Moments

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
PYTHON_MAX = 100_000
ROUNDS = 7
SHIFT, BIAS = 45, (1023 - 30) << 7

Kernel = Callable[[np.ndarray], Any]


def cells(values: np.ndarray) -> Any:
    return cells_of(values)


def extremes(values: np.ndarray) -> Any:
    return values.min(), values.max()


def total(values: np.ndarray) -> Any:
    return values.sum()


def moments(values: np.ndarray) -> Any:
    found = Moments.of(values)
    return found.sum, found.variance


@numba.njit
def cells_scalar(values):
    bits, out = values.view(np.int64), np.empty(values.size, np.int64)
    for index in range(values.size):
        out[index] = (bits[index] >> SHIFT) - BIAS
    return out


@numba.njit
def extremes_scalar(values):
    low, high = values[0], values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    return low, high


@numba.njit
def total_scalar(values):
    found = 0.0
    for value in values:
        found += value
    return found


@numba.njit
def moments_scalar(values):
    found = 0.0
    for value in values:
        found += value
    mean, squares = found / values.size, 0.0
    for value in values:
        squares += (value - mean) ** 2
    return found, squares / values.size


def cells_python(values: list[float]) -> Any:
    return [(math.frexp(value)[1] + 29) * 128 + int((math.frexp(value)[0] * 2 - 1) * 128) for value in values]


def extremes_python(values: list[float]) -> Any:
    return min(values), max(values)


def total_python(values: list[float]) -> Any:
    return sum(values)


def moments_python(values: list[float]) -> Any:
    found = sum(values)
    mean = found / len(values)
    return found, sum((value - mean) ** 2 for value in values) / len(values)


KERNELS: dict[str, tuple[Kernel, Kernel, Callable[[list[float]], Any]]] = {
    "cells": (cells, cells_scalar, cells_python),
    "extremes": (extremes, extremes_scalar, extremes_python),
    "total": (total, total_scalar, total_python),
    "moments": (moments, moments_scalar, moments_python),
}


def best_ns(call: Callable[[], object], size: int) -> float:
    number = max(1, 200_000 // size)
    return min(timeit.repeat(call, number=number, repeat=ROUNDS)) / number / size * 1e9


def error(found: Any, want: Any) -> float:
    one, other = np.atleast_1d(np.array(found, np.float64)), np.atleast_1d(np.array(want, np.float64))
    return float(np.max(np.abs(one - other) / np.maximum(np.abs(other), 1.0)))


def samples(size: int) -> np.ndarray:
    return np.random.default_rng(size).lognormal(-6, 1, size)


def vector_ns() -> dict[str, float]:
    """Return the time of each kernel at 10,000 samples: what the narrow process prints."""
    values = samples(10_000)
    return {name: best_ns(lambda kernel=kernel: kernel(values), values.size) for name, (kernel, _, _) in KERNELS.items()}


def narrow_ns(features: list[str]) -> dict[str, float]:
    """Return the same from a process without these units."""
    environ = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    done = subprocess.run([sys.executable, __file__, "narrow"], env=environ, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def row_of(name: str, values: np.ndarray) -> dict[str, float]:
    """Return one cell of the table: a kernel on so many samples."""
    (kernel, scalar, python), as_list, size = KERNELS[name], values.tolist(), values.size
    found = scalar(values)
    ours, theirs = best_ns(lambda: kernel(values), size), best_ns(lambda: scalar(values), size)
    row = {"ns": round(ours, 3), "over_scalar": round(theirs / ours, 2), "error": error(kernel(values), found)}
    if size <= PYTHON_MAX:
        row["over_python"] = round(best_ns(lambda: python(as_list), size) / ours, 1)
        row["error"] = max(row["error"], error(kernel(values), python(as_list)))
    return row


def main() -> int:
    if sys.argv[1:] == ["narrow"]:
        print(json.dumps(vector_ns()))
        return 0
    features = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    figures: dict[str, Any] = {"vector_units": features}
    for name in KERNELS:
        for size in SIZES:
            figures[f"{name}_{size}"] = row_of(name, samples(size))
    wide, narrow = vector_ns(), narrow_ns(features)
    figures["narrow_times_slower"] = {name: round(narrow[name] / wide[name], 2) for name in KERNELS}
    rows = [figures[f"{name}_{size}"] for name in KERNELS for size in SIZES]
    large = [figures[f"{name}_{PYTHON_MAX}"] for name in KERNELS]
    goals = {
        "times as fast as a loop of Python at 100,000 samples, each kernel, at least": (10.0, min(r["over_python"] for r in large) >= 10.0),
        "times as fast as compiled scalar code at 100,000, the best kernel, at least": (2.0, max(r["over_scalar"] for r in large) >= 2.0),
        "largest relative difference of a figure, at most": (1e-9, max(row["error"] for row in rows) <= 1e-9),
        "slower without vector units, the kernel that gains most, times at least": (
            1.2,
            max(figures["narrow_times_slower"].values()) >= 1.2,
        ),
    }
    return store("vector", figures, goals, ("numpy", "numba"))


if __name__ == "__main__":
    sys.exit(main())
