"""A rule fitted on one half of somebody's questions, and what the other half says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.fitted import fit
from llm_experiments.merges.fitters import Fitting
from llm_experiments.merges.loss import encoded, frozen, mean_loss
from llm_experiments.merges.merging import FittedMerge, apply
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RULES, RuleError, resolve

#: What a fit is set beside.
BASE, MEAN = "base", "mean"


@dataclass(frozen=True)
class HalfFit:
    """A merge fitted on `fitted` questions. held_out: how many it never saw.

    losses: of the base, of the plain mean and of the fitted merge the mean -log p of an answer's token, in
    nats, on the questions fitted on and on those held out. weights: by adapter the least, mean and largest
    weight over the layers.
    """

    merge: FittedMerge
    fitted: int
    held_out: int
    losses: Mapping[str, tuple[float, float]]
    weights: Mapping[str, tuple[float, float, float]]

    @property
    def worse(self) -> bool:
        """Whether the plain mean does better on what was held out."""
        return self.losses[self.merge.merge.rule][1] >= self.losses[MEAN][1]


def fittable() -> tuple[str, ...]:
    """The rules whose weights are found on examples, controls left out."""
    return tuple(sorted(name for name, rule in RULES.items() if rule.fits and not rule.control))


def require_fittable(name: str) -> None:
    """RuleError for a rule that has no weights to find, naming those that do."""
    if resolve(name).name not in fittable():
        raise RuleError(
            f"rule {name!r} has no weights that are fitted on examples; choose {', '.join(fittable())}"
        )


def fit_half(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    merge: Merge,
    questions: Sequence[Question],
    *,
    seed: int = 0,
    fitting: Fitting | None = None,
) -> HalfFit:
    """Fit a rule on every second cluster of the questions, drawn by the seed.

    Errors: RuleError for a rule without weights to find, for fewer than two clusters, and as `fit`.
    """
    require_fittable(merge.rule)
    merge, fitting = replace(merge, rule=resolve(merge.rule).name), fitting or Fitting()
    halves = _halves(questions, seed)
    fitted = fit(loaded, library, merge, halves[0], seed, fitting=fitting)
    rows = [[encoded(loaded, one) for one in half] for half in halves]
    merges: dict[str, AbstractContextManager[Any]] = {
        BASE: nullcontext(),
        MEAN: apply(loaded, library, Merge(MEAN)),
        merge.rule: apply(loaded, library, fitted),
    }
    losses = {}
    for name, applied in merges.items():
        with frozen(loaded.model), applied:
            on, off = (mean_loss(loaded, half, fitting.batch) for half in rows)
        losses[name] = on, off
    counts = {"fitted": len(rows[0]), "held_out": len(rows[1])}
    details = {**fitted.details, "questions": counts, "losses": losses}
    return HalfFit(replace(fitted, details=details), **counts, losses=losses, weights=_weights(fitted))


def _halves(questions: Sequence[Question], seed: int) -> tuple[list[Question], list[Question]]:
    """Every second cluster, as they are drawn, and the others; a question without one is its own."""
    clusters = [("cluster", one.cluster) if one.cluster else ("place", n) for n, one in enumerate(questions)]
    distinct = list(dict.fromkeys(clusters))
    if len(distinct) < 2:
        raise RuleError(
            f"{len(questions)} questions of one cluster cannot be halved into some to fit on and some to "
            "hold out; give two clusters at least"
        )
    drawn = {distinct[place] for place in np.random.default_rng(seed).permutation(len(distinct))[::2]}
    parts = [[one for one, cluster in zip(questions, clusters, strict=True) if (cluster in drawn) is first]
             for first in (True, False)]  # fmt: skip
    return parts[0], parts[1]


def _weights(fitted: FittedMerge) -> dict[str, tuple[float, float, float]]:
    by_layer = np.array([merge.weights for merge in fitted.merges.values()], float)
    return {
        name: (float(column.min()), float(column.mean()), float(column.max()))
        for name, column in zip(fitted.names, by_layer.T, strict=True)
    }
