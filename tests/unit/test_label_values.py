"""Values of labels are words of closed sets or given names: no object, and no message, becomes one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from actors.errors import CODES
from actors.metrics.labels import CLOSED, NAMES, OVERFLOW, strange
from actors.metrics.registry import CATALOGUE, Kind
from cluster.exporters.limits import Reason
from cluster.metrics import stream
from cluster.safety.policies import THROTTLES

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "scenarios", "cluster")
LABELS = {label for metric in CATALOGUE.values() for label in metric.labels}
RECORDS = {"counter", "gauge", "histogram", "observe"}
MAKERS = {"repr", "str", "format", "ascii", "join"}
NUMBERS = {("actors/meters.py", "str(core)")}  # a whole number has one text


def values_of_labels(tree: ast.AST) -> Iterator[ast.expr]:
    """Give what stands for a label's value: keywords and dictionaries of calls that record, and pairs that begin with a label's name.

    A local name stands for all that is assigned to it in its function.
    """
    for scope in ast.walk(tree):
        if isinstance(scope, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)):
            made = _assigned(scope)
            for value in _labels_in(scope, made):
                yield from _meant(value, made)


def _meant(value: ast.expr, made: Mapping[str, list[ast.expr]]) -> list[ast.expr]:
    return made.get(value.id, [value]) if isinstance(value, ast.Name) else [value]


def _labels_in(scope: ast.AST, made: Mapping[str, list[ast.expr]]) -> Iterator[ast.expr]:
    for node in _own(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RECORDS:
            yield from (keyword.value for keyword in node.keywords if keyword.arg in LABELS)
            for given in (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg not in LABELS)):
                yield from (value for one in _meant(given, made) if isinstance(one, ast.Dict) for value in one.values)
        elif (
            isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant) and node.elts[0].value in LABELS
        ):
            yield node.elts[1]


def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """Return what is assigned in a scope, by name."""
    made: dict[str, list[ast.expr]] = defaultdict(list)
    for node in _own(scope):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    made[target.id].append(node.value)
    return made


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Give what stands in a scope, without that of functions inside."""
    todo = list(ast.iter_child_nodes(scope))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)


def made_of_an_object(value: ast.expr) -> bool:
    """Tell whether a text is put together here from something that is none."""
    for node in ast.walk(value):
        if isinstance(node, (ast.JoinedStr, ast.BinOp)):
            return True
        if isinstance(node, ast.Call) and (getattr(node.func, "id", "") in MAKERS or getattr(node.func, "attr", "") in MAKERS):
            return True
    return False


def test_no_label_is_made_from_an_object() -> None:
    """No `repr`, `str`, `format`, f-string or sum of texts stands where a label's value is recorded."""
    seen, wrong, numbers = 0, [], set()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for value in values_of_labels(ast.parse(path.read_text())):
            seen += 1
            where, text = str(path.relative_to(ROOT)), ast.unparse(value)
            numbers |= {(where, text)} & NUMBERS
            wrong += [f"{where}:{value.lineno} {text}"] * (made_of_an_object(value) and (where, text) not in NUMBERS)
    assert (wrong, numbers) == ([], NUMBERS)
    assert seen >= 8


@pytest.mark.parametrize(
    "code",
    [
        "recorder.counter('probe.failures', probe=name, reason=str(error))",
        "recorder.counter('probe.failures', probe=name, reason=repr(state))",
        "recorder.gauge('safety.ceiling', resource=f'{resource}')",
        "stream.observe('errors.seen', 1, labels={'code': code, 'category': '%s' % error})",
        "Row(name, kind, unit, '', '', (('reason', 'too ' + what),))",
        "Row(name, kind, unit, '', '', (('reason', '{}'.format(what)),))",
        "def f():\n    labels = {'simulator': kind, 'shape': str(shape)}\n    stream.observe('operation.started', 1.0, labels)",
        "def f():\n    why = repr(error)\n    recorder.counter('probe.failures', reason=why)",
        "def f():\n    if (why := f'{error}'):\n        recorder.counter('probe.failures', reason=why)",
    ],
)
def test_a_bad_label_is_found(code: str) -> None:
    """The check finds each way of making a label from an object, and lets a plain name pass."""
    assert any(map(made_of_an_object, values_of_labels(ast.parse(code))))
    assert not any(map(made_of_an_object, values_of_labels(ast.parse("stream.observe('errors.seen', 1, labels={'code': code})"))))


