"""Adapters: they store their facts with the least penalty, in gauges that see no labels, or say why not."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import linalg
from strategies import fact_arrays, seeds

from toytransformer.adapters import AdapterError, LoRA, closed_form, frozen_read, whitened

EPS = np.finfo(float).eps
GAUGES = ("plain", "svd", "facts", "flipped", "random:3")
BALANCED = GAUGES[1:]


def error(features, operations=1e3):
    """Relative rounding error of a solve with the Gram matrix of these features."""
    return operations * EPS * np.linalg.cond(features @ features.T)


def one_hot(*labels, entities=6):
    return np.eye(entities)[list(labels)]


def nuclear(delta):
    return linalg.svdvals(delta).sum()


def least_norm(features, changes):
    """The least-norm D with D Phi = T, by LAPACK's least squares."""
    return np.linalg.lstsq(features, changes, rcond=None)[0].T


# ---- eq. 23 and Proposition 1 ----


@given(fact_arrays(), st.sampled_from(GAUGES))
def test_facts_are_stored_in_every_gauge(arrays, gauge):
    features, changes = arrays
    lora = closed_form(features, changes, gauge=gauge)
    size = np.abs(changes).max()
    assert np.abs(lora.shift(features) - changes).max() <= error(features) * size
    assert np.abs(lora.delta() @ features.T - changes.T).max() <= error(features) * size
    expected = least_norm(features, changes)
    assert np.abs(lora.delta() - expected).max() <= error(features) * np.abs(expected).max()


@given(fact_arrays(), seeds)
def test_no_other_update_that_stores_the_facts_is_smaller(arrays, seed):
    features, changes = arrays
    delta = closed_form(features, changes).delta()
    rng = np.random.default_rng(seed)
    free = np.eye(7) - np.linalg.pinv(features) @ features  # moves no fact
    step = rng.normal(size=(6, 7)) @ free * np.abs(delta).max() * 10.0 ** rng.uniform(-3, 1)
    slack = error(features)
    assert np.abs((delta + step) @ features.T - changes.T).max() <= slack * np.abs(changes).max() * 100
    # Pythagoras, hence the unique Frobenius minimum; the nuclear norm cannot fall either
    assert np.sum((delta + step) ** 2) == pytest.approx(np.sum(delta**2) + np.sum(step**2), rel=slack)
    assert nuclear(delta + step) >= nuclear(delta) * (1 - slack)


def test_minimality_needs_the_facts_stored():
    # outside the assumption D Phi = T a smaller update exists: zero
    features, changes = np.eye(2, 7), one_hot(0, 1)
    assert nuclear(0.5 * closed_form(features, changes).delta()) < nuclear(
        closed_form(features, changes).delta()
    )


@given(fact_arrays(facts=1), seeds, st.integers(1, 4))
def test_penalty_of_one_fact_is_at_least_twice_w_over_v(arrays, seed, rank):
    (v,), (w,) = arrays
    least = 2 * np.linalg.norm(w) / np.linalg.norm(v)
    for gauge in BALANCED:
        lora = closed_form(*arrays, gauge=gauge, rank=rank)
        assert lora.penalty() == pytest.approx(least, rel=1e3 * EPS)
        expected = np.outer(w, v) / (v @ v)
        assert np.abs(lora.delta() - expected).max() <= 1e3 * EPS * np.abs(expected).max()
    # any other factors that store the fact: random A, the B that fits, and what B v may be besides
    rng = np.random.default_rng(seed)
    read = rng.normal(size=(7, rank)) / np.linalg.norm(v)
    seen = read.T @ v
    assume(np.linalg.norm(seen) > 1e-3)
    write = np.outer(w, seen) / (seen @ seen)
    other = LoRA(write, read)
    assert np.allclose(other.shift(v[None])[0], w, rtol=0, atol=1e6 * EPS * np.abs(w).max())
    assert other.penalty() >= least * (1 - 1e3 * EPS)


