"""What runs on a node: simulators, the guardian, recording of metrics. Imports nothing of Ray outside `shell`."""

__distribution__ = "stress-cluster"
