"""What measured shares are worth: intervals, tests by cluster, seeds kept apart from items.

Three sources of variation, never pooled: items (questions; Wilson intervals), clusters (what several wordings
ask about; resampled whole, and compared whole) and training seeds (each a value of its own, with its spread).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


class StatisticsError(ValueError):
    """Rows that cannot be compared or counted; the message names one and says what to do."""


# --- intervals ----------------------------------------------------------------------------------------------


def wilson(successes: float, items: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share: the p with |p^ - p| <= z sqrt(p (1 - p) / n).

    successes may be fractional (a mean over training seeds times n). Errors: StatisticsError unless
    0 <= successes <= items, items > 0 and 0 < confidence < 1.
    """
    if not (items > 0 and 0 <= successes <= items and 0 < confidence < 1):
        raise StatisticsError(
            f"{successes!r} of {items!r} at {confidence!r}: give 0 <= successes <= items, items > 0 and a "
            "confidence between 0 and 1"
        )
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, items, alpha=1 - confidence, method="wilson")
    return (
        0.0 if successes == 0 else max(0.0, float(low)),
        1.0 if successes == items else min(1.0, float(high)),
    )


def cluster_interval(
    values: Sequence[float],
    clusters: Sequence[object],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = 9999,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, whole clusters drawn with replacement.

    With one item a cluster it is the ordinary bootstrap. It has no width where all clusters agree: give
    Wilson's interval beside it. Errors: StatisticsError on fewer than two clusters.
    """
    if len(values) != len(clusters):
        raise StatisticsError(f"{len(values)} values in {len(clusters)} clusters: give one cluster for each")
    sums: dict[object, list[float]] = {}
    for number, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(float(number))
    if len(sums) < 2:
        raise StatisticsError(f"{len(sums)} cluster: a bootstrap over clusters needs two at least")
    totals, sizes = (np.array([fold(part) for part in sums.values()]) for fold in (math.fsum, len))
    found = stats.bootstrap(
        (totals, sizes),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def group_bootstrap(
    statistic: Callable[[np.ndarray], Sequence[float]],
    groups: Sequence[Hashable],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = 999,
) -> list[tuple[float, float]]:
    """Percentile bootstrap intervals of any statistics, whole groups drawn with replacement.

    statistic: from the numbers of the items that are drawn to one or several values, an interval for each.
    Draws in which a value is NaN are left out of its interval, which is NaN where all are. Errors:
    StatisticsError on no items.
    """
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if not members:
        raise StatisticsError("no items: a bootstrap over groups needs one at least")
    listed = [np.array(numbers) for numbers in members.values()]
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistic(np.concatenate([listed[i] for i in rng.integers(len(listed), size=len(listed))]))
            for _ in range(draws)
        ]
    )
    return _percentiles(drawn, confidence)


def member_bootstrap(
    statistic: Callable[[np.ndarray], Sequence[float]],
    items: Sequence[Collection[Hashable]],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = 999,
) -> list[tuple[float, float]]:
    """The same where items are sets of members that they share, such as pairs of one pool.

    Members are drawn with replacement, as many as there are; an item counts as often as the product of how
    often each of its members was drawn. A draw without any item is left out. It is the vertex bootstrap of
    Snijders and Borgatti (1999), with no item made of one member drawn twice. Errors: StatisticsError on no
    items.
    """
    members = {member: place for place, member in enumerate(dict.fromkeys(m for item in items for m in item))}
    if not members:
        raise StatisticsError("no items: a bootstrap over members needs one at least")
    rng = np.random.default_rng(seed)
    places = [[members[member] for member in item] for item in items]
    values = []
    for counts in rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws):
        times = np.array([counts[own].prod() for own in places])
        if times.any():
            values.append(statistic(np.repeat(np.arange(len(items)), times)))
    return _percentiles(np.array(values), confidence)


def _percentiles(drawn: np.ndarray, confidence: float) -> list[tuple[float, float]]:
    """Of each column, NaN left out."""
    intervals = []
    for values in drawn.T:
        known = values[~np.isnan(values)]
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(known, ends) if len(known) else (math.nan, math.nan)
        intervals.append((float(low), float(high)))
    return intervals


# --- paired tests -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignFlip:
    """How two ways of answering differ over clusters.

    difference: mean over clusters of the first's value minus the second's. first, second: in how many
    clusters either is higher. clusters: all of them. p: two-sided. exact: whether all signs were tried.
    """

    difference: float
    first: int
    second: int
    clusters: int
    p: float
    exact: bool


#: Clusters that differ, up to which all signs are tried.
EXACT = 16


def sign_flip(differences: Sequence[float], *, seed: int = 0, draws: int = 9999) -> SignFlip:
    """Two-sided test of a mean difference over clusters: were it nothing, every cluster's sign were a coin's.

    differences: of each cluster, the mean over its wordings and training seeds. p is the share of the 2^k
    ways to give signs to the k that are not zero under which the sum is as far from zero; above EXACT of
    them of `draws` random ways, the true one added: (1 + number) / (1 + draws). p is 1 where none differs.
    Errors: StatisticsError on no clusters and on numbers that are not finite.
    """
    values = np.array(differences, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise StatisticsError(
            f"{len(values)} clusters with {list(differences)[:3]} ..: give finite differences"
        )
    told = values[np.abs(values) > 1e-12]
    count, exact = len(told), len(told) <= EXACT
    if exact:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(draws, count))
    slack = 1e-9 * max(1.0, float(np.abs(told).sum()))
    far = int(np.sum(np.abs(signs @ told) >= abs(told.sum()) - slack))
    p = far / len(signs) if exact else (1 + far) / (1 + draws)
    mean = float(math.fsum(values) / len(values))
    return SignFlip(mean, int(np.sum(told > 0)), int(np.sum(told < 0)), len(values), p, exact)


@dataclass(frozen=True)
class McNemar:
    """How two rules answer the same items: both right, only the first, only the second, neither; exact p."""

    both: int
    first: int
    second: int
    neither: int
    p: float


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact two-sided McNemar test on paired items: the discordant ones are fair coins under the null.

    Items that share a cluster are no independent coins: see sign_flip. p is 1 where no item is discordant.
    Errors: StatisticsError on different lengths and no items.
    """
    if len(first) != len(second) or not len(first):
        raise StatisticsError(f"{len(first)} and {len(second)} items: give the same items, at least one")
    from statsmodels.stats.contingency_tables import mcnemar

    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    p = 1.0
    if only_first + only_second:
        p = min(1.0, float(mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue))
    return McNemar(both, only_first, only_second, neither, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: max over j <= i of (n - j) p_(j), at most 1."""
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise StatisticsError(f"{wrong[0]!r} is no p-value: give numbers from 0 to 1")
    if not len(p_values):
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


# --- the shuffled-answer baseline ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shuffled:
    """Does a model give its right answers more probability than the other questions' right answers?

    difference: mean log p of right answers minus that of answers shuffled across questions, in nats.
    p: one-sided, of the permutations within groups. questions, groups: how many.
    """

    difference: float
    p: float
    questions: int
    groups: int


def shuffled_baseline(
    scored: Iterable[tuple[str, Mapping[str, float] | None]], *, seed: int, draws: int = 9999
) -> Shuffled:
    """The right answers' log-probabilities against the same answers dealt to other questions.

    scored: a question's name, and log-probabilities by label, "correct:ANSWER" and "shuffled:ANSWER" among
    them; means are taken over what has one name (wordings, seeds).
    Both sides have the same answers, so what makes an answer likely whatever is asked cancels: an effect is
    seen that changes no answer (as in Balesni et al., arXiv 2411.16353).
    p = (1 + number of dealings with as high a mean) / (1 + draws).

    Errors: StatisticsError where no row has "shuffled:" log-probabilities, or groups do not close.
    """
    values: dict[str, dict[str, list[float]]] = {}
    own: dict[str, str] = {}
    for question, found in scored:
        scores = found or {}
        names = {label.partition(":")[2]: p for label, p in scores.items() if label.startswith("shuffled:")}
        right = [label for label in scores if label.startswith("correct:")]
        if not names or not right:
            continue
        own[question] = right[0].partition(":")[2]
        table = values.setdefault(question, {})
        for name, p in {**names, own[question]: scores[right[0]]}.items():
            table.setdefault(name, []).append(p)
    if not values:
        raise StatisticsError(
            'no row has "shuffled:" log-probabilities: ask items with candidates of that label'
        )
    groups: dict[frozenset[str], list[str]] = {}
    for prompt, table in values.items():
        groups.setdefault(frozenset(table), []).append(prompt)
    matrices = [_matrix(prompts, values, own) for prompts in groups.values()]
    right = sum(np.trace(matrix) for matrix in matrices)
    others = sum(matrix.sum() - np.trace(matrix) for matrix in matrices)
    questions = sum(map(len, matrices))
    pairs = sum(len(matrix) * (len(matrix) - 1) for matrix in matrices)
    if not pairs:
        raise StatisticsError("every question is alone in its group: give the rows of all questions")
    rng = np.random.default_rng(seed)
    dealt = sum(_dealt(matrix, draws, rng) for matrix in matrices)
    slack = 1e-9 * max(
        1.0, abs(right)
    )  # a dealing that is the true one must count, whatever the order of sums
    p = (1 + int(np.sum(dealt >= right - slack))) / (1 + draws)
    return Shuffled(float(right / questions - others / pairs), p, questions, len(matrices))


def _matrix(prompts: Sequence[str], values: Mapping, own: Mapping[str, str]) -> np.ndarray:
    """(question, question): mean log p that the row's question gives to the column's right answer."""
    return np.array([[np.mean(values[row][own[column]]) for column in prompts] for row in prompts])


def _dealt(matrix: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Sum of the log-probabilities in `draws` random dealings of the answers."""
    order = rng.permuted(np.tile(np.arange(len(matrix)), (draws, 1)), axis=1)
    return matrix[np.arange(len(matrix)), order].sum(axis=1)
