"""The table of error codes is closed in both directions: what is raised is listed, and what is listed is raised: here, by the product."""

from __future__ import annotations

import ast
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.clock import SystemClock
from actors.errors import CODES, StressError
from actors.guardian.client import GuardianClient
from actors.guardian.files import Files
from actors.memory_group import places
from actors.messages import Amounts, Capacity, NodeSpec
from actors.metrics.policy import RecordingPolicy
from actors.origin import check_same_code
from actors.shape import from_spec
from actors.undo import Record
from cluster import settings
from cluster.analysis.load import find_run
from cluster.load_end import NO_LOAD, ended
from cluster.outbox import Outbox
from cluster.safety.profiles import check_planned, limits_for
from scenarios import catalogue, text
from scenarios import plan as plans
from scenarios.units import parse_size
from tests.support.guarded import Machine

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("actors", "scenarios", "cluster") for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}
MAKERS = {"Ended": 0, "_refuse": 1, "wrong": 1}  # our functions that make an error of a code: where the code stands among their arguments


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def error_classes(trees: dict[str, ast.Module]) -> set[str]:
    """Return the names of StressError and all that descends from it."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"StressError"}
    while more := {name for name, its in bases.items() if its & found} - found:
        found |= more
    return found


def codes_given(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Return each code that is given to an error when it is made, with one place: constants only, also both branches of a choice."""
    classes, found = error_classes(trees), dict[str, str]()
    for place, tree in trees.items():
        for node in ast.walk(tree):
            given: list[ast.expr] = []
            if isinstance(node, ast.Call):
                at = 0 if name_of(node.func) in classes else MAKERS.get(name_of(node.func))
                given = node.args[at : at + 1] if at is not None else []
            elif isinstance(node, ast.keyword) and node.arg == "error" and isinstance(node.value, ast.Tuple):
                given = node.value.elts[:1]  # what an effect answers; the guardian refuses with it
            for one in given:
                for value in [one.body, one.orelse] if isinstance(one, ast.IfExp) else [one]:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                        found.setdefault(value.value, f"{place}:{node.value.lineno if isinstance(node, ast.keyword) else node.lineno}")
    return found


GIVEN = codes_given(TREES)


@pytest.mark.parametrize("code", CODES)
def test_every_listed_code_is_raised_somewhere(code: str) -> None:
    """`list errors` lists nothing that no program can meet."""
    assert code in GIVEN, f"{code} is in actors/errors.py and nothing raises it: remove it, or raise it"


def test_every_raised_code_is_listed() -> None:
    """A code that users may match is in the table."""
    assert {code: place for code, place in GIVEN.items() if code not in CODES} == {}


def test_a_code_in_words_alone_counts_as_dead() -> None:
    """The search sees errors being made, in all their forms, and not the word in a docstring, a comparison or another call."""
    source = '''
class Ours(HarnessError):
    """Of lost things."""

def f(error, busy):
    """Raise expired."""
    if error.code == "foreign" or error in {"halted"}:
        print("timeout", "protected")
    raise Ours("busy" if busy else "internal", "budget")
    _refuse(error, "os", "")
    return Applied(1, error=("journal", "capability"))
'''
    assert set(codes_given({"errors": TREES["actors/errors.py"], "x": ast.parse(source)})) == {"busy", "internal", "os", "journal"}


# each code once, as the product raises or answers it


@contextlib.contextmanager
def linked(folder: Path) -> Iterator[tuple[GuardianClient, socket.socket]]:
    """Give a client of a guardian that is a socket of ours."""
    client, (ours, theirs) = GuardianClient(folder, {}, may_spawn=False, clock=SystemClock()), socket.socketpair()
    client._idle.append((0, theirs))
    with ours, theirs:
        yield client, ours


def unanswered(folder: Path) -> None:
    with linked(folder) as (client, _):
        client.call("open_slot", timeout_s=0.01)


def left_alone(folder: Path) -> None:
    with linked(folder) as (client, ours):
        ours.close()
        client.call("open_slot", timeout_s=1.0)


def closed(folder: Path) -> None:
    client = GuardianClient(folder, {}, may_spawn=False, clock=SystemClock())
    client.close()
    client.call("status")


