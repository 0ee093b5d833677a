"""One destination's lane: bounded queue, batches, breaker, retries, and a count of every row. Pure: no IO but its spill's.

Nothing here waits, reads a clock or draws a number. The owner calls `offer` with rows and `take` for the next batch, and says how
that went with `succeeded`, `failed` or `rejected`. After every call

    produced + recovered = delivered + dropped (by reason) + queued + spilled

holds exactly, in rows, and is asserted. A batch in flight counts as queued until its outcome is known. Delivery is at least once: a
batch that failed stays at the head and is sent again, whatever the breaker does meanwhile. It is in order, except that under another
overflow policy than SPILL rows that are on disk (from an earlier life, or from before the policy was changed) may come after newer ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from actors.breaker import Breaker, BreakerPolicy, State
from actors.clock import SECOND_NS

from .limits import Limits, Overflow, Reason
from .rows import Chunk, Counts, LaneState, Spill
from .trace import Mark, Path


class Lane:
    """See the module. `write_ahead` puts all rows into the spill first, so that they outlive the process once `offer` returned."""

    def __init__(self, limits: Limits, policy: BreakerPolicy, spill: Spill | None = None, *, write_ahead: bool = False) -> None:
        assert spill is not None or (limits.overflow is not Overflow.SPILL and not write_ahead), "spilling needs a spill"
        self.limits, self.policy = limits, policy
        self.breaker = Breaker()
        self.counts = Counts()
        self._spill, self._write_ahead = spill, write_ahead
        self._chunks: deque[Chunk] = deque()
        self._flight: tuple[Chunk, ...] = ()
        self._is_out = False  # whether the flight is with the destination now
        self._retry_ns = 0
        self._rows = self._bytes = 0
        self._turn = 0  # of sampling
        self._next = 0
        self._marks: deque[Mark] = deque()
        self._last_success_ns: int | None = None
        self._last_error = ""
        if spill is not None:
            self._next = spill.after
            self.counts.recovered = spill.pending_rows
        self._check()

    # taking rows

    def fits(self, batch: pa.RecordBatch) -> bool:
        """Tell whether there is room in memory for these rows."""
        return self._has_room(batch.num_rows, batch.nbytes)

    def takes_whole(self, batch: pa.RecordBatch) -> bool:
        """Tell whether `offer` would take all of these rows; a single row that never finds room counts as taken, and is dropped."""
        if self._write_ahead or self.limits.overflow is Overflow.SPILL or (batch.num_rows == 1 and batch.nbytes > self.limits.queue_bytes):
            return True
        return self.fits(batch) and not (self.limits.overflow is Overflow.SAMPLE and self._is_half_full())

    def offer(self, batch: pa.RecordBatch, now_ns: int, path: Path | None = None) -> None:
        """Take rows, or drop and count some by the overflow policy. `path` is theirs, when it is traced.

        With BLOCK the caller waits until `fits`; rows that do not fit are dropped as the newest.
        """
        self.counts.produced += batch.num_rows
        if batch.num_rows:
            self._admit(batch, now_ns, path)
        self._check()

    def refuse(self, batch: pa.RecordBatch, reason: Reason, now_ns: int, path: Path | None = None) -> None:
        """Count rows that never came in."""
        self.counts.produced += batch.num_rows
        self._lose(batch.num_rows, reason, now_ns, path)
        self._check()

    def _admit(self, batch: pa.RecordBatch, now_ns: int, path: Path | None) -> None:
        overflow = self.limits.overflow
        if self._write_ahead or (overflow is Overflow.SPILL and (self._spilled() or not self.fits(batch))):
            self._to_disk(batch, now_ns, path)
            return
        if overflow is Overflow.SAMPLE and self._is_half_full():
            batch = self._thin(batch, now_ns, path)
        if overflow is Overflow.DROP_OLDEST:
            self._drop_oldest(batch, now_ns)
        if batch.num_rows and self.fits(batch):
            self._push(Chunk(self._number(batch.num_rows, now_ns, path), batch, batch.nbytes, now_ns))
        else:
            alone = batch.num_rows == 1 and batch.nbytes > self.limits.queue_bytes
            self._lose(batch.num_rows, Reason.TOO_LARGE if alone else Reason.NEWEST, now_ns, path)

    def _drop_oldest(self, batch: pa.RecordBatch, now_ns: int) -> None:
        """Make room by dropping from the head. Rows that are on disk too stay: it would give them out, and they be counted, again."""
        kept = []
        while self._chunks and not self.fits(batch):
            chunk = self._chunks.popleft()
            if chunk.durable:
                kept.append(chunk)
            else:
                self._drop(chunk, Reason.OLDEST, now_ns)
        self._chunks.extendleft(reversed(kept))

    def _thin(self, batch: pa.RecordBatch, now_ns: int, path: Path | None) -> pa.RecordBatch:
        """Keep every n-th row, counted on from batch to batch."""
        step = self.limits.sample_one_in
        kept = range(-self._turn % step, batch.num_rows, step)
        self._turn = (self._turn + batch.num_rows) % step
        self._lose(batch.num_rows - len(kept), Reason.SAMPLED, now_ns, path)
        return batch.take(pa.array(kept, pa.int64()))

    def _to_disk(self, batch: pa.RecordBatch, now_ns: int, path: Path | None) -> None:
        assert self._spill is not None
        try:
            taken = self._spill.append(self._next, batch)
        except OSError as error:
            self._last_error = f"spill: {error}"
            self._lose(batch.num_rows, Reason.SPILL_BROKEN, now_ns, path)
            return
        if not taken:
            self._lose(batch.num_rows, Reason.SPILL_FULL, now_ns, path)
            return
        self._number(batch.num_rows, now_ns, path, "spilled")

    def _number(self, rows: int, now_ns: int, path: Path | None, stage: str = "queued") -> int:
        first, self._next = self._next, self._next + rows
        if path is not None:
            path.hop(stage, now_ns, rows)
            self._marks.append(Mark(first, self._next, rows, path))
        return first

    def _refill(self, now_ns: int) -> None:
        """Bring rows from disk while there is room; one record always, when nothing else waits."""
        while self._spill is not None and self._spill.pending_rows and (not self._rows or self._has_room(1, self._spill.next_bytes)):
            before = self._spill.pending_rows
            try:
                found = self._spill.read()
            except OSError as error:
                self._last_error = f"spill: {error}"
                self._retry_ns = now_ns + round(self.policy.backoff_s_max * SECOND_NS)  # else its rows would be due at once, for ever
                return
            if isinstance(found, int):
                assert before - self._spill.pending_rows == found
                self.counts.dropped[Reason.CORRUPT] += found
            else:
                first, batch = found
                self._push(Chunk(first, batch, batch.nbytes, now_ns, durable=True))

    # giving batches out

    def take(self, now_ns: int, *, at_once: bool = False) -> pa.RecordBatch | None:
        """Return the next batch if one is due and the destination may be called; `at_once` sends also what is neither full nor old.

        At most one is out at a time. A batch that failed comes again, the same rows.
        """
        self.breaker = self.breaker.look(now_ns, self.policy)
        if self._is_out or self.breaker.state is State.OPEN or now_ns < self._retry_ns:
            return None
        if not self._flight:
            self._refill(now_ns)
            if not self._chunks or not (at_once or now_ns >= self._due_ns(now_ns)):
                self._check()
                return None
            self._flight = tuple(self._batch())
        self._is_out = True
        self.counts.attempts += 1
        self._hop(self._flight, "sent", now_ns)
        self._check()
        return self._flight[0].batch if len(self._flight) == 1 else pa.concat_batches([chunk.batch for chunk in self._flight])

    def _batch(self) -> Iterator[Chunk]:
        rows = size = 0
        while self._chunks:
            head = self._chunks[0]
            if head.rows > 1 and (head.rows > self.limits.batch_rows or head.size_bytes > self.limits.batch_bytes):
                self._split_head()
                continue
            if rows and (rows + head.rows > self.limits.batch_rows or size + head.size_bytes > self.limits.batch_bytes):
                return
            rows, size = rows + head.rows, size + head.size_bytes
            yield self._chunks.popleft()

    def _split_head(self) -> None:
        """Cut a chunk that came in under wider limits; the parts share its memory, and their sizes need not add up to its own."""
        head = self._chunks.popleft()
        at = min(self.limits.batch_rows, head.rows // 2)
        left, right = head.batch.slice(0, at), head.batch.slice(at)
        parts = [replace(head, batch=left, size_bytes=left.nbytes)]
        parts.append(replace(head, first=head.first + at, batch=right, size_bytes=right.nbytes))
        self._chunks.extendleft(reversed(parts))
        self._bytes += sum(part.size_bytes for part in parts) - head.size_bytes

    def due_ns(self, now_ns: int) -> int | None:
        """Return when `take` may give a batch next, if nothing else happens; None when nothing waits or one is out."""
        if self._is_out or not (self._flight or self._chunks or self._spilled()):
            return None
        due = now_ns if self._flight or not self._chunks else self._due_ns(now_ns)
        return max(due, self.blocked_until_ns())

    def blocked_until_ns(self) -> int:
        """Return until when nothing is given out: a retry's wait, of destination or disk, or an open breaker; past or 0 when it may be."""
        opens = self.breaker.opens_again_ns(self.policy) if self.breaker.state is State.OPEN else 0
        return max(self._retry_ns, opens)

    def note(self, error: str) -> None:
        """Keep what went wrong beside the calls of write."""
        self._last_error = error

    def _due_ns(self, now_ns: int) -> int:
        rows = sum(chunk.rows for chunk in self._chunks)
        size = sum(chunk.size_bytes for chunk in self._chunks)
        if rows >= self.limits.batch_rows or size >= self.limits.batch_bytes or self._spilled():
            return now_ns
        return self._chunks[0].since_ns + round(self.limits.batch_age_s * SECOND_NS)

    def succeeded(self, now_ns: int) -> None:
        """Count the batch that is out as taken."""
        flight = self._land()
        self.breaker = self.breaker.succeed(self.policy)
        self.counts.successes += 1
        self.counts.delivered += sum(chunk.rows for chunk in flight)
        self.counts.delivered_bytes += sum(chunk.size_bytes for chunk in flight)
        self._hop(flight, "delivered", now_ns, last=True)
        self._last_success_ns = now_ns
        self._forget(flight)
        self._check()

    def failed(self, now_ns: int, error: str, detail: str, chance: float) -> None:
        """Keep the batch that is out, which was not taken, to send it again; `chance` in 0..1 spreads the retries."""
        assert self._is_out, "an outcome without a batch"
        self._is_out = False
        self.breaker = self.breaker.fail(now_ns, self.policy)
        self.counts.failures[error] += 1
        self._last_error = detail
        self._retry_ns = now_ns + round(self.policy.delay_s(self.breaker.failures, chance) * SECOND_NS)
        self._hop(self._flight, "failed", now_ns)
        self._check()

    def rejected(self, now_ns: int, detail: str) -> None:
        """Drop the batch that is out, which will never be taken. The destination is well, so its breaker hears a success."""
        flight = self._land()
        self.breaker = self.breaker.succeed(self.policy)
        self.counts.failures["rejected"] += 1
        self._last_error = detail
        for chunk in flight:
            self._count_drop(chunk, Reason.REJECTED, now_ns, batch=self.counts.attempts)
        self._forget(flight)
        self._check()

    def _land(self) -> tuple[Chunk, ...]:
        assert self._is_out, "an outcome without a batch"
        flight, self._flight, self._is_out, self._retry_ns = self._flight, (), False, 0
        self._rows -= sum(chunk.rows for chunk in flight)
        self._bytes -= sum(chunk.size_bytes for chunk in flight)
        return flight

    def _forget(self, flight: Iterable[Chunk]) -> None:
        durable = [chunk.after for chunk in flight if chunk.durable]
        if durable and self._spill is not None:
            try:
                self._spill.ack(durable[-1])
            except OSError as error:  # it will be sent once more after a restart; nothing is lost
                self._last_error = f"spill: {error}"

    def unfinished(self, rows: int, detail: str) -> None:
        """Count rows as lost that the destination had taken."""
        assert rows <= self.counts.delivered, f"{rows} of {self.counts.delivered} delivered rows are said to be lost"
        self.counts.delivered -= rows
        self.counts.dropped[Reason.UNFINISHED] += rows
        self._last_error = detail
        self._check()

    # the end, and changes on the way

    def finish(self, now_ns: int) -> int:
        """Give up what waits: to the spill if there is one, else dropped. Return the rows that were dropped.

        A batch whose outcome is still out is given up as well; its late outcome must not be told any more.
        """
        before = self.counts.dropped_rows
        waiting = [*self._flight, *self._chunks]
        self._flight, self._is_out, self._rows, self._bytes = (), False, 0, 0
        self._chunks.clear()
        for chunk in waiting:
            if self._spill is None or not (chunk.durable or self._put_back(self._spill, chunk)):
                self._count_drop(chunk, Reason.SHUTDOWN, now_ns)
            else:
                self._tell(chunk.first, chunk.after, "spilled", now_ns, 0, last=False)
        if self._spill is not None:
            self._spill.rewind()
        self._check()
        return self.counts.dropped_rows - before

    def _put_back(self, spill: Spill, chunk: Chunk) -> bool:
        try:
            return spill.append(chunk.first, chunk.batch)
        except OSError as error:
            self._last_error = f"spill: {error}"
            return False

    def change(self, limits: Limits, policy: BreakerPolicy) -> None:
        """Put other limits in force. What waits stays, even if it is more than the new bound."""
        assert self.has_spill or limits.overflow is not Overflow.SPILL, "spilling needs a spill"
        self.limits, self.policy = limits, policy

    # figures

    @property
    def has_spill(self) -> bool:
        """Whether there is a disk to spill to."""
        return self._spill is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, here or on disk."""
        return not self._rows and not self._spilled()

    @property
    def after(self) -> int:
        """Sequence number behind the last row that came in."""
        return self._next

    @property
    def settled(self) -> int:
        """Sequence number below which no row is lost when this process dies: delivered, dropped and counted, or on disk."""
        return min((chunk.first for chunk in (*self._flight, *self._chunks) if not chunk.durable), default=self._next)

    def snapshot(self) -> LaneState:
        """Return the lane as it stands."""
        counts = self.counts
        return LaneState(
            counts.produced,
            counts.recovered,
            counts.delivered,
            counts.delivered_bytes,
            {reason.value: rows for reason, rows in sorted(counts.dropped.items())},
            self._rows,
            self._bytes,
            self._spilled(),
            counts.attempts,
            counts.successes,
            dict(sorted(counts.failures.items())),
            self.breaker.state,
            self.breaker.opened,
            self._last_success_ns,
            self._last_error,
        )

    def recount(self) -> tuple[int, int]:
        """Return rows and bytes in memory by counting them anew: what the running figures must equal."""
        chunks = [*self._flight, *self._chunks]
        return sum(chunk.rows for chunk in chunks), sum(chunk.size_bytes for chunk in chunks)

    def _spilled(self) -> int:
        return self._spill.pending_rows if self._spill is not None else 0

    def _has_room(self, rows: int, size: int) -> bool:
        return self._rows + rows <= self.limits.queue_rows and self._bytes + size <= self.limits.queue_bytes

    def _is_half_full(self) -> bool:
        return 2 * self._rows >= self.limits.queue_rows or 2 * self._bytes >= self.limits.queue_bytes

    def _push(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._rows += chunk.rows
        self._bytes += chunk.size_bytes

    def _drop(self, chunk: Chunk, reason: Reason, now_ns: int) -> None:
        self._rows -= chunk.rows
        self._bytes -= chunk.size_bytes
        self._count_drop(chunk, reason, now_ns)

    def _count_drop(self, chunk: Chunk, reason: Reason, now_ns: int, batch: int = 0) -> None:
        self.counts.dropped[reason] += chunk.rows
        self._tell(chunk.first, chunk.after, f"dropped: {reason}", now_ns, batch, last=True)

    def _lose(self, rows: int, reason: Reason, now_ns: int, path: Path | None) -> None:
        if rows:
            self.counts.dropped[reason] += rows
            if path is not None:
                path.end(f"dropped: {reason}", now_ns, rows)

    def _hop(self, flight: tuple[Chunk, ...], stage: str, now_ns: int, *, last: bool = False) -> None:
        if self._marks:
            self._tell(flight[0].first, flight[-1].after, stage, now_ns, self.counts.attempts, last=last)

    def _tell(self, first: int, after: int, stage: str, now_ns: int, batch: int, *, last: bool) -> None:
        """Tell the paths of these rows what became of them; marks stand in the order of their numbers."""
        for mark in self._marks:
            if mark.first >= after:
                break
            rows = min(after, mark.after) - max(first, mark.first)
            if rows > 0 and last:
                mark.path.end(stage, now_ns, rows, batch)
                mark.left -= rows
            elif rows > 0:
                mark.path.hop(stage, now_ns, rows, batch)
        while self._marks and not self._marks[0].left:
            self._marks.popleft()

    def _check(self) -> None:
        counts = self.counts
        here = self._rows + self._spilled()
        assert counts.produced + counts.recovered == counts.delivered + counts.dropped_rows + here, (
            f"rows unaccounted for: {self.snapshot()}"
        )
        assert self._rows >= 0 <= self._bytes, f"a queue of {self._rows} rows and {self._bytes} bytes"
