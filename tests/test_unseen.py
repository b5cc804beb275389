"""Arrow and unseen entities: generalised eigenvectors of changes and features, and where they see nothing."""

import numpy as np
import pytest
import scipy.linalg
import z3
from counterexamples import find, refute
from hypothesis import assume, given
from hypothesis import strategies as st

from toytransformer.adapters import closed_form
from toytransformer.compositions import Prompt
from toytransformer.ledger.unseen import logit_of_a_stranger
from toytransformer.prototypes import arrow_weights
from toytransformer.regimes import Finite

EPS = np.finfo(float).eps
counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def first_totals(changes, gram):
    """Sums of the first directions' coefficients on the facts, one for each that ties, and the gap below
    them.

    p = F c with C c = lambda G c: the eigenvectors of the pair, with no adapter and no singular vectors.
    """
    values, vectors = scipy.linalg.eigh(changes, gram)
    tied = values >= values[-1] * (1 - 1e6 * EPS)
    rest = values[~tied]
    return vectors[:, tied].sum(0), 1 - rest[-1] / values[-1] if rest.size else 1.0


@given(counts, st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0, 2), st.floats(0.1, 2))
def test_a_first_direction_has_total_zero_iff_two_groups_tie(sizes, a, b, apart, common):
    group = np.repeat(np.arange(len(sizes)), sizes)
    assume(len(sizes) > 1 or apart == 0)
    facts = len(group)
    same = group[:, None] == group
    totals, gap = first_totals(apart * np.eye(facts) + common * same, a * np.eye(facts) + b)
    assume(gap > 1e-3)
    tie = sorted(sizes).count(max(sizes)) > 1 and len(sizes) > 1
    seen = np.abs(totals).max()
    assert (seen <= 1e4 * EPS / gap) == tie, (seen, gap)


@pytest.mark.parametrize("facts", [2, 3])
def test_z3_finds_no_first_direction_that_sees_a_stranger(facts):
    """Answers that all differ: c = lambda G c, and no other direction is stretched more."""
    a, b, most = z3.Reals("a b most")
    c = [z3.Real(f"c{j}") for j in range(facts)]
    held = [a > 0, b > 0, most > 0, z3.Or([each != 0 for each in c])]
    held += [each == most * (a * each + b * z3.Sum(c)) for each in c]
    refute(*held, most * a >= 1, z3.Sum(c) != 0)  # |h|^2 <= most h G h for a difference of two facts
    find(*held, z3.Sum(c) != 0)  # a later direction, the mean, does


def test_one_answer_for_all_known_facts_is_another_matter():
    """Outside the hypotheses: one group, and changes with a part of their own; then S decides."""
    for overlap, zero in ((0.4, False), (0.6, True)):
        gram = (1 - overlap) * np.eye(4) + overlap
        totals, _ = first_totals(np.eye(4) + 1, gram)
        assert (np.abs(totals).max() < 1e-12) == zero


def test_the_rounding_of_the_ledger_tells_zero_from_the_smallest_logit():
    zero, rounding = logit_of_a_stranger((2, 2, 1), False)
    small, _ = logit_of_a_stranger((4, 3, 3), True)
    assert zero <= rounding < small / 100


