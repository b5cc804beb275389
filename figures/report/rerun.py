"""A run beside the committed rows: the same questions to the same model after the same training.

Answers are compared word for word, and only a run whose answers all agree has reproduced. Where they differ,
each outcome has an exact sign test over the chains of a cell, with p-values adjusted for all cells and
outcomes (Holm). A chain is one unit, as its wordings are answered alike. The test finds what chance does not
explain; it does not say that the training was the same: another training seed may pass it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from figures.reading import nameless
from figures.report.sources import Source
from results.cells import RIGHT, Cell
from results.frame import Frame
from results.rows import Scalar
from results.statistics import McNemar, holm, mcnemar_exact

#: A cell of one training seed whatever its model is called, its group of questions and how they were asked.
Key = tuple[str, str, str]
#: By item the text, its outcome and its cluster.
Answers = Mapping[str, tuple[str | None, str, str]]

#: Adjusted p-values below this one count as a difference.
LEVEL = 0.05
#: Verdicts on a cell and on a run, from the worst.
DIFFERS, WORDS, IDENTICAL = "differs", "other words", "identical"


@dataclass(frozen=True)
class Pair:
    """One cell of a run and its committed counterpart, of one training seed.

    here, there: share right. items: questions both have; lacking: that only one of them has. same: answers
    that agree word for word. tests: by outcome, in how many chains more wordings have it in the run ("first")
    or in the committed rows. holm: adjusted p, by outcome.
    """

    cell: Cell
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
        return min(self.tests, key=lambda name: (self.tests[name].p, name != RIGHT))

    @property
    def verdict(self) -> str:
        if self.lacking or self.holm[self.outcome] < LEVEL:
            return DIFFERS
        return IDENTICAL if self.same == self.items else WORDS


@dataclass(frozen=True)
class Rerun:
    """A run's cells that have a committed counterpart, what differs most first.

    alone: how many cells have none. otherwise: how many have one for which another value was chosen (Arrow's
    temperature), so that it is another merge. empty: whether the run holds nothing at all.
    """

    name: str
    pairs: tuple[Pair, ...]
    alone: int
    otherwise: int
    empty: bool

    def count(self, verdict: str) -> int:
        """How many of its cells have this verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)

    @property
    def failed(self) -> bool:
        return self.empty or bool(self.count(DIFFERS))

    @property
    def sentence(self) -> str:
        """What came out, in a sentence."""
        if self.empty:
            return "nothing was measured"
        if not self.pairs:
            return "there are no committed rows of the same cells to compare it with"
        same, answers = (sum(getattr(pair, name) for pair in self.pairs) for name in ("same", "items"))
        words = f"{same} of {answers} answers are the committed ones word for word"
        if self.otherwise:
            words += f" ({self.otherwise} cells, routed at another temperature than the committed, left out)"
        if differing := self.count(DIFFERS):
            return f"{differing} of {len(self.pairs)} cells differ from the committed rows ({words})"
        if same == answers:
            return f"it reproduced the committed rows: {words}"
        return (
            f"{words}; no outcome differs beyond chance, which does not tell it apart from a run with "
            "another training seed"
        )


def compare(run: Source, committed: Iterable[Source]) -> Rerun:
    """The run's cells beside those of the committed folders."""
    mine = _by_key(run.frame)
    there: dict[Key, Cell] = {}
    for source in committed:
        there |= {key: cell for key, cell in _by_key(source.frame).items() if key in mine}
    both = [(cell, there[key]) for key, cell in mine.items() if key in there]
    pairs = [_pair(cell, other) for cell, other in both if _temperature(cell) == _temperature(other)]
    order = (DIFFERS, WORDS, IDENTICAL).index
    pairs = sorted(_adjusted(pairs), key=lambda pair: (order(pair.verdict), pair.holm[pair.outcome]))
    empty = not run.cells and not run.frame.edits
    return Rerun(run.name, tuple(pairs), len(mine) - len(both), len(both) - len(pairs), empty)


def _temperature(cell: Cell) -> Scalar:
    return cell.info.chosen.get("temperature")


def _by_key(frame: Frame) -> dict[Key, Cell]:
    return {(nameless(cell.info), cell.group, cell.ask): cell for cell in frame.groups(pooled=False)}


def _pair(cell: Cell, counterpart: Cell) -> Pair:
    here, there = _answers(cell), _answers(counterpart)
    both = here.keys() & there.keys()
    names = dict.fromkeys((*cell.frame.outcomes, *counterpart.frame.outcomes))
    return Pair(
        cell,
        here=cell.share,
        there=counterpart.share,
        items=len(both),
        lacking=len(here.keys() ^ there.keys()),
        same=sum(here[item][:2] == there[item][:2] for item in both),
        tests={name: _signs(name, both, here, there) for name in names},
        holm={},
    )


def _answers(cell: Cell) -> Answers:
    """What was answered; the outcome is the one with the largest share."""
    names = cell.frame.outcomes
    shares = zip(*(cell.column(f"shares.{name}") for name in names), strict=True)
    outcomes = [max(zip(names, row, strict=True), key=lambda pair: pair[1] or 0.0)[0] for row in shares]
    return {
        item: (text, outcome, cluster)
        for item, text, outcome, cluster in zip(
            cell.column("item"), cell.column("text"), outcomes, cell.column("cluster"), strict=True
        )
    }


def _signs(outcome: str, both: Iterable[str], here: Answers, there: Answers) -> McNemar:
    """The sign test over chains: in which of the two more of its wordings have the outcome."""
    more: Counter[str] = Counter()
    for item in both:
        more[here[item][2]] += (here[item][1] == outcome) - (there[item][1] == outcome)
    if not more:
        return McNemar(0, 0, 0, 0, 1.0)
    return mcnemar_exact([count > 0 for count in more.values()], [count < 0 for count in more.values()])


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    p_values = iter(holm([test.p for pair in pairs for test in pair.tests.values()]))
    return [replace(pair, holm={name: next(p_values) for name in pair.tests}) for pair in pairs]
