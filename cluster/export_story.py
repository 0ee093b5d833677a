"""What a run's exporters tell of themselves: `export.*` and events, as a stream of the aggregator's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from actors.clock import Clock
from actors.messages import Event

from .exporters.figures import PipelineReport
from .exporters.pipeline import AuditEvent
from .metrics.aggregator import Aggregator
from .metrics.own_stream import OwnStream
from .metrics.windows import Row

PART: Final = "exporters"
CHANGED: Final = "exporters_changed"  # the event whose data holds what the exporters are from then on


class Story:
    """One life's stream. Not for several threads at once; `send` may wait for the disk.

    While a record is not sent no other is made: counters then gain more at once.
    """

    def __init__(self, core: Aggregator, clock: Clock) -> None:
        self._stream = OwnStream(core, PART, clock)
        self._ill: set[str] = set()
        self._changed: list[Event] = []
        self._audited_ns = clock.boot_ns()

    @property
    def is_sent(self) -> bool:
        """Whether all that was told is in the run."""
        return self._stream.is_sent

    def changed(self, message: str, data: Mapping[str, Any]) -> None:
        """Keep that somebody changed the exporters, for the next window; `data` is what they are from now on."""
        self._changed.append(Event(CHANGED, message, data=data))

    def tell(self, report: PipelineReport, rows: Sequence[Row], audit: Iterable[AuditEvent]) -> None:
        """Close a window of the exporters' own metrics, with what happened in it."""
        events = [*self._changed, *self._changes(report), *self._noted(audit)]
        self._changed = []
        self._stream.close_window(rows, events)

    def send(self) -> None:
        """Hand what was told to the aggregator."""
        self._stream.send()

    def end(self) -> None:
        """End the stream; where the disk refuses, what was not sent is given up, and the end says so."""
        self._stream.end()

    def _changes(self, report: PipelineReport) -> Iterator[Event]:
        for name, one in report.exporters.items():
            if not one.health.ok and name not in self._ill:
                self._ill.add(name)
                yield Event("exporter_failing", f"exporter {name} fails: {one.health.detail or one.lane.last_error}", "warning")
            elif one.health.ok and name in self._ill:
                self._ill.remove(name)
                yield Event("exporter_well", f"exporter {name} works again")

    def _noted(self, audit: Iterable[AuditEvent]) -> Iterator[Event]:
        new = [one for one in audit if one.at_ns > self._audited_ns and one.what.startswith("memory:")]
        self._audited_ns = max([self._audited_ns, *(one.at_ns for one in new)])
        yield from (Event("exporters_memory", f"exporters: {one.what}") for one in new[-1:])  # memory is looked at more often
