"""Arrow: its score, what its temperature does, and when it has no prototype (R4; merging.md, facts 5, 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from flax import nnx

from toytransformer import kernel
from toytransformer.compositions import Merge
from toytransformer.hidden import token_coefficients
from toytransformer.ledger.pair import C1, C2, LIMIT, SHARED, Drawn, outcome, pair
from toytransformer.ledger.registry import Row, Run, algebraic, claim, close, same, statistical
from toytransformer.merging.routing import ArrowMerge
from toytransformer.network import OneLayerTransformer
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import Finite, Regime, WidthLimit

SQRT = {"temperature_scaling": "sqrt-width"}


def routing(predicted: Prediction, regime: Regime) -> np.ndarray:
    """The adapters' weights on each question, (question, adapter)."""
    prompts = predicted.composition.prompts
    rows = dict(zip(prompts, regime.features(prompts).values, strict=True))
    return arrow(predicted).routing(np.stack([rows[q.prompt] for q in predicted.composition.questions]))


def arrow(predicted: Prediction) -> ArrowMerge:
    """The merge by Arrow that was predicted."""
    if not isinstance(predicted.merged, ArrowMerge):
        raise TypeError(f"{predicted.composition.merge.rule} is no rule of Arrow's")
    return predicted.merged


@claim("Arrow's score is k(eta, xi) / sqrt(k(eta, eta))", source="proof of Theorem 3, below eq. 28 (R4)")
def score(run: Run) -> Iterator[Row]:
    predicted = predict(pair(1, merge=Merge("arrow-products", options=SQRT)), LIMIT)
    prompts = predicted.composition.prompts
    logits = np.abs(LIMIT.features(prompts).values[-1] @ arrow(predicted).prototypes.T)
    for hop, c in ((1, C1), (2, C2)):
        note = f"the paper says k(eta, xi)/k(eta, eta) = {c:.4f}; but the prototype has norm 1"
        text = f"adapter {hop}: k / sqrt(k), in units where k(eta, eta) = 2"
        yield close(text, c * math.sqrt(2), float(logits[hop - 1]), algebraic(), regime="limit", note=note)
    weight = 1 / (1 + math.exp(math.sqrt(2) * (C1 - C2)))
    text = "weight of adapter 2 on x R1 R2 at T = 1, logits scaled by 1/sqrt(m)"
    yield close(text, weight, float(routing(predicted, LIMIT)[0, 1]), algebraic(), regime="limit")


@claim("Arrow's logits grow like sqrt(m)", source="R4; merging.md fact 6")
def growth(run: Run) -> Iterator[Row]:
    d, composition, regime = 64, pair(1), "finite d=64, explicit network"
    asked = (composition.prompts[0], composition.prompts[-1])
    tokens = token_coefficients(composition.prompts).tokens
    widths = 2 ** np.arange(8, 18 if run.thorough else 15, 3)
    logits, errors = [], []
    for width in widths.tolist():
        rngs = nnx.Rngs(run.seed)
        network = OneLayerTransformer(tokens, composition.world.entities, dimension=d, width=width, rngs=rngs)
        (eta, xi), phi = (np.asarray(f(asked), float) for f in (network.states, network.features))
        key, query = np.linalg.norm(eta), np.linalg.norm(xi)
        logits.append(float(phi[0] @ phi[1] / np.linalg.norm(phi[0])))
        errors.append(_relative_error(np.arccos(eta @ xi / (key * query))) / math.sqrt(width))
    expected = float(kernel.relu_kernel(eta @ xi, key, query) / key)
    measured = logits[-1] / math.sqrt(widths[-1] / (2 * d))
    text, room = (
        f"raw logit / sqrt(m/(2d)) is k/sqrt(k), m = {widths[-1]}",
        statistical(errors[-1] * expected),
    )
    yield close(text, expected, measured, room, regime=regime, note="activations as they are, not normalised")
    x = np.log(widths) - np.log(widths).mean()
    slope = float(x @ np.log(logits) / (x @ x))
    spread = float(np.linalg.norm(x / (x @ x) * errors))
    yield close(f"slope in m, {widths[0]} to {widths[-1]}", 0.5, slope, statistical(spread), regime=regime)


