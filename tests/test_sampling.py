"""Draws of many networks at once: the numbers of one network after the other, in law and seed by seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toytransformer import hidden, kernel, sampling
from toytransformer.compositions import Prompt
from toytransformer.regimes import Finite, FullLimit, RegimeError, WidthLimit

KEYS, QUERY = (Prompt("x", ("R1",)), Prompt("y", ("R2",))), Prompt("x", ("R1", "R2"))
#: Rounding of a Gram entry summed over neurons in float64, relative to the entries of a c of order 1.
TOL = 1e4 * np.finfo(float).eps

#: More than a batch and not a whole number of them; one number, because another is another compilation.
DRAWS = sampling.BATCH + 3


@pytest.mark.parametrize(
    "regime",
    [
        Finite(dimension=8, width=40),
        Finite(dimension=5, width=33, attention="softmax", mask="causal"),
        Finite(dimension=math.inf, width=20),
        WidthLimit(dimension=6, mask="causal-printed"),
    ],
    ids=str,
)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31 - DRAWS))
def test_draw_i_is_the_network_of_seed_plus_i(regime, seed):
    regime = replace(regime, seed=seed)
    together = sampling.overlap_draws(regime, KEYS, QUERY, DRAWS)
    assert together.shape == (DRAWS, len(KEYS))
    for i in (0, sampling.BATCH, DRAWS - 1):
        gram = replace(regime, seed=seed + i).gram((*KEYS, QUERY))
        assert np.allclose(together[i], gram[:2, 2] / np.diag(gram)[:2], rtol=0, atol=TOL)


def test_spread_over_neurons_is_the_derived_standard_error():
    draws, width = 2000, 4000
    c = sampling.overlap_draws(Finite(dimension=math.inf, width=width), KEYS, QUERY, draws)
    gram = hidden.token_coefficients((*KEYS, QUERY)).full_limit_gram()
    for column in range(2):
        own, inner, asked = gram[column, column], gram[column, 2], gram[2, 2]
        error = kernel.overlap_standard_error(own, inner, asked, width)
        exact = kernel.overlap(own, inner, asked)
        # the ratio of two means is off by O(1/m), far below its spread over this many draws
        assert abs(c[:, column].mean() - exact) <= 5 * error / math.sqrt(draws) + 10 / width
        assert abs(c[:, column].std() / error - 1) <= 5 / math.sqrt(2 * draws)


def test_a_key_asked_about_itself_has_coefficient_one():
    c = sampling.overlap_draws(WidthLimit(dimension=7), KEYS, KEYS[0], 3)
    assert np.allclose(c[:, 0], 1, rtol=0, atol=TOL)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"regime": FullLimit()}, "nothing to draw"),
        ({"draws": 0}, "draws is 0"),
        ({"draws": True}, "draws is True"),
        ({"draws": 2.0}, "draws is 2.0"),
        ({"keys": ()}, "no keys"),
        ({"regime": Finite(dimension=4, width=4, seed=2**31 - 1), "draws": 2}, "beyond 2\\^31"),
        ({"regime": Finite(dimension=4, width=1), "draws": 50}, "every feature of .* is zero at seed"),
    ],
)
def test_wrong_sizes_are_named(change, words):
    given = {"regime": WidthLimit(dimension=4), "keys": KEYS, "query": QUERY, "draws": 1} | change
    with pytest.raises(RegimeError, match=words):
        sampling.overlap_draws(**given)


def test_too_many_draws_are_refused_before_the_work():
    with pytest.raises(MemoryError, match="draws"):
        sampling.overlap_draws(WidthLimit(dimension=2**22), KEYS, QUERY, 2**31)
