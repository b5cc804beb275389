"""T0, the paper's model: a one-layer transformer of infinite width with an exact base and one-hot answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from predictors.plain import Row, described, short
from predictors.registry import BaseModel, NoPredictionError, Shares, predictor
from toytransformer import merging
from toytransformer.compositions import Composition, Question, question
from toytransformer.compositions.worlds import Prompt
from toytransformer.merging import RuleError

if TYPE_CHECKING:
    from toytransformer.prediction import Prediction

#: Predictions of the compositions that the committed rows measure, by spec hash.
COMMITTED = Path(__file__).parent / "data" / "toy_rows.json"
#: Neurons behind rules that act on single entries; dimension and draws where tied singular values leave the
#: limit open.
NEURONS, DIMENSION, DRAWS = 2**12, 2**12, 8


@predictor("T0", "the toy in its limit: exact base, one-hot answers", needs="nothing but the composition")
def limit(spec: Composition, base: BaseModel | None = None) -> Shares:
    """Shares of outcomes in the full limit, as `predicted` has them."""
    row = predicted(spec)
    if "refused" in row:
        raise NoPredictionError(row["refused"])
    return {name: said["shares"] for name, said in row["asked"].items()}


def predicted(spec: Composition) -> Row:
    """The row of one composition: for each group and way of asking shares, margin and outputs by role.

    margin: output of the right answer minus the largest other, mean over questions, None where nothing is
    right; step by step the smaller one of the two steps, each asked on its own. outputs: of the right answer,
    the bridge and the old one. Where tied singular values leave the full limit open, means over draws at
    finite d. A rule that cannot merge the toy's adapters, whose ranks are numbers of facts, has its words in
    "refused" instead.
    """
    import jax

    from toytransformer.prediction import predict
    from toytransformer.regimes import FullLimit, Regime, WidthLimit

    about: Row = {
        "spec_hash": spec.spec_hash,
        "composition": spec.name,
        "library": [adapter.name for adapter in spec.adapters],
        "rule": spec.merge.rule,
        "weights": spec.merge.weights,
    }
    with_steps = replace(spec, questions=(*spec.questions, *_steps(spec)))
    with jax.enable_x64(True):
        regime: Regime = FullLimit(quadrature=NEURONS)
        try:
            several = [predict(with_steps, regime)]
        except RuleError as refusal:
            return {**about, "refused": str(refusal)}
        if tied := undetermined(several[0]):
            drawn = WidthLimit(dimension=DIMENSION, quadrature=NEURONS)
            several = [predict(with_steps, replace(drawn, seed=seed)) for seed in range(DRAWS)]
            regime = drawn
    groups: dict[str, list[int]] = {}
    for number, question_ in enumerate(spec.questions):
        groups.setdefault(f"{question_.group}/{question_.decode}", []).append(number)
    return {
        **about,
        "tied": tied,
        "regime": described(regime),
        "seeds": list(range(len(several))),
        "draws": len(several),
        "asked": {name: _group(members, several) for name, members in groups.items()},
    }


def _steps(spec: Composition) -> list[Question]:
    """Each step of the two-hop questions as a question of its own, where it is not asked yet."""
    there = {question_.prompt for question_ in spec.questions if question_.decode == "direct"}
    steps = (step for q in spec.questions if q.decode == "steps" for step in _hops(q))
    lacking_steps = dict.fromkeys(step for step in steps if step not in there)
    return [question(spec.world, prompt, group="step") for prompt in lacking_steps]


def _hops(two_hop: Question) -> tuple[Prompt, Prompt]:
    first, second = two_hop.prompt.relations
    if two_hop.bridge is None:
        raise ValueError(f"'{two_hop.prompt}' has no bridge: only two-hop questions are asked step by step")
    return Prompt(two_hop.prompt.entity, (first,)), Prompt(two_hop.bridge, (second,))


def _group(members: Sequence[int], several: Sequence[Prediction]) -> Row:
    """Means over the questions of these numbers and over the draws."""
    shares: dict[str, list[float]] = {}
    outputs: dict[str, list[float]] = {}
    margins = []
    for prediction in several:
        questions = prediction.composition.questions
        direct = {q.prompt: number for number, q in enumerate(questions) if q.decode == "direct"}
        names = {entity: i for i, entity in enumerate(prediction.composition.world.entities)}
        for number in members:
            one, output = questions[number], prediction.output[number]
            for outcome, share in one.shares(prediction.distributions[number]).items():
                shares.setdefault(outcome, []).append(share)
            for role, entity in (("correct", one.correct), ("bridge", one.bridge), ("old", one.old)):
                if entity is not None:
                    outputs.setdefault(role, []).append(output[names[entity]])
            steps = [direct[step] for step in (_hops(one) if one.decode == "steps" else (one.prompt,))]
            rights = [names[right] for step in steps if (right := questions[step].correct) is not None]
            if len(rights) == len(steps):
                margins.append(min(map(_margin, (prediction.output[step] for step in steps), rights)))
    return {
        "shares": {outcome: m for outcome, v in shares.items() if (m := _short_mean(v))},
        "margin": _short_mean(margins) if margins else None,
        "outputs": {role: _short_mean(v) for role, v in outputs.items()},
    }


def _margin(output: np.ndarray, right: int) -> float:
    """The right answer's output minus the largest other one."""
    return float(output[right] - np.delete(output, right).max())


def _short_mean(values: Sequence[float]) -> float:
    return short(math.fsum(values) / len(values))


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
