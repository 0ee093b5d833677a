"""Windows as Arrow batches: the schemas that readers rely on, and the payload of a record.

One row per series and window. What a column holds, by kind (null elsewhere):

    counter     count: records, sum: increase, last: total since the stream began, or since the series came back from an idle hour
    gauge       count, sum, min, max: of the values seen in the window, last: the newest; digest: of a rolled up window, see `rollup.means`
    histogram   count, sum, min, max, p50 to p999, digest (see actors.metrics.histogram)

Quantiles stay empty on their way and in the log; Parquet files and what is read have them.

Extremes of a series from a load's segment are exact unless a drain straddled the window's close; then they are the edge
of their bucket, 0.8 % off at most. Pure.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from actors.messages import Event
from actors.metrics import histogram
from actors.metrics.registry import Kind

from ..outbox import Bytes

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}

_TIME: Final = pa.timestamp("us", tz="UTC")
METRICS: Final = pa.schema(
    [
        pa.field("time", _TIME, nullable=False),
        pa.field("window_s", pa.float64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("metric", "kind", "unit", "node", "worker", "phase")),
        pa.field("labels", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("sum", "min", "max", "last", *QUANTILES)),
        pa.field("digest", pa.binary()),
    ]
)
EVENTS: Final = pa.schema(
    [
        pa.field("time", _TIME, nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("node", "worker", "phase", "kind", "severity", "message", "data")),
    ]
)
SAMPLES: Final = pa.schema(
    [
        pa.field("time", _TIME, nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("metric", "unit", "node", "worker", "phase")),
        pa.field("labels", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("weight", pa.int64(), nullable=False),
    ]
)
LOG_COLUMNS: Final = (  # what the log has beside the contract's columns, for readers that look into it
    pa.field("stream_node", pa.string(), nullable=False),
    pa.field("incarnation", pa.string(), nullable=False),
    pa.field("record", pa.int64(), nullable=False),
)

_DECODED_AT_ONCE: Final = 512
_SPLIT: Final = struct.Struct("<I4x")  # the second half keeps the stream behind it at a multiple of 8 bytes
_OLD_SPLIT: Final = struct.Struct("<I")  # of records that an earlier version left in an outbox
_MESSAGE: Final = b"\xff\xff\xff\xff"  # begins an Arrow stream


@dataclass(slots=True)
class Row:
    """One series in one window, on its way into a batch. Mutable while the window is open."""

    metric: str
    kind: Kind
    unit: str
    worker: str
    phase: str
    labels: tuple[tuple[str, str], ...]
    count: int = 0
    sum: float = 0.0
    min: float | None = None
    max: float | None = None
    last: float | None = None
    digest: bytes | None = None


def metrics_batch(rows: Sequence[Row], *, node: str, start_ns: int, window_s: float) -> pa.RecordBatch:
    """Return one window's rows with the contract's columns; quantiles stay empty until `with_quantiles`."""
    size = len(rows)
    columns: dict[str, Any] = {
        "time": pa.repeat(pa.scalar(start_ns // 1000, _TIME), size),
        "window_s": pa.repeat(pa.scalar(window_s), size),
        "node": pa.repeat(pa.scalar(node), size),
        "kind": pa.array([row.kind.value for row in rows], pa.string()),
        "labels": pa.array([list(row.labels) for row in rows], METRICS.field("labels").type),
    }
    for name in ("metric", "unit", "worker", "phase", "count", "sum", "min", "max", "last", "digest"):
        columns[name] = pa.array([getattr(row, name) for row in rows], METRICS.field(name).type)
    for name in QUANTILES:
        columns[name] = pa.nulls(size, pa.float64())
    return pa.RecordBatch.from_arrays([columns[field.name] for field in METRICS], schema=METRICS)


def histograms(batch: pa.RecordBatch) -> list[histogram.Histogram | None]:
    """Return each row's decoded digest. Raises `ValueError` for one that is none."""
    return [None if digest is None else histogram.decode(digest) for digest in batch.column("digest").to_pylist()]


