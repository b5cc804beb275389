"""Claims about adapters made otherwise: trained by descent, whitened by a covariance, reading frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import linalg

from toytransformer import adapters
from toytransformer.adapters import AdapterError, LoRA, closed_form
from toytransformer.ledger.registry import (
    EPS,
    Row,
    Run,
    Tolerance,
    algebraic,
    asymptotic,
    at_least,
    claim,
    close,
    same,
    solver,
)
from toytransformer.ledger.stored_facts import SMALL, largest, small_facts, solve_rounding
from toytransformer.training import TrainedLoRA, one_fact_gap, train_lora

#: Training that stops above this gradient norm has not converged, and says nothing about the minimiser.
CONVERGED = 1e-9


@claim("LoRA trained on one fact", source="section 3.1, theory.md P3")
def trained_on_one(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 1)
    penalties = (1e-1, 1e-2, 1e-3)
    exact = closed_form(features, changes)
    ends = []
    for rank in (1, 3):
        for penalty in penalties:
            trained = train_lora(features, changes, rank=rank, penalty=penalty, seed=run.seed)
            error = _training_error(trained, penalty, exact)
            if rank == 1:
                ends.append((math.log(trained.gap), error.size / trained.gap))
            yield close(
                f"relative gap to eq. 1 is penalty / (|w| |v|), rank {rank}, penalty {penalty:g}",
                one_fact_gap(features, changes, penalty),
                trained.gap,
                error,
                regime=SMALL,
            )
    (first, first_error), *_, (last, last_error) = ends
    decades = math.log(penalties[0] / penalties[-1])
    yield close(
        f"rate: slope of log gap in log penalty, {penalties[0]:g} .. {penalties[-1]:g}",
        1.0,
        (first - last) / decades,
        asymptotic((first_error + last_error) / decades, "the remaining errors of the two trainings"),
        regime=SMALL,
    )


def _training_error(trained: TrainedLoRA, penalty: float, exact: LoRA) -> Tolerance:
    """Rounding, and what the final gradient g leaves: the objective curves by 2 penalty or more across its
    minimiser (along it lies the gauge), so a factor is off by at most |g| / (2 penalty)."""
    size = np.linalg.norm(exact.delta(), 2)
    if trained.gradient > CONVERGED:
        raise RuntimeError(f"training stopped at gradient {trained.gradient:.1e} after {trained.steps} steps")
    left = trained.gradient / (2 * penalty) * 2 * math.sqrt(size) / np.linalg.norm(exact.delta())
    return solver(
        left + 1e4 * EPS, f"final gradient {trained.gradient:.1e} over the least curvature, and rounding"
    )


@claim("LoRA trained on several facts", source="eq. 23, theory.md P3")
def trained_on_several(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 3)
    changes = np.array([[1.0], [2.0], [3.0]]) * changes  # three different singular values
    exact = closed_form(features, changes)
    delta = exact.delta()
    # stationarity: (D - D*) Phi Phi^T = -penalty U V^T with D* = U S V^T, to first order in the penalty
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    needed = int(np.sum(values > 1e-9 * values[0]))
    inverse = np.linalg.pinv(features.T @ features, rcond=1e-9, hermitian=True)
    first = np.linalg.norm(left[:, :needed] @ right[:needed] @ inverse) / np.linalg.norm(delta)
    # the polar factor U V^T moves by at most |D - D*| / least singular value: the second order, relatively
    second = np.linalg.norm(inverse, 2) / values[needed - 1]
    gaps = []
    penalties = (1e-2 / second, 1e-3 / second)
    for penalty in penalties:
        trained = train_lora(features, changes, rank=4, penalty=penalty, seed=run.seed, steps=20000)
        gaps.append(trained.gap / (first * penalty))
        # Where training stops is a matter of rounding: of what is left, the power of ten above it counts.
        left_over = 10.0 ** math.ceil(
            math.log10(_training_error(trained, penalty, exact).size / (first * penalty))
        )
        yield close(
            f"gap to eq. 23 over its derived first order, 3 facts, rank 4, penalty {penalty:.1e}",
            1.0,
            gaps[-1],
            asymptotic(penalty * second / (1 - penalty * second) + left_over, "second order, final gradient"),
            regime=SMALL,
        )
    yield close(
        "rate: slope of log gap in log penalty",
        1.0,
        1 + math.log(gaps[0] / gaps[1]) / math.log(penalties[0] / penalties[1]),
        asymptotic(
            2 * penalties[0] * second / math.log(10), "second order of the larger penalty, over a decade"
        ),
        regime=SMALL,
    )


@claim("whitened edits", source="theory.md P2; ROME, MEMIT")
def whitened(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 3)
    size = features.shape[1]
    plain = closed_form(features, changes).delta()
    identity = adapters.whitened(features, changes, np.eye(size))
    yield close(
        "C = identity gives eq. 23, largest deviation",
        0.0,
        largest(identity.delta() - plain),
        solve_rounding(features, plain),
        regime=SMALL,
    )
    rng = np.random.default_rng(run.seed)
    keys = rng.standard_normal((4 * size, size))
    covariance = keys.T @ keys / len(keys)
    edit = adapters.whitened(features, changes, covariance)
    delta = edit.delta()
    root = linalg.sqrtm(covariance).real
    solution, *_ = np.linalg.lstsq(features @ linalg.inv(root), changes, rcond=None)
    tolerance = algebraic(
        np.linalg.cond(covariance) * solve_rounding(features, delta).size / EPS, operations=1
    )
    yield close("stores the facts", 0.0, largest(edit.shift(features) - changes), tolerance, regime=SMALL)
    yield close(
        "least tr(D C D^T): distance from least squares in whitened coordinates",
        0.0,
        np.linalg.norm(delta - solution.T @ linalg.inv(root)),
        tolerance,
        regime=SMALL,
    )
    yield at_least(
        "tr(D C D^T) of eq. 23 over that of the whitened edit",
        1.0,
        np.trace(plain @ covariance @ plain.T) / np.trace(delta @ covariance @ delta.T),
        algebraic(),
        regime=SMALL,
    )
    inverse = linalg.inv(features @ linalg.solve(covariance, features.T))
    first = np.linalg.norm(changes.T @ inverse @ inverse @ features @ linalg.inv(covariance))
    ridges = np.array([1e-3, 1e-5]) / np.linalg.norm(inverse, 2)
    distances = []
    for ridge in ridges:
        ridged = adapters.whitened(features, changes, covariance, ridge=ridge).delta()
        distances.append(np.linalg.norm(ridged - delta))
        memit = changes.T @ features @ linalg.inv(features.T @ features + ridge * covariance)
        yield close(
            f"ridge {ridge:.1e}: distance from the exact edit over its derived first order",
            1.0,
            distances[-1] / (first * ridge),
            asymptotic(
                ridge * np.linalg.norm(inverse, 2) + tolerance.size / (first * ridge),
                "second order, rounding",
            ),
            regime=SMALL,
        )
        yield close(
            f"ridge {ridge:.1e}: T Phi^T (Phi Phi^T + ridge C)^-1, largest deviation",
            0.0,
            largest(ridged - memit),
            algebraic(
                np.linalg.cond(features.T @ features + ridge * covariance) * np.linalg.norm(delta), 100
            ),
            regime=SMALL,
        )
    yield close(
        "rate: slope of log distance in log ridge",
        1.0,
        math.log(distances[0] / distances[1]) / math.log(ridges[0] / ridges[1]),
        asymptotic(1.01e-3 / math.log(100), "second order of both ridges, over two decades"),
        regime=SMALL,
    )


@claim("frozen reading", source="theory.md section 3, LoRI")
def frozen(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 5)
    refused = []
    for rank in (4, 5, 8):
        try:
            lora = adapters.frozen_read(features, changes, rank=rank, seed=run.seed)
        except AdapterError:
            refused.append(rank)
            continue
        yield close(
            f"5 facts through a frozen random B of rank {rank}, largest deviation",
            0.0,
            largest(lora.shift(features) - changes),
            algebraic(np.linalg.cond(features @ lora.read) * np.linalg.norm(changes), operations=100),
            regime=SMALL,
        )
    yield same("ranks of 4, 5, 8 refused for 5 facts", [4], refused, regime=SMALL)
