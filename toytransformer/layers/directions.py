"""In which vectors the streams of a stack are written, and what features they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from toytransformer import hidden, kernel
from toytransformer.layers.stack import Stack
from toytransformer.memory import require_memory
from toytransformer.regimes import Finite, square_root, streams

Array = np.ndarray


class Directions:
    """In which vectors a stack's streams are written, and what features they have: the limit's.

    A stream is coefficients on words, (position, word, token): word 0 is the embeddings, word w + 2^k what
    value matrix k + 1 makes of word w. With d -> infinity these are orthonormal, and attention is uniform.
    """

    def __init__(self, stack: Stack, tokens: Sequence[str], entities: Sequence[str]):
        self.stack = stack
        labels = [entity if stack.tied else f"label of {entity}" for entity in entities]
        self.tokens = tuple(dict.fromkeys((*tokens, *labels)))
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.labels = np.array([self.index[label] for label in labels])

    def hidden(self, layer: int, coefficients: Float[Array, "position word token"]) -> Array:
        """The hidden states of a layer up to a rotation, (position, direction), from h's coefficients."""
        return coefficients.reshape(len(coefficients), -1)

    def logits(self, layer: int, stream: Float[Array, "position word token"]) -> Array:
        """What position p's query gives position q's key, (p, q); 0 where attention is uniform."""
        return np.zeros((len(stream),) * 2)

    def unembedded(self, stream: Float[Array, "position word token"]) -> Float[Array, "position entity"]:
        """<u_e, r> for the last layer's stream."""
        return stream[:, 0, self.labels]

    def features(
        self, layer: int, states: Float[Array, "position direction"], *, neurons: bool
    ) -> Float[Array, "position feature"]:
        """Coordinates whose inner products are those of relu(U_l h), or neurons where a rule needs them."""
        regime = self.stack.regime
        if isinstance(regime, Finite) or neurons:
            width = regime.width if isinstance(regime, Finite) else regime.quadrature
            require_memory(3 * 8 * len(states) * width, f"features of {len(states)} positions at m = {width}")
            rng = jax.random.fold_in(streams(regime.seed)[1], layer)
            return np.asarray(hidden.sample_features(rng, jnp.asarray(states), width=width), float)
        return square_root(kernel.relu_gram(states @ states.T))


class SampledDirections(Directions):
    """Embeddings and matrices of one draw at finite d.

    given: the embeddings (token, d) and by layer the values, keys and queries (d, d) of a network at hand,
    drawn from the seed where None; tokens are in the order of `tokens`.
    """

    def __init__(self, stack: Stack, tokens: Sequence[str], entities: Sequence[str]):
        super().__init__(stack, tokens, entities)
        regime = stack.regime
        d, count = int(regime.dimension), len(self.tokens)
        words = 2**stack.count if stack.attention_stays else 2
        require_memory(8 * d * (3 * d + 2 * words * count), f"a stack with d = {d} and {count} tokens")
        self._set(self._draw(0, 0, count), [self._draw(layer, 0, d) for layer in range(1, stack.count + 1)])

    def _draw(self, layer: int, what: int, rows: int) -> Array:
        regime = self.stack.regime
        d, rng = int(regime.dimension), np.random.default_rng((regime.seed, layer, what))
        return hidden.INITS[regime.init](d) * rng.standard_normal((rows, d))

    def _set(self, embeddings: Array, values: Sequence[Array]) -> None:
        self._streams, self._hidden = [embeddings[None]], []
        for value in values:
            below = self._streams[-1]
            self._hidden.append(np.concatenate([below, below @ value.T]))
            self._streams.append(self._hidden[-1] if self.stack.attention_stays else below)

    def _vectors(self, basis: Array, coefficients: Array) -> Array:
        return coefficients.reshape(len(coefficients), -1) @ basis.reshape(-1, basis.shape[-1])

    def hidden(self, layer: int, coefficients: Float[Array, "position word token"]) -> Array:
        return self._vectors(self._hidden[layer - 1], coefficients)

    def keys_and_queries(self, layer: int) -> tuple[Array, Array]:
        """K_l and Q_l, each (d, d)."""
        d = int(self.stack.regime.dimension)
        return self._draw(layer, 1, d), self._draw(layer, 2, d)

    def logits(self, layer: int, stream: Float[Array, "position word token"]) -> Array:
        if self.stack.regime.attention == "uniform":
            return super().logits(layer, stream)
        vectors = self._vectors(self._streams[layer - 1], stream)
        key, query = self.keys_and_queries(layer)
        return (vectors @ query.T) @ (vectors @ key.T).T

    def unembedded(self, stream: Float[Array, "position word token"]) -> Float[Array, "position entity"]:
        return self._vectors(self._streams[-1], stream) @ self._streams[0][0][self.labels].T


def drawn(stack: Stack, tokens: Sequence[str], entities: Sequence[str]) -> Directions:
    """The directions of the stack's regime."""
    return (Directions if math.isinf(stack.regime.dimension) else SampledDirections)(stack, tokens, entities)
