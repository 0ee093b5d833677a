"""The tables in docs/explanation/control-plane.md are the tables that the code runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import agent_state, run_state

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "control-plane.md"


def rows_under(heading: str) -> list[list[str]]:
    section = PAGE.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


@pytest.mark.parametrize(("heading", "module"), [("A run's life", run_state), ("An operation's life on its node", agent_state)])
def test_the_page_shows_the_table_that_runs(heading, module):
    """Row for row: from, event, to, and what is done."""
    want = [
        [str(before), str(event), str(after), ", ".join(map(str, effects)) or "nothing"]
        for (before, event), (after, effects) in module.TABLE.items()
    ]
    assert rows_under(heading) == want
