"""Long lists of keys, shortened for a message."""

from __future__ import annotations

from collections.abc import Sequence

from paramerge.errors import shortened


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first names, each shortened, and how many more there are."""
    shown = ", ".join(map(shortened, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
