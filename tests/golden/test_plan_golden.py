"""The stored plan of burst: its bytes are part of the contract, so a change of them is a decision."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.messages import NodeSpec
from scenarios import text
from scenarios.catalogue import get
from scenarios.plan import Plan, resolve

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
NODES = (NodeSpec("head", is_head=True), *(NodeSpec(f"n{at}") for at in range(1, 4)))
UPDATE = os.environ.get("GOLDEN_UPDATE") == "1"


def stored(name: str, content: bytes) -> bytes:
    if UPDATE:
        (HERE / name).write_bytes(content)
    return (HERE / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("burst.plan.json", get("burst")),
        ("custom.plan.json", text.load_file(EXAMPLES / "custom.yaml")),
        ("combined.plan.json", text.load_file(EXAMPLES / "combined.yaml")),
    ],
)
def test_plans_are_byte_equal_to_the_stored_ones(name, scenario):
    """The same scenario, seed and nodes give the stored bytes, and the stored plan reads back (GOLDEN_UPDATE=1 rewrites)."""
    plan = resolve(scenario, NODES)
    assert plan.to_json() == stored(name, plan.to_json())
    assert Plan.from_json(stored(name, plan.to_json())) == plan


def test_the_canonical_document_is_byte_equal_to_the_stored_one():
    """burst's canonical YAML is the stored text."""
    assert text.dump(get("burst")).encode() == stored("burst.yaml", text.dump(get("burst")).encode())
