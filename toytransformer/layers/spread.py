"""Derived standard errors of a stack's margins at finite d and m, around the limit of both.

A stack sees its random matrices through inner products only, and these spread like

    <b_i, b_j> = [i = j] + X_ij / sqrt d                                   b: the embeddings
    <b_i, V b_j> = Y_ij / sqrt d,   <V b_i, V b_j> = <b_i, b_j> + Z_ij / sqrt d     b: what V_l is applied to
    <phi(p), phi(p')> = k(p, p') + (mean over m neurons of 2 relu relu - k)

with X, Z symmetric Gaussian (variance 1 + [i = j]) and Y independent standard Gaussian, of every layer its
own. The delta method adds up the squares of the margins' slopes in all of these; slopes are those of the
limit, by automatic differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import linalg

from toytransformer import hidden
from toytransformer.bases import base_output, one_hot
from toytransformer.compositions import Composition, Prompt
from toytransformer.layers.directions import Directions
from toytransformer.layers.forward import Stream
from toytransformer.layers.prediction import predict
from toytransformer.layers.stack import Placement, Stack
from toytransformer.regimes import FullLimit, streams
from toytransformer.two_layers import LayerError

#: Neurons that the variance over one neuron is averaged over; its own relative error is of order SAMPLE^-1/2.
SAMPLE = 2**12
Noise = dict[str, jax.Array]


@jax.custom_jvp
def _kappa(cosine: jax.Array) -> jax.Array:
    cosine = jnp.clip(cosine, -1.0, 1.0)
    sine = jnp.sqrt((1.0 - cosine) * (1.0 + cosine))
    return (sine + (math.pi - jnp.arccos(cosine)) * cosine) / math.pi


@_kappa.defjvp
def _slope(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """kappa'(c) = (pi - arccos c) / pi, also at c = 1."""
    (cosine,), (tangent,) = primals, tangents
    return _kappa(cosine), (math.pi - jnp.arccos(jnp.clip(cosine, -1.0, 1.0))) / math.pi * tangent


def _relu_gram(gram: jax.Array) -> jax.Array:
    norms = jnp.sqrt(jnp.diagonal(gram))
    scale = norms[:, None] * norms[None, :]
    return scale * _kappa(gram / scale)


