"""What the full limit answers, question by question, and where tied singular values leave it open."""

from __future__ import annotations

import numpy as np

from figures.store import short
from toytransformer import merging
from toytransformer.prediction import Prediction


def margins_of(predicted: Prediction) -> list[tuple[float, str]]:
    """Right output minus the largest other one, and the outcome (ties: "tie"), question by question."""
    margins = []
    names = predicted.composition.world.entities
    rows = zip(predicted.composition.questions, predicted.output, predicted.distributions, strict=True)
    for question, output, answers in rows:
        right = names.index(question.correct)
        outcomes = {question.outcome(answer) for answer in answers}
        margin = short(output[right] - np.delete(output, right).max())
        margins.append((margin, outcomes.pop() if len(outcomes) == 1 else "tie"))
    return margins


def undetermined(predicted: Prediction) -> bool:
    """Whether tied singular values (relative gap < 1e-8) leave the vectors that the result needs open."""
    rule = merging.resolve(predicted.composition.merge.rule)
    details = predicted.merged.details
    gaps = [predicted.merged.spectral_gap, details.get("cut_gap")]
    if not rule.gauge_invariant and rule.adapter_kind == "closed-form":
        for adapter in predicted.adapters:
            values = adapter.svd()[1]
            gaps += list(-np.diff(values) / values[0])
    return any(gap is not None and gap < 1e-8 for gap in gaps)
