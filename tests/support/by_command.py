"""What simulators record in a run by command on two nodes, held against what is documented of each.

Each module of tests/ray that has such a run names its loads in `RUNS`; tests/unit/test_every_simulator.py asks that together they are all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from actors.simulator import REGISTRY

NODES: Final = ("n1", "n2")


def kind_of(worker: str) -> str:
    """Return the simulator of an operation's id, "1.0.CpuLoad@n1"; "" for anything else."""
    kind = worker.partition("@")[0].rpartition(".")[2]
    return kind if kind in REGISTRY else ""


@dataclass(frozen=True, slots=True)
class Runs:
    """The simulators that a document holds. `never`, `maybe`: names it has no occasion for, or none for certain."""

    document: Any
    never: Mapping[str, set[str]] = field(default_factory=dict)
    maybe: Mapping[str, set[str]] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """Return which simulators the document holds."""
        return set(_kinds(self.document))

    def recorded(self) -> dict[str, set[str]]:
        """Return the documented names that this run shows of each simulator, for certain or where there is occasion."""
        return {kind: set(REGISTRY[kind].metrics) - self.never.get(kind, set()) for kind in self.kinds}

    def assert_recorded(self, run: Any) -> None:
        """Assert that each load recorded on each node what is documented of it, and nothing that is documented of others only."""
        ours = {metric for record in REGISTRY.values() for metric in record.metrics}
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in run.metrics.select(["metric", "node", "worker", "count"]).to_pylist():
            if (kind := kind_of(row["worker"])) and row["metric"] in ours and row["count"]:
                found[kind, row["node"]].add(row["metric"])
        wrong = {}
        for kind, wanted in self.recorded().items():
            for node in NODES:
                off = (found[kind, node] ^ wanted) - self.maybe.get(kind, set())
                wrong |= {(kind, node): off} if off else {}
        assert wrong == {}, wrong
        assert {kind for kind, names in self.recorded().items() if names} <= {kind for kind, _ in found}


def lives_of(run: Any) -> dict[str, Counter[tuple[str, str, str]]]:
    """Return how many operations of a run were started, completed and failed, by node, simulator and shape.

    Asserts that each that began has ended one way, and that each that has a dose began once.
    """
    lives: dict[str, Counter[tuple[str, str, str]]] = {word: Counter() for word in ("started", "completed", "failed")}
    began, dosed = Counter[str](), set[str]()
    for row in run.metrics.select(["metric", "node", "worker", "labels", "sum"]).to_pylist():
        what, _, word = row["metric"].partition(".")
        if what == "operation":
            labels = dict(row["labels"])
            lives[word][row["node"], labels["simulator"], labels["shape"]] += int(row["sum"])
            began[row["worker"]] += int(row["sum"]) if word == "started" else 0
        elif what == "dose" and kind_of(row["worker"]):
            dosed.add(row["worker"])
    assert lives["started"] == lives["completed"] + lives["failed"], lives
    assert began == Counter(dosed), (began, dosed)
    return lives


def _kinds(data: Any) -> Iterator[str]:
    """Give the names of simulators that are keys anywhere in a document."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from [key] if key in REGISTRY else []
            yield from _kinds(value)
    elif isinstance(data, list | tuple):
        for one in data:
            yield from _kinds(one)
