"""Faults of `mutants.py` that change nothing which could be seen, by name, each with its reason; they are not drawn."""

EQUIVALENT: dict[str, str] = {}
