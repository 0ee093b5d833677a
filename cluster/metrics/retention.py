"""Old windows of a long run become longer ones: ten seconds, then a minute. Parts go in, one part that takes their place comes out.

What stays as it came, however old it is:

    doses                       they are judged window by window
    the edges of a run          a minute on both sides of its begin, of the load's start and end, and of the end of "after", so that
                                figures between these moments are of the same rows as before
    windows that lasted longer  than what they would become

A window becomes longer when all of its minute is old enough, by the aggregator's wall clock. As long as the load's start is not known,
nothing does. Rows that come late for a minute that was rolled up before are merged into it by the next pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from scenarios.plan import Plan

from .checksum import EMPTY, KEY, seal_parquet
from .live import DoseWindow
from .parts import FOOTER, replaced_by
from .rollup import MICROSECONDS, Windows
from .store import Coverage, parquet_options
from .windows import METRICS

MEDIUM_S: Final = 10.0
COARSE_S: Final = 60.0
EDGE_S: Final = 60.0
PASSES: Final = 8  # within the time for which windows stay fine
_COARSE_US: Final = round(COARSE_S * MICROSECONDS)
_AT_ONCE: Final = 1 << 16

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Cell = tuple[int, int]  # length and start, in microseconds


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long windows stay as they came, and from then on ten seconds long; None is for ever."""

    fine_s: float | None = None
    medium_s: float | None = None

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Retention:
        """Return what stands in a run's manifest; a manifest that says nothing keeps everything."""
        said = manifest.get("settings") or {}
        return cls(*((said.get(f"metrics.{name}") or {}).get("value") for name in ("fine_for_s", "medium_for_s")))

    @property
    def every_s(self) -> float | None:
        """How often a pass is due; None is never."""
        return None if self.fine_s is None else max(COARSE_S, self.fine_s / PASSES)

    def target(self, now_us: int, cuts_s: Sequence[float]) -> Target:
        """Return what windows become at this time of UTC; `cuts_s` are the moments that no window may hide, in seconds of UTC."""
        ages = [(MEDIUM_S, self.fine_s)]
        if self.fine_s is not None and self.medium_s is not None:
            ages.append((COARSE_S, self.fine_s + self.medium_s))
        steps = tuple(
            (round(length_s * MICROSECONDS), (now_us - round(age_s * MICROSECONDS)) // _COARSE_US * _COARSE_US)
            for length_s, age_s in ages
            if age_s is not None
        )
        edge_us = round(EDGE_S * MICROSECONDS)
        cuts_us = (round(cut_s * MICROSECONDS) for cut_s in cuts_s)
        return Target(steps, tuple(((at_us - edge_us) // _COARSE_US, (at_us + edge_us) // _COARSE_US) for at_us in cuts_us))


@dataclass(frozen=True, slots=True)
class Target:
    """What windows become: `steps` are (length, before which time), the later the longer; `kept` are minutes (first, last) that stay."""

    steps: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, int], ...]

    def lengths_us(self, rows: pa.RecordBatch | pa.Table) -> tuple[_Ints, _Ints, _Ints]:
        """Return of each row its begin, its length, and what length it is to have; 0 is the one that it has."""
        times = np.asarray(rows.column("time").cast(pa.int64()))
        lengths = np.rint(np.asarray(rows.column("window_s")) * MICROSECONDS).astype(np.int64)
        wanted = np.zeros(len(times), np.int64)
        for length_us, before_us in self.steps:
            wanted[times < before_us] = length_us
        minutes = times // _COARSE_US
        for first, last in self.kept:
            wanted[(minutes >= first) & (minutes <= last)] = 0
        metrics = rows.column("metric").to_pylist()
        wanted[np.fromiter((name.startswith("dose.") for name in metrics), np.bool_, len(metrics))] = 0
        wanted[lengths > wanted] = 0
        return times, lengths, wanted


def cuts_of(plan: Plan, doses: Mapping[str, Sequence[DoseWindow]], began_s: float, after_s: float) -> tuple[float, ...] | None:
    """Return the moments that figures are asked between, in seconds of UTC, right to some seconds; None while the load has not begun."""
    starts = [doses[one.id][0].time_s - one.start_s for one in plan.operations if doses.get(one.id)]
    if not starts:
        return None
    end_s = min(starts) + plan.duration_s
    return (began_s, min(starts), end_s, end_s + after_s)


# one pass


@dataclass(slots=True)
class _Pass:
    target: Target
    touched: set[_Cell] = field(default_factory=set)
    cells: dict[Path, set[_Cell]] = field(default_factory=dict)

    def look(self, path: Path) -> None:
        """Find which windows this part has, and which of them have rows that are too short."""
        for rows in _batches(path, ["time", "window_s", "metric"]):
            times, lengths, wanted = self.target.lengths_us(rows)
            chosen = wanted > 0
            self.cells.setdefault(path, set()).update(_cells(times, wanted, chosen))
            self.touched.update(_cells(times, wanted, chosen & (lengths < wanted)))

    @property
    def taken(self) -> list[Path]:
        """The parts that have a row of a window that is to be made."""
        return [path for path, cells in self.cells.items() if not cells.isdisjoint(self.touched)]

    def is_touched(self, rows: pa.RecordBatch) -> tuple[_Bools, _Ints]:
        times, _, wanted = self.target.lengths_us(rows)
        starts = _starts(times, wanted).tolist()
        found = ((length, start) in self.touched for length, start in zip(wanted.tolist(), starts, strict=True))
        return np.fromiter(found, np.bool_, len(times)), wanted


def _starts(times: _Ints, wanted: _Ints) -> _Ints:
    lengths: _Ints = np.maximum(wanted, 1)
    return times // lengths * lengths


def _cells(times: _Ints, wanted: _Ints, chosen: _Bools) -> set[_Cell]:
    return set(zip(wanted[chosen].tolist(), _starts(times, wanted)[chosen].tolist(), strict=True))


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=columns):
            yield batch.cast(pa.schema([METRICS.field(name) for name in columns]))


def roll(paths: Sequence[Path], target: Target, staged: Path) -> list[Path]:
    """Write the part that takes the place of some of these, under a name that nobody reads; return which, none when there is nothing to do.

    What it holds is on disk when this returns; whoever gives it its name decides that it counts. Raises `OSError`; then nothing is left.
    """
    found = _Pass(target)
    for path in paths:
        found.look(path)
    taken = found.taken
    if taken:
        try:
            _write(found, taken, staged)
        except BaseException:
            with suppress(OSError):
                staged.unlink()
            raise
    return taken


def _write(found: _Pass, taken: Sequence[Path], staged: Path) -> None:
    coverage = Coverage()
    replaces: set[str] = set()
    for path in taken:
        coverage.absorb(Coverage.of_footer(pq.read_schema(path).metadata))
        replaces |= {path.name, *replaced_by(path)}
    footer = {**json.loads(coverage.to_footer()), "replaces": sorted(replaces)}
    schema = METRICS.with_metadata({FOOTER: json.dumps(footer).encode(), KEY: EMPTY})
    made = {length_us: Windows(length_us / MICROSECONDS) for length_us, _ in found.target.steps}
    with staged.open("w+b") as sink:
        with pq.ParquetWriter(sink, schema, **parquet_options()) as writer:
            for path in taken:
                for rows in _batches(path, METRICS.names):
                    _sort_out(rows, found, made, writer)
            for windows in made.values():
                writer.write_table(windows.pop().cast(schema))
        seal_parquet(sink)
        sink.flush()
        os.fsync(sink.fileno())


def _sort_out(rows: pa.RecordBatch, found: _Pass, made: Mapping[int, Windows], writer: pq.ParquetWriter) -> None:
    """Merge the rows of windows that are being made; write the others as they are."""
    touched, wanted = found.is_touched(rows)
    for length_us, windows in made.items():
        windows.add(rows.filter(pa.array(touched & (wanted == length_us))))
    rest = rows.filter(pa.array(~touched))
    if rest.num_rows:
        writer.write_table(pa.Table.from_batches([rest]).cast(writer.schema))
