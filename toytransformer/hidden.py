"""Hidden states of prompts: h(p) = r e_{p_N} + sum_i a_i V e_{p_i}, as coefficients on tokens and as Gram
matrices.

A prompt enters everything that follows only through its residual coefficients (on token embeddings e_t) and
its attention coefficients (on values V e_t). The mask says which positions are attended to:

    "strict"          eq. 5: the current position is not attended to; r = 1, a_i = 1/(N-1) for i < N
    "causal"          eq. 5 with the current position attended to: r = 1, a_i = 1/N for all i
    "causal-printed"  eq. 21 as printed: the residual stands inside the average, r = 1/N, a_i = 1/N

With uniform attention and d -> infinity, embeddings and values are orthonormal, so <h(p), h(p')> counts
shared tokens, those of relations `relation_length`^2 times where relations are that many times as long.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from toytransformer import kernel
from toytransformer.compositions import Prompt

MASKS = ("strict", "causal", "causal-printed")
ATTENTIONS = ("uniform", "softmax")
#: Neurons drawn at a time: large enough to be fast, small enough that memory does not grow with the width.
CHUNK = 2**14
#: How eq. 2's "N(0, 1/sqrt d)" is read (theory.md, R1): the standard deviation of an entry at dimension d.
INITS = {"standard-deviation": lambda d: d**-0.5, "variance": lambda d: d**-0.25}


@dataclass(frozen=True)
class TokenCoefficients:
    """Coefficients of n prompts on the tokens they mention, both sparse (prompt, token).

    lengths: |e_t| / |e_x| of each token, (token,); the coefficients, on embeddings of one length, hold it.
    """

    tokens: tuple[str, ...]
    residual: sparse.csr_array
    attention: sparse.csr_array
    lengths: np.ndarray

    def full_limit_gram(self) -> np.ndarray:
        """<h(p), h(p')> for d -> infinity, (prompt, prompt): no randomness left (theory.md section 2)."""
        states = sparse.hstack([self.residual, self.attention], format="csr")
        return (states @ states.T).toarray()

    def dimension_variance(self, weights: np.ndarray) -> float:
        """Derived d * Var of sum_ij weights_ij <h_i, h_j> at large d, for symmetric weights (prompt, prompt).

        <e_s, e_t> = 1[s=t] + X/sqrt d, <V e_s, V e_t> = 1[s=t] + (X + Z)/sqrt d, <e_s, V e_t> = Y/sqrt d
        with X, Z symmetric Gaussian (variance 1 + 1[s=t]) and Y independent standard Gaussian; collect the
        coefficients of each.
        """
        residual, attention = self.residual.toarray(), self.attention.toarray()
        on_tokens = residual.T @ weights @ residual
        on_values = attention.T @ weights @ attention
        mixed = residual.T @ weights @ attention
        return float(
            2 * np.sum((on_tokens + on_values) ** 2) + 2 * np.sum(on_values**2) + 4 * np.sum(mixed**2)
        )


def overlap_dimension_standard_error(
    coefficients: TokenCoefficients, key: int, query: int, dimension: float
) -> float:
    """Standard error of c = k(key, query) / k(key, key) at dimension d in the width limit (delta method).

    The slopes of c in the three entries of the hidden Gram matrix (kernel.overlap_gradient), as weights of
    `dimension_variance`. `key` and `query` are rows of `coefficients`.
    """
    gram = coefficients.full_limit_gram()
    slopes = kernel.overlap_gradient(gram[key, key], gram[key, query], gram[query, query])
    weights = np.zeros(gram.shape)
    np.add.at(
        weights,
        ([key, key, query, query], [key, query, key, query]),
        np.take(slopes, [0, 1, 1, 2]) * [1, 0.5, 0.5, 1],
    )
    return math.sqrt(coefficients.dimension_variance(weights) / dimension)


def token_coefficients(
    prompts: Sequence[Prompt], mask: str = "strict", relation_length: float = 1.0
) -> TokenCoefficients:
    """Residual and uniform-attention coefficients; ValueError for an unknown mask or a one-token prompt.

    relation_length: |e_R| / |e_x|, the length of a relation's embedding relative to an entity's.
    """
    if mask not in MASKS:
        raise ValueError(f"mask is {mask!r}; allowed: {', '.join(MASKS)}")
    tokens = tuple(dict.fromkeys(token for prompt in prompts for token in prompt.tokens))
    index = {token: i for i, token in enumerate(tokens)}
    relations = {relation for prompt in prompts for relation in prompt.relations}
    lengths = np.array([relation_length if token in relations else 1.0 for token in tokens])
    shape = (len(prompts), len(tokens))
    residual, attention = [], []
    for row, prompt in enumerate(prompts):
        length = len(prompt.tokens)
        if length < 2:
            raise ValueError(
                f"prompt {prompt} has one token; a prompt is an entity and at least one relation"
            )
        seen = prompt.tokens[:-1] if mask == "strict" else prompt.tokens
        residual.append((row, index[prompt.tokens[-1]], 1 / length if mask == "causal-printed" else 1.0))
        attention += [(row, index[token], 1 / len(seen)) for token in seen]
    return TokenCoefficients(
        tokens, _matrix(residual, shape, lengths), _matrix(attention, shape, lengths), lengths
    )


def _matrix(
    entries: list[tuple[int, int, float]], shape: tuple[int, int], lengths: np.ndarray
) -> sparse.csr_array:
    rows, columns, values = zip(*entries, strict=True)
    scaled = np.array(values) * lengths[list(columns)]
    return sparse.csr_array(sparse.coo_array((scaled, (rows, columns)), shape=shape))


@functools.partial(jax.jit, static_argnames=("dimension", "init"))
def sample_states(
    rng: jax.Array,
    residual: jax.Array,
    attention: jax.Array,
    *,
    dimension: int,
    init: str = "standard-deviation",
) -> jax.Array:
    """One draw of the hidden states with uniform attention, up to a common rotation: (prompt, direction).

    V is never formed: with E^T = Q R (thin QR), V E^T = (V Q) R and V Q has independent Gaussian entries, so
    tokens x d numbers are drawn instead of d x d. Only inner products of the result have a meaning.
    """
    scale = INITS[init](dimension)
    embeddings, values = _embed(rng, residual.shape[1], dimension, scale)
    return residual @ embeddings + attention @ values


@functools.partial(jax.jit, static_argnames=("tokens", "dimension", "init", "mask"))
def sample_softmax_states(
    rng: jax.Array,
    token_ids: jax.Array,
    present: jax.Array,
    lengths: jax.Array | None = None,
    *,
    tokens: int,
    dimension: int,
    init: str,
    mask: str,
) -> jax.Array:
    """One draw of the hidden states with the softmax attention of eq. 4, (prompt, dimension).

    token_ids (prompt, position), right-aligned so that the last column is the query; present marks real
    positions; lengths (token,), those of the embeddings, 1 where None. The logit of key token s and query
    token t is (K e_s).(Q e_t).
    """
    scale = INITS[init](dimension)
    rng_embed, rng_key, rng_query = jax.random.split(rng, 3)
    embeddings, values = _embed(rng_embed, tokens, dimension, scale)
    if lengths is not None:
        embeddings, values = lengths[:, None] * embeddings, lengths[:, None] * values
    _, upper = jnp.linalg.qr(embeddings.T)
    shape = (upper.shape[0], dimension)
    keys = upper.T @ (scale * jax.random.normal(rng_key, shape, embeddings.dtype))
    queries = upper.T @ (scale * jax.random.normal(rng_query, shape, embeddings.dtype))
    last = token_ids[:, -1]
    logits = jnp.einsum("pnd,pd->pn", keys[token_ids], queries[last])
    seen = present if mask != "strict" else present.at[:, -1].set(False)
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    residual = 1.0 / present.sum(-1, keepdims=True) if mask == "causal-printed" else 1.0
    return residual * embeddings[last] + jnp.einsum("pn,pnd->pd", weights, values[token_ids])


def _embed(rng: jax.Array, tokens: int, dimension: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """Embeddings e_t and values V e_t, each (token, dimension), the latter through a thin QR of E."""
    rng_e, rng_v = jax.random.split(rng)
    embeddings = scale * jax.random.normal(rng_e, (tokens, dimension))
    _, upper = jnp.linalg.qr(embeddings.T)
    drawn = scale * jax.random.normal(rng_v, (min(tokens, dimension), dimension), embeddings.dtype)
    return embeddings, upper.T @ drawn


def padded_token_ids(prompts: Sequence[Prompt], tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (prompt, position), right-aligned, and the mask of real positions."""
    index = {token: i for i, token in enumerate(tokens)}
    if unknown := [token for prompt in prompts for token in prompt.tokens if token not in index]:
        raise ValueError(f"token {unknown[0]!r} is not one of the model's: {', '.join(tokens)}")
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int32)
    present = np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens) :] = [index[token] for token in prompt.tokens]
        present[row, longest - len(prompt.tokens) :] = True
    return ids, present


@functools.partial(jax.jit, static_argnames=("width",))
def sample_feature_gram(rng: jax.Array, states: jax.Array, *, width: int) -> jax.Array:
    """(2/m) relu(U h)^T relu(U h) over m = `width` neurons, (prompt, prompt), without forming U.

    The pre-activations of n prompts at one neuron are a Gaussian vector with covariance `states @
    states.T`, so m vectors of min(n, d) numbers are drawn, a chunk at a time. `states` (prompt, direction)
    is any factor of the Gram matrix.
    """
    draw, chunks = _neuron_chunks(rng, states, width)

    def add(total: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        active = draw(step)
        return total + active @ active.T, None

    total, _ = jax.lax.scan(add, jnp.zeros((states.shape[0],) * 2, states.dtype), jnp.arange(chunks))
    return 2 * total / width


@functools.partial(jax.jit, static_argnames=("width",))
def sample_features(rng: jax.Array, states: jax.Array, *, width: int) -> jax.Array:
    """sqrt(2/m) relu(U h), (prompt, neuron), at the very neurons that sample_feature_gram sums over."""
    draw, chunks = _neuron_chunks(rng, states, width)
    active = jnp.moveaxis(jax.lax.map(draw, jnp.arange(chunks)), 0, 1)
    return active.reshape(states.shape[0], -1)[:, :width] * math.sqrt(2 / width)


def _neuron_chunks(
    rng: jax.Array, states: jax.Array, width: int
) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """relu(U h) chunk after chunk of neurons, (prompt, neuron), zero beyond `width`; and how many chunks."""
    upper = triangular_root(states)
    size = min(CHUNK, width)

    def draw(step: jax.Array) -> jax.Array:
        normal = jax.random.normal(jax.random.fold_in(rng, step), (upper.shape[0], size), states.dtype)
        return jax.nn.relu(upper.T @ normal) * (step * size + jnp.arange(size) < width)

    return draw, math.ceil(width / size)


def triangular_root(states: jax.Array) -> jax.Array:
    """An upper R with R^T R = states @ states.T, (min(prompt, direction), prompt).

    QR gives it. Where a state depends on those before it, as (u, R3) does on (x, R1), (x, R3) and (u, R1),
    QR goes on along a direction of pure rounding, on which all later coordinates would depend: there R is the
    Cholesky factor of the Gram matrix, with a row of zeros for that state. A pivot is rounding up to
    (direction + prompt) eps |h|^2, of the inner products and of the elimination.
    """
    _, upper = jnp.linalg.qr(states.T)
    if upper.shape[0] < upper.shape[1]:
        return upper
    gram = states @ states.T
    rounding = sum(states.shape) * jnp.finfo(gram.dtype).eps * jnp.diag(gram)
    dependent = jnp.diag(upper) ** 2 <= rounding

    def row(rest_and_root: tuple[jax.Array, jax.Array], j: jax.Array) -> tuple[tuple, None]:
        rest, root = rest_and_root
        pivot = jnp.where(rest[j, j] > rounding[j], rest[j, j], jnp.inf)
        new = jnp.where(jnp.arange(len(gram)) >= j, rest[j] / jnp.sqrt(pivot), 0.0)
        return (rest - jnp.outer(new, new), root.at[j].set(new)), None

    def skipping() -> jax.Array:
        (_, root), _ = jax.lax.scan(row, (gram, jnp.zeros_like(gram)), jnp.arange(len(gram)))
        return root

    return jax.lax.cond(jnp.any(dependent), skipping, lambda: upper)
