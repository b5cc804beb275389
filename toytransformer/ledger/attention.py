"""Claims about attention: uniform as d grows if 1/sqrt d is a standard deviation, one-hot if a variance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from flax import nnx
from scipy import integrate

from toytransformer.compositions import Prompt
from toytransformer.ledger.registry import Row, Run, asymptotic, claim, close, statistical
from toytransformer.ledger.spread import fitted_slope
from toytransformer.network import OneLayerTransformer


@claim("attention is uniform as d grows", source="eq. 2-5, theory.md R1")
def uniform_attention(run: Run) -> Iterator[Row]:
    pairs, networks, dimensions = 256, 8 if run.thorough else 2, (64, 256, 1024)
    rms, logits = [], 0.0
    for d in dimensions:
        draws = [_attention(run.seed + 1000 * k, d, pairs, "standard-deviation") for k in range(networks)]
        rms.append(math.sqrt(np.mean([np.mean(weight_error**2) for _, weight_error in draws])))
        logits = math.sqrt(np.mean([np.mean(values**2) for values, _ in draws]))
    d, count = dimensions[-1], pairs * networks
    yield close(
        f"standard deviation of the logits at d = {d}",
        1 / math.sqrt(d),
        logits,
        statistical(_rms_error(d, count, networks) / math.sqrt(d)),
        regime=f"finite, d = {d}",
        note='paper: entries "N(0, 1/sqrt d)"; true: attention is uniform if that is the standard deviation.',
    )
    slope, spread = fitted_slope(dimensions, rms, _rms_error(dimensions[0], count, networks))
    yield close(
        f"slope of the log RMS distance of attention from 1/2, d = {dimensions[0]} .. {d}",
        -0.5,
        slope,
        asymptotic(5 * spread, f"5 standard errors of the slope, from {count} prompts at each d"),
        regime="finite",
    )
    yield close(
        f"RMS distance of attention from 1/2 at d = {d}, in units of its limit sqrt(2/d)/4",
        1.0,
        rms[-1] / (math.sqrt(2 / d) / 4),
        statistical(_rms_error(d, count, networks)),
        regime=f"finite, d = {d}",
    )


@claim("the variance reading of eq. 2 fails", source="eq. 2-5, theory.md R1")
def variance_reading(run: Run) -> Iterator[Row]:
    d, pairs = 1024, 256
    logits, weight_error = _attention(run.seed, d, pairs, "variance")
    yield close(
        f"standard deviation of the logits at d = {d}",
        math.sqrt(d),
        math.sqrt(np.mean(logits**2)),
        statistical(math.sqrt(d) * _rms_error(d, pairs, 1)),
        regime=f"finite, d = {d}",
        note="paper: close to zero at large d; true in this reading: sqrt d = 32.",
    )
    mean, variance = _weaker_weight(math.sqrt(2 * d))
    yield close(
        "mean weight of the less attended of two positions (uniform: 0.5)",
        mean,
        np.mean(0.5 - np.abs(weight_error)),
        statistical(math.sqrt(variance / pairs)),
        regime=f"finite, d = {d}",
        note="paper: attention is close to uniform; true in this reading: nearly one-hot.",
    )
    draws = 64
    tokens = tuple(f"t{i}" for i in range(draws))
    network = OneLayerTransformer(
        tokens, ("t0",), dimension=d, width=1, init="variance", rngs=nnx.Rngs(run.seed)
    )
    embedding = np.asarray(network.embedding[...], float)
    values = embedding @ np.asarray(network.value[...], float).T
    # |V e|^2 / |e|^2 is sqrt(d) chi-square_d / d, of relative variance 2/d; overlaps of tokens add 2/d^2
    yield close(
        "|e|^2 / |V e|^2: the residual connection's share, d^-1/2",
        d**-0.5,
        1 / np.mean(np.sum(values**2, axis=1) / np.sum(embedding**2, axis=1)),
        statistical(d**-0.5 * math.sqrt(2 / d / draws + 2 / d**2)),
        regime=f"finite, d = {d}",
        note="paper: the residual carries the current token; true in this reading: it vanishes beside V e.",
    )


def _attention(seed: int, dimension: int, pairs: int, init: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the first key of (x_i, A_i, B_i), and its weight's distance from 1/2, in an explicit network.

    The weight is read off the hidden states: h_softmax - h_uniform = (a - 1/2) (V e_x - V e_A).
    """
    tokens = tuple(f"{kind}{i}" for kind in "xAB" for i in range(pairs))
    prompts = [Prompt(f"x{i}", (f"A{i}", f"B{i}")) for i in range(pairs)]
    network = OneLayerTransformer(
        tokens, ("x0",), dimension=dimension, width=1, attention="softmax", init=init, rngs=nnx.Rngs(seed)
    )
    softmax = np.asarray(network.states(prompts), float)
    network.attention = "uniform"
    uniform = np.asarray(network.states(prompts), float)
    first, second, last = np.split(np.asarray(network.embedding[...], float), 3)
    difference = (first - second) @ np.asarray(network.value[...], float).T
    logits = np.sum(
        (first @ np.asarray(network.key[...], float).T) * (last @ np.asarray(network.query[...], float).T),
        axis=1,
    )
    return logits, np.sum((softmax - uniform) * difference, axis=1) / np.sum(difference**2, axis=1)


def _rms_error(dimension: int, count: int, networks: int) -> float:
    """Relative standard error of the RMS of `count` logits (or their differences) from `networks` networks.

    A logit is g.h with independent Gaussian g, h of random lengths: E L^4 / (E L^2)^2 = 3 (1 + 2/d)^3. Two
    logits of one network share K and Q; through the overlaps of their embeddings, of order d^-1/2, their
    squares are correlated by at most 6/d^2.
    """
    square = (3 * (1 + 2 / dimension) ** 3 - 1) / count + 6 / (dimension**2 * networks)
    return math.sqrt(square) / 2


def _weaker_weight(spread: float) -> tuple[float, float]:
    """Mean and variance of 1/(1 + exp|D|) for D ~ N(0, spread^2), by quadrature."""

    def moment(power: int) -> float:
        def integrand(x: float) -> float:
            return math.exp(-((x / spread) ** 2) / 2) * (1 + math.exp(x)) ** -power

        return 2 * integrate.quad(integrand, 0, 40)[0] / (math.sqrt(2 * math.pi) * spread)

    return moment(1), moment(2) - moment(1) ** 2
