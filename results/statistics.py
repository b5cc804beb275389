"""What measured shares are worth: intervals, paired tests, seeds kept apart from items.

Three sources of variation, never pooled: items (questions; Wilson intervals), triplets (two templates ask
about one triplet; resampled whole) and training seeds (each a value of its own, with its spread).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from toytransformer.compositions import OUTCOMES, Record

#: What can be counted besides the five outcomes.
FLAGS = ("exact", "contains")

Key = tuple[str, str, Any]


class StatisticsError(ValueError):
    """Rows that cannot be compared or counted; the message names one and says what to do."""


# --- rows ---------------------------------------------------------------------------------------------------


def value(record: Record, of: str = "correct") -> float:
    """A row's share of an outcome, or 1.0 or 0.0 for the flags "exact" and "contains"."""
    if of in OUTCOMES:
        return float(record.shares.get(of, 0.0))
    if of not in FLAGS:
        raise StatisticsError(f"{of!r} cannot be counted: use one of {', '.join((*OUTCOMES, *FLAGS))}")
    if (flag := getattr(record, of)) is None:
        raise StatisticsError(f"'{record.prompt}' has no {of!r}: leave rows without a right answer out")
    return float(flag)


def item(record: Record) -> Key:
    """What makes two rows one item: prompt, decode and template."""
    return (record.prompt, record.decode, record.regime.get("template"))


def triplet(record: Record) -> str:
    """The chain a row asks about: its entity without the letter, so that x3 and y3 are one, as are 3_14."""
    entity = record.prompt.split()[0]
    return re.sub(r"^(bridge_)?[A-Za-z]+(?=\d)", r"\1", entity)


def lookup(record: Record, name: str) -> Any:
    """A field of a record, or a key of its regime, setting or options, in this order; None if none has it."""
    for place in (record.__dict__, record.regime, record.setting, record.options):
        if name in place:
            return place[name]
    return None


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
    z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
    share, rest = successes / items, z2 / items
    middle = (share + rest / 2) / (1 + rest)
    half = math.sqrt(rest * (share * (1 - share) + rest / 4)) / (1 + rest)
    return (
        0.0 if successes == 0 else max(0.0, middle - half),
        1.0 if successes == items else min(1.0, middle + half),
    )


