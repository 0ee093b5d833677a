"""docs/requirements.md: complete, in order, and honest about what it calls done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "requirements.md"
STATUSES = {"open", "partial", "done"}
ITEMS = [f"S-{number:03}" for number in range(1, 233)]

Row = tuple[str, str, str, str, str]


def rows(text: str) -> list[Row]:
    """Return (item, what, code, test, status) of each row that begins with an item's number."""
    found = []
    for line in text.splitlines():
        if line.startswith("| S-"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 5, f"{cells[0]} has {len(cells)} cells, expected 5"
            found.append((cells[0], cells[1], cells[2], cells[3], cells[4]))
    return found


def paths(cell: str) -> list[str]:
    """Return the paths in a cell; what stands behind `::` names a test in the file."""
    return [part.strip(" `").partition("::")[0] for part in cell.split(",") if part.strip(" `")]


def problems(found: list[Row], root: Path) -> list[str]:
    """Return what is wrong with these rows."""
    wrong = [] if [row[0] for row in found] == ITEMS else ["the items are not S-001 to S-232, once each and in order"]
    for item, what, code, test, status in found:
        wrong += [f"{item} has no title"] * (not what)
        wrong += [f"{item}: unknown status {status!r}"] * (status not in STATUSES)
        wrong += [f"{item} names {path}, which is not there" for path in paths(code) + paths(test) if not (root / path).exists()]
        wrong += [f"{item} is done without code and a test"] * (status == "done" and not (paths(code) and paths(test)))
        wrong += [f"{item} is open, but names code or a test"] * (status == "open" and bool(paths(code) or paths(test)))
    return wrong


def test_requirements_page_is_complete_and_honest() -> None:
    """All 232 items stand in order, each path exists, and nothing is done without code and a test."""
    assert problems(rows(PAGE.read_text()), ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        ("| S-007 |", "| S-008 |", "once each and in order"),
        ("| open |\n", "| finished |\n", "unknown status"),
        ("| | | open |\n", "| `cluster/nowhere.py` | | partial |\n", "not there"),
        ("| | | open |\n", "| | | done |\n", "without code"),
        ("| | | open |\n", "| `Makefile` | `docs/requirements.md` | open |\n", "is open, but"),
    ],
)
def test_a_wrong_page_is_found(old: str, new: str, want: str) -> None:
    """A missing row, an unknown status, a missing path and an empty `done` are each reported."""
    text = "".join(f"| {item} | title | | | open |\n" for item in ITEMS)
    assert problems(rows(text), ROOT) == []
    assert want in " ".join(problems(rows(text.replace(old, new, 1)), ROOT))