@given(fact_arrays(), st.sampled_from(BALANCED), seeds)
def test_penalty_is_twice_the_nuclear_norm_and_least_over_gauges(arrays, gauge, seed):
    lora = closed_form(*arrays, gauge=gauge)
    slack = error(arrays[0])
    assert lora.penalty() == pytest.approx(2 * nuclear(lora.delta()), rel=slack)
    transform = linalg.expm(np.random.default_rng(seed).normal(size=(3, 3)) / 2)
    moved = lora.regauge(transform)
    size = np.abs(lora.delta()).max()
    assert np.abs(moved.delta() - lora.delta()).max() <= slack * size
    assert moved.penalty() >= lora.penalty() * (1 - slack)


def test_plain_gauge_is_not_balanced():
    lora = closed_form(10 * np.eye(2, 7), one_hot(0, 1), gauge="plain")
    assert lora.penalty() > 2 * nuclear(lora.delta()) * 1.5


# ---- gauges ----


@given(fact_arrays(), st.sampled_from(BALANCED))
def test_balanced_gauges_balance(arrays, gauge):
    lora = closed_form(*arrays, gauge=gauge)
    left, right = lora.write.T @ lora.write, lora.read.T @ lora.read
    assert np.abs(left - right).max() <= error(arrays[0]) * np.abs(left).max()


@given(fact_arrays())
def test_svd_gauge_is_the_svd_with_its_sign_convention(arrays):
    features, changes = arrays
    lora = closed_form(features, changes)
    values = linalg.svdvals(lora.delta())[:3]
    diagonal = lora.read.T @ lora.read
    assert np.abs(diagonal - np.diag(values)).max() <= error(features) * values[0]
    assert np.all(features.mean(axis=0) @ lora.read >= 0)
    flipped = closed_form(features, changes, gauge="flipped")
    assert np.array_equal(flipped.write, -lora.write) and np.array_equal(flipped.read, -lora.read)


@pytest.mark.parametrize("seed", range(8))
def test_signs_are_not_left_to_rounding_where_facts_are_interchangeable(seed):
    # Two facts with equal features and changes up to an exchange: the second read vector is their difference,
    # orthogonal to their mean. It must point to the first fact, in any coordinates.
    gram = np.array([[2.0, 0.7], [0.7, 2.0]])
    turn = linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))[0]
    features = np.linalg.cholesky(gram) @ turn[:2]
    lora = closed_form(features, one_hot(0, 1))
    assert np.all(lora.read.T @ features[0] > 0.1)


@given(fact_arrays(), st.integers(0, 5))
def test_random_gauge_is_an_orthogonal_turn_of_the_svd_gauge(arrays, seed):
    lora, turned = (closed_form(*arrays, gauge=g) for g in ("svd", f"random:{seed}"))
    turn = np.linalg.lstsq(lora.write, turned.write, rcond=None)[0]
    assert np.abs(turn.T @ turn - np.eye(3)).max() <= error(arrays[0], 1e5)
    assert np.array_equal(turned.read, closed_form(*arrays, gauge=f"random:{seed}").read)


@given(st.integers(0, 2**32 - 1))
def test_facts_gauge_gives_each_fact_its_column(seed):
    # facts with nearly orthogonal features: fact j is written and read by column j, on both sides positively
    rng = np.random.default_rng(seed)
    features = np.eye(3, 7) + 0.1 * rng.uniform(size=(3, 7))
    lora = closed_form(features, one_hot(0, 2, 4) - one_hot(1, 3, 5), gauge="facts")
    seen = features @ lora.read
    written = (one_hot(0, 2, 4) - one_hot(1, 3, 5)) @ lora.write
    for table in (seen, written):
        assert np.array_equal(np.argmax(np.abs(table), axis=1), np.arange(3))
        assert np.all(np.diag(table) > 0)


