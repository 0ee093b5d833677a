"""How fast do samples pass between two processes? Through the ring and through a pipe, every sample verified, in the same run.

Run: python benchmarks/bench_ring.py. One process pushes numbered samples in blocks of 4,096, waiting where there is no room; the other
drains them and checks that each is the next one: 10^8 by each form, in four turns, of which the best counts. The pipe carries the same
blocks as bytes.
"""

from __future__ import annotations

import os
import sys
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numba
import numpy as np
from machine import store

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
        for index in range(count):
            push(words, data, float(index))

    ring3 = Ring.create(1 << 17, 3)
    consumer3, out3, (words3, data3), push3 = Consumer(ring3), np.empty((3, 1 << 17)), ring_kernels.arrays(ring3), kernels.push3

    @numba.njit
    def loop3(words, data, integers, count):
        for index in range(count):
            push3(words, data, integers, float(index), 7, index)

    loop(words, data, 1)
    loop3(words3, data3, data3.view(np.int64), 1)
    consumer.drain()
    consumer3.drain()
    found: dict[str, list[float]] = {
        "push_ns": [],
        "push_many_4096_ns": [],
        "push_in_kernel_ns": [],
        "push3_in_kernel_ns": [],
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
    assert ring3.state().dropped == 0
    assert ring.state().dropped == 0
    return {name: round(min(times) * 1e9, 2) for name, times in found.items()}


def main() -> int:
    pushes = pushes_ns()
    part = SAMPLES // ROUNDS
    turns = [(through_ring(part, compiled=False), through_ring(part, compiled=True), through_pipe(part)) for _ in range(ROUNDS)]
    names = ("ring_python_m_per_s", "ring_compiled_m_per_s", "pipe_m_per_s")
    rates = {name: max(found) for name, found in zip(names, zip(*turns, strict=True), strict=True)}
    slower = min(rates["ring_python_m_per_s"], rates["ring_compiled_m_per_s"])
    goals = {
        "times as fast as a pipe, at least": (1.0, slower / rates["pipe_m_per_s"] >= 1.0),
        "Python push, ns": (110.0, pushes["push_ns"] <= 110.0),
        "push inside a compiled loop, ns": (3.0, pushes["push_in_kernel_ns"] <= 3.0),
    }
    return store("ring", {"samples": SAMPLES, **pushes, **rates}, goals, ("numpy", "numba"))


if __name__ == "__main__":
    sys.exit(main())
