"""What stored updates explain of a target: least squares by another route, chance over all injections."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toytransformer.compositions import Fact, Prompt, SpecError
from toytransformer.regimes import FullLimit
from toytransformer.spans import Wanted, by_chance, captured, fact_of, facts_of

EPS = np.finfo(float).eps


def fact(entity, answer):
    return Fact(Prompt(entity, ("live_in",)), answer)


def target(n, shown, old=True):
    return [Wanted(fact(f"y{i}", f"z{i}"), f"o{i}" if old else None, int(shown[i])) for i in range(n)]


@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_chance_is_the_mean_over_all_injections_of_spans_in_the_centred_space(p, more, count, seed):
    """p of n facts: every injection's target projected on one span, averaged."""
    n, rng = p + more - 2, np.random.default_rng(seed)
    count = min(count, (p - 1) * (n - 1))
    outputs = rng.normal(size=(count, p, n))
    outputs -= outputs.mean(1, keepdims=True)
    outputs -= outputs.mean(2, keepdims=True)
    basis = np.linalg.svd(outputs.reshape(count, -1), full_matrices=False)[2]
    shares = []
    for sigma in itertools.permutations(range(n), p):
        wanted = np.eye(n)[list(sigma)] - 1 / n
        shares.append(np.sum((basis @ wanted.ravel()) ** 2) / np.sum(wanted**2))
    condition = np.linalg.cond(outputs.reshape(count, -1))
    assert abs(np.mean(shares) - by_chance(count, n, p)) <= 1e3 * EPS * condition**2


def test_chance_of_all_facts_is_the_theorem_and_never_above_one():
    assert by_chance(5, 7, 7) == pytest.approx(5 / 36, abs=EPS)
    assert by_chance(500, 7, 7) == 1


@pytest.mark.parametrize(("count", "facts", "shown"), [(0, 5, 3), (1, 5, 1), (1, 3, 4)])
def test_what_is_no_number_of_facts_is_refused(count, facts, shown):
    with pytest.raises(SpecError, match=r"1 <= K and 2 <= p <= n"):
        by_chance(count, facts, shown)


def test_the_targets_own_adapter_explains_all_of_it_whoever_is_beside():
    wanted = target(5, [1, 0, 2, 0, 1])
    strangers = [[fact(f"s{i}{j}", f"z{(i + j) % 5}") for j in range(4)] for i in range(3)]
    own = [one.fact for one in wanted]
    found = captured([own, *strangers], wanted)
    assert found.shown == pytest.approx(1, abs=1e4 * EPS)
    assert found.unseen == pytest.approx(1, abs=1e4 * EPS)
    assert found.weights == pytest.approx((1, 0, 0, 0), abs=1e4 * EPS)


def test_half_of_the_facts_explain_about_half_and_nothing_of_the_others_but_by_the_kernel():
    wanted = target(6, [1] * 6)
    half = captured([[one.fact for one in wanted[:3]]], wanted)
    assert 0.4 < half.shown < 0.75
    assert half.unseen is None
    shown = captured([[one.fact for one in wanted[:3]]], target(6, [1, 1, 1, 0, 0, 0]))
    assert shown.shown == pytest.approx(1, abs=1e4 * EPS)
    assert shown.unseen < 0.5


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=25)
def test_the_fit_is_that_of_the_normal_equations(seed, old):
    """Every example a row of its own, each adapter's outputs by W + T G^-1 Phi^T; no weighting by counts."""
    rng, n = np.random.default_rng(seed), 4
    shown = rng.integers(0, 3, size=n)
    shown[0] += 1
    wanted = target(n, shown, old)
    answers = rng.integers(n, size=(2, n))
    adapters = [[fact(f"y{i}" if i else f"s{k}", f"z{answers[k, i]}") for i in range(n)] for k in range(2)]
    prompts = list(dict.fromkeys([w.fact.prompt for w in wanted] + [f.prompt for a in adapters for f in a]))
    entities = [f"{kind}{i}" for kind in "zo" for i in range(n)]
    phi = dict(zip(prompts, FullLimit().features(prompts).values, strict=True))
    before = {w.fact.prompt: w.old for w in wanted}

    def change(one):
        row = np.zeros(len(entities))
        row[entities.index(one.answer)] += 1
        if before.get(one.prompt):
            row[entities.index(before[one.prompt])] -= 1
        return row

    rows = [w.fact for w in wanted for _ in range(w.shown)]
    asked = np.stack([phi[one.prompt] for one in rows])
    design = []
    for facts in adapters:
        features = np.stack([phi[one.prompt] for one in facts])
        weights = np.linalg.solve(features @ features.T, np.stack([change(one) for one in facts]))
        design.append((asked @ features.T @ weights).ravel())
    design, wished = np.stack(design, axis=1), np.stack([change(one) for one in rows]).ravel()
    condition = np.linalg.cond(design)
    assume(condition < 1e6)
    a = np.linalg.solve(design.T @ design, design.T @ wished)
    share = 1 - np.sum((wished - design @ a) ** 2) / np.sum(wished**2)
    found = captured(adapters, wanted)
    assert found.weights == pytest.approx(tuple(a), abs=1e5 * EPS * condition**2)
    assert found.shown == pytest.approx(share, abs=1e5 * EPS * condition**2)


def test_examples_and_adapters_have_to_be_there():
    wanted = target(3, [0, 0, 0])
    with pytest.raises(SpecError, match="none of the 3 facts"):
        captured([[wanted[0].fact]], wanted)
    with pytest.raises(SpecError, match="stores no fact"):
        captured([[]], target(3, [1, 1, 1]))


def test_lines_name_facts():
    assert fact_of(["Ann", "live_in", "Rome"]) == Fact(Prompt("Ann", ("live_in",)), "Rome")
    lines = [{"adapter": "one", "facts": [["Ann", "live_in", "Rome"]]}]
    assert facts_of(lines) == {"one": (fact_of(["Ann", "live_in", "Rome"]),)}
