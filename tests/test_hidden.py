"""Hidden states: Gram matrices against tokens counted one by one, and draws against their law."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from strategies import few_tokens

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.network import OneLayerTransformer

EPS = np.finfo(float).eps

ETA1, ETA2, XI = Prompt("x", ("R1",)), Prompt("y", ("R2",)), Prompt("x", ("R1", "R2"))
ALL = (ETA1, ETA2, XI)
DRAWS = 8_000
masks = st.sampled_from(hidden.MASKS)
prompt_lists = st.lists(few_tokens, min_size=1, max_size=5)


def inner(p, q, mask):
    """<h(p), h(q)> for orthonormal embeddings and values, one pair of tokens at a time."""

    def parts(prompt):
        length = len(prompt.tokens)
        if mask == "strict":
            return 1.0, prompt.tokens[:-1], 1 / (length - 1)
        return (1.0 if mask == "causal" else 1 / length), prompt.tokens, 1 / length

    (r, seen, a), (s, also_seen, b) = parts(p), parts(q)
    residual = r * s * (p.tokens[-1] == q.tokens[-1])
    return residual + a * b * sum(t == u for t in seen for u in also_seen)


@given(prompt_lists, masks)
def test_full_limit_counts_shared_tokens(prompts, mask):
    gram = hidden.token_coefficients(prompts, mask).full_limit_gram()
    counted = np.array([[inner(p, q, mask) for q in prompts] for p in prompts])
    assert np.abs(gram - counted).max() <= 10 * EPS


@given(few_tokens, masks)
def test_coefficients_of_one_prompt_sum_to_its_attention(prompt, mask):
    coefficients = hidden.token_coefficients([prompt], mask)
    assert coefficients.attention.sum() == pytest.approx(1, abs=10 * EPS)
    residual = coefficients.residual.toarray()[0]
    assert np.count_nonzero(residual) == 1
    assert coefficients.tokens[np.argmax(residual)] == prompt.tokens[-1]
    if mask == "strict" and prompt.tokens[-1] not in prompt.tokens[:-1]:
        assert coefficients.attention.toarray()[0, np.argmax(residual)] == 0


@pytest.mark.parametrize(
    "mask, c1, c2",
    [("strict", 0.4122323, 0.5730357), ("causal", 0.4195921, 0.7986855)],
)
def test_constants_of_each_mask(mask, c1, c2):
    gram = kernel.relu_gram(hidden.token_coefficients(ALL, mask).full_limit_gram())
    assert abs(gram[0, 2] / gram[0, 0] - c1) <= 5.1e-8  # digits as printed
    assert abs(gram[1, 2] / gram[1, 1] - c2) <= 5.1e-8


def test_printed_mask_is_another_model():
    # eq. 21 as printed divides the residual too: R REL has |h|^2 = 1/4 + 1/2 where eq. 5 gives 1 + 1/2
    printed, causal = (
        hidden.token_coefficients([ETA1], mask).full_limit_gram()[0, 0]
        for mask in ("causal-printed", "causal")
    )
    assert (printed, causal) == (0.75, 1.5)


@pytest.mark.parametrize("mask", ["stirct", "", None, 1])
def test_unknown_mask_is_refused(mask):
    with pytest.raises(ValueError, match="allowed: strict, causal, causal-printed"):
        hidden.token_coefficients(ALL, mask)


@given(prompt_lists)
def test_padding_keeps_the_query_last(prompts):
    tokens = ("S", "R", "y", "x")
    ids, present = hidden.padded_token_ids(prompts, tokens)
    read = [tuple(tokens[i] for i in row[there]) for row, there in zip(ids, present, strict=True)]
    assert read == [prompt.tokens for prompt in prompts]
    assert present[:, -1].all()


# ---- draws: uniform attention without V ----


def dense(prompts, mask):
    coefficients = hidden.token_coefficients(prompts, mask)
    return coefficients.residual.toarray(), coefficients.attention.toarray()


def grams(seed, repeats, prompts, mask, dimension, init="standard-deviation"):
    """Gram matrices of `repeats` draws, (repeat, prompt, prompt), through the fast route."""
    residual, attention = dense(prompts, mask)

    def one(key):
        states = hidden.sample_states(key, residual, attention, dimension=dimension, init=init)
        return states @ states.T

    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(seed), repeats)))


def explicit_grams(seed, repeats, prompts, mask, dimension, init="standard-deviation"):
    """The same law by the definition: E and V drawn whole."""
    residual, attention = dense(prompts, mask)
    rng, scale = np.random.default_rng(seed), hidden.INITS[init](dimension)
    embeddings = scale * rng.normal(size=(repeats, residual.shape[1], dimension))
    values = embeddings @ (scale * rng.normal(size=(repeats, dimension, dimension)))
    states = residual @ embeddings + attention @ values
    return states @ np.swapaxes(states, 1, 2)


def same_law(first, second):
    """Means and second moments of two samples (repeat, ...) agree within five standard errors of each."""
    for power in (1, 2):
        a, b = first**power, second**power
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 5 * error)


@pytest.mark.parametrize("init", hidden.INITS)
@pytest.mark.parametrize("dimension", [2, 6])  # fewer dimensions than the 4 tokens, and more
def test_values_through_a_qr_have_the_law_of_an_explicit_matrix(dimension, init):
    how = (DRAWS, ALL, "causal", dimension, init)
    same_law(grams(0, *how), explicit_grams(1, *how))


def test_values_drawn_without_their_embeddings_have_another_law():
    # drop the QR: independent values forget that V e_s and V e_t are as close as e_s and e_t
    residual, attention = dense(ALL, "strict")
    rng = np.random.default_rng(2)
    d = 2
    e, v = rng.normal(size=(2, DRAWS, 4, d)) / math.sqrt(d)
    states = residual @ e + attention @ v
    with pytest.raises(AssertionError):
        same_law(states @ np.swapaxes(states, 1, 2), explicit_grams(1, DRAWS, ALL, "strict", d))


@pytest.mark.parametrize("mask", hidden.MASKS)
def test_sampled_gram_tends_to_the_full_limit(mask):
    dimension = 4096
    coefficients = hidden.token_coefficients(ALL, mask)
    gram = grams(3, 1, ALL, mask, dimension)[0]
    for i in range(3):
        for j in range(3):
            weights = np.zeros((3, 3))
            weights[i, j] += 0.5
            weights[j, i] += 0.5
            error = math.sqrt(coefficients.dimension_variance(weights) / dimension)
            assert 0 < abs(gram[i, j] - coefficients.full_limit_gram()[i, j]) <= 5 * error


@pytest.mark.parametrize("mask", hidden.MASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_dimension_variance_against_repeats(mask, seed):
    repeats, dimension = 4000, 256
    weights = np.random.default_rng(seed).normal(size=(3, 3))
    weights += weights.T
    coefficients = hidden.token_coefficients(ALL, mask)
    measured = np.einsum("rij,ij->r", grams(seed, repeats, ALL, mask, dimension), weights).var() * dimension
    expected = coefficients.dimension_variance(weights)
    # a variance from N near-Gaussian repeats is off by sqrt(2/N), the leading order by a few times 1/d
    assert abs(measured / expected - 1) <= 5 * math.sqrt(2 / repeats) + 10 / dimension


@given(prompt_lists, masks, st.integers(0, 99))
def test_dimension_variance_is_quadratic(prompts, mask, seed):
    weights = np.random.default_rng(seed).normal(size=(len(prompts),) * 2)
    weights += weights.T
    variance = hidden.token_coefficients(prompts, mask).dimension_variance
    assert variance(-3 * weights) == pytest.approx(9 * variance(weights), rel=100 * EPS)
    assert variance(0 * weights) == 0


# ---- against the explicit network ----


@functools.cache
def network_grams(seed, repeats, mask, attention):
    def one(key):
        network = OneLayerTransformer(
            ("x", "R1", "R2", "y"),
            ("z",),
            dimension=3,
            width=1,
            mask=mask,
            attention=attention,
            init="variance",
            rngs=nnx.Rngs(params=key),
        )
        states = network.states(ALL)
        return states @ states.T

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), repeats)))


# Logits are of size one at d = 3 and init="variance", so that softmax attention is far from uniform.


@pytest.mark.parametrize("mask", ["strict", "causal-printed"])
def test_uniform_draws_have_the_law_of_the_explicit_network(mask):
    same_law(grams(4, DRAWS, ALL, mask, 3, "variance"), network_grams(5, DRAWS, mask, "uniform"))


@functools.cache
def softmax_grams(seed, repeats, mask):
    tokens = ("x", "R1", "R2", "y")
    ids, present = hidden.padded_token_ids(ALL, tokens)

    def one(key):
        states = hidden.sample_softmax_states(
            key, ids, jnp.asarray(present), tokens=4, dimension=3, init="variance", mask=mask
        )
        return states @ states.T

    return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(seed), repeats)))


@pytest.mark.parametrize("mask", ["strict", "causal-printed"])
def test_softmax_draws_have_the_law_of_the_explicit_network(mask):
    same_law(softmax_grams(6, DRAWS, mask), network_grams(7, DRAWS, mask, "softmax"))


def test_softmax_and_uniform_attention_have_different_laws():
    with pytest.raises(AssertionError):
        same_law(softmax_grams(6, DRAWS, "strict"), network_grams(5, DRAWS, "strict", "uniform"))


def attention_gap(dimension, init):
    """Root mean square distance of the states under softmax and under uniform attention, same matrices."""

    def one(key):
        softmax, uniform = (
            OneLayerTransformer(
                ("x", "R1", "R2"),
                ("z",),
                dimension=dimension,
                width=1,
                attention=attention,
                init=init,
                rngs=nnx.Rngs(params=key),
            ).states([XI])
            for attention in ("softmax", "uniform")
        )
        return jnp.sum((softmax - uniform) ** 2) / jnp.sum(uniform**2)

    return float(np.sqrt(np.mean(jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(8), 40)))))


def test_softmax_attention_becomes_uniform_as_d_grows():
    sizes = [16, 64, 256]
    gaps = [attention_gap(d, "standard-deviation") for d in sizes]
    slope = np.polyfit(np.log(sizes), np.log(gaps), 1)[0]
    # logits fall like d^-1/2; forty draws fix each root mean square to about 1/sqrt(80), the slope to 0.1
    assert abs(slope + 0.5) <= 0.3


def test_softmax_attention_stays_one_hot_under_the_variance_reading():
    # theory.md, R1: logits grow like sqrt d, so one of the two tokens gets all the attention
    assert attention_gap(256, "variance") > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_dependent_states_give_coordinates_that_rounding_does_not_decide(seed):
    """(u, R3) = (x, R3) + (u, R1) - (x, R1), so that QR would go on along a direction of rounding."""
    prompts = [Prompt(entity, (relation,)) for entity in "xu" for relation in ("R1", "R3")]
    prompts += [Prompt("x", ("R1", "R2")), Prompt("u", ("R3", "R2"))]
    tokens = hidden.token_coefficients(prompts, "strict")
    on_tokens = tokens.residual.toarray(), tokens.attention.toarray()
    states = np.asarray(hidden.sample_states(jax.random.key(seed), *on_tokens, dimension=512))
    stirred = states * (1 + np.finfo(float).eps * np.random.default_rng(seed).uniform(-1, 1, states.shape))
    # A root moves by at most the rounding of the Gram matrix over its smallest pivot, here about 1/4.
    rounding = 16 * sum(states.shape) * np.finfo(float).eps * np.abs(states @ states.T).max()
    root = hidden.triangular_root(jnp.asarray(states))
    assert np.abs(root.T @ root - states @ states.T).max() <= rounding
    assert np.abs(root - hidden.triangular_root(jnp.asarray(stirred))).max() <= rounding
    features = [
        hidden.sample_features(jax.random.key(7), jnp.asarray(s), width=64) for s in (states, stirred)
    ]
    assert np.abs(features[0] - features[1]).max() <= 64 * rounding
