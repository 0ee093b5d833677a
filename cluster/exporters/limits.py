"""What bounds one destination: its queue, its batches, and what happens when the queue is full. Validated when made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from actors.errors import InputError


class Overflow(StrEnum):
    """What becomes of rows that find no room. Every row that is not delivered is counted under a reason."""

    BLOCK = "block"  # the producer waits, up to its deadline
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    SAMPLE = "sample"  # from half full on, one row in `sample_one_in` is kept; when full, the newest go
    SPILL = "spill"  # to disk, in order, up to the spill's own bound


class Reason(StrEnum):
    """Why rows were dropped."""

    OLDEST = "oldest"
    NEWEST = "newest"
    SAMPLED = "sampled"
    DEADLINE = "deadline"  # a blocked producer waited as long as it would
    CANCELLED = "cancelled"  # a blocked producer was cancelled
    TOO_LARGE = "too_large"  # a single row beyond the queue's bytes
    REJECTED = "rejected"  # by the destination, for good
    SPILL_FULL = "spill_full"
    SPILL_BROKEN = "spill_broken"  # the disk refused
    CORRUPT = "corrupt"  # the disk gave back something else
    UNFINISHED = "unfinished"  # taken by a destination that then could not finish its file
    SHUTDOWN = "shutdown"  # not delivered when the drain's time was over


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one destination. Rows and bytes each bound queue and batch; whichever is reached first counts.

    A batch is sent when it is full or `batch_age_s` old. `flush_s` is how often a destination that has rows is told to flush.
    """

    overflow: Overflow = Overflow.DROP_NEWEST
    queue_rows: int = 100_000
    queue_bytes: int = 32 << 20
    batch_rows: int = 5_000
    batch_bytes: int = 4 << 20
    batch_age_s: float = 1.0
    flush_s: float = 10.0
    sample_one_in: int = 10

    def __post_init__(self) -> None:
        for name in ("queue_rows", "queue_bytes", "batch_rows", "batch_bytes", "sample_one_in"):
            if getattr(self, name) < 1:
                raise InputError("invalid_value", f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("batch_age_s", "flush_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError("invalid_value", f"{name} is {getattr(self, name)}, expected more than 0 and finite")
        if self.batch_rows > self.queue_rows or self.batch_bytes > self.queue_bytes:
            raise InputError(
                "invalid_value", "a batch may be larger than its queue", "lower batch_rows and batch_bytes, or raise the queue's"
            )

    def shrunk(self, share: float) -> Limits:
        """Return these limits with a share (0..1) of the queue's bounds, at least one row and one byte.

        A batch stays as large as fits the queue: smaller ones would empty it more slowly.
        """
        rows, size = max(1, int(self.queue_rows * share)), max(1, int(self.queue_bytes * share))
        batch_rows, batch_bytes = min(self.batch_rows, rows), min(self.batch_bytes, size)
        return replace(self, queue_rows=rows, queue_bytes=size, batch_rows=batch_rows, batch_bytes=batch_bytes)
