"""No composition by relabelling: at most 1/n on average for every label-blind merge, and who beats it."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toytransformer import relabelling
from toytransformer.compositions import Merge, catalogue
from toytransformer.merging import RULES
from toytransformer.prediction import predict
from toytransformer.regimes import Finite, FullLimit, WidthLimit

BLIND = [name for name, rule in RULES.items() if rule.label_blind]
WEIGHTED = [name for name in BLIND if RULES[name].weighted]
#: Expected accuracies are sums of a few fractions.
ROUNDING = 1e-12

REGIMES = {
    "limit": FullLimit(quadrature=64),
    "width": WidthLimit(dimension=16, quadrature=64, attention="softmax", mask="causal"),
    "finite": Finite(dimension=16, width=64, seed=3),
}


@functools.cache
def average(rule, facts, regime, known=True, library=None, name="two-hop", **how):
    def build(sigma):
        return catalogue.build(
            name, facts=facts, known=known, library=library, sigma=sigma, merge=Merge(rule), **how
        )

    return relabelling.average(build, facts, REGIMES[regime])


def aligned(sigma, merge, gauge="facts", known=True):
    """Adapter 2 with its facts in the order in which adapter 1 reaches them: rank index j is one chain."""
    composition = catalogue.build(
        "two-hop", facts=len(sigma), sigma=sigma, merge=merge, gauge=gauge, known=known
    )
    first, second = composition.adapters
    ordered = replace(second, facts=tuple(second.facts[i] for i in sigma))
    return replace(composition, adapters=(first, ordered))


# ---- the bound, over all n! relabellings ----


@pytest.mark.parametrize("rule", BLIND)
@pytest.mark.parametrize("facts", [2, 3])
@pytest.mark.parametrize("regime", REGIMES)
def test_label_blind_merges_are_right_once_in_n_at_most(rule, facts, regime):
    result = average(rule, facts, regime)
    assert result.relabellings == len(list(itertools.permutations(range(facts))))
    assert result.accuracy <= 1 / facts + ROUNDING
    # In the full limit the largest singular values of three interchangeable facts tie, so rounding, which
    # sees the order of rows, picks for the rules that read singular vectors.
    tied = regime == "limit" and facts == 3 and RULES[rule].spectral
    assert result.label_blind or tied, (result.spread, result.tie)


@pytest.mark.parametrize("rule", BLIND)
def test_fresh_facts_and_softmax_do_no_better(rule):
    result = average(rule, 2, "width", known=False)
    assert result.accuracy <= 1 / 2 + ROUNDING and result.label_blind


@pytest.mark.parametrize("library", [("mixed",), ("hop1", "hop2", "mixed")])
@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_one_adapter_trained_on_both_hops_is_blind_too(library, rule):
    for known in (True, False):
        result = average(rule, 3, "limit", known=known, library=library)
        assert result.accuracy <= 1 / 3 + ROUNDING and result.label_blind


@settings(max_examples=12)
@given(st.sampled_from(WEIGHTED), st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.integers(0, 5))
def test_no_weights_and_no_gauge_chosen_blindly_help(rule, weights, seed):
    def build(sigma):
        merge = Merge(rule, weights)
        return catalogue.build("two-hop", facts=2, sigma=sigma, merge=merge, gauge=f"random:{seed}")

    assert relabelling.average(build, 2, REGIMES["limit"]).accuracy <= 1 / 2 + ROUNDING


def test_the_bound_is_reached():
    # known z's tie under a heavy second adapter, so one of n is right by chance: 1/n is not a loose bound
    def build(sigma):
        return catalogue.build("two-hop", facts=3, sigma=sigma, merge=Merge("sum", (0.0, 30.0)))

    assert relabelling.average(build, 3, REGIMES["limit"]).accuracy == pytest.approx(1 / 3)


# ---- outside its assumptions ----


@pytest.mark.parametrize("facts", [2, 3])
@pytest.mark.parametrize("known", [True, False])
def test_a_gauge_that_knows_sigma_beats_the_bound(facts, known):
    # the Delta W are those of before, only the columns of adapter 2 are matched with those of adapter 1
    merge = Merge("linear", (3.0, 6.0))
    result = relabelling.average(lambda sigma: aligned(sigma, merge, known=known), facts, REGIMES["limit"])
    assert result.accuracy == pytest.approx(1)
    assert not result.label_blind
    blind = relabelling.average(
        lambda sigma: catalogue.build(
            "two-hop", facts=facts, sigma=sigma, merge=merge, gauge="facts", known=known
        ),
        facts,
        REGIMES["limit"],
    )
    assert blind.accuracy <= 1 / facts + ROUNDING


def test_aligning_changes_no_product():
    for sigma in itertools.permutations(range(3)):
        plain, ordered = (
            predict(composition, REGIMES["limit"]).output
            for composition in (catalogue.build("two-hop", facts=3, sigma=sigma), aligned(sigma, Merge()))
        )
        assert np.abs(plain - ordered).max() <= ROUNDING


def test_data_that_shows_both_hops_beats_the_bound():
    result = average("sum", 3, "limit", name="with-oracle")
    assert result.accuracy == 1 and not result.label_blind


def test_the_joint_adapter_beats_the_bound():
    result = average("sum", 3, "limit", library=("joint",))
    assert result.accuracy == 1 and not result.label_blind


def test_feeding_the_answer_back_as_a_token_beats_the_bound():
    assert average("sum", 3, "limit", name="chain-of-thought").accuracy == 1


# ---- the average itself ----


def test_given_relabellings_only():
    def build(sigma):
        return catalogue.build("with-oracle", facts=3, sigma=sigma)

    result = relabelling.average(build, 3, REGIMES["limit"], relabellings=iter([(0, 1, 2), (1, 2, 0)]))
    assert result.relabellings == 2 and result.accuracy == 1
    assert relabelling.average(build, 3, REGIMES["limit"], relabellings=[(2, 1, 0)]).spread == 0


@pytest.mark.parametrize("facts", [0, -1, 9, 10**6])
def test_too_many_relabellings_are_refused_at_once(facts):
    with pytest.raises(ValueError, match=f"facts is {facts}; all n! .* for 1 to 8 facts, for more give"):
        relabelling.average(lambda sigma: None, facts, FullLimit())


def test_no_relabellings_are_refused():
    with pytest.raises(ValueError, match="at least one permutation"):
        relabelling.average(lambda sigma: None, 2, FullLimit(), relabellings=[])
