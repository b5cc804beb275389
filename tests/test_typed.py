"""Answers with kinds: closed forms against dense least squares and singular vectors, at any relation
length."""

import math

import numpy as np
import pytest
import z3
from counterexamples import find, refute
from hypothesis import given
from hypothesis import strategies as st

from toytransformer import kernel
from toytransformer.adapters import closed_form
from toytransformer.prototypes import (
    Group,
    arrow_weights,
    bridged_known,
    first_direction,
    fresh,
    known,
    seen,
)
from toytransformer.typed import (
    TypedError,
    direct_question,
    fresh_threshold,
    kind_lines,
    overlaps,
    trained_threshold,
    typed_threshold,
)

EPS = np.finfo(float).eps
#: Gram matrices of up to 40 prompts, condition below 1e3.
ATOL = 1e5 * EPS
lengths = st.floats(0.5, 3)


def features(prompts, length):
    """Rows whose inner products are those of the full limit, counted token by token."""

    def norm(token):
        return length**2 if token.startswith("R") else 1.0

    def inner(p, q):
        attended = sum(norm(a) for a in p[:-1] for b in q[:-1] if a == b) / (len(p) - 1) / (len(q) - 1)
        return attended + (norm(p[-1]) if p[-1] == q[-1] else 0.0)

    hidden = np.array([[inner(p, q) for q in prompts] for p in prompts])
    values, vectors = np.linalg.eigh(kernel.relu_gram(hidden))
    return vectors * np.sqrt(np.clip(values, 0, None))


def typed_root(kinds, t):
    kinds = np.array(kinds)
    values, vectors = np.linalg.eigh((1 - t) * np.eye(len(kinds)) + t * (kinds[:, None] == kinds))
    return (vectors * np.sqrt(values)) @ vectors.T


def direct(n, length, t, weights, base=False):
    """Scores on x1 R1 R2 by a dense computation: kinds of the entities, scores; entities x, y, z, (old
    ones)."""
    chains = range(n)
    letters = ("x", "y", "z") + (("o", "a", "b") if base else ())
    names = [f"{letter}{i}" for letter in letters for i in chains]
    kinds = ["place" if name[0] in "zab" else "person" for name in names]
    hop1, hop2 = [(f"x{i}", "R1") for i in chains], [(f"y{i}", "R2") for i in chains]
    more = [(f"o{i}", "R2") for i in chains] if base else []
    prompts = [*hop1, *hop2, *more, ("x0", "R1", "R2")]
    phi = features(prompts, length)
    root, one = typed_root(kinds, t), np.eye(len(names))
    at = {name: i for i, name in enumerate(names)}

    def rows(letter):
        return one[[at[f"{letter}{i}"] for i in chains]]

    output = np.zeros(len(names))
    old = np.zeros((2 * n, len(names)))
    if base:
        old = np.vstack([rows("o"), rows("a"), rows("b")])
        output = closed_form(phi[:-1], old @ root).shift(phi[-1:])[0]
    hops = ((phi[:n], rows("y") - old[:n]), (phi[n : 2 * n], rows("z") - old[n : 2 * n]))
    for weight, (seen_by, changes) in zip(weights, hops, strict=True):
        output = output + weight * closed_form(seen_by, changes @ root).shift(phi[-1:])[0]
    return names, kinds, output @ root, np.linalg.solve(root, output)


# ---- kinds ----


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0.01, 0.99))
def test_typing_moves_answers_between_kinds_only(seed, entities, t):
    rng = np.random.default_rng(seed)
    output, kinds = rng.normal(size=entities), rng.integers(3, size=entities)
    scores = (1 - t) * output + t * np.array([output[kinds == kind].sum() for kind in kinds])
    lines = kind_lines(output, kinds.tolist())
    for kind, (largest, total) in lines.items():
        of_kind = np.flatnonzero(kinds == kind)
        assert of_kind[np.argmax(scores[of_kind])] == of_kind[np.argmax(output[of_kind])]
        assert abs(scores[of_kind].max() - ((1 - t) * largest + t * total)) <= 1e3 * EPS
    for first in lines.values():
        for second in lines.values():
            try:
                crossing = typed_threshold(first, second)
            except TypedError:
                assert first[0] < second[0] and first[1] > second[1]
                continue
            gap = (1 - t) * (second[0] - first[0]) + t * (second[1] - first[1])
            if abs(gap) > 1e3 * EPS:
                assert (gap > 0) == (t > crossing)


# ---- t* ----


@given(st.integers(1, 5), lengths, st.floats(0.01, 0.99), st.tuples(st.floats(0.2, 2), st.floats(0.2, 2)))
def test_coefficients_of_a_direct_question(n, length, t, weights):
    names, _, _, output = direct(n, length, t, weights)
    said = direct_question(n, relation_length=length, weights=weights)
    expected = [0.0] * n + [said.bridge] + [said.other_bridge] * (n - 1) + [said.answer] * n
    assert names[n] == "y0"
    assert np.abs(output - expected).max() <= ATOL
    assert abs(said.people - sum(expected[n : 2 * n])) + abs(said.places - n * said.answer) <= ATOL


