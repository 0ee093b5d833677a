from __future__ import annotations

import pytest

from actors.errors import InputError
from actors.shape import KINDS, Burst, Constant, Custom, Leak, Ramp, Sawtooth, Shape, Sine, Square, Steps, from_spec

TABLE = [
    pytest.param(Constant(0.5), [(0, 0.5), (99, 0.5)], id="constant-stays"),
    pytest.param(Ramp(0.2, 0.6, 10), [(-1, 0.2), (0, 0.2), (5, 0.4), (10, 0.6), (11, 0.6)], id="ramp-is-a-line-then-flat"),
    pytest.param(Ramp(1.0, 0.0, 4), [(0, 1.0), (1, 0.75), (4, 0.0)], id="ramp-goes-down"),
    pytest.param(Steps((1, 3, 2), 5), [(0, 1), (4.999, 1), (5, 3), (10, 2), (1e9, 2)], id="steps-change-on-the-edge-and-stay"),
    pytest.param(Sine(0.2, 0.8, 8), [(0, 0.2), (2, 0.5), (4, 0.8), (8, 0.2)], id="sine-begins-low"),
    pytest.param(Square(1, 4, 10, 0.3), [(0, 4), (2.999, 4), (3.001, 1), (9.999, 1), (10, 4)], id="square-begins-high"),
    pytest.param(Burst(1, 9, 60, 5), [(0, 9), (4.9, 9), (5, 1), (59.9, 1), (60, 9)], id="burst-peaks-first"),
    pytest.param(Sawtooth(1, 5, 8), [(-1, 1), (0, 1), (4, 3), (7.999, 4.9995), (8, 1), (10, 2)], id="sawtooth-rises-then-drops"),
    pytest.param(Leak(2, 0.5), [(-1, 2), (0, 2), (4, 4), (1e6, 500_002)], id="leak-never-ends"),
]


@pytest.mark.parametrize(("shape", "points"), TABLE)
def test_follows_its_formula(shape: Shape, points: list[tuple[float, float]]) -> None:
    """A shape's value is its formula's, also on its edges and before its start."""
    assert [shape.value(at) for at, _ in points] == pytest.approx([want for _, want in points])


@pytest.mark.parametrize(
    ("shape", "duration_s", "want"),
    [
        pytest.param(Ramp(0, 1, 10), 5, 0.5, id="ramp-cut-short"),
        pytest.param(Steps((1, 5, 2), 10), 9.9, 1, id="steps-before-the-highest"),
        pytest.param(Steps((1, 5, 2), 10), 10, 5, id="steps-at-the-highest"),
        pytest.param(Sine(0, 1, 10), 2.5, 0.5, id="sine-before-its-crest"),
        pytest.param(Sine(0, 1, 10), 5, 1, id="sine-at-its-crest"),
        pytest.param(Square(1, 2, 10, 0.0), 99, 1, id="square-without-duty"),
        pytest.param(Sawtooth(1, 5, 8), 4, 3, id="sawtooth-cut-short"),
        pytest.param(Sawtooth(1, 5, 8), 8, 5, id="sawtooth-over-a-period"),
        pytest.param(Leak(1, 2), 10, 21, id="leak-is-highest-at-its-end"),
        pytest.param(Custom("not installed", 7).scaled(2), 10, 14, id="custom-is-its-limit-wherever-it-is-planned"),
    ],
)
def test_peak_is_the_highest_value_of_the_span(shape: Shape, duration_s: float, want: float) -> None:
    """The peak counts what the span reaches, not what the shape would reach later."""
    assert shape.peak(duration_s) == pytest.approx(want)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Constant(-0.1), id="negative"),
        pytest.param(lambda: Constant(float("nan")), id="not-a-number"),
        pytest.param(lambda: Constant(float("inf")), id="infinite"),
        pytest.param(lambda: Constant(10**400), id="too-large-for-a-float"),
        pytest.param(lambda: Constant(True), id="boolean"),
        pytest.param(lambda: Constant("1"), id="text"),
        pytest.param(lambda: Ramp(0, 1, 0), id="ramp-over-nothing"),
        pytest.param(lambda: Steps((), 1), id="no-steps"),
        pytest.param(lambda: Steps("12", 1), id="steps-of-text"),
        pytest.param(lambda: Sine(2, 1, 1), id="high-under-low"),
        pytest.param(lambda: Square(0, 1, 1, 1.01), id="duty-over-one"),
        pytest.param(lambda: Burst(0, 1, 10, 11), id="burst-longer-than-its-period"),
        pytest.param(lambda: Sawtooth(2, 1, 1), id="teeth-upside-down"),
        pytest.param(lambda: Leak(0, -1), id="negative-rate"),
        pytest.param(lambda: Custom(" ", 1), id="custom-without-a-name"),
        pytest.param(lambda: Custom("f", float("inf")), id="custom-without-a-limit"),
        pytest.param(lambda: Constant(1).scaled(-1), id="negative-factor"),
        pytest.param(lambda: from_spec({"kind": "ramp", "start": 0}), id="missing-key"),
        pytest.param(lambda: from_spec([1]), id="no-mapping"),
    ],
)
def test_refuses_what_is_no_load(make: object) -> None:
    """A value that no load can follow is refused with the stable code and the field's name."""
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.code == "invalid_value"


def test_offers_the_nearest_name() -> None:
    """An unknown kind or key is refused with what was probably meant."""
    with pytest.raises(InputError, match="ramp") as kind:
        from_spec({"kind": "rmap"})
    with pytest.raises(InputError, match="over_s") as key:
        from_spec({"kind": "ramp", "start": 0, "end": 1, "over": 3})
    assert (kind.value.code, key.value.code) == ("unknown_name", "unknown_key")


def test_every_kind_is_named_by_its_class() -> None:
    """The spec's kind and the class agree, so that a spec written by hand and by code are the same."""
    assert {kind: shape.__name__.lower() for kind, shape in KINDS.items()} == {kind: kind for kind in KINDS}
