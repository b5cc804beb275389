"""Many independent networks at once: coefficients of one composition over draws of embeddings and neurons."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.memory import require_memory
from toytransformer.regimes import Finite, FullLimit, RegimeError, WidthLimit, streams

#: Networks computed side by side: enough for the vector units, few enough that memory stays that of a few.
BATCH = 8


def overlap_draws(
    regime: Finite | WidthLimit, keys: Sequence[Prompt], query: Prompt, draws: int
) -> Float[np.ndarray, "draw key"]:
    """c = k(key, query) / k(key, key) of every key in `draws` independent networks, (draw, key), float64.

    c is what a one-fact edit at the key contributes at the query, per unit of its change (kernel.overlap).
    Draw i is the network of `regime` with seed `regime.seed + i`: the numbers of one network after the other,
    up to rounding. They are compiled once and run BATCH at a time, so memory grows with `draws` only through
    the prompt x prompt Gram matrix of each.

    Raises RegimeError for the full limit (nothing to draw), fewer than 1 draw, seeds of 2^31 and more, no
    keys, and a key whose features are all zero, where c has no value; NotEnoughMemoryError before the work.
    """
    if isinstance(regime, FullLimit):
        raise RegimeError("the full limit has nothing to draw; give a finite dimension or width")
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise RegimeError(f"draws is {draws!r}; it must be a whole number >= 1")
    if regime.seed + draws > 2**31:
        raise RegimeError(f"seed {regime.seed} + {draws} draws goes beyond 2^31; use a smaller seed")
    if not keys:
        raise RegimeError("there are no keys; give the prompt of at least one fact")
    prompts = tuple(dict.fromkeys((*keys, query)))
    tokens = {token for prompt in prompts for token in prompt.tokens}
    embedded = 0 if np.isinf(regime.dimension) else regime.dimension * (4 * len(tokens) + 2 * len(prompts))
    neurons = 2 * len(prompts) * min(getattr(regime, "width", 0), hidden.CHUNK)
    require_memory(
        8 * (BATCH * (embedded + neurons) + 2 * draws * len(prompts) ** 2),
        f"{draws} draws of {len(prompts)} prompts at d = {regime.dimension}",
    )
    seeds = np.arange(regime.seed, regime.seed + draws, dtype=np.uint32)
    gram = np.asarray(gram_matrices(seeds, regime=replace(regime, seed=0), prompts=prompts), float)
    if not isinstance(regime, Finite):
        gram = kernel.relu_gram(gram)
    rows = [prompts.index(key) for key in keys]
    own = gram[:, rows, rows]
    if not np.all(own > 0):
        draw, key = np.argwhere(~(own > 0))[0]
        raise RegimeError(
            f"every feature of {keys[key]} is zero at seed {regime.seed + draw}; give a larger width (-m)"
        )
    return gram[:, rows, prompts.index(query)] / own


@functools.partial(jax.jit, static_argnames=("regime", "prompts"))
def gram_matrices(seeds: jax.Array, *, regime: Finite | WidthLimit, prompts: tuple[Prompt, ...]) -> jax.Array:
    """For each seed the Gram matrix of the features, or of the hidden states in the width limit."""

    def network(seed: jax.Array) -> jax.Array:
        rng_embeddings, rng_neurons = streams(seed)
        states = regime.draw_states(rng_embeddings, prompts)
        if not isinstance(regime, Finite):
            return jnp.asarray(states @ states.T)
        return hidden.sample_feature_gram(rng_neurons, states, width=regime.width)

    return jax.lax.map(network, seeds, batch_size=BATCH)
