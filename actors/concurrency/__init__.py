"""Loads that make others wait for each other: floods of calls and tasks, and locks that many want."""

__all__: list[str] = []
