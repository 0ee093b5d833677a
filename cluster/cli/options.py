"""Options that several commands share, and what they resolve to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..settings import Settings, load

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output; progress goes to standard error.")]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster to use. Default: RAY_ADDRESS, else the embedded Ray of this user."),
]
NoAddress = Annotated[str | None, typer.Option("--address", hidden=True, help="Accepted by every command; not needed here.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML). Default: stress-cluster.toml in this folder.")]
Scenario = Annotated[
    str, typer.Argument(help="A catalogue name, a .py file with a Scenario named `scenario`, a .yaml file, or replay:RUN.")
]
Run = Annotated[str | None, typer.Argument(help="A run id, a run directory, or `latest`.")]
Nodes = Annotated[int | None, typer.Option("--nodes", min=1, max=64, help="Embedded Ray only: this many target raylets beside a head.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all chance in the run. Default: the scenario's own.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change one value of the scenario, such as seed=7 or plan.together.0.for=20s; repeatable."
    ),
]
Exports = Annotated[
    list[str] | None,
    typer.Option(
        "--export",
        metavar="TYPE:PATH",
        help="Write metrics to a file while the run goes on: json, jsonl, csv, parquet or arrow, under exports/ of the run directory or "
        "absolute on the aggregator's node, where {run} is the run's id; repeatable.",
    ),
]
Profile = Annotated[str | None, typer.Option("--profile", help="Safety profile: conservative, balanced or aggressive.")]
Out = Annotated[str | None, typer.Option("--out", help="Folder for run directories. Default: runs/.")]
AllowHead = Annotated[bool, typer.Option("--allow-head", help="The head node may be a target.")]
AllowStarve = Annotated[bool, typer.Option("--allow-starve", help="The plan may take the headroom of Ray's own processes.")]


def resolve(config: Path | None, **flags: Any) -> Settings:
    """Return the settings with these flags on top; `__` in a flag's name stands for the dot in a setting's."""
    return load({name.replace("__", "."): value for name, value in flags.items()}, config=config)