def cluster_interval(
    values: Sequence[float],
    clusters: Sequence[Any],
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
    sums: dict[Any, list[float]] = {}
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


# --- tables -------------------------------------------------------------------------------------------------


def summary(
    records: Iterable[Record],
    *,
    by: Sequence[str] = ("composition", "rule", "group", "decode"),
    of: str = "correct",
    seed_key: str = "seed",
    confidence: float = 0.95,
    draws: int = 9999,
    bootstrap_seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for each combination of `by`, in order of first appearance.

    Keys: those of `by` (see lookup), then
        share: mean over training seeds of the share over items;
        low, high: Wilson's interval for that share over the items of one seed (more seeds leave its width);
        cluster_low, cluster_high: bootstrap over triplets of the same share, None below two triplets;
        items, triplets: how many are distinct;
        seeds: share by seed; seed_sd: their standard deviation (n - 1), None for one; seed_min, seed_max.
    Errors: StatisticsError on a name in `by` that no record has, and where one seed has an item twice (name
    in `by` what tells the rows apart).
    """
    records = list(records)
    for name in by:
        if records and all(lookup(record, name) is None for record in records):
            raise StatisticsError(f"no row has {name!r}: use a field, or a key of regime, setting or options")
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(_plain(lookup(record, name)) for name in by), []).append(record)
    return [
        dict(zip(by, key, strict=True))
        | _row(rows, of, seed_key, confidence, draws, bootstrap_seed, dict(zip(by, key, strict=True)))
        for key, rows in groups.items()
    ]


def _row(rows, of, seed_key, confidence, draws, bootstrap_seed, label) -> dict[str, Any]:
    by_seed: dict[Any, dict[Key, float]] = {}
    cluster: dict[Key, str] = {}
    for record in rows:
        table = by_seed.setdefault(lookup(record, seed_key), {})
        if item(record) in table:
            raise StatisticsError(
                f"{_named(item(record))} is there twice in {label}: name in `by` what tells the rows apart"
            )
        table[item(record)] = value(record, of)
        cluster[item(record)] = triplet(record)
    shares = {seed: math.fsum(table.values()) / len(table) for seed, table in by_seed.items()}
    share = math.fsum(shares.values()) / len(shares)
    low, high = wilson(min(share, 1.0) * len(cluster), len(cluster), confidence)
    means = {
        key: math.fsum(found := [table[key] for table in by_seed.values() if key in table]) / len(found)
        for key in cluster
    }
    triplets = len(set(cluster.values()))
    around = (None, None)
    if triplets > 1:
        around = cluster_interval(
            list(means.values()),
            [cluster[key] for key in means],
            seed=bootstrap_seed,
            confidence=confidence,
            draws=draws,
        )
    return {
        "share": share,
        "low": low,
        "high": high,
        "cluster_low": around[0],
        "cluster_high": around[1],
        "items": len(cluster),
        "triplets": triplets,
        "seeds": shares,
        "seed_sd": float(np.std(list(shares.values()), ddof=1)) if len(shares) > 1 else None,
        "seed_min": min(shares.values()),
        "seed_max": max(shares.values()),
    }


def _plain(found: Any) -> Any:
    """A value that can be a key."""
    return tuple(found) if isinstance(found, list | tuple) else found


# --- paired tests -------------------------------------------------------------------------------------------


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

    p is 1 where no item is discordant. Errors: StatisticsError on different lengths and no items.
    """
    if len(first) != len(second) or not len(first):
        raise StatisticsError(f"{len(first)} and {len(second)} items: give the same items, at least one")
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(pairs.count((True, True)), only_first, only_second, pairs.count((False, False)), p)


def paired(
    first: Iterable[Record], second: Iterable[Record], of: str = "correct"
) -> dict[Key, tuple[float, float]]:
    """Both rules' values by item (prompt, decode, template), in the first's order; rows of one training seed.

    Errors: StatisticsError naming an item that one side lacks or has twice.
    """
    tables = [_by_item(rows, side, of) for rows, side in ((first, "first"), (second, "second"))]
    for here, there, side in ((*tables, "second"), (*reversed(tables), "first")):
        if missing := [key for key in here if key not in there]:
            raise StatisticsError(
                f"the {side} rows lack {_named(missing[0])} ({len(missing)} missing): compare the same items"
            )
    return {key: (tables[0][key], tables[1][key]) for key in tables[0]}


def compare(
    first: Iterable[Record], second: Iterable[Record], of: str = "correct", *, seed_key: str = "seed"
) -> dict[Any, McNemar]:
    """McNemar's test of two rules on the same items, one for each training seed, in the first rows' order.

    A share counts as right from 1/2 on. Errors: StatisticsError naming a seed or an item that one side lacks.
    """
    sides: list[dict[Any, list[Record]]] = [{}, {}]
    for rows, side in zip((first, second), sides, strict=True):
        for record in rows:
            side.setdefault(lookup(record, seed_key), []).append(record)
    if lone := [seed for seed in (*sides[0], *sides[1]) if seed not in sides[0] or seed not in sides[1]]:
        raise StatisticsError(f"only one side has rows of seed {lone[0]!r}: compare the same seeds")
    found = {}
    for seed in sides[0]:
        table = paired(sides[0][seed], sides[1][seed], of).values()
        found[seed] = mcnemar_exact([a >= 0.5 for a, _ in table], [b >= 0.5 for _, b in table])
    return found


def difference_interval(
    first: Iterable[Record], second: Iterable[Record], of: str = "correct", *, seed: int, **options: Any
) -> tuple[float, float]:
    """Bootstrap interval, over triplets, of the first's share minus the second's on the same items."""
    first = list(first)
    table = paired(first, second, of)
    chains = {item(record): triplet(record) for record in first}
    return cluster_interval(
        [a - b for a, b in table.values()], [chains[key] for key in table], seed=seed, **options
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: max over j <= i of (n - j) p_(j), at most 1."""
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise StatisticsError(f"{wrong[0]!r} is no p-value: give numbers from 0 to 1")
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * float(p_values[index])))
        adjusted[index] = worst
    return adjusted


def _by_item(rows: Iterable[Record], side: str, of: str) -> dict[Key, float]:
    table: dict[Key, float] = {}
    for record in rows:
        if item(record) in table:
            raise StatisticsError(
                f"the {side} rows have {_named(item(record))} twice: give rows of one rule and one seed"
            )
        table[item(record)] = value(record, of)
    return table


def _named(key: Key) -> str:
    prompt, decode, template = key
    return f"'{prompt}' ({decode}, template {template})"


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


def shuffled_baseline(records: Iterable[Record], *, seed: int, draws: int = 9999) -> Shuffled:
    """The right answers' log-probabilities against the same answers dealt to other questions.

    Both sides have the same answers, so what makes an answer likely whatever is asked cancels: an effect is
    seen that changes no answer (as in the two-hop curse of Balesni et al., arXiv 2411.16353). Values are
    means over templates and seeds. p = (1 + number of dealings with as high a mean) / (1 + draws).

    Errors: StatisticsError where no row has "shuffled:" log-probabilities, or groups do not close.
    """
    values: dict[str, dict[str, list[float]]] = {}
    own: dict[str, str] = {}
    for record in records:
        scored = record.logprobs or {}
        names = {label.partition(":")[2]: p for label, p in scored.items() if label.startswith("shuffled:")}
        right = [label for label in scored if label.startswith("correct:")]
        if not names or not right:
            continue
        own[record.prompt] = right[0].partition(":")[2]
        table = values.setdefault(record.prompt, {})
        for name, p in {**names, own[record.prompt]: scored[right[0]]}.items():
            table.setdefault(name, []).append(p)
    if not values:
        raise StatisticsError(
            'no row has "shuffled:" log-probabilities: measure with score_hops and group >= 2'
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
