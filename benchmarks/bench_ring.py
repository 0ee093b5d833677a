"""How fast do samples pass between two processes? Through the ring and through a pipe, every sample verified, in the same run.

Run: python benchmarks/bench_ring.py. One process pushes numbered samples in blocks of 4,096, waiting where there is no room; the other
drains them and checks that each is the next one: 10^8 by each form, in four turns, of which the best counts. The pipe carries the same
blocks as bytes, a queue of `multiprocessing` the same arrays. A push inside a compiled loop is what it adds to a loop that makes the
same numbers by chance. Puts into the queues of the standard library stand beside a push from Python.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numba
import numpy as np
from machine import at_least, at_most, store

from actors.metrics import ring_kernels
from actors.metrics.ring import Consumer, Producer, Ring

SAMPLES = 100_000_000
ROUNDS = 4
PAUSE_S = 0.0001
BLOCK = 4096
CALLS = 100_000


def numbered(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float64).reshape(1, -1)


def verified(got: np.ndarray, first: int) -> int:
    """Return how many samples came, after a check that they are the next ones."""
    assert (got == np.arange(first, first + got.size)).all(), f"not the samples from {first} on"
    return got.size


def through_ring(samples: int, *, compiled: bool) -> float:
    """Return millions of verified samples a second through a ring."""
    ring = Ring.create(1 << 18)
    kernels, (words, data) = ring_kernels.compiled(), ring_kernels.arrays(ring)
    kernels.push_block(words, data, numbered(0, 0))
    pid = os.fork()
    if not pid:
        side, at = Ring.open(ring.path), 0
        producer = Producer(side)
        while at < samples:
            block = numbered(at, min(BLOCK, samples - at, side.capacity))
            if side.capacity - side.state().buffered < block.shape[1]:
                time.sleep(PAUSE_S)
            else:
                at += kernels.push_block(words, data, block) if compiled else producer.offer(block)
        os._exit(0)
    consumer, out, count = Consumer(ring), np.empty((1, 1 << 16)), 0
    begun = time.perf_counter()
    while count < samples:
        taken = consumer.drain_into(out)
        if taken:
            count += verified(out[0, :taken], count)
        else:
            time.sleep(PAUSE_S)
    elapsed_s = time.perf_counter() - begun
    assert os.waitpid(pid, 0)[1] == 0
    assert ring.state().dropped == 0
    return round(samples / elapsed_s / 1e6, 1)


def through_pipe(samples: int) -> float:
    """Return millions of verified samples a second through a pipe of the system."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        for at in range(0, samples, BLOCK):
            data = memoryview(numbered(at, min(BLOCK, samples - at)).tobytes())
            while data:
                data = data[os.write(writing, data) :]
        os._exit(0)
    os.close(writing)
    count, left = 0, b""
    begun = time.perf_counter()
    while data := os.read(reading, 1 << 19):
        whole = left + data
        size = len(whole) // 8 * 8
        left = whole[size:]
        count += verified(np.frombuffer(whole[:size]), count)
    elapsed_s = time.perf_counter() - begun
    assert (os.waitpid(pid, 0)[1], count) == (0, samples)
    return round(samples / elapsed_s / 1e6, 1)


