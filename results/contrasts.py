"""Differences between cells, with the cluster as the unit: an interval, and a test.

contrast(first, second)                  one cell beside another
contrast((own, both), (neither, beside)) an effect in a design of several cells
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from results import statistics
from results.cells import RIGHT, Cell
from results.statistics import StatisticsError


@dataclass(frozen=True)
class Contrast:
    """A difference of shares, its bootstrap interval over clusters, the sign-flip test's p, the clusters."""

    difference: float
    low: float
    high: float
    p: float
    clusters: int

    @property
    def points(self) -> str:
        """In percentage points: "−45.8 [−57.5, −34.2]"."""
        low, high = (_points(value, sign=False) for value in (self.low, self.high))
        return f"{_points(self.difference)} [{low}, {high}]"

    def __str__(self) -> str:
        return (
            f"{_points(self.difference)} points [{_points(self.low)}, {_points(self.high)}], p = {self.p:.2g}"
        )


def contrast(first: Cell | Sequence[Cell], second: Cell | Sequence[Cell], of: str = RIGHT) -> Contrast:
    """Mean over the first cells minus mean over the second ones, of an outcome's share or of a mark.

    d_c = mean_i s_ic − mean_j s_jc, s_ic the share of cell i in cluster c over its wordings and training
    seeds. The difference is the mean of d_c over clusters, the interval the 95% percentile bootstrap of that
    mean, p of the sign-flip test on d_c.
    Errors: StatisticsError where the cells are not about the same clusters, or about fewer than two.
    """
    sides = [(side,) if isinstance(side, Cell) else tuple(side) for side in (first, second)]
    tables = [[cell.by_cluster(of) for cell in side] for side in sides]
    clusters = list(tables[0][0])
    for cell, table in zip((*sides[0], *sides[1]), (*tables[0], *tables[1]), strict=True):
        if table.keys() != set(clusters):
            raise StatisticsError(
                f"{cell.info.task} by {cell.info.rule} is about {len(table)} clusters, the first cell about "
                f"{len(clusters)}: compare cells that ask about the same ones"
            )
    means = [[_mean([_mean(table[cluster]) for table in side]) for cluster in clusters] for side in tables]
    differences = [here - there for here, there in zip(*means, strict=True)]
    low, high = statistics.cluster_interval(differences, clusters, seed=0)
    test = statistics.sign_flip(differences)
    return Contrast(test.difference, low, high, test.p, len(clusters))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _points(share: float, sign: bool = True) -> str:
    """A difference of shares in percentage points, with a true minus sign."""
    value = round(100 * share, 1) + 0.0
    return f"{value:+g}".replace("-", "−") if sign else f"{value:g}".replace("-", "−")
