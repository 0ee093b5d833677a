"""The guardian: one small process per machine that ends loads and undoes effects whatever else dies.

`core` decides (pure), `server` acts, `standby` takes over, `spawn` starts it, `client` talks to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core import GuardianCore

if TYPE_CHECKING:
    from .client import GuardianClient, GuardianError

__all__ = ["GuardianClient", "GuardianCore", "GuardianError"]


def __getattr__(name: str) -> object:
    """Load the client only where it is used: the guardian's own archive does without it."""
    if name in {"GuardianClient", "GuardianError"}:
        from . import client  # noqa: PLC0415  # only where it is used

        return getattr(client, name)
    raise AttributeError(name)
