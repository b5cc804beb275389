"""Claims about the kernel: that of explicit networks and streamed neurons, and its moments."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx
from scipy import integrate

from toytransformer import hidden, kernel
from toytransformer.compositions import Prompt
from toytransformer.ledger.registry import (
    Row,
    Run,
    claim,
    close,
    solver,
    statistical,
)
from toytransformer.network import OneLayerTransformer
from toytransformer.regimes import Finite, FullLimit, WidthLimit

#: The two edited prompts and the question of Theorem 2: eta_1 = x R1, eta_2 = y R2, xi = x R1 R2.
PROMPTS = (Prompt("x", ("R1",)), Prompt("y", ("R2",)), Prompt("x", ("R1", "R2")))
LIMIT = "limit"
#: The worst of several deviations, each divided by its own derived standard error, is held to five.
FIVE = statistical(1.0)


def overlaps(gram: np.ndarray) -> np.ndarray:
    """(c1, c2) of Theorem 2 on the last axis, from Gram matrices (..., 3, 3) of the features of PROMPTS."""
    return np.stack([gram[..., j, 2] / gram[..., j, j] for j in (0, 1)], axis=-1)


def width_errors(states_gram: np.ndarray, width: int) -> np.ndarray:
    """Derived standard errors of (c1, c2) at m = `width`, hidden states held fixed."""
    keys, inner = (
        np.array([states_gram[i, j] for i, j in rows]) for rows in ([(0, 0), (1, 1)], [(0, 2), (1, 2)])
    )
    return kernel.overlap_standard_error(keys, inner, states_gram[2, 2], width)


def dimension_errors(dimension: int, mask: str = "strict") -> np.ndarray:
    """Derived standard errors of (c1, c2) at embedding dimension d, infinite width."""
    coefficients = hidden.token_coefficients(PROMPTS, mask)
    return np.array([hidden.overlap_dimension_standard_error(coefficients, j, 2, dimension) for j in (0, 1)])


def kernel_errors(states_gram: np.ndarray, width: int) -> np.ndarray:
    """Derived standard errors of the feature Gram matrix's entries."""
    squares = np.diag(states_gram)
    return kernel.kernel_standard_error(squares[:, None], states_gram, squares[None, :], width)


def rng_key(run: Run, *path: int) -> jax.Array:
    key = jax.random.key(run.seed)
    for step in path:
        key = jax.random.fold_in(key, step)
    return key


@claim(
    "kernel of random features",
    source="eq. 13-15, theory.md section 2",
    proof="AngularIntegral.angular_integral",
)
def finite_kernel(run: Run) -> Iterator[Row]:
    dimension, width = 256, 2**16 if run.thorough else 2**14
    tokens = ("x", "y", "R1", "R2")
    network = OneLayerTransformer(
        tokens, ("x", "y"), dimension=dimension, width=width, rngs=nnx.Rngs(run.seed)
    )
    states, features = (np.asarray(f(PROMPTS), float) for f in (network.states, network.features))
    gram = states @ states.T
    sampled, errors = features @ features.T / width, kernel_errors(gram, width) / (2 * dimension)
    yield close(
        "(1/m) phi.phi of the explicit network against k = |x||x'| kappa/(2d), worst of 6 in standard errors",
        0.0,
        np.max(np.abs(sampled - kernel.relu_gram(gram) / (2 * dimension)) / errors),
        FIVE,
        regime=f"finite, d = {dimension}, m = {width}",
        note="paper, eq. 13: proportional to; true: the factor is 1/d for entries of U of variance 1/d.",
    )
    expected, measured, spread = (
        overlaps(kernel.relu_gram(gram)),
        overlaps(sampled),
        width_errors(gram, width),
    )
    for j in (0, 1):
        yield close(
            f"c{j + 1} of the explicit network against its kernel",
            expected[j],
            measured[j],
            statistical(spread[j]),
            regime=f"finite, d = {dimension}, m = {width}",
        )
    streamed = Finite(dimension=math.inf, width=2**24 if run.thorough else 2**20, seed=run.seed)
    limit = FullLimit()
    gram = limit.hidden_gram(PROMPTS)
    yield close(
        "streamed neurons against the kernel, worst of 6 Gram entries in standard errors",
        0.0,
        np.max(np.abs(streamed.gram(PROMPTS) - limit.gram(PROMPTS)) / kernel_errors(gram, streamed.width)),
        FIVE,
        regime=f"finite, d = inf, m = {streamed.width}",
    )
    expected = overlaps(limit.gram(PROMPTS))
    both = Finite(dimension=4096, width=2**18, seed=run.seed)
    for regime, label, errors in (
        (WidthLimit(dimension=4096, seed=run.seed), "width limit, d = 4096", dimension_errors(4096)),
        (
            both,
            f"finite, d = 4096, m = {both.width}",
            np.hypot(dimension_errors(4096), width_errors(gram, both.width)),
        ),
    ):
        measured = overlaps(regime.gram(PROMPTS))
        for j in (0, 1):
            yield close(
                f"c{j + 1} against the full limit",
                expected[j],
                measured[j],
                statistical(errors[j]),
                regime=label,
            )


@claim(
    "moments of relu(a), relu(b)",
    source="theory.md section 2",
    proof="AngularIntegral.angular_integral",
)
def moments(run: Run) -> Iterator[Row]:
    angles = (0.3, math.pi / 3, math.pi / 2, 2.5)
    for (p, q), formula in {
        (1, 1): kernel.moment_11,
        (2, 2): kernel.moment_22,
        (3, 1): kernel.moment_31,
    }.items():
        deviations, bounds = [], []
        for angle in angles:
            value, bound = _moment_by_quadrature(p, q, angle)
            deviations.append(abs(float(formula(np.float64(angle))) - value))
            bounds.append(bound)
        yield close(
            f"E[relu(a)^{p} relu(b)^{q}] against quadrature, largest deviation over {len(angles)} angles",
            0.0,
            max(deviations),
            solver(
                max(bounds), "the quadrature's own error bound, and the 1e-12 asked of its inner integrals"
            ),
            regime="exact",
        )


def _moment_by_quadrature(p: int, q: int, angle: float) -> tuple[float, float]:
    """E[relu(a)^p relu(b)^q] for b = a cos t + g sin t in Cartesian (a, g), and its error bound."""
    sine, cosine, edge = math.sin(angle), math.cos(angle), 10.0  # exp(-edge^2/2) is below 2e-22

    def integrand(g: float, a: float) -> float:
        return a**p * (a * cosine + g * sine) ** q * math.exp(-(a * a + g * g) / 2) / (2 * math.pi)

    def lower(a: float) -> float:
        return min(max(-a * cosine / sine, -edge), edge)

    value, bound = integrate.dblquad(integrand, 0, edge, lower, edge, epsabs=1e-12, epsrel=1e-12)
    return value, bound + edge * 1e-12
