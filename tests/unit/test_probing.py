"""A run's prober is made at most once and ended once, and who ends a run waits for what it saw."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.waiting import until

from actors.errors import HarnessError
from cluster.probing import Probing


class Prober:
    """Takes as long to finish as the test wants."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.told: list[str] = []
        self.may_finish = threading.Event()

    def call(self, method: str, *, timeout_s: float) -> None:
        self.told.append(method)
        assert self.may_finish.wait(min(20.0, timeout_s))
        if self.error is not None:
            raise self.error
        self.told.append("delivered")


def test_a_second_stop_waits_for_the_first() -> None:
    """The end of the load stops the probes, and so does who concludes the run: not before all that was seen is delivered."""
    prober, ended = Prober(), []
    probing = Probing(lambda one: ended.append((one, list(prober.told))))
    probing.start(lambda: prober)
    concluded: list[tuple[str, ...]] = []

    def conclude() -> None:
        assert probing.stop() == ""
        concluded.append(tuple(prober.told))

    first = threading.Thread(target=probing.stop)
    first.start()
    until(lambda: prober.told, 5, "the first stop is under way")
    second = threading.Thread(target=conclude)
    second.start()
    second.join(0.1)
    assert concluded == []
    prober.may_finish.set()
    for one in (first, second):
        one.join(10)
    assert concluded == [("finish", "delivered")]
    assert ended == [(prober, ["finish", "delivered"])]


def test_nothing_is_started_after_a_stop() -> None:
    """A run that is stopped before its prober was made has none, that nobody would end."""
    made: list[Any] = []
    probing = Probing(made.append)
    assert probing.stop() == ""
    probing.start(lambda: made.append("prober"))
    assert made == []


def test_a_stop_ends_what_is_just_being_made() -> None:
    """It waits for a start under way."""
    making, may_go, prober, ended = threading.Event(), threading.Event(), Prober(), []
    prober.may_finish.set()

    def make() -> Prober:
        making.set()
        assert may_go.wait(20)
        return prober

    probing = Probing(ended.append)
    first = threading.Thread(target=probing.start, args=(make,))
    first.start()
    assert making.wait(10)
    second = threading.Thread(target=probing.stop)
    second.start()
    may_go.set()
    for one in (first, second):
        one.join(10)
    assert ended == [prober]


@pytest.mark.parametrize("is_asked_again", [False, True])
def test_a_prober_that_died_is_told_once_and_its_place_is_free(is_asked_again: bool) -> None:
    """The first who stops it is told why; its actor is ended all the same."""
    prober, ended = Prober(HarnessError("lost", "the actor is gone")), []
    prober.may_finish.set()
    probing = Probing(ended.append)
    probing.start(lambda: prober)
    assert "the prober died" in probing.stop()
    assert ended == [prober]
    assert not is_asked_again or probing.stop() == ""
