"""Two processes of one machine's metric path, for tests and a benchmark: an agent's metrics, and the aggregator with an exporter.

Each is a Python of its own. They talk over a socket as agents and aggregators do by calls of actors, and what goes over it is counted.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from cluster.exporters.context import COLUMNS
from tests.support.killing import ROOT

RUN: Final = "20260101-120000-small-1a2b"
NODE: Final = "n1"
ROWS: Final = 2_500  # of a window
LONG: Final = "x" * 100  # each row takes 360 bytes in memory
OUTBOX_BYTES: Final = 256 << 20


# the agent's process


class Worker:
    """The metrics of a node's agent, without loads and a guardian."""

    def __init__(self, state_dir: Path, socket: str) -> None:
        from actors.clock import SystemClock  # each process imports its own
        from actors.metrics.policy import RecordingPolicy
        from cluster.node_metrics import NodeMetrics

        guardian: Any = SimpleNamespace(control=None, stats=SimpleNamespace(read=lambda _: SimpleNamespace(pid=0, state=0)), hello={})
        self._clock = SystemClock()
        self._metrics = NodeMetrics(NODE, 7, state_dir, guardian, self._clock, OUTBOX_BYTES)
        self._metrics.begin(RUN, RecordingPolicy())
        self._stream: Any = self._metrics._streams[RUN]
        self._to: Connection = Client(socket, "AF_UNIX")
        self.sent = 0

    def seal(self, size: int) -> dict[str, int]:
        """Record and seal windows until this many bytes more wait, one at least; return how many rows and bytes they are."""
        before = self._stream.unacked_bytes
        return self._seal(lambda _: self._stream.unacked_bytes >= before + size)

    def windows(self, count: int) -> dict[str, int]:
        """Record and seal this many windows."""
        return self._seal(lambda rows: rows >= count * ROWS)

    def _seal(self, is_enough: Callable[[int], bool]) -> dict[str, int]:
        before, rows = self._stream.unacked_bytes, 0
        while rows == 0 or not is_enough(rows):
            for worker in range(ROWS):
                self._stream.observe("host.cpu.busy", (worker + rows) / 7, f"load-{worker}-{LONG}", f"phase-{LONG}")
            assert self._stream.close_window(self._clock.wall_ns())
            rows += ROWS
        return {"rows": rows, "bytes": self._stream.unacked_bytes - before}

    def deliver(self, _: int) -> dict[str, int]:
        """Push what waits; return how many bytes went to the other process for it."""
        before = self.sent
        self._metrics.deliver(RUN, self._push)
        return {"sent": self.sent - before, "left": self._stream.unacked_bytes}

    def far(self, _: int) -> dict[str, int]:
        """Take the aggregator for one on another machine from now on."""
        self._stream.set_near(is_near=False)
        return {}

    def _push(self, run: str, node: str, incarnation: str, records: Any, timeout_s: float) -> int:
        data = pickle.dumps((node, incarnation, list(records)))
        self.sent += len(data)
        self._to.send_bytes(data)
        held: int = self._to.recv()
        return held


def work(state_dir: str, socket: str) -> None:
    """Be the agent, and do what each line says."""
    worker = Worker(Path(state_dir), socket)
    _answer({"seal": worker.seal, "windows": worker.windows, "deliver": worker.deliver, "far": worker.far})


# the aggregator's process


def mapped_boxes() -> list[tuple[int, int]]:
    """Return where this process has mapped an outbox, removed or not, as (begin, end) of its addresses; from the kernel's list."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"/outbox/{RUN}/" in line:
            begin, _, end = line.split()[0].partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


class Watched:
    """A real exporter, and where the rows of the agent lie that it is given, but for the names of run and scenario before them."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.rows = self.bytes = self.mapped_bytes = self.owned_bytes = 0
        for name in ("open", "flush", "close", "health"):
            setattr(self, name, getattr(exporter, name))

    def write(self, batch: Any) -> None:
        """Take rows."""
        if batch.column("node")[0].as_py() == NODE:
            places = mapped_boxes()
            columns = batch.columns[len(COLUMNS) :]
            for buffer in (buffer for column in columns for buffer in column.buffers() if buffer is not None):
                inside = any(begin <= buffer.address and buffer.address + buffer.size <= end for begin, end in places)
                self.mapped_bytes += buffer.size * inside
                self.owned_bytes += buffer.size * (buffer.parent is None)
                self.bytes += buffer.size
            self.rows += batch.num_rows
        self._exporter.write(batch)


