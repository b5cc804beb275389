"""Rows of figure convergence: c1 and c2 of sampled networks, by width and by dimension."""

from __future__ import annotations

import functools
import math

from figures.store import Row, short
from figures.theory import Computation
from figures.theory.samples import limits_and_errors, overlaps
from toytransformer.compositions import Prompt

QUESTION = Prompt("x", ("R1", "R2"))
HOPS = {"c1": Prompt("x", ("R1",)), "c2": Prompt("y", ("R2",))}


def _convergence(varies: str, size: int, seed: int, draws: int) -> list[Row]:
    sizes = {"dimension": math.inf, "width": math.inf} | {varies: size}
    rows = []
    for number, (name, trained) in enumerate(HOPS.items()):
        prompts = (trained, QUESTION)
        drawn = overlaps(prompts, **sizes, mask="strict", seed=seed + number, draws=draws)
        limit, error = limits_and_errors(prompts, **sizes, mask="strict")
        rows.append(
            {
                "varies": varies,
                "size": size,
                "coefficient": name,
                "facts": 1,
                "limit": short(limit[1]),
                "standard_error": short(error[1]),
                "deviations": [short(value) for value in drawn[:, 1] - limit[1]],
                "regime": {"name": "limit but for the " + varies, "mask": "strict", "attention": "uniform"},
                "seeds": [seed + number],
                "draws": draws,
            }
        )
    return rows


def jobs() -> list[Computation]:
    sizes = {"width": [4**k for k in range(4, 9)], "dimension": [4**k for k in range(3, 8)]}
    return [
        functools.partial(_convergence, varies, size, seed=0, draws=60)
        for varies, several in sizes.items()
        for size in several
    ]
