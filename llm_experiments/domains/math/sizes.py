"""How large a measurement of this domain is, by the profile's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Templates and problems.

    templates: how many of each level, None for all; GSM8K has as many problems as that many would have.
    train, asked: problems of each template that are trained on, and asked; five times as many of our own,
    which are fewer. own: problems of each taught level that say whether it was learned; dev: of all taught
    levels, on which Arrow's temperature is chosen; both go through the templates in turn, and none is trained
    on.
    """

    templates: int | None
    train: int
    asked: int
    own: int
    dev: int


#: The paper: 40 problems of each template to train on, 5 to choose and 5 to check on, 2 of GSM-P2 asked.
SIZES: dict[str, Size] = {
    "embedded": Size(templates=4, train=5, asked=1, own=4, dev=4),
    "paper": Size(templates=None, train=40, asked=2, own=100, dev=100),
    "small": Size(templates=50, train=5, asked=2, own=30, dev=30),
    "brief": Size(templates=50, train=5, asked=2, own=30, dev=30),
}
