"""The one-layer transformer itself, every matrix explicit (flax.nnx): the independent route to regimes.py.

    h(p) = r e_{p_N} + sum_i a_i V e_{p_i},  a softmax or uniform over visible positions,  output W relu(U h)

E, K, Q, V, U are random and frozen, only W (and LoRA factors beside it) is trained. Costs d x d and m x d
numbers; the regimes reach the same law with far fewer (hidden.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from toytransformer import hidden
from toytransformer.compositions import Prompt
from toytransformer.memory import require_memory
from toytransformer.regimes import Finite


class Frozen(nnx.Variable):
    """A random matrix that training never touches."""


class OneLayerTransformer(nnx.Module):
    """Random-features transformer of section 3.1; its readout W (entity, neuron) is 0 until `fit_readout`.

    lengths: by how much the embeddings of some tokens are longer than those of the others.
    Raises RegimeError and NotEnoughMemoryError as a regime does, and ValueError for a prompt with a token
    that is not one of `tokens`.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        entities: Sequence[str],
        *,
        dimension: int,
        width: int,
        mask: str = "strict",
        attention: str = "uniform",
        init: str = "standard-deviation",
        lengths: Mapping[str, float] | None = None,
        rngs: nnx.Rngs,
    ):
        # A regime of these sizes refuses what no network has.
        Finite(dimension=dimension, width=width, mask=mask, attention=attention, init=init)
        numbers = (3 * dimension + len(tokens)) * dimension + (dimension + len(entities)) * width
        require_memory(8 * numbers, f"a network with d = {dimension}, m = {width}")
        self.tokens, self.entities = tuple(tokens), tuple(entities)
        self.mask, self.attention = mask, attention
        scale = hidden.INITS[init](dimension)

        def draw(*shape: int) -> jax.Array:
            return scale * jax.random.normal(rngs.params(), shape)

        long = jnp.array([(lengths or {}).get(token, 1.0) for token in self.tokens])
        self.embedding = Frozen(long[:, None] * draw(len(self.tokens), dimension))
        self.key, self.query, self.value = (Frozen(draw(dimension, dimension)) for _ in range(3))
        self.up = Frozen(draw(width, dimension))
        self.readout = nnx.Param(jnp.zeros((len(self.entities), width)))

    def states(self, prompts: Sequence[Prompt]) -> jax.Array:
        """Hidden states at the last position, (prompt, dimension)."""
        ids, present = hidden.padded_token_ids(prompts, self.tokens)
        embedded = self.embedding[...][ids]
        last = embedded[:, -1]
        seen = jnp.asarray(present)
        if self.mask == "strict":
            seen = seen.at[:, -1].set(False)
        if self.attention == "softmax":
            keys, query = embedded @ self.key[...].T, last @ self.query[...].T
            logits = jnp.einsum("pnd,pd->pn", keys, query)
        else:
            logits = jnp.zeros(seen.shape)
        weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
        attended = jnp.einsum("pn,pnd->pd", weights, embedded) @ self.value[...].T
        residual = 1.0 / present.sum(-1, keepdims=True) if self.mask == "causal-printed" else 1.0
        return residual * last + attended

    def features(self, prompts: Sequence[Prompt]) -> jax.Array:
        """phi(h) = relu(U h), (prompt, neuron), unnormalised."""
        return jax.nn.relu(self.states(prompts) @ self.up[...].T)

    def __call__(self, prompts: Sequence[Prompt], delta: jax.Array | float = 0.0) -> jax.Array:
        """(W + Delta W) phi(h), (prompt, entity)."""
        return self.features(prompts) @ (self.readout[...] + delta).T

    def fit_readout(self, prompts: Sequence[Prompt], outputs: np.ndarray) -> None:
        """Set W to the least-norm readout with the given outputs (prompt, entity) on the prompts."""
        solution = jnp.linalg.lstsq(self.features(prompts), jnp.asarray(outputs))[0]
        self.readout[...] = solution.T
