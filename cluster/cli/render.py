"""Shows a run while it goes on: a live table on a terminal, a line every few seconds elsewhere. Always on standard error.

A renderer is told events and draws; it decides nothing and reads no clock.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from ..words import amount
from .output import say

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S: Final = 5.0
_ROWS: Final = 24
_EVENTS: Final = 5


class Renderer(Protocol):
    """Draws what happens."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        ...

    def __enter__(self) -> Self:
        """Start drawing."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop drawing and leave the terminal as it was."""
        ...


def make_renderer() -> Renderer:
    """Return the live form on a terminal and the plain form elsewhere."""
    return LiveRenderer() if sys.stderr.isatty() else PlainRenderer()


def plan_lines(event: Mapping[str, Any]) -> list[str]:
    """Return what is said before load starts: targets, peak load, end, and how to stop."""
    targets = [str(name) for name in event.get("targets") or ()]
    shown = ", ".join(targets[:12]) + (f" and {len(targets) - 12} more" if len(targets) > 12 else "")
    lines = [f"targets    {shown}"]
    if event.get("peak"):
        lines.append(f"peak load  {peak_words(event['peak'])}")
    lines += [f"machine    {', '.join(group)} share one machine and one set of limits" for group in event.get("shared") or ()]
    lines += [f"drift      {one}" for one in event.get("drift") or ()]
    if event.get("duration_s") is not None:
        lines.append(f"ends       {float(event['duration_s']):.0f} s after the load starts")
    return [*lines, "to stop    Ctrl-C here, `stress-cluster stop` elsewhere, `stress-cluster halt` in an emergency"]


def peak_words(peak: Mapping[str, Any]) -> str:
    """Return amounts as words: {"cpu_cores": 1.2, "memory_bytes": 2**30} is "1.2 cores, memory 1.0 GiB"."""
    told = []
    for name, value in peak.items():
        if not isinstance(value, (int, float)) or not value:
            continue
        if name.endswith("_cores"):
            told.append(f"{value:.2f} cores")
        elif name.endswith("_bytes"):
            told.append(f"{name.removesuffix('_bytes')} {amount(value, 'bytes')}")
        elif name.endswith("_fraction"):
            told.append(f"{name.removesuffix('_fraction')} {amount(value, 'fraction')}")
        else:
            told.append(f"{name} {value:g}")
    return ", ".join(told) or "none"


def event_line(event: Mapping[str, Any]) -> str:
    """Return one event of the run as a line."""
    node = f"{event['node']}: " if event.get("node") else ""
    return f"{event.get('severity', 'info')}: {node}{event.get('message') or event.get('kind', '')}"


def summary_line(event: Mapping[str, Any]) -> str:
    """Return a progress event as one line: time, and per simulator the means over its nodes."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in event.get("operations") or ():
        kind = str(one.get("operation", "")).partition("@")[0].rpartition(".")[2]
        groups.setdefault((kind, str(one.get("unit", ""))), []).append(one)
    told = [
        f"{kind} asked {_mean(group, 'requested', unit)} achieved {_mean(group, 'achieved', unit)}"
        for (kind, unit), group in groups.items()
    ]
    worst = [f"{one['node']} {verdict_word(one)}" for one in event.get("nodes") or () if verdict_word(one) not in FINE]
    time = f"{float(event.get('elapsed_s') or 0):.0f} of {float(event.get('duration_s') or 0):.0f} s"
    return "  ".join([time, *told, *worst])


VERDICTS: Final = ("ok", "hold", "shed", "abort")
FINE: Final = frozenset({"", "ok"})


def verdict_word(node: Mapping[str, Any]) -> str:
    """Return a node's verdict in words: `lost` before all, nothing before the first snapshot."""
    level = node.get("verdict")
    return "lost" if node.get("lost") else "" if level is None else VERDICTS[int(level)]


