"""Sampled networks: draws of c = k(p, q) / k(p, p), its limit and the derived standard error of a draw."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.regimes import square_root


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
def _overlaps(
    rngs: jax.Array,
    residual: np.ndarray,
    attention: np.ndarray,
    exact: np.ndarray | None,
    *,
    dimension: float,
    width: float,
) -> jax.Array:
    def one(rng: jax.Array) -> jax.Array:
        rng_states, rng_neurons = jax.random.split(rng)
        if exact is None:
            states = hidden.sample_states(rng_states, residual, attention, dimension=dimension)
        else:
            states = exact
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
