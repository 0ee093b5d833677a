"""Who waits for whom, and where that is a circle. Pure: a graph in, cycles out.

The graph maps each task that waits to the tasks that hold what it waits for, all of which have to let go (the AND model): a cycle
is then a deadlock (Holt 1972). A task that waits for one lock with one holder has one edge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def cycles(waits: Mapping[str, Collection[str]]) -> tuple[tuple[str, ...], ...]:
    """Return cycles, one for each knot of tasks that wait for each other; in each every task waits for the next, the last for the first.

    A cycle begins with its smallest name and cycles are in order, so that the same graph gives the same answer. Time is linear in tasks and
    edges: a depth-first walk; a task that was left is never entered again. Cycles that share a task are told one at a time: break
    the first and ask again.
    """
    found: list[tuple[str, ...]] = []
    left: set[str] = set()
    for start in sorted(waits):
        _walk(start, waits, left, found)
    return tuple(sorted(found))


def _walk(start: str, waits: Mapping[str, Collection[str]], left: set[str], found: list[tuple[str, ...]]) -> None:
    """Follow all ways from `start`; leaves every task it met in `left`, and adds a cycle where a way meets itself."""
    if start in left:
        return
    way, places = [start], {start: 0}
    todo = [iter(sorted(waits.get(start, ())))]
    knotted: set[str] = set()
    while todo:
        holder = next(todo[-1], None)
        if holder is None:
            todo.pop()
            gone = way.pop()
            del places[gone]
            left.add(gone)
        elif holder in places:
            circle = way[places[holder] :]
            if not knotted & set(circle):
                found.append(turned(circle))
            knotted |= set(circle)
        elif holder not in left:
            places[holder] = len(way)
            way.append(holder)
            todo.append(iter(sorted(waits.get(holder, ()))))


def turned(circle: list[str]) -> tuple[str, ...]:
    """Return a cycle turned so that its smallest name comes first."""
    at = circle.index(min(circle))
    return (*circle[at:], *circle[:at])
