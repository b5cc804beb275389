"""Rows of figure leak: how far one edit leaks onto other prompts, in closed form and sampled."""

from __future__ import annotations

import functools

from figures.store import Row, described, short
from figures.theory import Computation
from figures.theory.samples import limits_and_errors, overlaps
from toytransformer.compositions import Prompt
from toytransformer.regimes import Finite

#: What is asked after x R1 was edited: what it shares with the edit, and the prompt.
LEAKS = (
    ("both", Prompt("x", ("R1",))),
    ("the entity", Prompt("x", ("R3",))),
    ("the relation", Prompt("u", ("R1",))),
    ("nothing", Prompt("u", ("R3",))),
    ("both, in order", Prompt("x", ("R1", "R2"))),
    ("both, swapped", Prompt("x", ("R2", "R1"))),
    ("the entity", Prompt("x", ("R3", "R2"))),
    ("the relation, first", Prompt("u", ("R1", "R2"))),
    ("the relation, last", Prompt("u", ("R2", "R1"))),
    ("nothing", Prompt("u", ("R3", "R2"))),
)


def _leak(mask: str, dimension: int, width: int, seed: int, draws: int) -> list[Row]:
    prompts = [prompt for _, prompt in LEAKS]
    drawn = overlaps(prompts, dimension=dimension, width=width, mask=mask, seed=seed, draws=draws)
    limit, error = limits_and_errors(prompts, dimension=dimension, width=width, mask=mask)
    return [
        {
            "mask": mask,
            "edit": str(prompts[0]),
            "prompt": str(prompt),
            "shares": shares,
            "hops": prompt.hops,
            "facts": 1,
            "limit": short(limit[j]),
            "standard_error": short(error[j]),
            "samples": [short(value) for value in drawn[:, j]],
            "regime": described(Finite(dimension=dimension, width=width, mask=mask, seed=seed)),
            "seeds": [seed],
            "draws": draws,
        }
        for j, (shares, prompt) in enumerate(LEAKS)
    ]


def jobs() -> list[Computation]:
    return [
        functools.partial(_leak, mask, dimension=1024, width=4096, seed=0, draws=24)
        for mask in ("strict", "causal")
    ]
