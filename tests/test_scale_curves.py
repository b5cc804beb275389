"""Measured scale curves: interpolation that keeps shares shares, the chain law, intervals over clusters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from predictors import scale_curves
from predictors.scale_curves import ScaleCurve, chain, hop
from results.statistics import StatisticsError, cluster_interval

GRID = tuple(np.round(np.arange(0.0, 1.51, 0.25), 2).tolist())


def thresholds(seed, clusters=20, wordings=2, spread=0.2):
    """A curve of items that are right from a weight of their own on, and those weights."""
    edges = np.random.default_rng(seed).normal(0.6, spread, size=(clusters, wordings))
    tables = {
        a: {f"chain {c}": [float(a > edge) for edge in row] for c, row in enumerate(edges)} for a in GRID
    }
    return ScaleCurve.by_cluster(tables), edges


@given(st.integers(0, 2**32 - 1), st.floats(-1, 1.5))
def test_curve_goes_through_its_points_and_keeps_between_its_neighbours(seed, weight):
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 3, size=(len(GRID), 4)).astype(float)
    curve = ScaleCurve(GRID, ("a", "b", "c", "d"), right, np.full(right.shape, 2.0))
    for a, share in zip(GRID, curve.shares, strict=True):
        assert abs(curve(a) - share) <= 1e-12
    after = int(np.searchsorted(GRID, max(weight, GRID[0])))
    near = curve.shares[max(after - 1, 0) : after + 1]
    assert min(near) - 1e-12 <= curve(weight) <= max(near) + 1e-12


def test_pchip_errs_less_than_straight_lines_on_curves_that_turn():
    fine = np.linspace(0, 1.5, 301)
    for edge, spread in ((0.5, 0.15), (0.6, 0.2), (0.9, 0.25)):
        truth = stats.norm.cdf(fine, edge, spread)
        points = stats.norm.cdf(GRID, edge, spread)[:, None]
        curve = ScaleCurve(GRID, ("all",), points, np.ones_like(points))
        smooth = np.abs(np.array([curve(a) for a in fine]) - truth).mean()
        straight = np.abs(np.interp(fine, GRID, points[:, 0]) - truth).mean()
        assert smooth < straight


def test_hop_is_the_curve_at_the_effective_weight():
    curve, edges = thresholds(0)
    found = hop(curve, 0.75, 0.5, 0.5)
    assert found.share == curve(0.5) == np.mean(edges < 0.5)
    assert found.low <= found.share <= found.high
    items = [(float(edge < 0.5), c) for c, row in enumerate(edges) for edge in row]
    low, high = cluster_interval([v for v, _ in items], [c for _, c in items], seed=1)
    # another bootstrap of the same mean: ends of 999 draws have a standard error of about a tenth of the
    # width
    assert abs(found.low - low) <= 0.3 * (high - low) and abs(found.high - high) <= 0.3 * (high - low)


def test_chain_is_k_times_both_hops_and_resamples_them_together():
    curve, edges = thresholds(1)
    found = chain((curve, 0.75, 0.0), (curve, 0.5, 0.0), k=0.8)
    assert found.share == pytest.approx(0.8 * np.mean(edges < 0.75) * np.mean(edges < 0.5), abs=1e-12)
    other = ScaleCurve(curve.weights, tuple(f"other {c}" for c in curve.clusters), curve.right, curve.items)
    apart = chain((curve, 0.75, 0.0), (other, 0.5, 0.0), k=0.8)
    assert apart.share == found.share
    assert apart.high - apart.low < found.high - found.low  # one curve twice varies as its square does


def test_intervals_cover():
    """95% intervals of s at a point hold the true value in 84 of 100 draws at the least (five standard
    errors)."""
    truth = stats.norm.cdf(0.5, 0.6, 0.2)
    held = [
        (found := hop(thresholds(seed, clusters=40, wordings=1)[0], 0.5)).low <= truth <= found.high
        for seed in range(100)
    ]
    assert np.mean(held) >= 0.84


def test_half_is_the_median_edge():
    curve, edges = thresholds(2, clusters=400)
    assert abs(curve.half() - np.median(edges)) <= 0.05
    nothing = ScaleCurve((0.0, 1.0), ("a",), np.zeros((2, 1)), np.ones((2, 1)))
    assert nothing.half() is None


def test_bad_input_is_named():
    curve, _ = thresholds(3)
    one = ScaleCurve((0.0, 1.0), ("a",), np.ones((2, 1)), np.ones((2, 1)))
    for wrong, said in (
        (lambda: curve(1.6), "beyond the largest one measured, 1.5"),
        (lambda: curve(float("nan")), "weight nan"),
        (lambda: ScaleCurve((1.0, 0.5), ("a",), np.ones((2, 1)), np.ones((2, 1))), "increasing"),
        (lambda: ScaleCurve((0.0, 1.0), ("a",), np.ones((2, 2)), np.ones((2, 2))), r"give \(2, 1\)"),
        (lambda: ScaleCurve((0.0, 1.0), ("a",), 2 * np.ones((2, 1)), np.ones((2, 1))), "more than all"),
        (lambda: ScaleCurve.by_cluster({0.0: {"a": [1]}, 1.0: {"b": [1]}}), "ask the same ones"),
        (lambda: ScaleCurve.by_cluster({}), "two at least"),
        (lambda: hop(one, 0.5), "1 cluster"),
        (lambda: chain((curve, 0.5, 0.5), k=1.1), "k is 1.1"),
    ):
        with pytest.raises(StatisticsError, match=said):
            wrong()
    assert scale_curves.DRAWS >= 999
