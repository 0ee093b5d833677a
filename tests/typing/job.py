"""`cluster.run` in a job or a notebook: its options are those of the run, and the outcome says how it ended."""

from __future__ import annotations

from pathlib import Path

import cluster
from scenarios.catalogue.burst import scenario

outcome = cluster.run(scenario)
more = cluster.run(
    scenario, nodes=3, seed=7, out=Path("runs"), timeout_s=90.0, allow_starve=True, quiet=True, settings={"profile": "conservative"}
)
status: str = outcome.status
code: int = outcome.exit_code
where: Path | None = more.run_dir
doses = outcome.summary["dose"]

cluster.run()  # E: [call-arg]
cluster.run("burst")  # E: [arg-type]
cluster.run(scenario, node=3)  # E: [call-arg]
cluster.run(scenario, nodes="3")  # E: [arg-type]
cluster.run(scenario, timeout_s="90s")  # E: [arg-type]
cluster.run(scenario, 3)  # E: [arg-type, call-arg]
outcome.passed  # E: [attr-defined]
outcome.exit_code = 0  # E: [misc]
raise SystemExit(outcome.exit_code)
