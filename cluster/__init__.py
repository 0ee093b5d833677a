"""Runs scenarios on a Ray cluster, watches them, tells about them."""

__distribution__ = "stress-cluster"
