"""In closed form: coefficients that one weighted least squares gives, as the theory's do.

The logits before the answers' tokens are z(a) = z(0) + sum_i a_i J_i + .., J_i = dz/da_i, where every layer
adds sum_i a_i Delta_i, a the same in all layers. To second order in J the loss is

    L(a) = L(0) + g.a + a.H.a / 2
    g_i = mean (p - t).J_i,    H_ij = mean (p.(J_i J_j) - (p.J_i)(p.J_j))

over the tokens, p the base's probabilities and t the token that is right: a = -(H + damping)^(-1) g. Where
the logits are linear in a, as with adapters of the output layer alone, H is the Hessian of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.merges.fitters import Fit, FittingJob
from llm_experiments.merges.loss import Tokens, answer_logits, frozen, mean_loss
from llm_experiments.merges.merging import apply
from llm_experiments.models.handle import LoadedModel
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions.spec import Merge

#: Coefficients at which the slopes of the logits are taken, on both sides of zero.
STEP = 0.05
#: What is added to the diagonal of H, relative to its mean.
DAMPING = 1e-3
#: How often the coefficients are halved while the loss is above the base's.
HALVINGS = 5


@dataclass(frozen=True)
class Quadratic:
    """g (adapter,) and H (adapter, adapter), per token."""

    slope: Array
    curvature: Array

    def least(self) -> Array:
        """-(H + DAMPING mean(diag H))^(-1) g."""
        count = len(self.slope)
        damping = DAMPING * float(np.trace(self.curvature)) / count
        return -np.linalg.lstsq(self.curvature + damping * np.eye(count), self.slope, rcond=None)[0]


def quadratic(
    loaded: LoadedModel, library: Sequence[AdapterWeights], rows: Sequence[Tokens], batch: int
) -> Quadratic:
    """The loss around the base to second order in the logits' slopes, by central differences of STEP.

    2 passes an adapter, one layer's factors applied at a time; `batch` rows are held at once.
    """
    count, tokens = len(library), sum(len(answer) for _, answer in rows)
    slope, curvature = np.zeros(count), np.zeros((count, count))
    with torch.no_grad(), frozen(loaded.model):
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            logits, right = answer_logits(loaded, part)
            p = logits.double().softmax(-1)
            sides = []
            for adapter in library:
                ends = []
                for sign in (1, -1):
                    with apply(loaded, [adapter], Merge("sum", (sign * STEP,))):
                        ends.append(answer_logits(loaded, part)[0].double())
                slopes = (ends[0] - ends[1]) / (2 * STEP)
                sides.append(slopes - (p * slopes).sum(-1, keepdim=True))  # the mean under p drops out
            j = torch.stack(sides)
            slope -= j.gather(2, right.expand(count, -1)[..., None]).sum((1, 2)).cpu().numpy()
            curvature += torch.einsum("tv,itv,jtv->ij", p, j, j).cpu().numpy()
    return Quadratic(slope / tokens, curvature / tokens)


def by_least_squares(job: FittingJob) -> Fit:
    """One a for all layers: the least of the quadratic, halved while the loss is above the base's."""
    found = quadratic(job.loaded, job.library, job.tokens, job.fitting.batch)
    a = found.least()
    with frozen(job.loaded.model):
        before = mean_loss(job.loaded, job.tokens, job.fitting.batch)
        for halvings in range(HALVINGS + 1):
            with apply(job.loaded, job.library, Merge(job.fits, tuple(map(float, a)))):
                loss = mean_loss(job.loaded, job.tokens, job.fitting.batch)
            if loss <= before:
                break
            a = a / 2 if halvings < HALVINGS else 0 * a
        else:
            loss = before
    weights = tuple(map(float, a))
    layers = sorted({name for adapter in job.library for name in adapter.modules})
    foretold = float(before + found.slope @ a + a @ found.curvature @ a / 2)
    details = {"weights": dict.fromkeys(layers, weights), "loss_start": before, "loss": loss,
               "halvings": halvings, "loss_foretold": foretold}  # fmt: skip
    return Fit(job.library, dict.fromkeys(layers, Merge(job.fits, weights)), details)
