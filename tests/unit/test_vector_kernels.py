"""Vector code answers as a plain loop does, on this processor and on lesser ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.vector import KERNELS, answers, error, levels, mixed, samples

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-11  # relative: a sum of 3,000 samples in another order


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("made", [samples, mixed])
@pytest.mark.parametrize("size", [1, 7, 1_000, 4_097])
def test_vector_code_answers_as_a_loop_does(name, made, size):
    """Keys, counts, hashes and texts are equal, sums and means to rounding, at sizes around the vectors' widths."""
    values, kernel = made(size), KERNELS[name]
    assert error(kernel.answer(kernel.vector(values)), kernel.scalar(values.tolist())) <= TOLERANCE


@pytest.mark.skipif(not levels(), reason="this processor has no vector units beyond numpy's baseline, or numpy cannot leave them out")
def test_answers_are_the_same_on_lesser_processors():
    """With each set of vector units switched off, down to the baseline, every kernel answers what it answers here."""
    here = json.loads(json.dumps(answers()))
    for level, environment in levels().items():
        command = [sys.executable, "-m", "tests.support.vector"]
        told = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=True, timeout=120)
        there = json.loads(told.stdout)
        assert there.keys() == here.keys()
        for name, answer in there.items():
            assert error(answer, here[name]) <= TOLERANCE, f"{name}, {level}"
