"""Measured scale curves: the share right of one adapter alone at weight a, and what they predict of merges.

    curve = ScaleCurve.of({0.2: cell, 0.4: cell, ..})       the same questions at every weight
    hop(curve, own=0.5, partner=0.5, leak=0.1)              s(own - leak partner), with its interval
    chain((curve1, 0.5, 0.5), (curve2, 0.5, 0.5), k=0.9)    k s1 s2

Between the measured weights a curve is interpolated by PCHIP (Fritsch and Carlson 1980), the piecewise cubic
that is monotone wherever the points are and never leaves the range of its two neighbours, so that shares stay
shares. On curves that turn as survival does, it errs less than straight lines do at the same points. It does
not force a curve to rise: an adapter that is scaled too far loses its answer again. Below the least weight it
stays level, as without an adapter nothing is left to lose; beyond the largest one there is no measurement,
and it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator

from results.cells import RIGHT, Cell
from results.statistics import StatisticsError
from toytransformer.scales import effective

#: Resamplings of clusters behind an interval.
DRAWS = 999


@dataclass(frozen=True)
class Estimate:
    """A predicted share and its 95% percentile bootstrap interval over clusters."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ScaleCurve:
    """Shares by weight and cluster.

    weights: at least two, increasing. clusters: what is resampled whole, each at every weight. right, items:
    (weight, cluster), the sum of the shares right and of how many answers.
    Errors: StatisticsError on fewer weights, weights that do not increase, and sizes that do not fit.
    """

    weights: tuple[float, ...]
    clusters: tuple[str, ...]
    right: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or not all(np.diff(self.weights) > 0) or not np.isfinite(self.weights).all():
            raise StatisticsError(f"weights {self.weights}: a curve needs two at least, in increasing order")
        shape = (len(self.weights), len(self.clusters))
        if self.right.shape != shape or self.items.shape != shape or not np.all(self.items > 0):
            raise StatisticsError(
                f"right {self.right.shape} and items {self.items.shape}: give {shape}, (weight, cluster), "
                "with one answer at least in each"
            )
        if not np.all((self.right >= 0) & (self.right <= self.items)):
            raise StatisticsError("a cluster has fewer than none or more than all answers right")

    @classmethod
    def of(cls, cells: Mapping[float, Cell], of: str = RIGHT) -> ScaleCurve:
        """The curve of one adapter from the cell at each weight, of an outcome's share or of a mark.

        Errors: StatisticsError where the cells are not about the same clusters.
        """
        ordered = dict(sorted(cells.items()))
        return cls.by_cluster({weight: cell.by_cluster(of) for weight, cell in ordered.items()})

    @classmethod
    def by_cluster(cls, tables: Mapping[float, Mapping[str, Sequence[float]]]) -> ScaleCurve:
        """The curve from the values of each cluster's items, by weight. Errors: as `of`."""
        ordered = dict(sorted(tables.items()))
        clusters = tuple(next(iter(ordered.values()), {}))
        for weight, table in ordered.items():
            if table.keys() != set(clusters):
                raise StatisticsError(
                    f"at weight {weight:g} {len(table)} clusters are asked, at the least {len(clusters)}: "
                    "ask "
                    "the same ones at every weight"
                )
        right = [[math.fsum(table[cluster]) for cluster in clusters] for table in ordered.values()]
        items = [[len(table[cluster]) for cluster in clusters] for table in ordered.values()]
        return cls(tuple(map(float, ordered)), clusters, np.array(right, float), np.array(items, float))

    @property
    def shares(self) -> tuple[float, ...]:
        """The share right at each weight."""
        return tuple(self._shares(np.ones((1, len(self.clusters))))[:, 0].tolist())

    def __call__(self, weight: float) -> float:
        """s(weight). Errors: StatisticsError beyond the largest measured weight."""
        return float(self.resampled(weight, np.ones((1, len(self.clusters))))[0])

    def resampled(self, weight: float, counts: np.ndarray) -> np.ndarray:
        """s(weight) with every cluster counted so many times, (draw,) for counts (draw, cluster)."""
        if not weight <= self.weights[-1]:
            raise StatisticsError(
                f"weight {weight:g} is beyond the largest one measured, {self.weights[-1]:g}: measure further"
            )
        curve = PchipInterpolator(self.weights, self._shares(counts), axis=0)
        return np.asarray(curve(max(weight, self.weights[0])))

    def _shares(self, counts: np.ndarray) -> np.ndarray:
        return (self.right @ counts.T) / (self.items @ counts.T)

    def half(self) -> float | None:
        """The least weight at which half as many are right as at the largest: a measured a*; None if at
        none."""
        target = self.shares[-1] / 2
        fine = np.linspace(self.weights[0], self.weights[-1], 2001)
        above = PchipInterpolator(self.weights, self.shares)(fine) >= target
        return float(fine[np.argmax(above)]) if target > 0 and above.any() else None


#: A curve, the realised weight of its adapter, and that of the partner.
Leg = tuple[ScaleCurve, float, float]


def hop(curve: ScaleCurve, own: float, partner: float = 0.0, leak: float = 0.0, *, seed: int = 0) -> Estimate:
    """P(hop) = s(own - leak partner): theory.md, section 9. The interval is of the curve alone.

    Errors: StatisticsError as for a ScaleCurve, and on fewer than two clusters.
    """
    return chain((curve, own, partner), k=1.0, leak=leak, seed=seed)


def chain(*legs: Leg, k: float = 1.0, leak: float = 0.0, seed: int = 0) -> Estimate:
    """P(chain) = k times the product of P(hop) over the legs.

    Clusters that all curves share are resampled together, as the hops of one chain belong together; with
    others the draws of one curve do not depend on those of another. k: form times copying, measured on the
    base.
    Errors: as `hop`, and on a k that is no share.
    """
    if not 0 <= k <= 1:
        raise StatisticsError(f"k is {k!r}: give a share from 0 to 1")
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[str, ...], np.ndarray] = {}
    share, draws = k, np.full(DRAWS, float(k))
    for curve, own, partner in legs:
        count = len(curve.clusters)
        if count < 2:
            raise StatisticsError(f"{count} cluster: a bootstrap over clusters needs two at least")
        if curve.clusters not in drawn:
            drawn[curve.clusters] = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
        weight = effective(own, partner, leak)
        share *= curve(weight)
        draws = draws * curve.resampled(weight, drawn[curve.clusters])
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(share, float(low), float(high))
