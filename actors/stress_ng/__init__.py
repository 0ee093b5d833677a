"""stress-ng as a simulator: any of its stressors by name, under our lease, ceiling, reservation and measurement.

`rules` says what may run (pure), `tree` reaches its processes, `load` is what a load process runs, `record` tells of it.
"""
