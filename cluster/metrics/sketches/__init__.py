"""Sketches of distributions and items, and the accumulators that are made of them; kinds of one's own come in as plug-ins.

Numpy and the standard library. Nothing here opens a file, reads a clock, or talks to Ray.
"""

from __future__ import annotations

from .accumulator import Accumulator, AccumulatorRecord, Answer, Batch, Bound, Figure, unpack
from .distinct import Distinct
from .moments import Moments
from .registry import Accumulators
from .tdigest import TDigest
from .top import Top

__all__ = [
    "Accumulator",
    "AccumulatorRecord",
    "Accumulators",
    "Answer",
    "Batch",
    "Bound",
    "Distinct",
    "Figure",
    "Moments",
    "TDigest",
    "Top",
    "unpack",
]