@given(fact_arrays(), st.permutations(range(3)))
def test_facts_gauge_permutes_with_its_facts(arrays, order):
    features, changes = arrays
    order = list(order)
    lora = closed_form(features, changes, gauge="facts")
    permuted = closed_form(features[order], changes[order], gauge="facts")
    slack = error(features, 1e5) * np.linalg.cond(changes) ** 2
    assume(slack < 0.01)
    assert np.abs(permuted.write - lora.write[:, order]).max() <= slack * np.abs(lora.write).max()
    assert np.abs(permuted.read - lora.read[:, order]).max() <= slack * np.abs(lora.read).max()


@given(fact_arrays(), st.permutations(range(6)), st.booleans())
def test_renaming_the_answers_moves_rows_of_write_and_nothing_else(arrays, renaming, symmetric):
    # also where all singular values tie (orthogonal features of one size): the read vectors see no labels
    features = np.eye(3, 7) if symmetric else arrays[0]
    changes = one_hot(0, 2, 4) - one_hot(1, 3, 5)
    renaming = list(renaming)
    for gauge in GAUGES:
        lora = closed_form(features, changes, gauge=gauge)
        renamed = closed_form(features, changes[:, renaming], gauge=gauge)
        assert np.array_equal(renamed.read, lora.read)
        assert np.array_equal(renamed.write, lora.write[renaming])


def test_a_gauge_can_see_labels():
    # the invariance above is a property of these gauges: where singular values tie, the singular vectors of
    # the dense matrix depend on the order of its rows
    features = linalg.orth(np.random.default_rng(0).normal(size=(7, 3))).T
    changes = one_hot(0, 2, 4)
    reads = [np.abs(linalg.svd(c.T @ features)[2][:3]) for c in (changes, changes[:, [2, 0, 1, 3, 4, 5]])]
    assert not np.allclose(*reads, atol=0.1)


@given(fact_arrays(), st.integers(1, 4), st.integers(1, 4))
def test_svd_is_exact_and_thin(arrays, entities, features):
    rng = np.random.default_rng(entities)
    for lora in (
        closed_form(*arrays),
        LoRA(rng.normal(size=(entities, 3)), rng.normal(size=(features, 3))),  # rank above a side, too
    ):
        left, values, right = lora.svd()
        delta = lora.delta()
        assert left.shape[1] == len(values) == right.shape[1]
        assert np.abs((left * values) @ right.T - delta).max() <= 1e3 * EPS * np.abs(delta).max()
        assert np.allclose(values, linalg.svdvals(delta)[: len(values)], rtol=0, atol=1e3 * EPS * values[0])
        assert np.allclose(left.T @ left, np.eye(len(values)), atol=1e3 * EPS)


# ---- ranks ----


@given(fact_arrays(), st.integers(3, 6), st.sampled_from(GAUGES))
def test_more_rank_than_needed_adds_empty_columns(arrays, rank, gauge):
    lora, needed = closed_form(*arrays, gauge=gauge, rank=rank), closed_form(*arrays, gauge=gauge)
    assert lora.rank == rank
    size = np.abs(needed.delta()).max()
    assert np.abs(lora.delta() - needed.delta()).max() <= error(arrays[0]) * size
    assert lora.penalty() == pytest.approx(needed.penalty(), rel=error(arrays[0]))


@given(fact_arrays(), st.integers(1, 2))
def test_too_small_a_rank_is_refused(arrays, rank):
    with pytest.raises(
        AdapterError, match=f"rank {rank} cannot hold 3 facts .* 3 dimensions; give rank >= 3"
    ):
        closed_form(*arrays, rank=rank)


def test_what_counts_is_the_rank_of_the_changes():
    # three facts with one answer and no old ones: rank one holds them all
    features = np.eye(3, 7)
    lora = closed_form(features, one_hot(2, 2, 2), rank=1)
    assert lora.rank == 1 and np.allclose(lora.shift(features), one_hot(2, 2, 2), atol=10 * EPS)


