"""How slots and records are told, and how they are rebuilt from the journal: plain functions without effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import StressError
from ..messages import Amounts
from ..undo import KINDS, RECORD_VERSION, Record
from .model import GONE, RecordState, Slot, SlotPhase, Tracked


def is_readable(record: Record) -> bool:
    """Tell whether this version can undo a record."""
    kind = KINDS.get(record.kind)
    if kind is None or record.version > RECORD_VERSION:
        return False
    try:
        fields = kind.check(record.fields)
    except StressError:
        return False
    return kind.name != "disk_fill" or ("file" in fields and "tag" in fields)


def rebuild(first: Record, head: Record | None, lease: tuple[int, int, int], now_ns: int) -> Slot:
    """Return the slot that a group of records belonged to; `lease` is (generation, deadline_ns, stop code)."""
    fields: Mapping[str, Any] = head.fields if head is not None else {}
    slot = Slot(
        first.slot,
        first.generation,
        first.cluster,
        first.node,
        int(fields.get("epoch", 0)),
        int(fields.get("incarnation", 0)),
        first.run,
        first.operation,
        Amounts(*fields.get("amounts", ())),
        int(fields.get("release_ns", 0)),
        int(fields.get("sharers", 1)),
    )
    slot.phase = SlotPhase.LIVE if lease[1] else SlotPhase.OPEN
    slot.deadline_ns, slot.opened_ns = lease[1], now_ns
    slot.container = str(fields.get("path", ""))
    slot.memory_group = str(fields.get("memory_group", ""))
    return slot


def outcome_of(slot: Slot, item: Tracked) -> dict[str, Any]:
    """Return how a record ended, as replies tell it."""
    ended = "expired" if slot.cause == "lease" else "undone"
    outcome = {RecordState.FOREIGN: "foreign", RecordState.STUCK: "stuck"}.get(item.state, ended)
    return {"record": item.record.id, "kind": item.record.kind, "outcome": outcome, "detail": item.detail}


def is_gone(slot: Slot) -> bool:
    """Tell whether nothing of a slot is left: what is stuck is killed, not gone."""
    return all(item.state in GONE for item in slot.records)


def close_report(slot: Slot) -> dict[str, Any]:
    """Return the answer to a close. `gone` false: something could not be ended, and the slot is kept; ask again later."""
    return {
        "ok": True,
        "gone": is_gone(slot),
        "cause": slot.cause,
        "stopped_ns": slot.stopped_ns,
        "released_ns": slot.released_ns,
        "outcomes": [outcome_of(slot, item) for item in slot.records],
    }


def slot_status(slot: Slot) -> dict[str, Any]:
    """Return a slot as status shows it."""
    return {
        "slot": slot.index,
        "generation": slot.generation,
        "cluster": slot.cluster,
        "node": slot.node,
        "run": slot.run,
        "operation": slot.operation,
        "phase": str(slot.phase),
        "cause": slot.cause,
        "deadline_ns": slot.deadline_ns,
        "container": slot.container,
        "memory_group": slot.memory_group,
        "amounts": asdict(slot.amounts),
        "pids": [item.record.fields["pid"] for item in slot.records if item.record.kind == "process"],
    }


def record_status(item: Tracked) -> dict[str, Any]:
    """Return a record as status shows it."""
    return {
        "id": item.record.id,
        "kind": item.record.kind,
        "state": str(item.state),
        "operation": item.record.operation,
        "run": item.record.run,
        "slot": item.record.slot,
        "generation": item.record.generation,
        "detail": item.detail,
        "achieved": item.achieved,
    }
