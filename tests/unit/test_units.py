"""Units as people write them."""

from __future__ import annotations

import pytest

from actors.errors import InputError
from scenarios import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("1d", 86_400.0),
        ("0s", 0.0),
        ("0.1s", 0.1),
        ("1m30.5s", 90.5),
        ("5us", 5e-6),
    ],
)
def test_durations_read_as_seconds(text, seconds):
    """A duration is the sum of its parts in seconds."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 << 20), ("1GB", 10**9), ("1.5GiB", 3 << 29), ("64 KiB", 1 << 16), ("0B", 0), ("10TiB", 10 << 40), ("1kB", 1000)],
)
def test_sizes_read_as_bytes(text, size):
    """Binary and decimal units are told apart."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(("text", "share"), [("60%", 0.6), ("0%", 0.0), ("100%", 1.0), ("12.5%", 0.125), ("33.3%", 0.333)])
def test_fractions_read_as_the_nearest_float(text, share):
    """A percentage is the same float as the number written in Python."""
    assert units.parse_fraction(text) == share


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_duration, text)
        for text in ("", "30", "s", "30 s", "-1s", "1m1h", "1s1s", "1e3s", "nan", "inf", "1,5s", "٣s", "31d", "1s\n", "9" * 400 + "s")
    ]
    + [
        (units.parse_size, text)
        for text in ("", "512", "MiB", "-1MiB", "0.1B", "1mib", "1Mib", "1PiB", "nanB", "9000TiB", "1GB\n", "1  GB")
    ]
    + [(units.parse_fraction, text) for text in ("", "60", "%", "-1%", "101%", "100.0001%", "nan%", "1e1%", "60 %", "6٠%")],
)
def test_anything_else_is_refused(parse, text):
    """A text that is no such quantity raises `InputError`, never another error."""
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("text", "write", "value"),
    [
        ("35s", units.format_duration, 35.0),
        ("1m", units.format_duration, 60.0),
        ("1h1m1s", units.format_duration, 3661),
        ("250ms", units.format_duration, 0.25),
        ("17.5s", units.format_duration, 17.5),
        ("256MiB", units.format_size, 256 << 20),
        ("1000B", units.format_size, 1000),
        ("0B", units.format_size, 0),
        ("60%", units.format_fraction, 0.6),
        ("12.5%", units.format_fraction, 0.125),
        ("100%", units.format_fraction, 1.0),
        ("0%", units.format_fraction, 0.0),
    ],
)
def test_values_are_written_short(text, write, value):
    """A value is written in the form that a person would choose."""
    assert write(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1.5, True, "1", None])
def test_numbers_out_of_range_are_refused(value):
    """A number must be a finite number within its bounds."""
    with pytest.raises(InputError):
        units.check_number("Thing.share", value, 0.0, 1.0)


def test_minus_zero_is_zero():
    """-0.0 becomes 0.0, so that equal values are written equally."""
    assert str(units.check_number("x", -0.0)) == "0.0"
