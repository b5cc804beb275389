"""Adapters of a pool, fitted on examples of a target: what they answer, beside what they have to beat.

    pool = read(FOLDER)                                  the kept lines of one base model
    pool.cell(32, "adaptive", pool="kin", ..)            one way of merging, over all targets
    difference(one, other)                               paired by question, tested over facts
    pool.claims("adaptive")                              what arXiv:2602.12323 says, judged

A target is a draw of names with a training seed. Its questions are all its facts, in wordings of which no
example is; of some facts an example is in another wording ("shown"), of the others none ("unseen").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from results import files
from results.rows import RowsError
from results.statistics import cluster_interval, group_bootstrap, holm, sign_flip

#: Which questions count: all, those about facts of which an example is, and the others.
ALL, SHOWN, UNSEEN = "all", "shown", "unseen"
#: Above this a difference over all claims of a page is none, Holm's correction made.
LEVEL = 0.05
#: Verdicts.
ABOVE, BELOW, UNDECIDED = "above", "below", "no clear difference"
#: The method whose answers are foretold; in a claim, the smallest number of adapters that were taken.
LAW, FEWEST = "mixture law", "fewest"
Line = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Key:
    """What tells cells apart. pool, rule, count: of the choice, None where there is none (base, new, ..)."""

    examples: int
    method: str
    control: str
    pool: str | None = None
    rule: str | None = None
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """One target. task: its questions. selected: the choice of adapters, None where there is none."""

    task: Line
    selected: Line | None
    measured: Line

    @property
    def target(self) -> str:
        """Which target it is."""
        return f"names {self.task['names']}, seed {self.task['seed']}"

    def mask(self, where: str) -> np.ndarray:
        """Which questions count."""
        shown = np.array(self.task["shown"], bool)
        return {ALL: np.ones_like(shown), SHOWN: shown, UNSEEN: ~shown}[where]

    def values(self, of: str, where: str = ALL) -> np.ndarray:
        """By question: "right", 0 or 1, or "loss", -log p of the answer in nats; NaN where it does not count.

        "foretold_right", "foretold_loss": what the mixture law said.
        """
        name = of.replace("loss", "logprob")
        found = np.array(self.measured[name], float)
        found = -found if name != of else found
        return np.where(self.mask(where), found, np.nan)

    @property
    def clusters(self) -> list[str]:
        """By question, the fact that it asks about."""
        return [f"{self.target} {cluster}" for cluster in self.task["clusters"]]


@dataclass(frozen=True, eq=False)
class Cell:
    """One way of merging with so many examples, over all targets."""

    key: Key
    answers: tuple[Answers, ...]

    def mean(self, of: str = "right", where: str = ALL) -> float:
        """The mean over questions and targets; NaN where no question counts."""
        values = self._values(of, where)
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    def interval(self, of: str = "right", where: str = ALL) -> tuple[float, float]:
        """95% bootstrap over facts of all targets."""
        values = self._values(of, where)
        clusters = [name for one in self.answers for name in one.clusters]
        kept = np.isfinite(values)
        return cluster_interval(values[kept], [n for n, k in zip(clusters, kept, strict=True) if k], seed=0)

    def explained(self, base: Cell) -> list[float]:
        """By target, the share of the base's loss on the examples that is gone."""
        losses = {one.target: one.measured["examples_loss"] for one in base.answers}
        return [1 - one.measured["examples_loss"] / losses[one.target] for one in self.answers]

    def _values(self, of: str, where: str) -> np.ndarray:
        return np.concatenate([one.values(of, where) for one in self.answers])