class _Margins:
    """Margins of the right answer over its best rival in the limit, as a function of all noise."""

    def __init__(self, composition: Composition, stack: Stack, placement: Placement):
        world, merge, regime = composition.world, composition.merge, stack.regime
        direct = all(q.decode == "direct" and q.correct is not None for q in composition.questions)
        if merge.rule != "sum" or not direct or stack.base_layers or not isinstance(regime, FullLimit):
            raise LayerError(
                "derived standard errors exist for the rule sum on direct questions with right answers, an "
                f"exact base outside the layers, and around the limit; got {merge.rule!r} on {regime.name!r}"
            )
        self.stack = stack
        limit = predict(composition, stack, placement)
        self.placement = limit.placement
        self.asked = tuple(q.prompt for q in composition.questions)
        stored = {a.name: tuple(a.stored(world)) for a in composition.adapters}
        names = tuple(stored)
        self.weights = dict(zip(names, merge.weights or (1.0,) * len(names), strict=True))
        self.trained = {n: tuple(fact.prompt for fact in facts) for n, facts in stored.items()}
        self.changes = {
            n: one_hot(world, [f.answer for f in facts]) - base_output(world, self.trained[n])
            for n, facts in stored.items()
        }
        tokens = tuple(dict.fromkeys(t for p in composition.prompts for t in p.tokens))
        self.directions = Directions(stack, tokens, world.entities)
        passes: Mapping[str, Sequence[Prompt]] = {"merged": self.asked, **self.trained}
        parts = {n: Stream.of(p, self.directions, len(world.entities)) for n, p in passes.items()}
        ends = np.cumsum([0, *(len(s.prefixes) for s in parts.values())])
        self.start = dict(zip(parts, ends.tolist(), strict=False))
        self.rows = {n: self.start[n] + np.array(parts[n].rows(p)) for n, p in passes.items()}
        self.attention = linalg.block_diag(*(s.weights(1, self.directions) for s in parts.values()))
        self.kept = np.concatenate([s.kept for s in parts.values()])
        self.tokens = np.concatenate([s.coefficients for s in parts.values()])
        #: By adapter how much of it each position has: its own pass all, the merged one its weight.
        self.shares = {n: np.zeros(ends[-1]) for n in names}
        for n, share in self.shares.items():
            share[: ends[1]] = self.weights[n]
            share[self.start[n] : self.start[n] + len(parts[n].prefixes)] = 1.0
        self.said = base_output(world, self.asked)
        self.right = np.array([world.entities.index(q.correct) for q in composition.questions if q.correct])
        self.limit, scores = limit.margins(), limit.output.copy()
        scores[np.arange(len(scores)), self.right] = -np.inf
        self.rivals = scores.argmax(axis=1)

    def noise(self) -> Noise:
        """Zeros in the shape of all noise: x, and by layer y, z (dimension) and k (neurons)."""
        size, rows = len(self.directions.tokens), len(self.tokens)
        found = {"x": jnp.zeros((size, size))}
        for layer in range(1, self.stack.count + 1):
            found |= {f"{name}{layer}": jnp.zeros((size, size)) for name in "yz"}
            found[f"k{layer}"] = jnp.zeros((rows, rows))
            size *= 2 if self.stack.attention_stays else 1
        return found

    def scores(self, noise: Noise) -> tuple[jax.Array, list[jax.Array]]:
        """The merged scores, (question, entity), and by layer the hidden states' coefficients."""
        found: list[jax.Array] = []
        inner = jnp.eye(len(noise["x"])) + _symmetric(noise["x"])
        stream = jnp.asarray(self.tokens)
        output = jnp.zeros((len(self.tokens), len(self.directions.labels)))
        for layer in range(1, self.stack.count + 1):
            cross, values = noise[f"y{layer}"], inner + _symmetric(noise[f"z{layer}"])
            wide = jnp.block([[inner, cross], [cross.T, values]])
            attended = jnp.einsum("pq,qwt->pwt", self.attention, stream)
            state = jnp.concatenate([self.kept * stream, attended], axis=1)
            found.append(state.reshape(len(state), -1))
            kernel = _relu_gram(found[-1] @ wide @ found[-1].T) + noise[f"k{layer}"]
            change = jnp.zeros(output.shape)
            for name, layers in self.placement.items():
                if layer in layers:
                    keys = kernel[self.rows[name]]
                    seen = jnp.linalg.solve(keys[:, self.rows[name]], keys * self.shares[name])
                    change += seen.T @ (self.changes[name] / len(layers))
            output += change
            stream = state if self.stack.attention_stays else stream
            stream = stream.at[:, 0, self.directions.labels].add(change)
            inner = wide if self.stack.attention_stays else inner
        rows = self.rows["merged"]
        if self.stack.unembedding:
            last = stream[rows].reshape(len(rows), -1)
            return last @ inner[:, self.directions.labels] + self.said, found
        return output[rows] + self.said, found

    def __call__(self, noise: Noise) -> tuple[jax.Array, list[jax.Array]]:
        (scores, states), rows = self.scores(noise), np.arange(len(self.rivals))
        return scores[rows, self.right] - scores[rows, self.rivals], states


def _symmetric(noise: jax.Array) -> jax.Array:
    """From independent standard entries to a symmetric matrix of variance 1 + [i = j]."""
    return (noise + noise.T) / math.sqrt(2)


@dataclass(frozen=True)
class Spread:
    """How margins over given rivals spread around the limit.

    rivals: of each question the best rival of the right answer in the limit. margins: in the limit.
    by_dimension, by_width: d times the variance over embeddings, m times that over neurons.
    """

    rivals: tuple[str, ...]
    margins: Float[np.ndarray, "question"]
    by_dimension: Float[np.ndarray, "question"]
    by_width: Float[np.ndarray, "question"]

    def standard_error(
        self, dimension: float = math.inf, width: float = math.inf
    ) -> Float[np.ndarray, "question"]:
        """The standard error of one draw's margins at (d, m), to first order."""
        return np.sqrt(self.by_dimension / dimension + self.by_width / width)


def spread(composition: Composition, stack: Stack, placement: Placement) -> Spread:
    """The derived spread of a stack's margins in its limit.

    Errors: LayerError for another rule than sum, chains, a base inside the layers, or another regime.
    """
    margins = _Margins(composition, stack, placement)
    slopes, states = jax.jit(jax.jacrev(margins, has_aux=True))(margins.noise())
    by_dimension = sum(np.sum(np.square(s), axis=(1, 2)) for name, s in slopes.items() if name[0] != "k")
    by_width = np.zeros(len(margins.rivals))
    for layer, state in enumerate(states, start=1):
        rng = jax.random.fold_in(streams(stack.regime.seed)[1], layer)
        sampled = hidden.sample_features(rng, state, width=SAMPLE)
        active = math.sqrt(SAMPLE) * np.asarray(sampled, float)  # sqrt 2 relu of single neurons
        slope = np.asarray(slopes[f"k{layer}"], float)
        by_width += np.sum(active * (slope @ active), axis=1).var(axis=1)
    return Spread(
        tuple(composition.world.entities[rival] for rival in margins.rivals),
        margins.limit,
        np.asarray(by_dimension, float),
        by_width,
    )
