"""Destinations of a run's metrics, one file each."""
