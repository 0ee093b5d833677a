"""`config show`: every setting, its value, and where it came from."""

from __future__ import annotations

import typer

from . import options
from .output import emit, table

app = typer.Typer(name="config", help="Settings: default < profile < file < environment < scenario < flag.", no_args_is_help=True)


def show(
    profile: options.Profile = None,
    out: options.Out = None,
    config: options.Config = None,
    address: options.NoAddress = None,  # noqa: ARG001  # every command takes an address
    as_json: options.Json = False,
) -> int:
    """Print every setting with its value and its origin.

    Examples:
      stress-cluster config show
      STRESS_CLUSTER_LEASE_S=2 stress-cluster config show --json
    """
    found = options.resolve(config, profile=profile, out=out).to_json()
    rows = [(path, "none" if entry["value"] is None else entry["value"], entry["origin"]) for path, entry in found.items()]
    emit(found, as_json, table(("setting", "value", "origin"), rows))
    return 0