def test_every_label_is_closed_or_named() -> None:
    """Each label of the catalogue has its words, or says whose names its values are; nothing else is listed."""
    for metric in CATALOGUE.values():
        for label in metric.labels:
            assert label in CLOSED.get(metric.name, {}) or label in NAMES, f"{metric.name} {label}"
    assert all(set(closed) <= set(CATALOGUE[name].labels) for name, closed in CLOSED.items())


def test_closed_sets_are_those_of_the_code() -> None:
    """The words are what the code that records them has: of exporters, policies, errors, probes, and of what is not stored."""
    assert set(CLOSED["export.dropped"]["reason"]) == {*(str(one.value) for one in Reason), "filtered", "late"}
    assert set(CLOSED["safety.ceiling"]["resource"]) == set(THROTTLES)
    assert CLOSED["errors.seen"]["code"] == tuple(CODES)
    left = {(metric, reason) for metric, reason, _ in stream._LEFT}
    drops = {(("metrics.dropped"), node.args[0].value) for node in calls(stream.__file__, "_drop")}
    not_stored = {
        ("metrics.dropped", node.args[1].value) for node in calls(stream.__file__, "_not_stored") if isinstance(node.args[1], ast.Constant)
    }
    known = {(metric, word) for metric in ("metrics.dropped", "metrics.filtered") for word in CLOSED[metric]["reason"]}
    assert left | drops | not_stored == known
    failures = {
        node.value
        for name in ("schedule.py", "prober.py")
        for node in ast.walk(ast.parse((ROOT / "cluster" / "probes" / name).read_text()))
        if isinstance(node, ast.Constant)
    }
    assert set(CLOSED["probe.failures"]["reason"]) <= failures


def calls(path: str, name: str) -> list[ast.Call]:
    tree = ast.parse(Path(path).read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == name]


RECORDERS = (
    "actors/meters.py",
    "actors/ray_loads/figures.py",
    "actors/exhaustion/holder.py",
    "actors/exhaustion/connections.py",
    *(f"actors/concurrency/{name}.py" for name in ("figures", "convoy", "deadlock", "livelock", "inversion")),
    "actors/memory.py",
    "actors/memory_access.py",
    "actors/memory_fragment.py",
    "actors/stress_ng/load.py",
    "actors/vm_pressure.py",
    "cluster/node_metrics.py",
    "cluster/probes/prober.py",
    "cluster/metrics/stream.py",
    "cluster/metrics/error_rates.py",
    "cluster/metrics/anomaly_watch.py",
    "cluster/exporters/figures.py",
    "cluster/aggregator_shell.py",
)
FAMILIES = "|".join(sorted({name.partition(".")[0] for name in CATALOGUE}))
DOTTED = re.compile(rf"({FAMILIES})\.[a-z.]+")
NO_METRICS = {"metrics.anomaly", "metrics.anomaly_window_s"}  # settings


def recorded_in(path: Path) -> set[str]:
    """Return the names of metrics that stand as they are in a module."""
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if DOTTED.fullmatch(text)} - NO_METRICS


def test_what_is_documented_is_what_is_recorded() -> None:
    """The modules that record name all metrics of the catalogue, from which the reference is made, and no other."""
    assert set().union(*(recorded_in(ROOT / path) for path in RECORDERS)) == CATALOGUE.keys()
    elsewhere = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RECORDS
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in CATALOGUE
    }
    assert elsewhere <= {*RECORDERS, "actors/metrics/stopwatch.py"}


def test_strange_values_are_found() -> None:
    """A label that is not declared, and a value that no set has, are told; a given name and the overflow are not strange."""
    assert CATALOGUE["probe.failures"].kind is Kind.COUNTER
    good = ("probe.failures", {"probe": "anything", "reason": "timeout"})
    assert strange([good, ("errors.seen", {"code": OVERFLOW, "category": OVERFLOW}), ("load.operations", {})]) == []
    found = strange([good, ("probe.failures", {"reason": "<State 7>"}), ("load.operations", {"step": "12"})])
    assert found == [
        "load.operations does not declare step",
        "probe.failures has reason='<State 7>', known are failed, timeout, unanswered, not_sent",
    ]