def pushes_ns() -> dict[str, float]:
    """Return the time of a push: from Python, by blocks of 4,096, and inside a compiled loop; dropped ones never, as it is drained."""
    ring = Ring.create(1 << 17)
    producer, consumer, kernels = Producer(ring), Consumer(ring), ring_kernels.compiled()
    words, data = ring_kernels.arrays(ring)
    push, block, out = kernels.push, np.ones((1, BLOCK)), np.empty((1, 1 << 17))

    @numba.njit
    def loop(words, data, count):
        state = np.uint64(1)
        for _ in range(count):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            push(words, data, float(state >> np.uint64(11)))

    @numba.njit
    def bare(count):
        state, total = np.uint64(1), 0.0
        for _ in range(count):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            total += float(state >> np.uint64(11))
        return total

    ring3 = Ring.create(1 << 17, 3)
    consumer3, out3, (words3, data3), push3 = Consumer(ring3), np.empty((3, 1 << 17)), ring_kernels.arrays(ring3), kernels.push3

    @numba.njit
    def loop3(words, data, integers, count):
        state = np.uint64(1)
        for index in range(count):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            push3(words, data, integers, float(state >> np.uint64(11)), 7, index)

    bare(1)
    loop(words, data, 1)
    loop3(words3, data3, data3.view(np.int64), 1)
    consumer.drain()
    consumer3.drain()
    found: dict[str, list[float]] = {
        "push_ns": [],
        "push_many_4096_ns": [],
        "push_in_kernel_ns": [],
        "push3_in_kernel_ns": [],
        "loop_without_push_ns": [],
        "drain_ns": [],
    }
    for _ in range(15):
        found["push_ns"].append(timeit.timeit("push(1.0)", globals={"push": producer.push}, number=CALLS) / CALLS)
        found["drain_ns"].append(timeit.timeit(lambda: consumer.drain_into(out), number=1) / CALLS)
        found["push_many_4096_ns"].append(timeit.timeit(lambda: producer.push_many(block), number=24) / 24 / BLOCK)
        consumer.drain_into(out)
        found["push_in_kernel_ns"].append(timeit.timeit(lambda: loop(words, data, CALLS), number=1) / CALLS)
        consumer.drain_into(out)
        found["push3_in_kernel_ns"].append(timeit.timeit(lambda: loop3(words3, data3, data3.view(np.int64), CALLS), number=1) / CALLS)
        consumer3.drain_into(out3)
        found["loop_without_push_ns"].append(timeit.timeit(lambda: bare(CALLS), number=1) / CALLS)
    assert ring3.state().dropped == 0
    assert ring.state().dropped == 0
    return {name: round(min(times) * 1e9, 2) for name, times in found.items()}


def through_queue(samples: int) -> float:
    """Return millions of verified samples a second through a queue of `multiprocessing`."""
    context = multiprocessing.get_context("fork")
    waiting: multiprocessing.Queue[np.ndarray] = context.Queue(64)

    def give() -> None:
        for at in range(0, samples, BLOCK):
            waiting.put(numbered(at, min(BLOCK, samples - at))[0])

    child = context.Process(target=give)
    count, begun = 0, time.perf_counter()
    child.start()
    while count < samples:
        count += verified(waiting.get(), count)
    elapsed_s = time.perf_counter() - begun
    child.join()
    assert child.exitcode == 0
    return round(samples / elapsed_s / 1e6, 1)


def queues_ns() -> dict[str, float]:
    """Return the time of a put into the standard library's queues; they are emptied between rounds."""
    found = {}
    for name, made in (("simple_queue_put_ns", queue.SimpleQueue), ("queue_put_ns", queue.Queue)):
        times = []
        for _ in range(15):
            put = made().put
            times.append(timeit.timeit("put(1.0)", globals={"put": put}, number=CALLS) / CALLS)
        found[name] = round(min(times) * 1e9, 2)
    return found


def main() -> int:
    pushes, queues = pushes_ns(), queues_ns()
    bare_ns = pushes["loop_without_push_ns"]
    added = {name: round(pushes[f"{name}_in_kernel_ns"] - bare_ns, 2) for name in ("push", "push3")}
    part = SAMPLES // ROUNDS
    turns = [(through_ring(part, compiled=False), through_ring(part, compiled=True), through_pipe(part)) for _ in range(ROUNDS)]
    names = ("ring_python_m_per_s", "ring_compiled_m_per_s", "pipe_m_per_s")
    rates = {name: max(found) for name, found in zip(names, zip(*turns, strict=True), strict=True)}
    rates["multiprocessing_queue_m_per_s"] = through_queue(part)
    slower = min(rates["ring_python_m_per_s"], rates["ring_compiled_m_per_s"])
    goals = {
        "times as fast as a pipe, at least": (1.0, slower / rates["pipe_m_per_s"] >= 1.0),
        "times as fast as a queue of multiprocessing, at least": (1.0, slower / rates["multiprocessing_queue_m_per_s"] >= 1.0),
        "Python push, times as fast as queue.Queue's put, at least": (1.0, queues["queue_put_ns"] / pushes["push_ns"] >= 1.0),
    }
    reported = {
        "verified samples through the ring, M/s": at_least(80.0, slower),
        "Python push, ns": at_most(110.0, pushes["push_ns"]),
        "a value inside a compiled loop, ns over the loop's own": at_most(0.3, added["push"]),
        "three columns inside a compiled loop, ns over the loop's own": at_most(1.0, added["push3"]),
    }
    figures = {"samples": SAMPLES, **pushes, "push_added_ns": added["push"], "push3_added_ns": added["push3"], **queues, **rates}
    return store("ring", figures, goals, ("numpy", "numba"), reported=reported)


if __name__ == "__main__":
    sys.exit(main())
