"""Closed forms of toytransformer against plain NumPy: coefficients, draws, dense or symmetric prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.case import Array, Case, Difference, Side, Work

if TYPE_CHECKING:
    from toytransformer.compositions import Composition, Prompt

#: The plain pair of one-hop adapters asked x1 R1 R2 (theory.md, section 2), for the cases of one composition.
KEYS, QUERY = (("x1", "R1"), ("y1", "R2")), ("x1", "R1", "R2")
#: Agreement asked of two deterministic routes.
EXACT = 1e-9


# --- our routes ---------------------------------------------------------------------------------------------


def coefficients(dimension: int, width: int, seed: int) -> Work:
    from toytransformer.regimes import Finite

    prompts, regime = _prompts(), Finite(dimension=dimension, width=width, seed=seed)

    def work() -> Array:
        gram = regime.gram(prompts)
        return gram[:-1, -1] / np.diag(gram)[:-1]

    return work


def draws(dimension: int, width: int, count: int) -> Work:
    from toytransformer.regimes import Finite
    from toytransformer.sampling import overlap_draws

    *keys, query = _prompts()
    return lambda: overlap_draws(Finite(dimension=dimension, width=width), keys, query, count)


def one_by_one(dimension: int, width: int, count: int) -> Work:
    works = [coefficients(dimension, width, seed) for seed in range(count)]
    return lambda: np.array([work() for work in works])


def dense_prediction(facts: int) -> Work:
    from toytransformer.prediction import predict
    from toytransformer.regimes import FullLimit

    composition = _pair(facts)
    return lambda: predict(composition, FullLimit()).output[_compared(facts)]


def symmetric_prediction(facts: int) -> Work:
    from toytransformer import symmetry

    def work() -> Array:
        prediction = symmetry.predict(_pair, facts)
        return np.stack([prediction.own[0], prediction.other[0]])

    return work


# --- plain routes -------------------------------------------------------------------------------------------


def plain_coefficients(dimension: int, width: int, seed: int) -> Work:
    from benchmarks import plain

    return lambda: plain.coefficients(KEYS, QUERY, dimension, width, seed)


def plain_draws(dimension: int, width: int, count: int) -> Work:
    from benchmarks import plain

    return lambda: plain.coefficient_draws(KEYS, QUERY, dimension, width, count, seed=1)


def plain_prediction(facts: int) -> Work:
    from benchmarks import plain

    composition = _pair(facts)
    world = composition.world
    adapters = [[(f.prompt.tokens, f.answer) for f in adapter.facts] for adapter in composition.adapters]
    questions = [question.prompt.tokens for question in composition.questions]
    trained = (prompt for adapter in composition.adapters for prompt in adapter.prompts)
    prompts = [*trained, *(question.prompt for question in composition.questions)]
    old = {prompt.tokens: answer for prompt in prompts if (answer := world.old(prompt)) is not None}
    return lambda: plain.limit_outputs(adapters, questions, old, world.entities)[_compared(facts)]


# --- how far apart they may be ------------------------------------------------------------------------------


def two_networks(dimension: int, width: int) -> Difference:
    """Two independent networks: five derived standard errors of the difference, of the worst coefficient."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        return _worst(np.abs(ours - plain), 5 * math.sqrt(2) * _spread(dimension, width))

    return difference


def width_limit(dimension: int, width: int, seed: int) -> Difference:
    """One network against the width limit on the same embeddings: five derived standard errors."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        from toytransformer import kernel
        from toytransformer.regimes import WidthLimit

        gram = WidthLimit(dimension=dimension, seed=seed).hidden_gram(_prompts())
        own, inner, asked = np.diag(gram)[:-1], gram[:-1, -1], gram[-1, -1]
        error = kernel.overlap_standard_error(own, inner, asked, width)
        return _worst(np.abs(ours - kernel.overlap(own, inner, asked)), 5 * error)

    return difference


def means_of_draws(dimension: int, width: int) -> Difference:
    """Means over independent draws: five derived standard errors of their difference."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        error = _spread(dimension, width) * math.sqrt(1 / len(ours) + 1 / len(plain))
        return _worst(np.abs(ours.mean(axis=0) - plain.mean(axis=0)), 5 * error)

    return difference


