"""What a run's exporters tell of themselves: `export.*` and events, as a stream of the aggregator's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from actors.clock import SECOND_NS, Clock
from actors.errors import HarnessError

from .exporters.figures import PipelineReport
from .exporters.pipeline import AuditEvent
from .metrics.aggregator import Aggregator
from .metrics.windows import Row, events_batch, metrics_batch, seal
from .outbox import Kind, Record, frame

OWN: Final = "aggregator"  # the node of these rows, as Prometheus and the files name it
CHANGED: Final = "exporters_changed"  # the event whose data holds what the exporters are from then on


class Story:
    """One life's stream. Not for several threads at once; `send` may wait for the disk.

    A record that the disk refused is kept and sent again, and no other is made meanwhile: counters then gain more at once.
    """

    def __init__(self, core: Aggregator, clock: Clock) -> None:
        end_streams(core)
        self._core, self._clock = core, clock
        self.incarnation = f"exporters-{clock.boot_ns()}"
        self._sequence = self._events = 0
        self._unsent: list[tuple[int, bytes]] = []
        self._ill: dict[str, str] = {}
        self._changed: list[dict[str, Any]] = []
        self._audited_ns = self._opened_ns = clock.boot_ns()
        core.expect(OWN, self.incarnation)

    @property
    def is_sent(self) -> bool:
        """Whether all that was told is in the run."""
        return not self._unsent

    def changed(self, message: str, data: Mapping[str, Any]) -> None:
        """Keep that somebody changed the exporters, for the next window; `data` is what they are from now on."""
        self._changed.append(self._event(CHANGED, "info", message) | {"data": json.dumps(data)})

    def tell(self, report: PipelineReport, rows: Sequence[Row], audit: Iterable[AuditEvent]) -> None:
        """Close a window of the exporters' own metrics, with what happened in it."""
        now_ns = self._clock.boot_ns()
        window_s = max(1, now_ns - self._opened_ns) / SECOND_NS
        metrics = metrics_batch(rows, node=OWN, start_ns=self._clock.wall_ns() - (now_ns - self._opened_ns), window_s=window_s)
        events = [*self._changed, *self._changes(report), *self._noted(audit)]
        self._changed = []
        self._opened_ns = now_ns
        self._add(Kind.WINDOW, seal(metrics, events_batch(events)))

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

    def _changes(self, report: PipelineReport) -> list[dict[str, Any]]:
        found = []
        for name, one in report.exporters.items():
            if not one.health.ok and name not in self._ill:
                self._ill[name] = one.health.detail
                found.append(
                    self._event("exporter_failing", "warning", f"exporter {name} fails: {one.health.detail or one.lane.last_error}")
                )
            elif one.health.ok and self._ill.pop(name, None) is not None:
                found.append(self._event("exporter_well", "info", f"exporter {name} works again"))
        return found

    def _noted(self, audit: Iterable[AuditEvent]) -> list[dict[str, Any]]:
        new = [one for one in audit if one.at_ns > self._audited_ns and one.what.startswith("memory:")]
        self._audited_ns = max([self._audited_ns, *(one.at_ns for one in new)])
        return [self._event("exporters_memory", "info", f"exporters: {one.what}") for one in new]

    def _event(self, kind: str, severity: str, message: str) -> dict[str, Any]:
        self._events += 1
        where = {"node": OWN, "worker": "", "phase": ""}
        told = {"time": self._clock.wall_ns() // 1000, "sequence": self._events, "kind": kind, "severity": severity, "message": message}
        return where | told | {"data": "{}"}


def end_streams(core: Aggregator) -> None:
    """State the end of streams of lives that died: nobody has the rest of them."""
    for stream in core.streams():
        if stream["node"] == OWN and stream["expected_end"] is None:
            core.end(OWN, stream["incarnation"], stream["received"])
