"""Load shapes of installed packages: found by entry point, checked before anything is allocated, alike on all nodes, never over a limit."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from actors import plugin_shapes
from actors.errors import InputError, RefusedError
from actors.messages import Capacity, NodeSpec, Operation
from actors.shape import Custom, from_spec
from actors.simulator import check, peak_amounts
from cluster.admission import admission_of
from cluster.orchestrator_api import Submission
from scenarios import plan as plans
from scenarios import text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-a-load-shape.md"
MIB = 1 << 20
CALLS = itertools.count()
CAPACITY = Capacity(4.0, 8 << 30, 100 << 30)
CAN = {name: {"verdict": "available", "reason": ""} for name in ("CpuLoad", "MemoryPressure", "DiskFill")}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Functions are looked up once in a process."""
    plugin_shapes.function_of.cache_clear()
    yield
    plugin_shapes.function_of.cache_clear()


def code_of(page: Path = PAGE) -> dict[str, str]:
    """Return the files of the page."""
    return dict(re.findall(r"^```(?:python|toml|yaml)\n# (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def install(folder: Path, version: str = "1.0", module: str = "") -> None:
    """Install the package of the page as pip would."""
    code = code_of()
    groups = tomllib.loads(code["pyproject.toml"])["project"]["entry-points"].items()
    info = folder / f"stairs-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / "stairs.py").write_text(module or code["stairs.py"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: stairs\nVersion: {version}\n")
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of the page is installed."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "stairs", raising=False)
    return tmp_path / "site"


def operation(limit: float = 100 * MIB, function: str = "down_and_up") -> Operation:
    return Operation("0", "MemoryPressure", "n1", 0.0, 30.0, "bytes", Custom(function, limit).to_spec())


def test_the_page_works(site: Path) -> None:
    """The scenario of the page is read, planned, checked and followed; what is reserved is its limit."""
    scenario = text.load(code_of()["stairs.yaml"])
    (made,) = plans.resolve(scenario, (NodeSpec("n1"),), 1).operations
    assert made.shape == {"kind": "custom", "function": "down_and_up", "limit": 100.0 * MIB, "factor": 1.0}
    check(made)
    shape = from_spec(json.loads(json.dumps(made.shape)))
    assert [shape.value(at) / MIB for at in (-1.0, 0.0, 2.0, 5.0, 6.0)] == [100.0, 100.0, 80.0, 50.0, 100.0]
    assert shape.scaled(0.5).value(2.0) == 40 * MIB
    assert peak_amounts(made, CAPACITY).memory_bytes == 100 * MIB
    assert text.from_data(text.to_data(scenario), "again") == scenario


@pytest.mark.parametrize(
    ("function", "words"),
    [
        pytest.param(lambda t: 5.0 - t, "negative", id="negative"),
        pytest.param(lambda t: math.nan if t > 9 else 1.0, "no finite number", id="not-a-number"),
        pytest.param(lambda _: math.inf, "no finite number", id="infinite"),
        pytest.param(lambda t: t * 10.0, "above its limit of 90", id="over-its-limit"),
        pytest.param(lambda t: 1.0 / (t - 10.0) if t >= 10.0 else 1.0, "ZeroDivisionError", id="raises"),
        pytest.param(lambda _: "much", "ValueError", id="a-text"),
        pytest.param(lambda _: True, "no finite number", id="a-truth"),
        pytest.param(lambda _: next(CALLS) % 80.0, "time alone", id="keeps-state"),
    ],
)
def test_what_is_no_shape_is_refused_before_allocation(monkeypatch: pytest.MonkeyPatch, function: object, words: str) -> None:
    """A grid over the whole duration finds it, and the reason says where."""
    monkeypatch.setattr(plugin_shapes, "function_of", lambda _: function)
    with pytest.raises(InputError, match=words):
        check(replace(operation(limit=90.0), duration_s=10.0))


def test_a_good_function_is_no_problem() -> None:
    """Both ends count, and the limit may be met."""
    assert plugin_shapes.problem(lambda t: t, 10.0, 10.0) == ""
    assert "10" in plugin_shapes.problem(lambda t: t, 9.999, 10.0)


@pytest.mark.parametrize(("found", "want"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 7.0), (9.0, 7.0), (3.0, 3.0)])
def test_at_run_time_values_are_held_within_the_limit(monkeypatch: pytest.MonkeyPatch, found: float, want: float) -> None:
    """Between the points of the grid a function may be anything: what is reserved holds all the same."""
    monkeypatch.setattr(plugin_shapes, "function_of", lambda _: lambda _: found)
    assert Custom("f", 7.0).value(1.0) == want


def test_a_function_that_raises_later_counts_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that reads the shape goes on."""
    monkeypatch.setattr(plugin_shapes, "function_of", lambda _: lambda _: 1 / 0)
    assert Custom("f", 7.0).value(1.0) == 0.0


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, plugin_shapes.GROUP)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        pytest.param([], "offered by no installed package", id="none"),
        pytest.param([point("f", "math:sqrt"), point("f", "math:fabs")], "math:fabs and math:sqrt", id="two"),
        pytest.param([point("f", "no_such_module:f")], "ModuleNotFoundError", id="no-module"),
        pytest.param([point("f", "math:pi")], "float, which is no function", id="no-function"),
    ],
)
def test_what_cannot_be_used_says_why(points: list[EntryPoint], words: str) -> None:
    """By its name, with what offers it."""
    with pytest.raises(InputError, match=words):
        plugin_shapes.find("f", points)


def test_a_path_that_is_listed_twice_offers_once() -> None:
    """The same entry point twice is one function."""
    assert plugin_shapes.find("f", [point("f", "math:fabs"), point("f", "math:fabs")]).function is math.fabs


def test_digests_tell_versions_and_sources_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike for the same package, different for another version and for a changed file, without running the module."""
    found = []
    changed = code_of()["stairs.py"].replace("100 - 10", "90 - 10")
    for number, (version, module) in enumerate([("1.0", ""), ("1.0", ""), ("1.1", ""), ("1.0", changed), ("1.0", "raise SystemExit")]):
        folder = tmp_path / str(number)
        install(folder, version, module)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            patch.delitem(sys.modules, "stairs", raising=False)
            found.append(plugin_shapes.digests()["down_and_up"])
    assert found[0] == found[1]
    assert len(set(found)) == 4


def admitted(shapes: dict[str, dict[str, str]]) -> object:
    """Admit a run of the page's scenario on nodes that have these shapes."""
    scenario = text.load(code_of()["stairs.yaml"])
    plan = plans.resolve(scenario, [NodeSpec(name) for name in shapes], 1)
    hellos = {
        name: {"machine": name, "capacity": CAPACITY, "report": {"simulators": CAN, "shapes": theirs}} for name, theirs in shapes.items()
    }
    return admission_of(Submission("r", code_of()["stairs.yaml"], 1), plan, hellos, 1.0)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        pytest.param({"n1": {"down_and_up": "a"}, "n2": {}}, "n2 has no shape 'down_and_up'", id="one-lacks-it"),
        pytest.param({"n1": {"down_and_up": "a"}, "n2": {"down_and_up": "b"}}, "n1 and n2 have different packages", id="they-differ"),
    ],
)
def test_a_run_is_refused_when_nodes_would_follow_different_functions(shapes: dict[str, dict[str, str]], words: str) -> None:
    """Before anything starts, with the nodes named."""
    with pytest.raises(RefusedError, match=words) as caught:
        admitted(shapes)
    assert caught.value.code == "capability"
    assert admitted({"n1": {"down_and_up": "a"}, "n2": {"down_and_up": "a"}})
