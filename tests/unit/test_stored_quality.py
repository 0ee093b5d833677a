"""The stored mutation score is there, above its bound and whole; and how faults of code are made is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PACKAGES = ("actors/concurrency", "actors/ray_loads", "actors/exhaustion")
SCORE, DRAWN = 0.70, 150


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the benchmarks' own modules importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def stored(name: str) -> dict[str, Any]:
    """Return the figures of a stored result whose goals were all reached."""
    document = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    assert {goal: one["reached"] for goal, one in document["goals"].items() if not one["reached"]} == {}
    assert document["machine"]["python"]
    assert document["figures"]["commit"]
    return document["figures"]


def test_the_stored_mutation_score_is_above_its_bound() -> None:
    """Of at least 150 faults drawn 70 % are found in each package; survivors are all named, and without a fault nothing failed."""
    figures = stored("mutants")
    assert figures["drawn"] == sum(one["drawn"] for one in figures["packages"].values()) >= DRAWN
    assert set(figures["packages"]) == set(PACKAGES)
    for one in figures["packages"].values():
        assert one["score"] == pytest.approx(one["found"] / one["drawn"], abs=1e-4)
        assert one["score"] >= SCORE
        assert len(one["survivors"]) == one["drawn"] - one["found"]
    assert figures["controls"]["runs"] >= DRAWN // 15
    assert figures["controls"]["failed"] == []
    assert all(len(reason.split()) >= 5 for reason in figures["equivalent"].values())


SAMPLE = '''"""A module."""
LIMIT = 3
def f(a: int | None = 2 + 1) -> int | None:
    """Add."""
    print(f"{a + 1} is told")
    if a < LIMIT and not a:
        return max(a, 1)
    raise ValueError("more than " + str(2))
class P(Protocol):
    def g(self) -> int:
        return 5
class C:
    def h(self, x):
        self.y = x - 1
        for z in x:
            continue
'''
WANT = {
    "f": {
        ('print(f"{a + 1} is told")', "pass"),
        ("a < LIMIT", "a <= LIMIT"),
        ("a < LIMIT", "a >= LIMIT"),
        ("not a", "(a)"),
        ("a < LIMIT and not a", "(a < LIMIT or not a)"),
        ("a < LIMIT and not a", "(not (a < LIMIT and (not a)))"),
        ("return max(a, 1)", "return None"),
        ("max(a, 1)", "min(a, 1)"),
        ("1", "2"),
        ("1", "0"),
        ('raise ValueError("more than " + str(2))', "pass"),
        ('"more than " + str(2)', "('more than ' - str(2))"),
        ("2", "3"),
        ("2", "0"),
    },
    "C.h": {
        ("self.y = x - 1", "pass"),
        ("x - 1", "(x + 1)"),
        ("1", "2"),
        ("1", "0"),
        ("x", "()"),
        ("continue", "break"),
    },
}


@pytest.mark.usefixtures("tools")
def test_faults_are_made_in_functions_one_at_a_time(tmp_path: Path) -> None:
    """Each kind of piece has its faults; defaults, annotations, docstrings, texts, constants and protocols have none; each is Python."""
    from faults_of_code import faults_of

    (tmp_path / "a.py").write_text(SAMPLE)
    found = faults_of(tmp_path, "a.py")
    for function, want in WANT.items():
        assert {(one.was, one.now) for one in found if one.function == function} == want
    assert {one.function for one in found} == set(WANT)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        made = one.apply(SAMPLE.encode()).decode()
        assert made != SAMPLE
        assert SAMPLE[: one.start] == made[: one.start]
        assert made.endswith(SAMPLE[one.end :])


@pytest.mark.usefixtures("tools")
def test_a_sample_is_of_each_package_and_stays() -> None:
    """The same seed draws the same, another seed others; what is taken from elsewhere moves none of a package; all have tests."""
    sys.modules.pop("mutants", None)
    import mutants

    faults = mutants.all_faults()
    drawn = mutants.sample(faults, 20, 1)
    assert drawn == mutants.sample(faults, 20, 1) != mutants.sample(faults, 20, 2)
    assert {package: sum(one.path.startswith(package) for one in drawn) for package in PACKAGES} == dict.fromkeys(PACKAGES, 20)
    fewer = {**faults, PACKAGES[0]: faults[PACKAGES[0]][:100]}
    assert {one for one in mutants.sample(fewer, 20, 1) if not one.path.startswith(PACKAGES[0])} <= set(drawn)
    assert all(any(word.startswith("tests/") for word in mutants.tests_of(one.path)) for some in faults.values() for one in some)
    assert not any(name == fault.name for name in mutants.EQUIVALENT for some in faults.values() for fault in some)