def _mean(group: Sequence[Mapping[str, Any]], key: str, unit: str) -> str:
    values = [float(one[key]) for one in group if one.get(key) is not None]
    return amount(sum(values) / len(values), unit) if values else "-"


class PlainRenderer:
    """Writes lines: every phase and event, progress each five seconds of the run."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __enter__(self) -> Self:
        """Need nothing."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave nothing."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Write the event when it is worth a line."""
        for line in self.lines(event):
            say(line)

    def lines(self, event: Mapping[str, Any]) -> list[str]:
        """Return the lines of an event."""
        match event.get("type"):
            case "ray":
                return [f"Ray is up after {float(event.get('seconds') or 0):.1f} s at {event.get('address', '')}"]
            case "plan":
                return plan_lines(event)
            case "phase":
                return [str(event.get("phase"))]
            case "event":
                return [event_line(event)]
            case "progress" if float(event.get("elapsed_s") or 0) >= self._next_s:
                self._next_s = float(event.get("elapsed_s") or 0) + LINE_EVERY_S
                return [summary_line(event)]
        return []


class LiveRenderer:
    """Redraws a table of operations and nodes; phases and events scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  # only where a run is watched on a terminal
        from rich.live import Live  # noqa: PLC0415

        self._live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self._phase = ""
        self._events: list[str] = []

    def __enter__(self) -> Self:
        """Take the terminal's last lines."""
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give them back."""
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._live.__exit__(kind, error, trace)

    def show(self, event: Mapping[str, Any]) -> None:
        """Draw the event."""
        from rich.text import Text  # noqa: PLC0415  # as above

        if event.get("type") == "progress":
            self._live.update(progress_table(event, self._phase), refresh=True)
            return
        if event.get("type") == "phase":
            self._phase = str(event.get("phase"))
        for line in PlainRenderer().lines(event):
            self._live.console.print(Text(line, style=_STYLES.get(str(event.get("severity")), "")))


_STYLES: Final = {"error": "bold red", "warning": "yellow"}


def progress_table(event: Mapping[str, Any], phase: str) -> RenderableType:
    """Return the live view of a progress event."""
    from rich.console import Group  # noqa: PLC0415  # as above
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    elapsed_s, duration_s = float(event.get("elapsed_s") or 0), float(event.get("duration_s") or 0)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(phase or "running", style="bold"),
        Text(f"{elapsed_s:.0f} of {duration_s:.0f} s"),
        ProgressBar(max(duration_s, 1e-9), min(elapsed_s, duration_s), width=40),
    )
    doses = Table("operation", "node", "asked", "achieved", "", box=None, header_style="dim")
    for one in _first(event.get("operations") or ()):
        doses.add_row(*(Text(cell) for cell in _dose_cells(one)))
    nodes = Table("node", "cpu", "memory free", "verdict", "ceiling", box=None, header_style="dim")
    for one in _first(event.get("nodes") or ()):
        style = "" if verdict_word(one) in FINE else "bold yellow"
        nodes.add_row(*(Text(cell, style=style) for cell in _node_cells(one)))
    return Group(head, doses, nodes)


def _first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list(rows)[:_ROWS]


def _dose_cells(one: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    unit, asked, got = str(one.get("unit", "")), one.get("requested"), one.get("achieved")
    share = min(1.0, float(got) / float(asked)) if asked and got is not None else 0.0
    told = [amount(float(value), unit) if value is not None else "-" for value in (asked, got)]
    bar = "silent" if one.get("health") == "silent" else "█" * round(share * 16)
    return str(one.get("operation", "")).partition("@")[0], str(one.get("node", "")), told[0], told[1], bar


def _node_cells(one: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    units = {"cpu": "fraction", "memory_available_bytes": "bytes", "ceiling": "fraction"}
    told = [amount(float(one[key]), unit) if one.get(key) is not None else "-" for key, unit in units.items()]
    return str(one.get("node", "")), told[0], told[1], verdict_word(one), told[2]
