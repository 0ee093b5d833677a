"""What does it cost that rows outlive a process or a power cut? Each sync policy of the files and of the write-ahead log, on this disk.

Run: python benchmarks/bench_durability.py. Rates are of the wall's clock, best of some rounds: what a sync costs is waiting.

    files       rows a second of jsonl and csv with each policy, in batches of 100 and 5,000 rows
    log         appends a second of records of 100 rows (as a lane spills them), and MB/s, with each policy
    recovery    seconds a GB to open a log that was left behind, and to read all of it

Peer: SQLite in WAL mode, the same records as blobs, one transaction each. Its synchronous=OFF, NORMAL and FULL promise what `never`,
`interval` and `always` do, but that NORMAL syncs at checkpoints only.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
from machine import store

from cluster.exporters.csv_file import CsvFile
from cluster.exporters.json_file import JsonLines
from cluster.exporters.spill import SpillLog, encoded
from cluster.exporters.wal import Sync, WriteAheadLog
from tests.support.sinks import numbered

ROUNDS = 3
ROWS = 20_000
BATCHES = (100, 5_000)
APPENDS = 2_000
RECOVERED_BYTES = 256 << 20
PEERS = {Sync.NEVER: "OFF", Sync.INTERVAL: "NORMAL", Sync.ALWAYS: "FULL"}
LEAST = {
    Sync.NEVER: 1.0,
    Sync.INTERVAL: 1.0,
    Sync.ALWAYS: 0.5,
}  # one sync each for `always` and FULL: the device decides, and who else uses it


def seconds(call: Callable[[Path], None], folder: Path) -> float:
    """Return the shortest time of some rounds, each in a new folder."""
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            began = time.perf_counter()
            call(Path(fresh))
            found.append(time.perf_counter() - began)
    return min(found)


def of_files(folder: Path) -> dict[str, Any]:
    """Return thousand rows a second of each kind of file, policy and batch."""
    found: dict[str, Any] = {}
    for kind, make in (("jsonl", JsonLines), ("csv", CsvFile)):
        for size in BATCHES:
            batch = numbered(0, size)
            for sync in Sync:

                def write(fresh: Path, make: Any = make, sync: Sync = sync, batch: pa.RecordBatch = batch) -> None:
                    sink = make(fresh / "x", sync=sync)
                    for _ in range(ROWS // batch.num_rows):
                        sink.write(batch)
                    sink.close()

                found.setdefault(f"{kind}, {size} rows a batch", {})[sync.value] = round(ROWS / seconds(write, folder) / 1e3, 1)
    return found


def of_log(folder: Path) -> dict[str, Any]:
    """Return appends and megabytes a second of our log and of SQLite."""
    payload = encoded(numbered(0, 100))
    found: dict[str, Any] = {"record_bytes": len(payload)}
    for sync, peer in PEERS.items():
        count = APPENDS if sync is not Sync.ALWAYS else APPENDS // 5

        def ours(fresh: Path, sync: Sync = sync, count: int = count) -> None:
            log = WriteAheadLog(fresh / "log", sync=sync)
            for at in range(count):
                assert log.append(at * 100, 100, payload, 1)
            log.close()

        def theirs(fresh: Path, peer: str = peer, count: int = count) -> None:
            database = begun(fresh / "x.db", peer)
            for at in range(count):
                database.execute("INSERT INTO records VALUES (?, ?)", (at, payload))
            database.close()

        rates = {"appends_per_s": count / seconds(ours, folder), "sqlite_appends_per_s": count / seconds(theirs, folder)}
        found[sync.value] = {
            **{name: round(rate) for name, rate in rates.items()},
            "MB_per_s": round(rates["appends_per_s"] * len(payload) / 1e6, 1),
            "times_sqlite": round(rates["appends_per_s"] / rates["sqlite_appends_per_s"], 2),
        }
    return found


def begun(path: Path, synchronous: str) -> sqlite3.Connection:
    """Return a database in WAL mode."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={synchronous}")
    database.execute("CREATE TABLE records (first INTEGER PRIMARY KEY, payload BLOB)")
    return database


def of_recovery(folder: Path) -> dict[str, Any]:
    """Return seconds a GB until a log that was left behind is open, and until all its rows are read, of ours and of SQLite."""
    batch = numbered(0, 5_000)
    payload, written = encoded(batch), 0
    log = WriteAheadLog(folder / "left", sync=Sync.NEVER, max_bytes=2 * RECOVERED_BYTES)
    database = begun(folder / "left.db", "OFF")
    for at in range(RECOVERED_BYTES // len(payload)):
        assert log.append(at * 5_000, 5_000, payload, batch.nbytes)
        database.execute("INSERT INTO records VALUES (?, ?)", (at, payload))
        written += len(payload)
    log.close()
    database.close()
    began = time.perf_counter()
    left = SpillLog(WriteAheadLog(folder / "left", sync=Sync.NEVER))
    opened = time.perf_counter()
    rows = 0
    while left.pending_rows:
        got = left.read()
        assert isinstance(got, tuple)
        rows += got[1].num_rows
    ended = time.perf_counter()
    assert rows == written // len(payload) * 5_000
    left.close()
    peer_began = time.perf_counter()
    peer = sqlite3.connect(folder / "left.db")
    for (blob,) in peer.execute("SELECT payload FROM records ORDER BY first"):
        pa.ipc.open_stream(pa.py_buffer(blob)).read_next_batch()
    peer_ended = time.perf_counter()
    peer.close()
    gigabytes = written / 1e9
    return {
        "GB": round(gigabytes, 3),
        "open_s_per_GB": round((opened - began) / gigabytes, 2),
        "open_and_read_s_per_GB": round((ended - began) / gigabytes, 2),
        "sqlite_open_and_read_s_per_GB": round((peer_ended - peer_began) / gigabytes, 2),
        "times_sqlite": round((ended - began) / (peer_ended - peer_began), 2),
    }


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bench-durability-", dir=Path.cwd()) as name:
        folder = Path(name)
        figures = {"thousand_rows_per_s": of_files(folder), "log": of_log(folder), "recovery": of_recovery(folder)}
    log = figures["log"]
    goals = {
        f"appends with {sync.value}, times those of SQLite with synchronous={peer}, at least": (
            LEAST[sync],
            log[sync.value]["times_sqlite"] >= LEAST[sync],
        )
        for sync, peer in PEERS.items()
    }
    goals["time to recover, share of SQLite's, at most"] = (2.0, figures["recovery"]["times_sqlite"] <= 2.0)
    return store("durability", figures, goals, ("pyarrow",))


if __name__ == "__main__":
    sys.exit(main())
