"""Bringing home what a crash left on this machine: outboxes without an owner, logs without an aggregator, runs without an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from actors.clock import SystemClock
from actors.errors import HarnessError

from .metrics.aggregator import Aggregator
from .metrics.store import read_json
from .outbox import Outbox, OutboxFullError, leftovers


def deliver_local(state_dir: Path) -> Iterator[str]:
    """Deliver every orphaned outbox of this STATE into its run directory here, finish runs that never ended; yield their ids."""
    boxes: dict[str, list[Path]] = {}
    for path in leftovers(state_dir / "outbox"):
        boxes.setdefault(path.parent.name, []).append(path)
    runs = state_dir / "runs"
    unfinished = {path.name for path in runs.glob("*") if _needs_end(path)} if runs.is_dir() else set()
    for run in sorted(unfinished | {name for name in boxes if (runs / name).is_dir()}):
        if _recover(runs / run, run, boxes.get(run, [])):
            yield run


def _needs_end(directory: Path) -> bool:
    manifest = read_json(directory / "manifest.json") or {}
    return (directory / "log").is_dir() or manifest.get("status") == "running"


def _recover(directory: Path, run: str, boxes: list[Path]) -> bool:
    try:
        aggregator = Aggregator(run, directory, SystemClock())
    except HarnessError as error:
        if error.code == "busy":
            return False  # its aggregator lives
        raise
    try:
        for path in boxes:
            _deliver(aggregator, path)
        manifest = read_json(directory / "manifest.json") or {}
        if manifest.get("status") != "running":
            aggregator.finish()
        else:
            message = "the run died before its end and was recovered"
            ended = {"status": "error", "exit_code": 3}
            aggregator.finish(
                {**ended, "run": run, "reasons": [{"cause": "error", "reason": message}]}, {**manifest, **ended, "message": message}
            )
    finally:
        aggregator.close()
    return True


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
        held = aggregator.push(box.node, box.incarnation, records)
        if held < records[0][0]:
            break
        box.ack(held)
    box.close()
