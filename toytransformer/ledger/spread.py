"""Claims about one draw of a network: its spread, and how it falls with width and dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from toytransformer import hidden, kernel
from toytransformer.ledger.kernels import (
    FIVE,
    LIMIT,
    PROMPTS,
    dimension_errors,
    kernel_errors,
    overlaps,
    rng_key,
    width_errors,
)
from toytransformer.ledger.registry import (
    Row,
    Run,
    asymptotic,
    claim,
    close,
    printed,
    statistical,
)
from toytransformer.regimes import FullLimit


@claim("spread of one width's draw", source="theory.md section 2")
def width_spread(run: Run) -> Iterator[Row]:
    gram = FullLimit().hidden_gram(PROMPTS)
    yield close("sqrt m x standard error of c1", 0.9019, width_errors(gram, 1)[0], printed(4), regime=LIMIT)
    width, draws = 1024, 20000 if run.thorough else 2000
    grams = _width_draws(rng_key(run, 0), gram, width, draws)
    named = {
        "c1": (overlaps(grams)[:, 0], width_errors(gram, width)[0]),
        "c2": (overlaps(grams)[:, 1], width_errors(gram, width)[1]),
        "k(eta_1, xi)": (grams[:, 0, 2], kernel_errors(gram, width)[0, 2]),
        "k(eta_2, xi)": (grams[:, 1, 2], kernel_errors(gram, width)[1, 2]),
    }
    for name, (values, error) in named.items():
        yield close(
            f"standard deviation of {name} over {draws} draws x sqrt m",
            error * math.sqrt(width),
            values.std(ddof=1) * math.sqrt(width),
            statistical(error * math.sqrt(width / (2 * (draws - 1)))),
            regime=f"finite, d = inf, m = {width}",
        )


@claim("spread of one dimension's draw", source="theory.md section 2")
def dimension_spread(run: Run) -> Iterator[Row]:
    dimension, draws = 1024, 10000 if run.thorough else 1000
    grams = _token_draws(rng_key(run, 1), 4, dimension, draws)
    for mask in hidden.MASKS:
        measured = _mixed(grams, mask).std(axis=0, ddof=1)
        for j, error in enumerate(dimension_errors(dimension, mask)):
            yield close(
                f"standard deviation of c{j + 1} over {draws} draws x sqrt d, {mask} mask",
                error * math.sqrt(dimension),
                measured[j] * math.sqrt(dimension),
                statistical(error * math.sqrt(dimension / (2 * (draws - 1)))),
                regime=f"width limit, d = {dimension}",
            )
    # Var <e, e'> = 1/d, Var <V e, V e'> = 2/d, Var <e, V e'> = 1/d, and twice the first two for one token
    variance = np.kron([[1, 0], [0, 2]], 1 + np.eye(4)) + np.kron([[0, 1], [1, 0]], np.ones((4, 4)))
    yield close(
        f"mean inner products of e_t and V e_t over {draws} draws against 1[s = t], worst in standard errors",
        0.0,
        np.max(np.abs(grams.mean(axis=0) - np.eye(8)) / np.sqrt(variance / dimension / draws)),
        FIVE,
        regime=f"d = {dimension}",
    )


@claim("convergence to the limit", source="eq. 13-15, theory.md section 2")
def convergence(run: Run) -> Iterator[Row]:
    limit, gram = overlaps(FullLimit().gram(PROMPTS)), FullLimit().hidden_gram(PROMPTS)
    draws = 4000 if run.thorough else 400

    def by_width(width: int) -> np.ndarray:
        return overlaps(_width_draws(rng_key(run, 2, width), gram, width, draws))

    def by_dimension(dimension: int) -> np.ndarray:
        return _mixed(_token_draws(rng_key(run, 3, dimension), 4, dimension, draws), "strict")

    for name, sizes, draw, label in (
        ("m", (256, 1024, 4096), by_width, "finite, d = inf"),
        ("d", (64, 256, 1024), by_dimension, "width limit"),
    ):
        errors = np.array([np.sqrt(np.mean((draw(size) - limit) ** 2, axis=0)) for size in sizes])
        for j in (0, 1):
            slope, spread = fitted_slope(sizes, errors[:, j], 1 / math.sqrt(2 * draws))
            yield close(
                f"slope of log RMS |c{j + 1} - limit| in log {name}, {name} = {sizes[0]} .. {sizes[-1]}",
                -0.5,
                slope,
                asymptotic(
                    5 * spread, f"5 standard errors: the log RMS of {draws} draws has 1/sqrt(2 draws)"
                ),
                regime=label,
            )


def fitted_slope(sizes: Sequence[int], values: ArrayLike, log_error: float) -> tuple[float, float]:
    """Least-squares slope of log values in log sizes, and its standard error from that of each log value."""
    x = np.log(sizes) - np.mean(np.log(sizes))
    return float(x @ np.log(values) / (x @ x)), log_error / math.sqrt(x @ x)


def _width_draws(rng: jax.Array, states_gram: np.ndarray, width: int, draws: int) -> np.ndarray:
    """Feature Gram matrices of PROMPTS, each from its own `width` neurons, (draw, prompt, prompt)."""
    states = np.linalg.cholesky(states_gram)

    def one(key: jax.Array) -> jax.Array:
        return hidden.sample_feature_gram(key, states, width=width)

    return np.asarray(jax.lax.map(one, jax.random.split(rng, draws), batch_size=50))


def _token_draws(rng: jax.Array, tokens: int, dimension: int, draws: int) -> np.ndarray:
    """Gram matrices of e_1 .. e_T, V e_1 .. V e_T, each with its own embeddings and V, (draw, 2T, 2T)."""
    alone = np.eye(2 * tokens)

    def one(key: jax.Array) -> jax.Array:
        states = hidden.sample_states(key, alone[:, :tokens], alone[:, tokens:], dimension=dimension)
        return states @ states.T

    return np.asarray(jax.lax.map(one, jax.random.split(rng, draws), batch_size=50))


def _mixed(token_grams: np.ndarray, mask: str) -> np.ndarray:
    """(c1, c2) at infinite width on drawn tokens (x, R1, y, R2), (draw, 2)."""
    coefficients = hidden.token_coefficients(PROMPTS, mask)
    mix = np.hstack([coefficients.residual.toarray(), coefficients.attention.toarray()])
    return overlaps(kernel.relu_gram(mix @ token_grams @ mix.T))
