"""What keeps a run safe: limits by profile, policies over snapshots, the ledger of what all runs together may take."""

from __future__ import annotations

from .policies import Level, Policy, Situation, Verdict, busy_since, judge, next_ceiling, worst
from .profiles import Limits, check_planned, limits_for

__all__ = [
    "Level",
    "Limits",
    "Policy",
    "Situation",
    "Verdict",
    "busy_since",
    "check_planned",
    "judge",
    "limits_for",
    "next_ceiling",
    "worst",
]
