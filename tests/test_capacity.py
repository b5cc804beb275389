"""What sums, means and low ranks hold: exact counts, random low-rank scores, and z3 for two adapters."""

import numpy as np
import pytest
import z3
from counterexamples import find, refute
from hypothesis import given
from hypothesis import strategies as st

from toytransformer.compositions import Merge
from toytransformer.ledger.capacity import pool, share_held
from toytransformer.merging import merge

EPS = np.finfo(float).eps


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.floats(0.51, 2))
def test_a_sum_holds_every_adapter_and_a_mean_of_known_facts_one(count, facts, known, weight):
    answers = np.arange(count * facts).reshape(count, facts)
    assert share_held(answers, Merge("sum", (weight,) * count), known) == 1
    assert share_held(answers, Merge("mean"), known) == (1 if count == 1 or not known else 0)


def test_answers_that_many_adapters_share_drown_a_fact():
    """Beyond the corollary's hypothesis: leaks onto one answer add up, but for facts with that answer."""
    answers = np.array([[0]] + [[1]] * 4)
    library, phi, base = pool(answers, known=True)
    output = base + merge(library, Merge("sum")).shift(phi)
    assert output[0].argmax() == 1 and (output[1:].argmax(1) == 1).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_scores_of_low_rank_hold_few_facts(seed, k, rank):
    """k (1 - r e^2) <= r (1 - e^2) for scores with 1 on the diagonal."""
    rng = np.random.default_rng(seed)
    rank = min(rank, k)
    directions = rng.normal(size=(k, rank))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    scores = directions @ directions.T
    others = np.abs(scores - np.diag(np.diag(scores))).max(initial=0)
    assert k * (1 - rank * others**2) <= rank * (1 - others**2) + 1e3 * k * EPS
    assert np.trace(scores) ** 2 <= rank * np.sum(scores**2) + 1e3 * k**2 * EPS


@pytest.mark.parametrize("k", [3, 8])
def test_the_bound_is_on_margins_and_not_on_answers(k):
    """Rank 2 holds every answer by argmax; with e < 1/2 it would hold r (1 - e^2) / (1 - r e^2) < 3."""
    x = np.arange(k)
    scores = 2 * np.outer(x, x) - x**2
    assert np.linalg.matrix_rank(scores) == 2 and (scores.argmax(1) == x).all()
    assert 2 * (1 - 0.49**2) / (1 - 2 * 0.49**2) < 3


@given(st.integers(2, 7), st.booleans())
def test_a_cut_direction_costs_one_over_n(facts, known):
    library, phi, base = pool(np.arange(facts)[None], known)
    output = base + merge(library, Merge("sum-truncated", options={"rank": facts - 1})).shift(phi)
    right, others = np.diag(output[:, :facts]), output[:, :facts] - np.diag(np.diag(output[:, :facts]))
    assert np.abs(right - (1 - 1 / facts)).max() <= 1e4 * facts * EPS
    assert np.abs(others + (1 - np.eye(facts)) / facts).max() <= 1e4 * facts * EPS
    if known:
        assert np.abs(np.diag(output[:, facts:]) - 1 / facts).max() <= 1e4 * facts * EPS


def test_z3_finds_no_known_fact_that_a_mean_of_two_keeps():
    w, leak, count = z3.Reals("w l r")
    new, old, other = w, 1 - w, w * leak * count
    kept = z3.And(new > old, new > other, new > 0)
    refute(w > 0, kept != z3.And(w > 1 / 2, leak * count < 1))
    for adapters in (2, 3, 10):
        refute(w * adapters == 1, kept)
    find(w == 1, leak == 1 / 4, count == 3, kept)  # three others with one answer in common
    refute(w > 0, leak == 1 / 4, count == 4, kept)
