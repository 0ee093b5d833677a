"""Stored coverage and mutation score are there, above their bounds, whole and of today's code; what they are made with is right.

So are the goals of stored benchmarks: those that the script of today has, reached or not as their figures say.
"""

from __future__ import annotations

import importlib
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


ROOT = BENCHMARKS.parent
COVERED = 90.0  # percent


def covered_now(package: str) -> tuple[dict[str, float], list[str]]:
    """Return a package's percent of lines and branches with all that changed since the measurement as not run, and what that is."""
    from regions import still_measured

    files = stored("coverage")["packages"][package]["files"]
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / package).rglob("*.py")}
    total, changed = [0, 0, 0, 0], []
    for name, text in found.items():
        counts, others = still_measured(text, files.get(name, {}).get("regions", {}))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        changed += [f"{name}: {other}" for other in others]
    return {"lines": 100 * total[1] / total[0], "branches": 100 * total[3] / total[2]}, changed


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("package", PACKAGES)
def test_the_stored_coverage_is_above_its_goal_and_of_this_code(package: str) -> None:
    """At least 90 % of lines and branches, also when each function that is another today than when it was measured counts as not run.

    A file that was not there then is not run as a whole. Whoever changes more than that leaves has to measure again.
    """
    one = stored("coverage")["packages"][package]
    assert min(one["lines"], one["branches"]) >= COVERED
    found, changed = covered_now(package)
    assert min(found.values()) >= COVERED, f"{found} of what was measured is still so: `make coverage`; changed: {changed}"


@pytest.mark.usefixtures("tools")
def test_the_stored_coverage_is_of_tests_that_are_there() -> None:
    """The tests it was measured with are those that are named today, and each is there; so is each place of a package."""
    sys.modules.pop("covered", None)
    import covered

    assert covered.GOAL == COVERED
    assert set(covered.PACKAGES) == set(PACKAGES) == set(stored("coverage")["packages"])
    assert stored("coverage")["tests"] == list(covered.TESTS)
    for name in covered.TESTS:
        path, _, function = name.partition("::")
        assert not function or f"def {function}(" in (ROOT / path).read_text(), name


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("name", ["flood", "holding"])
def test_a_stored_result_is_of_its_script(name: str) -> None:
    """It has the figures and goals that the script has today; whether each is reached follows from the figures."""
    document = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    want = importlib.import_module(f"bench_{name}").goals_of(document["figures"])
    assert {goal: (one["limit"], one["reached"]) for goal, one in document["goals"].items()} == want


def test_how_long_a_stop_of_a_fill_took_is_told_beside_its_goal() -> None:
    """A second at most, also where it was missed."""
    document = json.loads((BENCHMARKS / "results" / "disk_io.json").read_text())
    for how, fill in document["figures"]["fill"].items():
        took_s = fill["stop_seconds"]
        assert document["reported"][f"{how}_stop_seconds"] == {"goal": 1.0, "found": took_s, "reached": took_s <= 1.0}


@pytest.mark.usefixtures("tools")
def test_calls_that_reach_others_are_told_from_strace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table is read with errors and without, and what a load asks of the kernel for itself is none of them."""
    monkeypatch.delitem(sys.modules, "bench_holding", raising=False)
    from bench_holding import calls_of, reaching

    head = (
        "% time     seconds  usecs/call     calls    errors syscall\n------ ----------- ----------- --------- --------- ----------------\n"
    )
    rows = " 90.10    0.100000           5     18000         2 openat\n  9.90    0.010000           5        12           sendmsg\n"
    last = "100.00    0.110000           5     18013         2 total\n"
    found = calls_of(f"{head}{rows}  0.00    0.000000           0         1           clock_nanosleep\n{last}")
    assert found == {"openat": 18000, "sendmsg": 12, "clock_nanosleep": 1}
    assert reaching(found) == 12


PIECES = '''"""A module."""
import os

class C:
    """A class."""
    limit = 3

    def f(self):
        """Add."""
        def inner():
            return 1
        if self.limit:  # twice
            return inner()
        return 2
'''
MEASURED = {  # as coverage tells it: the last line was not run
    "executed_lines": [2, 4, 6, 8, 10, 11, 12, 13],
    "missing_lines": [14],
    "executed_branches": [[12, 13]],
    "missing_branches": [[12, 14]],
}


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("was", "now", "want", "changed"),
    [
        pytest.param("", "", (9, 8, 2, 1), [], id="the-same"),
        pytest.param("Add.", "Add two numbers.", (9, 8, 2, 1), [], id="another-docstring"),
        pytest.param("return 2", "return 3", (9, 5, 2, 0), ["C.f"], id="another-function"),
        pytest.param("return 1", "return 3", (9, 6, 2, 1), ["C.f.inner"], id="another-inner-function"),
        pytest.param("limit = 3", "limit = 4", (9, 5, 2, 1), ["outside of functions"], id="another-constant"),
        pytest.param("return 2\n", "return 2\n\n    def g(self):\n        return 1\n", (11, 8, 2, 1), ["C.g"], id="one-more-function"),
    ],
)
def test_what_changed_since_it_was_measured_counts_as_not_run(
    was: str, now: str, want: tuple[int, int, int, int], changed: list[str]
) -> None:
    """Function by function, with what it was counted by: lines, those that were run, branches, those that were run."""
    from regions import measured, still_measured

    kept = measured(PIECES, MEASURED)
    assert still_measured(PIECES.replace(was, now) if was else PIECES, kept) == (want, changed)


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
