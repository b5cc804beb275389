"""L hops in L layers (ManyLayers.v): the limit with every vector written out, against theorem and package."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toytransformer.layers import Stack, predict, threshold
from toytransformer.ledger.layers import hops_in_a_row
from toytransformer.regimes import FullLimit

EPS = np.finfo(float).eps


class Explicit:
    """The limit, no package code in it: x is entity 0 of each chain, y^l entity l + 1, fresh facts.

    A stream is an array (word, token) of coefficients on orthonormal words V_l .. V_k e_t, in which V_l sends
    word w to w + 2^(l-1); features are known by their inner products, those of the ReLU kernel.
    """

    def __init__(self, hops, facts, sigma):
        self.hops, self.facts, self.sigma = hops, facts, sigma
        self.words, self.tokens = 2**hops, (hops + 1) * facts + hops

    def entity(self, level, chain):
        return level * self.facts + chain

    def start(self, tokens):
        stream = np.zeros((len(tokens), self.words, self.tokens))
        stream[range(len(tokens)), 0, tokens] = 1
        return stream

    def relation(self, hop):
        return (self.hops + 1) * self.facts + hop

    def hidden(self, layer, stream):
        """h_l(p) = r(p) + V_l (mean of r over the positions before p)."""
        below = np.cumsum(stream, axis=0)[:-1] / np.arange(1, len(stream))[:, None, None]
        moved = np.zeros_like(stream)
        half = 2**layer
        moved[1:, half:] = below[:, : self.words - half]
        return stream + moved

    def stored(self, layer):
        """Hidden states of adapter `layer`'s own prompts, (chain, word x token), by the chain they answer."""
        entities = [self.entity(layer, i) for i in range(self.facts)]
        if layer == 0:
            entities = [self.entity(0, self.sigma.index(j)) for j in range(self.facts)]
        states = []
        for entity in entities:
            stream = self.start([entity, self.relation(layer)])
            for below in range(layer + 1):
                state = self.hidden(below, stream)
                stream = state
            states.append(state[-1].ravel())
        return np.array(states)

    def forward(self, chain, weights):
        """By layer: overlaps with the keys, what a unit writes on its answers; and the last scores."""
        stream = self.start([self.entity(0, chain), *(self.relation(hop) for hop in range(self.hops))])
        scores, seen, units = np.zeros(self.tokens), [], []
        for layer, weight in enumerate(weights):
            state, keys = self.hidden(layer, stream), self.stored(layer)
            flat = state.reshape(len(state), -1)
            unit = np.linalg.solve(kernel(keys, keys), kernel(keys, flat)).T
            first = self.entity(layer + 1, 0)
            seen.append(flat @ keys.T)
            units.append(unit)
            stream = state
            stream[:, 0, first : first + self.facts] += weight * unit
            scores[first : first + self.facts] += weight * unit[-1]
        return seen, units, scores


def kernel(a, b):
    """E 2 relu(u a) relu(u b) for u standard normal: |a||b| (sin t + (pi - t) cos t) / pi."""
    size = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.clip(a @ b.T / size, -1, 1)
    return size * (np.sqrt(1 - cosine**2) + (np.pi - np.arccos(cosine)) * cosine) / np.pi


@cache
def in_order(hops):
    return Stack(FullLimit(), count=hops), {f"hop{k}": (k,) for k in range(1, hops + 1)}


def cases():
    """Hops, facts, a relabelling of the first hop, and positive weights."""
    size = st.tuples(st.integers(2, 4), st.integers(2, 3))
    return size.flatmap(
        lambda pair: st.tuples(
            st.just(pair[0]),
            st.permutations(range(pair[1])).map(tuple),
            st.tuples(*[st.floats(0.1, 4)] * pair[0]),
        )
    )


@settings(max_examples=10)
@given(cases())
def test_the_package_has_the_scores_of_the_vectors(case):
    hops, sigma, weights = case
    composition = hops_in_a_row(hops, len(sigma), weights, sigma)
    found = predict(composition, *in_order(hops))
    explicit = Explicit(hops, len(sigma), sigma)
    columns = [
        composition.world.entities.index(f"y{level}_{j}")
        for level in range(1, hops + 1)
        for j in range(len(sigma))
    ]
    for row, question in enumerate(found.questions):
        chain = int(question.prompt.entity.split("_")[1])
        scores = explicit.forward(chain, weights)[2][len(sigma) : (hops + 1) * len(sigma)]
        assert np.abs(found.output[row, columns] - scores).max() <= found.tie


@settings(max_examples=20)
@given(cases())
def test_every_layer_sees_a_hit_and_misses_and_nothing_before_its_position(case):
    """What the theorem assumes of the limit, and what it says of every layer, any positive weights below."""
    hops, sigma, weights = case
    explicit = Explicit(hops, len(sigma), sigma)
    # products of a stream's largest coefficients, which grow by at most 1 + weight a layer
    rounding = 1e3 * EPS * np.prod([1 + weight for weight in weights])
    for chain in range(len(sigma)):
        seen, units, scores = explicit.forward(chain, weights)
        right = sigma[chain]
        wrong = [j for j in range(len(sigma)) if j != right]
        for layer, (overlaps, unit) in enumerate(zip(seen, units, strict=True)):
            assert np.ptp(overlaps[:, wrong], axis=1).max() <= rounding
            extra = overlaps[:, right] - overlaps[:, wrong[0]]
            assert np.abs(extra[: layer + 1]).max() <= rounding
            assert np.ptp(unit[: layer + 1], axis=1).max() <= rounding
            assert extra[layer + 1] > rounding
            assert unit[layer + 1, right] > max(0, unit[layer + 1, wrong].max())
        # right from B / own on, B the most of everything below
        own, most = units[-1][-1, right], scores[: hops * len(sigma)].max()
        last = most / own
        for factor, wins in ((1 + 1e-6, True), (1 - 1e-6, False)):
            scores = explicit.forward(chain, (*weights[:-1], factor * last))[2]
            assert (scores.argmax() == explicit.entity(hops, right)) == wins


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_one_weight_is_enough_for_every_relabelling(hops):
    weights = (*(0.3, 2.0, 0.7)[: hops - 1], 1.0)
    last = threshold(hops_in_a_row(hops, 3, weights), *in_order(hops), f"hop{hops}")
    for sigma in itertools.permutations(range(3)):
        for factor, right in ((1.001, 1.0), (0.999, 0.0)):
            composition = hops_in_a_row(hops, 3, (*weights[:-1], factor * last), sigma)
            assert predict(composition, *in_order(hops)).accuracy == right


@pytest.mark.parametrize("order", [p for p in itertools.permutations((1, 2, 3, 4)) if p != (1, 2, 3, 4)])
def test_in_every_other_order_the_last_answers_tie(order):
    composition = hops_in_a_row(4, 2, (1.0, 3.0, 9.0, 27.0))
    placement = {f"hop{k}": (layer,) for k, layer in enumerate(order, start=1)}
    found = predict(composition, Stack(FullLimit(), count=4), placement)
    assert np.abs(found.margins(["y4_0", "y4_1"])).max() <= found.tie
    assert found.accuracy <= 1 / 2


def test_hops_compose_with_layers_between_them():
    composition = hops_in_a_row(2, 3, (1.0, 5.0))
    assert predict(composition, Stack(FullLimit(), count=5), {"hop1": (2,), "hop2": (4,)}).accuracy == 1.0
