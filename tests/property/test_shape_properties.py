from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import plugin_shapes
from actors.shape import Burst, Constant, Custom, Leak, Ramp, Sawtooth, Shape, Sine, Square, Steps, from_spec

level = st.floats(0, 1e15)
span = st.floats(1e-3, 1e6)
pair = st.tuples(level, level).map(sorted)
shape = st.one_of(
    st.builds(Constant, level),
    st.builds(Ramp, level, level, span),
    st.builds(lambda levels, each: Steps(tuple(levels), each), st.lists(level, min_size=1, max_size=8), span),
    st.builds(lambda ends, period: Sine(*ends, period), pair, span),
    st.builds(lambda ends, period, duty: Square(*ends, period, duty), pair, span, st.floats(0, 1)),
    st.builds(lambda ends, period, share: Burst(*ends, period, period * share), pair, span, st.floats(0.001, 1)),
    st.builds(lambda ends, period: Sawtooth(*ends, period), pair, span),
    st.builds(Leak, level, st.floats(0, 1e9)),
    st.builds(Custom, st.just("half"), level, st.floats(0, 1e6)),
)


@pytest.fixture(autouse=True, scope="module")
def half() -> Iterator[None]:
    """The function of every custom shape here: it is above its limit half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugin_shapes, "function_of", lambda _: lambda elapsed_s: math.sin(elapsed_s) * 1e15)
        yield


@given(shape, st.floats(0, 1e7), st.floats(0, 1))
def test_no_value_passes_the_peak(shape: Shape, duration_s: float, at: float) -> None:
    """Within a span no value is negative or above the span's peak: what is reserved is enough."""
    assert 0.0 <= shape.value(duration_s * at) <= shape.peak(duration_s) * (1 + 1e-12)


@given(shape)
def test_survives_its_spec_as_json(shape: Shape) -> None:
    """A shape and its spec are the same thing, also through JSON text."""
    assert from_spec(json.loads(json.dumps(shape.to_spec()))) == shape


@given(shape, st.floats(0, 1e3), st.floats(0, 1e7))
def test_scaling_scales_every_value(shape: Shape, factor: float, elapsed_s: float) -> None:
    """Scaling the shape is scaling its values: a fraction and the cores it means follow one another."""
    assert shape.scaled(factor).value(elapsed_s) == pytest.approx(shape.value(elapsed_s) * factor, rel=1e-9, abs=1e-6)
