"""Scale curves, the weight a* where an answer begins to win, and the chain law, against predictions at
weights."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toytransformer.compositions import Merge, catalogue
from toytransformer.ledger.survival import edge, leak
from toytransformer.mixture import MixtureError
from toytransformer.prediction import predict
from toytransformer.regimes import Finite, FullLimit, WidthLimit
from toytransformer.scales import (
    chain_share,
    effective,
    hop_share,
    scale_curve,
    threshold,
    winning,
)

EPS = np.finfo(float).eps
seeds = st.integers(0, 2**32 - 1)
REGIMES = (FullLimit(), WidthLimit(dimension=24), Finite(dimension=24, width=96))


def at(composition, regime, *weights):
    return predict(composition.with_merge(Merge("sum", weights)), regime)


def answers(composition):
    names = composition.world.entities
    return np.array([names.index(q.correct) for q in composition.questions])


def first_hop(facts, known):
    whole = catalogue.build("one-hop", facts=facts, known=known)
    return replace(whole, questions=tuple(q for q in whole.questions if q.group == "hop1"))


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_threshold_is_where_the_margin_is_zero(m0, m1):
    if m0 + m1 <= 0:
        with pytest.raises(MixtureError, match="no weight is a threshold"):
            threshold(m0, m1)
        return
    a = float(threshold(m0, m1))
    assert abs(-m0 + a * (m0 + m1)) <= 10 * EPS * (abs(m0) + abs(m1))


@given(seeds, st.integers(1, 5), st.integers(2, 6))
def test_interval_is_where_the_answer_is_the_only_largest(seed, prompts, entities):
    rng = np.random.default_rng(seed)
    base, alone = rng.normal(size=(2, prompts, entities)).round(1)  # rounded: equal outputs occur
    y = rng.integers(entities, size=prompts)
    low, high = winning(base, alone, y)
    for a in rng.uniform(-3, 3, size=20):
        output = base + a * (alone - base)
        others = np.where(np.arange(entities) == y[:, None], -np.inf, output).max(axis=1)
        margin = output[np.arange(prompts), y] - others
        clear = np.abs(margin) > 100 * EPS
        assert np.array_equal(((low < a) & (a < high))[clear], (margin > 0)[clear])
        assert scale_curve(low, high, a)[0] == np.mean((low < a) & (a < high))


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
@pytest.mark.parametrize("known", [True, False])
def test_curve_of_the_toy_is_what_is_predicted_at_weights(regime, known):
    """Two predictions, of the base and of the adapter at weight 1, give the answers at every weight."""
    composition = first_hop(3, known)
    y = answers(composition)
    base, alone = (at(composition, regime, a, 0.0).output for a in (0.0, 1.0))
    low, high = winning(base, alone, y)
    assert np.abs(low - known / 2).max() <= 1e4 * EPS and np.all(high == np.inf)
    for a in (-0.5, 0.2, 0.45, 0.55, 1.0, 3.0):
        assert scale_curve(low, high, a)[0] == at(composition, regime, a, 0.0).strict_accuracy
    names = composition.world.entities
    if known:
        old = np.array([names.index(q.old) for q in composition.questions])
        rows = np.arange(len(y))
        m0, m1 = base[rows, old] - base[rows, y], alone[rows, y] - alone[rows, old]
        assert np.abs(threshold(m0, m1) - low).max() <= 1e4 * EPS


def test_curves_can_fall_again():
    """An answer that wins from a weight on can be overtaken further on; one that never wins has an empty
    interval."""
    base = np.array([[1.0, 0.0, -2.0]])
    low, high = winning(base, np.array([[0.0, 1.0, 0.5]]), np.array([1]))
    assert (low[0], high[0]) == (0.5, 4 / 3)
    assert scale_curve(low, high, (0.4, 1.0, 2.0)).tolist() == [0, 1, 0]
    low, high = winning(base, np.array([[1.0, 0.0, -2.0]]), np.array([1]))
    assert low[0] == np.inf and scale_curve(low, high, 1e9)[0] == 0


@pytest.mark.parametrize("known", [True, False])
def test_effective_weight_is_exact_for_fresh_facts_and_too_low_for_known_ones(known):
    """The toy's edge is a > b l for fresh facts, which is s(a - b l); for known ones max(1/2, |b| l), which
    is not."""
    facts = 2
    composition, spill, wrong = first_hop(facts, known), leak(facts), 0
    y = answers(composition)
    outputs = [at(composition, FullLimit(), a, 0.0).output for a in (0.0, 1.0)]
    low, high = winning(*outputs, y)
    for a, b in product((0.1, 0.3, 0.55, 0.7, 1.0, 1.3), (0.0, 0.5, 1.0, 3.0)):
        right = at(composition, FullLimit(), a, b).strict_accuracy
        assert right == (a > edge(facts, known, b))
        said = hop_share(lambda w: scale_curve(low, high, w)[0], a, b, spill)
        wrong += said != right
        assert said <= right
    assert (wrong > 0) == known


def test_chain_law_is_exact_in_the_toy_where_each_hop_survives_or_not():
    for a, b in product((0.4, 0.6, 1.0), repeat=2):
        weights = Merge("sum", (a, b))
        hops = predict(catalogue.build("one-hop", facts=2, merge=weights), FullLimit())
        by_group = {"hop1": [], "hop2": []}
        for question, found in zip(hops.composition.questions, hops.distributions, strict=True):
            by_group[question.group].append(question.shares(found)["correct"])
        one, two = (float(np.mean(by_group[group])) for group in ("hop1", "hop2"))
        chain = predict(catalogue.build("chain-of-thought", facts=2, merge=weights), FullLimit())
        assert chain_share(one, two) == chain.strict_accuracy


def test_bad_input_is_named():
    base = np.zeros((2, 3))
    for wrong, said in (
        (lambda: threshold(np.nan, 1), "NaN"),
        (lambda: winning(base, base[:1], np.array([0, 1])), r"base \(2, 3\), alone \(1, 3\)"),
        (lambda: winning(base, base, np.array([0, 3])), "from 0 to 2"),
        (lambda: winning(base, base, np.array([0.0, 1.0])), "whole numbers"),
        (lambda: winning(base, base - np.inf, np.array([0, 1])), "masked"),
        (lambda: effective(1, 1, np.inf), "leak is inf"),
        (lambda: chain_share(0.5, 1.2), "hop2 is 1.2"),
        (lambda: chain_share(0.5, 1.0, -1), "k is -1"),
    ):
        with pytest.raises(MixtureError, match=said):
            wrong()