@dataclass(frozen=True)
class Difference:
    """One cell minus another on the same questions.

    low, high: 95% bootstrap over facts. p: sign flips over facts. targets: of each target. adjusted: p after
    Holm's correction over the claims of a page, p itself before.
    """

    difference: float
    low: float
    high: float
    p: float
    targets: tuple[float, ...]
    adjusted: float

    @property
    def points(self) -> str:
        """In percentage points, with the interval: "+12 [3, 20]"."""
        return f"{100 * self.difference:+.0f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def by_target(self) -> str:
        """In percentage points, target by target."""
        return ", ".join(f"{100 * value:+.0f}" for value in self.targets)

    @property
    def verdict(self) -> str:
        if self.adjusted >= LEVEL:
            return UNDECIDED
        return ABOVE if self.difference > 0 else BELOW


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim of the paper on one number of examples. expected: the verdicts on first - second it allows."""

    says: str
    examples: int
    first: Cell
    second: Cell
    found: Difference
    expected: tuple[str, ...]

    @property
    def judged(self) -> str:
        """A difference that is not clear shows nothing: it refutes no claim that there is none."""
        verdict = self.found.verdict
        if verdict == UNDECIDED:
            return "not refuted" if UNDECIDED in self.expected else "not shown"
        return "as claimed" if verdict in self.expected else "refuted"


def difference(first: Cell, second: Cell, of: str = "right", where: str = ALL) -> Difference:
    """first - second, question by question. Errors: RowsError where targets or questions are not the same."""
    theirs = {one.target: one for one in second.answers}
    if set(theirs) != {one.target for one in first.answers}:
        raise RowsError(f"{first.key} and {second.key} were not measured on the same targets: measure both")
    apart, clusters, targets = [], [], []
    for one in first.answers:
        other = theirs[one.target]
        if one.task["clusters"] != other.task["clusters"]:
            raise RowsError(f"{first.key} and {second.key} were asked other questions on {one.target}")
        values = one.values(of, where) - other.values(of, where)
        kept = np.isfinite(values)
        if kept.any():
            apart += list(values[kept])
            clusters += [name for name, k in zip(one.clusters, kept, strict=True) if k]
            targets.append(float(values[kept].mean()))
    if not apart:
        raise RowsError(f"no question of {first.key} is {where}: compare others")
    by_fact: dict[str, list[float]] = {}
    for value, name in zip(apart, clusters, strict=True):
        by_fact.setdefault(name, []).append(value)
    low, high = cluster_interval(apart, clusters, seed=0)
    p = sign_flip([float(np.mean(values)) for values in by_fact.values()]).p
    return Difference(float(np.mean(apart)), low, high, p, tuple(targets), p)


#: A claim, its two sides, and which verdicts on first - second agree with it. A side is recycled adapters, as
#: many taken by chance as there are cells of, under the method that is judged, but for what is said of it.
CLAIMS: Sequence[tuple[str, Line, Line, tuple[str, ...]]] = (
    (
        "Tuned weights are above the base where the target's own adapter is in the pool.",
        {"pool": "target"},
        {"control": "base"},
        (ABOVE,),
    ),
    ("They are without the target's own adapter.", {"pool": "kin"}, {"control": "base"}, (ABOVE,)),
    ("They are with strangers alone.", {"pool": "strangers"}, {"control": "base"}, (ABOVE,)),
    (
        "Without the target's own adapter they are not above a new adapter on the same examples.",
        {"pool": "kin"},
        {"control": "new"},
        (BELOW, UNDECIDED),
    ),
    (
        "Which adapters are taken matters little: by loss against by chance, of all but the target's own.",
        {"pool": "kin", "rule": "loss", "count": FEWEST},
        {"pool": "kin", "count": FEWEST},
        (UNDECIDED,),
    ),
    (
        "The same among strangers.",
        {"pool": "strangers", "rule": "loss", "count": FEWEST},
        {"pool": "strangers", "count": FEWEST},
        (UNDECIDED,),
    ),
    ("The target's own adapter in the pool decides.", {"pool": "target"}, {"pool": "kin"}, (ABOVE,)),
    (
        "Positive transfer needs a highly relevant adapter: one of half of the facts against strangers.",
        {"pool": "kin", "rule": "loss", "count": FEWEST},
        {"pool": "strangers", "rule": "loss", "count": FEWEST},
        (ABOVE,),
    ),
    (
        "Adapters drawn at random, beside the target's own, do as well as recycled ones.",
        {"pool": "target", "control": "drawn"},
        {"pool": "target"},
        (ABOVE, UNDECIDED),
    ),
    (
        "So do random ones of the recycled ones' norms, beside the target's own.",
        {"pool": "target", "control": "norms"},
        {"pool": "target"},
        (ABOVE, UNDECIDED),
    ),
    (
        "Adapters drawn at random do as well as recycled strangers, without the target's own.",
        {"pool": "strangers", "control": "drawn-alone"},
        {"pool": "strangers"},
        (ABOVE, UNDECIDED),
    ),
    (
        "So do random ones of the recycled ones' norms.",
        {"pool": "strangers", "control": "norms-alone"},
        {"pool": "strangers"},
        (ABOVE, UNDECIDED),
    ),
    (
        "The published control owes its level to the target's own adapter: with it against without it.",
        {"pool": "target", "control": "drawn"},
        {"pool": "strangers", "control": "drawn-alone"},
        (ABOVE,),
    ),
)


@dataclass(frozen=True)
class Rank:
    """Spearman's correlation with a 95% bootstrap over targets, and the mean distance; cells: how many.

    The interval is NaN for one target, all of it where one side is the same everywhere.
    """

    rank: float
    low: float
    high: float
    apart: float
    cells: int

    @property
    def words(self) -> str:
        """The correlation with its interval; a dash where one side is the same everywhere."""
        if math.isnan(self.rank):
            return "–"
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.rank:.2f}{interval}"


class Pool:
    """The lines of one base model."""

    def __init__(self, lines: Iterable[Line]):
        kinds: dict[str, list[Line]] = {}
        for line in lines:
            kinds.setdefault(line["kind"], []).append(line)
        self.tasks = {line["selected"]: line for line in kinds.get("task", ())}
        self.selected = {(line["selected"], *_choice(line)): line for line in kinds.get("selected", ())}
        self.measured = kinds.get("measured", [])

    @property
    def base(self) -> str:
        """The base model."""
        return str(next(iter(self.tasks.values()))["base"])

    @property
    def examples(self) -> list[int]:
        """How many examples there were, of what was measured."""
        return sorted({key.examples for key in self.cells})

    @property
    def targets(self) -> list[str]:
        """Draws of names with training seeds, of which something was measured."""
        return list(dict.fromkeys(one.target for cell in self.cells.values() for one in cell.answers))

    @property
    def size(self) -> int:
        """How many adapters a pool holds."""
        return max(len(line["pool"]) for line in self.tasks.values())

    @property
    def questions(self) -> int:
        """How many questions are asked of a target."""
        return max(len(line["shown"]) for line in self.tasks.values())

    @property
    def methods(self) -> list[str]:
        """How adapters that were taken are merged."""
        return list(dict.fromkeys(key.method for key in self.cells if key.pool))

    @property
    def choices(self) -> list[tuple[str, int | None]]:
        """How adapters are taken: rule and number, None for all; few first."""
        found = {(key.rule, key.count) for key in self.cells if key.rule}
        return sorted(found, key=lambda choice: (choice[1] or self.size, choice[0]))

    @cached_property
    def cells(self) -> dict[Key, Cell]:
        """Everything measured, by key."""
        found: dict[Key, list[Answers]] = {}
        for line in self.measured:
            task = self.tasks[line["selected"]]
            choice = _choice(line)
            key = Key(task["examples"], line["method"], line["control"], *choice)
            selected = self.selected.get((line["selected"], *choice))
            found.setdefault(key, []).append(Answers(task, selected, line))
        return {
            key: Cell(key, tuple(several))
            for key, several in sorted(found.items(), key=lambda kv: repr(kv[0]))
        }

    def select(self, **wanted: object) -> list[Cell]:
        """The cells whose keys have these values."""
        return [c for key, c in self.cells.items() if all(getattr(key, k) == v for k, v in wanted.items())]

    def cell(self, examples: int, method: str, control: str = "recycled", **choice: object) -> Cell:
        """One cell. Errors: RowsError unless there is exactly one."""
        several = self.select(examples=examples, method=method, control=control, **choice)
        if len(several) != 1:
            raise RowsError(f"{len(several)} cells of {method}, {control} with {choice}: one is needed")
        return several[0]

    def counts(self, method: str) -> list[int]:
        """How many adapters were taken by chance under a method."""
        return sorted({k.count for k in self.cells if k.method == method and k.rule == "random" and k.count})

    def single(self, examples: int, control: str) -> Cell:
        """What needs no choice: base, target, kin, new, .. Errors: RowsError where it was not measured."""
        several = self.select(examples=examples, control=control, pool=None)
        if not several:
            raise RowsError(f"{control} was not measured with {examples} examples: run recycle to its end")
        return several[0]

    def claims(self, method: str) -> list[Claim]:
        """The paper's claims on a method, for every number of examples; Holm's correction is over all.

        Those of which a side was not measured are left out.
        """
        found = []
        for says, first, second, expected in CLAIMS:
            for examples in self.examples:
                sides = [self.side(examples, method, side) for side in (first, second)]
                if all(sides):
                    one, other = (cell for several in sides for cell in several)
                    found.append(Claim(says, examples, one, other, difference(one, other), expected))
        adjusted = holm([one.found.p for one in found])
        return [
            replace(one, found=replace(one.found, adjusted=p)) for one, p in zip(found, adjusted, strict=True)
        ]

    def side(self, examples: int, method: str, wanted: Line) -> list[Cell]:
        """The cell of one side of a claim (CLAIMS), in a list; none where it was not measured."""
        if "pool" not in wanted:
            return self.select(examples=examples, pool=None, **wanted)
        counts = self.counts(method)
        count = counts[0 if wanted.get("count") == FEWEST else -1] if counts else None
        asked = {"control": "recycled", "rule": "random", **wanted, "count": count}
        return self.select(examples=examples, method=method, **asked)

    def theory(self, method: str, pools: Sequence[str], predictor: str = "overlap") -> Rank:
        """The share of the examples that the toy says the taken adapters explain, against 1 - loss / base's.

        predictor: "overlap" (toytransformer.spans.captured) or "by_chance". Recycled adapters alone.
        """
        said, found, targets = [], [], []
        for cell in self.select(method=method, control="recycled"):
            if cell.key.pool in pools:
                base = self.single(cell.key.examples, "base")
                for one, share in zip(cell.answers, cell.explained(base), strict=True):
                    assert one.selected is not None
                    said.append(one.selected[predictor])
                    found.append(share)
                    targets.append(one.target)
        return _rank(said, found, targets)

    def law(self, of: str, pools: Sequence[str]) -> Rank:
        """What the mixture law says of the questions, "right" or "loss", against what was measured.

        Of every cell that it chose the weights of, controls too.
        """
        said, found, targets = [], [], []
        for cell in self.select(method=LAW):
            if cell.key.pool in pools:
                for one in cell.answers:
                    said.append(float(one.values(f"foretold_{of}").mean()))
                    found.append(float(one.values(of).mean()))
                    targets.append(one.target)
        return _rank(said, found, targets)


def read(folder: Path) -> Pool:
    """The kept lines of a base model. Errors: RowsError as files.read, and where there are none."""
    lines = files.read(folder, ["recycled"]).recycled
    if not lines:
        raise RowsError(f"'{folder}' has no line on recycled adapters: keep a run of recycle there")
    return Pool(lines)


def _choice(line: Line) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in ("pool", "rule", "count"))


def _rank(said: Sequence[float], found: Sequence[float], targets: Sequence[str]) -> Rank:
    one, other = np.array(said), np.array(found)

    def correlation(rows: np.ndarray) -> list[float]:
        told, measured = one[rows], other[rows]
        if np.ptp(told) == 0 or np.ptp(measured) == 0:
            return [math.nan]
        return [float(stats.spearmanr(told, measured).statistic)]

    low = high = math.nan
    if len(set(targets)) > 1:
        ((low, high),) = group_bootstrap(correlation, targets, seed=0)
    every = np.arange(len(one))
    return Rank(correlation(every)[0], low, high, float(np.mean(np.abs(one - other))), len(one))
