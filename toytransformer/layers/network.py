"""The stack itself, every matrix explicit and every position computed (flax.nnx): the independent route.

    h_l(i) = r_{l-1}(i) + sum_j a_ij V_l r_{l-1}(j),  r_l(i) = h_l(i) + sum_e (W_l phi(h_l(i)))[e] u_e

All is random and frozen but the readouts W_l, (layer, entity, neuron), which are 0 until they are set; phi is
sqrt(2/m) relu(U_l h), as in regimes.py. `NetworkDirections` lets `predict` train and merge in this very
network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from toytransformer import hidden
from toytransformer.compositions import Prompt
from toytransformer.layers.directions import SampledDirections
from toytransformer.layers.stack import Stack
from toytransformer.memory import require_memory
from toytransformer.network import Frozen
from toytransformer.regimes import Finite, RegimeError

Array = np.ndarray


class StackedTransformer(nnx.Module):
    """A stack in the finite regime, for prompts of these tokens and answers among these entities.

    Errors: RegimeError for a stack of another regime; NotEnoughMemoryError.
    """

    def __init__(self, stack: Stack, tokens: Sequence[str], entities: Sequence[str], *, rngs: nnx.Rngs):
        if not isinstance(stack.regime, Finite) or np.isinf(stack.regime.dimension):
            raise RegimeError(f"a network is finite; the stack's regime is {stack.regime.describe()}")
        d, m, count = int(stack.regime.dimension), stack.regime.width, stack.count
        self.stack, self.entities = stack, tuple(entities)
        every = (*tokens, *(self.label(entity) for entity in entities))
        self.tokens = tuple(dict.fromkeys(every))
        numbers = len(self.tokens) * d + count * (3 * d * d + m * d + m * len(entities))
        require_memory(8 * numbers, f"a network of {count} layers with d = {d}, m = {m}")
        scale = hidden.INITS[stack.regime.init](d)

        def draw(*shape: int) -> jax.Array:
            return scale * jax.random.normal(rngs.params(), shape)

        self.embedding = Frozen(draw(len(self.tokens), d))
        self.value, self.key, self.query = (Frozen(draw(count, d, d)) for _ in range(3))
        self.up = Frozen(draw(count, m, d))
        self.readout = nnx.Param(jnp.zeros((count, len(self.entities), m)))

    def label(self, entity: str) -> str:
        """The token whose embedding is u_e: the entity's own where labels are tied."""
        return entity if self.stack.tied else f"label of {entity}"

    def __call__(self, prompts: Sequence[Prompt]) -> Float[jax.Array, "prompt entity"]:
        """Scores at the last position of each prompt."""
        ids, present = hidden.padded_token_ids(prompts, self.tokens)  # right-aligned
        regime, size = self.stack.regime, ids.shape[1]
        width = self.up.shape[1]
        later = jnp.arange(size)[None, :] < jnp.arange(size)[:, None] + (regime.mask != "strict")
        seen = later[None] & jnp.asarray(present)[:, None, :]
        position = present.cumsum(axis=1)
        stream: jax.Array = (
            self.embedding[...][ids] * jnp.where(position == 1, 1.0, regime.relation_length)[..., None]
        )
        kept = jnp.asarray(
            1 / position.clip(1) if regime.mask == "causal-printed" else np.ones(position.shape)
        )
        labels = self.embedding[...][np.array([self.tokens.index(self.label(e)) for e in self.entities])]
        total = jnp.zeros((*ids.shape, len(self.entities)))
        for layer in range(self.stack.count):
            logits = jnp.zeros(seen.shape)
            if regime.attention == "softmax":
                queries, keys = stream @ self.query[layer].T, stream @ self.key[layer].T
                logits = jnp.einsum("pid,pjd->pij", queries, keys)
            weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1, where=seen)
            attended = jnp.einsum("pij,pjd->pid", jnp.where(seen, weights, 0.0), stream @ self.value[layer].T)
            state = kept[..., None] * stream + attended
            active = math.sqrt(2 / width) * jax.nn.relu(state @ self.up[layer].T)
            written = active @ self.readout[layer].T
            total = total + written
            stream = jnp.asarray(state if self.stack.attention_stays else stream) + written @ labels
        return (stream @ labels.T if self.stack.unembedding else total)[:, -1]


class NetworkDirections(SampledDirections):
    """The matrices and neurons of a network in place of a draw."""

    def __init__(self, network: StackedTransformer):
        self._network = network
        super().__init__(network.stack, network.tokens, network.entities)

    def _draw(self, layer: int, what: int, rows: int) -> Array:
        net = self._network
        if layer == 0:
            return np.asarray(net.embedding[...], float)
        return np.asarray((net.value, net.key, net.query)[what][layer - 1], float)

    def features(
        self, layer: int, states: Float[Array, "position direction"], *, neurons: bool
    ) -> Float[Array, "position feature"]:
        up = np.asarray(self._network.up[layer - 1], float)
        return np.sqrt(2 / len(up)) * np.maximum(states @ up.T, 0.0)
