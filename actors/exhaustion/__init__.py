"""Simulators that use up what the kernel counts: descriptors, map entries, sockets, ports, threads, processes, inodes, disk bandwidth.

One simulator a file; what they share is in `holder`. What they hold ends with their process: none of it needs an undo.
"""
