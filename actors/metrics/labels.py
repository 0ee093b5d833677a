"""What the values of labels are: closed sets of words, or names that somebody else gave. A value is never made from an object.

A label that is not closed is bounded by what it names: the probes of a scenario, the exporters of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import CODES
from ..exhaustion.refusal import ERRNOS
from ..heap import SOURCES
from ..kernels.orders import PATTERNS
from ..messages import RESOURCES
from ..ray_loads import mesh_account, service_lane
from ..ray_loads.figures import ANSWERS
from ..ray_loads.flow import FATES
from ..shape import KINDS
from ..simulator import REGISTRY
from .registry import CATALOGUE

OVERFLOW: Final = "__overflow__"  # what more label sets than are kept share

_CODES: Final = {"code": tuple(CODES), "category": tuple(dict.fromkeys(category for category, _ in CODES.values()))}

_LOADS: Final = {"simulator": tuple(REGISTRY), "shape": tuple(KINDS)}

CLOSED: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {  # metric -> label -> words
    "probe.failures": {"reason": ("failed", "timeout", "unanswered", "not_sent")},
    "load.refused": {"errno": ERRNOS},
    "memory.overhead": {"source": SOURCES},
    **{metric: {"pattern": tuple(PATTERNS)} for metric in ("memory.access", "memory.bandwidth", "memory.sequence")},
    "safety.ceiling": {"resource": RESOURCES},
    "metrics.dropped": {"reason": ("invalid", "series_limit", "window_limit", "event_limit", "backlog")},
    "metrics.filtered": {"reason": ("level", "filter")},
    "samples.dropped": {"reason": ("outbox_full", "ring_full")},
    "flood.calls": {"fate": FATES},
    "cascade.calls": {"fate": service_lane.FATES},
    "cascade.requests": {"fate": ANSWERS},
    "mesh.latency": {"path": mesh_account.PATHS},
    "mesh.messages": {"fate": mesh_account.FATES},
    **{f"operation.{fate}": _LOADS for fate in ("started", "completed", "failed")},
    "errors.seen": _CODES,
    "errors.rate": _CODES,
    "export.dropped": {
        "reason": (
            *("oldest", "newest", "sampled", "deadline", "cancelled", "too_large", "rejected"),
            *("spill_full", "spill_broken", "corrupt", "unfinished", "shutdown", "filtered", "late"),
        )
    },
}
NAMES: Final[Mapping[str, str]] = {
    "probe": "a probe of the scenario",
    "core": "the number of a CPU",
    "lock": "one of the first 16 locks of a load",
    "stressor": "a stressor that the node's stress-ng has",
    "service": "one of the at most 32 services of a cascade",
    "exporter": "an exporter of the run",
    "reason": "the class of the error that a destination raised",
    "metric": "a metric of the catalogue",
    "hook": "an anomaly hook of the settings",
}


def strange(series: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Return what is wrong with the labels of these (metric, labels): a label that is not declared, a value out of its closed set."""
    found = []
    for metric, labels in series:
        closed = CLOSED.get(metric, {})
        for name, value in labels.items():
            if name not in CATALOGUE[metric].labels:
                found.append(f"{metric} does not declare {name}")
            elif value not in (*closed.get(name, (value,)), OVERFLOW):
                found.append(f"{metric} has {name}={value!r}, known are {', '.join(closed[name])}")
    return sorted(set(found))
