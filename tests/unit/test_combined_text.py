"""Combined loads as YAML: the example and its Python twin, what is refused and where, what `plan` tells of conditions."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest

from actors.errors import InputError
from actors.shape import Ramp
from cluster import cli
from scenarios import CpuLoad, DiskFill, MemoryPressure, Targets, form, hold, pause, sequence, text
from scenarios.composites import Composite, choose, limited, repeat, scaled, stretched, weighted, where

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "combined.yaml"
PAGE = ROOT / "docs" / "how-to" / "combine-loads.md"
MIB = 1 << 20
HEAD = "version: 1\nname: x\nplan:\n"


def test_the_example_is_its_python_twin():
    """Each word reads into the value that its Python function makes."""
    peak = Composite("web-peak", sequence(hold(CpuLoad(Ramp(0.1, 0.5, 4)), 6), pause(2)), strength=0.8)
    shared = weighted((3, hold(MemoryPressure(bytes=128 * MIB), 10)), (1, hold(DiskFill(bytes=128 * MIB), 10)))
    slow = scaled(stretched(hold(MemoryPressure(bytes=Ramp(0, 64 * MIB, 2)), 2), by=2), by=0.5)
    assert text.load_file(EXAMPLE).plan == sequence(
        hold(peak, 20, tolerance=0.1),
        where(Targets(names=("n1", "n2")), shared, otherwise=hold(CpuLoad(0.2), 10)),
        repeat(choose((2, hold(CpuLoad(0.3), 4)), (1, slow)), times=2),
        limited(hold(CpuLoad(0.4), 5), 3),
    )
    jsonschema.validate(text.to_data(text.load_file(EXAMPLE)), form.json_schema())


def test_every_field_of_every_word_is_in_its_table():
    """A field that is added and forgotten in the form would be lost in YAML."""
    for record in form.COMBINED.values():
        assert {item.name for item in fields(record.cls)} == {item.attribute for item in record.table}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("  repeat: 2\n  off: {pause: 1s}", ":5:3: plan: unknown key 'off'; did you mean 'of'?"),
        ("  repeat: 2", "expected the key 'of'"),
        ("  repeat: 0\n  of: {CpuLoad: {fraction: 1%}, for: 1s}", ":4:11: plan: Repeat.count must be at least 1"),
        ("  repeat: 2\n  scaled: 1\n  of: {pause: 1s}", "found repeat and scaled"),
        ("  repeet: 2\n  of: {pause: 1s}", "unknown key 'repeet'; did you mean 'repeat'?"),
        ("  weighted: []", "at least one part"),
        ("  weighted:\n    - of: {CpuLoad: {fraction: 1%}, for: 1s}", ":5:7: plan.weighted[0]: expected the key 'weight'"),
        ("  choose:\n    - weight: 0\n      of: {CpuLoad: {fraction: 1%}, for: 1s}", ":5:15: plan.choose[0]: Share.weight must be above 0"),
        ("  where: {count: 1}\n  of: {CpuLoad: {fraction: 1%}, for: 1s}", "must say what a node is"),
        ("  composite: c\n  of: {CpuLoad: {fraction: 1%}, for: 1s}", "expected the key 'for'"),
        ("  scaled: 3\n  of: {CpuLoad: {fraction: 50%}, for: 1s}", "part 0: CpuLoad.fraction must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(plan, words):
    """Line and column, what was expected, and the nearest word."""
    with pytest.raises(InputError) as caught:
        text.load(HEAD + plan)
    assert words in str(caught.value)


def test_settings_reach_into_combined_parts():
    """`--set` goes by the same keys as the document."""
    scenario = text.apply_settings(
        text.load_file(EXAMPLE),
        ["plan.sequence.2.repeat=5", "plan.sequence.0.strength=50%", "plan.sequence.1.of.weighted.0.of.for=20s"],
    )
    assert scenario.plan.duration_s == text.load_file(EXAMPLE).plan.duration_s + 3 * 4 + 10


def test_plan_tells_which_node_runs_no_part_and_why(capsys):
    """Conditions are decided when the plan is made; the lines and the document name part, node and reason."""
    assert cli.main(["plan", str(EXAMPLE), "--nodes", "3"]) == 0
    assert "part 0.1.0 is not run on n3: it is not named n1, n2" in capsys.readouterr().out
    assert cli.main(["plan", str(EXAMPLE), "--nodes", "3", "--json"]) == 0
    skipped = json.loads(capsys.readouterr().out)["skipped"]
    assert {"path": "0.1.1", "node": "n3", "reason": "it is not named n1, n2"} in skipped


def test_the_page_has_code_that_runs():
    """The page's documents read, its Python runs, and both make the same plan."""
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    made = [text.load(block).plan for kind, block in blocks if kind == "yaml"]
    for kind, block in blocks:
        if kind == "python":
            names: dict[str, object] = {}
            exec(compile(block, str(PAGE), "exec"), names)  # the page is ours
            assert names["scenario"].plan in made  # type: ignore[attr-defined]
    assert {kind for kind, _ in blocks} == {"yaml", "python"}