def serve(state_dir: str, socket: str) -> None:
    """Be the aggregator of the run, with one Arrow file that it exports to, until the agent hangs up."""
    os.environ["STRESS_CLUSTER_STATE_DIR"] = state_dir
    from cluster import run_exports
    from cluster.aggregator_shell import AggregatorShell
    from cluster.lean import leave_out

    leave_out()
    made: list[Watched] = []
    make = run_exports.kinds.make

    def watched(*arguments: Any) -> Any:
        made.append(Watched(make(*arguments)))
        return made[-1]

    run_exports.RunExports.__init__.__kwdefaults__["make"] = watched
    shell = AggregatorShell(RUN, lambda: None)
    exporters = {"destinations": [{"type": "arrow", "path": "out.arrow", "batch_rows": ROWS, "queue_rows": 10**7, "queue_size": "200MiB"}]}
    scenario = {"version": 1, "name": "small", "plan": {"CpuLoad": {"fraction": 0.1}, "for": 5}, "exporters": exporters}
    shell.begin({"run": RUN, "scenario": scenario}, b"{}", "127.0.0.1", None)

    def tell(_: int) -> dict[str, int]:
        one, about = made[0], shell.exporters()[0]
        return {
            "rows": one.rows,
            "bytes": one.bytes,
            "mapped": one.mapped_bytes,
            "owned": one.owned_bytes,
            "waiting": about["queued_bytes"],
            "dropped": sum(about["dropped_rows"].values()),
        }

    def pause(_: int) -> dict[str, int]:
        return {"paused": shell.exporters(pause=["arrow"])[0]["paused"]}

    def resume(_: int) -> dict[str, int]:
        return {"paused": shell.exporters(resume=["arrow"])[0]["paused"]}

    with Listener(socket, "AF_UNIX") as listener:
        threading.Thread(target=_answer, args=({"tell": tell, "pause": pause, "resume": resume},), daemon=True).start()
        with listener.accept() as worker:
            try:
                while True:
                    worker.send(shell.push(*pickle.loads(worker.recv_bytes())))
            except EOFError:
                os._exit(0)


def _answer(words: dict[str, Any]) -> None:
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            word, _, number = line.strip().partition(" ")
            print(json.dumps(words[word](int(number or 0))), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # who asked must not wait for an answer


# the two, from outside


class Process:
    """One of the two, as a test sees it."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-c", f"import sys; from tests.support import near; near.{code}(*sys.argv[1:])", *map(str, arguments)]
        self._child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        self._read()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._child.pid

    def ask(self, line: str) -> dict[str, int]:
        """Say a line and return the answer."""
        print(line, file=self._to, flush=True)
        found: dict[str, int] = json.loads(self._read())
        return found

    def _read(self) -> str:
        line = self._from.readline()
        assert line, f"it has ended with {self._child.wait(10)}"
        return line

    def memory(self) -> dict[str, int]:
        """Return what the kernel says of its memory, in bytes: resident, its most (`VmHWM`), and of that `RssAnon` and `RssFile`."""
        lines = Path(f"/proc/{self._child.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}

    def forget_most(self) -> None:
        """Let `VmHWM` begin anew."""
        Path(f"/proc/{self._child.pid}/clear_refs").write_text("5")

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._to.close()
        self._from.close()
        self._child.wait(10)


@contextmanager
def two_processes(state_dir: Path) -> Iterator[tuple[Process, Process]]:
    """Run agent and aggregator, joined."""
    socket = state_dir.parent / "push"
    aggregator = Process("serve", state_dir, socket)
    try:
        worker = Process("work", state_dir, socket)
        try:
            yield worker, aggregator
        finally:
            worker.close()
    finally:
        aggregator.close()
