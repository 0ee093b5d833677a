"""The guardian: one small process per machine that ends loads and undoes effects whatever else dies.

`core` decides (pure), `server` acts, `standby` takes over, `spawn` starts it, `client` talks to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import GuardianClient, GuardianError
    from .core import GuardianCore

__all__ = ["GuardianClient", "GuardianCore", "GuardianError"]


def __getattr__(name: str) -> object:
    """Load each side only where it is used: the guardian's own archive has no client, and a client needs no decisions."""
    if name in {"GuardianClient", "GuardianError"}:
        from . import client  # noqa: PLC0415  # see above

        return getattr(client, name)
    if name == "GuardianCore":
        from .core import GuardianCore  # noqa: PLC0415  # see above

        return GuardianCore
    raise AttributeError(name)
