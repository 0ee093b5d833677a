from __future__ import annotations

import itertools

import pytest

from actors.errors import HarnessError
from actors.lifecycle import TABLE, TERMINAL, Effect, Event, Life, Phase, classify_exit, step

IMPOSSIBLE = {
    *itertools.product([Phase.NEW], [Event.WARMED, Event.STARTED, Event.GRACE_OVER, Event.FINISHED]),
    *itertools.product([Phase.PREPARING, Phase.READY, Phase.RUNNING], [Event.PREPARE, Event.GRACE_OVER]),
    (Phase.READY, Event.WARMED),
    *itertools.product([Phase.RUNNING], [Event.WARMED, Event.STARTED]),
    (Phase.DRAINING, Event.PREPARE),
    (Phase.NEW, Event.BROKE),
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)), ids=str)
def test_every_pair_is_decided(phase: Phase, event: Event) -> None:
    """Each event in each phase is either in the table or raises with the story; nothing is forgotten."""
    if (phase, event) in IMPOSSIBLE:
        with pytest.raises(HarnessError, match=f"{phase}\\+{event}"):
            step(Life(phase), event)
    else:
        step(Life(phase), event)


def test_the_end_is_the_end() -> None:
    """No event moves a simulator out of a terminal phase or has it do anything."""
    for phase, event in itertools.product(TERMINAL, Event):
        life = Life(phase, "why")
        assert step(life, event, "other") == (life, ())


def test_every_way_into_an_end_releases() -> None:
    """What the shell holds is given back exactly when a life ends."""
    for (phase, _), (after, effects) in TABLE.items():
        assert (Effect.RELEASE in effects) == (phase not in TERMINAL and after in TERMINAL)


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.READY, Phase.RUNNING, Phase.DRAINING])
@pytest.mark.parametrize("event", [Event.FINISHED, Event.LEASE_ENDED, Event.BROKE])
def test_a_load_may_end_at_any_time(phase: Phase, event: Event) -> None:
    """The end of the load ends the life wherever it was."""
    assert step(Life(phase), event)[0].phase in TERMINAL


def test_the_first_reason_stays() -> None:
    """A life tells why it was stopped, not how its process then went."""
    life, _ = step(Life(Phase.RUNNING), Event.STOP, "stopped as asked")
    life, _ = step(life, Event.BROKE, "killed")
    assert (life.phase, life.reason) == (Phase.FAILED, "stopped as asked")


@pytest.mark.parametrize(
    ("code", "live", "stopping", "want"),
    [
        pytest.param(0, True, False, Event.FINISHED, id="ended-as-it-should"),
        pytest.param(75, True, False, Event.LEASE_ENDED, id="saw-its-lease-end"),
        pytest.param(-9, False, False, Event.LEASE_ENDED, id="killed-with-a-dead-slot"),
        pytest.param(-9, True, True, Event.FINISHED, id="killed-after-a-stop"),
        pytest.param(-9, True, False, Event.BROKE, id="killed-while-live"),
        pytest.param(1, False, True, Event.BROKE, id="an-error-is-an-error"),
    ],
)
def test_exit_codes(code: int, live: bool, stopping: bool, want: Event) -> None:
    """What a load's exit means follows from its code, its slot and whether a stop was asked for."""
    assert classify_exit(code, slot_live=live, stopping=stopping) is want
