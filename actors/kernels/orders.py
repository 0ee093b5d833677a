"""The orders in which the kernel `walk` reads, by the name of a pattern and by the number that the kernel knows."""

from __future__ import annotations

from typing import Final

SEQUENTIAL: Final = 0
STRIDED: Final = 1
RANDOM: Final = 2
CHASE: Final = 3
HOT_SPOT: Final = 4
FILL: Final = 5
LINK: Final = 6
PATTERNS: Final = {"sequential": SEQUENTIAL, "strided": STRIDED, "random": RANDOM, "pointer_chase": CHASE, "hot_spot": HOT_SPOT}
