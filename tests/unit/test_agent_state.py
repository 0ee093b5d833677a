"""The life of one operation on its node, row by row."""

from __future__ import annotations

import itertools

import pytest

from cluster.agent_state import TABLE, Effect, Event, Stage, step

ORDER = list(Stage)
HOLDS_A_SLOT = (Stage.PREPARING, Stage.READY, Stage.ARMED, Stage.RUNNING)


@pytest.mark.parametrize(("stage", "event"), list(TABLE), ids=str)
def test_a_row_leads_where_the_table_says(stage, event):
    """Stepping is looking the table up."""
    assert step(stage, event) == TABLE[stage, event]


def test_what_a_stage_does_not_know_changes_nothing():
    """Every other pair is without effect."""
    for stage, event in itertools.product(Stage, Event):
        if (stage, event) not in TABLE:
            assert step(stage, event) == (stage, ())


def test_an_operation_only_goes_forward_and_clean_is_the_end():
    """No row leads back, and none leaves CLEAN."""
    for (stage, _), (after, _) in TABLE.items():
        assert ORDER.index(after) > ORDER.index(stage)
    assert all(stage is not Stage.CLEAN for stage, _ in TABLE)


@pytest.mark.parametrize("stage", HOLDS_A_SLOT)
def test_what_holds_a_slot_is_clean_only_by_the_guardians_word(stage):
    """From every stage with a slot the way to CLEAN leads through CLOSING, and out of that only through CLOSED."""
    assert step(stage, Event.CLOSE) == (Stage.CLOSING, (Effect.CLOSE_SLOT,))
    assert all(after is not Stage.CLEAN for (before, _), (after, _) in TABLE.items() if before is stage)
    assert [event for before, event in TABLE if before is Stage.CLOSING] == [Event.CLOSED]


def test_every_stage_and_effect_is_reached():
    """The table has no orphan."""
    assert {after for after, _ in TABLE.values()} == set(Stage) - {Stage.WANTED}
    assert {effect for _, effects in TABLE.values() for effect in effects} == set(Effect)
