"""The ring's compiled form, for kernels that make samples faster than Python can hand them on: functions for `njit` code.

Same layout as `ring`; HEAD is published by a release store and the other side's count read by an acquire load, so the order holds on every
processor that LLVM knows, and LLVM itself may not move a record's words past it. numba is imported by the first call of `compiled()`, never
by this file. A kernel that calls `push` is compiled with it in one piece, so its kept text needs no numba either.

A single push has no branch: where there is no room it stores the slot's own bits again, which only the producer ever writes. With a branch
numba keeps a count of references around every call: 19 ns in place of 1 (measured with numba 0.68).

`words` is the header as uint64, `data` the columns x capacity words. One producer, one consumer, as in `ring`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import RefusedError
from .ring import DROP_NEWEST, HEAD, NEXT_TAIL, REFUSED, TAIL, Ring

_HEAD: Final = np.int64(HEAD)
_TAIL: Final = np.int64(TAIL)
_NEXT_TAIL: Final = np.int64(NEXT_TAIL)
_REFUSED: Final = np.int64(REFUSED)
_ONE: Final = np.uint64(1)


@dataclass(frozen=True, slots=True)
class RingKernels:
    """Functions for compiled code; each may be called from Python as well.

    push(words, data, value) -> 1 when taken, 0 when dropped and counted. push3(words, data, integers, value, series, time) likewise, for
    records of three words; `integers` is data.view(np.int64).
    push_block(words, data, rows) -> how many were taken; the rest is counted. pop_block(words, data, out) -> how many were taken.
    load(words, at) and store(words, at, value): acquire and release.
    """

    load: Callable[..., Any]
    store: Callable[..., Any]
    push: Callable[..., Any]
    push3: Callable[..., Any]
    push_block: Callable[..., Any]
    pop_block: Callable[..., Any]


def arrays(ring: Ring) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """Return `words` and `data` of a ring for the kernels. Raises `RefusedError` for a ring that drops its oldest."""
    if ring.policy != DROP_NEWEST:
        raise RefusedError("unsupported", "compiled code pushes to rings that drop the newest only", "create the ring with DROP_NEWEST")
    return np.frombuffer(ring.words, np.uint64), ring.data


@functools.cache
def compiled() -> RingKernels:
    """Return the kernels; compiles nothing yet, but loads numba."""
    import numba  # noqa: PLC0415  # 0.3 s and 115 MiB: only for who compiles

    load, store = _atomics()
    jit = numba.njit(nogil=True)

    @jit
    def push(words, data, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        head = words[_HEAD]
        taken = np.uint64(head - load(words, _TAIL) < np.uint64(data.shape[1]))
        slot = head & np.uint64(data.shape[1] - 1)
        data[0, slot] = value if taken else data[0, slot]
        store(words, _HEAD, head + taken)
        store(words, _REFUSED, words[_REFUSED] + (_ONE - taken))
        return np.int64(taken)

    @jit
    def push3(words, data, integers, value, series, time):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        head = words[_HEAD]
        taken = np.uint64(head - load(words, _TAIL) < np.uint64(data.shape[1]))
        slot = head & np.uint64(data.shape[1] - 1)
        data[0, slot] = value if taken else data[0, slot]
        keep = np.int64(taken)
        integers[1, slot] += (np.int64(series) - integers[1, slot]) * keep  # modulo 2^64: all of the new bits, or none
        integers[2, slot] += (np.int64(time) - integers[2, slot]) * keep
        store(words, _HEAD, head + taken)
        store(words, _REFUSED, words[_REFUSED] + (_ONE - taken))
        return np.int64(taken)

    @jit
    def push_block(words, data, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        head = words[_HEAD]
        capacity = data.shape[1]
        free = capacity - np.int64(head - load(words, _TAIL))
        count = min(rows.shape[1], free)
        at = np.int64(head & np.uint64(capacity - 1))
        first = min(count, capacity - at)
        for column in range(rows.shape[0]):
            for index in range(first):
                data[column, at + index] = rows[column, index]
            for index in range(first, count):
                data[column, index - first] = rows[column, index]
        store(words, _HEAD, head + np.uint64(count))
        if count < rows.shape[1]:
            store(words, _REFUSED, words[_REFUSED] + np.uint64(rows.shape[1] - count))
        return count

    @jit
    def pop_block(words, data, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        tail = words[_TAIL]
        capacity = data.shape[1]
        count = min(out.shape[1], np.int64(load(words, _HEAD) - tail))
        at = np.int64(tail & np.uint64(capacity - 1))
        first = min(count, capacity - at)
        for column in range(out.shape[0]):
            for index in range(first):
                out[column, index] = data[column, at + index]
            for index in range(first, count):
                out[column, index] = data[column, index - first]
        words[_NEXT_TAIL] = tail + np.uint64(count)
        store(words, _TAIL, tail + np.uint64(count))
        return count

    return RingKernels(load, store, push, push3, push_block, pop_block)


def _atomics() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (load with acquire, store with release) of a word of a one-dimensional uint64 array."""
    from numba.core import cgutils, types  # noqa: PLC0415
    from numba.extending import intrinsic  # noqa: PLC0415

    def pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return cgutils.get_item_pointer(context, builder, signature.args[0], array, [args[1]])

    @intrinsic  # type: ignore[untyped-decorator]  # numba has no types
    def load(_typing: Any, words: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load_atomic(pointer(context, builder, signature, args), "acquire", 8)

        return types.uint64(words, at), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def store(_typing: Any, words: Any, at: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store_atomic(args[2], pointer(context, builder, signature, args), "release", 8)
            return context.get_dummy_value()

        return types.void(words, at, types.uint64), generate

    return load, store
