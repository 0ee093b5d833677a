"""`status`, `watch`, `stop`, `halt`, `resume`, `recover`, `forget`: short questions and orders to what already runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from actors.clock import Clock, SystemClock

from ..words import amount, sentence
from . import options, ports
from .output import emit, say, table
from .render import event_line, make_renderer, summary_line

WATCH_EVERY_S: Final = 1.0
LEFT: Final = ("remaining", "unclean", "outstanding", "unreached")
ENDED: Final = frozenset({"passed", "failed", "invalid", "error", "safety", "inconclusive", "refused", "timeout", "cancelled", "done"})

Lines = Callable[[Mapping[str, Any]], list[str]]


@contextlib.contextmanager
def connection(address: str | None, config: Path | None) -> Iterator[ports.Connection]:
    """Connect for the length of a command."""
    with ports.linked(address, options.resolve(config)) as link:
        yield link


def status(run: options.Run = None, address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Show what runs where: asked against achieved and how each load does, node by node.

    A load is well, short of or over what is asked in the last second, or silent: it has given no sign of life for 3 s.

    Examples:
      stress-cluster status             every run of this cluster
      stress-cluster status latest      the newest run
    """
    with connection(address, config) as link:
        found = link.status(run)
    emit(found, as_json, status_lines(found))
    return 0


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a status as lines."""
    lines = [line for one in found.get("runs") or () for line in run_lines(one)] or ["nothing runs"]
    if _halt_is_on(found):
        lines.append("an emergency halt is in force: no run starts until `stress-cluster resume`")
    return [*lines, *_charged_lines(found), *_left_lines(found)]


def _charged_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the nodes that hold a place in the count of harmed nodes although no run is live on them."""
    budget = found.get("budget")
    harmed = budget.get("nodes_harmed", ()) if isinstance(budget, Mapping) else ()
    live = {
        node.get("node")
        for one in found.get("runs") or ()
        if str(one.get("status") or one.get("phase")) not in ENDED
        for node in one.get("nodes") or ()
    }
    return [
        f"{node}: still counted as harmed, its own guardian has not confirmed; gone for good: `stress-cluster forget {node}`"
        for node in harmed
        if node not in live
    ]


def run_lines(one: Mapping[str, Any]) -> list[str]:
    """Return one run of a status as lines."""
    state = one.get("status") or one.get("phase") or ""
    doses = [
        ("  " + str(dose.get("operation", "")), _told(dose, "requested"), _told(dose, "achieved"), str(dose.get("health") or "-"))
        for dose in one.get("operations") or ()
        if isinstance(dose, Mapping)
    ]
    head = f"{one.get('run', '')}  {state}" + (f"  {summary_line({**one, 'operations': ()})}" if one.get("duration_s") else "")
    return [head, *table(("  operation", "asked", "achieved", "health"), doses)]


def _told(dose: Mapping[str, Any], key: str) -> str:
    return amount(float(dose[key]), str(dose.get("unit", ""))) if dose.get(key) is not None else "-"


def _halt_is_on(found: Mapping[str, Any]) -> bool:
    halt = found.get("halt")
    return bool(halt.get("on")) if isinstance(halt, Mapping) else bool(halt)


