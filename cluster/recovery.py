"""Bringing home what a crash left on this machine: outboxes without an owner, logs without an aggregator, runs without an end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.clock import SystemClock
from actors.errors import HarnessError, RefusedError, StressError

from .files import read_json
from .metrics.aggregator import Aggregator
from .metrics.own_stream import end_streams
from .orchestrator_api import OrchestratorPort
from .outbox import Outbox, OutboxFullError, leftovers

EXPORT_S = 30.0  # that the exporters of a run have to take what it holds
DIED = "the run died before its end and was recovered"


def deliver_local(state_dir: Path, alive: Collection[str] = ()) -> Iterator[str]:
    """Deliver every orphaned outbox of this STATE into its run directory here, finish runs that never ended; yield their ids.

    Runs that are `alive` are left to their orchestrator, also in the second in which their aggregator is being replaced.
    """
    boxes: dict[str, list[Path]] = {}
    for path in leftovers(state_dir / "outbox"):
        boxes.setdefault(path.parent.name, []).append(path)
    runs = state_dir / "runs"
    unfinished = {path.name for path in runs.glob("*") if _needs_end(path)} if runs.is_dir() else set()
    for run in sorted((unfinished | {name for name in boxes if (runs / name).is_dir()}) - set(alive)):
        if _recover(runs / run, run, boxes.get(run, [])):
            yield run


def _needs_end(directory: Path) -> bool:
    manifest = read_json(directory / "manifest.json") or {}
    return (directory / "log").is_dir() or manifest.get("status") == "running"


def _recover(directory: Path, run: str, boxes: list[Path]) -> bool:
    from .run_exports import bring_up_to_date  # noqa: PLC0415  # an aggregator, which imports this module, may have no exporters

    try:
        aggregator = Aggregator(run, directory, SystemClock())
    except HarnessError as error:
        if error.code == "busy":
            return False  # its aggregator lives
        raise
    try:
        for path in boxes:
            _deliver(aggregator, path)
        exported = bring_up_to_date(aggregator, SystemClock(), EXPORT_S)
        end_dead(aggregator, {"exporters": exported} if exported is not None else {})
    finally:
        aggregator.close()
    return True


def end_dead(aggregator: Aggregator, exported: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what has arrived into files and return the summary; a run that nobody gave an end ends as an error (3).

    `exported` is what the summary says of exporters, if that is new.
    """
    manifest = read_json(aggregator.directory / "manifest.json") or {}
    if manifest.get("status") != "running":
        return aggregator.finish({**(read_json(aggregator.directory / "summary.json") or {}), **exported} if exported else None)
    end_streams(aggregator)
    ended = {"status": "error", "exit_code": 3}
    reasons = [{"cause": "error", "reason": DIED}]
    manifest |= {**ended, "message": DIED, "end": manifest.pop("heartbeat", None)}  # its last sign of life
    return aggregator.finish({**ended, "run": aggregator.run_id, "reasons": reasons, **exported}, manifest)


def end_on_this_node(
    port: OrchestratorPort, recovered: Collection[str], unfinished: Collection[str], known: Callable[[], set[str]]
) -> tuple[set[str], list[str]]:
    """Write what agents delivered, and end what a dead orchestrator left unended on this node; return those runs, and what failed.

    `recovered` runs were brought home by agents, some of them `unfinished`; those that are `known` have an orchestrator, which ends them.
    """
    failed: list[str] = []
    orphans = set(port.aggregators()) - known()
    for run in sorted({*recovered, *orphans}):
        aggregator = port.aggregator(run, {}, create=False)
        try:
            if aggregator is not None:
                aggregator.call("settle", run in orphans and run not in unfinished, timeout_s=60.0)
        except StressError as error:
            failed.append(f"run {run}: its aggregator could not finish: {error}")
    delivered = deliver_local(port.state_dir(), {*known(), *unfinished})
    return {*recovered, *orphans, *delivered}, failed


def on_absent_nodes(state_dir: Path, alive: Collection[str], nodes: Collection[str]) -> list[str]:
    """Say which streams of ended runs that lie here have not arrived whole because their node is none of these: its disk has the rest."""
    found = []
    for run, stream in _outstanding(state_dir, alive):
        if stream["node"] not in nodes:
            what = f"metrics of run {run} from window {stream['from']} on have not arrived, and Ray has no such node"
            hint = f"start Ray there again, then `stress-cluster recover`; gone for good: `stress-cluster forget {stream['node']}`"
            found.append(f"{stream['node']}: {what}; {hint}")
    return found


def forgotten(port: OrchestratorPort, node: str, released: Sequence[str], alive: Collection[str]) -> dict[str, Any]:
    """Give up what ended runs that lie here wait for from a node that will not come back; return those runs and the `released` ones.

    Runs that are `alive` wait on, and so do all while Ray has the node: it delivers by itself. Raises `RefusedError` when there is nothing
    to forget, `HarnessError` for a run whose documents cannot be written; asking again goes on from there.
    """
    is_here = any(one.name == node for one in port.nodes())
    closed = [] if is_here else [run for run in _waiting_for(port.state_dir(), node, alive) if _give_up(port, run, node)]
    if not (released or closed):
        hint = "`stress-cluster status` lists the nodes under stress, `recover` the metrics that are outstanding"
        raise RefusedError("no_target", f"no run holds or waits for anything of {node}", hint)
    return {"node": node, "runs": list(released), "streams": closed}


def _waiting_for(state_dir: Path, node: str, alive: Collection[str]) -> list[str]:
    return [run for run, stream in _outstanding(state_dir, alive) if stream["node"] == node]


def _give_up(port: OrchestratorPort, run: str, node: str) -> bool:
    living = port.aggregator(run, {}, create=False)
    if living is not None:
        return bool(living.call("forget", node, timeout_s=60.0))
    aggregator = Aggregator(run, port.state_dir() / "runs" / run, SystemClock())
    try:
        return bool(aggregator.forget(node))
    finally:
        aggregator.close()


def _outstanding(state_dir: Path, alive: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ended runs that lie here, each with a stream that has not arrived whole."""
    for path in sorted((state_dir / "runs").glob("*/summary.json")):
        if path.parent.name not in alive:
            for stream in (read_json(path) or {}).get("outstanding", []):
                yield path.parent.name, stream


def _deliver(aggregator: Aggregator, path: Path) -> None:
    try:
        box = Outbox(path)
    except HarnessError as error:
        if error.code == "busy":
            return  # its agent lives and delivers by itself
        raise
    try:
        box.seal()
    except OutboxFullError:
        box.close()
        return
    while records := box.unacked():
        held = aggregator.push(box.node, box.incarnation, records, records[0][0] - 1)
        if held < records[0][0]:
            break
        box.ack(held)
    box.close()
