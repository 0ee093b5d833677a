"""Windows of a run that goes on, as they come: an iterator over its endpoint's /api/v1/stream, for notebooks and programs.

    with follow("latest", "probe.*", node="n1") as windows:
        for window in windows:
            print(window["time"], window["metric"], window["p99"])
    print(windows.counts)

`async for` works as well. Who reads too slowly loses windows by count (`counts.dropped`), and delays nobody.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

from actors.errors import HarnessError, InputError, RefusedError, StressError

from ..files import read_json
from ..metrics.subscription import Counts
from .load import find_run

SILENCE_S: Final = 30.0  # a stream says something at least every 5 s
_ANY: Final = ("", "0.0.0.0", "::")  # noqa: S104  # who listens on all listens here


def follow(
    run: str | Path, metric: str = "*", *, out: str | Path = "runs", headers: Mapping[str, str] | None = None, **words: str | Sequence[str]
) -> LiveWindows:
    """Return the windows that come from now on, as dictionaries with the columns of `export --to jsonl`.

    `run` is a run that has an endpoint (`--prometheus-port`), as `load` takes it, or the URL of an endpoint. `words` choose windows as in
    a query (`node`, `worker`, `phase`, `label`) and may set `bound` (how many wait at most) and `overflow` (`drop_oldest`,
    `drop_newest`). `headers` carry credentials, such as {"Authorization": "Bearer ..."}.
    Raises `InputError` for a run without an endpoint and for words that are none, `RefusedError` when the run has ended or does not
    take another reader, `HarnessError` when nobody answers.
    """
    said = {"metric": metric, **words}
    base = str(run) if str(run).startswith(("http://", "https://")) else _endpoint(find_run(run, out))
    url = f"{base.rstrip('/')}/api/v1/stream?{urlencode(said, doseq=True)}"
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310  # http or https, see above
    try:
        return LiveWindows(urllib.request.urlopen(request, timeout=SILENCE_S))  # noqa: S310
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except OSError as error:
        raise HarnessError("lost", f"{base} does not answer: {error}", "is the run still going on, and this its endpoint?") from error


class LiveWindows:
    """An iterator, and an async one; one reader at a time. `counts` are the server's, as of the last that it said."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self._ended = False
        self.counts = Counts(0, 0, 0, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        found = self._next()
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        found = await asyncio.to_thread(self._next)
        if found is None:
            raise StopAsyncIteration
        return found

    def _next(self) -> dict[str, Any] | None:
        """Return the next window, or None at the end. Raises `HarnessError` when the stream breaks off."""
        while not self._ended:
            try:
                line = self._answer.readline()
            except OSError as error:
                raise HarnessError("lost", f"the stream of windows broke off: {error}", "follow the run again") from error
            if not line.endswith(b"\n"):
                raise HarnessError("lost", "the stream of windows broke off before its end", "follow the run again")
            found: dict[str, Any] = json.loads(line)
            if "stream" not in found:
                return found
            told = found["stream"]
            self.counts = Counts(told["offered"], told["delivered"], told["dropped"], told["waiting"])
            self._ended = told["ended"]
        return None

    def close(self) -> None:
        """Leave. Harmless when repeated."""
        self._ended = True
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _endpoint(path: Path) -> str:
    manifest = read_json(path / "manifest.json") or {}
    told = manifest.get("prometheus")
    if not told:
        raise InputError("not_found", f"run {path.name} has no endpoint", "start it with --prometheus-port, and follow it while it lasts")
    is_safe = ((manifest.get("settings") or {}).get("prometheus.tls_cert") or {}).get("value")
    host = "127.0.0.1" if told["host"] in _ANY else told["host"]
    return f"{'https' if is_safe else 'http'}://{f'[{host}]' if ':' in host else host}:{told['port']}"


def _refusal(answer: urllib.error.HTTPError) -> StressError:
    said = answer.read().decode(errors="replace")
    try:
        error = json.loads(said)["error"]
        found = (error["code"], error["message"], error["hint"])
    except (ValueError, KeyError, TypeError):  # no document of ours
        found = ("invalid_value", f"the endpoint answers {answer.code}: {said.strip()}", "")
    return InputError(*found) if answer.code == HTTPStatus.BAD_REQUEST else RefusedError(*found)
