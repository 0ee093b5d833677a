"""A Ray job in three lines: `ray job submit --working-dir . -- python examples/burst_job.py` from the repository's root."""

import cluster
from scenarios.catalogue.burst import scenario

raise SystemExit(cluster.run(scenario).exit_code)
