"""Access patterns: the compiled kernel reads the indexes of its formulas, alike for one seed; beyond the caches random costs more."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from support.observe import machine_memory_bytes, promised

from actors import kernels
from actors.errors import InputError
from actors.kernels.orders import PATTERNS
from actors.memory_access import LINE, WORD, Area, Walk, hash_of, walk_of

MASK = (1 << 64) - 1
MIB = 1 << 20
GIB = 1 << 30


def draws(state: int) -> Iterator[int]:
    """xorshift64* (Vigna 2016) in plain Python."""
    while True:
        state ^= state >> 12
        state ^= state << 25 & MASK
        state ^= state >> 27
        yield state * 2685821657736338717 & MASK


def linked(words: int, state: int) -> list[int]:
    """One cycle of all lines (Sattolo 1986): which line follows each."""
    lines = list(range(words // 8))
    drawn = draws(state)
    for last in range(len(lines) - 1, 0, -1):
        other = (next(drawn) >> 32) * last >> 32
        lines[last], lines[other] = lines[other], lines[last]
    return lines


def indexes(walk: Walk, state: int) -> Iterator[int]:
    """The order of a walk in plain Python."""
    words = walk.words
    if walk.pattern == "sequential":
        at = state
        while True:
            yield at
            at = (at + 1) % words
    if walk.pattern == "strided":
        lane, at = state % walk.stride, state
        while True:
            yield at
            at += walk.stride
            if at >= words:
                lane = (lane + 1) % walk.stride
                at = lane
    if walk.pattern == "pointer_chase":
        following, line = linked(words, Walk("random", words, 1, walk.seed).start(0, 1)), state // 8
        while True:
            line = following[line]
            yield line * 8
    for drawn in draws(state):
        hot = walk.pattern == "hot_spot" and drawn & 0xFFFFFFFF < 3865470566
        yield (drawn >> 32) * (max(words // 10, 1) if hot else words) >> 32


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    return kernels.load_function("walk")


@pytest.fixture
def area(kernel: Callable[..., int]) -> Iterator[Callable[[Walk], Area]]:
    made: list[Area] = []

    def make(walk: Walk) -> Area:
        made.append(Area(walk, kernel))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("words", "stride"), [(16, 8), (1024, 8), (1000 * 8, 24)])
def test_the_kernel_reads_what_the_formulas_say(area: Callable[[Walk], Area], pattern: str, words: int, stride: int) -> None:
    """Word by word, and in slices of any length: state and order go on where the last slice ended."""
    walk = Walk(pattern, words, stride, seed=5)
    one, state = area(walk), walk.start(0, 1)
    want = list(islice(indexes(walk, state), 3000))
    assert one.sequence(1000, state) == want[:1000]
    done = 0
    for rounds in (1, 7, 992, 2000):
        state = one.read(rounds, state)
        part = want[done : done + rounds]
        assert one._words[words] == sum(index * (2 * k + 1) for k, index in enumerate(part)) & MASK
        done += rounds


@pytest.mark.parametrize("pattern", ["sequential", "strided", "pointer_chase"])
def test_an_order_reads_everything_once(area: Callable[[Walk], Area], pattern: str) -> None:
    """Within one way through, each word has its turn; a chase reads each line once before it comes back."""
    walk = Walk(pattern, 4096, 24, seed=9)
    count = 4096 // 8 if pattern == "pointer_chase" else 4096
    found = area(walk).sequence(count, walk.start(0, 1))
    assert len(set(found)) == count


def test_nine_of_ten_reads_are_in_the_hot_tenth(area: Callable[[Walk], Area]) -> None:
    """And the others anywhere; random reads are in the same tenth as often as chance has it."""
    shares = {}
    for pattern in ("hot_spot", "random"):
        walk = Walk(pattern, 80_000, 8, seed=2)
        found = Counter(index < 8_000 for index in area(walk).sequence(5_000, walk.start(0, 1)))
        shares[pattern] = found[True] / 5_000
    assert shares["hot_spot"] == pytest.approx(0.91, abs=0.02)
    assert shares["random"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_seed_is_an_order(area: Callable[[Walk], Area], pattern: str) -> None:
    """The same seed gives the same hash wherever it runs; another one gives another where chance has a part."""
    hashes = []
    for seed in (1, 1, 2):
        walk = Walk(pattern, 8_000, 8, seed)
        hashes.append(hash_of(area(walk).sequence(500, walk.start(0, 2))))
    assert hashes[0] == hashes[1]
    assert (hashes[0] == hashes[2]) == (pattern in ("sequential", "strided"))
    assert float(hashes[0]) == hashes[0]


def test_a_hash_is_of_the_order() -> None:
    """The same indexes in another order have another hash."""
    assert len({hash_of([1, 2, 3]), hash_of([1, 3, 2]), hash_of([12, 3]), hash_of([1, 23])}) == 4


@pytest.mark.parametrize("pattern", PATTERNS)
def test_threads_begin_apart(pattern: str) -> None:
    """Each thread has its own part of the way, or its own chance."""
    walk = Walk(pattern, 8_000, 8, seed=1)
    starts = [walk.start(index, 4) for index in range(4)]
    assert len(set(starts)) == 4
    assert all(start % (LINE // WORD) == 0 and start < 8_000 for start in starts) or min(starts) > 0


@pytest.mark.parametrize(
    ("working_set", "stride", "words"),
    [(64, 64, "working_set"), (2 * GIB, 64, "working_set"), (MIB, 12, "stride"), (MIB, 0, "stride"), (MIB, 2 * MIB, "stride")],
)
def test_what_does_not_fit_is_refused(working_set: int, stride: int, words: str) -> None:
    """At most half of the node's memory, at least two lines, and a stride of whole words within it."""
    assert walk_of("random", 2 * LINE, WORD, 1, GIB).words == 16
    assert walk_of("random", GIB // 2, 64, 1, GIB).words == GIB // 2 // WORD
    with pytest.raises(InputError, match=words):
        walk_of("random", working_set, stride, 1, GIB)


def last_level_bytes() -> int:
    """Return the size of the largest cache, as the kernel tells it; 32 MiB where it does not."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * {"K": 1 << 10, "M": MIB}[size[-1]] for size in sizes if size[-1:] in "KM" and size[:-1]), default=32 * MIB)


@promised
def test_beyond_the_caches_random_reads_cost_three_times_sequential_ones() -> None:
    """In turns in the same process: nanoseconds an access over a working set that the last-level cache does not hold.

    It is twice as large, where that takes no more than 256 MiB; else a quarter larger.
    """
    cache_bytes = last_level_bytes()
    words = max(min(2 * cache_bytes, 256 * MIB), cache_bytes + cache_bytes // 4) // WORD
    assert words * WORD > cache_bytes
    if 4 * words * WORD > (free_bytes := machine_memory_bytes("MemAvailable")):
        pytest.skip(f"three working sets of {words * WORD / MIB:.0f} MiB, and a reserve, do not fit into {free_bytes / MIB:.0f} MiB")
    kernel, costs = kernels.load_function("walk"), {}
    areas = {pattern: Area(Walk(pattern, words, 8, 1), kernel) for pattern in ("sequential", "random", "pointer_chase")}
    states = {pattern: Walk(pattern, words, 8, 1).start(0, 1) for pattern in areas}
    for _ in range(7):
        for pattern, one in areas.items():
            began_ns = time.thread_time_ns()
            states[pattern] = one.read(200_000, states[pattern])
            costs.setdefault(pattern, []).append((time.thread_time_ns() - began_ns) / 200_000)
    for one in areas.values():
        one.close()
    costs_ns = {pattern: statistics.median(taken) for pattern, taken in costs.items()}
    print(costs_ns)
    assert costs_ns["random"] >= 3 * costs_ns["sequential"], costs_ns
    assert costs_ns["pointer_chase"] >= 3 * costs_ns["sequential"], costs_ns
