"""What is wrong with a page in text format 0.0.4, by prometheus.io's "Exposition formats" and "Writing exporters".

For what `promtool check metrics` accepts though Prometheus reads it wrongly or refuses it. Uses no code of the product or the client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_LABEL = re.compile(rf'({_NAME})="((?:[^"\\\n]|\\[\\"n])*)"(,|$)')
_LINE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """One family as it was read: type, whether it has help, and its lines in order."""

    name: str
    type: str = ""
    has_help: bool = False
    lines: list[tuple[str, Labels, float]] = field(default_factory=list)


def faults(page: str) -> list[str]:
    """Return every fault of a page, in words; none for a good one."""
    found: list[str] = []
    families = _read(page, found)
    names = [f"{one.name}{part}" for one in families.values() for part in {*_PARTS.get(one.type, ()), ""}]
    found += [f"{name} is the name of two families, or of a part of another" for name in sorted(names) if names.count(name) > 1]
    for family in families.values():
        found += _of_family(family)
    return found


def _read(page: str, found: list[str]) -> dict[str, Family]:
    if page and not page.endswith("\n"):
        found.append("the last line has no end")
    families: dict[str, Family] = {}
    now = Family("")
    for line in page.split("\n")[:-1]:
        if line.startswith("# "):
            now = _comment(line, families, now, found)
            continue
        parts = _LINE.fullmatch(line)
        if parts is None or not _is_number(parts[3]):
            found.append(f"cannot be read: {line!r}")
        elif not any(parts[1] == f"{now.name}{part}" for part in _PARTS.get(now.type, ())):
            found.append(f"{parts[1]} stands outside of its family")
        else:
            now.lines.append((parts[1].removeprefix(now.name), _labels(parts[2] or "", line, found), float(parts[3])))
    return families


def _comment(line: str, families: dict[str, Family], now: Family, found: list[str]) -> Family:
    _, word, name, *rest = line.split(" ", 3)
    if name != now.name and name in families:
        found.append(f"{name} is in two pieces")
    family = families.setdefault(name, Family(name))
    if family.lines:
        found.append(f"{word} of {name} comes after its samples")
    if word == "HELP":
        found += [f"{name} has two HELP lines"] * family.has_help + [f"{name} has an empty HELP"] * (not rest or not rest[0].strip())
        family.has_help = True
    elif word == "TYPE":
        found += [f"{name} has two TYPE lines"] * bool(family.type) + [f"{name} has no type that is known"] * (rest[0] not in _PARTS)
        family.type = rest[0]
    return family


def _labels(text: str, line: str, found: list[str]) -> Labels:
    pairs, at = [], 0
    while at < len(text):
        one = _LABEL.match(text, at)
        if one is None:
            found.append(f"labels cannot be read: {line!r}")
            break
        pairs.append((one[1], one[2]))
        at = one.end()
    names = [name for name, _ in pairs]
    found += [f"label {name} is there twice: {line!r}" for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"label {name} is reserved" for name in names if name.startswith("__")]
    return tuple(sorted(pairs))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _of_family(family: Family) -> Iterator[str]:
    if not family.has_help:
        yield f"{family.name} has no HELP"
    if not family.type:
        yield f"{family.name} has no TYPE"
    series = [(part, labels) for part, labels, _ in family.lines]
    yield from (
        f"{family.name}{part} {dict(labels)} is there twice" for part, labels in sorted(set(series)) if series.count((part, labels)) > 1
    )
    if family.type == "counter":
        yield from (f"{family.name} is {value}, and no total" for _, _, value in family.lines if not value >= 0)
        if not family.name.endswith("_total"):
            yield f"{family.name} is a counter without _total"
    if family.type == "histogram":
        yield from _of_histogram(family)
    else:
        yield from (f"{family.name} has a label le" for _, labels, _ in family.lines if "le" in dict(labels))


def _of_histogram(family: Family) -> Iterator[str]:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    others: dict[tuple[str, Labels], float] = {}
    for part, labels, value in family.lines:
        named = dict(labels)
        if part == "_bucket" and "le" not in named:
            yield f"{family.name} has a bucket without le"
        elif part == "_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            groups.setdefault(rest, []).append((float(named["le"]), value))
        else:
            others[part, labels] = value
    for labels, buckets in groups.items():
        bounds, counts = zip(*buckets, strict=True)
        told = f"{family.name} {dict(labels)}"
        if list(bounds) != sorted(set(bounds)):
            yield f"{told}: bounds do not ascend"
        if list(counts) != sorted(counts):
            yield f"{told}: buckets fall"
        if bounds[-1] != math.inf:
            yield f"{told}: the last bucket is not +Inf"
        if bounds[0] >= 0 and not {("_sum", labels), ("_count", labels)} <= others.keys():
            yield f"{told}: no _sum or no _count"
        if others.get(("_count", labels), counts[-1]) != counts[-1]:
            yield f"{told}: _count is not the +Inf bucket"
    yield from (f"{family.name}{part} {dict(labels)} has no buckets" for part, labels in others if labels not in groups)
