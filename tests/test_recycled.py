"""Spans that do not know the relabelling: exact sums over all of them, least squares, and what does know."""

import itertools
import math

import numpy as np
import pytest
import z3
from counterexamples import find, refute
from hypothesis import given
from hypothesis import strategies as st

from toytransformer.adapters import closed_form
from toytransformer.ledger.recycled import centred, gains, left, mean_share, recycled, targets
from toytransformer.ledger.registry import Run

EPS = np.finfo(float).eps


@given(st.integers(2, 5), st.data())
def test_squared_overlaps_with_all_permutations_add_up(n, data):
    """sum_s <M, P_s>^2 (n - 1) = n! |M|^2 for row and column sums 0, in whole numbers."""
    entries = st.lists(st.integers(-9, 9), min_size=n - 1, max_size=n - 1)
    corner = np.array(data.draw(st.lists(entries, min_size=n - 1, max_size=n - 1)), dtype=object)
    m = np.hstack([corner, -corner.sum(1, keepdims=True)])
    m = np.vstack([m, -m.sum(0, keepdims=True)])
    total = sum(sum(m[i, s[i]] for i in range(n)) ** 2 for s in itertools.permutations(range(n)))
    assert total * (n - 1) == math.factorial(n) * (m * m).sum()


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.data())
def test_a_span_that_does_not_know_sigma_captures_its_dimension(seed, n, data):
    count = data.draw(st.integers(1, (n - 1) ** 2))
    outputs = np.random.default_rng(seed).normal(size=(count, n, n))
    inside = centred(outputs)
    condition = np.linalg.cond(inside.reshape(count, -1))
    share = mean_share(inside)
    assert abs(share - count / (n - 1) ** 2) <= 1e4 * EPS * condition**2
    assert mean_share(outputs) <= share + 1e4 * EPS * condition**2


def test_updates_of_real_adapters_are_no_exception():
    outputs = recycled(5, 4, np.random.default_rng(1))
    assert np.linalg.matrix_rank(centred(outputs).reshape(4, -1)) == 4
    assert mean_share(centred(outputs)) == pytest.approx(4 / 16, abs=1e5 * EPS)


def test_a_span_that_knows_sigma_captures_more():
    rng, n = np.random.default_rng(2), 4
    shares = []
    for target in targets(n):
        outputs = np.stack([*centred(rng.normal(size=(2, n, n))), target + 0.1 * rng.normal(size=(n, n))])
        shares.append(1 - np.sum(left(outputs, target) ** 2) / (n - 1))
    assert min(shares) > 3 / (n - 1) ** 2


def test_the_gain_is_not_the_overlap_of_a_span_that_is_not_left_out():
    """The part of the update inside the span gains nothing: its overlap with the target does not count."""
    rng, n = np.random.default_rng(3), 4
    span, target = centred(rng.normal(size=(2, n, n))), next(targets(n))
    repeated = span[0] + 1e-3 * centred(rng.normal(size=(1, n, n)))[0]
    gain = np.sum(left(span, target) ** 2) - np.sum(left(np.stack([*span, repeated]), target) ** 2)
    naive = np.vdot(target, repeated) ** 2 / np.sum(repeated**2)
    assert abs(gain - naive) > 1e-3
    assert all(row.verdict == "holds" for row in gains(Run(seed=3)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.05, 0.95))
def test_strangers_are_told_the_mean_answer(seed, n, overlap):
    """Features with one overlap between any two, a stranger's among them; no kernel in it."""
    values, vectors = np.linalg.eigh((1 - overlap) * np.eye(n + 1) + overlap)
    phi = vectors * np.sqrt(values)
    wanted = np.random.default_rng(seed).normal(size=(n, 3))
    said = closed_form(phi[:n], wanted).shift(phi[n:])[0]
    expected = n * overlap / (1 + (n - 1) * overlap) * wanted.mean(axis=0)
    assert np.abs(said - expected).max() <= 1e4 * EPS / (1 - overlap) * np.abs(wanted).max()


@pytest.mark.parametrize("n", [2, 3])
def test_z3_finds_no_matrix_with_another_mean(n):
    m = [[z3.Real(f"m{i}{j}") for j in range(n)] for i in range(n)]
    sums = [z3.Sum(row) == 0 for row in m] + [z3.Sum(column) == 0 for column in zip(*m, strict=True)]
    overlaps = [z3.Sum([m[i][s[i]] for i in range(n)]) for s in itertools.permutations(range(n))]
    total = z3.Sum([overlap * overlap for overlap in overlaps])
    norm = z3.Sum([e * e for row in m for e in row])
    refute(*sums, m[0][0] == 1, total * (n - 1) != math.factorial(n) * norm)
    find(*sums[:n], total * (n - 1) != math.factorial(n) * norm)  # the columns have to add up to 0 too
