"""A second opinion on tied layers (TwoLayers.v, ManyLayers.v): z3 looks for a counterexample.

Adapter 2's coefficients solve G c = k, G with `on` the diagonal and `off` elsewhere, k `hit` at the right key
and `miss` at every other one.
"""

import numpy as np
import pytest
import z3
from counterexamples import exact, find, refute

from toytransformer.compositions import Merge, catalogue
from toytransformer.layers import Stack, predict, two_layers
from toytransformer.regimes import FullLimit

ON, OFF, HIT, MISS, WEIGHT, BOUND, OWN, OTHER = z3.Reals("on off hit miss weight bound own other")

#: By name, so that each can be dropped.
HYPOTHESES = {
    "the kernel grows": MISS < HIT,
    "a key is nearest to itself": OFF < ON,
    "kernels are not negative": z3.And(OFF >= 0, MISS >= 0),
    "the rest is bounded by something not negative": BOUND >= 0,
    "the weight is large enough": WEIGHT * OWN > BOUND,
}


def solved(facts):
    """By symmetry the K - 1 other coefficients are one number."""
    return z3.And(
        ON * OWN + (facts - 1) * OFF * OTHER == HIT,
        OFF * OWN + (ON + (facts - 2) * OFF) * OTHER == MISS,
    )


def right():
    """z_sigma leads every other z and whatever has at most `bound` from elsewhere."""
    return z3.And(WEIGHT * OWN > WEIGHT * OTHER, WEIGHT * OWN > BOUND)


@pytest.mark.parametrize("facts", [2, 3, 20])
def test_the_right_answer_wins_from_the_threshold_on(facts):
    refute(solved(facts), *HYPOTHESES.values(), z3.Not(right()))


@pytest.mark.parametrize("facts", [2, 3])
def test_a_unit_of_adapter_2_lifts_the_right_answer_most(facts):
    held = list(HYPOTHESES.values())[:3]  # what is about kernels
    refute(solved(facts), *held, OWN <= 0)
    refute(solved(facts), *held, OWN <= OTHER)
    # what it takes from another old answer, where its coefficient is negative, is less than what it gives
    refute(solved(facts), *held, OWN + OTHER <= 0)


@pytest.mark.parametrize(
    "dropped", ["the kernel grows", "a key is nearest to itself", "the weight is large enough"]
)
def test_composition_needs_each_hypothesis(dropped):
    held = [claim for name, claim in HYPOTHESES.items() if name != dropped]
    case = find(solved(2), *held, ON > 0, ON * ON != OFF * OFF, z3.Not(right()))
    on, off, hit, miss, weight, bound = (exact(case, x) for x in (ON, OFF, HIT, MISS, WEIGHT, BOUND))
    own, other = (exact(case, x) for x in (OWN, OTHER))
    assert on * own + off * other == hit and off * own + on * other == miss
    assert not (weight * own > weight * other and weight * own > bound)


#: By how much a state overlaps more with its right key; how much of it the next hop reads, and then has more.
EXTRA, ATTENTION, SEEN_ABOVE = z3.Reals("extra attention seen_above")


def one_hop_up(facts):
    """Adapter and kernel of a hop, the kernel by its two values, and what the next hop's state has more."""
    grows = z3.And(z3.Implies(EXTRA > 0, MISS < HIT), z3.Implies(EXTRA == 0, MISS == HIT))
    return (solved(facts), grows, SEEN_ABOVE == ATTENTION * WEIGHT * (OWN - OTHER))


@pytest.mark.parametrize("facts", [2, 3, 20])
def test_a_hit_below_is_a_hit_above(facts):
    """The step of the induction: any positive weight carries a hit on, and nothing else does."""
    held = [HYPOTHESES[name] for name in ("a key is nearest to itself", "kernels are not negative")]
    positive = (ATTENTION > 0, WEIGHT > 0)
    refute(*one_hop_up(facts), *held, *positive, EXTRA > 0, SEEN_ABOVE <= 0)
    refute(*one_hop_up(facts), *held, *positive, EXTRA == 0, SEEN_ABOVE != 0)


@pytest.mark.parametrize("none", [ATTENTION, WEIGHT])
def test_what_is_not_read_or_not_written_is_not_carried_on(none):
    held = [HYPOTHESES[name] for name in ("a key is nearest to itself", "kernels are not negative")]
    case = find(*one_hop_up(3), *held, ATTENTION >= 0, WEIGHT >= 0, EXTRA > 0, SEEN_ABOVE <= 0)
    assert exact(case, ATTENTION) * exact(case, WEIGHT) == 0
    refute(*one_hop_up(3), *held, none == 0, EXTRA > 0, SEEN_ABOVE != 0)


def test_in_the_limit_the_package_finds_the_same_edge():
    for known in (True, False):
        one = two_layers(2, 1.0, known=known)
        for factor, wanted in ((1.01, 1.0), (0.99, 0.0)):
            merge = Merge("sum", (1.0, factor * max(one.old, one.bridge) / one.own))
            found = predict(
                catalogue.build("two-hop", facts=2, known=known, merge=merge),
                Stack(FullLimit()),
                {"hop1": (1,), "hop2": (2,)},
            )
            assert found.accuracy == wanted
            assert np.isfinite(found.output).all()
