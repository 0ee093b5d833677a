"""Whose rows they are: each row that leaves a run names its run and its scenario, for it will lie among those of others. Pure.

In a run directory the manifest says it once; a file, a queue or a database elsewhere has no manifest. Rows on their way, and what waits on
a destination's disk, do not have these columns: they come last, when a destination is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import pyarrow as pa

from ..metrics.windows import METRICS
from ..stored import scenario_name

COLUMNS: Final = ("run", "scenario")
EXPORTED: Final = pa.schema([*(pa.field(name, pa.string(), nullable=False) for name in COLUMNS), *METRICS])


@dataclass(frozen=True, slots=True)
class Context:
    """A run's id and its scenario's name."""

    run: str = ""
    scenario: str = ""

    @classmethod
    def of(cls, manifest: Mapping[str, Any], run: str) -> Self:
        """Return what a manifest says; `run` is the id where it says none."""
        return cls(str(manifest.get("run") or run), scenario_name(manifest))

    def on(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows with the contract's columns as rows of `EXPORTED`; what they had before is not copied."""
        told = [pa.repeat(pa.scalar(value), batch.num_rows) for value in (self.run, self.scenario)]
        return pa.RecordBatch.from_arrays([*told, *batch.columns], schema=EXPORTED)
