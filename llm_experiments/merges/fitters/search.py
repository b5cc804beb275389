"""Without gradients: one set of coefficients for all layers, by LoraHub's search."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize

from llm_experiments.merges.fitters import Fit, FittingJob, fitter
from llm_experiments.merges.loss import frozen, mean_loss
from llm_experiments.merges.merging import apply
from toytransformer.compositions.spec import Merge


@fitter("search")
def by_search(job: FittingJob) -> Fit:
    """One w for all layers: argmin L(w) + penalty mean|w_i| over |w_i| <= bound, by SciPy's COBYLA.

    From equal parts: at LoraHub's own start, zero, L is stationary where L(w) = L(-w). Of two such minima the
    one with the larger sum is returned, as in the toy. Nothing is drawn at random.
    """
    seen: list[tuple[float, float, tuple[float, ...]]] = []
    inner, bound = job.fits, job.options["bound"]

    def objective(values: np.ndarray) -> float:
        w = tuple(float(value) for value in np.clip(values, -bound, bound))
        with apply(job.loaded, job.library, Merge(inner, w)):
            loss = mean_loss(job.loaded, job.tokens, job.fitting.batch)
        loss = loss if math.isfinite(loss) else 1e6  # far worse than any answer, and COBYLA can still compare
        total = loss + job.options["penalty"] * float(np.mean(np.abs(w)))
        seen.append((total, loss, w))
        return total

    count = len(job.library)
    with frozen(job.loaded.model):
        minimize(
            objective,
            np.full(count, min(1 / count, bound)),
            method="COBYLA",
            bounds=[(-bound, bound)] * count,
            options={"maxiter": job.fitting.evaluations, "rhobeg": min(0.4, bound / 2), "tol": 1e-4},
        )
    _, loss, w = min(seen)
    w = w if sum(w) >= 0 else tuple(-value for value in w)
    details = {"weights": w, "loss_start": seen[0][1], "loss": loss, "evaluations": len(seen)}
    return Fit(job.library, {layer: Merge(inner, w) for layer in job.library[0].modules}, details)
