"""The three regimes behind one interface: they agree on what they share, repeat, and refuse at once."""

import json
import math
import time

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import few_tokens

from toytransformer import hidden, kernel, regimes
from toytransformer.compositions import Prompt
from toytransformer.memory import NotEnoughMemoryError
from toytransformer.network import OneLayerTransformer
from toytransformer.regimes import Finite, FullLimit, RegimeError, WidthLimit, square_root

EPS = np.finfo(float).eps

PROMPTS = (Prompt("x", ("R1",)), Prompt("y", ("R2",)), Prompt("x", ("R1", "R2")))
LIMITS = (FullLimit(), WidthLimit(dimension=8))
FINITE = Finite(dimension=8, width=64)
SOFTMAX = Finite(dimension=8, width=64, attention="softmax", mask="causal")
ONE_OF_EACH = (*LIMITS, FINITE, SOFTMAX, Finite(dimension=math.inf, width=64))


def named(regime):
    return f"{regime.name}-{regime.attention}-{regime.mask}"


@pytest.mark.parametrize("regime", ONE_OF_EACH, ids=named)
def test_features_are_a_square_root_of_the_gram(regime):
    features = regime.features(PROMPTS)
    gram = regime.gram(PROMPTS)
    assert features.values.dtype == gram.dtype == np.float64
    size = np.abs(gram).max()
    # chunks are summed in another order than one product sums them
    assert np.abs(features.values @ features.values.T - gram).max() <= 64 * 10 * EPS * size


@pytest.mark.parametrize("regime", ONE_OF_EACH, ids=named)
def test_neurons_are_neurons_in_every_regime(regime):
    features = regime.features(PROMPTS, neurons=True)
    assert features.neurons
    assert features.values.shape == (3, getattr(regime, "width", getattr(regime, "quadrature", None)))
    assert features.values.min() == 0


@pytest.mark.parametrize("regime", ONE_OF_EACH, ids=named)
def test_same_seed_same_numbers(regime):
    again = type(regime)(**regime.__dict__)
    for neurons in (False, True):
        first, second = (r.features(PROMPTS, neurons=neurons).values for r in (regime, again))
        assert np.array_equal(first, second)


@pytest.mark.parametrize("regime", ONE_OF_EACH[1:], ids=named)
def test_another_seed_gives_other_numbers(regime):
    other = type(regime)(**{**regime.__dict__, "seed": 1})
    assert not np.allclose(regime.gram(PROMPTS), other.gram(PROMPTS), rtol=1e-3)


def test_the_full_limit_has_no_seed():
    assert np.array_equal(FullLimit(seed=0).gram(PROMPTS), FullLimit(seed=5).gram(PROMPTS))


@settings(max_examples=8)
@given(st.sampled_from([1, 100, hidden.CHUNK, hidden.CHUNK + 1]), st.integers(0, 2**31 - 1))
def test_streamed_gram_sums_the_very_neurons(width, seed):
    regime = Finite(dimension=8, width=width, seed=seed)
    neurons = regime.features(PROMPTS, neurons=True).values
    gram = regime.gram(PROMPTS)
    # one rounding for each neuron summed, and a few for each product sqrt(2/m) relu * sqrt(2/m) relu
    assert np.abs(neurons @ neurons.T - gram).max() <= (width + 8) * EPS * np.abs(gram).max()


def test_wide_networks_are_streamed(monkeypatch):
    monkeypatch.setattr(regimes, "STREAM_ABOVE", 100)
    features = FINITE.features(PROMPTS)
    assert not features.neurons and features.values.shape == (3, 3)
    assert np.allclose(features.values @ features.values.T, FINITE.gram(PROMPTS), rtol=0, atol=100 * EPS)
    assert features.logit_scale == pytest.approx(math.sqrt(64 / 16), rel=10 * EPS)


@pytest.mark.parametrize("dimension", [8, math.inf])
def test_finite_widths_tend_to_the_width_limit(dimension):
    width = 2**16
    finite = Finite(dimension=dimension, width=width, seed=2)
    limit = FullLimit() if math.isinf(dimension) else WidthLimit(dimension=dimension, seed=2)
    states = finite.hidden_gram(PROMPTS)
    assert np.allclose(states, limit.hidden_gram(PROMPTS), rtol=0, atol=100 * EPS)  # the same embeddings
    norms = np.sqrt(np.diag(states))
    angles = np.arccos(np.clip(states / np.outer(norms, norms), -1, 1))
    spread = 2 * np.outer(norms, norms) * np.sqrt(kernel.moment_22(angles) - kernel.moment_11(angles) ** 2)
    deviation = finite.gram(PROMPTS) - limit.gram(PROMPTS)
    assert np.all(np.abs(deviation) <= 5 * spread / math.sqrt(width))
    assert np.abs(deviation).max() > 0


def test_width_limit_tends_to_the_full_limit():
    dimension = 2**14
    coefficients = hidden.token_coefficients(PROMPTS)
    deviation = WidthLimit(dimension=dimension).hidden_gram(PROMPTS) - FullLimit().hidden_gram(PROMPTS)
    unit = np.zeros((3, 3))
    unit[0, 2] = unit[2, 0] = 0.5
    assert abs(deviation[0, 2]) <= 5 * math.sqrt(coefficients.dimension_variance(unit) / dimension)


