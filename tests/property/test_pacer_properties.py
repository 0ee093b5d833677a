from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.pacing import FORGET_S, LOOK_S, SLICE_S, Pacer, next_rounds


def drive(asked: Callable[[float], float], speed: Callable[[float], float], until_s: float, wake_s: float) -> list[tuple[float, float]]:
    """Return (time, CPU seconds so far) of one thread that gets `speed` of a core and wakes `wake_s` late."""
    pacer, now, used, path = Pacer(), 0.0, 0.0, [(0.0, 0.0)]
    while now < until_s:
        pause = pacer.pause_s(asked(now))
        assert pause <= LOOK_S
        wall, work = (pause + wake_s, 0.0) if pause > 0 else (SLICE_S / speed(now), SLICE_S)
        pacer.settle(asked(now + wall / 2), wall, work)
        now, used = now + wall, used + work
        path.append((now, used))
    return path


def used_between(path: list[tuple[float, float]], start_s: float, end_s: float) -> float:
    def at(when: float) -> float:
        return next(used for now, used in path if now >= when)

    return at(end_s) - at(start_s)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 0.97), st.floats(0.0, 0.0005))
def test_reaches_what_is_asked_where_there_is_room(asked: float, wake_s: float) -> None:
    """On an idle core each second of CPU time is within one point of what was asked."""
    path = drive(lambda _: asked, lambda _: 1.0, 3.2, wake_s)
    assert all(abs(used_between(path, at, at + 1.0) - asked) <= 0.01 for at in (0.0, 1.0, 2.0))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 1.0), st.floats(0.05, 0.5))
def test_a_starved_load_does_not_burst_later(asked: float, speed: float) -> None:
    """What the machine had no room for is owed for 200 ms and no longer."""
    path = drive(lambda _: asked, lambda now: speed if now < 3.0 else 1.0, 5.2, 0.0001)
    assert used_between(path, 3.0, 4.0) <= asked + FORGET_S * asked + 0.01


@given(st.floats(0.0, 1.0), st.floats(0.0, 10.0))
def test_never_works_when_nothing_is_asked(asked: float, elapsed_s: float) -> None:
    """Once the asked share falls to nothing the thread rests at once, whatever it owed."""
    pacer = Pacer()
    pacer.settle(asked, elapsed_s, 0.0)
    pacer.settle(0.0, 0.001, 0.0)
    assert pacer.pause_s(0.0) == LOOK_S


@given(st.floats(1e-9, 1e-3), st.integers(100, 10**6), st.sampled_from([1, 100]))
def test_slices_find_their_length(seconds_a_round: float, rounds: int, rounds_min: int) -> None:
    """Calibration ends at slices of about a millisecond, or at the smallest number of rounds."""
    for _ in range(40):
        rounds = next_rounds(rounds, rounds * seconds_a_round, rounds_min)
    assert rounds == rounds_min or abs(rounds * seconds_a_round - SLICE_S) <= SLICE_S * 0.01 + seconds_a_round
