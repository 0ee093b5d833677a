"""The ring between real processes: a checksum over more than 10^6 records, sides that are stopped, and producers killed in mid-write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from actors.metrics.ring import DROP_NEWEST, DROP_OLDEST, HEAD, TAIL, Block, Consumer, Producer, Ring

ROOT = Path(__file__).parents[2]
RECORDS = 1_500_000
LONG = pytest.param(100_000_000, marks=pytest.mark.soak, id="a-hundred-million")

RECORD = """
import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)

def records(first, count):
    '''Records of three words: the number, a hash of it, and both combined; every word tells whether it belongs to its number.'''
    number = np.arange(first, first + count, dtype=np.uint64)
    mixed = (number ^ (number >> np.uint64(7))) * MIX
    return np.stack([number, mixed, number ^ mixed]).view(np.float64)
"""
space: dict[str, object] = {}
exec(RECORD, space)
records = space["records"]

PRODUCER = (
    RECORD
    + """
import random, sys
from actors.metrics.ring import Producer, Ring

producer, chance, at = Producer(Ring.open(sys.argv[1])), random.Random(int(sys.argv[3])), 0
while at < int(sys.argv[2]):
    count = min(chance.choice((1, 7, 64, 500, 3000)), int(sys.argv[2]) - at)
    producer.push_many(records(at, count))
    at += count
producer.close()
"""
)

CONSUMER = """
import sys
import numpy as np
from actors.metrics.ring import Consumer, Ring

ring = Ring.open(sys.argv[1])
consumer, total, count = Consumer(ring), 0.0, 0
while True:
    closed = consumer.closed
    block = consumer.drain()
    total, count = total + float(block.sum()), count + block.shape[1]
    if block.size:
        print(count, flush=True)
    elif closed:
        print("end", count, total, flush=True)
        break
"""

KILLS = (
    RECORD
    + """
import json, os, random, signal, sys
from actors.metrics.ring import HEAD, Consumer, Producer, Ring

policy, chance = int(sys.argv[1]), random.Random(int(sys.argv[2]))
ring = Ring.create(256, 3, policy)
consumer, seen, lives = Consumer(ring), [], 0
for life in range(int(sys.argv[3])):
    before = ring.words[HEAD]
    pid = os.fork()
    if not pid:
        producer, at = Producer(Ring.open(ring.path)), (life + 1) << 32
        while True:
            producer.push_many(records(at, 50))
            at += 50
    while ring.words[HEAD] - before < chance.randint(1, 2000):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the producer died"
        if chance.random() < 0.5:
            seen.append(consumer.drain().copy())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not consumer.has_producer()
    seen.append(consumer.drain().copy())
    lives += 1
got = np.concatenate(seen, axis=1).view(np.uint64)
number = got[0]
want = records(0, 1)
mixed = (number ^ (number >> np.uint64(7))) * MIX
state = ring.state()
print(json.dumps({
    "lives": lives,
    "origins": int(np.unique(number >> np.uint64(32)).size),
    "torn": int(np.count_nonzero((got[1] != mixed) | (got[2] != (number ^ mixed)))),
    "disorder": int(np.count_nonzero(np.diff(number.astype(np.int64)) <= 0)),
    "taken": int(number.size),
    "state": [state.offered, state.taken, state.dropped, state.buffered],
}))
"""
)


LONG_BLOCK = (
    RECORD
    + """
import os, signal, sys
import numpy as np
from actors.metrics import ring as ring_module
from actors.metrics.ring import DROP_OLDEST, Consumer, Producer, Ring

ring = Ring.create(64, 3, DROP_OLDEST)
consumer, copy_in = Consumer(ring), ring_module._copy_in

def same(block, want):
    return np.array_equal(block.view(np.uint64), want.view(np.uint64))  # as bits: some are NaN

