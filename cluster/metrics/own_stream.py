"""What the aggregator tells of the run by itself, of its exporters or anomalies say: a stream like an agent's, pushed without an agent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from actors.clock import SECOND_NS, Clock
from actors.errors import HarnessError
from actors.messages import Event

from ..outbox import Kind, Record, frame
from .windows import Row, event_row, events_batch, metrics_batch, seal

if TYPE_CHECKING:
    from .aggregator import Aggregator

OWN: Final = "aggregator"  # the node of these rows, as Prometheus and the files name it


class OwnStream:
    """The stream of one part (`exporters`, say) in one life. Not for several threads at once; `send` may wait for the disk.

    A record that the disk refused is kept and sent again. The streams of lives that died are ended first: nobody has the rest of them.
    """

    def __init__(self, core: Aggregator, part: str, clock: Clock) -> None:
        end_streams(core, part)
        self._core, self._clock = core, clock
        self.incarnation = f"{part}-{clock.boot_ns()}"
        self._sequence = self._events = 0
        self._unsent: list[tuple[int, bytes]] = []
        self._opened_ns = clock.boot_ns()
        core.expect(OWN, self.incarnation)

    @property
    def is_sent(self) -> bool:
        """Whether all that was told is in the run."""
        return not self._unsent

    def close_window(self, rows: Sequence[Row], events: Sequence[Event]) -> None:
        """Make a record of what happened since the last one. Times and nodes that events have are kept."""
        now_ns = self._clock.boot_ns()
        window_s = max(1, now_ns - self._opened_ns) / SECOND_NS
        metrics = metrics_batch(rows, node=OWN, start_ns=self._clock.wall_ns() - (now_ns - self._opened_ns), window_s=window_s)
        told = [event_row(event, OWN, self._events + at, self._clock.wall_ns()) for at, event in enumerate(events, 1)]
        self._events += len(told)
        self._opened_ns = now_ns
        self._add(Kind.WINDOW, seal(metrics, events_batch(told)))

    def send(self) -> None:
        """Hand what was told to the aggregator."""
        with suppress(HarnessError):  # the disk refuses for now
            held = self._core.push(OWN, self.incarnation, self._unsent)
            self._unsent = [one for one in self._unsent if one[0] > held]

    def end(self) -> None:
        """End the stream; where the disk refuses, what was not sent is given up, and the end says so."""
        self._add(Kind.END, b'{"clean": true}')
        self.send()
        if self._unsent:
            self._core.end(OWN, self.incarnation, self._unsent[0][0] - 1)

    def _add(self, kind: Kind, payload: bytes) -> None:
        self._sequence += 1
        self._unsent.append((self._sequence, frame(Record(self._sequence, kind, payload))))


def end_streams(core: Aggregator, part: str = "") -> None:
    """State the end of streams of lives that died, of one part or of all."""
    for stream in core.streams():
        if stream["node"] == OWN and stream["incarnation"].startswith(part) and stream["expected_end"] is None:
            core.end(OWN, stream["incarnation"], stream["received"])