def guardian(ask: Callable[[Machine, dict[str, int]], Any]) -> Callable[[Path], str]:
    """Return who asks a guardian that has a slot for something that it refuses."""

    def refused(_: Path) -> str:
        machine = Machine()
        machine.hello()
        answer = ask(machine, machine.ticket())
        assert (answer["ok"], bool(answer["message"])) == (False, True)
        return str(answer["code"])

    return refused


def halted(machine: Machine, _: dict[str, int]) -> Any:
    machine.call("halt", generation=4)
    return machine.open()


def unwritable(machine: Machine, _: dict[str, int]) -> Any:
    machine.journal_broken = True
    return machine.open()


def filled(folder: Path) -> str:
    record = Record("r", "disk_fill", 0, 1, fields={"path": str(folder / "fill"), "file": "f", "tag": "t", "reserve_bytes": 0})
    files = Files(str(folder / "state"))
    error = files.apply(record, {"bytes": 1}).error
    assert error is not None
    return error[0]


def something_else_stands_there(folder: Path) -> str:
    (folder / "fill").mkdir()
    (folder / "fill" / "f").write_bytes(b"theirs" * 1000)
    return filled(folder)


def owned(folder: Path) -> None:
    made = Outbox(folder / "n-1.box", node="n", incarnation="1", run="r")
    try:
        Outbox(folder / "n-1.box")
    finally:
        made.close()


def head_by_now(_: Path) -> None:
    plan = plans.resolve(catalogue.get("burst"), (NodeSpec("n1"), NodeSpec("n2"), NodeSpec("head", is_head=True)))
    plans.replay(plan, (NodeSpec("n1", is_head=True), NodeSpec("n2")))


def told(reason: str) -> Callable[[Path], str]:
    """Return who asks how a load has ended of which its simulator says this."""
    found = ended("running", NO_LOAD, {"phase": "dead", "reason": reason}, 0, is_over=False)
    return lambda _: found.code if found else ""


FEW = Capacity(1.0, 1 << 30, 1 << 30)
RAISED: dict[str, Callable[[Path], object]] = {
    "invalid_document": lambda _: RecordingPolicy.from_json("{"),
    "invalid_value": lambda _: parse_size("much"),
    "invalid_setting": lambda _: settings.load({}, environ={"STRESS_CLUSTER_LEASE_S": "soon"}),
    "unknown_key": lambda _: from_spec({"kind": "constant", "level": 1.0, "height": 2.0}),
    "unknown_name": lambda _: from_spec({"kind": "staircase"}),
    "not_found": lambda folder: find_run("latest", folder),
    "unsupported_version": lambda _: text.load("version: 99\nname: x\nplan: {CpuLoad: {fraction: 5%}, for: 1s}\n"),
    "no_target": lambda _: plans.resolve(catalogue.get("burst"), ()),
    "budget": lambda _: check_planned({"n": Amounts(2.0)}, {"n": FEW}, limits_for()),
    "capability": lambda _: check_planned({"n": Amounts()}, {}, limits_for()),
    "halted": guardian(halted),
    "protected": head_by_now,
    "busy": owned,
    "stale_epoch": guardian(lambda machine, _: machine.open(epoch=0)),
    "stale_slot": guardian(lambda machine, slot: machine.call("register", slot=slot["slot"], generation=slot["generation"] + 1, pid=1)),
    "expired": guardian(lambda machine, slot: machine.grant(slot, not_after_ns=machine.now_ns - 1)),
    "timeout": unanswered,
    "cancelled": closed,
    "lost": left_alone,
    "foreign": something_else_stands_there,
    "journal": guardian(unwritable),
    "os": filled,
    "code_mismatch": lambda _: check_same_code("other", "the driver"),
    "unsupported": lambda _: places("/c", None, "3-7", 64),
    "oom": told("its simulator is dead: OutOfMemoryError: Task was killed"),
    "internal": told("its simulator is dead: ZeroDivisionError"),
}


@pytest.mark.parametrize("code", CODES)
def test_the_product_raises_every_code(tmp_path: Path, code: str) -> None:
    """By what is documented to go wrong, with a message for people; a code without such a case fails here."""
    try:
        found = (RAISED[code](tmp_path), "in an answer")
    except StressError as error:
        found = (error.code, error.message)
    assert (found[0], bool(found[1])) == (code, True)
