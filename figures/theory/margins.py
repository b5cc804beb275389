"""What the full limit answers, question by question."""

from __future__ import annotations

import numpy as np

from figures.store import short
from toytransformer.prediction import Prediction


def margins_of(predicted: Prediction) -> list[tuple[float, str]]:
    """Right output minus the largest other one, and the outcome (ties: "tie"), question by question."""
    margins = []
    names = predicted.composition.world.entities
    rows = zip(predicted.questions, predicted.output, predicted.distributions, strict=True)
    for question, output, answers in rows:
        right = names.index(question.correct)
        outcomes = {question.outcome(answer) for answer in answers}
        margin = short(output[right] - np.delete(output, right).max())
        margins.append((margin, outcomes.pop() if len(outcomes) == 1 else "tie"))
    return margins
