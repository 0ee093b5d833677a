"""Small faults that can be made in a Python file, one at a time, inside its functions: what `mutants.py` draws from. Standard library.

A fault replaces one piece of the text: a comparison, a sum, a number, a condition, a call that is left out. Text of messages, annotations,
docstrings, and what stands outside of functions (records, constants) are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_OTHER_NAME = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: in which file and function, what it replaces by what. `start` and `end` are offsets in the file's bytes."""

    path: str
    function: str
    kind: str
    was: str
    now: str
    nth: int  # of those that read the same in the function
    line: int
    start: int
    end: int

    @property
    def name(self) -> str:
        """What it is called: the same as long as its function reads the same."""
        return f"{self.path}:{self.function}: {self.was} -> {self.now}" + (f" #{self.nth}" if self.nth else "")

    def apply(self, data: bytes) -> bytes:
        """Return the file with the fault. Raises `SyntaxError` where it would be no Python."""
        made = data[: self.start] + self.now.encode() + data[self.end :]
        compile(made, self.path, "exec")
        return made


def faults_of(root: Path, path: str) -> list[Fault]:
    """Return all faults of a file, in order; those that would be no Python are left out."""
    data = (root / path).read_bytes()
    starts = [0]
    for row in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    found: list[Fault] = []
    seen: dict[tuple[str, str, str], int] = {}
    for function, node, kind, now in _points(ast.parse(data)):
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        was = " ".join(data[start:end].decode().split())
        key = (function, was, now)
        seen[key] = seen.get(key, -1) + 1
        fault = Fault(path, function, kind, was, now, seen[key], node.lineno, start, end)
        try:
            fault.apply(data)
        except SyntaxError:
            continue
        found.append(fault)
    return found


def _points(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt, str, str]]:
    """Give (function, node, kind of fault, new text) of the whole tree."""
    for function, node in _functions(tree, ()):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        for step in body:
            yield from ((function, *one) for one in _in(step))


def _functions(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Give the outermost functions with their dotted names; methods of protocols have no code."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ".".join((*names, child.name)), child
        elif isinstance(child, ast.ClassDef) and not any(ast.unparse(base) == "Protocol" for base in child.bases):
            yield from _functions(child, (*names, child.name))


def _in(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Give (node, kind, new text) of a node and of all within it."""
    yield from _at(node)
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list"} or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _in(child)


def _at(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    match node:
        case ast.Compare(ops=[operator]):
            for other in _COMPARE[type(operator)]:
                yield node, "comparison", _text(node, ops=[other()])
        case ast.BinOp() if type(node.op) in _BINARY:
            yield node, "arithmetic", f"({_text(node, op=_BINARY[type(node.op)]())})"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, "sign", f"({ast.unparse(node.operand)})"
        case ast.BoolOp():
            yield node, "logic", f"({_text(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())})"
        case ast.Constant(value=bool()):
            yield node, "constant", repr(not node.value)
        case ast.Constant(value=int() | float()):
            yield node, "constant", repr(node.value + 1)
            if node.value:
                yield node, "constant", "0" if isinstance(node.value, int) else "0.0"
        case ast.Call(func=ast.Name(id=name)) if name in _OTHER_NAME:
            yield node, "function", _text(node, func=ast.Name(_OTHER_NAME[name]))
        case ast.Call(func=ast.Attribute(attr=name)) if name in _OTHER_NAME:
            yield node, "function", _text(node, func=ast.Attribute(node.func.value, _OTHER_NAME[name]))
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(node.test, ast.Constant):
            yield node.test, "condition", f"(not ({ast.unparse(node.test)}))"
        case ast.For():
            yield node.iter, "loop", "()"
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield node, "return", "return None"
        case ast.Break():
            yield node, "jump", "continue"
        case ast.Continue():
            yield node, "jump", "break"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            yield node, "left out", "pass"
        case ast.Assign() if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            yield node, "left out", "pass"
        case _:
            return


def _text(node: ast.expr, **changes: object) -> str:
    made = copy.copy(node)
    for name, value in changes.items():
        setattr(made, name, value)
    return ast.unparse(ast.fix_missing_locations(made))
