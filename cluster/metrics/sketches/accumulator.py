"""What an accumulator is: something that takes batches, merges with its like on other nodes, travels as bytes, and answers in figures.

An accumulator's kind is a record beside its code, as a simulator's is. Whoever adds one writes three methods; the record says how to make
one, how to read it from bytes, and what its figures are. `registry` finds kinds by name, `conformance` checks them.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from actors.errors import InputError
from actors.metrics.histogram import Counts, Floats

from .tdigest import checked_weights

if TYPE_CHECKING:
    from .registry import Accumulators

Takes = Literal["numbers", "texts"]
UnitRule = Literal["same", "none", "squared", "per_second"]
BoundKind = Literal["value_relative", "rank", "count_relative", "count_absolute"]
Value = float | int | None | tuple[tuple[str, int, int], ...]

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_HEAD: Final = struct.Struct("<2sBBHI")  # magic, version of the envelope, length of the name, version of the kind, checksum of all the rest
_MAGIC: Final = b"SA"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples of one series in one span of time.

    `numbers` (float64) or `texts`, never both; `weights` says how many samples each stands for. `start_s` and `end_s` are seconds
    of UTC: what `last` and `rate` go by.
    """

    numbers: Floats
    texts: tuple[str, ...]
    weights: Counts
    start_s: float = 0.0
    end_s: float = 0.0

    @classmethod
    def of(
        cls, values: Sequence[float] | Sequence[str] | Floats, weights: Any = None, *, start_s: float = 0.0, end_s: float = 0.0
    ) -> Batch:
        """Return a batch of numbers or of texts. Raises `InputError` for a mixture, a bad weight or a span that ends before it begins."""
        if not start_s <= end_s:
            raise InputError("invalid_value", f"a batch cannot end at {end_s} s when it begins at {start_s} s")
        counts = checked_weights(weights, len(values))
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            return cls(values.astype(np.float64), (), counts, start_s, end_s)
        texts = tuple(value for value in values if isinstance(value, str))
        if texts and len(texts) != len(values):
            raise InputError("invalid_value", "a batch holds numbers or texts, got both", "make two batches")
        return cls(np.empty(0) if texts else np.array(values, np.float64), texts, counts, start_s, end_s)


@dataclass(frozen=True, slots=True)
class Bound:
    """How far an approximate figure may be off: a share of the value, of the ranks (0..1), of the count, or a number of samples."""

    kind: BoundKind
    size: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One answer: its value (None when there is none), its unit, and its bound when it is approximate."""

    value: Value
    unit: str = ""
    bound: Bound | None = None

    @property
    def approximate(self) -> bool:
        """Tell whether the value is an estimate."""
        return self.bound is not None


class Accumulator(Protocol):
    """What takes samples. Used by one thread at a time."""

    def add(self, batch: Batch) -> None:
        """Take a batch of the kind that the record says."""
        ...

    def merge(self, other: Any) -> None:
        """Take all that another of the same kind and options has taken; the other stays as it is."""
        ...

    def result(self) -> Mapping[str, Answer]:
        """Return the figures by name. Changes nothing that a later `add`, `merge` or `result` would show."""
        ...

    def encode(self) -> bytes:
        """Return the state as bytes."""
        ...


Answer = Value | tuple[Value, Bound]


@dataclass(frozen=True, slots=True)
class AccumulatorRecord:
    """All that other parts need to know of a kind of accumulator.

    `figures` gives each figure's unit by that of the samples: the same, none, its square, or per second. `version` is of the bytes:
    raise it when they change. `decode` raises `ValueError` for bytes that are none. `exact` tells that every figure of merged parts
    is that of all samples at once, but for rounding; without it, figures stay within their bounds.
    """

    name: str
    summary: str
    takes: Takes
    figures: Mapping[str, UnitRule]
    make: Callable[[], Accumulator]
    decode: Callable[[bytes], Accumulator]
    version: int = 1
    exact: bool = True

    def answers(self, accumulator: Accumulator, unit: str = "") -> dict[str, Figure]:
        """Return the figures with their units, for samples of this unit. Raises `ValueError` when they are not those of the record."""
        found = accumulator.result()
        if set(found) != set(self.figures):
            raise ValueError(f"accumulator {self.name!r} states the figures {sorted(self.figures)} and gave {sorted(found)}")
        return {name: _figure(answer, unit_of(self.figures[name], unit)) for name, answer in found.items()}

    def pack(self, accumulator: Accumulator) -> bytes:
        """Return the state in an envelope that names its kind and version; see `unpack`."""
        name, state = self.name.encode(), accumulator.encode()
        rest = name + state
        return _HEAD.pack(_MAGIC, _VERSION, len(name), self.version, zlib.crc32(rest)) + rest


def unpack(data: bytes, known: Accumulators) -> tuple[AccumulatorRecord, Accumulator]:
    """Return the kind and the accumulator of an envelope.

    Raises `ValueError` for what is no envelope or damaged, `InputError` (`unknown_name`, `unsupported_version`) for a kind that
    is not known here or has other bytes.
    """
    if len(data) < _HEAD.size:
        raise ValueError(f"an accumulator has at least {_HEAD.size} bytes, got {len(data)}")
    magic, envelope, length, version, checksum = _HEAD.unpack_from(data)
    if magic != _MAGIC or envelope != _VERSION:
        raise ValueError(f"not an accumulator of version {_VERSION}: starts with {data[:3]!r}")
    if zlib.crc32(data[_HEAD.size :]) != checksum:
        raise ValueError("an accumulator's bytes do not match their checksum")
    record = known.find(data[_HEAD.size : _HEAD.size + length].decode())
    if version != record.version:
        hint = "install the same release of it on every node"
        raise InputError("unsupported_version", f"accumulator {record.name!r} is version {record.version} here, got {version}", hint)
    return record, record.decode(data[_HEAD.size + length :])


def unit_of(rule: UnitRule, unit: str) -> str:
    """Return a figure's unit for samples of this unit; a ratio and a plain number have none to square or to divide."""
    if rule == "none":
        return ""
    if rule == "per_second":
        return f"{unit}/second" if unit else "1/second"
    return f"{unit}^2" if rule == "squared" and unit not in ("", "ratio") else unit


def _figure(answer: Answer, unit: str) -> Figure:
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Bound):
        return Figure(answer[0], unit, answer[1])
    return Figure(answer, unit)
