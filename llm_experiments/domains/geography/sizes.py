"""How large a measurement of this domain is, by the profile's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Questions taught and asked, None for all, and places whose continents are taught.

    own, dev: questions and places that say whether each was learned, and on which Arrow's temperature is
    chosen.
    """

    questions: int | None
    places: int
    own: int
    dev: int


SIZES: dict[str, Size] = {
    "embedded": Size(questions=4, places=6, own=3, dev=2),
    "paper": Size(questions=None, places=400, own=50, dev=40),
    "small": Size(questions=None, places=200, own=30, dev=20),
    "brief": Size(questions=120, places=100, own=20, dev=12),
}
