"""The compiled ring's records are linearizable: histories of two real threads, and checks that find planted faults."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support import histories
from support.histories import History

from actors.metrics import ring_kernels
from actors.metrics.ring import DROP_OLDEST, HEAD, Consumer, Ring

OPERATIONS = 250_000  # of a side in one run
RECORDS = 100_000  # that have to pass
RUNS_MAX = 20


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def allowed_by_trying(history: History, capacity: int) -> bool:
    """Decide by trying every order: the meaning of the check, for short histories."""
    pushes, pops = history.pushed.size, history.popped.size
    for order in set(itertools.permutations("u" * pushes + "o" * pops)):
        i = j = number = 0
        queue: list[int] = []
        for step in order:
            if step == "u":
                if j < history.push_after[i] or history.pushed[i] != (len(queue) < capacity):
                    break
                queue += [number] * int(history.pushed[i])
                number += int(history.pushed[i])
                i += 1
            else:
                if i < history.pop_after[j] or history.popped[j] != (queue[0] if queue else -1):
                    break
                queue = queue[1:]
                j += 1
        else:
            return True
    return False


@pytest.mark.parametrize("records", [RECORDS, pytest.param(10 * RECORDS, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("capacity", "pause"), [(1, (0, 0)), (2, (3, 0)), (4, (0, 3)), (64, (1, 1))])
def test_histories_of_two_threads_are_linearizable(capacity: int, pause: tuple[int, int], records: int) -> None:
    """Of 100,000 records at least each passed at one instant within its time, and no `full` or `empty` was false when asked."""
    found = histories.run_until(records, OPERATIONS, capacity, pause, RUNS_MAX * records // RECORDS)
    for history in found:
        assert histories.impossible(histories.records_of(history), capacity) is None
        assert histories.false_answers(history, capacity) == 0
        got = history.popped[history.popped >= 0]
        assert (got == np.arange(got.size)).all()
        assert 0 <= history.pushed.sum() - got.size <= capacity
    assert sum(map(histories.passed, found)) >= records, "too few records passed to say anything"


def test_the_check_agrees_with_trying_every_order() -> None:
    """Of 4,000 short histories by chance, right and wrong ones, the check allows exactly those for which some order exists."""
    chance = np.random.default_rng(5)
    allowed = 0
    for _ in range(4000):
        pushes, pops, capacity = chance.integers(1, 4), chance.integers(1, 4), int(chance.integers(1, 3))
        popped = chance.integers(-1, 2, pops)
        history = History(
            (chance.random(pushes) < 0.8).astype(np.int64),
            popped.astype(np.int64),
            np.sort(chance.integers(0, pops + 1, pushes)) * (chance.random() < 0.5),
            np.sort(chance.integers(0, pushes + 1, pops)) * (chance.random() < 0.5),
        )
        want = allowed_by_trying(history, capacity)
        assert (histories.impossible(history, capacity) is None) == want, history
        allowed += want
    assert 200 < allowed < 3800


@pytest.mark.parametrize(
    ("part", "at", "value"),
    [("popped", 1, 0), ("popped", 1, 7), ("popped", 0, -1), ("pushed", 3, 1), ("pushed", 0, 0), ("push_after", 1, 2)],
    ids=["twice", "from-nowhere", "empty-though-full", "taken-though-full", "refused-though-empty", "full-after-pops"],
)
def test_planted_faults_are_found(part: str, at: int, value: int) -> None:
    """A record given out twice or from nowhere, a false `empty`, a false `full` and a push into a full ring each break the order."""
    good = History(numbers(1, 1, 0, 0), numbers(0, 1), numbers(0, 0, 0, 0), numbers(4, 4))
    assert histories.impossible(good, 2) is None
    wrong = getattr(good, part).copy()
    wrong[at] = value
    changed = replace(good, **{part: wrong})
    if part == "push_after":
        changed = replace(changed, pushed=numbers(1, 1, 0, 0), push_after=numbers(0, 2, 2, 2))
    assert histories.impossible(changed, 2) is not None
    assert histories.impossible(histories.records_of(changed), 2) is not None or histories.false_answers(changed, 2)


def test_both_sides_may_be_refused_by_the_store_buffer() -> None:
    """A push that is answered `full` and a pop that is answered `empty`, each before it saw the other's last step: records are in order,
    the answers are in none. No ring without fences can promise more, and this one does not."""
    history = History(numbers(1, 1, 0), numbers(0, -1), numbers(0, 0, 0), numbers(1, 1))
    assert histories.impossible(history, 2) is not None
    assert not allowed_by_trying(history, 2)
    assert histories.impossible(histories.records_of(history), 2) is None
    assert histories.false_answers(history, 2) == 0
    for late in (replace(history, push_after=numbers(0, 0, 1)), replace(history, pop_after=numbers(1, 2))):
        assert histories.false_answers(late, 2) == 1


def test_the_order_is_in_the_compiled_code() -> None:
    """HEAD is published by a release store and TAIL read by an acquire load: without them the compiler may move a record past its HEAD."""
    kernels = ring_kernels.compiled()
    words, data = ring_kernels.arrays(Ring.create(8))
    kernels.push(words, data, 1.0)
    kernels.push_block(words, data, np.ones((1, 2)))
    kernels.pop_block(words, data, np.empty((1, 1)))
    triples = Ring.create(8, 3)
    kernels.push3(*ring_kernels.arrays(triples), triples.data.view(np.int64), 1.0, np.int64(2), np.int64(3))
    for kernel in (kernels.push, kernels.push3, kernels.push_block, kernels.pop_block):
        (text,) = kernel.inspect_llvm().values()
        assert "load atomic i64" in text
        assert "acquire, align 8" in text
        assert "store atomic i64" in text
        assert "release, align 8" in text


def test_a_kernel_pushes_samples_of_three_words() -> None:
    """A compiled loop that pushes value, series and time fills the ring that Python drains, and counts what it finds no room for."""
    import numba

    push3 = ring_kernels.compiled().push3

    @numba.njit
    def kernel(words, data, integers, count):
        taken = 0
        for index in range(count):
            taken += push3(words, data, integers, index * 0.5, index, -index)
        return taken

    ring = Ring.create(8, 3)
    assert kernel(*ring_kernels.arrays(ring), ring.data.view(np.int64), 10) == 8
    block = Consumer(ring).drain()
    assert block[0].tolist() == [index * 0.5 for index in range(8)]
    assert block.view(np.int64)[1:].tolist() == [list(range(8)), [-index for index in range(8)]]
    assert (ring.state().dropped, ring.words[HEAD]) == (2, 8)


@pytest.mark.parametrize("old", [0, -(2**63), 2**63 - 1, -1])
@pytest.mark.parametrize("new", [0, -(2**63), 2**63 - 1, 12345])
def test_all_integers_pass_a_compiled_push(old: int, new: int) -> None:
    """Whatever a slot held, the new series and time replace all of its bits, and a refused push changes none."""
    push3 = ring_kernels.compiled().push3
    ring = Ring.create(1, 3)
    words, data = ring_kernels.arrays(ring)
    integers = data.view(np.int64)
    integers[1:] = old
    assert push3(words, data, integers, 1.5, np.int64(new), np.int64(old)) == 1
    assert push3(words, data, integers, float("nan"), np.int64(old), np.int64(7)) == 0
    block = Consumer(ring).drain()
    assert (block[0, 0], block.view(np.int64)[1:, 0].tolist()) == (1.5, [new, old])


def test_a_ring_that_overwrites_has_no_compiled_form() -> None:
    """The kernels know one overflow policy, and refuse the other instead of breaking it."""
    with pytest.raises(Exception, match="drop the newest only") as caught:
        ring_kernels.arrays(Ring.create(8, 1, DROP_OLDEST))
    assert caught.value.code == "unsupported"
