"""Trained LoRA against the closed form: the gap it must have, its rate, and where training ends elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from strategies import fact_arrays, seeds

from toytransformer.adapters import AdapterError, closed_form
from toytransformer.training import one_fact_gap, train_lora

#: Training stops at a gradient of 1e-10; the flattest direction it still has to get right is of order 1e-3.
CONVERGED = 1e-6


def normalised(arrays):
    features, changes = arrays
    return features / np.linalg.norm(features), changes / np.linalg.norm(changes)


@settings(max_examples=8)
@given(fact_arrays(facts=1), st.sampled_from([1e-3, 0.1, 0.5]), st.sampled_from([1, 3]), seeds)
def test_one_fact_stops_short_by_penalty_over_norms(arrays, penalty, rank, seed):
    v, w = normalised(arrays)
    trained = train_lora(2 * v, w, rank=rank, penalty=penalty, seed=seed % 1000)
    assert one_fact_gap(2 * v, w, penalty) == pytest.approx(penalty / 2)
    assert trained.gap == pytest.approx(penalty / 2, abs=CONVERGED)
    # the whole update is the closed form, shrunk: nothing outside the span of v and w
    expected = (1 - penalty / 2) * closed_form(2 * v, w).delta()
    assert np.abs(trained.lora.delta() - expected).max() <= CONVERGED
    assert trained.loss == pytest.approx((penalty / 2) ** 2, abs=CONVERGED)
    assert trained.lora.penalty() == pytest.approx(2 * (1 - penalty / 2) / 2, abs=CONVERGED)  # balanced


def test_gap_vanishes_at_rate_one():
    rng = np.random.default_rng(0)
    features, changes = np.eye(3, 7) + 0.1 * np.abs(rng.normal(size=(3, 7))), rng.normal(size=(3, 6))
    penalties = [1e-1, 1e-2, 1e-3]
    gaps = [train_lora(features, changes, rank=3, penalty=p, seed=1).gap for p in penalties]
    slope = np.polyfit(np.log(penalties), np.log(gaps), 1)[0]
    assert (
        abs(slope - 1) <= 0.05
    )  # the next order is the penalty over the least singular value, a few percent


def test_without_a_penalty_training_ends_elsewhere():
    # Proposition 1 needs its regulariser: the loss falls to zero, but the update is not the minimal one
    features, changes = np.eye(1, 7) / 2, np.eye(1, 6)
    trained = train_lora(features, changes, rank=1, penalty=0.0, seed=0)
    assert trained.loss <= 1e-12
    assert trained.gap > 1e-3


def test_a_penalty_above_the_norms_kills_the_update():
    features, changes = np.eye(1, 7), 0.5 * np.eye(1, 6)
    assert one_fact_gap(features, changes, 0.6) == 1
    trained = train_lora(features, changes, rank=1, penalty=0.6, seed=0)
    assert trained.gap == pytest.approx(1, abs=CONVERGED)
    assert np.abs(trained.lora.delta()).max() <= CONVERGED
    below = train_lora(features, changes, rank=1, penalty=0.4, seed=0)
    assert below.gap == pytest.approx(0.8, abs=CONVERGED)


def test_several_facts_against_proximal_gradient():
    # |T - D Phi|^2 + 2 penalty |D|_* over dense D: soft thresholding of singular values, no factors at all
    rng = np.random.default_rng(3)
    features, changes = np.eye(3, 7) + 0.2 * np.abs(rng.normal(size=(3, 7))), rng.normal(size=(3, 6))
    penalty = 0.2
    step = 1 / (2 * np.linalg.norm(features, 2) ** 2)
    delta = np.zeros((6, 7))
    for _ in range(4000):
        gradient = 2 * (delta @ features.T - changes.T) @ features
        left, values, right = linalg.svd(delta - step * gradient, full_matrices=False)
        delta = (left * np.maximum(values - 2 * penalty * step, 0)) @ right
    trained = train_lora(features, changes, rank=3, penalty=penalty, seed=2)
    assert np.abs(trained.lora.delta() - delta).max() <= 10 * CONVERGED
    assert trained.gap > 0.01


def test_too_small_a_rank_reaches_the_best_approximation():
    features, changes = np.eye(2, 7), np.diag([1.0, 0.5]) @ np.eye(2, 6)
    trained = train_lora(features, changes, rank=1, penalty=1e-6, seed=0)
    best = closed_form(features, changes, rank=1, approximate="loss").delta()
    assert np.abs(trained.lora.delta() - best).max() <= 1e-5  # the penalty's own shift is 1e-6
    assert trained.gap == pytest.approx(0.5 / math.sqrt(1.25), abs=1e-5)  # and the gap stays


def test_same_seed_same_factors():
    features, changes = np.eye(1, 7), np.eye(1, 6)
    first, second, other = (
        train_lora(features, changes, rank=1, penalty=0.1, seed=seed).lora for seed in (0, 0, 1)
    )
    assert np.array_equal(first.write, second.write) and np.array_equal(first.read, second.read)
    assert not np.allclose(first.write, other.write) or not np.array_equal(first.read, other.read)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rank": 0}, "rank is 0; it must be a whole number >= 1"),
        ({"penalty": -1.0}, "penalty is -1.0; it must be a finite number >= 0"),
        ({"penalty": math.nan}, "penalty is nan"),
        ({"features": np.full((1, 7), np.nan)}, "features of fact 0 hold NaN"),
        ({"features": np.zeros((1, 7))}, "feature vector of fact 0 is zero"),
        ({"changes": np.zeros((1, 6))}, "all zero; there is nothing to train"),
        ({"changes": np.eye(2, 6)}, "same, non-zero number of facts"),
        ({"features": np.ones((2, 7)), "changes": np.eye(2, 6)}, "linearly dependent"),
    ],
)
def test_what_cannot_be_trained(changed, message):
    arrays = {"features": np.eye(1, 7), "changes": np.eye(1, 6)}
    how = {"rank": 1, "penalty": 0.1, "seed": 0}
    arguments = arrays | how | changed
    with pytest.raises(AdapterError, match=message):
        train_lora(**arguments)