@given(st.integers(2, 6), lengths, st.booleans(), st.tuples(st.floats(0.3, 2), st.floats(0.3, 2)))
def test_threshold_is_where_the_kind_of_the_answer_changes(n, length, base, weights):
    if base:
        found = trained_threshold(n, first=n, second=2 * n, relation_length=length, weights=weights)
    else:
        found = fresh_threshold(n, relation_length=length, weights=weights)
    for t in (found - 1e-6, found + 1e-6):
        if not 0 <= t < 1:
            continue
        names, kinds, scores, _ = direct(n, length, t, weights, base)
        assert kinds[int(np.argmax(scores))] == ("place" if t > found else "person")
        best = [names[i][0] for i in np.flatnonzero(scores >= scores.max() - 1e-9)]
        if kinds[int(np.argmax(scores))] == "place" and best[0] == "z":
            assert best == ["z"] * n  # every z alike: right in 1 of n


def test_threshold_rises_to_its_limit_and_falls_with_longer_relations():
    for length in (1.0, 2.0):
        k = overlaps(length)
        own = (k.c1 - k.far) / (1 - k.relation)
        limit = own / (own + (k.c2 - k.far) / k.relation)
        curve = [fresh_threshold(n, relation_length=length) for n in (2, 5, 20, 100, 10**6)]
        assert np.all(np.diff(curve) > 0) and curve[-1] < limit
        assert limit - curve[-1] < 1e-5  # of order 1/n
    assert fresh_threshold(20, relation_length=2) < fresh_threshold(20)
    # the mean scales both adapters alike
    assert fresh_threshold(20, weights=(0.5, 0.5)) == pytest.approx(fresh_threshold(20), abs=ATOL)
    # a base that has learned that such questions are about places needs less typing
    assert trained_threshold(20, first=40, second=60) < fresh_threshold(20)


@given(st.integers(2, 10**4), lengths)
def test_threshold_in_closed_form(n, length):
    """t*(n) = S A / B - (B - A) / (B (n - 1)), within 0 and 1; it falls with n where B < A."""
    k = overlaps(length)
    own = (k.c1 - k.far) / (1 - k.relation)
    pull = k.c2 - k.far + k.relation * own
    closed = k.relation * own / pull - (pull - own) / (pull * (n - 1))
    assert abs(fresh_threshold(n, relation_length=length) - min(max(closed, 0), 1)) <= 1e4 * n * EPS
    later = fresh_threshold(n + 1, relation_length=length)
    assert (later - fresh_threshold(n, relation_length=length)) * (pull - own) >= -1e4 * n * EPS


# ---- what Arrow sees ----


def dense_direction(groups, length):
    """Gap and first right-singular vector of the adapter, by an SVD; prompts by group, and one that is not
    seen."""
    prompts = [(f"e{g}_{i}", group.relation) for g, group in enumerate(groups) for i in range(group.count)]
    phi = features([*prompts, ("new", "R1"), ("new", "R2")], length)
    width = max(len(group.common) for group in groups)
    common = np.array([(*group.common, *(0.0,) * (width - len(group.common))) for group in groups])
    owner = np.array([g for g, group in enumerate(groups) for _ in range(group.count)])
    spread = np.array([group.own - group.other for group in groups])[owner]
    changes = np.hstack([common[owner], np.diag(np.sqrt(np.maximum(spread, 0)))])
    adapter = closed_form(phi[:-2], changes, gauge="plain")
    _, values, right = adapter.svd()
    second = values[1] if len(values) > 1 else 0.0
    return 1 - second / values[0], right[:, 0], phi, owner


@st.composite
def libraries(draw):
    t = draw(st.floats(0.05, 0.95))
    parts = st.tuples(st.integers(1, 5), st.sampled_from(("R1", "R2")), st.integers(-1, 2))
    chosen = draw(st.lists(parts, min_size=1, max_size=3))
    return [known(n, r, t) if kind < 0 else fresh(n, r, t, kind) for n, r, kind in chosen]


@given(libraries(), lengths)
def test_first_direction_is_that_of_the_dense_adapter(groups, length):
    found = first_direction(groups, relation_length=length)
    gap, vector, phi, owner = dense_direction(groups, length)
    assert abs(found.gap - gap) <= 1e-6  # a square root of a difference of squares
    if found.gap <= 1e-3 or not found.coefficients:
        return
    room = ATOL / found.gap
    for number, group in enumerate(groups):
        first = int(np.flatnonzero(owner == number)[0])
        expected = abs(phi[first] @ vector)
        said = seen(groups, found, relation=group.relation, member=number, relation_length=length)
        assert abs(said - expected) <= room
    for row, relation in ((-2, "R1"), (-1, "R2")):
        said = seen(groups, found, relation=relation, relation_length=length)
        assert abs(said - abs(phi[row] @ vector)) <= room


