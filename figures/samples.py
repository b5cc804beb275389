"""Rows of sampled networks: how c1 and c2 converge, and how far one edit leaks onto other prompts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from figures.store import Row, described, short
from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.regimes import Finite, square_root

Job = Callable[[], list[Row]]


def overlaps(
    prompts: Sequence[Prompt], *, dimension: float, width: float, mask: str, seed: int, draws: int
) -> np.ndarray:
    """`draws` independent values of c = k(prompts[0], p) / k(prompts[0], prompts[0]), (draw, p)."""
    coefficients = hidden.token_coefficients(prompts, mask)
    exact = square_root(coefficients.full_limit_gram()) if dimension == math.inf else None
    rngs = jax.random.split(jax.random.key(seed), draws)
    on_tokens = (coefficients.residual.toarray(), coefficients.attention.toarray())
    return np.asarray(_overlaps(rngs, *on_tokens, exact, dimension=dimension, width=width))


@functools.partial(jax.jit, static_argnames=("dimension", "width"))
def _overlaps(rngs, residual, attention, exact, *, dimension: float, width: float):
    def one(rng):
        rng_states, rng_neurons = jax.random.split(rng)
        states = exact
        if exact is None:
            states = hidden.sample_states(rng_states, residual, attention, dimension=dimension)
        if width == math.inf:
            gram = kernel.relu_gram(states @ states.T)
        else:
            gram = hidden.sample_feature_gram(rng_neurons, states, width=width)
        return gram[0] / gram[0, 0]

    return jax.vmap(one)(rngs)


def limits_and_errors(
    prompts: Sequence[Prompt], *, dimension: float, width: float, mask: str
) -> tuple[np.ndarray, np.ndarray]:
    """The full-limit c of every prompt and the derived standard error of one draw of it at (d, m)."""
    coefficients = hidden.token_coefficients(prompts, mask)
    gram = coefficients.full_limit_gram()
    own = np.diag(gram)
    limit = kernel.overlap(own[0], gram[0], own)
    from_width = kernel.overlap_standard_error(own[0], gram[0], own, width)
    from_dimension = [
        hidden.overlap_dimension_standard_error(coefficients, 0, j, dimension) for j in range(len(prompts))
    ]
    return limit, np.hypot(from_width, from_dimension)


ASKED = Prompt("x", ("R1", "R2"))
HOPS = {"c1": Prompt("x", ("R1",)), "c2": Prompt("y", ("R2",))}


def _convergence(varies: str, size: int, seed: int, draws: int) -> list[Row]:
    sizes = {"dimension": math.inf, "width": math.inf} | {varies: size}
    found = []
    for number, (name, trained) in enumerate(HOPS.items()):
        prompts = (trained, ASKED)
        drawn = overlaps(prompts, **sizes, mask="strict", seed=seed + number, draws=draws)
        limit, error = limits_and_errors(prompts, **sizes, mask="strict")
        found.append(
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
    return found


def convergence_jobs() -> list[Job]:
    sizes = {"width": [4**k for k in range(4, 9)], "dimension": [4**k for k in range(3, 8)]}
    return [
        functools.partial(_convergence, varies, size, seed=0, draws=60)
        for varies, several in sizes.items()
        for size in several
    ]


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
    prompts, sizes = [prompt for _, prompt in LEAKS], {"dimension": dimension, "width": width, "mask": mask}
    drawn = overlaps(prompts, **sizes, seed=seed, draws=draws)
    limit, error = limits_and_errors(prompts, **sizes)
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


def leak_jobs() -> list[Job]:
    return [
        functools.partial(_leak, mask, dimension=1024, width=4096, seed=0, draws=24)
        for mask in ("strict", "causal")
    ]
