"""The open loop of a probe: due times do not move when the target stalls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.clock import SECOND_NS
from cluster.probes.schedule import OpenLoop


def test_a_stalled_target_moves_no_due_time_and_hides_no_call():
    """Ten calls a second stay ten a second while nothing is answered, and each counts from when it was due."""
    loop = OpenLoop(10.0, 0, timeout_s=100.0)
    send, refused = loop.take_due(5 * SECOND_NS)
    assert send == list(range(51))
    assert refused == []
    samples = [loop.done(number, 5 * SECOND_NS) for number in send]
    assert [round(sample.response_s, 6) for sample in samples] == [round(5 - number / 10, 6) for number in send]
    assert {sample.service_s for sample in samples} == {0.0}
    assert loop.next_due_ns() == 5_100_000_000


def test_a_late_loop_catches_up_once():
    """A call is sent once, also when the loop looks twice at the same instant."""
    loop = OpenLoop(4.0, SECOND_NS, timeout_s=1.0)
    assert loop.take_due(SECOND_NS - 1) == ([], [])
    assert loop.take_due(SECOND_NS)[0] == [0]
    assert loop.take_due(SECOND_NS)[0] == []
    assert loop.take_due(2 * SECOND_NS)[0] == [1, 2, 3, 4]


def test_what_passes_its_timeout_fails_with_the_time_waited():
    """An unanswered call is a failure from its due time on, and its late answer counts no more."""
    loop = OpenLoop(1.0, 0, timeout_s=2.0)
    loop.take_due(0)
    assert loop.take_late(2 * SECOND_NS - 1) == []
    (sample,) = loop.take_late(2 * SECOND_NS)
    assert (sample.failure, sample.response_s) == ("timeout", 2.0)
    assert loop.done(0, 3 * SECOND_NS) is None


def test_calls_beyond_the_bound_are_counted_as_not_sent():
    """Memory is bounded, and what was not sent is not forgotten."""
    loop = OpenLoop(10.0, 0, timeout_s=1.0, in_flight_max=3)
    send, refused = loop.take_due(SECOND_NS)
    assert send == [0, 1, 2]
    assert [sample.number for sample in refused] == list(range(3, 11))
    assert {sample.failure for sample in refused} == {"not_sent"}
    assert [sample.failure for sample in loop.abandon(SECOND_NS)] == ["unanswered"] * 3


@given(st.floats(0.1, 1_000), st.lists(st.integers(0, SECOND_NS), min_size=1, max_size=30))
def test_the_schedule_depends_on_rate_and_start_alone(rate_hz, pauses):
    """However irregularly the loop is looked at, call n was due at start + n / rate, and none is missing."""
    loop, now_ns, sent = OpenLoop(rate_hz, 0, timeout_s=1e9, in_flight_max=1 << 30), 0, []
    for pause_ns in pauses:
        now_ns += pause_ns
        sent += loop.take_due(now_ns)[0]
    assert sent == list(range(len(sent)))
    assert all(loop.flying[number][0] == round(number * SECOND_NS / rate_hz) for number in sent)
    assert loop.next_due_ns() > now_ns
