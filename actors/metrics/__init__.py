"""Recording where a sample is born: the catalogue, handles, histograms, and the shared memory they are read from.

Needs numpy and the standard library. Nothing here opens a file of the run, talks to Ray, or compiles code.
"""

from __future__ import annotations

from .handle import Recorder
from .histogram import Histogram
from .registry import CATALOGUE, Kind, Metric, find
from .segment import Segment

__all__ = ["CATALOGUE", "Histogram", "Kind", "Metric", "Recorder", "Segment", "find"]
