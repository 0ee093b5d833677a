"""When a load counts as ended or hung, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.clock import SECOND_NS
from actors.control import LOAD_DONE, LOAD_FAILED, LOAD_NONE, LOAD_RUNNING
from cluster.load_end import NO_LOAD, ended, hung


@pytest.mark.parametrize(
    ("stage", "state", "status", "is_leased", "code"),
    [
        pytest.param("running", LOAD_RUNNING, {}, True, None, id="runs"),
        pytest.param("running", LOAD_RUNNING, {}, False, "expired", id="its-lease-ended"),
        pytest.param("armed", LOAD_NONE, {}, False, "expired", id="its-lease-ended-before-it-began"),
        pytest.param("preparing", LOAD_NONE, {}, False, None, id="not-leased-yet"),
        pytest.param("running", LOAD_DONE, {"phase": "done"}, False, "", id="as-planned-however-late-it-is-seen"),
        pytest.param("running", LOAD_RUNNING, {"phase": "expired"}, True, "expired", id="its-simulator-saw-the-lease-end-first"),
        pytest.param("running", LOAD_FAILED, {}, True, "internal", id="its-process-failed"),
        pytest.param("running", LOAD_RUNNING, {"phase": "dead"}, False, "internal", id="its-simulator-died"),
    ],
)
def test_how_a_load_has_ended(stage, state, status, is_leased, code):
    """A failure is told as one, a lease that ended as a loss, and only the plan's end as none."""
    found = ended(stage, state, status, is_leased=is_leased)
    assert (None if found is None else found.code) == code
    assert found is None or bool(found.reason) == bool(code)


@pytest.mark.parametrize(
    ("stage", "heartbeat_s", "silent_s", "want"),
    [
        pytest.param("running", 8.0, 2.0, False, id="both-at-the-bound"),
        pytest.param("running", 7.9, 0.0, True, id="load-silent-for-longer"),
        pytest.param("running", 10.0, 2.1, True, id="simulator-silent-for-longer"),
        pytest.param("running", 0.0, 0.0, False, id="no-sign-of-life-yet"),
        pytest.param("preparing", 1.0, 9.0, False, id="compiling"),
    ],
)
def test_what_is_silent_for_longer_than_a_lease_hangs(stage, heartbeat_s, silent_s, want):
    """At 10 s, with a patience of 2 s."""
    load = replace(NO_LOAD, state=LOAD_RUNNING, heartbeat_ns=round(heartbeat_s * SECOND_NS))
    assert (hung(stage, load, silent_s, 10 * SECOND_NS, 2.0) is not None) is want