def test_at_finite_width_an_unseen_entity_is_seen_a_little():
    """The Gram matrix is constant in the limit only."""
    prompts = [Prompt(f"x{i}", ("R1",)) for i in range(6)]
    phi = Finite(dimension=24, width=96).features(prompts).values
    _, _, right = closed_form(phi[:-1], np.eye(5), gauge="plain").svd()
    assert abs(phi[-1] @ right[:, 0]) > 1e-3


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.floats(0, 1))
def test_a_bridge_makes_the_first_singular_value_large(seed, known, fresh, others, t):
    """Whatever else the adapter holds; and no logit exceeds |D f| / sigma_1."""
    rng = np.random.default_rng(seed)
    s, facts = rng.uniform(0.1, 0.9), known + fresh + others
    gram = np.full((facts, facts), 0.3 * s) + np.diag(np.full(facts, 1 - 0.3 * s))
    of_relation = np.arange(facts) < known + fresh
    block = np.ix_(of_relation, of_relation)
    gram[block] = (1 - s) * np.eye(known + fresh) + s
    values, vectors = np.linalg.eigh(gram)
    assert values[0] > 0
    phi = vectors * np.sqrt(values)
    changes = np.diag(np.sqrt(np.where(np.arange(facts) < known, rng.uniform(0.1, 2), 1 - t)))
    kind = np.where((np.arange(facts) >= known) & of_relation, np.sqrt(t), 0)
    adapter = closed_form(phi, np.hstack([changes, kind[:, None]]), gauge="plain")
    _, singular, right = adapter.svd()
    assert singular[0] ** 2 >= t * known * fresh / ((1 - s) * (known + fresh)) - 1e4 * EPS / values[0]
    f = rng.normal(size=(5, facts))
    outputs = np.linalg.norm(adapter.shift(f), axis=1)
    assert np.all(np.abs(f @ right[:, 0]) <= outputs / singular[0] + 1e4 * EPS / values[0])


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.floats(0.05, 1))
def test_what_it_says_to_strangers_is_bounded_whatever_it_holds(seed, sizes, least):
    """g relations of any sizes: b |D f|^2 <= tau g |f|^2, b the least eigenvalue of their overlaps."""
    rng, g = np.random.default_rng(seed), len(sizes)
    relation = np.repeat(np.arange(g), sizes)
    root = rng.normal(size=(g, g))
    between = root @ root.T + least * np.eye(g)
    # two more: an entity under a relation of its own, and one whose features lie partly outside the others'
    strangers = rng.normal(size=(2, g))
    gram = between[np.ix_(relation, relation)] + rng.uniform(0.1, 1) * np.eye(len(relation))
    values, vectors = np.linalg.eigh(gram)
    phi = np.hstack([vectors * np.sqrt(values), np.zeros((len(relation), 1))])
    f = np.linalg.lstsq(phi, strangers[:, relation].T, rcond=None)[0].T
    f[1, -1] = 1
    changes = rng.normal(size=(len(relation), 4))
    adapter = closed_form(phi, changes, gauge="plain")
    tau = np.sum(changes**2, axis=1).max()
    bound = tau * g * np.sum(f**2, axis=1) / np.linalg.eigvalsh(between)[0]
    assert np.all(np.sum(adapter.shift(f) ** 2, axis=1) <= bound * (1 + 1e4 * EPS / values[0]))


@given(st.lists(st.floats(0, 3), min_size=2, max_size=6), st.floats(0.2, 5))
def test_small_logits_are_weighted_alike(logits, temperature):
    weights, count = np.array(arrow_weights(logits, temperature)), len(logits)
    room = (1 - 1 / count) * max(logits) / temperature
    assert np.abs(weights - 1 / count).max() <= room + 10 * EPS


def test_z3_finds_no_two_small_logits_with_weights_far_apart():
    """Of exp(-d), d the difference of two logits, nothing is used but that it lies in [1 - d, 1]."""
    low, high, most, ratio, weight = z3.Reals("low high most ratio weight")
    held = [low >= 0, low <= high, high <= most, ratio >= 1 - (high - low), ratio <= 1, ratio > 0]
    refute(*held, weight * (1 + ratio) == 1, z3.Or(weight < 1 / 2, weight - z3.Q(1, 2) > most / 2))
    find(*held[1:], weight * (1 + ratio) == 1, weight - z3.Q(1, 2) > most / 2)  # logits are not negative


@pytest.mark.parametrize("facts", [2, 5])
def test_the_mean_feature_sees_a_stranger(facts):
    gram = 0.4 * np.eye(facts + 1) + 0.6
    values, vectors = np.linalg.eigh(gram)
    phi = vectors * np.sqrt(values)
    assert phi[:-1].mean(0) @ phi[-1] == pytest.approx(0.6, abs=1e3 * EPS)
