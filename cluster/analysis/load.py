"""Read a run: its tables and documents, at any moment and after any crash, each window once.

What a crash left in the log of a run that has ended is turned into Parquet first, if this process may write there; otherwise
it is read where it lies.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.errors import HarnessError, InputError

from ..files import read_json
from ..metrics.answer import READ, Answer, extent
from ..metrics.asking import About, Found, ask, condition_of, understand
from ..metrics.question import Query, Words
from ..metrics.related import Related
from ..metrics.samples import SampleStore, read_samples
from ..metrics.sketches import AccumulatorRecord, Accumulators
from ..metrics.store import LOGS, RunStore, damage_of, log_files, read_metrics, read_run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunData:
    """A run. Tables have the contract's columns; documents that are not there yet are None."""

    path: Path
    metrics: pa.Table
    events: pa.Table
    summary: dict[str, Any] | None
    manifest: dict[str, Any] | None
    plan: dict[str, Any] | None
    damage: tuple[str, ...] = ()  # in words: what is not in the tables because it is not as it was written

    def samples(self) -> pa.Table:
        """Read the single samples that a run in detailed mode wrote; none of another run."""
        return read_samples(self.path)

    def query(self, metric: str, *stats: str, **words: str | Sequence[str]) -> Answer:
        """Return what the metrics answer to a question, in the words of `stress-cluster query` as keywords.

        `data.query("probe.response", "p99", by="node", every="5s", since="10s", label="probe=front")`; a word that can be repeated
        takes a sequence as well. `to_arrow` of the answer gives a table. Raises `InputError` for what cannot be asked.
        """
        found = self._ask({**words, "metric": metric, "stat": stats})
        assert isinstance(found, Answer), "the word `with` is for `correlate`"
        return found

    def correlate(self, metric: str, other: str, *stats: str, **words: str | Sequence[str]) -> Related:
        """Return how two metrics go together: `data.correlate("host.cpu.busy", "probe.response", lag="10s")`; see `query`."""
        found = self._ask({**words, "metric": metric, "with": other, "stat": stats})
        assert isinstance(found, Related), "a question with another metric is a correlation"
        return found

    def _ask(self, said: Mapping[str, str | Sequence[str]]) -> Found:
        words = {word: (text,) if isinstance(text, str) else tuple(text) for word, text in said.items()}
        span = extent(self.metrics)
        query = understand(words, About.of(self.manifest or {}, self.path.name, ""), span)
        return ask(query, self.metrics, span, record_of(query))

    def metrics_frame(self) -> Any:
        """Return the metrics as a pandas frame. Raises `InputError` where pandas is not installed."""
        return _frame(self.metrics)

    def events_frame(self) -> Any:
        """Return the events as a pandas frame. Raises `InputError` where pandas is not installed."""
        return _frame(self.events)


def load(run: str | Path, out: str | Path = "runs") -> RunData:
    """Read a run given as a run id, a run directory or `latest` (of `out`).

    Raises `InputError` (`not_found`) when there is none, `HarnessError` (`busy`) when its files never stand still, or (`os`) when a Parquet
    file of it is damaged.
    """
    path = find_run(run, out)
    damage = tuple(damage_of(path))  # before the log becomes Parquet
    for words in damage:
        _LOG.warning("%s: damaged, and not read: %s", path, words)
    documents = {name: read_json(path / f"{name}.json") for name in ("summary", "manifest", "plan")}
    if (documents["manifest"] or {}).get("status", "running") != "running":
        settle(path)
    contents = read_run(path)
    return RunData(path, contents.metrics, contents.events, documents["summary"], documents["manifest"], documents["plan"], damage)


def ask_run(path: Path, words: Words, about: About) -> Found:
    """Return what a run directory answers to a question, reading no more of it than that takes; see `RunData.query`."""
    if about.status != "running":
        settle(path)
    span = extent(read_metrics(path, ["time", "window_s"], None))
    query = understand(words, about, span)
    return ask(query, read_metrics(path, READ, condition_of(query)), span, record_of(query))


def record_of(query: Query) -> AccumulatorRecord | None:
    """Return the accumulator that a question names: one of the product, or of an installed package. Raises `InputError`."""
    if not query.accumulator:
        return None
    known = Accumulators()
    known.load()
    return known.find(query.accumulator)


def settle(path: Path) -> bool:
    """Turn what a crash left in the log into Parquet; false when there is nothing, or it has a writer, or may not be written."""
    left = any(log_files(path, stem) for stem in LOGS)
    if not left or sys.platform != "linux" or not os.access(path, os.W_OK):
        return False
    try:
        store = RunStore(path)
    except HarnessError:
        return False  # its aggregator is at work and will do it
    try:
        samples = SampleStore(path)
        store.settle()
        samples.settle(store.coverage)
    except OSError:
        return False  # the log still stands and is read where it lies
    finally:
        store.close()
    return True


def find_run(run: str | Path, out: str | Path = "runs") -> Path:
    """Return the directory of a run id, a directory or `latest`. Raises `InputError` when there is none."""
    if str(run) == "latest":
        found = sorted(path for path in Path(out).glob("*-*-*") if _is_run(path))
        if found:
            return found[-1]
        raise InputError("not_found", f"no run in {out}", "give a run directory, or the folder with --out")
    for path in (Path(run), Path(out) / run):
        if _is_run(path):
            return path
    raise InputError("not_found", f"{run} is neither a run directory nor a run of {out}", "see the folder's names, or use `latest`")


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("manifest.json", "metrics", "log"))


def _frame(table: pa.Table) -> Any:
    if importlib.util.find_spec("pandas") is None:
        raise InputError("unknown_name", "pandas is not installed", "pip install pandas, or use the Arrow table")
    return table.to_pandas(maps_as_pydicts="strict")
