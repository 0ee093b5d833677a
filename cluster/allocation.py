"""The three moments of what a load holds, as its meter counts it from outside: allocate, hold, release. Pure.

    first look after the start ──▶ allocate       first look at target ──▶ hold       it has ended ──▶ release

Each is an event of the run's story, once per operation, with what was counted at that moment; together they are in the summary. Loads
that hold nothing, those of work a second, have none.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from actors.dose import METERS
from actors.messages import Allocation, Event, Operation
from actors.simulator import record_of

from .dose import momentary
from .dose_terms import terms_of
from .words import amount


class Moments:
    """What was seen of one operation so far. `look` and `end` return the events of what is new."""

    def __init__(self, run: str, operation: Operation) -> None:
        record = record_of(operation.kind)
        self._run, self._operation = run, operation
        self._meter = record.meter_of(operation.unit)
        self._holds = not METERS[self._meter].cumulative
        self._unit = "bytes" if record.resource.endswith("_bytes") else "count"
        self._terms = terms_of(operation)
        self.seen: Allocation | None = None

    def look(self, asked: float, counted: float, whole: float, at_s: float) -> list[Event]:
        """Take what is asked and counted at a time of the operation; `whole` is what 1 in its unit is."""
        if not self._holds:
            return []
        seen = self.seen or Allocation(self._meter, asked, counted, at_s)
        events = [] if self.seen else [self._event("allocate", counted, f"{self._words(asked)} asked, {self._words(counted)} counted")]
        seen = replace(seen, asked=max(seen.asked, asked), peak=max(seen.peak, counted))
        if asked > 0.0 and momentary(asked / whole, counted / whole, **self._terms) == "well":
            if seen.hold_s is None:
                seen = replace(seen, hold=counted, hold_s=at_s)
                events.append(self._event("hold", counted, f"{self._words(asked)} asked, {self._words(counted)} counted"))
            seen = replace(seen, held_for_s=at_s - (seen.hold_s or 0.0))
        self.seen = seen
        return events

    def end(self, counted: float, at_s: float) -> list[Event]:
        """Take what is counted once the load has ended."""
        if self.seen is None or self.seen.release is not None:
            return []
        self.seen = replace(self.seen, release=counted, release_s=at_s)
        words = f"{self._words(self.seen.peak)} at most, {self._words(counted)} counted now, at target for {self.seen.held_for_s:.1f} s"
        return [self._event("release", counted, words)]

    def _words(self, value: float) -> str:
        return amount(value, self._unit)

    def _event(self, moment: str, counted: float, words: str) -> Event:
        operation = self._operation
        data = {"run": self._run, "operation": operation.id, "meter": self._meter, "unit": self._unit, "counted": counted}
        if moment == "release" and self.seen is not None:
            data |= asdict(self.seen)
        return Event(moment, f"{operation.id}, {moment}: {words} ({self._meter})", worker=operation.id, phase=operation.phase, data=data)