@given(fact_arrays(), st.integers(1, 2), seeds)
def test_best_approximations_against_svd_and_random_rivals(arrays, rank, seed):
    features, changes = arrays
    loss, weights = (closed_form(*arrays, rank=rank, approximate=how) for how in ("loss", "weights"))
    exact = least_norm(features, changes)
    slack = error(features)

    # weights: Eckart-Young on Delta W
    left, values, right = linalg.svd(exact)
    truncated = (left[:, :rank] * values[:rank]) @ right[:rank]
    gap = (values[rank - 1] - values[rank]) / values[0]
    assume(gap > 1e-3)
    assert np.abs(weights.delta() - truncated).max() <= slack * values[0] / gap

    # loss: |D Phi - T|^2 cannot be below the tail of T's singular values, and this reaches it
    tail = math.sqrt(np.sum(linalg.svdvals(changes)[rank:] ** 2))
    assert np.linalg.norm(loss.shift(features) - changes) == pytest.approx(tail, rel=slack)
    for rival in (weights, loss.regauge(np.eye(rank) * 2)):
        assert np.linalg.norm(rival.shift(features) - changes) >= tail * (1 - slack)
    for approximated in (loss, weights):
        assert approximated.rank == rank
    assert np.linalg.norm(loss.delta() - exact) >= np.linalg.norm(weights.delta() - exact) * (1 - slack)
    # its rows lie in the span of the features: the least norm among the minimisers
    outside = loss.delta() @ (np.eye(7) - np.linalg.pinv(features) @ features)
    assert np.abs(outside).max() <= slack * np.abs(loss.delta()).max()


def test_changes_that_are_all_zero_give_an_empty_adapter():
    for gauge in ("plain", "svd", "flipped", "random:0"):
        lora = closed_form(np.eye(2, 7), np.zeros((2, 6)), gauge=gauge)
        assert lora.rank >= 1 and not lora.delta().any() and np.all(np.isfinite(lora.read))


# ---- whitened and frozen-read adapters ----


def covariance(seed, size=7):
    root = np.random.default_rng(seed).normal(size=(size, size)) / math.sqrt(size)
    return root @ root.T + 0.1 * np.eye(size)


@given(fact_arrays(), st.floats(0.01, 100))
def test_whitening_with_the_identity_is_eq_23(arrays, scale):
    ours = whitened(*arrays, scale * np.eye(7)).delta()
    expected = closed_form(*arrays).delta()
    assert np.abs(ours - expected).max() <= error(arrays[0]) * np.abs(expected).max()


@given(fact_arrays(), seeds)
def test_whitened_edit_stores_the_facts_with_the_least_damage_to_the_keys(arrays, seed):
    features, changes = arrays
    c = covariance(seed)
    delta = whitened(features, changes, c).delta()
    slack = error(features) * np.linalg.cond(c)
    # an independent route: substitute D = D' L^-1 with C = L L^T, least norm, substitute back
    lower = np.linalg.cholesky(c)
    substituted = least_norm(linalg.solve_triangular(lower, features.T, lower=True).T, changes)
    expected = linalg.solve_triangular(lower, substituted.T, lower=True, trans="T").T
    assert np.abs(delta - expected).max() <= slack * np.abs(expected).max()
    damage = np.trace(delta @ c @ delta.T)
    plain = closed_form(features, changes).delta()
    assert damage <= np.trace(plain @ c @ plain.T) * (1 + slack)


def test_a_key_covariance_other_than_the_identity_changes_the_edit():
    features, changes = np.ones((1, 2)), np.ones((1, 1))
    edited = whitened(features, changes, np.diag([1.0, 3.0])).delta()
    assert np.allclose(edited, [[0.75, 0.25]]) and np.allclose(closed_form(features, changes).delta(), 0.5)


