"""Does one hop survive as its adapter's weight goes from 0 to 1? The grid, the toy's answer, the threshold.

theory.md, section 6: with weight a on the hop's own adapter and b on the other, the edited answer wins iff
a > max(1/2, |b| l) for facts the base knows and a > max(0, b l) for fresh ones, l the leak of one adapter
onto the other's prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llm_experiments.editing.features import EditError
from toytransformer.compositions import OUTCOMES, Composition, Merge
from toytransformer.ledger.pair import threshold
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import FullLimit, Regime

#: A hop survives where at least this share of its questions is answered rightly.
SURVIVES = 0.5


def grid(points: int = 11, other: float | None = None, own: int = 0) -> tuple[tuple[float, float], ...]:
    """Weights of two adapters, the one at place `own` going from 0 to 1 in equal steps.

    other: the other's fixed weight, or None for 1 - a.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise EditError(f"points is {points!r}; it must be a whole number >= 2")
    if own not in (0, 1):
        raise EditError(f"own is {own!r}; it is the place of one of two adapters, 0 or 1")
    if other is not None and not math.isfinite(other):
        raise EditError(f"other is {other!r}; it must be a finite number, or None for 1 - a")
    return tuple(_pair(i / (points - 1), other, own) for i in range(points))


def _pair(weight: float, other: float | None, own: int) -> tuple[float, float]:
    pair = (weight, 1 - weight if other is None else other)
    return pair if own == 0 else pair[::-1]


def predicted(
    composition: Composition,
    weights: Sequence[tuple[float, float]],
    regime: Regime | None = None,
    *,
    rule: str = "sum",
) -> list[dict[str, object]]:
    """The toy's outcome shares for each pair of weights and each group of questions, as rows.

    composition: such as the catalogue's "one-hop" (groups hop1 and hop2) or "chain-of-thought".
    """
    regime = FullLimit() if regime is None else regime
    rows = []
    for pair in weights:
        merged = composition.with_merge(Merge(rule, tuple(pair)))
        for group, shares in group_shares(predict(merged, regime)).items():
            rows.append({"weight1": pair[0], "weight2": pair[1], "rule": rule, "group": group, **shares})
    return rows


def group_shares(prediction: Prediction) -> dict[str, dict[str, float]]:
    """Mean outcome shares of each group of questions, in the order of their first question."""
    questions = prediction.composition.questions
    by_group: dict[str, list[dict[str, float]]] = {}
    for question, answers in zip(questions, prediction.distributions, strict=True):
        by_group.setdefault(question.group, []).append(question.shares(answers))
    return {
        group: {outcome: math.fsum(row[outcome] for row in rows) / len(rows) for outcome in OUTCOMES}
        for group, rows in by_group.items()
    }


def predicted_threshold(
    composition: Composition, group: str, *, other: float | None = None, own: int = 0, rule: str = "sum"
) -> float | None:
    """The least weight above which the toy, in the full limit, answers every question of the group rightly.

    None where it does not even at weight 1. Found by bisection to rounding: at the value itself answers tie.
    """
    if group not in {question.group for question in composition.questions}:
        groups = sorted({question.group for question in composition.questions})
        raise EditError(f"group {group!r} is not asked; allowed: {', '.join(groups)}")

    def survives(weight: float) -> bool:
        merged = composition.with_merge(Merge(rule, _pair(weight, other, own)))
        return group_shares(predict(merged, FullLimit()))[group]["correct"] == 1

    if not survives(1.0):
        return None
    return 0.0 if survives(0.0) else threshold(survives, 0.0, 1.0)


def measured_threshold(
    weights: Iterable[float], shares: Iterable[float], level: float = SURVIVES
) -> float | None:
    """Where the share right first reaches `level` and stays there, linear between grid points.

    weights: of the hop's own adapter, rising. shares: of right answers at each. None where it never stays.
    """
    weights, shares = list(weights), list(shares)
    if len(weights) != len(shares) or not weights or weights != sorted(weights):
        raise EditError(
            f"{len(weights)} weights and {len(shares)} shares: give one share for each rising weight"
        )
    below = [place for place, share in enumerate(shares) if share < level]
    if not below:
        return weights[0]
    last = below[-1]
    if last == len(shares) - 1:
        return None
    part = (level - shares[last]) / (shares[last + 1] - shares[last])
    return weights[last] + part * (weights[last + 1] - weights[last])