def same_draws(width: int) -> Difference:
    """Draw for draw: rounding of float32 Gram entries, sums over neurons."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        return float(np.abs(ours[: len(plain)] - plain).max()), float(np.finfo(np.float32).eps) * width

    return difference


def same_numbers(ours: Array, plain: Array) -> tuple[float, float]:
    return float(np.abs(ours - plain).max()), EXACT


def same_chains(facts: int) -> Difference:
    """The symmetric prediction of chain 1 and of another chain, against the dense row of question 1."""

    def difference(ours: Array, plain: Array) -> tuple[float, float]:
        if not plain.size:
            return 0.0, math.nan
        entities = {name: i for i, name in enumerate(_pair(facts).world.entities)}
        chain = [name for name in _pair(2).world.entities if "1" in name]
        own = [plain[0, entities[name]] for name in chain]
        other = [plain[0, entities[name.replace("1", "2")]] for name in chain] if facts > 1 else ours[1]
        return same_numbers(ours, np.array([own, other]))

    return difference


def _spread(dimension: int, width: int) -> Array:
    """Derived standard deviation of each coefficient over embeddings and neurons, around the full limit."""
    from toytransformer import hidden, kernel

    columns = hidden.token_coefficients(_prompts())
    gram = columns.full_limit_gram()
    neurons = kernel.overlap_standard_error(np.diag(gram)[:-1], gram[:-1, -1], gram[-1, -1], width)
    embeddings = [
        hidden.overlap_dimension_standard_error(columns, key, len(KEYS), dimension)
        for key in range(len(KEYS))
    ]
    return np.hypot(neurons, embeddings)


def _worst(differences: Array, tolerances: Array) -> tuple[float, float]:
    worst = int(np.argmax(differences / tolerances))
    return float(differences[worst]), float(tolerances[worst])


def _prompts() -> tuple[Prompt, ...]:
    from toytransformer.compositions import Prompt

    return tuple(Prompt(entity, tuple(relations)) for entity, *relations in (*KEYS, QUERY))


def _pair(facts: int) -> Composition:
    from toytransformer.compositions import catalogue

    return catalogue.build("two-hop", facts=facts)


def _compared(facts: int) -> list[int]:
    """The questions whose output is handed back and compared: first, middle and last."""
    return [0, facts // 2, facts - 1]


# --- the cases ----------------------------------------------------------------------------------------------


def cases(small: bool = False) -> Iterator[Case]:
    """Of growing size; `small` has sizes that take a moment, and its targets mean nothing."""
    d, m, wide = (64, 2_000, 20_000) if small else (1024, 10**6, 10**7)
    yield Case(
        "coefficients",
        f"c1, c2 of one network, m = {m:,}, d = {d}; plain builds U in float32",
        Side(coefficients, (d, m, 0)),
        Side(plain_coefficients, (d, m, 0), repeats=1),
        two_networks(d, m),
        ratio=50,
    )
    yield Case(
        "memory",
        f"c1, c2 of one network, m = {wide:,}, d = {d}; checked against the width limit of its embeddings",
        Side(coefficients, (d, wide, 0)),
        Side(None, instead=f"U alone needs {4 * wide * d / 1e9:,.3g} GB"),
        width_limit(d, wide, 0),
        peak=1e9,
    )
    d, m, count, timed = (16, 100, 20, 10) if small else (256, 4096, 1000, 50)
    yield Case(
        "draws",
        f"c1, c2 of {count:,} networks, m = {m:,}, d = {d}; plain builds each U, timed on {timed} and scaled",
        Side(draws, (d, m, count)),
        Side(plain_draws, (d, m, timed), repeats=1, share=timed / count),
        means_of_draws(d, m),
        ratio=10,
    )
    yield Case(
        "draws",
        f"the same; plain is this package's own network one after the other, timed on {timed} and scaled",
        Side(draws, (d, m, count)),
        Side(one_by_one, (d, m, timed), repeats=1, share=timed / count),
        same_draws(m),
        ratio=10,
    )
    for n in (3, 20) if small else (200, 2000):
        yield Case(
            "dense",
            f"every output in the full limit, n = {n:,} facts per adapter; plain solves in NumPy",
            Side(dense_prediction, (n,), repeats=2),
            Side(plain_prediction, (n,), repeats=1),
            same_numbers,
        )
    for n in (1, 2, 20) if small else (1, 10, 100, 1000, 2000):
        yield Case(
            "symmetry",
            f"the same through the permutation symmetry, n = {n:,}",
            Side(symmetric_prediction, (n,)),
            Side(plain_prediction, (n,), repeats=1),
            same_chains(n),
        )
    n = 10**6
    yield Case(
        "symmetry",
        f"the same through the permutation symmetry, n = {n:,}",
        Side(symmetric_prediction, (n,)),
        Side(None, instead=f"the kernel alone needs {8 * (3 * n) ** 2 / 1e12:,.3g} TB"),
        same_chains(n),
        seconds=1,
    )
