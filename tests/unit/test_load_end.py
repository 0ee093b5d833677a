"""When a load counts as ended or hung, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.clock import SECOND_NS
from actors.control import LOAD_DONE, LOAD_FAILED, LOAD_NONE, LOAD_READY, LOAD_RUNNING
from cluster.load_end import NO_LOAD, TELL_S, Silence, ended, hung, silence


@pytest.mark.parametrize(
    ("stage", "state", "status", "is_over", "code"),
    [
        pytest.param("running", LOAD_RUNNING, {}, False, None, id="runs"),
        pytest.param("running", LOAD_RUNNING, {}, True, "expired", id="its-lease-ended"),
        pytest.param("armed", LOAD_NONE, {}, True, "expired", id="its-lease-ended-before-it-began"),
        pytest.param("preparing", LOAD_NONE, {}, True, None, id="compiling"),
        pytest.param("running", LOAD_DONE, {"phase": "done"}, True, "", id="as-planned-however-late-it-is-seen"),
        pytest.param("running", LOAD_RUNNING, {"phase": "expired"}, False, "expired", id="its-simulator-saw-the-lease-end-first"),
        pytest.param("running", LOAD_FAILED, {"phase": "failed", "reason": "it broke"}, False, "internal", id="its-process-failed"),
        pytest.param("running", LOAD_RUNNING, {"phase": "dead"}, True, "internal", id="its-simulator-died"),
    ],
)
def test_how_a_load_has_ended(stage, state, status, is_over, code):
    """A failure is told as one, a lease that ended as a loss, and only the plan's end as none."""
    found = ended(stage, replace(NO_LOAD, state=state), status, SECOND_NS, is_over=is_over)
    assert (None if found is None else found.code) == code
    assert found is None or bool(found.reason) == bool(code)


def test_a_failure_is_told_with_its_reason_or_after_a_while_without():
    """The stats page says first that a load has failed; why comes from its simulator, which is given the time to say."""
    failed = replace(NO_LOAD, state=LOAD_FAILED, heartbeat_ns=10 * SECOND_NS)
    assert ended("running", failed, {"phase": "running"}, 10 * SECOND_NS + 1, is_over=False) is None
    told = ended("running", failed, {"phase": "failed", "reason": "a call failed"}, 11 * SECOND_NS, is_over=False)
    assert told == ("internal", "a call failed")
    silent = ended("running", failed, {"phase": "running"}, round((10 + TELL_S) * SECOND_NS) + 1, is_over=False)
    assert silent == ("internal", "its load process failed")


@pytest.mark.parametrize(
    ("stage", "state", "heartbeat_s", "silent_s", "who", "for_s"),
    [
        pytest.param("running", LOAD_RUNNING, 7.9, 2.0, "its load process", 2.1, id="load-for-longer"),
        pytest.param("running", LOAD_RUNNING, 8.0, 2.1, "its simulator", 2.1, id="simulator-for-longer"),
        pytest.param("armed", LOAD_READY, 4.0, 0.0, "its load process", 6.0, id="while-it-waits-for-its-start"),
        pytest.param("running", LOAD_RUNNING, 0.0, 0.0, "its simulator", 0.0, id="no-sign-of-life-yet"),
        pytest.param("running", LOAD_DONE, 1.0, 0.0, "its simulator", 0.0, id="ended"),
        pytest.param("preparing", LOAD_NONE, 1.0, 9.0, "", 0.0, id="compiling"),
        pytest.param("closing", LOAD_RUNNING, 1.0, 9.0, "", 0.0, id="on-its-way-out"),
    ],
)
def test_who_has_been_silent_for_how_long(stage, state, heartbeat_s, silent_s, who, for_s):
    """At 10 s; whoever of a load and its simulator was heard longer ago counts."""
    load = replace(NO_LOAD, state=state, heartbeat_ns=round(heartbeat_s * SECOND_NS))
    found = silence(stage, load, silent_s, 10 * SECOND_NS)
    assert (found.who, found.seconds) == (who, pytest.approx(for_s))


@pytest.mark.parametrize(("seconds", "want"), [(2.0, False), (2.1, True)])
def test_what_is_silent_for_longer_than_a_lease_hangs(seconds, want):
    """With a patience of 2 s; the reason says who it was."""
    found = hung(Silence("its simulator", seconds), 2.0)
    assert (found is not None) is want
    assert found is None or (found.code == "internal" and "its simulator" in found.reason)
