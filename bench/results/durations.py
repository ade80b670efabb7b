"""Lengths of time, for people."""

from __future__ import annotations

_UNITS = ((48 * 3600.0, "days", 24 * 3600.0), (5400.0, "hours", 3600.0), (90.0, "min", 60.0))


def duration(seconds: float) -> str:
    """12.3 is 12 s; 7200 is 2.0 hours."""
    for least, unit, size in _UNITS:
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
