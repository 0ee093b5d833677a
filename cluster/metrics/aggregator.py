"""One run's aggregator: takes windows from the agents, makes them durable, then acknowledges; answers questions; writes the files.

A plain class, made an actor elsewhere. It holds nothing that it could not read back from its directory, so a new one on the same
directory goes on where a dead one stopped: what was acknowledged is there, once, and what was not is sent again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from actors.clock import SECOND_NS, Clock
from actors.errors import HarnessError, InputError
from actors.messages import Event
from actors.metrics.histogram import Histogram

from ..files import read_json, write_json_atomic
from ..outbox import Bytes, parse
from ..outbox import Kind as RecordKind
from .answers import Answers
from .buckets import Buckets
from .cache import TTL_S
from .intake import following, reached
from .live import DoseWindow, Live, Sample
from .own_stream import OwnStream
from .parts import DAMAGED, part_files
from .query import Between
from .query import peaks as peaks_of
from .retention import Target, roll
from .samples import SampleStore
from .store import (
    Coverage,
    End,
    Entry,
    RunStore,
    Stream,
    Tagged,
    coverage_of,
    metrics_coverage,
    pending_metrics_now,
    read_metrics,
    read_parts,
)
from .windows import EVENTS, METRICS, events_batch, histograms, unseal, unseal_samples

_LOG: Final = logging.getLogger(__name__)
_STALE_NS: Final = 30 * SECOND_NS
_PEAKS: Final = ("host.cpu.busy", "host.load.average", "host.memory.used", "host.descriptors.used", "agent.tick.lag")

_NOTHING_TOLD: Final[Mapping[Stream, int]] = MappingProxyType({})
_NO_METRICS: Final = pa.RecordBatch.from_pylist([], schema=METRICS)
_NO_EVENTS: Final = pa.RecordBatch.from_pylist([], schema=EVENTS)

_Taken = tuple[Entry, list[Histogram | None]]
Watcher = Callable[[Sequence[Entry]], None]


class Aggregator:
    """The metrics of one run. All methods may be called from any thread.

    Raises `HarnessError` (`busy`) when another process writes the directory.
    """

    def __init__(
        self,
        run_id: str,
        directory: Path,
        clock: Clock,
        *,
        settle_bytes: int = 64 << 20,
        cache_ttl_s: float = TTL_S,
        buckets: Buckets | None = None,
    ) -> None:
        self.run_id = run_id
        self.directory = directory
        self._clock = clock
        self._lock = threading.RLock()
        self._settle_bytes = settle_bytes
        self._samples = SampleStore(directory)  # before what makes its records count
        self._store = RunStore(directory)
        self._forgotten = _announced(directory)  # the first number that will not come of a stream, 0 where nobody gave it up
        self._expected: set[Stream] = {*self._store.coverage.held, *self._forgotten}
        self._live = Live(buckets)
        self._undecodable = 0
        self._is_closed = False
        self._watchers: list[Watcher] = []
        self.answers = Answers(directory, self._lock, clock, ttl_s=cache_ttl_s)
        doses = pc.field("metric").isin(["dose.requested", "dose.achieved"])
        self._live.absorb_doses(read_parts(directory, ["time", "metric", "unit", "worker", "count", "sum"], doses))
        for tagged in self._store.recovered:
            self._live.absorb(tagged.batch, histograms(tagged.batch), clock.boot_ns())
        self._store.recovered.clear()
        self._tell_damage()

    def _tell_damage(self) -> None:
        """Say in the run what was found damaged when its files were opened."""
        if not self._store.damage:
            return
        words = f"not as it was written, and not read: {'; '.join(self._store.damage)}"
        told = OwnStream(self, "files", self._clock)
        told.close_window([], [Event("metrics.damaged", words, "error")])
        told.end()

    # taking windows

    def expect(self, node: str, incarnation: str) -> None:
        """Announce a stream, durably: until its end has come it is outstanding."""
        with self._lock:
            if (node, incarnation) not in self._expected:
                self._expected.add((node, incarnation))
                streams = [{"node": node, "incarnation": incarnation} for node, incarnation in sorted(self._expected)]
                (self.directory / "log").mkdir(exist_ok=True)
                write_json_atomic(self.directory / "log" / "streams.json", {"streams": streams})

    def watch(self, watcher: Watcher) -> None:
        """Tell someone of each record once, in their order, when it is on disk and not acknowledged yet: must not wait or raise."""
        with self._lock:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Tell someone no more. Harmless for who is not told anything."""
        with self._lock, suppress(ValueError):
            self._watchers.remove(watcher)

    def push(self, node: str, incarnation: str, records: Iterable[tuple[int, Bytes]], safe: int = 0) -> int:
        """Take frames of one stream and return the last sequence number up to which everything is on disk; see `push_many`."""
        stream = (node, incarnation)
        return self.push_many({stream: records}, {stream: safe})[stream]

    def push_many(
        self, parts: Mapping[Stream, Iterable[tuple[int, Bytes]]], safe: Mapping[Stream, int] = _NOTHING_TOLD
    ) -> dict[Stream, int]:
        """Take frames of many streams; return for each the last sequence number up to which everything is on disk. One sync for all.

        Records that are held already are skipped, so a push may be repeated. After a gap or a torn frame the rest of that stream is
        refused, but for gaps up to `safe`, the number that its sender was last told: see `intake`. Raises `HarnessError` when the disk
        refuses; then nothing of this call counts.
        """
        with self._lock:
            self._check_open()
            taken = [one for stream, records in parts.items() for one in self._following(stream, records, safe.get(stream, 0))]
            if taken:
                self._append(taken)
            return {stream: reached(self._store.coverage, stream, safe.get(stream, 0)) for stream in parts}

    def _following(self, stream: Stream, records: Iterable[tuple[int, Bytes]], safe: int) -> list[_Taken]:
        return following(self._store.coverage, stream, records, partial(self._entry, stream), safe)

    def _append(self, taken: list[_Taken]) -> None:
        self.answers.changed()  # of an early settling too; also when it fails: what was written may be read all the same
        try:
            self._samples.append([entry for entry, _ in taken])
            self._store.append([entry for entry, _ in taken])
        except OSError as error:
            self.answers.forget_span()
            raise HarnessError(
                "os", f"cannot write the log of run {self.run_id}: {error}", "the agents keep what was not acknowledged"
            ) from error
        self.answers.grew(entry.metrics for entry, _ in taken)
        self._expected.update(entry.stream for entry, _ in taken)
        now_ns = self._clock.boot_ns()
        for entry, found in taken:
            self._live.absorb(entry.metrics, found, now_ns)
        for watcher in self._watchers:
            watcher([entry for entry, _ in taken])
        if self._store.log_bytes + self._samples.log_bytes >= self._settle_bytes:
            self._settle_early()

    def _settle_early(self) -> None:
        try:
            self._settle()
        except (OSError, HarnessError) as error:
            self._settle_bytes *= 2  # the log stands; try again when it has grown
            _LOG.warning("run %s: the log stays as it is for now: %s", self.run_id, error)

    def _settle(self) -> None:
        self._store.settle()
        self._samples.settle(metrics_coverage(self.directory))  # what the log held beyond what was acknowledged is in there too

    def _entry(self, stream: Stream, sequence: int, data: Bytes) -> _Taken | None:
        """Return a record's entry and its histograms; None when the frame is not whole: it is sent again."""
        try:
            record = parse(data)
        except ValueError:
            return None
        if record.sequence != sequence:
            return None
        if record.kind is RecordKind.END:
            return Entry(stream, sequence, _NO_METRICS, _NO_EVENTS, End(sequence, b'"clean": true' in bytes(record.payload))), []
        try:
            if record.kind is RecordKind.SAMPLES:
                return Entry(stream, sequence, _NO_METRICS, _NO_EVENTS, samples=unseal_samples(record.payload)), []
            metrics, events = unseal(record.payload)
            decoded = histograms(metrics)
        except (ValueError, OSError) as error:  # whole, but not ours to understand: sending it again would not help
            return Entry(stream, sequence, _NO_METRICS, self._undecoded(stream, sequence, error)), []
        return Entry(stream, sequence, metrics, events, frame=data if isinstance(data, memoryview) else None), decoded

    def _undecoded(self, stream: Stream, sequence: int, error: Exception) -> pa.RecordBatch:
        self._undecodable += 1
        row = {"node": stream[0], "worker": "", "phase": "", "kind": "metrics.undecodable", "severity": "error"}
        message = f"record {sequence} of {stream[0]} cannot be read: {error}"
        return events_batch([row | {"time": self._clock.wall_ns() // 1000, "sequence": 0, "message": message, "data": "{}"}])

    def end(self, node: str, incarnation: str, sequence: int, *, clean: bool = False) -> None:
        """State where a stream ends, when its own end record will not come (its outbox is lost, say). Durable at `finish`."""
        with self._lock:
            self._expected.add((node, incarnation))
            self._store.coverage.ends.setdefault((node, incarnation), End(sequence, clean))

    # how complete it is

    def streams(self) -> list[dict[str, Any]]:
        """Return received and expected end of each stream, as the manifest lists them."""
        with self._lock:
            return [self._stream_entry(stream) for stream in sorted(self._expected)]

    def _stream_entry(self, stream: Stream) -> dict[str, Any]:
        end, received = self._store.coverage.ends.get(stream), reached(self._store.coverage, stream)
        return {
            "node": stream[0],
            "incarnation": stream[1],
            "received": received,
            "expected_end": end.sequence if end else None,
            "clean": end.clean if end else None,
            **({"forgotten": True} if received < self._forgotten.get(stream, 0) else {}),
        }

    def outstanding(self) -> list[dict[str, Any]]:
        """Return the streams that have not arrived to their end, and from which sequence number on."""
        return self._open(forgotten=False)

    def forgotten(self) -> list[dict[str, Any]]:
        """Return the streams whose rest will not come, and from which sequence number on. How much that is nobody knows."""
        return self._open(forgotten=True)

    def _open(self, *, forgotten: bool) -> list[dict[str, Any]]:
        return [
            {"node": entry["node"], "incarnation": entry["incarnation"], "from": entry["received"] + 1}
            for entry in self.streams()
            if entry["expected_end"] is None or entry["received"] < entry["expected_end"]
            if entry.get("forgotten", False) is forgotten
        ]

    def forget(self, node: str) -> list[dict[str, Any]]:
        """Give up what has not arrived of a node that will not come back, and bring the documents up to date; return those streams.

        What comes all the same is taken, and its stream is outstanding again. Raises `HarnessError` when the disk refuses.
        """
        with self._lock:
            lost = [one for one in self.outstanding() if one["node"] == node]
            if lost:
                self._forgotten |= {(node, one["incarnation"]): one["from"] for one in lost}
                self.finish()
            return lost

    def holed(self) -> list[dict[str, Any]]:
        """Return the streams of which records were acknowledged and lost with a damaged file, and the first number that is missing."""
        with self._lock:
            held = self._store.coverage.held
            streams = [stream for stream in sorted(held) if held[stream].missing]
            return [
                {"node": node, "incarnation": incarnation, "from": held[node, incarnation].contiguous + 1} for node, incarnation in streams
            ]

    def losses(self) -> dict[str, Any]:
        """Return what is known to be missing, and what may be: zero or counted; an open end is `unknown`, never zero."""
        return self._losses(self.samples())

    def _losses(self, samples: Mapping[str, int]) -> dict[str, Any]:
        unflushed = self.answers.rows("metrics.unflushed").value
        unclean = [entry for entry in self.streams() if entry["expected_end"] is not None and not entry["clean"]]
        return {
            "dropped_samples": self._by_label("metrics.dropped"),
            "single_samples": self._samples_lost(samples),
            "unflushed_recorders": pc.sum(unflushed["sum"]).as_py() or 0.0,
            "undecodable_records": self._undecodable,
            "lost_records": self._store.coverage.missing,
            "damaged_files": sorted(path.name for path in (self.directory / DAMAGED).glob("*")),
            "series_not_shown": self._live.refused,
            "unclean_streams": len(unclean),
            "forgotten_streams": len(self.forgotten()),
            "open_streams": "unknown" if self.outstanding() or self.forgotten() else 0,
        }

    def errors(self) -> dict[str, float]:
        """Return how many errors of loads and agents there were, by stable code."""
        return self._by_label("errors.seen", "code")

    def _by_label(self, metric: str, label: str = "reason") -> dict[str, float]:
        rows = self.answers.rows(metric).value
        found: dict[str, float] = {}
        for labels, count in zip(rows["labels"].to_pylist(), rows["sum"].to_pylist(), strict=True):
            word = dict(labels).get(label, "")
            found[word] = found.get(word, 0.0) + count
        return found

    def samples(self) -> dict[str, int]:
        """Return how many single samples loads gave away, as far as their nodes told, and how many are in the files."""
        produced = pc.sum(self.answers.rows("samples.produced").value["sum"]).as_py() or 0.0
        with self._lock:
            return {"produced": round(produced), "written": self._samples.written(self._store.coverage)}

    def _samples_lost(self, told: Mapping[str, int]) -> dict[str, float]:
        """Return the single samples that are in no file by reason: `missing` are those of records that could not be read."""
        lost = self._by_label("samples.dropped")
        missing = told["produced"] - told["written"] - sum(lost.values())
        return {**lost, "missing": missing} if missing > 0 else lost

    # answers

    def latest(self) -> list[Sample]:
        """Return what every series stands at; gauges that were not seen for 30 s are left out."""
        with self._lock:
            return self._live.samples(self._clock.boot_ns() - _STALE_NS)

    def stale(self) -> int:
        """Return how many gauges `latest` leaves out."""
        with self._lock:
            return self._live.stale(self._clock.boot_ns() - _STALE_NS)

    def ready(self) -> bool:
        """Tell whether windows are taken."""
        with self._lock:
            return not self._is_closed

    def refused(self) -> int:
        """Return how many windows of series are in the files and not in `latest`, for there are too many series."""
        with self._lock:
            return self._live.refused

    def use_buckets(self, buckets: Buckets) -> Buckets:
        """Show histograms with these buckets, and return those in force: once there are windows it is too late for others."""
        with self._lock:
            if not self._live.samples():
                self._live.buckets = buckets
            return self._live.buckets

    def dose_windows(self) -> dict[str, list[DoseWindow]]:
        """Return asked and achieved strength by operation, one (time_s, requested, achieved, unit) a window."""
        with self._lock:
            return self._live.doses()

    def query(self, metric: str, *, node: str | None = None, worker: str | None = None, between: Between | None = None) -> pa.Table:
        """Return the windows of a metric, with the contract's columns. Raises `InputError` for an unknown metric.

        The same question on unchanged data is answered from memory; see `answers.counts`.
        """
        return self.answers.rows(metric, node, worker, between, columns=METRICS.names).value

    def evaluate(
        self,
        metric: str,
        stat: str,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        between: Between | None = None,
        *,
        worker: str | None = None,
    ) -> float | None:
        """Return one figure over all matching windows, or None when there are none; see `query.figure`.

        The same question on unchanged data is answered from memory, and another statistic of the same windows reads no file.
        """
        return self.answers.figure(metric, stat, node, labels, between, worker)

    def peaks(self) -> dict[str, dict[str, float]]:
        """Return the highest values of the host by node and metric."""
        with self._lock:
            wanted = pc.field("metric").isin(list(_PEAKS))
            return peaks_of(read_metrics(self.directory, ["node", "metric", "max"], wanted))

    # files

    def finish(self, summary: Mapping[str, Any] | None = None, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Turn the log into Parquet, write summary.json and then manifest.json; return the summary.

        Without arguments the documents on disk are brought up to date: that is how late data comes in. The summary's `revision`
        rises by one each time. `losses`, `outstanding` and `peaks` are filled in here. Raises `HarnessError` when the disk refuses;
        call again later.
        """
        with self._lock:
            self._check_open()
            self.answers.changed()
            try:
                self._settle()
                return self._write_documents(summary, manifest)
            except OSError as error:
                raise HarnessError("os", f"cannot finish run {self.run_id}: {error}", "make room, then `stress-cluster recover`") from error

    def _write_documents(self, summary: Mapping[str, Any] | None, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
        old = read_json(self.directory / "summary.json") or {}
        samples = self.samples()
        found: dict[str, Any] = {"peaks": self.peaks(), "losses": self._losses(samples), "samples": samples, "errors": self.errors()}
        found |= {"outstanding": self.outstanding(), "forgotten": self.forgotten()}
        made = {**(old if summary is None else summary), **found, "revision": int(old.get("revision", 0)) + 1}
        write_json_atomic(self.directory / "summary.json", made)
        told = read_json(self.directory / "manifest.json") if manifest is None else manifest
        if told is not None:
            write_json_atomic(self.directory / "manifest.json", {**told, "streams": self.streams()})
        with suppress(FileNotFoundError):
            (self.directory / "log" / "streams.json").unlink()  # the manifest has them now
        with suppress(OSError):  # already gone
            (self.directory / "log").rmdir()
        return made

    def roll(self, target: Target) -> bool:
        """Let old windows become longer, as `target` says; tell whether any did. For one thread at a time.

        Windows are taken meanwhile: parts never change, and the new one comes into force in one step. Raises `HarnessError` when the disk
        refuses; then everything stands as it was.
        """
        with self._lock:
            self._check_open()
            if self._store.unsettled:
                self.answers.changed()
                self._settle_early()
            parts, staged = part_files(self.directory), self._store.staged
        try:
            if not roll(parts, target, staged):
                return False
            with self._lock:
                if self._is_closed:  # the directory may have another writer by now
                    return False
                self.answers.changed()
                self.answers.forget_span()  # a longer window may begin before its first row
                self._store.replace(staged)
        except OSError as error:
            raise HarnessError("os", f"cannot roll up old windows of run {self.run_id}: {error}", "they stay as they are") from error
        return True

    def files(self) -> list[dict[str, Any]]:
        """Return name, size and modification time of every file, for mirroring; those outside log/ never change, they come and go whole."""
        found = []
        for path in sorted(self.directory.rglob("*")):
            with suppress(FileNotFoundError):  # the log may go meanwhile
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    found.append({"name": str(path.relative_to(self.directory)), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        return found

    def read(self, name: str, offset: int = 0, size: int = 1 << 20) -> bytes:
        """Return bytes of a file of the run directory. Raises `InputError` when it is none."""
        path = (self.directory / name).resolve()
        if not path.is_relative_to(self.directory.resolve()) or not path.is_file():
            raise InputError("not_found", f"run {self.run_id} has no file {name!r}")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def held(self) -> Coverage:
        """Return which records are held now."""
        with self._lock:
            return self._store.coverage.copy()

    def stored(self) -> tuple[list[tuple[Path, Coverage]], Iterator[Tagged]]:
        """Return the Parquet parts of metrics with the records that each holds, and the log's other metrics, unpacked one after another."""
        with self._lock:
            parts = [(path, coverage_of([path])) for path in part_files(self.directory)]
            return parts, pending_metrics_now(self.directory, metrics_coverage(self.directory))

    def close(self) -> None:
        """Give up the directory; everything acknowledged is on disk."""
        with self._lock:
            self._is_closed = True
            self._samples.close()
            self._store.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise HarnessError("lost", f"this aggregator of run {self.run_id} has ended", "send it to the next one")

    @property
    def is_settled(self) -> bool:
        """Tell whether everything that was taken is in the files of the run directory."""
        with self._lock:
            return not (self._store.unsettled or self._samples.unsettled)

    @property
    def coverage(self) -> Coverage:
        """Which records are held."""
        return self._store.coverage


def _announced(directory: Path) -> dict[Stream, int]:
    """Return the streams that the documents name, each with the first number that will not come; 0 for one that nobody gave up."""
    found: dict[Stream, int] = {}
    for path in (directory / "log" / "streams.json", directory / "manifest.json"):
        for entry in (read_json(path) or {}).get("streams", []):
            found[entry["node"], entry["incarnation"]] = entry["received"] + 1 if entry.get("forgotten") else 0
    return found
