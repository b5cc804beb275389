"""How large a measurement of this domain is, by the profile's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Programs and sentences trained on; functions asked in each language, None for all.

    own: programs and sentences that say whether each was learned; dev: of both, on which Arrow's temperature
    is chosen. None of them is trained on.
    """

    programs: int
    sentences: int
    asked: int | None
    own: int
    dev: int


SIZES: dict[str, Size] = {
    "embedded": Size(programs=3, sentences=3, asked=3, own=1, dev=2),
    "paper": Size(programs=324, sentences=4000, asked=None, own=50, dev=50),
    "small": Size(programs=324, sentences=500, asked=None, own=30, dev=20),
    "brief": Size(programs=160, sentences=250, asked=None, own=15, dev=10),
}
