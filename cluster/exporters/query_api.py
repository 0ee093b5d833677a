"""/api/v1/query: a question in the words of `stress-cluster query`, answered with its JSON document.

A question that is wrong gets 400 with the error document of the command line, one that cannot be answered now 503 with the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from actors.errors import InputError, StressError

from .http_message import Response

Ask = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Any]]

WORDS_MAX: Final = 64


def answered(query: str, ask: Ask) -> Response:
    """Return the answer to the query string of a request."""
    try:
        return told(HTTPStatus.OK, ask(words_of(query)))
    except InputError as error:
        return told(HTTPStatus.BAD_REQUEST, error.to_json())
    except StressError as error:
        return told(HTTPStatus.SERVICE_UNAVAILABLE, error.to_json(), ("Retry-After", "1"))


def words_of(query: str) -> dict[str, list[str]]:
    """Return the words of a query string, each with what was said. Raises `InputError` for what is none, or has more than 64."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=WORDS_MAX)
    except ValueError as error:
        hint = f"at most {WORDS_MAX} of WORD=VALUE joined by &, such as metric=probe.response&stat=p99"
        raise InputError("invalid_value", f"the query cannot be read: {error}", hint) from None
    words: dict[str, list[str]] = {}
    for word, text in pairs:
        words.setdefault(word, []).append(text)
    return words


def told(status: HTTPStatus, document: Mapping[str, Any], *headers: tuple[str, str]) -> Response:
    """Return a JSON document as an answer."""
    body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    return Response(status, body, (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *headers))
