"""What a benchmark is: a case, two sides that come to one result, and what is asked of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
#: What is timed: one call computes the result.
Work = Callable[[], Array]
#: (ours, plain) -> how far the results are apart, and how far they may be (NaN where nothing is compared).
Difference = Callable[[Array, Array], tuple[float, float]]
#: The result of a side that is not run.
NOTHING = np.empty(0)


@dataclass(frozen=True)
class Side:
    """One route: `prepare(*arguments)` returns the work to time, called once and then `repeats` times.

    share: the part of the case it does; its times are divided by it. instead: why it is not run.
    """

    prepare: Callable[..., Work] | None
    arguments: tuple[object, ...] = ()
    repeats: int = 5
    share: float = 1.0
    instead: str = ""


@dataclass(frozen=True)
class Case:
    """Two routes to one result, and what is asked of ours.

    difference: given NOTHING as plain where that side is not run. Targets: least ratio plain to ours, most
    seconds, most bytes.
    """

    name: str
    about: str
    ours: Side
    plain: Side
    difference: Difference
    ratio: float | None = None
    seconds: float | None = None
    peak: float | None = None