@given(fact_arrays(), seeds, st.floats(0.01, 10))
def test_ridge_is_memit_and_tends_to_the_exact_edit(arrays, seed, ridge):
    features, changes = arrays
    features = features / np.abs(features).max()
    c = covariance(seed)
    memit = changes.T @ features @ np.linalg.inv(features.T @ features + ridge * c)
    ours = whitened(features, changes, c, ridge=ridge).delta()
    slack = 1e3 * EPS * np.linalg.cond(features.T @ features + ridge * c) * np.linalg.cond(c)
    assert np.abs(ours - memit).max() <= slack * np.abs(memit).max()
    exact = whitened(features, changes, c).delta()
    near = [np.linalg.norm(whitened(features, changes, c, ridge=r).delta() - exact) for r in (1e-3, 1e-6)]
    assert near[1] <= near[0] + slack * np.linalg.norm(exact)


@given(fact_arrays(), seeds, st.integers(3, 8))
def test_frozen_read_fits_with_the_least_write(arrays, seed, rank):
    features, changes = arrays
    lora = frozen_read(features, changes, rank=rank, seed=seed)
    seen = features @ lora.read
    slack = 1e3 * EPS * np.linalg.cond(seen) ** 2
    assume(slack < 1e-3)
    assert np.abs(lora.shift(features) - changes).max() <= slack * np.abs(changes).max()
    expected = np.linalg.pinv(seen) @ changes
    assert np.abs(lora.write.T - expected).max() <= slack * np.abs(expected).max()
    again = frozen_read(2 * features, -changes, rank=rank, seed=seed)
    assert np.array_equal(again.read, lora.read)  # the read factor sees neither features nor labels


def test_frozen_read_of_too_small_a_rank():
    features, changes = np.eye(3, 7), one_hot(0, 1, 2)
    with pytest.raises(AdapterError, match="rank 2 cannot tell 3 facts apart; give rank >= 3"):
        frozen_read(features, changes, rank=2, seed=0)
    lora = frozen_read(features, changes, rank=2, seed=0, approximate=True)
    residual = lora.shift(features) - changes
    assert np.abs((features @ lora.read).T @ residual).max() <= 100 * EPS  # the least-squares fit
    assert np.abs(residual).max() > 0.1


def test_frozen_read_refuses_facts_it_does_not_store():
    """Features that are linearly dependent: the rank is enough, the facts are not stored all the same."""
    features = np.vstack([np.eye(3, 7), 2 * np.eye(1, 7)])
    with pytest.raises(AdapterError, match="the features of the 4 facts are linearly dependent"):
        frozen_read(features, one_hot(0, 1, 2, 3), rank=8, seed=0)
    agreeing = np.vstack([one_hot(0, 1, 2), 2 * one_hot(0)])
    lora = frozen_read(features, agreeing, rank=8, seed=0, approximate=True)
    assert np.abs(lora.shift(features) - agreeing).max() <= 100 * EPS


# ---- what is refused ----

PHI, T = np.eye(2, 5) + 0.1, np.eye(2, 3)


def spoiled(array, value, row=1):
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize("build", [closed_form, lambda f, c: whitened(f, c, np.eye(5))], ids=["eq23", "rome"])
@pytest.mark.parametrize(
    "features, changes, message",
    [
        (spoiled(PHI, np.nan), T, "features of fact 1 hold NaN or infinity"),
        (PHI, spoiled(T, np.inf), "changes of fact 1 hold NaN or infinity"),
        (spoiled(PHI, 0), T, "feature vector of fact 1 is zero"),
        (PHI[[0, 0]], T, "2 facts are linearly dependent .* remove the duplicates"),
        (np.vstack([PHI, PHI.sum(0)]), np.eye(3), "3 facts are linearly dependent"),
        (np.ones((3, 2)) + np.eye(3, 2), np.eye(3), "linearly dependent|has shape"),
        (PHI, np.eye(3), r"features \(2, 5\) and changes \(3, 3\) must be"),
        (PHI[0], T, r"features \(5,\) and changes \(2, 3\) must be"),
        (PHI[:0], T[:0], "same, non-zero number of facts"),
    ],
    ids=["nan", "inf", "zero", "duplicate", "dependent", "narrow", "mismatch", "vector", "none"],
)
def test_arrays_that_hold_no_facts(build, features, changes, message):
    with pytest.raises(AdapterError, match=message):
        build(features, changes)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize(
    "build",
    [closed_form, lambda f, c: whitened(f, c, np.eye(5)), lambda f, c: whitened(f, c, np.eye(5), ridge=1)],
    ids=["eq23", "rome", "memit"],
)
def test_features_whose_squares_overflow(build, size):
    with pytest.raises(AdapterError, match=r"features of fact 0 are of size .* rescale them"):
        build(size * PHI, T)


