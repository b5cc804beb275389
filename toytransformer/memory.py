"""Refuse work that cannot fit in memory before it starts."""

from __future__ import annotations

import psutil


class NotEnoughMemoryError(MemoryError):
    """What was asked for needs more memory than the machine has free."""


def require_memory(needed: float, what: str) -> None:
    """Raise NotEnoughMemoryError if `needed` bytes for `what` exceed the memory now available."""
    available = psutil.virtual_memory().available
    if needed > available:
        size = f"{needed / 2**30:.1f}" if needed < 2**70 else f"more than {2**40:.0e}"
        raise NotEnoughMemoryError(
            f"{what} needs about {size} GiB and {available / 2**30:.1f} GiB are free; "
            "choose smaller sizes (fewer facts, smaller d or m) or a machine with more memory"
        )
