"""The explicit network: Theorem 2 on its own features, the finite regime's law, and what is trainable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import role_compositions

from toytransformer import hidden, merging, prediction
from toytransformer.adapters import closed_form
from toytransformer.compositions import Merge, Prompt, catalogue
from toytransformer.memory import NotEnoughMemoryError
from toytransformer.network import OneLayerTransformer
from toytransformer.regimes import Finite, RegimeError
from toytransformer.sampling import gram_matrices, overlap_draws

EPS = np.finfo(float).eps
TOKENS = ("x", "R1", "R2", "y1")
ASKED = (Prompt("x", ("R1",)), Prompt("y1", ("R2",)), Prompt("x", ("R1", "R2")))


def built(seed=0, tokens=TOKENS, entities=("y1", "z1"), dimension=6, width=32, **how):
    return OneLayerTransformer(tokens, entities, dimension=dimension, width=width, rngs=nnx.Rngs(seed), **how)


@settings(max_examples=12)
@given(
    role_compositions() | role_compositions(known=False),
    st.integers(0, 2**31 - 1),
    st.sampled_from([("strict", "uniform"), ("causal", "softmax"), ("causal-printed", "softmax")]),
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_theorem_2_in_the_network_itself(composition, seed, how, weights):
    # W fitted to the base, adapters made from the network's own activations, one forward pass
    world, prompts = composition.world, composition.prompts
    mask, attention = how
    tokens = tuple(dict.fromkeys(token for prompt in prompts for token in prompt.tokens))
    network = built(seed, tokens, world.entities, mask=mask, attention=attention, width=64)
    base = prediction.base_output(world, prompts)
    network.fit_readout(prompts, base)
    phi = np.asarray(network.features(prompts), float)
    slack = 1e3 * EPS * np.linalg.cond(phi @ phi.T)
    assert np.abs(np.asarray(network(prompts)) - base).max() <= slack

    rows = dict(zip(prompts, phi, strict=True))
    trained = [prediction.train(adapter, world, rows) for adapter in composition.adapters]
    merged = merging.merge(trained, Merge("sum", weights))
    output = np.asarray(network(prompts, merged.delta()))[2]
    expected = base[2].copy()
    for row, (adapter, weight) in enumerate(zip(composition.adapters, weights, strict=True)):
        change = prediction.wanted_shift(world, adapter.facts)[0]
        expected += weight * (phi[row] @ phi[2]) / (phi[row] @ phi[row]) * change
    assert np.abs(output - expected).max() <= slack


def test_an_edit_shifts_the_network_by_the_adapters_shift():
    network = built()
    phi = np.asarray(network.features(ASKED), float)
    lora = closed_form(phi[:1], np.eye(1, 2))
    output = np.asarray(network(ASKED, lora.delta()))
    assert np.abs(output - lora.shift(phi)).max() <= 100 * EPS  # W is zero until it is fitted
    assert np.allclose(output[0], [1, 0], atol=1e3 * EPS)


def test_readout_is_the_least_norm_one():
    network, outputs = built(), np.random.default_rng(0).normal(size=(3, 2))
    network.fit_readout(ASKED, outputs)
    phi = np.asarray(network.features(ASKED), float)
    expected = np.linalg.pinv(phi) @ outputs
    assert np.abs(np.asarray(network.readout[...]).T - expected).max() <= 1e6 * EPS * np.abs(expected).max()


def test_a_network_narrower_than_its_prompts_cannot_hold_the_base():
    # outside the assumption that W is exact
    network, outputs = built(width=2), np.eye(3)[:, :2]
    network.fit_readout(ASKED, outputs)
    assert np.abs(np.asarray(network(ASKED)) - outputs).max() > 0.01


def test_only_the_readout_is_trainable():
    network = built()
    assert set(nnx.to_flat_state(nnx.state(network, nnx.Param)).paths) == {("readout",)}
    before = np.asarray(network.features(ASKED))

    def loss(net):
        return jnp.sum((net(ASKED) - 1.0) ** 2)

    gradients = nnx.grad(loss)(network)
    assert set(nnx.to_flat_state(gradients).paths) == {("readout",)}
    assert np.array_equal(before, np.asarray(network.features(ASKED)))


# ---- the regimes draw the same networks by other means ----

DRAWS = 6000


@pytest.mark.parametrize("mask, attention", [("strict", "uniform"), ("causal", "softmax")])
def test_finite_regime_has_the_law_of_the_network(mask, attention):
    # c1 and c2 decide every prediction: their means, spreads and correlation over independent networks
    dimension, width = 3, 8  # far from every limit, d below the number of tokens

    def explicit(key):
        network = OneLayerTransformer(
            TOKENS,
            ("z1",),
            dimension=dimension,
            width=width,
            mask=mask,
            attention=attention,
            rngs=nnx.Rngs(params=key),
        )
        phi = network.features(ASKED)
        gram = phi @ phi.T
        return gram[:2, 2] / jnp.diagonal(gram)[:2]

    keys = jax.random.split(jax.random.key(0), DRAWS)
    network = np.asarray(jax.jit(jax.vmap(explicit))(keys))
    network = network[np.isfinite(network).all(axis=1)]  # no neuron sees the fact in a few networks of eight
    missing = 1 - len(network) / DRAWS
    regime = Finite(dimension=dimension, width=width, mask=mask, attention=attention, seed=1)
    alike = usable_draws(regime)
    assert missing < 0.02 and abs(1 - len(alike) / DRAWS - missing) < 0.01

    def statistics(c):
        c = np.minimum(c, 3.0)  # bounded, so that moments exist
        return np.stack([c[:, 0], c[:, 1], c[:, 0] ** 2, c[:, 1] ** 2, c[:, 0] * c[:, 1]])

    a, b = statistics(network), statistics(alike)
    error = np.sqrt(a.var(axis=1) / a.shape[1] + b.var(axis=1) / b.shape[1])
    assert np.all(np.abs(a.mean(axis=1) - b.mean(axis=1)) <= 5 * error)
    # sharp enough: the other mask is another law
    if mask == "strict":
        other = statistics(usable_draws(Finite(dimension=dimension, width=width, mask="causal", seed=1)))
        assert np.any(np.abs(a.mean(axis=1) - other.mean(axis=1)) > 5 * error)


def usable_draws(regime):
    """Coefficients over draws in which every fact is seen by some neuron; the others are skipped singly."""
    grams = np.asarray(gram_matrices(np.arange(DRAWS, dtype=np.uint32), regime=regime, prompts=ASKED))
    own = np.diagonal(grams, axis1=1, axis2=2)[:, :2]
    seen = np.all(own > 0, axis=1)
    return grams[seen, :2, 2] / own[seen]


def test_draws_are_those_of_one_network_after_the_other():
    regime = Finite(dimension=8, width=64, seed=5)
    drawn = overlap_draws(regime, ASKED[:2], ASKED[2], 3)
    for i in range(3):
        gram = Finite(dimension=8, width=64, seed=5 + i).gram(ASKED)
        assert np.allclose(drawn[i], gram[:2, 2] / np.diag(gram)[:2], rtol=1e3 * EPS)


def test_prediction_of_the_finite_regime_is_a_forward_pass():
    # the regime's neurons as the network's activations: one mixture, two ways
    composition = catalogue.build("two-hop")
    regime = Finite(dimension=8, width=64, seed=3)
    phi = regime.features(composition.prompts).values
    base = prediction.base_output(composition.world, composition.prompts)
    readout = np.linalg.lstsq(phi, base, rcond=None)[0]
    rows = dict(zip(composition.prompts, phi, strict=True))
    deltas = [prediction.train(a, composition.world, rows).delta() for a in composition.adapters]
    forward = phi[2] @ (readout + sum(deltas).T)
    predicted = prediction.predict(composition, regime).output[0]
    assert np.abs(forward - predicted).max() <= 1e3 * EPS * np.linalg.cond(phi @ phi.T)


# ---- what is refused ----


@pytest.mark.parametrize(
    "how, error, message",
    [
        ({"dimension": 0}, RegimeError, "dimension .* is 0; it must be a whole number >= 1"),
        ({"width": -1}, RegimeError, "width .* is -1"),
        ({"width": True}, RegimeError, "width .* is True"),
        ({"dimension": 2.5}, RegimeError, "dimension .* is 2.5"),
        ({"mask": "none"}, RegimeError, f"mask is 'none'; allowed: {', '.join(hidden.MASKS)}"),
        ({"attention": "hard"}, RegimeError, "attention is 'hard'"),
        ({"init": "zeros"}, RegimeError, "init is 'zeros'"),
        ({"dimension": 10**7}, NotEnoughMemoryError, "d = 10000000, m = 32 needs about"),
        ({"width": 2**31 - 1, "dimension": 10**4}, NotEnoughMemoryError, "choose smaller sizes"),
    ],
)
def test_networks_that_are_none(how, error, message):
    with pytest.raises(error, match=message):
        built(**how)


def test_prompts_outside_the_tokens():
    with pytest.raises(ValueError, match="token 'q' is not one of the model's: x, R1, R2, y1"):
        built().features([Prompt("q", ("R1",))])
