"""What does vector code gain? Each kernel of data processing against a plain loop, by size, with and without wide units.

Run: python benchmarks/bench_vector.py. A table of kernel and size has, in nanoseconds of CPU a sample, `vector` (best of some rounds) and
`scalar`, the loop of tests/support/vector.py, timed on 10,000 samples at most; `times` is their ratio, `error` the largest relative
difference of their answers (0 where they are equal). `baseline` is the same vector code in a process where numpy and Arrow may not use what
this processor has beyond their baseline (SSE4.2 on x86-64): what wide vectors gain is `wide_times`. `dispatch` says which units numpy
chose for the functions behind the kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
from machine import store

from tests.support.vector import KERNELS, error, levels, samples

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
SCALAR_SIZE = 10_000
ROUNDS, ROUNDS_S = 3, 0.1  # at least, for each kernel and size
LEAST = {100: 1.0, 1_000: 3.0, 10_000: 3.0, 100_000: 3.0, 1_000_000: 3.0}  # times a loop, each kernel
FUNCTIONS = "^(absolute|add|subtract|multiply|minimum|maximum|isfinite|isnan|less|greater_equal|logical_and|right_shift|bitwise_xor)$"


def best_ns(kernel: Any, values: Any) -> float:
    """Return nanoseconds of CPU time a sample, the best of as many rounds as find time."""
    times: list[float] = []
    while len(times) < ROUNDS or sum(times) < ROUNDS_S:
        begun = time.process_time()
        kernel(values)
        times.append(time.process_time() - begun)
    return min(times) / len(values) * 1e9


def vector_ns() -> dict[str, dict[str, float]]:
    """Return the times of all kernels by size."""
    return {name: {str(size): round(best_ns(kernel.vector, samples(size)), 2) for size in SIZES} for name, kernel in KERNELS.items()}


def baseline_ns() -> dict[str, dict[str, float]]:
    """Return the same from a process that leaves wide vector units alone; nothing where there are none."""
    for environment in levels().values():  # the first leaves nothing but the baseline
        done = subprocess.run([sys.executable, __file__, "vector"], env={**os.environ, **environment}, capture_output=True, check=True)
        return dict(json.loads(done.stdout))
    return {}


def table() -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures by kernel and size."""
    vector, baseline = vector_ns(), baseline_ns()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, kernel in KERNELS.items():
        found[name] = {}
        for size in SIZES:
            values = samples(size)
            few = values[:SCALAR_SIZE].tolist()
            scalar = best_ns(kernel.scalar, few)
            row = {"vector": vector[name][str(size)], "scalar": round(scalar, 1), "times": round(scalar / vector[name][str(size)], 1)}
            row["error"] = error(kernel.answer(kernel.vector(values[:SCALAR_SIZE])), kernel.scalar(few))
            if baseline:
                row |= {"baseline": baseline[name][str(size)], "wide_times": round(baseline[name][str(size)] / row["vector"], 2)}
            found[name][str(size)] = row
    return found


def dispatch() -> dict[str, list[str]]:
    """Return the units that numpy chose, by function, for float64 and the integers of keys and hashes."""
    found = np.lib.introspect.opt_func_info(func_name=FUNCTIONS)
    chosen: dict[str, set[str]] = {}
    for name, loops in found.items():
        chosen[name] = {one["current"] for signature, one in loops.items() if signature[0] in "dlL"}
    return {name: sorted(units) for name, units in chosen.items() if units}


def main() -> int:
    found = table()
    worst = {size: min(rows[str(size)]["times"] for rows in found.values()) for size in SIZES}
    figures = {
        "kernels": found,
        "dispatch": dispatch(),
        "arrow": pa.runtime_info().simd_level,
        "numpy": np.show_config(mode="dicts")["SIMD Extensions"],
    }
    goals = {f"each kernel at {size}, times faster than a loop, at least": (least, worst[size] >= least) for size, least in LEAST.items()}
    errors = max(row["error"] for rows in found.values() for row in rows.values())
    goals["largest relative error against the loop"] = (1e-9, errors <= 1e-9)
    return store("vector", figures, goals, ("numpy", "pyarrow"))


if __name__ == "__main__":
    if sys.argv[1:] == ["vector"]:
        print(json.dumps(vector_ns()))
    else:
        sys.exit(main())
