"""What the pages show is what the parser takes: every document, and each load, load shape or setting within a line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from actors.errors import InputError
from actors.shape import KINDS
from actors.simulator import REGISTRY
from scenarios import Scenario, text

ROOT = Path(__file__).parents[2]
FOLDERS = ("how-to", "tutorial", "explanation")
PAGES = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / "docs" / folder).glob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_A_LINE = re.compile(r"`(\w+): ?(\{[^`]+\})`")
PARTS = {"version": "version: 1\n", "name": "name: shown\n", "plan": "plan: {CpuLoad: {fraction: 10%}, for: 10s}\n"}
SETTINGS = {field.name for field in fields(Scenario)} - set(PARTS)


def whole(block: str) -> str:
    """Return a document that holds what a page shows of one."""
    shown = f"exporters:\n  destinations:\n{block}" if block.lstrip().startswith("- type:") else block
    return "".join(line for key, line in PARTS.items() if not re.search(f"^{key}:", shown, re.MULTILINE)) + shown


def in_a_line(key: str, value: str) -> str:
    """Return a document with a load shape, a load or a setting; "" for what is none of them."""
    if key in KINDS:
        return whole(f"plan: {{CpuLoad: {{fraction: {{{key}: {value}}}}}, for: 10s}}\n")
    if key in REGISTRY:
        return whole(f"plan: {{{key}: {value}, for: 10s}}\n")
    return whole(f"{key}: {value}\n") if key in SETTINGS else ""


def documents(page: str) -> list[str]:
    """Return all that a page shows, as documents."""
    found = [in_a_line(key, value) for key, value in IN_A_LINE.findall(page)]
    return [*map(whole, BLOCK.findall(page)), *filter(None, found)]


@pytest.mark.parametrize("page", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES if documents(path.read_text())])
def test_what_a_page_shows_is_read(page: Path) -> None:
    """Each example of a page is a scenario, which can be written down again."""
    for shown in documents(page.read_text()):
        made = text.load(shown, f"{page.name}: {shown}")
        assert text.load(text.dump(made)) == made


def test_the_shapes_of_a_processors_load_are_among_them() -> None:
    """The table of patterns has four kinds with their keys; and many pages show something."""
    shown = documents((ROOT / "docs/how-to/load-a-processor.md").read_text())
    assert {kind for kind in KINDS for one in shown if f"{kind}: {{" in one} == {"ramp", "burst", "sine", "steps"}
    assert len([path for path in PAGES if documents(path.read_text())]) >= 9


def test_a_key_that_is_none_is_found() -> None:
    """A shape in a line whose key the parser does not know is an error."""
    (shown,) = documents("so `burst: {base: 10%, peak_level: 90%, period: 60s, length: 10s}` is a burst")
    with pytest.raises(InputError, match="peak_level"):
        text.load(shown)
