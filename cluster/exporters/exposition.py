"""The two text forms of Prometheus: 0.0.4 and OpenMetrics 1.0, as the Prometheus client for Python writes them, byte for byte.

A family gives its header and, for each series, what stands before the numbers of its lines; `numbers` gives the numbers. What does
not change between two scrapes is thereby made once. Pure.

In OpenMetrics a counter's family has no `_total`, the unit has a line of its own, `_created` follows where it is known, exemplars
are told, and `# EOF` ends the page. In 0.0.4 there is none of these. A histogram with negative bounds has no `_count` and `_sum` in either.

Sources: prometheus.io, "Exposition formats"; OpenMetrics 1.0.0; prometheus_client 0.26 `exposition` and `openmetrics.exposition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prometheus_client.utils import floatToGoString

from actors.metrics.registry import Kind

from ..metrics.live import Exemplar

EXEMPLAR_CHARACTERS: Final = 128  # names and values of an exemplar's labels together, as OpenMetrics has it
END: Final = b"# EOF\n"


class Form(StrEnum):
    """A text form, by its content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `name` has its unit and no `_total`; `bounds` are a histogram's upper bounds in ascending order, +Inf left out."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def has_sum(self) -> bool:
        """Tell whether a histogram has `_count` and `_sum`: with negative bounds the sum may fall, and is no counter."""
        return not self.bounds or self.bounds[0] >= 0

    def header(self, form: Form) -> str:
        """Return the HELP, TYPE and, in OpenMetrics, UNIT lines."""
        told = self.help.replace("\\", r"\\").replace("\n", r"\n")
        if form is Form.TEXT:
            name = f"{self.name}_total" if self.kind is Kind.COUNTER else self.name
            return f"# HELP {name} {told}\n# TYPE {name} {self.kind}\n"
        told = told.replace('"', r"\"")
        unit = f"# UNIT {self.name} {self.unit}\n" if self.unit else ""
        return f"# HELP {self.name} {told}\n# TYPE {self.name} {self.kind}\n{unit}"

    def starts(self, values: Sequence[str], *, created: bool = False) -> list[str]:
        """Return what stands before the number of each line of a series.

        `values` belong to `labels`. A histogram has its buckets, +Inf, and count and sum if it `has_sum`; counters and histograms
        end with their time of creation if `created`.
        """
        pairs = sorted(zip(self.labels, map(escaped, values), strict=True))
        labels = _braced([f'{name}="{value}"' for name, value in pairs])
        end = [f"{self.name}_created{labels} "] if created and self.kind is not Kind.GAUGE else []
        if self.kind is Kind.GAUGE:
            return [f"{self.name}{labels} "]
        if self.kind is Kind.COUNTER:
            return [f"{self.name}_total{labels} ", *end]
        before = [f'{name}="{value}"' for name, value in pairs if name < "le"]
        after = [f'{name}="{value}"' for name, value in pairs if name >= "le"]
        edges = [*map(floatToGoString, self.bounds), "+Inf"]
        buckets = (_braced([*before, f'le="{edge}"', *after]) for edge in edges)
        lines = [f"{self.name}_bucket{bucket} " for bucket in buckets]
        sums = [f"{self.name}_count{labels} ", f"{self.name}_sum{labels} "] if self.has_sum else []
        return [*lines, *sums, *end]

    def height(self, *, created: bool = False) -> int:
        """Return how many lines `starts` gives."""
        if self.kind is Kind.GAUGE:
            return 1
        own = 1 if self.kind is Kind.COUNTER else len(self.bounds) + 1 + 2 * self.has_sum
        return own + created


def exemplar_text(exemplar: Exemplar, run: str) -> str:
    """Return what follows the number of the line that an exemplar stands for; nothing when its labels are longer than the form allows."""
    labels = dict((("run", run), *exemplar.labels))
    if sum(len(name) + len(value) for name, value in labels.items()) > EXEMPLAR_CHARACTERS:
        return ""
    told = ",".join(f'{name}="{escaped(value)}"' for name, value in sorted(labels.items()))
    return f" # {{{told}}} {floatToGoString(exemplar.value)}" + ("" if exemplar.time_s is None else f" {exemplar.time_s}")


def escaped(value: str) -> str:
    """Return a label's value as it stands between quotes. What is no Unicode is written as its escape."""
    told = value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    return told.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _braced(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""