@pytest.mark.parametrize("init", hidden.INITS)
def test_logit_scale_undoes_the_normalisation(init):
    # E |raw phi|^2 = logit_scale^2 E |phi|^2, over networks drawn both ways
    dimension, width, repeats = 16, 64, 200
    raw, ours = np.empty((2, repeats))
    for seed in range(repeats):
        regime = Finite(dimension=dimension, width=width, init=init, seed=seed)
        features = regime.features(PROMPTS[:1])
        ours[seed] = features.logit_scale**2 * np.sum(features.values**2)
        network = OneLayerTransformer(
            ("x", "R1"), ("z",), dimension=dimension, width=width, init=init, rngs=nnx.Rngs(seed)
        )
        raw[seed] = float((network.features(PROMPTS[:1]) ** 2).sum())
    error = math.sqrt((raw.var() + ours.var()) / repeats)
    assert abs(raw.mean() - ours.mean()) <= 5 * error
    assert error < 0.1 * raw.mean()  # sharp enough to see a wrong power of d


def test_scale_of_the_logits_has_no_value_where_limits_do_not_commute():
    assert math.isnan(Finite(dimension=math.inf, width=4).features(PROMPTS).logit_scale)
    assert [regime.features(PROMPTS).logit_scale for regime in LIMITS] == [math.inf, math.inf]


@pytest.mark.parametrize("regime", ONE_OF_EACH, ids=named)
def test_description_is_plain_data(regime):
    described = regime.describe()
    assert described["name"] == regime.name
    json.dumps(described)
    assert json.dumps(FullLimit(seed=np.int64(3)).describe())


@given(st.lists(few_tokens, min_size=1, max_size=5, unique=True))
def test_square_root_of_singular_and_regular_grams(prompts):
    gram = FullLimit().hidden_gram(prompts + prompts[:1])  # a repeated prompt: singular
    root = square_root(gram)
    assert np.abs(root @ root.T - gram).max() <= 1e-7 * np.abs(gram).max()
    regular = FullLimit().gram(prompts)
    root = square_root(regular)
    assert np.abs(root @ root.T - regular).max() <= 100 * EPS * np.abs(regular).max()


# ---- what is refused ----


@pytest.mark.parametrize("bad", [0, -1, True, False, 2.0, 0.5, math.nan, "8", None])
@pytest.mark.parametrize(
    "build, name",
    [
        (lambda bad: WidthLimit(dimension=bad), "dimension"),
        (lambda bad: Finite(dimension=bad, width=4), "dimension"),
        (lambda bad: Finite(dimension=4, width=bad), "width"),
        (lambda bad: FullLimit(quadrature=bad), "quadrature"),
    ],
    ids=["width-d", "finite-d", "finite-m", "quadrature"],
)
def test_sizes_that_are_no_whole_number_above_zero(build, name, bad):
    with pytest.raises(RegimeError, match=f"{name}.* is {bad!r}; it must be a whole number .*1"):
        build(bad)


@pytest.mark.parametrize("seed", [-1, 1.0, True, 2**31, None])
def test_seeds_out_of_range(seed):
    with pytest.raises(RegimeError, match=r"seed is .* whole number from 0 to 2147483647"):
        FullLimit(seed=seed)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: FullLimit(mask="casual"), "mask is 'casual'; allowed: strict, causal, causal-printed"),
        (lambda: FullLimit(attention="hard"), "attention is 'hard'; allowed: uniform, softmax"),
        (
            lambda: WidthLimit(dimension=4, init="xavier"),
            "init is 'xavier'; allowed: standard-deviation, var",
        ),
        (lambda: FullLimit(init="variance"), "has no limit"),
        (lambda: Finite(dimension=math.inf, width=4, attention="softmax"), "dimension = infinity"),
        (lambda: Finite(dimension=-math.inf, width=4), "dimension"),
        (lambda: WidthLimit(dimension=math.inf), "dimension"),
        (lambda: Finite(dimension=4, width=10**12), "for wider models use the width limit"),
    ],
)
def test_options_the_model_does_not_have(build, message):
    with pytest.raises(RegimeError, match=message):
        build()


@pytest.mark.parametrize(
    "regime, neurons",
    [
        (WidthLimit(dimension=10**13), False),
        (Finite(dimension=10**30, width=4), False),
        (Finite(dimension=10**12, width=4, attention="softmax"), False),
        (Finite(dimension=4, width=2**31 - 1), True),
        (FullLimit(quadrature=10**13), True),
    ],
    ids=["width", "finite", "softmax", "neurons", "quadrature"],
)
def test_sizes_beyond_memory_are_refused_before_allocation(regime, neurons):
    if neurons and isinstance(regime, Finite):
        prompts = [Prompt("x", ("R",) * k) for k in range(1, 200)]  # 2^31 neurons for each, 10 TB
    else:
        prompts = PROMPTS
    start = time.perf_counter()
    with pytest.raises(NotEnoughMemoryError, match="GiB are free; choose smaller sizes"):
        regime.features(prompts, neurons=neurons)
    assert time.perf_counter() - start < 2
