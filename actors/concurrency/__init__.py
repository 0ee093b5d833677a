"""Concurrency: loads whose effect is threads, tasks or processes that stand in each other's way. One simulator a file.

`locks` counts what happens at a lock, `wait_graph` finds cycles of waiting, `crew` runs the threads of a load and carries their errors.
"""
