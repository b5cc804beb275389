"""No composition by relabelling (theory.md section 5): the accuracy of a merge averaged over all
relabellings.

Adapter 1 stores x_i -> y_sigma(i), adapter 2 y_i -> z_i, so the right two-hop answer of x_i is z_sigma(i).
If the z-rows of the merged output do not depend on sigma (a label-blind merge), then for each i the best z
is some a(i) whatever sigma is, and sigma(i) = a(i) in (n-1)! of the n! cases: the average accuracy is at
most 1/n, for any features, width and attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from toytransformer.compositions import Composition
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import Regime
from toytransformer.toy import Toy

#: Facts up to which all relabellings are gone through: 40,320 predictions.
MOST = 8


@dataclass(frozen=True)
class RelabellingResult:
    """accuracy: mean expected accuracy over the relabellings; spread: largest change of a z-output between
    two of them.

    A merge is label-blind on these features when `spread` is zero up to rounding (`tie`).
    """

    facts: int
    relabellings: int
    accuracy: float
    spread: float
    tie: float

    @property
    def label_blind(self) -> bool:
        return self.spread <= self.tie


def average(
    build: Callable[[tuple[int, ...]], Composition],
    facts: int,
    regime: Regime | Toy,
    *,
    relabellings: Iterable[tuple[int, ...]] | None = None,
) -> RelabellingResult:
    """Predict `build(sigma)` for every permutation sigma of range(facts) (or those given) in the same draw
    of the regime, or of the regime of a toy.

    Raises ValueError for more than MOST facts without given relabellings, and for none.

    build(sigma) is `catalogue.build("two-hop", ..., sigma=sigma)` under any merge.
    """
    if relabellings is None:
        if not 1 <= facts <= MOST:
            raise ValueError(
                f"facts is {facts!r}; all n! relabellings are gone through for 1 to {MOST} facts, "
                "for more give `relabellings`"
            )
        relabellings = itertools.permutations(range(facts))
    results: list[Prediction] = [predict(build(sigma), regime) for sigma in relabellings]
    if not results:
        raise ValueError("relabellings is empty; give at least one permutation, or None for all")
    outputs = np.stack([_answers(result, facts) for result in results])
    return RelabellingResult(
        facts,
        len(results),
        float(np.mean([result.accuracy for result in results])),
        float(np.max(np.ptp(outputs, axis=0))),
        max(result.tie for result in results),
    )


def _answers(result: Prediction, facts: int) -> np.ndarray:
    """Outputs on z_1 .. z_n for each question, in an order that does not depend on sigma: (question,
    answer)."""
    names = result.composition.world.entities
    columns = [names.index(f"z{i}") for i in range(1, facts + 1)]
    rows = sorted(range(len(result.output)), key=lambda row: str(result.composition.questions[row].prompt))
    return result.output[np.ix_(rows, columns)]