def _left_lines(found: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {sentence(one)}" for name in LEFT for one in found.get(name) or ()]


def watch(
    run: Annotated[str, typer.Argument(help="A run id, or `latest`.")] = "latest",
    address: options.Address = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Follow a run live until it ends. Ctrl-C ends the watching, never the run.

    Example:
      stress-cluster watch latest
    """
    with connection(address, config) as link:
        last = follow_status(link, run, SystemClock())
    emit(last, as_json, status_lines(last))
    return 0


def follow_status(link: ports.Connection, run: str, clock: Clock) -> dict[str, Any]:
    """Ask for the run's status each second, draw it, and return the last answer once no such run goes on."""
    seen: set[str] = set()
    with make_renderer() as renderer:
        while True:
            found = link.status(run)
            going = [one for one in found.get("runs") or () if str(one.get("status") or one.get("phase")) not in ENDED]
            for one in going:
                for event in one.get("events") or ():
                    if event_line(event) not in seen:
                        seen.add(event_line(event))
                        renderer.show({"type": "event", **event})
                renderer.show({"type": "progress", **one})
            if not going:
                return found
            clock.sleep(WATCH_EVERY_S)


def modify(
    run: Annotated[str, typer.Argument(help="A run id, or `latest`.")],
    changes: Annotated[list[str], typer.Argument(metavar="PATH=VALUE...", help="What to change, such as metrics.level=minimal.")],
    address: options.Address = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Change what a run records while it goes on: level, mode, filters, sampling.

    It is in force on every node when the command returns, at the latest from the loads' next drain on (0.1 s); 3 if a node did not
    confirm: it is named. What a hypothesis of the run rests on cannot be left out. The load itself stays as it was planned.

    Examples:
      stress-cluster modify latest metrics.level=minimal
      stress-cluster modify latest metrics.mode=detailed 'metrics.filters=[{leave_out: {metric: "host.*"}}]'
    """
    with connection(address, config) as link:
        found = link.modify(run, changes)
    lines = [f"{found['run']}: {', '.join(found['changed'])}", f"in force on {', '.join(found['nodes']) or 'no node'}", *_left_lines(found)]
    emit(found, as_json, lines)
    return _order_code(found)


def stop(run: options.Run = None, address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Stop a run gracefully and undo what it did; without RUN, every run of the cluster.

    The run's own command ends with 130.

    Examples:
      stress-cluster stop
      stress-cluster stop 20260101-120000-burst-1a2b --address auto
    """
    with connection(address, config) as link:
        found = link.stop(run)
    emit(found, as_json, _order_lines("stopped", found, "no run to stop"))
    return _order_code(found)


def halt(address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Emergency halt: kill all load of every run now, undo, and refuse new runs until `resume`.

    This machine first, whether Ray answers or not. Then every node of the cluster, if there is one; each keeps the halt on its disk.
    A halt given on one node reaches the others through its agent. 3 if a node did not confirm: it is named.

    Examples:
      stress-cluster halt                    this machine, and its cluster where one is known
      stress-cluster halt --address auto     this machine, and every node of the cluster
    """
    with connection(address, config) as link:
        found = link.halt(say)
    lines = _order_lines("halted", found, "no load was running")
    if found.get("nodes"):
        lines.append(f"the halt is on the disk of {', '.join(found['nodes'])}")
    lines.append("new runs are refused until `stress-cluster resume`")
    emit(found, as_json, lines)
    return _order_code(found)


def resume(address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Lift the emergency halt, so that runs may start again. Starts nothing by itself.

    This machine first, then every node of the cluster, if there is one. 3 if a node did not confirm: it is named.

    Examples:
      stress-cluster resume
      stress-cluster resume --address auto
    """
    with connection(address, config) as link:
        found = link.resume(say)
    where = ", but not everywhere" if found.get("unreached") else "; runs may start again"
    emit(found, as_json, [f"the halt is lifted{where}", *_left_lines(found)])
    return _order_code(found)


def forget(
    node: Annotated[str, typer.Argument(help="The name of the node, as `status` tells it.")],
    address: options.Address = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Stop counting a node that will not come back.

    A node that was lost in a run keeps its place in the count of harmed nodes (budget.max_nodes) until its own guardian confirms that
    nothing is left there; `status` names it. A node that comes back confirms by itself, with its next run or `recover`. Of one that
    never will, say so here; it is kept in the orchestrator's journal. Refused while load may live there.

    Ended runs wait no more for its metrics: `recover` is clean again, and their summaries count the streams whose rest is lost. Their
    verdict stays. What it delivers all the same, should it come back, is taken.

    Example:
      stress-cluster forget n3 --address auto
    """
    with connection(address, config) as link:
        found = link.forget(node)
    charged, waiting = ", ".join(found.get("runs") or ()), ", ".join(found.get("streams") or ())
    lines = [f"{node} is no longer counted; it was charged to {charged}"] if charged else []
    emit(found, as_json, [*lines, *([f"what had not arrived of its metrics is given up in {waiting}"] if waiting else [])])
    return 0


def recover(address: options.Address = None, config: options.Config = None, as_json: options.Json = False) -> int:
    """Undo and deliver what a crash left, from the journals and outboxes. 3 if anything remains.

    Examples:
      stress-cluster recover                   this machine
      stress-cluster recover --address auto    every node of the cluster
    """
    with connection(address, config) as link:
        found = link.recover()
    done = [f"{name}: {sentence(one)}" for name in ("recovered", "undone", "delivered", "fetched") for one in found.get(name) or ()]
    emit(found, as_json, [*done, *_left_lines(found)] or ["nothing was left behind"])
    return _order_code(found)


def _order_lines(verb: str, found: Mapping[str, Any], nothing: str) -> list[str]:
    touched = found.get("runs") or found.get("killed") or ()
    lines = [f"{verb} {_touched(one)}" for one in touched] or [nothing]
    if isinstance(found.get("halt_latency_ms"), (int, float)):
        lines.append(f"last load gone {found['halt_latency_ms']:.0f} ms after the decision")
    return [*lines, *_left_lines(found)]


def _touched(one: Any) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    name = str(one.get("run") or one.get("operation") or one.get("node") or "")
    return f"{name}: {one['status']}" if one.get("status") else name


def _order_code(found: Mapping[str, Any]) -> int:
    """Return 3 when an order left something behind or did not reach a node, else 0."""
    return 3 if any(found.get(name) for name in ("remaining", "unclean", "unreached")) else 0
