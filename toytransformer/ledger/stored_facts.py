"""Facts to store, and their least-norm factors by another route, for the claims about adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import linalg, optimize

from toytransformer.adapters import LoRA
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions import Prompt
from toytransformer.ledger.registry import (
    Number,
    Run,
    Tolerance,
    algebraic,
    solver,
)
from toytransformer.regimes import Finite, FullLimit

SMALL = "finite, d = 64, m = 24"
LIMIT = "limit"


def small_facts(run: Run, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (fact, neuron) of x_i R1 in a small sampled network, and changes i_{y_i} - i_{old_i}."""
    prompts = [Prompt(f"x{i}", ("R1",)) for i in range(count)]
    features = Finite(dimension=64, width=24, seed=run.seed).features(prompts).values
    return features, answer_changes(count)


def limit_facts(count: int) -> tuple[np.ndarray, np.ndarray]:
    return FullLimit().features([Prompt(f"x{i}", ("R1",)) for i in range(count)]).values, answer_changes(
        count
    )


def answer_changes(count: int) -> np.ndarray:
    """Rows i_{y_i} - i_{old_i} over 2 n distinct answers, (fact, entity)."""
    return np.eye(2 * count)[:count] - np.eye(2 * count)[count:]


def nuclear_norm(delta: np.ndarray) -> float:
    return float(np.sum(linalg.svdvals(delta)))


def largest(difference: np.ndarray) -> float:
    return float(np.max(np.abs(difference)))


def solve_rounding(features: np.ndarray, delta: np.ndarray) -> Tolerance:
    """Rounding of a solve with the Gram matrix: the condition number times the size of the result."""
    return algebraic(np.linalg.cond(features @ features.T) * max(1.0, np.linalg.norm(delta)), operations=100)


# --- an independent route: sequential quadratic programming on the factors ---


def least_factors(features: Array, changes: Array, rank: int, starts: Sequence[Array]) -> list[LoRA]:
    """Minimise |A|_F^2 + |B|_F^2 subject to A B^T Phi = T with scipy's SLSQP; the runs that converged."""
    (count, size), answers = features.shape, changes.shape[1]
    cut = answers * rank
    identity = np.eye(answers)

    def square(x: Array) -> tuple[float, Array]:
        return float(x @ x), 2 * x

    def factors(x: Array) -> tuple[Array, Array]:
        return x[:cut].reshape(answers, rank), x[cut:].reshape(size, rank)

    def residual(x: Array) -> Array:
        write, read = factors(x)
        return ((features @ read) @ write.T - changes).ravel()

    def slopes(x: Array) -> Array:
        write, read = factors(x)
        by_write = np.einsum("nr,ef->nefr", features @ read, identity).reshape(count * answers, -1)
        by_read = np.einsum("nf,er->nefr", features, write).reshape(count * answers, -1)
        return np.hstack([by_write, by_read])

    found = []
    for start in starts:
        result = optimize.minimize(
            square,
            start,
            jac=True,
            method="SLSQP",
            constraints=optimize.NonlinearConstraint(residual, 0.0, 0.0, jac=slopes),
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if result.success:
            found.append(LoRA(*factors(result.x)))
    if not found:
        raise RuntimeError(f"SLSQP converged from none of {len(starts)} starts at rank {rank}")
    return found


def mirrored_starts(run: Run, features: Array, changes: Array, rank: int, count: int = 3) -> list[np.ndarray]:
    """Random starts, each with its mirror image (A, B) -> (-A, -B)."""
    size = rank * (features.shape[1] + changes.shape[1])
    normal = np.random.default_rng([run.seed, rank]).standard_normal((count, size))
    return [sign * start for start in normal for sign in (1, -1)]


def certificate(penalty: Number, excess: float) -> Tolerance:
    """How far from the minimiser D* a feasible D can be whose penalty exceeds the least, P, by `excess`.

    D = D* + N with D* N^T = 0, so D D^T = D* D*^T + N N^T and, the square root being operator concave,
    |D|_* - |D*|_* >= |N|_F^2 / (2 |D|); with |D| <= P/2 this is |N|_F^2 <= P excess / 2.
    """
    return solver(
        math.sqrt(penalty * excess / 2), f"sqrt(P x excess / 2) for the allowed excess {excess:.1e}"
    )
