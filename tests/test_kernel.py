"""The kernel and its spread, against calculus, quadrature and Monte Carlo; and where it must not hold."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import integrate
from strategies import seeds

from toytransformer import kernel

EPS = np.finfo(float).eps
#: Rounding of a dozen elementary functions of numbers of size at most 10.
TOL = 100 * EPS

cosines = st.floats(-1, 1)
sizes = st.floats(0.01, 100)
angles = st.floats(0, math.pi)


@given(cosines)
def test_kappa_is_the_integral_of_its_slope(c):
    # kappa(1) = 1 and kappa'(cos s) = (pi - s) / pi, integrated over the angle s, where it is smooth
    slope, error = integrate.quad(lambda s: (math.pi - s) / math.pi * math.sin(s), 0, math.acos(c))
    assert abs(kernel.kappa(np.float64(c)) - (1 - slope)) <= TOL + error


@given(cosines)
def test_kappa_splits_into_an_even_part_and_half_its_argument(c):
    # relu(a) relu(b) - relu(a) relu(-b) = relu(a) b has mean c/2
    both = kernel.kappa(np.asarray([c, -c]))
    assert abs(both[0] - both[1] - c) <= TOL
    assert np.all(both >= 0) and np.all(both <= 1)


def test_kappa_at_its_ends():
    assert np.allclose(kernel.kappa(np.asarray([1.0, 0.0, -1.0])), [1, 1 / math.pi, 0], rtol=0, atol=TOL)


@given(st.lists(cosines, min_size=2, max_size=2))
def test_kappa_increases_and_is_convex(pair):
    low, high = sorted(pair)
    middle = (low + high) / 2
    k = kernel.kappa(np.asarray([low, middle, high]))
    assert k[0] <= k[2] + TOL
    assert k[1] <= (k[0] + k[2]) / 2 + TOL


@given(st.floats(1, 1.1))
def test_kappa_forgives_a_cosine_rounded_past_one(c):
    assert kernel.kappa(np.asarray([c, -c])).tolist() == [1.0, 0.0]


@given(cosines, sizes, sizes)
def test_numpy_and_jax_arrays_give_the_same_kernel(c, norm, other):
    inner = c * norm * other
    for xp, dtype, eps in ((jnp, jnp.float64, EPS), (jnp, jnp.float32, np.finfo(np.float32).eps)):
        ours = kernel.relu_kernel(*(xp.asarray(v, dtype=dtype) for v in (inner, norm, other)))
        assert isinstance(ours, jnp.ndarray) and ours.dtype == dtype
        exact = kernel.relu_kernel(np.float64(inner), np.float64(norm), np.float64(other))
        assert abs(float(ours) - exact) <= 100 * eps * norm * other


@given(seeds, st.integers(1, 6))
def test_gram_is_a_gram_matrix_and_scales_by_degree_one(seed, dimension):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(5, dimension))
    gram = kernel.relu_gram(states @ states.T)
    scale = np.trace(gram)
    assert np.allclose(np.diag(gram), np.sum(states**2, axis=1), rtol=TOL)
    assert np.linalg.eigvalsh(gram).min() >= -TOL * scale
    factors = np.exp(rng.normal(size=5))
    scaled = states * factors[:, None]
    assert np.allclose(
        kernel.relu_gram(scaled @ scaled.T),
        gram * np.outer(factors, factors),
        rtol=0,
        atol=TOL * scale * factors.max() ** 2,
    )


def test_gram_takes_batches():
    states = np.random.default_rng(0).normal(size=(3, 2, 4, 6))
    batched = kernel.relu_gram(states @ np.swapaxes(states, -1, -2))
    assert batched.shape == (3, 2, 4, 4)
    one = states[1, 0]
    assert np.allclose(batched[1, 0], kernel.relu_gram(one @ one.T), rtol=0, atol=TOL * 10)


RHO = (-0.9, -0.3, 0.0, 0.4, 0.95)


def quadrant(f, rho):
    """E[f(a, b); a, b > 0] for unit Gaussians of correlation rho, by two-dimensional quadrature."""
    root = 1 - rho**2

    def density(b, a):
        return (
            f(a, b)
            * math.exp(-(a * a - 2 * rho * a * b + b * b) / (2 * root))
            / (2 * math.pi * math.sqrt(root))
        )

    return integrate.dblquad(density, 0, 12, 0, 12, epsabs=1e-11, epsrel=1e-11)[0]


@pytest.mark.parametrize("rho", RHO)
@pytest.mark.parametrize(
    "moment, f",
    [
        (kernel.moment_11, lambda a, b: a * b),
        (kernel.moment_22, lambda a, b: a * a * b * b),
        (kernel.moment_31, lambda a, b: a**3 * b),
    ],
    ids=["11", "22", "31"],
)
def test_moments_against_quadrature(moment, f, rho):
    # 1e-8: the accuracy asked of the quadrature, with room for the cut at 12 standard deviations
    assert abs(float(moment(np.float64(math.acos(rho)))) - quadrant(f, rho)) <= 1e-8


@given(angles)
@example(1e-4)
@example(1e-8)
def test_moments_agree_with_the_kernel_and_are_bounded(angle):
    t = np.float64(angle)
    assert abs(2 * kernel.moment_11(t) - kernel.kappa(np.cos(t))) <= TOL
    # Cauchy-Schwarz: E[a^3 b]^2 <= E[a^4] E[a^2 b^2], E[a b]^2 <= E[a^2 b^2], and E relu^4 = 3/2
    assert kernel.moment_31(t) ** 2 <= 1.5 * kernel.moment_22(t) + TOL
    assert kernel.moment_11(t) ** 2 <= kernel.moment_22(t) + TOL
    assert kernel.moment_22(t) <= 1.5 + TOL


@pytest.mark.parametrize("seed, rho", list(enumerate(RHO)))
def test_kernel_against_monte_carlo(seed, rho):
    draws = 400_000
    a, other = np.random.default_rng(seed).normal(size=(2, draws))
    b = rho * a + math.sqrt(1 - rho**2) * other
    t = math.acos(rho)
    estimate = np.mean(np.maximum(a, 0) * np.maximum(b, 0))
    expected = kernel.relu_kernel(np.float64(rho), 1.0, 1.0) / 2
    error = math.sqrt((kernel.moment_22(np.float64(t)) - expected**2) / draws)
    assert abs(estimate - expected) <= 5 * error


def test_kernel_needs_gaussian_neurons():
    # U with entries +-1 in two dimensions has the covariance the kernel assumes and another kernel
    x, y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    exact = np.mean(np.maximum(signs @ x, 0) * np.maximum(signs @ y, 0))
    assert np.allclose(np.mean((signs @ x) ** 2), 1)
    assert exact == 0.25 and abs(exact - kernel.kappa(np.float64(0.0)) / 2) > 0.09


@pytest.mark.parametrize(
    "key, inner, query, expected",
    [
        (2.0, 0.5, 1.5, 0.4122323),  # x R1 | x R1 R2: <h, h'> = 1/2 [x], |h'|^2 = 1 + 1/2
        (2.0, 1.0, 1.5, 0.5730357),  # y R2 | x R1 R2: the last token
        (2.0, 0.0, 2.0, 1 / math.pi),
        (2.0, 1.0, 2.0, 0.6089978),
    ],
    ids=["c1", "c2", "leak-unrelated", "leak-shared"],
)
def test_constants_of_the_full_limit(key, inner, query, expected):
    assert abs(kernel.overlap(*np.asarray([key, inner, query])) - expected) <= 5.1e-8  # digits as printed


@given(sizes, sizes, cosines, sizes)
def test_overlap_is_the_readout_of_a_rank_one_edit(key, query, c, factor):
    inner = c * math.sqrt(key * query)
    value = kernel.overlap(*np.asarray([key, inner, query]))
    gram = kernel.relu_gram(np.asarray([[key, inner], [inner, query]]))
    scale = math.sqrt(query / key)
    assert abs(value - gram[0, 1] / gram[0, 0]) <= TOL * scale
    stretched = kernel.overlap(*np.asarray([key, factor * inner, factor**2 * query]))
    assert abs(stretched - factor * value) <= TOL * scale * factor * 10
    assert kernel.overlap(*np.asarray([key, key, key])) == pytest.approx(1, abs=TOL)


def test_standard_error_of_c1():
    error = kernel.overlap_standard_error(*np.asarray([2.0, 0.5, 1.5]), 1)
    assert abs(error - 0.9019) <= 5e-5


@pytest.mark.parametrize("inner, query, c", [(2.0, 2.0, 1), (4.0, 8.0, 2), (-2.0, 2.0, 0)])
def test_no_spread_where_the_ratio_is_the_same_for_every_neuron(inner, query, c):
    triple = np.asarray([2.0, inner, query])
    assert kernel.overlap(*triple) == pytest.approx(c, abs=1e-7)
    # the variance is a difference of numbers of size 4, so its root is known to sqrt(eps) only
    assert kernel.overlap_standard_error(*triple, 1) <= 2 * math.sqrt(TOL)


@pytest.mark.parametrize(
    "seed, triple", list(enumerate([(2.0, 0.5, 1.5), (2.0, 1.0, 1.5), (2.0, -1.0, 3.0)]))
)
def test_standard_error_against_repeats(seed, triple):
    repeats, width = 4000, 1000
    key, inner, query = triple
    rng = np.random.default_rng(seed)
    lower = np.linalg.cholesky([[key, inner], [inner, query]])
    estimates = np.empty(repeats)
    for i in range(repeats):
        a, b = np.maximum(lower @ rng.normal(size=(2, width)), 0)
        estimates[i] = (a @ b) / (a @ a)
    c = kernel.overlap(*np.asarray(triple))
    error = kernel.overlap_standard_error(*np.asarray(triple), width)
    # a ratio of means is biased by (c Var[a^2] - Cov[ab, a^2]) / (m E[a^2]^2), its next term is O(1/m^2)
    angle, ratio = np.arccos(inner / math.sqrt(key * query)), math.sqrt(query / key)
    covariance = kernel.moment_31(angle) - kernel.moment_11(angle) / 2
    bias = 4 * (1.25 * c - ratio * covariance) / width
    assert abs(estimates.mean() - c - bias) <= 5 * error / math.sqrt(repeats) + 100 / width**2
    # a standard deviation from N repeats is off by 1/sqrt(2 N), the delta method by O(1/m), relatively
    assert abs(estimates.std() / error - 1) <= 5 / math.sqrt(2 * repeats) + 10 / width


@given(sizes, sizes, cosines, st.integers(1, 10**9))
def test_standard_error_falls_like_the_root_of_the_width(key, query, c, width):
    triple = np.asarray([key, c * math.sqrt(key * query), query])
    one = kernel.overlap_standard_error(*triple, 1)
    assert kernel.overlap_standard_error(*triple, width) == pytest.approx(one / math.sqrt(width), rel=TOL)
