"""Anomaly hooks beside a run: each in a thread of its own, so that one that is slow, hangs or raises costs its own findings alone.

Windows are closed by `Rollup` in a thread too: taking windows never waits for anything here. What is left out is counted by reason:

    queue_full    windows that came faster than they could be looked at
    late          rows that came after their window was closed
    raised        windows at which a hook raised
    timed_out     a hook that did not come back within its time; it is not called again in this run
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from actors.clock import SECOND_NS, Clock
from actors.messages import Event
from actors.metrics.registry import Kind

from .anomaly import Hook, Reading, readings
from .rollup import Rollup
from .windows import Row

if TYPE_CHECKING:
    from .store import Entry

_LOG: Final = logging.getLogger(__name__)
LATENESS_S: Final = 5.0
TIMEOUT_S: Final = 5.0
QUEUED_MAX: Final = 1_000
EVENTS_A_MINUTE: Final = 20
EVENTS_MAX: Final = 1_000
_MINUTE_NS: Final = 60 * SECOND_NS

_Counted = tuple[str, tuple[tuple[str, str], ...]]  # metric, labels


class _Runner:
    """One hook in its thread."""

    def __init__(self, name: str, hook: Hook, watch: AnomalyWatch) -> None:
        self.name, self._hook, self._watch = name, hook, watch
        self._queue: queue.Queue[list[Reading] | None] = queue.Queue(QUEUED_MAX)
        self._busy_since_ns = 0
        self.is_given_up = False
        self.thread = threading.Thread(target=self._run, name=f"anomaly-{name}", daemon=True)
        self.thread.start()

    def offer(self, found: list[Reading] | None, now_ns: int) -> None:
        """Hand it windows, or None for the end. Never waits."""
        since_ns = self._busy_since_ns
        if not self.is_given_up and since_ns and now_ns - since_ns > TIMEOUT_S * SECOND_NS:
            self.is_given_up = True
            self._watch.count(self.name, "timed_out", 1)
            _LOG.warning("the anomaly hook %s did not come back within %g s and is not called again", self.name, TIMEOUT_S)
        if self.is_given_up:
            return
        try:
            self._queue.put_nowait(found)
        except queue.Full:
            self._watch.count(self.name, "queue_full", len(found or ()))

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            for reading in found:
                self._busy_since_ns = self._watch.now_ns()
                try:
                    words = self._hook(reading)
                except Exception:
                    self._watch.count(self.name, "raised", 1)
                else:
                    if words and not self.is_given_up:
                        self._watch.find(self.name, reading, str(words))
                finally:
                    self._busy_since_ns = 0


class AnomalyWatch:
    """All hooks of a run. `take` may be called from any thread, `news` and `end` from one."""

    def __init__(self, hooks: Mapping[str, Hook], length_s: float, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rollup = Rollup([length_s], lateness_s=LATENESS_S)
        self._length_s = length_s
        self._events: list[Event] = []  # that nobody was told yet
        self._made = 0  # events
        self._minute = (0, 0)  # which, and how many events it had
        self.found: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self._told: Counter[_Counted] = Counter()
        self._batches: queue.Queue[pa.RecordBatch | None] = queue.Queue(QUEUED_MAX)
        self._runners = [_Runner(name, hook, self) for name, hook in hooks.items()]
        self._thread = threading.Thread(target=self._run, name="anomaly", daemon=True)
        self._thread.start()

    def take(self, entries: Sequence[Entry]) -> None:
        """Take windows as they arrive. Never waits and never raises."""
        for rows in (entry.metrics for entry in entries if entry.metrics.num_rows):
            try:
                self._batches.put_nowait(rows)
            except queue.Full:
                self.count("", "queue_full", rows.num_rows)

    def news(self) -> tuple[list[Row], list[Event]]:
        """Return what was found and left out since this was last asked: increases of `anomaly.*`, and events."""
        with self._lock:
            events, self._events = self._events, []
            now: Counter[_Counted] = Counter()
            now.update({("anomaly.found", (("hook", hook),)): count for hook, count in self.found.items()})
            now.update({("anomaly.failures", (("hook", hook), ("reason", why))): count for (hook, why), count in self.failures.items()})
            gained, self._told = now - self._told, now
        rows = [
            Row(name, Kind.COUNTER, "", "", "", labels, 1, float(count), last=float(now[name, labels]))
            for (name, labels), count in gained.items()
        ]
        return rows, events

    def end(self, wait_s: float = 2.0) -> None:
        """Let hooks see what is left, for at most this long each; `found`, `failures` and the next `news` are final then."""
        try:
            self._batches.put(None, timeout=wait_s)
            self._thread.join(wait_s)
        except queue.Full:
            self.count("", "queue_full", 0)
        for runner in self._runners:
            if not runner.is_given_up:
                runner.thread.join(wait_s)
                if runner.thread.is_alive():
                    runner.is_given_up = True
                    self.count(runner.name, "timed_out", 1)
        self.count("", "late", sum(self._rollup.late.values()))

    def now_ns(self) -> int:
        """Return boot time; never 0."""
        return max(self._clock.boot_ns(), 1)

    def count(self, hook: str, reason: str, number: int) -> None:
        """Count what was left out."""
        if number:
            with self._lock:
                self.failures[hook, reason] += number

    def find(self, hook: str, reading: Reading, words: str) -> None:
        """Count a finding, and make an event of it while there is room for more."""
        minute = self._clock.boot_ns() // _MINUTE_NS
        with self._lock:
            self.found[hook] += 1
            told = self._minute[1] if self._minute[0] == minute else 0
            if told >= EVENTS_A_MINUTE or self._made >= EVENTS_MAX:
                return
            self._made += 1
            self._minute = (minute, told + 1)
            labels = "".join(f" {name}={value}" for name, value in reading.labels)
            message = f"{reading.metric}{labels}: {words} (window of {reading.length_s:g} s, by {hook})"
            where = {"node": reading.node, "worker": reading.worker, "phase": reading.phase}
            data = {"metric": reading.metric, "hook": hook, "value": reading.value, "labels": dict(reading.labels)}
            self._events.append(Event("anomaly", message, "warning", wall_ns=round(reading.start_s * SECOND_NS), data=data, **where))

    def _run(self) -> None:
        while (rows := self._batches.get()) is not None:
            try:
                self._hand_on(self._rollup.take(rows)[self._length_s])
            except Exception:  # rows that make no windows cost their windows, never the thread
                self.count("", "raised", rows.num_rows)
        self._hand_on(self._rollup.drain()[self._length_s])
        for runner in self._runners:
            runner.offer(None, self.now_ns())

    def _hand_on(self, windows: pa.Table) -> None:
        found = list(readings(windows))
        for runner in self._runners:
            if found:
                runner.offer(found, self.now_ns())
