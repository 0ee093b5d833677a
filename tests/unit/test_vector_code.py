"""Data processing gives the same figures with the processor's vector units and without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
import numpy as np
from actors.metrics import Histogram, Recorder, Segment
from actors.metrics.histogram import keys_of
from cluster.metrics.sketches import Moments

try:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
except ImportError:
    from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__

found = {"features": [name for name in __cpu_dispatch__ if __cpu_features__[name]]}
for name, values in (
    ("lognormal", np.random.default_rng(1).lognormal(-6, 2, 20_001)),
    ("signed", np.random.default_rng(2).normal(0, 1e3, 1_003)),
    ("edges", np.array([0.0, -0.0, 2.0**-30, np.nextafter(2.0**-30, 0), 2.0**34, np.inf, 1e308, 5e-324])),
):
    segment = Segment.create()
    recorder = Recorder(Segment.open(segment.path))
    recorder.histogram("load.slice").record_many(values)
    recorder.tick()
    cells, moments, made = segment.read(0), Moments.of(values), Histogram.of(values)
    found[name] = {
        "keys": keys_of(values).tolist(),
        "counts": made.counts.tolist(),
        "cells": cells.buckets.ravel().tolist(),
        "special": list(cells.special),
        "figures": [moments.sum, moments.mean, moments.variance, moments.min, moments.max, cells.sum, cells.min, cells.max],
    }
print(json.dumps(found))
"""


def figures(disabled: str = "") -> dict[str, Any]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NPY_DISABLE_CPU_FEATURES": disabled}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_results_are_equal_on_all_processors() -> None:
    """Buckets and counts to the bit, sums to 1e-12, with all vector units of this processor and with the least that numpy runs on."""
    vector = figures()
    features = vector.pop("features")
    if not features:
        pytest.skip("this processor has no more than the least that numpy runs on")
    scalar = figures(" ".join(features))
    assert scalar.pop("features") == []
    for name, found in vector.items():
        assert scalar[name].pop("figures") == pytest.approx(found.pop("figures"), rel=1e-12, nan_ok=True), name
        assert scalar[name] == found, name
