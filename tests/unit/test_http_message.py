"""Requests and wishes, fuzzed: whatever comes is a request or a refusal, and never anything else."""

from __future__ import annotations

import random
from collections import Counter
from http import HTTPStatus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.exporters.exposition import Form
from cluster.exporters.http_message import HEAD_BYTES_MAX, Refused, Request, Response, is_whole, parse
from cluster.exporters.negotiation import coding_of, form_of

PIECES = st.sampled_from(
    [
        b"GET",
        b"HEAD",
        b" ",
        b"/metrics",
        b"HTTP/1.1",
        b"HTTP/9.9",
        b"\r\n",
        b"\n",
        b"\r",
        b"Host: x",
        b":",
        b"\0",
        b"\xff",
        b"Content-Length: ",
        b"7",
    ]
)
REFUSALS = {400, 413, 414, 431, 505}
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in {"content-length", "transfer-encoding", "host", "authorization"}
)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@settings(max_examples=500)
@given(st.lists(PIECES | st.binary(max_size=8), max_size=20).map(b"".join))
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n")
@example(b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n")
def test_any_bytes_are_a_request_or_a_refusal(data):
    """No input brings anything but a request, a wait for more, or a refusal with a status of ours."""
    assert outcome_of(data) in REFUSALS | {0, 1}


def outcome_of(data: bytes) -> int:
    """Return 1 for a request, 0 for more to come, else the status of the refusal."""
    try:
        return int(isinstance(parse(data), Request)) if is_whole(data) else 0
    except Refused as refused:
        return refused.status.value


def test_a_hundred_thousand_broken_requests_are_each_judged():
    """Requests with a few bytes changed, cut or doubled at random end in a request, a refusal or a wait; each of these is met."""
    chance = random.Random(7)
    good = b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nContent-Length: 65500\r\n\r\n"
    met = Counter[int]()
    for _ in range(100_000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 9)]
                case _:
                    data[at:at] = data[at : at + chance.randrange(1, 30)]
            if not data:
                break
        met[outcome_of(bytes(data))] += 1
    assert set(met) <= REFUSALS | {0, 1}
    assert min(met[0], met[1], met[400], met[413]) > 100


@given(st.sampled_from(["GET", "HEAD", "PUT", "X-Y"]), VALUE, st.lists(st.tuples(NAME, VALUE), max_size=8))
def test_a_request_is_read_as_it_was_written(method, rest, headers):
    """Method, path without query, and headers come through; those of one name are joined in order."""
    lines = [f"{method} /{rest} HTTP/1.1", "Host: h", *(f"{name}:  {value} " for name, value in headers)]
    data = "\r\n".join([*lines, "", ""]).encode()
    assert is_whole(data)
    assert not is_whole(data[:-1])
    want: dict[str, str] = {"host": "h"}
    for name, value in headers:
        want[name.lower()] = f"{want[name.lower()]}, {value}" if name.lower() in want else value
    path = f"/{rest}".partition("://")
    if not path[1]:
        assert parse(data) == Request(method, f"/{rest}".partition("?")[0], want, f"/{rest}".partition("?")[2])


def test_a_head_without_an_end_is_refused_at_its_bound():
    """Bytes are gathered up to the bound and not one further."""
    start = b"GET / HTTP/1.1\r\n"
    assert not is_whole(start + b"a" * (HEAD_BYTES_MAX - len(start)))
    with pytest.raises(Refused) as caught:
        is_whole(start + b"a" * (HEAD_BYTES_MAX - len(start) + 1))
    assert caught.value.status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def test_an_answer_says_its_length_and_that_it_is_the_last():
    """The head of a response is whole."""
    head = Response(HTTPStatus.OK, b"abc", (("A", "b"),)).head()
    assert head == b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
OM, T = Form.OPENMETRICS, Form.TEXT


@pytest.mark.parametrize(
    ("accept", "want"),
    [
        (None, T),
        ("", T),
        ("*/*", T),
        ("text/html,*/*;q=0.8", T),
        ("text/*", T),
        ("application/*", OM),
        (PROMETHEUS_2, OM),
        (PROMETHEUS_3, OM),
        ("text/plain", T),
        ("TEXT/Plain; charset=UTF-8", T),
        ("text/plain; charset=latin-1", None),
        ("application/openmetrics-text", OM),
        ('application/openmetrics-text; version="1.0.0"', OM),
        ("application/openmetrics-text;version=2.0.0", None),
        ("application/openmetrics-text;version=2.0.0, text/plain;q=0.1", T),
        ("text/plain, application/openmetrics-text", OM),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.8", T),
        ("application/openmetrics-text;q=0, */*", T),
        ("text/plain;q=0, */*;q=0.1", OM),
        ("text/plain;q=0, application/openmetrics-text;q=0.0", None),
        ("application/json", None),
        ("text/plain;q=2", None),
        ("text/plain;q=x, */*;q=0.001", T),
        (";;;,,,", None),
    ],
)
def test_the_form_is_what_is_wanted_most(accept, want):
    """Quality decides, by the most specific range; OpenMetrics wins when both were named alike; a wildcard gives 0.0.4."""
    assert form_of(accept) == want


@pytest.mark.parametrize(
    ("header", "want"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate, gzip;q=1.0, *;q=0.5", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.000", "identity"),
        ("*;q=0", None),
        ("gzip;q=0, *;q=0", None),
        ("identity;q=0", None),
        ("identity;q=0, gzip", "gzip"),
        ("gzip;q=0.5, *;q=0", "gzip"),
        ("identity, gzip;q=0.5", "identity"),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("br", "identity"),
        ("gzip;q=nan", "identity"),
        ("gzippo", "identity"),
    ],
)
def test_the_coding_is_what_is_wanted(header, want):
    """gzip when it is wanted at least as much, plain otherwise, nothing when both are ruled out."""
    assert coding_of(header) == want


@given(st.text(max_size=60))
def test_any_wish_is_answered(header):
    """No header makes the negotiation fail."""
    assert form_of(header) in {None, *Form}
    assert coding_of(header) in {None, "gzip", "identity"}
