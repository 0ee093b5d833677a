"""Probes: what a client of the system under stress would have felt, measured on an intended schedule."""
