"""Derived standard errors of finite outputs: against the closed form for one fact, and repeated draws."""

import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from toytransformer import estimates, kernel
from toytransformer.bases import TrainedBase
from toytransformer.compositions import Merge, catalogue
from toytransformer.estimates import standard_error
from toytransformer.prediction import predict
from toytransformer.readout import Typed
from toytransformer.regimes import Finite, FullLimit, RegimeError
from toytransformer.toy import Toy


def test_one_fact_has_the_closed_form():
    """The sampled variance estimates the delta-method formula, within five of its own standard errors."""
    composition = catalogue.build("two-hop", known=False)
    width, column = 10**5, composition.world.entities.index("y1")
    variances = [
        standard_error(predict(composition, Finite(dimension=math.inf, width=width, seed=seed)))[0, column]
        ** 2
        for seed in range(16)
    ]
    hidden = FullLimit().hidden_gram(composition.prompts)
    key, inner, query = (np.asarray(hidden[i]) for i in ((0, 0), (0, 2), (2, 2)))
    expected = kernel.overlap_standard_error(key, inner, query, width)
    spread = np.std(variances, ddof=1) / math.sqrt(len(variances))
    assert abs(np.mean(variances) - expected**2) < 5 * spread


@pytest.mark.parametrize("rule", ["sum", "mean"])
@pytest.mark.parametrize("facts", [1, 3])
def test_repeated_draws_spread_as_derived(facts, rule):
    """z-scores over R draws have variance 1 within five standard errors sqrt(2/R), averaged over outputs."""
    composition = catalogue.build("two-hop", facts=facts, known=False, merge=Merge(rule))
    limit = predict(composition, FullLimit()).output
    repeats, scores = 60, []
    for seed in range(repeats):
        drawn = predict(composition, Finite(dimension=math.inf, width=4096, seed=seed))
        error = standard_error(drawn)
        moved = error > 0
        scores.append(((drawn.output - limit)[moved] / error[moved])[:2])
    variance = np.mean(np.square(scores), axis=0)
    assert np.all(np.abs(variance - 1) < 5 * math.sqrt(2 / repeats)), variance


def test_repeated_draws_of_a_trained_base_and_a_typed_readout_spread_as_derived():
    composition = catalogue.build("two-hop", facts=2, bystanders=1, own_second=True)
    repeats, scores = 60, []
    limit = predict(composition, Toy(FullLimit(relation_length=2), TrainedBase(), Typed(0.4))).output
    for seed in range(repeats):
        regime = Finite(dimension=math.inf, width=8192, seed=seed, relation_length=2)
        drawn = predict(composition, Toy(regime, TrainedBase(), Typed(0.4)))
        error = standard_error(drawn, first=1)
        assert np.all(error > 0)  # every entity is of a kind that moves
        scores.append((drawn.output[:1] - limit[:1]) / error)
    variance = np.mean(np.square(scores), axis=(0, 1))
    assert np.all(np.abs(variance - 1) < 5 * math.sqrt(2 / repeats)), variance


def test_the_error_of_a_trained_base_is_the_slope_in_each_neurons_weight():
    """Outputs are functions of means over neurons: their variance is sum_r (d output / d weight_r)^2."""
    # fresh facts: what the base says to them, and so what adapters store, has noise of its own
    how = {"known": False, "bystanders": 1, "own_second": True}
    composition = catalogue.build("two-hop", merge=Merge("sum", (1.0, 1.5)), **how)
    regime = Finite(dimension=math.inf, width=64, relation_length=2)
    toy = Toy(regime, TrainedBase(), Typed(0.4))
    drawn = {}

    class Weighted(Finite):
        def features(self, prompts, *, neurons=False):
            if prompts not in drawn:
                drawn[prompts] = Finite.features(self, prompts, neurons=True)
            found = drawn[prompts]
            return replace(found, values=found.values * np.sqrt(weights))

    variance, step = 0.0, 1e-5
    for neuron in range(regime.width):
        sides = []
        for sign in (1, -1):
            weights = np.ones(regime.width)
            weights[neuron] += sign * step
            weighted = Weighted(dimension=math.inf, width=64, relation_length=2)
            sides.append(predict(composition, replace(toy, regime=weighted)).output)
        variance = variance + ((sides[0] - sides[1]) / (2 * step)) ** 2
    # central differences: step^2 of the third slope, and rounding over the step
    np.testing.assert_allclose(standard_error(predict(composition, toy)), np.sqrt(variance), rtol=1e-6)


def test_weights_scale_the_error():
    composition = catalogue.build("two-hop", library=("hop1",), merge=Merge("sum", (1.0,)))
    regime = Finite(dimension=64, width=512)
    once, thrice = (
        standard_error(predict(composition.with_merge(Merge("sum", (w,))), regime)) for w in (1.0, 3.0)
    )
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "regime", "name"),
    [
        ("ties", Finite(dimension=64, width=512), "two-hop"),
        ("sum", FullLimit(), "two-hop"),
        ("sum", Finite(dimension=64, width=512), "chain-of-thought"),
    ],
)
def test_refuses_what_has_no_derived_error(rule, regime, name):
    with pytest.raises(RegimeError, match="no derived standard error"):
        standard_error(predict(catalogue.build(name, merge=Merge(rule)), regime))


def test_the_error_is_the_spread_of_each_neurons_influence():
    """Entry by entry over the neurons, psi_r = sum_i w_i D_i[e, r] (phi_r - c_i . Phi_ir)."""
    composition = catalogue.build("with-oracle", facts=3, merge=Merge("sum", (1.0, -2.0, 0.5)))
    drawn = predict(composition, Finite(dimension=64, width=512))
    rows = dict(zip(composition.prompts, drawn.regime.features(composition.prompts).values, strict=True))
    for question, errors in zip(composition.questions, standard_error(drawn), strict=True):
        phi, influence = rows[question.prompt], 0.0
        for adapter, lora, w in zip(
            composition.adapters, drawn.adapters, composition.merge.weights, strict=True
        ):
            facts = np.stack([rows[prompt] for prompt in adapter.prompts])
            rest = phi - np.linalg.lstsq(facts.T, phi, rcond=None)[0] @ facts
            influence = influence + w * lora.delta() * rest
        np.testing.assert_allclose(errors, np.sqrt(np.sum(influence**2, axis=1)), rtol=1e-9, atol=1e-7)


def test_the_first_questions_alone():
    drawn = predict(catalogue.build("two-hop", facts=4), Finite(dimension=64, width=1024))
    np.testing.assert_allclose(standard_error(drawn, first=2), standard_error(drawn)[:2], rtol=1e-9)


def test_as_many_facts_as_the_sample_has_neurons():
    composition = catalogue.build("two-hop", facts=20, known=False)
    wide = Finite(dimension=64, width=4096)
    with mock.patch.object(estimates, "SAMPLE", 16):
        errors = standard_error(predict(composition, wide), first=1)
    assert np.all(np.isfinite(errors)) and errors.any()