@given(st.integers(2, 30), st.integers(1, 30), st.floats(0.5, 3), st.floats(0.01, 0.98))
def test_when_the_first_direction_is_one_of_means(n, m, length, t):
    relation = overlaps(length).relation
    if abs(t - relation) > 1e-6:
        one = first_direction([fresh(n, "R1", t)], relation_length=length)
        assert bool(one.coefficients) == (t > relation)
    if abs(t - 1 / (m + 1)) > 1e-6:
        beside = first_direction([known(n, "R1", t), fresh(m, "R1", t)], relation_length=length)
        assert bool(beside.coefficients) == (t > 1 / (m + 1))
    plain = first_direction([known(n, "R1", t)], relation_length=length)
    assert not plain.coefficients and plain.determined == (n == 2)
    kinds = [fresh(n, "R1", t), fresh(n, "R1", t, 1)]
    two = first_direction(kinds, relation_length=length)
    assert two.coefficients and abs(sum(two.coefficients)) <= ATOL / two.gap
    assert seen(kinds, two, relation="R1", relation_length=length) <= ATOL / two.gap
    expected = math.sqrt((1 + length**2) * (1 - relation) / (2 * n))
    for member in (0, 1):
        assert abs(seen(kinds, two, relation="R1", member=member, relation_length=length) - expected) <= (
            ATOL / two.gap
        )


def test_a_shared_bridge_of_fresh_facts_takes_the_weights_to_one_half():
    """Both adapters hold one bridge: each looks towards it, and on the hops themselves they are nearly
    alike."""
    before = 1.0
    for n in (2, 5, 20, 100):
        bridge = [fresh(n, "R1", 0.6), fresh(n, "R2", 0.6, 1)]
        libraries = [known(n, "R1", 0.6), *bridge], [known(n, "R2", 0.6), *bridge]
        directions = [first_direction(groups) for groups in libraries]
        logits = [
            seen(groups, direction, relation="R1", member=0 if groups is libraries[0] else None)
            for groups, direction in zip(libraries, directions, strict=True)
        ]
        weight, _ = arrow_weights(logits)
        assert 0.5 < weight < before
        before = weight
    assert before < 0.51


@given(st.integers(3, 6), st.integers(2, 6), st.floats(0.1, 0.9), lengths)
def test_a_bridge_ties_where_the_base_has_said_its_kind_and_nowhere_else(n, m, t, length):
    """One kind: the common part that is left is 1 - m_r of the kind, too little to stand out of the
    differences."""
    for groups, products in bridged_known(
        n, m, t, first=2 * n, second=3 * n, same_kind=False, relation_length=length
    ):
        assert np.all(np.linalg.eigvalsh(products[1:, 1:]) > 0)
        if t > 0.5 and m > 2:
            assert first_direction(groups, products, relation_length=length).coefficients


def test_bad_input_is_named():
    tied = first_direction([known(3, "R1", 0.5)])
    for wrong, said in (
        (lambda: overlaps(0), "relation_length is 0"),
        (lambda: direct_question(0), "facts is 0"),
        (lambda: trained_threshold(5, first=4, second=5), "4 and 5 facts of which 5"),
        (lambda: typed_threshold((0, 1), (1, 0)), "exchange"),
        (lambda: kind_lines([1.0, np.nan], "ab"), "finite"),
        (lambda: first_direction([]), "no groups"),
        (lambda: first_direction([known(2, "R1", 0.5)], np.eye(2)), r"products of shape \(2, 2\)"),
        (lambda: Group(0, "R1", 1.0), "count is 0"),
        (lambda: Group(2, "R1", 0.1, (0.5,)), "own is 0.1"),
        (lambda: seen([known(3, "R1", 0.5)], tied, relation="R1"), "differences within a group"),
        (lambda: arrow_weights((1, 2), 0), "temperature is 0"),
    ):
        with pytest.raises(TypedError, match=said):
            wrong()


@pytest.mark.parametrize("facts", [2, 3, 20])
def test_z3_finds_no_t_on_the_wrong_side_of_the_threshold(facts):
    """TypedReadout.direct_answer_is_a_place in exact numbers, from the equations of the coefficients."""
    s, c1, c2, far, t, own, rest, place, lead, pull = z3.Reals("s c1 c2 far t own rest place lead pull")
    coefficients = [
        own + (facts - 1) * s * rest == c1,
        s * own + (1 + (facts - 2) * s) * rest == far,
        place * (1 + (facts - 1) * s) == c2,
    ]
    names = [(1 - s) * lead == c1 - far, pull == c2 - far + s * lead]
    bridge = (1 - t) * own + t * (own + (facts - 1) * rest)
    wins = (1 - t) * place + t * facts * place > bridge
    above = t * pull * (facts - 1) > s * lead * (facts - 1) - (pull - lead)
    overlaps_ok = [s > 0, s < 1]
    refute(*coefficients, *names, *overlaps_ok, wins != above)
    find(*coefficients, *names, *overlaps_ok, pull > 0, wins)
    find(*coefficients, *names, *overlaps_ok, pull > 0, z3.Not(wins))