def _relative_error(angle: np.ndarray) -> float:
    """sqrt(m) times the relative standard error of S12 / sqrt(S11), S the feature Gram matrix (delta method).

    Unit activations a, b have E[a^2] = 1/2 and Var[a^2] = 5/4, so
    Var log = Var[ab]/E[ab]^2 + Var[a^2]/(4 E[a^2]^2) - Cov[ab, a^2]/(E[ab] E[a^2]).
    """
    product = kernel.moment_11(angle)
    own = (kernel.moment_22(angle) - product**2) / product**2
    return float(
        np.sqrt(own + (3 / 2 - 1 / 4) / (4 / 4) - (kernel.moment_31(angle) - product / 2) / (product / 2))
    )


@claim("Arrow at a fixed temperature becomes a hard choice", source="R4; merging.md fact 6")
def hardening(run: Run) -> Iterator[Row]:
    d, composition = 256, pair(1)
    limit = WidthLimit(dimension=d, seed=run.seed)
    fixed, scaled = (composition.with_merge(Merge("arrow-products", options=o)) for o in ({}, SQRT))
    weight = float(routing(predict(scaled, limit), limit)[0, 1])
    odds = math.log(weight / (1 - weight))
    gram = limit.hidden_gram(composition.prompts)
    norms = np.sqrt(np.diag(gram))
    inner = gram[:2, 2]
    # |z_j| times its relative error; an error of the difference is at most the sum of the two.
    score = np.asarray(kernel.relu_kernel(inner, norms[:2], norms[2])) / norms[:2]
    errors = score * [_relative_error(angle) for angle in np.arccos(inner / (norms[:2] * norms[2]))]
    for width in (2**12, 2**16, 2**20):
        network = Finite(dimension=d, width=width, seed=run.seed)
        scale, text = math.sqrt(width / (2 * d)), f"m = {width}"
        hard = float(routing(predict(fixed, network), network)[0, 1])
        soft = float(routing(predict(scaled, network), network)[0, 1])
        room = statistical(float(errors.sum()) / math.sqrt(width))
        for name, value, unit in (("T = 1", hard, scale), ("T = sqrt(m/(2d))", soft, 1.0)):
            measured = math.log(value / (1 - value)) / unit
            over = " / sqrt(m/(2d))" if unit == scale else ""
            note = f"adapter 2 has weight {value:.5f} on x R1 R2"
            label = f"{name}: log odds of adapter 2{over}, {text}"
            yield close(label, odds, measured, room, regime=f"finite d={d}", note=note)
    predicted = predict(pair(1, merge=Merge("arrow-products")), LIMIT)
    yield close(
        "T = 1: weight of adapter 2", 1.0, float(routing(predicted, LIMIT)[0, 1]), algebraic(), regime="limit"
    )
    yield same("T = 1: answer of one known fact", "old", outcome(predicted), regime="limit")


@claim("Arrow ignores the sign of its prototypes", source="merging.md fact 5")
def sign(run: Run) -> Iterator[Row]:
    network = Drawn(dimension=64, width=256, seed=run.seed)
    predicted = predict(pair(3, merge=Merge("arrow-products")), network)
    features, merged = network.features(predicted.composition.prompts).values, arrow(predicted)
    negated = replace(merged, prototypes=merged.prototypes * np.array([[1.0], [-1.0]]))
    moved = float(np.abs(negated.routing(features) - merged.routing(features)).max())
    text = "largest change of a routing weight when one prototype is negated"
    yield close(text, 0.0, moved, algebraic(), regime="finite d=64 m=256")
    raw = (features @ merged.prototypes.T) * merged.inverse_temperature
    odds, other = raw[:, 0] - raw[:, 1], raw[:, 0] + raw[:, 1]
    moved = float(np.abs(1 / (1 + np.exp(-odds)) - 1 / (1 + np.exp(-other))).max())
    note = f"largest change {moved:.2f}"
    yield same("without |.| it would matter", True, moved > 0.1, regime="finite d=64 m=256", note=note)


@claim("no Arrow prototype where singular values tie", source="theory.md section 7; merging.md fact 5")
def gaps(run: Run) -> Iterator[Row]:
    for n in (1, 2, 3, 10, 100):
        predicted = predict(pair(n, merge=Merge("arrow-products")), LIMIT)
        expected = 1.0 if n == 1 else 1 - math.sqrt((1 - SHARED) / (1 + SHARED)) if n == 2 else 0.0
        note = "the largest singular value of Delta W comes n - 1 times" if n > 2 else ""
        text = f"spectral gap, n = {n}"
        yield close(
            text,
            expected,
            min(arrow(predicted).details["spectral_gaps"]),
            algebraic(),
            regime="limit",
            note=note,
        )
