"""The machine-checked statements on all assignments of labels or on random ones, and beyond their hypotheses.

`out` is the merged output of two one-fact adapters, i_b + c1 (i_y - i_y0) + c2 (i_z - i_a). Coefficients are
in quarters, so every comparison is between whole numbers and exact.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from toytransformer.adapters import LoRA, closed_form
from toytransformer.compositions import Merge, catalogue
from toytransformer.merging import RULES, MergeContext, merge
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

EPS = np.finfo(float).eps
ENTITIES = 6
ONE = 4  # quarters
COEFFICIENTS = (1, 2, 3, 4, 6)
quarters = st.integers(-8, 8)
labels = st.integers(0, ENTITIES - 1)

#: Every assignment of labels to the roles b, y, y0, z, a, as five columns.
ALL = np.array(list(itertools.product(range(ENTITIES), repeat=5))).T
PAIRS = [(c1, c2) for c1 in COEFFICIENTS for c2 in COEFFICIENTS]


def out(b, y, y0, z, a, c1, c2):
    """The merged output in quarters, (case, entity)."""
    eye = np.eye(ENTITIES, dtype=int)
    b, y, y0, z, a = (eye[np.asarray(role)] for role in (b, y, y0, z, a))
    return ONE * b + c1 * (y - y0) + c2 * (z - a)


def top1(output, entity):
    """Whether `entity` alone has the largest output."""
    output, entity = np.atleast_2d(output), np.broadcast_to(np.atleast_1d(entity), len(np.atleast_2d(output)))
    rows = np.arange(len(output))
    own = output[rows, entity]
    others = output.copy()
    others[rows, entity] = np.iinfo(int).min if output.dtype.kind == "i" else -np.inf
    return own > others.max(axis=1)


def distinct(*roles):
    """Where the roles are pairwise different."""
    return np.all([p != q for p, q in itertools.combinations(roles, 2)], axis=0)


@given(st.tuples(*[labels] * 5), quarters, quarters)
def test_out_is_what_merged_adapters_answer(roles, c1, c2):
    b, y, y0, z, a = roles
    eye = np.eye(ENTITIES)
    features = np.eye(2, 3)  # v1, v2 orthonormal, so that f has coefficients c1 and c2
    library = [
        closed_form(features[:1], (eye[y] - eye[y0])[None]),
        closed_form(features[1:], (eye[z] - eye[a])[None]),
    ]
    f = np.array([[c1, c2, 3.0]]) / ONE
    output = eye[b] + merge(library, Merge("sum")).shift(f)
    assert np.abs(ONE * output - out(*roles, c1, c2)).max() <= 100 * EPS * ONE


# ---- exact output (thm2_exact_sharp) ----


def exactly_right(c1, c2):
    return np.all(out(*ALL, c1, c2) == ONE * np.eye(ENTITIES, dtype=int)[ALL[3]], axis=1)


def coincidences(c1, c2):
    b, y, y0, z, a = ALL
    return (
        (y == a) & (y0 == z) & (z == b) & (c1 == c2)
        | (y == z) & (y0 == a) & (a == b) & (c1 + c2 == ONE)
        | (y == a) & (y0 == b) & (c1 == ONE) & (c2 == ONE)
        | (y == a) & (y0 == z) & (b == y) & (c2 - c1 == ONE)
    )


@pytest.mark.parametrize("c1, c2", [*PAIRS, (2, 6)])
def test_output_is_exactly_right_in_four_coincidences_only(c1, c2):
    _, y, y0, z, a = ALL
    edited = (y != y0) & (z != a)
    assert np.array_equal(exactly_right(c1, c2)[edited], coincidences(c1, c2)[edited])
    assert not np.any(exactly_right(c1, c2) & distinct(*ALL))  # generically never


def test_each_coincidence_occurs_and_each_hypothesis_is_needed():
    b, y, y0, z, a = ALL
    edited = (y != y0) & (z != a)
    for c1, c2 in ((1, 1), (1, 3), (4, 4), (2, 6)):
        assert np.any(exactly_right(c1, c2) & edited)
    differs = exactly_right(2, 2) != coincidences(2, 2)
    assert np.any(differs & (y == y0) & (z == a))
    # c1 = 0, the first edit unseen: b = a and c2 = 1 is right outside the four
    differs = exactly_right(0, 4) & ~coincidences(0, 4) & edited
    assert np.any(differs & (a == b))


@pytest.mark.parametrize("c1", [-2, 0, 2])
@pytest.mark.parametrize("c2", [-2, 0, 2, 4])
def test_exact_iff_for_any_coefficients(c1, c2):
    # thm2_exact_iff: y apart from z, a and b
    b, y, y0, z, a = ALL
    where = (y != y0) & (z != a) & (y != z) & (y != a) & (y != b)
    expected = (c1 == 0) & ((c2 == ONE) & (a == b) | (c2 == 0) & (z == b))
    assert np.array_equal(exactly_right(c1, c2)[where], expected[where])


# ---- argmax (argmax_single_iff, sum_merge_fails, sum_merge_succeeds) ----


def argmax_conditions():
    b, y, y0, z, a = ALL
    return {
        "y-y0": y != y0,
        "z-a": z != a,
        "z-b": z != b,
        "y": (y != z) & (y != a) & (y != b),
        "y0": (y0 != z) & (y0 != a) & (y0 != b),
    }


def argmax_formula(c1, c2):
    b, a = ALL[0], ALL[4]
    return (abs(c1) < c2) & (np.where(a == b, ONE - c2, ONE) < c2)


GRID = list(itertools.product((-6, -3, -1, 0, 1, 2, 3, 4, 5, 6), repeat=2))


@pytest.mark.parametrize("c1, c2", GRID)
def test_argmax_is_right_iff(c1, c2):
    where = np.all(list(argmax_conditions().values()), axis=0)
    right = top1(out(*ALL, c1, c2), ALL[3])
    assert np.array_equal(right[where], argmax_formula(c1, c2)[where])


@pytest.mark.parametrize("dropped", argmax_conditions())
def test_argmax_formula_needs_each_hypothesis(dropped):
    others = [condition for name, condition in argmax_conditions().items() if name != dropped]
    where = np.all(others, axis=0) & ~argmax_conditions()[dropped]
    wrong = [np.any((top1(out(*ALL, c1, c2), ALL[3]) != argmax_formula(c1, c2))[where]) for c1, c2 in GRID]
    assert any(wrong)


@given(quarters, quarters, st.integers(2, 6))
def test_fresh_fact_is_right_iff_its_own_coefficient_wins(c1, c2, entities):
    # novel_fact_argmax_iff: the base says nothing, and a third entity has output 0
    output = np.zeros((1, entities), int)
    output[0, 0], output[0, 1] = c1, c2
    formula = c1 < c2 and c2 > 0
    if entities > 2:
        assert top1(output, 1)[0] == formula
    elif c1 < c2 <= 0:
        assert top1(output, 1)[0] and not formula  # with two entities nothing else is left


@pytest.mark.parametrize("b1, b2", GRID)
def test_one_hop_survives_only_above_half(b1, b2):
    _, y, y0, z, a = ALL
    where = (y != y0) & (y != z) & (y != a) & (y0 != z) & (y0 != a)
    survives = top1(out(y0, y, y0, z, a, b1, b2), y)
    assert 2 * b1 > ONE or not np.any(survives & where)


def test_a_second_edit_to_the_same_answer_lowers_the_threshold():
    y, y0, a = 0, 1, 2
    assert top1(out(y0, y, y0, y, a, 1, 6), y)[0]


# ---- efficacy against locality ----


SIX = np.array(list(itertools.product(range(ENTITIES), repeat=6))).T


@given(*[quarters] * 4)
def test_no_weights_are_right_here_and_harmless_there(d1, d2, e1, e2):
    b, other, y, y0, z, a = SIX
    where = np.all([z != role for role in (y, y0, b, other, a)], axis=0)
    where &= (b != y) & (b != y0) & (other != y) & (other != y0) & (a != b)
    here, there = out(b, y, y0, z, a, d1, d2), out(other, y, y0, z, a, e1, e2)
    if d2 <= e2:
        assert not np.any((top1(here, z) & top1(there, other))[where])
    # efficacy_locality_identity: the two margins together are what the second edit does more here than there
    rows = np.arange(len(z))
    margins = here[rows, z] - here[rows, b] + there[rows, other] - there[rows, z]
    assert np.array_equal(margins[where], (d2 - e2 - np.where(other == a, e2, 0))[where])


def test_efficacy_and_locality_together_outside_the_hypotheses():
    b, other, y, y0, z, a = range(6)
    # efficacy_locality_corner: a = b, at coefficients 1/4 and 3/4
    for_both = [out(first, y, y0, z, b, 1, 3) for first in (b, other)]
    assert top1(for_both[0], z)[0] and top1(for_both[1], other)[0]
    # an edit that is seen more by its own prompt, d2 > e2
    assert top1(out(b, y, y0, z, a, 0, 6), z)[0] and top1(out(other, y, y0, z, a, 0, 1), other)[0]


@given(seeds)
def test_margins_are_conserved_by_what_the_merge_does_alike(seed):
    rng = np.random.default_rng(seed)
    base, update = rng.normal(size=(2, ENTITIES, 4))
    f, g = rng.normal(size=(2, 4))

    def margin(vector):
        return vector[0] - vector[1]

    together = margin((base + update) @ f) - margin((base + update) @ g)
    expected = margin(base @ f) - margin(base @ g) + margin(update @ (f - g))
    assert abs(together - expected) <= 1e3 * EPS


# ---- several facts (at_most_one_correct, eq25_never_top1) ----


@given(seeds, st.integers(2, 5))
def test_at_most_one_is_right_when_every_prompt_gets_the_same(seed, prompts):
    rng = np.random.default_rng(seed)
    base = np.eye(2 * prompts)[:prompts]  # i_b(i), answers z_j behind them
    shift = rng.normal(size=(prompts, 2 * prompts)) * 3
    shift[:, prompts:] = shift[0, prompts:]  # z-rows alike on every prompt
    right = top1(base + shift, prompts + np.arange(prompts))
    assert right.sum() <= 1
    shift[:, prompts:] = 5 * np.eye(prompts) + 10  # each prompt its own: all can be right
    assert top1(
        base + np.where(np.arange(2 * prompts) < prompts, 0, shift), prompts + np.arange(prompts)
    ).all()


@given(
    st.integers(2, 6),
    st.booleans(),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.sampled_from(["strict", "causal", "causal-printed"]),
)
def test_no_weights_compose_several_facts(facts, known, weights, mask):
    composition = catalogue.build("two-hop", facts=facts, known=known, merge=Merge("sum", weights))
    assert predict(composition, FullLimit(mask=mask)).strict_accuracy == 0


def test_one_fact_can_compose_and_the_oracle_does():
    one = catalogue.build("two-hop", facts=1, merge=Merge("sum", (0.0, 1.75)))
    assert predict(one, FullLimit()).strict_accuracy == 1
    assert predict(catalogue.build("with-oracle", facts=4), FullLimit()).strict_accuracy == 1


# ---- what no merge can do (no_ripple_any_merge) ----


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.needs_data])
@pytest.mark.parametrize("seed", range(3))
def test_answers_that_no_adapter_writes_stay_where_the_base_put_them(rule, seed):
    rng = np.random.default_rng(seed)
    library = [LoRA(rng.normal(size=(ENTITIES, 2)), rng.normal(size=(7, 2))) for _ in range(2)]
    untouched = (0, 1)  # the right answer g, never written, and the base's own b
    for adapter in library:
        adapter.write[list(untouched)] = 0
    f = rng.normal(size=(4, 7))
    merged = merge(library, Merge(rule), MergeContext(logit_scale=2.0))
    output = np.eye(ENTITIES)[1] + merged.shift(f)
    assert np.abs(output[:, 0]).max() <= 100 * EPS
    assert not np.any(top1(output, 0))
    # outside the hypothesis: pushed down, b gives way
    library[0].write[1] = -5 * np.sign(f[0] @ library[0].read)
    library[1].write[2:] = 0
    library[0].write[2:] = 0
    lowered = np.eye(ENTITIES)[1] + merge(library, Merge("sum")).shift(f[:1])
    assert lowered[0, 1] < lowered[0, 0]


# ---- one hop under the other adapter ----


@given(seeds, st.booleans())
def test_a_sum_keeps_its_own_hop_iff_features_are_orthogonal(seed, orthogonal):
    rng = np.random.default_rng(seed)
    v1, v2 = rng.normal(size=(2, 7))
    if orthogonal:
        v2 = v2 - (v2 @ v1) / (v1 @ v1) * v1
    changes = np.eye(ENTITIES)[[0, 2]] - np.eye(ENTITIES)[[1, 3]]
    library = [closed_form(v[None], change[None]) for v, change in zip((v1, v2), changes, strict=True)]
    kept = merge(library, Merge("sum")).shift(v1[None])[0]
    leak = v2 @ v1 / (v2 @ v2)
    assert np.abs(kept - changes[0] - leak * changes[1]).max() <= 1e3 * EPS
    assert (np.abs(kept - changes[0]).max() <= 1e3 * EPS) == (abs(leak) <= 1e3 * EPS)


@given(seeds)
def test_any_two_hop_output_is_possible_without_a_base_there(seed):
    # base_hypothesis_needed: W that is right on the one-hop prompts can make the merged answer anything
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(3, 7))
    outputs, goal = rng.normal(size=(2, ENTITIES)), rng.normal(size=ENTITIES)
    changes = rng.normal(size=(2, ENTITIES))
    update = merge([closed_form(phi[i : i + 1], changes[i : i + 1]) for i in range(2)], Merge("sum")).delta()
    wanted = np.vstack([outputs, goal - update @ phi[2]])
    base = np.linalg.lstsq(phi, wanted, rcond=None)[0].T
    slack = 1e4 * EPS * np.linalg.cond(phi) ** 2
    assert np.abs(base @ phi[:2].T - outputs.T).max() <= slack
    assert np.abs((base + update) @ phi[2] - goal).max() <= slack


# ---- where factor-wise merging succeeds (lin_K_of_K, lin_wrong_gauge, cat_zero_of_K) ----


def chains(k, order, al=1.0, g=0.2):
    """K chains whose adapters read x_j and write z_order(j) in column j, and the prompts (K, feature)."""
    read1, read2 = np.eye(2 * k)[:, :k], np.eye(2 * k)[:, k:]
    eye = np.eye(4 * k)
    y, y0, z, a = (eye[:, i * k : (i + 1) * k] for i in range(4))
    library = [LoRA(y - y0, read1), LoRA((z - a)[:, order], read2[:, order])]
    return library, al * read1.T + g * np.ones((k, k)) @ read2.T


def right(library, prompts, rule, weights):
    k = len(prompts)
    base = np.zeros((k, 4 * k + 1))
    base[:, -1] = 1  # the old two-hop answer, outside every edit
    shift = merge(library, Merge(rule, weights)).shift(prompts)
    return top1(base + np.pad(shift, ((0, 0), (0, 1))), 2 * k + np.arange(k)).sum()


@given(st.integers(2, 5), st.floats(0.1, 3), st.floats(1.01, 3), st.floats(0.3, 2), st.floats(0, 0.5))
def test_aligned_factors_compose_all_k_and_products_none(k, a1, ratio, al, g):
    a2 = a1 * ratio
    library, prompts = chains(k, np.arange(k), al, g)
    if a2 * (a1 * al + a2 * g) > 1.001:  # the hypothesis of lin_composes
        assert right(library, prompts, "linear", (a1, a2)) == k
    assert right(library, prompts, "sum", (a1**2, a2**2)) == 0


@given(st.integers(2, 5).flatmap(lambda k: st.permutations(range(k))), st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_same_adapters_in_another_order_fail_where_they_moved(order, a1, a2):
    order = np.array(order)
    k = len(order)
    aligned, prompts = chains(k, np.arange(k))
    moved, _ = chains(k, order)
    assert np.array_equal(aligned[1].delta(), moved[1].delta())  # permuted_same_adapter
    fixed = np.sum(order == np.arange(k))
    assert right(moved, prompts, "linear", (a1, a2)) <= fixed


def test_a_flipped_sign_fails_too():
    library, prompts = chains(3, np.arange(3))
    flipped = [library[0], LoRA(-library[1].write, -library[1].read)]
    assert right(library, prompts, "linear", (1.0, 2.0)) == 3
    for weights in itertools.product((0.0, 0.5, 1.0, 2.0), repeat=2):
        assert right(flipped, prompts, "linear", weights) == 0


def test_both_directions_of_a_cyclic_pair_can_succeed():
    # both_directions_possible: uniq labels, 0 <= cs < cb, 1 < cb
    b1, b2, x, y, y0, a = range(6)
    forward, backward = out(b1, y, y0, x, a, 1, 5), out(b2, y, y0, x, a, 5, 1)
    assert top1(forward, x)[0] and top1(backward, y)[0]
    # but not at coefficients up to one
    assert not top1(out(b1, y, y0, x, a, 1, 4), x)[0]
