"""Statistics of measured shares: each against an independent route."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from results import statistics


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from((0.8, 0.95, 0.99)))
def test_wilson_is_scipys(successes, items, confidence):
    successes = min(successes, items)
    theirs = stats.binomtest(successes, items).proportion_ci(confidence, method="wilson")
    assert statistics.wilson(successes, items, confidence) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_wilson_of_a_known_table():
    assert statistics.wilson(4, 102) == pytest.approx((0.0154, 0.0965), abs=5e-5)
    assert statistics.wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=5e-5))
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes <= items"):
            statistics.wilson(*bad)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_a_coin_thrown_once_per_discordant_pair(pairs):
    first, second = zip(*pairs, strict=True)
    found, swapped = statistics.mcnemar_exact(first, second), statistics.mcnemar_exact(second, first)
    assert found.p == pytest.approx(swapped.p)
    assert (found.first, found.second) == (swapped.second, swapped.first)
    assert found.both + found.first + found.second + found.neither == len(pairs)
    n, k = found.first + found.second, min(found.first, found.second)
    by_hand = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert found.p == pytest.approx(by_hand)


# --- signs flipped by cluster -------------------------------------------------------------------------------

few = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=8)


@given(few)
def test_flipping_signs_is_by_hand(differences):
    """Every way to give the clusters signs; those that are zero have both."""
    ways = list(product((-1, 1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in ways]
    by_hand = sum(abs(value) >= abs(sum(differences)) - 1e-9 for value in sums) / len(ways)
    test = statistics.sign_flip(differences)
    assert test.p == pytest.approx(by_hand) and test.exact
    assert test.difference == pytest.approx(sum(differences) / len(differences))
    assert (test.first, test.second) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))


@given(few)
def test_flipping_signs_is_scipys_permutation_test(differences):
    """Paired samples permuted: the first value and the second of a cluster change places."""
    if len(differences) < 2:
        return
    first = np.array(differences)
    theirs = stats.permutation_test(
        (first, np.zeros(len(first))),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    # two-sided it is twice the smaller side there; the null is symmetric, so that is the same
    assert statistics.sign_flip(differences).p == pytest.approx(min(1.0, theirs.pvalue), abs=1e-12)


@given(few)
def test_which_side_is_first_does_not_matter(differences):
    test, turned = (statistics.sign_flip([sign * d for d in differences]) for sign in (1, -1))
    assert (test.p, test.first, test.second) == (turned.p, turned.second, turned.first)
    assert test.difference == -turned.difference


@given(few, st.integers(1, 5))
def test_clusters_that_do_not_differ_say_nothing(differences, more):
    assert statistics.sign_flip(differences + [0.0] * more).p == statistics.sign_flip(differences).p


@given(st.integers(0, 12), st.integers(0, 12))
def test_equal_steps_make_it_the_sign_test(first, second):
    if first + second:
        test = statistics.sign_flip([0.5] * first + [-0.5] * second)
        coin = stats.binomtest(first, first + second).pvalue
        tolerance = 1e-12 if test.exact else 5 * math.sqrt(coin * (1 - coin) / 9999) + 1e-4
        assert test.p == pytest.approx(coin, abs=tolerance)


def test_many_clusters_are_drawn_by_seed_and_near_the_exact_value():
    rng = np.random.default_rng(0)
    differences = list(rng.normal(0.2, 1, size=18))
    drawn, again = (statistics.sign_flip(differences, seed=3) for _ in range(2))
    assert drawn == again and not drawn.exact
    signs = 1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)
    exact = np.mean(np.abs(signs @ np.array(differences)) >= abs(sum(differences)) - 1e-9)
    assert drawn.p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 9999) + 1e-4)


def test_nothing_is_found_too_often_where_nothing_is():
    """Of clusters whose signs are coins p <= .05 is found in one of twenty runs at most, to five errors."""
    rng, runs = np.random.default_rng(1), 400
    found = sum(
        statistics.sign_flip(rng.choice((-1, -0.5, 0, 0.5, 1), size=12).tolist()).p <= 0.05
        for _ in range(runs)
    )
    assert found / runs <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("wrong", [[], [math.nan], [math.inf, 1.0]])
def test_differences_are_finite_and_there(wrong):
    with pytest.raises(ValueError, match="give finite differences"):
        statistics.sign_flip(wrong)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=2, max_size=30), st.integers(0, 3))
def test_the_bootstrap_is_seeded_and_draws_whole_clusters(pairs, seed):
    clusters, values = zip(*pairs, strict=True)
    if len(set(clusters)) < 2:
        return
    ask = {"seed": seed, "draws": 200}
    low, high = statistics.cluster_interval(values, clusters, **ask)
    assert (low, high) == statistics.cluster_interval(values, clusters, **ask)
    assert low <= high
    means = [np.mean([v for v, c in zip(values, clusters, strict=True) if c == k]) for k in set(clusters)]
    assert min(means) - 1e-12 <= low and high <= max(means) + 1e-12
    # the same rows twice in their clusters are no more information
    assert statistics.cluster_interval(values * 2, clusters * 2, **ask) == pytest.approx(
        (low, high), abs=1e-12
    )


def test_the_bootstrap_covers_as_often_as_it_says():
    """Of clusters of two equal items, to five standard errors of the share of hits."""
    rng, hits, runs, clusters = np.random.default_rng(0), 0, 200, 50
    for _ in range(runs):
        values = np.repeat(rng.random(clusters) < 0.4, 2).astype(float)
        low, high = statistics.cluster_interval(values, np.repeat(range(clusters), 2), seed=0, draws=400)
        hits += low <= 0.4 <= high
    assert abs(hits / runs - 0.95) <= 5 * math.sqrt(0.95 * 0.05 / runs)


def test_one_cluster_is_refused():
    with pytest.raises(ValueError, match="needs two"):
        statistics.cluster_interval([0, 1], ["a", "a"], seed=0)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == [] and statistics.holm([0.7, 0.9]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"1\.2 is no p-value"):
        statistics.holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_and_bonferronis(p):
    adjusted = statistics.holm(p)
    assert all(
        raw <= a + 1e-15 and a <= min(1, len(p) * raw) + 1e-15 for raw, a in zip(p, adjusted, strict=True)
    )


def scored(matrix, group):
    """Question and log-probabilities, of a matrix (question, answer), in groups of neighbours, each twice."""
    n = len(matrix)
    for i in range(n):
        part = [j for j in range(n) if j // group == i // group]
        labels = {f"{'correct' if j == i else 'shuffled'}:name{j}": float(matrix[i, j]) for j in part}
        yield from [(f"x{i}", labels)] * 2


def test_the_shuffled_baseline_by_hand_and_exactly():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    found = statistics.shuffled_baseline(scored(matrix, 3), seed=0, draws=20000)
    blocks = [matrix[:3, :3], matrix[3:, 3:]]
    right = sum(np.trace(block) for block in blocks)
    others = sum(block.sum() for block in blocks) - right
    assert found.difference == pytest.approx(right / 6 - others / 12)
    assert (found.questions, found.groups) == (6, 2)
    from itertools import permutations

    dealt = [
        sum(a[i, s[i]] + b[i, t[i]] for i in range(3))
        for a, b in [blocks]
        for s in permutations(range(3))
        for t in permutations(range(3))
    ]
    exact = np.mean([value >= right - 1e-9 for value in dealt])
    assert found.p == pytest.approx(exact, abs=5 * math.sqrt(0.25 / 20000))


def test_the_shuffled_baseline_sees_what_no_answer_shows_and_not_what_answers_share():
    rng = np.random.default_rng(1)
    noise, liked = rng.normal(size=(20, 20)), 10 * rng.normal(size=(1, 20))
    plain = statistics.shuffled_baseline(scored(noise + liked, 10), seed=0)
    shifted = statistics.shuffled_baseline(scored(noise + liked + 2 * np.eye(20), 10), seed=0)
    assert plain.p > 0.01 and shifted.p < 0.001
    assert shifted.difference - plain.difference == pytest.approx(2)
    right = noise + liked + 2 * np.eye(20)
    assert (right.argmax(1) == range(20)).mean() < 0.5
    with pytest.raises(ValueError, match="shuffled"):
        statistics.shuffled_baseline([("x1", None)], seed=0)


def test_groups_are_drawn_whole():
    """With one item in a group it is the ordinary bootstrap: SciPy's, up to the noise of both draws."""
    values = np.random.default_rng(3).exponential(size=40)
    ((low, high), nothing) = statistics.group_bootstrap(
        lambda rows: [values[rows].mean(), float("nan")], range(40), seed=0, draws=4_000
    )
    other = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4_000, rng=1)
    spread = values.std() / np.sqrt(40)
    # a quantile q of n draws lies within 5 sqrt(q (1 - q) / n) of its level, at the normal density there
    noise = 5 * np.sqrt(2 * 0.025 * 0.975 / 4_000) / stats.norm.pdf(1.96) * spread
    assert abs(low - other.confidence_interval.low) < noise
    assert abs(high - other.confidence_interval.high) < noise
    assert all(map(np.isnan, nothing))
    (one,) = statistics.group_bootstrap(lambda rows: [values[rows].mean()], ["same"] * 40, seed=0, draws=9)
    assert one == pytest.approx((values.mean(), values.mean()))  # one group is drawn as it is
    with pytest.raises(statistics.StatisticsError, match="no items"):
        statistics.group_bootstrap(lambda rows: [0.0], [], seed=0)
