"""A cell: the answers of one library under one merge to one group of questions, asked in one way.

It is what tables, pages and figures count. Its numbers are over items, with training seeds kept apart: a
share is the mean over seeds of the share over items, its interval that of one seed's items. Another draw of
names asks about others: its items and clusters are further ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl

from toytransformer import interrupts

interrupts.again_at_once()  # Polars takes Ctrl-C when it is imported

from results import statistics
from results.rows import BASE, RANDOM, CellInfo, Gates, Item, canonical

#: Adapters below this on their own task leave open whether a merge took away what they never had.
OWN_TASK = 0.95
#: What marks a cell with such an adapter, in every table and figure, and what that says.
DAGGER = "†"
DAGGER_NOTE = f"{DAGGER} an adapter is under {OWN_TASK:.0%} right on its own task, alone"
#: The outcome that is right.
RIGHT = "correct"
#: A name is garbled that is so many letters or fewer, but one at least, from an answer that was trained: the
#: scorer's mark EDIT_DISTANCE says so of answers that are none of the other outcomes.
EDIT_DISTANCE, GARBLED = "edit_distance", 2

Seed = int | None


class Rows(Protocol):
    """What a cell needs of the rows that it is a part of; results.frame.Frame has it."""

    @property
    def rows(self) -> pl.DataFrame: ...

    @property
    def columns(self) -> Mapping[str, list[object]]: ...

    @property
    def items(self) -> Mapping[tuple[str, str], Item]: ...

    @property
    def outcomes(self) -> tuple[str, ...]: ...

    @property
    def marks(self) -> tuple[str, ...]: ...

    def own_task(self, info: CellInfo) -> float | None: ...


@dataclass(frozen=True, eq=False)
class Cell:
    """Rows of one frame.

    infos: what is constant, one for each training seed and draw of names. index: numbers of its rows in the
    frame. prediction: what the toy says of the same questions (a mapping with "shares", "margin", ..), None
    where there is none.
    """

    infos: tuple[CellInfo, ...]
    group: str
    ask: str
    frame: Rows = field(repr=False)
    index: np.ndarray = field(repr=False)
    prediction: Mapping[str, Any] | None = field(default=None, repr=False)

    # ---- what it is ----

    @property
    def info(self) -> CellInfo:
        """The fields that tell it from others; of those that differ between seeds, the first one's."""
        return self.infos[0]

    @property
    def question_kind(self) -> str:
        """Group and way of asking: "sums/steps"."""
        return f"{self.group}/{self.ask}"

    @property
    def names(self) -> tuple[int, ...]:
        """The draws of names that it is over."""
        return tuple(dict.fromkeys(info.names for info in self.infos if info.names is not None))

    @property
    def trained(self) -> bool:
        """Whether trained adapters are merged: neither the base alone nor random ones."""
        return bool(self.info.library) and self.info.control not in (BASE, RANDOM)

    def field(self, name: str) -> object:
        """A field of CellInfo, `group` or `ask`; mappings as plain ones."""
        value = getattr(self if name in ("group", "ask") else self.info, name)
        return dict(value) if isinstance(value, Mapping) else value

    def key(self, *without: str) -> str:
        """What tells it from others but for training seed and these fields, as text that can be compared.

        Fields that follow from those left out (spec_hash from rule, ..) have to be named too.
        """
        fields = {**self.info.identity(), "group": self.group, "ask": self.ask}
        return canonical({name: v for name, v in fields.items() if name not in ("seed", *without)})

    @cached_property
    def chosen(self) -> Mapping[str, tuple[Any, ...]]:
        """What was chosen on development items, by name: the distinct values, in order."""
        names = dict.fromkeys(name for info in self.infos for name in info.chosen)
        return {n: tuple(sorted({i.chosen[n] for i in self.infos if n in i.chosen})) for n in names}

    # ---- how its adapters came out alone ----

    @cached_property
    def own_task(self) -> float | None:
        """The least share right on its own task of any adapter in the library, None where nobody says."""
        shares = (self.frame.own_task(info) for info in self.infos)
        return min((share for share in shares if share is not None), default=None)

    @property
    def undertrained(self) -> bool:
        """Whether an adapter is under OWN_TASK on its own task: no merge took away what it lacks."""
        return self.own_task is not None and self.own_task < OWN_TASK

    @property
    def dagger(self) -> str:
        """DAGGER where it is undertrained, else nothing."""
        return DAGGER if self.undertrained else ""

    # ---- its rows ----

    @cached_property
    def rows(self) -> pl.DataFrame:
        """Its rows, a line an answer, with the columns of the frame."""
        return self.frame.rows[self.index]

    def column(self, name: str) -> list[Any]:
        """One column of its rows. Items and clusters of a draw of names but the first, 0, have its number."""
        values = self._raw(name)
        draws = {info.key: info.names for info in self.infos}
        if name not in ("item", "cluster") or not any(draws.values()):
            return values
        numbers = (draws[key] for key in self._raw("cell"))
        return [f"{value}, names {n}" if n else value for value, n in zip(values, numbers, strict=True)]

    def _raw(self, name: str) -> list[Any]:
        values = self.frame.columns[name]
        return [values[number] for number in self.index]

    @cached_property
    def questions(self) -> list[Item]:
        """The item of each row."""
        pairs = zip(self._raw("items"), self._raw("item"), strict=True)
        return [self.frame.items[pair] for pair in pairs]

    def texts(self) -> dict[tuple[Seed, str], str | None]:
        """What was written, by training seed and item."""
        columns = (self.column(name) for name in ("seed", "item", "text"))
        return {(seed, item): text for seed, item, text in zip(*columns, strict=True)}

    # ---- counts ----

    @cached_property
    def items(self) -> int:
        """How many questions, each in each of its wordings."""
        return len(set(self.column("item")))

    @cached_property
    def clusters(self) -> int:
        """How many of what is resampled whole."""
        return len(set(self.column("cluster")))

    @cached_property
    def outcomes(self) -> Mapping[str, float]:
        """Share of each outcome, over all rows, in the order of the frame."""
        names = self.frame.outcomes
        columns = {name: self.column(f"shares.{name}") for name in names}
        return {name: _mean(values) for name, values in columns.items() if None not in values}

    def values(self, of: str = RIGHT) -> dict[Seed, dict[str, float]]:
        """By training seed and item the share of an outcome, or a mark as a number.

        Items of which a mark cannot be said are left out. Errors: StatisticsError on another name.
        """
        if of in self.frame.outcomes:
            column = f"shares.{of}"
        elif of in self.frame.marks:
            column = f"marks.{of}"
        else:
            names = ", ".join((*self.frame.outcomes, *self.frame.marks))
            raise statistics.StatisticsError(f"{of!r} cannot be counted: use one of {names}")
        found: dict[Seed, dict[str, float]] = {}
        for seed, item, value in zip(
            self.column("seed"), self.column("item"), self.column(column), strict=True
        ):
            if value is not None:
                found.setdefault(seed, {})[item] = float(value)
        return found

    def by_cluster(self, of: str = RIGHT) -> dict[str, list[float]]:
        """By cluster the mean over seeds of each of its items."""
        by_item: dict[str, list[float]] = {}
        for table in self.values(of).values():
            for item, value in table.items():
                by_item.setdefault(item, []).append(value)
        clusters = dict(zip(self.column("item"), self.column("cluster"), strict=True))
        found: dict[str, list[float]] = {}
        for item, values in by_item.items():
            found.setdefault(clusters[item], []).append(_mean(values))
        return found

    @cached_property
    def seeds(self) -> Mapping[Seed, float]:
        """Share of right answers by training seed."""
        return {seed: _mean(table.values()) for seed, table in self.values().items()}

    @property
    def share(self) -> float:
        """Share of right answers: mean over seeds."""
        return _mean(self.seeds.values())

    @cached_property
    def _interval(self) -> tuple[float, float]:
        return self.interval()

    @property
    def low(self) -> float:
        return self._interval[0]

    @property
    def high(self) -> float:
        return self._interval[1]

    def share_counted(self, of: str = RIGHT) -> float:
        """Share of an outcome, or of the rows that have a mark. Errors: as `values`."""
        if of == RIGHT:
            return self.share
        return self.outcome(of) if of in self.frame.outcomes else self.mark(of) or 0.0

    def interval(self, of: str = RIGHT) -> tuple[float, float]:
        """Wilson's 95% interval of an outcome's share, or a mark's, over the items of one seed."""
        return statistics.wilson(min(self.share_counted(of), 1.0) * self.items, self.items)

    def cluster_interval(
        self, of: str = RIGHT, *, draws: int = 999, seed: int = 0
    ) -> tuple[float, float] | None:
        """Bootstrap interval of a share, whole clusters drawn; None where there is one cluster only."""
        clusters = self.by_cluster(of)
        if len(clusters) < 2:
            return None
        pairs = [(value, name) for name, values in clusters.items() for value in values]
        return statistics.cluster_interval(
            [value for value, _ in pairs], [name for _, name in pairs], seed=seed, draws=draws
        )

    @cached_property
    def answered(self) -> frozenset[tuple[Seed, str]]:
        """Which items were answered under which training seeds."""
        return frozenset(zip(self.column("seed"), self.column("item"), strict=True))

    def differences(self, other: Cell, of: str = RIGHT) -> dict[str, float]:
        """By cluster the mean of its values, over wordings and seeds, minus that of another cell.

        Errors: StatisticsError where the cells do not have the same clusters.
        """
        own, others = self.by_cluster(of), other.by_cluster(of)
        if lone := sorted(own.keys() ^ others.keys()):
            raise statistics.StatisticsError(
                f"only one of two cells asks about '{lone[0]}' ({len(lone)} such): compare the same questions"
            )
        return {cluster: _mean(values) - _mean(others[cluster]) for cluster, values in own.items()}

    def against(self, other: Cell, of: str = RIGHT) -> statistics.SignFlip:
        """Whether it differs from another cell on the same questions, tested by cluster."""
        return statistics.sign_flip(list(self.differences(other, of).values()))

    def outcome(self, name: str) -> float:
        """Share of one outcome, 0 where it is none of this domain's."""
        return self.outcomes.get(name, 0.0)

    @property
    def most_frequent(self) -> str:
        """The outcome with the largest share; of equal ones the first."""
        return max(self.outcomes, key=lambda name: self.outcomes[name])

    @cached_property
    def commonest(self) -> list[float]:
        """Shares of distinct answers among the rows that name one, the commonest first: collapse shows."""
        counts = Counter(answer for answer in self.column("answer") if answer is not None)
        return [count / counts.total() for _, count in counts.most_common()]

    @cached_property
    def entropy(self) -> float | None:
        """Entropy of the answers named, -sum p log p in nats; None where none is named.

        The mean over training seeds and draws of names. n answers equally often have log n; 0 is a collapse
        onto one.
        """
        answers: dict[str, Counter[str]] = {}
        for cell, answer in zip(self._raw("cell"), self.column("answer"), strict=True):
            if answer is not None:
                answers.setdefault(cell, Counter())[answer] += 1
        return _mean(map(_entropy, answers.values())) if answers else None

    @cached_property
    def garbled(self) -> float | None:
        """Share of all rows whose answer is a garbled name; None where the scorer does not say."""
        if EDIT_DISTANCE not in self.frame.marks:
            return None
        distances = self.column(f"marks.{EDIT_DISTANCE}")
        return _mean(distance is not None and 0 < distance <= GARBLED for distance in distances)

    def of_seeds(self, other: Cell) -> Cell:
        """The same cell, of those training seeds only that another has.

        Errors: StatisticsError where they share none.
        """
        seeds = {info.seed for info in other.infos}
        infos = tuple(info for info in self.infos if info.seed in seeds)
        if not infos:
            raise statistics.StatisticsError(f"{self.info.task} and {other.info.task} share no training seed")
        inside = np.array([seed in seeds for seed in self.column("seed")])
        return replace(self, infos=infos, index=self.index[inside])

    def mark(self, name: str) -> float | None:
        """Mean of a mark over the rows of which it can be said, None where there are none."""
        if name not in self.frame.marks:
            return None
        known = [float(value) for value in self.column(f"marks.{name}") if value is not None]
        return _mean(known) if known else None

    def flag(self, name: str) -> float:
        """Share of all rows that have a mark; those of which it cannot be said count as without."""
        return self.share_of(lambda row: bool(row[f"marks.{name}"]))

    def share_of(self, says: Callable[[Mapping[str, object]], bool]) -> float:
        """Share of the rows of which `says` is true; a row is a mapping with the frame's columns."""
        rows = self.rows.iter_rows(named=True)
        return sum(says(row) for row in rows) / len(self.index)

    def wins(self, other: Cell) -> str:
        """In how many of the training seeds that both have more is right than in another cell: "2 of 3"."""
        both = [seed for seed in self.seeds if seed in other.seeds]
        return f"{sum(self.seeds[seed] > other.seeds[seed] for seed in both)} of {len(both)}"

    # ---- log-probabilities ----

    @cached_property
    def logprobs(self) -> list[Mapping[str, float] | None]:
        """Of the candidate answers of each row, by "role:answer"; None where they were not scored."""
        return [None if text is None else json.loads(text) for text in self.column("logprobs")]

    @cached_property
    def gates(self) -> list[Gates | None]:
        """How each row's answer was routed: by place, adapter and block; None where it was not."""
        return [None if text is None else json.loads(text) for text in self.column("gates")]

    def gate(self, place: str) -> Mapping[str, float]:
        """Mean weight of each adapter at a place, over rows and blocks; empty where there is none."""
        weights: dict[str, list[float]] = {}
        for gates in self.gates:
            for adapter, by_block in (gates or {}).get(place, {}).items():
                weights.setdefault(adapter, []).append(_mean(by_block))
        return {adapter: _mean(values) for adapter, values in weights.items()}

    @cached_property
    def scored(self) -> Mapping[str, Mapping[str, float]]:
        """By role and cluster the mean log-probability of its answers, over wordings, then over seeds.

        Roles at a place of an answer step by step are "place/role".
        """
        tables: dict[str, dict[str, dict[Seed, list[float]]]] = {}
        for seed, cluster, scores in zip(
            self.column("seed"), self.column("cluster"), self.logprobs, strict=True
        ):
            for label, value in (scores or {}).items():
                role = label.partition(":")[0]
                tables.setdefault(role, {}).setdefault(cluster, {}).setdefault(seed, []).append(value)
        return {
            role: {cluster: _mean(map(_mean, seeds.values())) for cluster, seeds in clusters.items()}
            for role, clusters in tables.items()
        }

    def logprob(self, role: str) -> tuple[float, float, float]:
        """Mean log-probability of a role's answer and its 95% bootstrap interval over clusters."""
        values = list(self.scored[role].values())
        return _mean(values), *statistics.cluster_interval(values, range(len(values)), seed=0, draws=999)

    def by_draw(self) -> list[float]:
        """Share of right answers by draw of names, over training seeds."""
        drawn = {info.key: info.names for info in self.infos}
        values: dict[int | None, list[float]] = {}
        for key, share in zip(self._raw("cell"), self._raw(f"shares.{RIGHT}"), strict=True):
            values.setdefault(drawn[key], []).append(share)
        return [_mean(shares) for shares in values.values()]

    def shown(self, of: str = RIGHT) -> str:
        """A share with Wilson's interval, in percent."""
        low, high = self.interval(of)
        return f"{percent(self.share_counted(of))}% [{percent(low)}, {percent(high)}]"

    def __str__(self) -> str:
        return f"{percent(self.share)}%{self.dagger} [{percent(self.low)}, {percent(self.high)}]"


def percent(share: float) -> str:
    """A share in percent, with a decimal where one is there: 7.8, 100."""
    return f"{round(100 * share, 1):g}"


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return math.fsum(n / total * math.log(total / n) for n in counts.values())


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
