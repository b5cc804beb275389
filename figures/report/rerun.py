"""A run beside the committed rows: the same questions to the same model after the same training.

Answers are compared word for word. Where they differ, each outcome has McNemar's exact test over the
questions of a cell, with p-values adjusted for all cells and outcomes (Holm). Machines round differently,
which flips an answer one way as easily as the other. What is significant is more than that: such a run has
not reproduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from figures.measured.cells import Place
from figures.report.sources import Answers, Key, Source
from llm_experiments.asking.statistics import McNemar, holm, mcnemar_exact
from toytransformer.compositions import OUTCOMES

#: The most chance of blaming a run that only rounds otherwise.
LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """One cell of a run and its committed counterpart.

    here, there: share right. items: questions both have; lacking: that only one of them has. same: answers
    that agree word for word. tests: by outcome, "first" being the run. holm: adjusted p, by outcome.
    """

    place: Place
    seed: int | None
    here: float
    there: float
    items: int
    lacking: int
    same: int
    tests: Mapping[str, McNemar]
    holm: Mapping[str, float]

    @property
    def outcome(self) -> str:
        """The outcome that differs most."""
        return min(self.tests, key=lambda name: (self.tests[name].p, name != "correct"))

    @property
    def equal(self) -> bool:
        return not self.lacking and self.same == self.items

    @property
    def differs(self) -> bool:
        """More than rounding explains."""
        return bool(self.lacking) or self.holm[self.outcome] < LEVEL


@dataclass(frozen=True)
class Rerun:
    """A run's cells that have a committed counterpart, what differs most first; alone: how many have none."""

    name: str
    pairs: tuple[Pair, ...]
    alone: int

    @property
    def equal(self) -> int:
        return sum(pair.equal for pair in self.pairs)

    @property
    def differing(self) -> int:
        return sum(pair.differs for pair in self.pairs)

    @property
    def answers(self) -> int:
        return sum(pair.items for pair in self.pairs)

    @property
    def same(self) -> int:
        return sum(pair.same for pair in self.pairs)

    @property
    def told(self) -> str:
        """In a sentence whether it reproduced."""
        if not self.pairs:
            return "there are no committed rows of the same cells to compare it with"
        words = f"{self.same} of {self.answers} answers word for word"
        if self.differing:
            return f"{self.differing} of {len(self.pairs)} cells did not reproduce ({words})"
        return f"it reproduced the committed rows ({words})"


def compare(run: Source, committed: Iterable[Source]) -> Rerun:
    """The run's cells beside those of the committed files."""
    there: dict[Key, Answers] = {}
    for source in committed:
        there |= source.answers
    pairs = [_pair(key, mine, there[key]) for key, mine in run.answers.items() if key in there]
    pairs = sorted(_adjusted(pairs), key=lambda pair: (not pair.differs, pair.equal, pair.holm[pair.outcome]))
    return Rerun(run.name, tuple(pairs), len(run.answers) - len(pairs))


def _pair(key: Key, here: Answers, there: Answers) -> Pair:
    both = here.keys() & there.keys()
    texts = [(here[item], there[item]) for item in sorted(both, key=str)]
    tests = {
        name: mcnemar_exact([a == name for (_, a), _ in texts], [b == name for _, (_, b) in texts])
        if texts
        else McNemar(0, 0, 0, 0, 1.0)
        for name in OUTCOMES
    }
    return Pair(
        *key,
        here=_right(here),
        there=_right(there),
        items=len(both),
        lacking=len(here.keys() ^ there.keys()),
        same=sum(a == b for a, b in texts),
        tests=tests,
        holm={},
    )


def _right(answers: Answers) -> float:
    return sum(outcome == "correct" for _, outcome in answers.values()) / len(answers)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    p_values = iter(holm([test.p for pair in pairs for test in pair.tests.values()]))
    return [replace(pair, holm={name: next(p_values) for name in pair.tests}) for pair in pairs]