def die_half_way(data, at, rows):
    copy_in(data, at, rows[:, : rows.shape[1] // 2])
    os.kill(os.getpid(), signal.SIGKILL)

pid = os.fork()
if not pid:
    producer = Producer(Ring.open(ring.path))
    producer.push_many(records(0, 50))
    ring_module._copy_in = die_half_way
    producer.push_many(records(50, int(sys.argv[1])))
_, status = os.waitpid(pid, 0)
assert os.WIFSIGNALED(status), status
whole = min(50, max(0, 64 - int(sys.argv[1])))
assert same(consumer.drain(), records(50 - whole, whole)), "what the block did not reach"
heir = Producer(ring)
for first in range(1000, 1400, 40):
    heir.push_many(records(first, 40))
    block = consumer.drain()
    assert same(block, records(first, 40)), (first, block.shape)
state = ring.state()
assert state.offered == 450 == state.taken + state.dropped, state
"""
)


@contextmanager
def process(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script; end it, stopped or not, when the block ends."""
    command = [sys.executable, "-c", script, *map(str, args)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def stop(pid: int) -> None:
    """Stop a process and return when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


def checked(block: Block, last: int) -> int:
    """Check that all records are whole and newer than `last`; return the newest number."""
    if not block.size:
        return last
    numbers = block.view(np.uint64)[0]
    mixed = (numbers ^ (numbers >> np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15)
    assert (block.view(np.uint64)[1] == mixed).all()
    assert (block.view(np.uint64)[2] == (numbers ^ mixed)).all()
    signed = numbers.astype(np.int64)
    assert signed[0] > last
    assert (np.diff(signed) > 0).all()
    return int(signed[-1])


@pytest.mark.parametrize("offered", [pytest.param(RECORDS, id="a-million"), LONG])
@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST], ids=["newest", "oldest"])
def test_a_million_records_between_two_processes(policy: int, offered: int) -> None:
    """Every record that comes out is whole and in order, and what did not come out is counted to the last one."""
    ring = Ring.create(1 << 14, 3, policy)
    consumer, last, taken = Consumer(ring), -1, 0
    with process(PRODUCER, ring.path, offered, policy) as child:
        while True:
            ended = consumer.closed and ring.words[HEAD] > 0
            assert ended or child.poll() in (None, 0), "the producer died"
            block = consumer.drain()
            last, taken = checked(block, last), taken + block.shape[1]
            if ended and not block.size:
                break
        assert child.wait(60) == 0
    state = ring.state()
    assert (state.offered, state.taken, state.buffered) == (offered, taken, 0)
    assert state.dropped == offered - taken
    assert last == offered - 1 or policy == DROP_NEWEST


def test_a_stopped_consumer_does_not_stop_the_producer() -> None:
    """While the consumer stands still the producer never waits: it fills the ring, is told of each drop, and the count is exact."""
    ring = Ring.create(1024)
    producer = Producer(ring)
    with process(CONSUMER, ring.path) as child:
        producer.push_many(np.ones(1))
        assert child.stdout.readline().strip() == "1"
        stop(child.pid)
        free = ring.capacity - (ring.words[HEAD] - ring.words[TAIL])
        told = [producer.push(1.0) for _ in range(3000)]
        assert sum(told) == free
        assert producer.push_many(np.ones(500)) == 0
        assert (ring.state().dropped, ring.state().buffered) == (3500 - free, 1024)
        os.kill(child.pid, signal.SIGCONT)
        producer.close()
        _, count, total = child.stdout.read().split("\n")[-2].split()
        assert child.wait(60) == 0
    assert (int(count), float(total)) == (1 + free, 1.0 + free)
    assert (ring.state().offered, ring.state().taken) == (3501, 1 + free)


@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST], ids=["newest", "oldest"])
def test_a_stopped_producer_does_not_stop_the_consumer(policy: int) -> None:
    """A producer stopped anywhere, 60 times: what was published is drained whole at once, and a drain that finds nothing returns."""
    ring = Ring.create(1 << 10, 3, policy)
    consumer, last = Consumer(ring), -1
    with process(PRODUCER, ring.path, 1 << 40, 3) as child:
        for _ in range(60):
            begun = ring.words[HEAD]
            while ring.words[HEAD] == begun:
                assert child.poll() is None, "the producer died"
                last = checked(consumer.drain(), last)
            stop(child.pid)
            last = checked(consumer.drain(), last)
            assert consumer.drain().shape == (3, 0)
            state = ring.state()
            assert (state.buffered, state.offered) == (0, state.taken + state.dropped)
            os.kill(child.pid, signal.SIGCONT)


@pytest.mark.parametrize("policy", [DROP_NEWEST, DROP_OLDEST], ids=["newest", "oldest"])
def test_producers_killed_in_mid_write(policy: int) -> None:
    """150 producers in turn are killed with SIGKILL while they push: nothing torn or out of order, counts exact, the side free."""
    command = [sys.executable, "-c", KILLS, str(policy), "7", "150"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    offered, taken, dropped, buffered = found["state"]
    assert (found["lives"], found["origins"], found["torn"], found["disorder"]) == (150, 150, 0, 0)
    assert (found["taken"], buffered, offered) == (taken, 0, taken + dropped)


@pytest.mark.parametrize("block", [10, 40, 64, 1000])
def test_a_producer_that_dies_inside_a_block_costs_its_successor_nothing(block: int) -> None:
    """Also in a block longer than the ring: what it overwrote is dropped and counted, and every record of the next producer is whole."""
    command = [sys.executable, "-c", LONG_BLOCK, str(block)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
