"""Arrow and unseen entities: generalised eigenvectors of changes and features, and where they see nothing."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given
from hypothesis import strategies as st

from toytransformer.adapters import closed_form
from toytransformer.compositions import Prompt
from toytransformer.ledger.unseen import logit_of_a_stranger
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


@pytest.mark.parametrize("facts", [2, 5])
def test_the_mean_feature_sees_a_stranger(facts):
    gram = 0.4 * np.eye(facts + 1) + 0.6
    values, vectors = np.linalg.eigh(gram)
    phi = vectors * np.sqrt(values)
    assert phi[:-1].mean(0) @ phi[-1] == pytest.approx(0.6, abs=1e3 * EPS)
