"""The ring against a model: a bounded deque, under pushes and drains of all forms, interpreted and compiled, and sides that come and go."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.metrics import ring_kernels
from actors.metrics.ring import DROP_NEWEST, DROP_OLDEST, Block, Consumer, Producer, Ring

sizes = st.integers(0, 20)


class RingModel(RuleBasedStateMachine):
    """Records are numbered; the model holds the numbers that wait."""

    @initialize(power=st.integers(0, 4), columns=st.integers(1, 3), policy=st.sampled_from([DROP_NEWEST, DROP_OLDEST]))
    def begin(self, power: int, columns: int, policy: int) -> None:
        self.opened = [Ring.create(1 << power, columns, policy)]
        self.ring = self.opened[0]
        self.newest = policy == DROP_NEWEST
        self.producer, self.consumer = Producer(self.open()), Consumer(self.ring)
        self.waiting: deque[int] = deque()
        self.offered = self.taken = self.dropped = 0

    def open(self) -> Ring:
        self.opened.append(Ring.open(self.ring.path))
        return self.opened[-1]

    def teardown(self) -> None:
        for ring in getattr(self, "opened", ()):
            ring.close()

    def rows(self, count: int) -> Block:
        numbers = np.arange(self.offered, self.offered + count, dtype=np.float64)
        return np.array([numbers * (column + 1) for column in range(self.ring.columns)]).reshape(self.ring.columns, count)

    def model_push(self, count: int) -> int:
        """Push to the model; return how many it takes."""
        numbers = range(self.offered, self.offered + count)
        self.offered += count
        room = self.ring.capacity - len(self.waiting)
        taken = min(count, room) if self.newest else count
        self.waiting.extend(numbers[:taken])
        over = max(0, len(self.waiting) - self.ring.capacity)
        for _ in range(over):
            self.waiting.popleft()
        self.dropped += count - taken + over
        return taken

    def model_drain(self, count: int) -> list[int]:
        got = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self.taken += len(got)
        return got

    def same(self, block: Block, want: list[int]) -> None:
        assert block.tolist() == [[float(number * (column + 1)) for number in want] for column in range(self.ring.columns)]

    @rule(count=sizes)
    def push_many(self, count: int) -> None:
        rows = self.rows(count)
        assert self.producer.push_many(rows) == self.model_push(count)

    @precondition(lambda self: self.ring.columns == 1)
    @rule()
    def push(self) -> None:
        value = float(self.offered)
        assert self.producer.push(value) == bool(self.model_push(1))

    @precondition(lambda self: self.newest)
    @rule(count=sizes)
    def push_compiled(self, count: int) -> None:
        rows = self.rows(count)
        assert ring_kernels.compiled().push_block(*ring_kernels.arrays(self.ring), rows) == self.model_push(count)

    @rule(limit=st.none() | sizes)
    def drain(self, limit: int | None) -> None:
        self.same(self.consumer.drain(limit), self.model_drain(self.ring.capacity if limit is None else limit))

    @precondition(lambda self: self.newest)
    @rule(count=sizes)
    def drain_compiled(self, count: int) -> None:
        out = np.empty((self.ring.columns, count))
        got = ring_kernels.compiled().pop_block(*ring_kernels.arrays(self.ring), out)
        self.same(out[:, :got], self.model_drain(count))

    @rule()
    def another_producer(self) -> None:
        self.producer.close()
        self.producer = Producer(self.open())

    @rule()
    def another_consumer(self) -> None:
        self.consumer.close()
        self.consumer = Consumer(self.open())

    @invariant()
    def the_counts_are_exact(self) -> None:
        state = self.ring.state()
        assert (state.offered, state.taken, state.dropped, state.buffered) == (self.offered, self.taken, self.dropped, len(self.waiting))


RingModel.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestRing = RingModel.TestCase
