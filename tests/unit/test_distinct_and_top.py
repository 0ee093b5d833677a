from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from actors.errors import InputError
from cluster.metrics.sketches import distinct, top
from cluster.metrics.sketches.distinct import Distinct
from cluster.metrics.sketches.hashing import hash_of, hashes
from cluster.metrics.sketches.top import KEY_LENGTH, Top

KNOWN_TEXT, KNOWN_NUMBER = 11243066044090269146, 15481881892811333770  # for ever: sketches of old runs merge with new ones


@pytest.mark.parametrize("size", [0, 1, 10, 1_000, 20_000, 100_000, 1_000_000])
def test_distinct_counts_are_within_two_percent(size: int) -> None:
    """From none to a million different items, on three sets each, the count is within 2 % and near three standard errors."""
    for seed in range(3):
        found = Distinct.of(np.arange(size, dtype=np.float64) + seed * 1e9)
        assert found.count == pytest.approx(size, rel=0.02)
        assert found.count == pytest.approx(size, rel=3 * found.error)
        assert len(found.encode()) <= (1 << 15) + 9


def test_distinct_counts_of_texts_merge() -> None:
    """Two nodes that saw overlapping texts, repeatedly, count the union."""
    one = Distinct.of([f"pod-{at}" for at in range(30_000)] * 2)
    other = Distinct.of(f"pod-{at}" for at in range(20_000, 50_000))
    assert distinct.merge([one, other]).count == pytest.approx(50_000, rel=0.02)
    assert distinct.merge([]).count == 0.0


def test_the_error_is_what_is_stated() -> None:
    """Over 60 sets the root mean square error is the standard error that is stated, within a third."""
    found = [Distinct.of(np.arange(50_000.0) + seed * 1e7, precision=10) for seed in range(60)]
    off = np.array([one.count / 50_000 - 1 for one in found])
    assert 0.67 < float(np.sqrt((off**2).mean())) / found[0].error < 1.33


def test_hashes_are_the_same_everywhere() -> None:
    """Another process with another seed of Python's hash gives the same hashes, and these never change between versions."""
    items: list = ["pod-1", "", "ä", b"raw", 1, 1.5, -0.0, 2**60 + 1, float("nan")]
    code = f"from cluster.metrics.sketches.hashing import hash_of; nan = float('nan'); print([hash_of(one) for one in {items!r}])"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout == f"{[hash_of(one) for one in items]}\n"
    assert (hash_of("pod-1"), hash_of(1.5)) == (KNOWN_TEXT, KNOWN_NUMBER)


def test_equal_numbers_are_one_item_and_texts_are_none_of_them() -> None:
    """1, 1.0 and True are one; zeros are one; NaNs are one; "1" is another, and so are its bytes."""
    assert round(Distinct.of([1, 1.0, True, "1", b"1"]).count) == 3
    assert hash_of(0.0) == hash_of(-0.0) == hash_of(0)
    assert hash_of(float("nan")) == int(hashes(np.array([-np.float64("nan")]))[0])
    with pytest.raises(TypeError, match="no stable hash"):
        hash_of(None)  # type: ignore[arg-type]


def test_different_precisions_do_not_merge() -> None:
    """Sketches of different sizes, and sizes out of range, are refused."""
    with pytest.raises(InputError, match="precisions"):
        distinct.merge([Distinct.of(["a"]), Distinct.of(["a"], precision=10)])
    with pytest.raises(InputError, match="4 to 18"):
        Distinct.of([], precision=3)


_FEW = Distinct.of(["a", "b"]).encode()
_MANY = Distinct.of(np.arange(20_000.0), precision=10).encode()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        _FEW[:-1],
        _FEW + b"x",
        b"XX" + _FEW[2:],
        _MANY[:-1],
        _MANY[:9] + b"\xff" + _MANY[10:],
        _FEW[:9] + b"\xff\xff\xff\xff" + _FEW[13:],
    ],
)
def test_broken_distinct_bytes_are_refused(broken: bytes) -> None:
    """What is no distinct count is a ValueError, never a wrong count."""
    with pytest.raises(ValueError, match="distinct count"):
        distinct.decode(broken)


def test_the_heaviest_are_found_with_their_bounds() -> None:
    """On a Zipf stream of 100,000 items over 100 nodes, every item above the bound is held, and the ten first are right."""
    values = np.random.default_rng(5).zipf(1.3, 100_000)
    parts = [Top.of([f"k{value}" for value in part.tolist()]) for part in np.array_split(values, 100)]
    merged = top.merge(parts)
    truth = Counter(f"k{value}" for value in values.tolist())
    assert merged.count == 100_000
    assert len(merged.counters) <= 256
    assert merged.error <= merged.count / 257
    for item, count in truth.items():
        if count > merged.error:
            assert merged.counters[item] <= count <= merged.counters[item] + merged.error
    assert {held.item for held in merged.top(10)} == {item for item, _ in truth.most_common(10)}
    assert top.decode(merged.encode()) == merged


def test_few_items_are_counted_exactly() -> None:
    """While no more items than counters come, counts are exact, and equal ones are told in the order of their names."""
    found = Top.of({"b": 2, "a": 2, "c": 5, "none": 0})
    assert [(held.item, held.at_least, held.at_most) for held in found.top(5)] == [("c", 5, 5), ("a", 2, 2), ("b", 2, 2)]
    assert found.count == 9


def test_long_items_are_cut_and_stay_apart() -> None:
    """Items that differ only past the cut keep counters of their own, and no counter is longer than the cut."""
    long = ["x" * 1000 + "a", "x" * 1000 + "b"]
    found = Top.of([*long, long[0]])
    assert sorted(found.counters.values()) == [1, 2]
    assert {len(item) for item in found.counters} == {KEY_LENGTH}


def test_bad_top_lists_are_refused() -> None:
    """Sizes out of range or unlike, and negative counts, are errors."""
    with pytest.raises(InputError, match="65,536"):
        Top.of([], size=0)
    with pytest.raises(InputError, match="sizes"):
        top.merge([Top.of([]), Top.of([], size=3)])
    with pytest.raises(InputError, match="-1 times"):
        Top.of({"a": -1})


_TOP = Top.of(["a", "b"]).encode()


@pytest.mark.parametrize(
    "broken", [b"", _TOP[:-1], _TOP + b" ", b"XX" + _TOP[2:], Top({"a": 5}, 1, 0, 4).encode(), Top({"a": 1, "b": 1}, 2, 0, 1).encode()]
)
def test_broken_top_bytes_are_refused(broken: bytes) -> None:
    """What is no top list, or says more than it counted, is a ValueError."""
    with pytest.raises(ValueError, match="top list"):
        top.decode(broken)
