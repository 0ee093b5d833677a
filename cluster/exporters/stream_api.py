"""/api/v1/stream: new windows of a run as JSON lines, for as long as the client reads and the run lasts.

A line is a window, as `export --to jsonl` writes it; or `{"stream": {...}}` with the client's own counts
of windows: `offered` = `delivered` + `dropped` + `waiting`. That line comes first, whenever more was dropped, after 5 s of silence, and,
with `"ended": true`, last. A client that reads too slowly loses windows of its own queue, by count, and nobody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from actors.errors import InputError, RefusedError

from ..metrics.asking import About
from ..metrics.subscription import Subscription
from ..metrics.window_feed import Window, rows_of
from .context import Context
from .http_message import Response
from .query_api import told, words_of
from .text import TextForm

Follow = Callable[[Mapping[str, Sequence[str]]], tuple[Subscription[Window], About]]

BEAT_S: Final = 5.0  # of silence, before a line says that there is nothing to say


def streamed(query: str, follow: Follow) -> Response:
    """Return the stream that the query string of a request asks for, or the error."""
    try:
        subscription, about = follow(words_of(query))
    except InputError as error:
        return told(HTTPStatus.BAD_REQUEST, error.to_json())
    except RefusedError as error:
        if error.code == "expired":
            return told(HTTPStatus.GONE, error.to_json())
        return told(HTTPStatus.SERVICE_UNAVAILABLE, error.to_json(), ("Retry-After", "1"))
    headers = (("Content-Type", "application/x-ndjson"), ("Cache-Control", "no-store"))
    return Response(HTTPStatus.OK, headers=headers, stream=Lines(subscription, about))


class Lines:
    """The lines of one client, in chunks. `close` frees its queue, also when it was never iterated."""

    def __init__(self, subscription: Subscription[Window], about: About, beat_s: float = BEAT_S) -> None:
        self._subscription, self._beat_s = subscription, beat_s
        self._context = Context(about.run, about.scenario)

    def __iter__(self) -> Iterator[bytes]:
        yield self._counts()
        dropped = 0
        while True:
            windows = self._subscription.take(self._beat_s)
            before, dropped = dropped, self._subscription.counts().dropped
            is_last = not windows and self._subscription.is_over
            if dropped != before or not windows:
                yield self._counts(ended=is_last)
            if windows:
                form = TextForm()
                yield b"".join(_line(row) for batch in rows_of(windows) for row in form.rows(self._context.on(batch)))
            elif is_last:
                return

    def close(self) -> None:
        """Leave the feed."""
        self._subscription.cancel()

    def _counts(self, *, ended: bool = False) -> bytes:
        return _line({"stream": asdict(self._context) | asdict(self._subscription.counts()) | {"ended": ended}})


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