def test_a_ridge_too_small_for_duplicates():
    with pytest.raises(AdapterError, match="2 facts are linearly dependent"):
        whitened(PHI[[0, 0]], T, np.eye(5), ridge=1e-20)


@pytest.mark.parametrize("rank", [0, -1, True, 1.0, "2"])
def test_ranks_that_are_no_whole_number_above_zero(rank):
    for build in (
        lambda: closed_form(PHI, T, rank=rank),
        lambda: closed_form(PHI, T, rank=rank, gauge="plain"),
        lambda: frozen_read(PHI, T, rank=rank, seed=0),
    ):
        with pytest.raises(AdapterError, match=f"rank is {rank!r}; it must be a whole number >= 1"):
            build()


@pytest.mark.parametrize(
    "how, message",
    [
        ({"gauge": "svq"}, '\'svq\'; allowed: "plain", "svd", "facts", "flipped", "random:<seed>"'),
        ({"gauge": "random:"}, "wants a whole number"),
        ({"gauge": "random:-1"}, "wants a whole number"),
        ({"approximate": "both"}, '\'both\'; allowed: None, "loss", "weights"'),
        ({"rank": 1, "approximate": "loss", "gauge": "facts"}, 'use gauge "svd"'),
    ],
)
def test_options_of_the_closed_form(how, message):
    with pytest.raises(AdapterError, match=message):
        closed_form(PHI, T, **how)


def test_facts_gauge_needs_independent_changes():
    with pytest.raises(AdapterError, match='found 1 for 2 facts; use gauge "svd"'):
        closed_form(PHI, one_hot(1, 1), gauge="facts")


@pytest.mark.parametrize("gauge", ["svd", "flipped", "random:1"])
def test_changes_too_nearly_dependent_for_singular_vectors(gauge):
    changes = np.array([[1.0, 0, 0], [1, 1e-12, 0]])
    with pytest.raises(AdapterError, match=r'eight digits.* use gauge "plain"'):
        closed_form(PHI, changes, gauge=gauge)
    plain = closed_form(PHI, changes, gauge="plain")
    assert np.allclose(plain.shift(PHI), changes, rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (np.eye(4), r"has shape \(4, 4\); features need \(5, 5\)"),
        (np.ones((5, 4)), "has shape"),
        (np.triu(np.ones((5, 5))), "finite and symmetric"),
        (1e-10 * (np.eye(5) + np.eye(5, k=1) / 2), "finite and symmetric"),
        (np.full((5, 5), np.nan), "finite and symmetric"),
        (-np.eye(5), "not positive definite .* add a small multiple of the identity"),
        (np.ones((5, 5)), "not positive definite"),
        (np.zeros((5, 5)), "not positive definite"),
    ],
)
def test_key_covariances_that_are_none(matrix, message):
    with pytest.raises(AdapterError, match=message):
        whitened(PHI, T, matrix)


@pytest.mark.parametrize("ridge", [-1, math.nan, math.inf])
def test_ridges_that_are_none(ridge):
    with pytest.raises(AdapterError, match=f"ridge is {ridge}; it must be a finite number >= 0"):
        whitened(PHI, T, np.eye(5), ridge=ridge)
