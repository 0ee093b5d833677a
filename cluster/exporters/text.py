"""Rows as text values: what JSON and CSV share. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import InputError

from .context import EXPORTED

DECIMALS_MAX: Final = 15


class TimeForm(StrEnum):
    """How a time is written."""

    ISO = "iso"  # 2026-01-01T12:00:00.000000Z
    UNIX_MS = "unix_ms"
    UNIX_S = "unix_s"  # with a fraction


class NonFinite(StrEnum):
    """What becomes of NaN and infinities, for which JSON has no number."""

    TEXT = "text"  # "NaN", "Infinity", "-Infinity", as ProtoJSON has it
    NULL = "null"  # they then read like values that a kind does not have


@dataclass(frozen=True, slots=True)
class TextForm:
    """How values are written. `decimals` rounds floats (None: shortest text that reads back equal); digests are base64, if wanted."""

    time: TimeForm = TimeForm.ISO
    decimals: int | None = None
    non_finite: NonFinite = NonFinite.TEXT
    digests: bool = False

    def __post_init__(self) -> None:
        if self.decimals is not None and not 0 <= self.decimals <= DECIMALS_MAX:
            raise InputError("invalid_value", f"decimals is {self.decimals}, expected 0 to {DECIMALS_MAX}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are written."""
        return tuple(name for name in EXPORTED.names if self.digests or name != "digest")

    def rows(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """Yield each row of `EXPORTED` columns with text-ready values: None, int, finite float, str, and labels as a dictionary."""
        columns = {name: self._column(batch.column(name), name) for name in self.columns}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))

    def _column(self, values: pa.Array, name: str) -> list[Any]:
        if name == "time":
            return [self._time(value) for value in pc.cast(values, pa.int64()).to_pylist()]
        found = values.to_pylist()
        if name == "labels":
            return [dict(pairs) for pairs in found]
        if name == "digest":
            return [None if value is None else base64.b64encode(value).decode() for value in found]
        return [self._number(value) for value in found] if pa.types.is_floating(values.type) else found

    def _time(self, time_us: int) -> str | int | float:
        if self.time is TimeForm.UNIX_MS:
            return time_us // 1000
        if self.time is TimeForm.UNIX_S:
            return time_us / 1e6
        whole_s, rest_us = divmod(time_us, 1_000_000)
        return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%dT%H:%M:%S}.{rest_us:06}Z"

    def _number(self, value: float | None) -> float | str | None:
        if value is None:
            return None
        if math.isfinite(value):
            return value if self.decimals is None else round(value, self.decimals)
        if self.non_finite is NonFinite.NULL:
            return None
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
