"""A buffer in front of any exporter, which is an exporter itself: for a caller that has no pipeline, and so no lane, to batch for it."""

from __future__ import annotations

import pyarrow as pa

from actors.clock import SECOND_NS, Clock, SystemClock

from .base import Exporter, Health, RejectedError, UnfinishedError
from .limits import Limits


class Buffered:
    """Hands rows on when the batch's rows, bytes or age of its limits are reached, and at `flush` and `close`; as one batch.

    What `write` has taken stays here until the exporter has taken it, or is told as lost by `UnfinishedError`. When handing on fails, the
    batch that came last is not taken: so the buffer never holds more than its limits. A rejected batch takes along what waits with it.
    Nothing is handed on between two calls, whatever its age.
    """

    def __init__(self, exporter: Exporter, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self._exporter, self._limits = exporter, limits or Limits()
        self._clock = clock or SystemClock()
        self._held: list[pa.RecordBatch] = []
        self._since_ns = 0

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(batch.num_rows for batch in self._held)

    @property
    def size_bytes(self) -> int:
        """Bytes that wait."""
        return sum(batch.nbytes for batch in self._held)

    def open(self) -> None:
        """Open the exporter."""
        self._exporter.open()

    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows; hand on all that wait when a limit is reached. Raises what the exporter raises, and then has not taken these."""
        now_ns = self._clock.boot_ns()
        self._since_ns = self._since_ns if self._held else now_ns
        self._held.append(batch)
        if not self._is_due(now_ns):
            return
        try:
            self._hand_on()
        except RejectedError as error:
            self._held.pop()
            lost, self._held = self.rows, []
            if lost:
                raise UnfinishedError(lost, str(error)) from error
            raise
        except Exception:
            self._held.pop()
            raise

    def _is_due(self, now_ns: int) -> bool:
        limits = self._limits
        is_old = now_ns - self._since_ns >= round(limits.batch_age_s * SECOND_NS)
        return is_old or self.rows >= limits.batch_rows or self.size_bytes >= limits.batch_bytes

    def _hand_on(self) -> None:
        if self._held:
            self._exporter.write(self._held[0] if len(self._held) == 1 else pa.concat_batches(self._held))
            self._held = []

    def flush(self) -> None:
        """Hand on what waits, and flush the exporter. Raises what that raises; what it has not taken still waits."""
        self._hand_on()
        self._exporter.flush()

    def close(self) -> None:
        """Hand on what waits and close the exporter. Raises `UnfinishedError` for rows that either of both lost."""
        lost, why = 0, ""
        try:
            self._hand_on()
        except Exception as error:
            lost, why, self._held = self.rows + getattr(error, "rows", 0), str(error), []
        try:
            self._exporter.close()
        except UnfinishedError as error:
            lost, why = lost + error.rows, why or str(error)
        if lost:
            raise UnfinishedError(lost, why)

    def health(self) -> Health:
        """Return the exporter's health."""
        return self._exporter.health()
