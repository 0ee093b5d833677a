"""`cluster.run` and `cluster.exhaust` in a job or a notebook: an outcome says how it ended, a handle what is held."""

from __future__ import annotations

from pathlib import Path

import cluster
from scenarios import Descriptors, Targets
from scenarios.catalogue.burst import scenario

outcome = cluster.run(scenario)
more = cluster.run(
    scenario, nodes=3, seed=7, out=Path("runs"), timeout_s=90.0, allow_starve=True, quiet=True, settings={"profile": "conservative"}
)
status: str = outcome.status
code: int = outcome.exit_code
where: Path | None = more.run_dir
doses = outcome.summary["dose"]

taken = cluster.exhaust(Descriptors(count=200), for_s=10.0)
with cluster.exhaust(Descriptors(count=200), for_s=10.0, hold=True, targets=Targets(count=2), address="auto") as held:
    counted: float = held.held[0].achieved
    on: tuple[str, ...] = held.nodes
given_back: str = held.release().status
taken_dose = taken.summary["dose"]

cluster.exhaust(Descriptors(count=200))  # E: [call-overload]
cluster.exhaust(Descriptors(count=200), for_s="10s")  # E: [call-overload]
cluster.exhaust("Descriptors", for_s=10.0)  # E: [call-overload]
cluster.exhaust(Descriptors(count=200), for_s=10.0, node=3)  # E: [call-overload]
cluster.exhaust(Descriptors(count=200), for_s=10.0).release()  # E: [attr-defined]
cluster.run()  # E: [call-arg]
cluster.run("burst")  # E: [arg-type]
cluster.run(scenario, node=3)  # E: [call-arg]
cluster.run(scenario, nodes="3")  # E: [arg-type]
cluster.run(scenario, timeout_s="90s")  # E: [arg-type]
cluster.run(scenario, 3)  # E: [arg-type, call-arg]
outcome.passed  # E: [attr-defined]
outcome.exit_code = 0  # E: [misc]
raise SystemExit(outcome.exit_code)
