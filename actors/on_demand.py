"""A mapping whose names are known at once, and whose values are made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


class OnDemand(Mapping[str, V]):
    """Values by name. Only asking for a value makes it; names, membership and length do not."""

    def __init__(self, names: Iterable[str], make: Callable[[str], V]) -> None:
        self._made: dict[str, V] = {}
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> V:
        """Return the value of a name. Raises `KeyError`, and what making it raises."""
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
