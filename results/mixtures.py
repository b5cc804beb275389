"""How near the mixture law comes to a measured merge: its scores against those that were measured.

    law(base, (one, other), merged)      cells of one kind of questions: without adapters, with each alone,
    merged

The law (toytransformer.mixture) predicts the scores of the candidate answers from those of the base and of
each adapter alone; nothing of it is fitted. What it says is held against the measured scores as *shifts* from
the base, each question's candidates about their own mean, as log-probabilities are known up to one number a
question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from results.cells import Cell
from results.statistics import StatisticsError
from toytransformer.mixture import mixture

#: Resamplings of clusters behind an interval.
DRAWS = 999


@dataclass(frozen=True)
class Law:
    """The mixture law against a measured merge.

    correlation: of predicted with measured shifts, over candidates and questions; low, high: its 95%
    percentile bootstrap interval over clusters. slope: of measured on predicted shifts through zero; 1 where
    the law has the size right, below where the model saturates. top: in how many questions the candidate with
    the largest predicted score is the one with the largest measured score; base: the same for the base's own.
    questions, clusters: how many.
    """

    correlation: float
    low: float
    high: float
    slope: float
    top: float
    base: float
    questions: int
    clusters: int


@dataclass(frozen=True)
class _Question:
    """The scores of one question's candidates: of the base, as the law says and as measured."""

    cluster: str
    base: np.ndarray
    said: np.ndarray
    found: np.ndarray

    @property
    def sums(self) -> np.ndarray:
        """Squares of predicted shifts, of measured ones, and their product, each about the question's
        mean."""
        one, other = (scores - self.base for scores in (self.said, self.found))
        one, other = one - one.mean(), other - other.mean()
        return np.array([one @ one, other @ other, one @ other])

    def agrees(self, scores: np.ndarray) -> bool:
        return bool(scores.argmax() == self.found.argmax())


def law(base: Cell, alone: Sequence[Cell], merged: Cell, weights: Sequence[float] | None = None) -> Law:
    """The law on the questions that all cells have scored, training seed by training seed.

    base: the cell without adapters, of any seed. alone: of each adapter at weight 1, in the order of the
    library. merged: of the merge. weights: those of the updates; None for the weights that the cell names.
    Errors: StatisticsError on a number of cells or weights that is not the library's, on fewer than three
    candidates in common, and where no question is left or all are of one cluster.
    """
    library = merged.info.library
    given = merged.info.weights if weights is None else tuple(weights)
    if given is None:
        raise StatisticsError(f"rule {merged.info.rule!r} was measured at its own weights: give them")
    if len(alone) != len(library) or len(given) != len(library):
        raise StatisticsError(
            f"{len(alone)} cells and {len(given)} weights for the adapters {'+'.join(library)}: give one of "
            "each for every adapter"
        )
    asked = _questions(base, alone, merged, given)
    names = sorted({question.cluster for question in asked})
    if len(names) < 2:
        raise StatisticsError(
            f"{len(asked)} questions of {len(names)} clusters have scores in all cells: ask the same ones "
            "with "
            "log-probabilities of candidates, about two clusters at least"
        )
    sums = np.zeros((len(names), 3))
    for question in asked:
        sums[names.index(question.cluster)] += question.sums
    even = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(0).multinomial(len(names), even, size=DRAWS)
    low, high = np.percentile(_correlation(counts @ sums), (2.5, 97.5))
    total = sums.sum(axis=0)
    return Law(
        float(_correlation(total)),
        float(low),
        float(high),
        float(total[2] / total[0]),
        float(np.mean([question.agrees(question.said) for question in asked])),
        float(np.mean([question.agrees(question.base) for question in asked])),
        len(asked),
        len(names),
    )


def _questions(
    base: Cell, alone: Sequence[Cell], merged: Cell, weights: tuple[float, ...]
) -> list[_Question]:
    without = {item: scores for (_, item), scores in _scores(base).items()}
    singles = [_scores(cell) for cell in alone]
    clusters = dict(zip(merged.column("item"), merged.column("cluster"), strict=True))
    found = []
    for (seed, item), measured in _scores(merged).items():
        parts = [part for part in (without.get(item), *(t.get((seed, item)) for t in singles)) if part]
        if len(parts) <= len(alone):
            continue
        labels = [label for label in measured if all(label in part for part in parts)]
        if len(labels) < 3:
            raise StatisticsError(f"'{item}' has {len(labels)} candidates in all cells: score the same ones")
        first, *rest = (np.array([[part[label] for label in labels]]) for part in parts)
        said = mixture(first, np.stack(rest), weights)[0]
        scores = np.array([measured[label] for label in labels])
        found.append(_Question(clusters[item], first[0], said, scores))
    return found


def _scores(cell: Cell) -> dict[tuple[int | None, str], Mapping[str, float]]:
    columns = zip(cell.column("seed"), cell.column("item"), cell.logprobs, strict=True)
    return {(seed, item): scores for seed, item, scores in columns if scores}


def _correlation(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 2] / np.sqrt(sums[..., 0] * sums[..., 1]))
