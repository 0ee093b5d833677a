"""The life of a run, row by row."""

from __future__ import annotations

import itertools

import pytest

from cluster.run_state import TABLE, Effect, Event, Phase, step

ORDER = list(Phase)


@pytest.mark.parametrize(("phase", "event"), list(TABLE), ids=str)
def test_a_row_leads_where_the_table_says(phase, event):
    """Stepping is looking the table up."""
    assert step(phase, event) == TABLE[phase, event]


def test_what_a_phase_does_not_know_changes_nothing():
    """Every other pair is without effect: a repeated stop, a late answer."""
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) not in TABLE:
            assert step(phase, event) == (phase, ())


def test_a_run_only_goes_forward_and_done_is_the_end():
    """No row leads back, and none leaves DONE."""
    for (phase, _), (after, _) in TABLE.items():
        assert ORDER.index(after) > ORDER.index(phase)
    assert all(phase is not Phase.DONE for phase, _ in TABLE)


def test_every_phase_before_stopping_can_be_stopped():
    """A run that may have load anywhere has a way to its end."""
    for phase in ORDER[: ORDER.index(Phase.STOPPING)]:
        assert step(phase, Event.STOP)[0] is Phase.STOPPING


def test_every_phase_and_effect_is_reached():
    """The table has no orphan."""
    assert {after for after, _ in TABLE.values()} == set(Phase) - {Phase.ADMITTED}
    assert {effect for _, effects in TABLE.values() for effect in effects} == set(Effect)


def test_probes_that_were_started_are_stopped():
    """Leaving any phase after the probes' start for STOPPING stops them."""
    for phase in (Phase.STARTING, Phase.RUNNING):
        assert Effect.STOP_PROBES in step(phase, Event.STOP)[1]
