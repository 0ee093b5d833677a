"""Loads whose work is done by Ray's own actors and tasks: floods of calls, of tasks, and a lock that an actor keeps. One simulator a file.

`flow` decides what is sent, `calls` sends and counts it, `ray_work` is what they need of Ray, `ray_load` carries them for the shell.
"""

__all__: list[str] = []
