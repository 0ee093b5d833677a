"""The metric path against a model: agents that die, a network that repeats and reorders, an aggregator that dies at any write.

Death of the aggregator: at a chosen one of its writes, syncs, renames and unlinks an exception takes it away; whatever its process had
not handed to the system is dropped, and of what it had not synced a part chosen by chance is cut off.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from actors.clock import VirtualClock
from actors.errors import HarnessError
from actors.messages import Event
from cluster.metrics import store as store_module
from cluster.metrics.aggregator import Aggregator
from cluster.metrics.samples import read_samples
from cluster.metrics.store import read_run
from cluster.metrics.stream import MetricStream
from cluster.metrics.windows import SAMPLES, seal_samples
from cluster.outbox import Kind, Outbox

RUN = "run"
DEATHS: Counter[str] = Counter()
SETTINGS = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking real files takes minutes
)


troubles = st.tuples(st.sampled_from(["none", "death", "refusal"]), st.integers(0, 6))


class Died(BaseException):
    """The aggregator's process is gone."""


class Disk:
    """Counts down to a death at one of the writer's steps, and remembers how much of each file is synced."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.error: BaseException = Died()
        self.synced: dict[str, int] = {}
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise self.error

    def expect(self, trouble: str, after: int) -> None:
        """Let the step after this many be a death, a refusal, or nothing."""
        self.left = None if trouble == "none" else after
        self.error = Died() if trouble == "death" else OSError(28, "No space left on device")

    def patches(self) -> ExitStack:
        """Let every step of the store pass through here; nothing is really synced, for speed."""
        stack = ExitStack()
        real_write, real_unlink, real_replace = store_module.LogFile.write, Path.unlink, Path.replace

        def fsync(fd: int) -> None:
            self.step()
            self.synced[str(Path(f"/proc/self/fd/{fd}").readlink())] = os.fstat(fd).st_size

        def write(file: Any, *args: Any) -> None:
            real_write(file, *args)
            self.step()

        def unlink(path: Path, *args: Any, **kwargs: Any) -> None:
            self.step()
            real_unlink(path, *args, **kwargs)

        def replace(path: Path, target: Path) -> Path:
            self.step()
            return real_replace(path, target)

        stack.enter_context(mock.patch.object(store_module.os, "fsync", fsync))
        stack.enter_context(mock.patch.object(store_module.LogFile, "write", write))
        stack.enter_context(mock.patch.object(Path, "unlink", unlink))
        stack.enter_context(mock.patch.object(Path, "replace", replace))
        return stack

    def bury(self, dead: Aggregator, chance: random.Random) -> None:
        """Leave of a dead aggregator what a killed process may leave."""
        store = dead._store
        null = os.open(os.devnull, os.O_WRONLY)
        for file in (store._metrics, store._events, dead._samples._file):
            if file is not None and not file._file.closed:
                os.dup2(null, file._file.fileno())  # what its buffer held is not written any more
        os.close(null)
        os.close(store._fd)
        for path in (store.directory / "log").glob("*.arrows"):
            size = path.stat().st_size
            safe = min(self.synced.get(str(path), 0), size)
            os.truncate(path, chance.choice([safe, size, chance.randint(safe, size)]))


class MetricPath(RuleBasedStateMachine):
    """Agents with outboxes on one side, an aggregator on the other; the model is two counters per sealed window."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="metric-path-"))
        self.clock = VirtualClock()
        self.disk = Disk()
        self.sealed: dict[str, tuple[float, int]] = {}  # window -> increase of its counter, events
        self.given: dict[str, int] = {}  # record of single samples -> how many
        self.open_window = [0.0, 0]
        self.acked: dict[str, int] = {}
        self.lives = 0
        self.orphans: list[str] = []

    @initialize(settle_bytes=st.sampled_from([1, 8_000, 1 << 30]), seed=st.integers(0, 2**32))
    def begin(self, settle_bytes: int, seed: int) -> None:
        self.settle_bytes = settle_bytes
        self.chance = random.Random(seed)
        self.aggregator: Aggregator | None = None
        self.new_aggregator()
        self.new_agent()

    def teardown(self) -> None:
        if self.lives:
            self.disk.left = None
            self.deliver_all()
        shutil.rmtree(self.folder)

    # the world

    def path(self, life: str) -> Path:
        return self.folder / "outbox" / RUN / f"n1-{life}.box"

    def new_agent(self) -> None:
        self.lives += 1
        self.life = f"life{self.lives}"
        box = Outbox(self.path(self.life), node="n1", incarnation=self.life, run=RUN)
        self.stream = MetricStream("n1", self.life, RUN, box, self.clock)
        self.open_window = [0.0, 0]
        self.acked[self.life] = 0

    def new_aggregator(self) -> None:
        with self.disk.patches():  # what it syncs before it counts it is synced from then on
            self.aggregator = Aggregator(RUN, self.folder / RUN, self.clock, settle_bytes=self.settle_bytes)

    def guarded(self, call: Any) -> Any:
        """Let the aggregator do something; when it dies doing it, bury it and begin a new one. None when it died or failed."""
        assert self.aggregator is not None
        try:
            with self.disk.patches():
                return call(self.aggregator)
        except Died:
            DEATHS["aggregator"] += 1
            self.disk.bury(self.aggregator, self.chance)
            self.new_aggregator()
            return None
        except HarnessError as error:
            if "No space" not in str(error):
                raise
            DEATHS["refusal"] += 1
            return None

    # what happens

    @rule(
        values=st.lists(st.integers(0, 5), max_size=4),
        events=st.integers(0, 2),
        step_s=st.sampled_from([0.0, 86_400.0, -3.0]),
        times=st.integers(1, 3),
        samples=st.integers(0, 3),
    )
    def windows(self, values: list[int], events: int, step_s: float, times: int, samples: int) -> None:
        """Windows of this many increments, events and single samples, sealed; the wall clock may jump."""
        for _ in range(times):
            if samples:
                self.give(samples)
            self.window(values, events, step_s)

    @property
    def told(self) -> int:
        """Up to which number the agent was told that all is safe: it keeps nothing of that."""
        waiting = self.stream.unacked(1)
        return waiting[0][0] - 1 if waiting else self.stream.outbox.last

    def give(self, samples: int) -> None:
        name = f"{self.life}/{self.stream.outbox.last + 1}"
        plain = {"metric": "load.slice", "unit": "seconds", "node": "n1", "worker": name, "phase": "", "labels": [], "value": 0.5}
        rows = [plain | {"time": dt.datetime.now(dt.UTC), "weight": 1}] * samples
        self.stream.outbox.append(Kind.SAMPLES, seal_samples(pa.RecordBatch.from_pylist(rows, schema=SAMPLES)))
        self.given[name] = samples

    def window(self, values: list[int], events: int, step_s: float) -> None:
        name = f"{self.life}/{self.stream.outbox.last + 1}"
        for value in values:
            self.stream.observe("probe.requests", value, worker=name, labels={"probe": "p"})
        for _ in range(events):
            self.stream.event(Event("k", name))
        self.clock.advance(1.0)
        self.clock.wall_offset_ns += round(step_s * 1e9)
        assert self.stream.close_window(self.clock.wall_ns())
        self.sealed[name] = (float(sum(values)) if values else -1.0, events)

    @rule(size=st.sampled_from([1, 9_000, 1 << 20]), twice=st.booleans(), acked=st.booleans(), shuffled=st.booleans(), trouble=troubles)
    def push(self, size: int, twice: bool, acked: bool, shuffled: bool, trouble: tuple[str, int]) -> None:
        """Some of what waits is sent, perhaps twice or out of order; the answer may be lost on its way."""
        self.disk.expect(*trouble)
        records = self.stream.unacked(size)
        records = records * 2 if twice else records
        if shuffled:
            self.chance.shuffle(records)
        safe = self.told
        answer = self.guarded(lambda one: one.push("n1", self.life, records, safe))
        if answer is not None:
            self.acked[self.life] = max(self.acked[self.life], answer)
            if acked:
                self.stream.ack(answer)

    @rule(drop=st.integers(0, 3))
    def push_with_a_gap(self, drop: int) -> None:
        """The first records of a call are missing."""
        records, safe = self.stream.unacked()[drop:], self.told
        answer = self.guarded(lambda one: one.push("n1", self.life, records, safe))
        if answer is not None:
            self.acked[self.life] = max(self.acked[self.life], answer)

    @rule()
    def agent_dies(self) -> None:
        """The agent goes without naming the end; the next one takes over its outbox."""
        self.stream.outbox.close()
        self.orphans.append(self.life)
        self.new_agent()

    @precondition(lambda self: self.orphans)
    @rule()
    def orphan_is_drained(self) -> None:
        """The next agent delivers what the dead one had sealed."""
        self.drain(self.orphans.pop())

    @rule(trouble=troubles)
    def finish(self, trouble: tuple[str, int]) -> None:
        """The run ends, for now: log to Parquet, documents."""
        self.disk.expect(*trouble)
        self.guarded(lambda one: one.finish({"status": "passed"}, {"status": "passed"}))

    # the end, and what must hold

    def drain(self, life: str) -> None:
        box = Outbox(self.path(life))
        box.seal()
        while records := box.unacked():
            answer = self.guarded(lambda one, records=records: one.push("n1", life, records, records[0][0] - 1))
            if answer is not None:
                assert answer >= records[0][0], "what had been acknowledged is gone, so the rest is refused"
                self.acked[life] = max(self.acked[life], answer)
                box.ack(answer)

    def deliver_all(self) -> None:
        for life in self.orphans:
            self.drain(life)
        self.stream.finish()
        while records := self.stream.unacked():
            assert self.aggregator is not None
            answer = self.aggregator.push("n1", self.life, records, self.told)
            assert answer >= records[0][0], "what had been acknowledged is gone, so the rest is refused"
            self.stream.ack(answer)
        assert self.aggregator is not None
        self.aggregator.finish({"status": "passed"})
        self.check(everything=True)
        assert self.aggregator.outstanding() == []
        want = sum(value for value, _ in self.sealed.values() if value >= 0)
        assert (self.aggregator.evaluate("probe.requests", "sum") or 0.0) == want
        assert not (self.folder / "outbox" / RUN).exists()
        self.aggregator.close()

    @invariant()
    def acknowledged_windows_are_there_once(self) -> None:
        """At any moment a reader finds each acknowledged window exactly once, and no window twice or in part."""
        self.check(everything=False)

    def check(self, *, everything: bool) -> None:
        contents = read_run(self.folder / RUN)
        rows = [row for row in contents.metrics.select(["metric", "worker", "sum"]).to_pylist() if row["metric"] == "probe.requests"]
        assert len({row["worker"] for row in rows}) == len(rows), "a window is there twice"
        found = {row["worker"]: row["sum"] for row in rows}
        told = Counter(contents.events["message"].to_pylist())
        for name, (value, events) in self.sealed.items():
            life, _, number = name.partition("/")
            held = contents.coverage.has(("n1", life), int(number))
            assert held or not (everything or int(number) <= self.acked[life]), f"{name} was acknowledged and is gone"
            assert found.get(name) == (value if held and value >= 0 else None), name
            assert told[name] == (events if held else 0), name
        written = Counter(read_samples(self.folder / RUN)["worker"].to_pylist())
        for name, samples in self.given.items():
            life, _, number = name.partition("/")
            held = contents.coverage.has(("n1", life), int(number))
            assert held or not (everything or int(number) <= self.acked[life]), f"samples of {name} were acknowledged and are gone"
            assert written[name] == (samples if held else 0), name


def test_every_acknowledged_window_exactly_once() -> None:
    """Whatever dies, is repeated, reordered or cut off: acknowledged windows are there once, and in the end all counts are exact."""
    DEATHS.clear()
    run_state_machine_as_test(MetricPath, settings=SETTINGS)
    assert DEATHS["aggregator"] > 10, "the aggregator hardly died: this showed little"
    assert DEATHS["refusal"] > 5, "the disk hardly refused: this showed little"