def with_quantiles(table: pa.Table) -> pa.Table:
    """Return the rows with their quantiles filled in from their digests: for files and for who asks, never while windows are taken."""
    digests = table["digest"].to_pylist()
    filled = [at for at, digest in enumerate(digests) if digest is not None]
    if not filled:
        return table
    answers = np.full((len(digests), len(QUANTILES)), np.nan)
    for first in range(0, len(filled), _DECODED_AT_ONCE):  # decoded, a digest takes many times its room
        some = filled[first : first + _DECODED_AT_ONCE]
        decoded = [histogram.decode(digests[at]) for at in some]
        answers[some] = histogram.quantiles_of(decoded, tuple(QUANTILES.values()))
    empty = np.ones(len(digests), np.bool_)
    empty[filled] = False
    for at, name in enumerate(QUANTILES):
        column = pa.array(answers[:, at], pa.float64(), mask=empty)
        table = table.set_column(table.schema.get_field_index(name), METRICS.field(name), column)
    return table


def event_row(event: Event, node: str, sequence: int, wall_ns: int) -> dict[str, Any]:
    """Return an event as a row; `node` and `wall_ns` (UTC) are those of who tells it, for an event that has none."""
    return {
        "time": (event.wall_ns or wall_ns) // 1000,
        "sequence": sequence,
        "node": event.node or node,
        "worker": event.worker,
        "phase": event.phase,
        "kind": event.kind,
        "severity": event.severity,
        "message": event.message,
        "data": json.dumps(dict(event.data), default=str),
    }


def events_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Return events as a batch; `time` is given in microseconds of UTC."""
    return pa.RecordBatch.from_arrays([pa.array([row[field.name] for row in rows], field.type) for field in EVENTS], schema=EVENTS)


def seal(metrics: pa.RecordBatch, events: pa.RecordBatch) -> bytes:
    """Return the payload of a window's record: two Arrow IPC streams, the length of the first before it."""
    first = _stream(metrics)
    return b"".join((_SPLIT.pack(len(first)), first, _stream(events) if events.num_rows else b""))


def seal_in_place(metrics: pa.RecordBatch, events: pa.RecordBatch) -> list[memoryview]:
    """Return the same payload in parts, of which the metrics are the arrays' own memory: who maps the record has arrays again."""
    parts = _Parts()
    with pa.ipc.new_stream(parts, metrics.schema) as writer:
        writer.write_batch(metrics)
    head, tail = _SPLIT.pack(parts.size), _stream(events) if events.num_rows else b""
    return [memoryview(head), *parts.views, memoryview(tail)]


class _Parts:
    """A file for an Arrow writer that keeps what it is given where that lies."""

    closed = False

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.views))

    def write(self, data: bytes | pa.Buffer) -> int:
        """Keep a part."""
        self.views.append(memoryview(data).cast("B"))
        return len(self.views[-1])

    def flush(self) -> None:
        """There is nothing behind this."""

    def close(self) -> None:
        """Nothing is given up: the parts are wanted."""


def unseal(payload: Bytes) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Return metrics and events of a payload, as views of it where they lie in it as arrays do.

    Raises `ValueError` when it is not of these schemas.
    """
    split = _OLD_SPLIT if bytes(payload[_OLD_SPLIT.size : _SPLIT.size]) == _MESSAGE else _SPLIT
    if len(payload) < split.size:
        raise ValueError("a window's payload is shorter than its head")
    (size,) = split.unpack_from(payload)
    rest = memoryview(payload)[split.size :]
    return _batch(rest[:size], METRICS), _batch(rest[size:], EVENTS)


def seal_samples(samples: pa.RecordBatch) -> bytes:
    """Return the payload of a record of single samples: one Arrow IPC stream."""
    return _stream(samples)


def unseal_samples(payload: Bytes) -> pa.RecordBatch:
    """Return the samples of a payload. Raises `ValueError` when it is not of this schema."""
    return _batch(memoryview(payload), SAMPLES)


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _batch(data: memoryview, schema: pa.Schema) -> pa.RecordBatch:
    if not data:
        return pa.RecordBatch.from_pylist([], schema=schema)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        batch = reader.read_next_batch()
    if not batch.schema.equals(schema):
        raise ValueError(f"expected the columns {schema.names}, got {batch.schema.names}")
    batch.validate(full=True)
    return batch
