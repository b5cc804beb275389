"""Predictions for n facts per adapter through their permutation symmetry, at a cost that does not grow with
n.

In the full limit the n chains x_i -> y_i -> z_i of a composition are interchangeable: the Gram entry of two
prompts depends on their types and on whether they share the chain, G = D (x) I_n + O (x) J_n. Such matrices
are simultaneously diagonal in two sectors: the mean over chains, where G acts as D + n O, and everything
orthogonal to it, where G acts as D. Each sector is a small problem with one prompt per type, so the
ordinary closed forms and merge rules run on both, and

    output on the question's own chain = M_dev + (M_mean - M_dev)/n,    on any other chain = (M_mean -
    M_dev)/n.

Both Gram blocks are read off the composition with two chains; a composition whose chains are not copies of
one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from toytransformer import adapters as lora
from toytransformer import merging
from toytransformer.compositions import (
    OUTCOMES,
    Composition,
    Fact,
    Prompt,
    Question,
    Record,
    SpecError,
    provenance,
)
from toytransformer.merging import RuleError
from toytransformer.prediction import base_output, tie_tolerance, toy_record, wanted_shift
from toytransformer.regimes import FullLimit, square_root

#: Chains looked at to see that all are copies of one. Two are too few: x_i -> y_sigma(i) with sigma = (1 2)
#: commutes with the exchange of both.
PROBE = 5

#: The number of an entity's chain: x1, y1_old, x1_14 belong to chain 1.
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class SymmetricPrediction:
    """The merged output on one representative question per type; every chain's question is its copy.

    composition: two of its `facts` chains, the first asked about, the second standing for all the others.
    entities: those of chain 1. own: (question, entity), other: the same for that entity of another chain.
    """

    composition: Composition
    regime: FullLimit
    facts: int
    entities: tuple[str, ...]
    own: np.ndarray
    other: np.ndarray
    tie: float

    @property
    def questions(self) -> tuple[Question, ...]:
        """The representatives: the questions about chain 1."""
        return tuple(q for q in self.composition.questions if chain_of(q.prompt.entity) == 1)

    @property
    def shares(self) -> dict[str, float]:
        """Mean share of each of the five outcomes over the questions."""
        rows = [self._question_shares(row) for row in range(len(self.questions))]
        return {outcome: sum(row[outcome] for row in rows) / len(rows) for outcome in OUTCOMES}

    @property
    def accuracy(self) -> float:
        """Expected accuracy under uniform choice among exact ties."""
        return self.shares["correct"]

    def records(self) -> tuple[Record, ...]:
        """One record per type of question; chain 2's entities stand for those of every other chain."""
        swap, origin = chains_swapped(self.composition), provenance()
        records = []
        for row, question in enumerate(self.questions):
            top = self._top(row)
            mixture = dict(zip(self.entities, self.own[row], strict=True))
            if self.facts > 1:
                mixture |= {
                    swap[name]: value for name, value in zip(self.entities, self.other[row], strict=True)
                }
            roles = (question.correct, question.bridge, question.old)
            records.append(
                toy_record(
                    self.composition,
                    self.regime,
                    question,
                    answer=top[0][0] if len(top) == 1 and top[0][1] == 1 else None,
                    shares=self._question_shares(row),
                    mixture={
                        name: float(v) for name, v in mixture.items() if abs(v) > self.tie or name in roles
                    },
                    origin=origin,
                )
            )
        return tuple(records)

    def _top(self, row: int) -> list[tuple[str, int]]:
        """The entities whose output ties for the largest, and how many chains have one each."""
        best = self.own[row].max() if self.facts == 1 else max(self.own[row].max(), self.other[row].max())
        swap = chains_swapped(self.composition)
        top = [
            (name, 1) for name, v in zip(self.entities, self.own[row], strict=True) if v >= best - self.tie
        ]
        if self.facts > 1:
            others = zip(self.entities, self.other[row], strict=True)
            top += [(swap[name], self.facts - 1) for name, v in others if v >= best - self.tie]
        return top

    def _question_shares(self, row: int) -> dict[str, float]:
        top = self._top(row)
        count = sum(copies for _, copies in top)
        return self.questions[row].shares({name: copies / count for name, copies in top})


def predict(
    build: Callable[[int], Composition], facts: int, regime: FullLimit | None = None
) -> SymmetricPrediction:
    """The full-limit prediction of the composition `build(facts)`, from `build(2)` alone.

    Rules: those that are `sectorwise`, the factor-wise of them in gauge "facts". Not Arrow: the largest
    singular value of Delta W lies in the second sector (G is larger by n O > 0 in the first), where it comes
    n - 1 times over, so for n >= 3 the symmetric adapter has no prototype. Raises SpecError for a composition
    that is not symmetric, RuleError for another rule.
    """
    if isinstance(facts, bool) or not isinstance(facts, int | np.integer) or not 1 <= facts <= 2**53:
        raise SpecError(f"facts is {facts!r}; it must be a whole number from 1 to 2^53")
    regime = regime or FullLimit()
    pair = build(2)
    rule = merging.resolve(pair.merge.rule)
    if not rule.sectorwise:
        able = ", ".join(other.name for other in merging.RULES.values() if other.sectorwise)
        raise RuleError(
            f"rule {rule.name!r} does not act sector by sector; use one of {able}, or the dense prediction"
        )
    if any(adapter.rank is not None for adapter in pair.adapters):
        raise RuleError("a rank below the number of facts breaks the symmetry; use the dense prediction")
    if not rule.gauge_invariant and any(adapter.gauge != "facts" for adapter in pair.adapters):
        raise RuleError(
            f"rule {pair.merge.rule!r} depends on the gauge and the n facts' singular values tie, so only "
            'gauge "facts" is defined for all n; build the composition with gauge="facts"'
        )
    _check_symmetric(pair, 2)
    _check_symmetric(build(PROBE), PROBE)
    swap = chains_swapped(pair)

    prompts = tuple(dict.fromkeys(prompt for prompt in pair.prompts if chain_of(prompt.entity) == 1))
    partners = tuple(Prompt(swap[prompt.entity], prompt.relations) for prompt in prompts)
    gram = regime.gram((*prompts, *partners))
    k = len(prompts)
    other = gram[:k, k:]
    deviation = gram[:k, :k] - other
    sectors = {"mean": deviation + facts * other}
    if facts > 1:
        sectors["deviation"] = deviation
    rows = {name: dict(zip(prompts, square_root(block), strict=True)) for name, block in sectors.items()}
    gauge = "plain" if rule.gauge_invariant else "facts"
    trained = {name: _adapters(pair, rows[name], gauge) for name in sectors}

    questions = tuple(q for q in pair.questions if chain_of(q.prompt.entity) == 1)
    outputs = {
        name: merging.merge(trained[name], pair.merge).shift(
            np.stack([rows[name][q.prompt] for q in questions])
        )
        for name in sectors
    }
    mean = outputs["mean"] - outputs.get("deviation", 0.0)
    base = base_output(pair.world, [q.prompt for q in questions])
    chained = [i for i, name in enumerate(pair.world.entities) if chain_of(name) == 1]
    own = (base + outputs.get("deviation", 0.0) + mean / facts)[:, chained]
    others = (mean / facts)[:, chained]
    tie = tie_tolerance(np.stack(list(rows["mean"].values())), np.hstack([own, others]), trained["mean"])
    names = tuple(pair.world.entities[i] for i in chained)
    return SymmetricPrediction(
        replace(pair, setting={**dict(pair.setting), "facts": facts}),
        regime,
        facts,
        names,
        own,
        others,
        tie,
    )


def _adapters(pair: Composition, rows: Mapping[Prompt, np.ndarray], gauge: str) -> tuple[lora.LoRA, ...]:
    trained = []
    for adapter in pair.adapters:
        facts = [fact for fact in adapter.facts if chain_of(fact.prompt.entity) == 1]
        features = np.stack([rows[fact.prompt] for fact in facts])
        trained.append(lora.closed_form(features, wanted_shift(pair.world, facts), gauge=gauge))
    return tuple(trained)


def chain_of(entity: str) -> int | None:
    """The number of the chain that an entity stands in, the 12 of y12; None if it has none."""
    found = _NUMBER.search(entity)
    return int(found.group()) if found else None


def chains_swapped(pair: Composition) -> dict[str, str]:
    """The exchange of chains 1 and 2, entity by entity."""
    other = {1: "2", 2: "1"}

    def swapped(name: str) -> str:
        chain = chain_of(name)
        return _NUMBER.sub(other[chain], name, count=1) if chain in (1, 2) else name

    return {name: swapped(name) for name in pair.world.entities}


def _check_symmetric(composition: Composition, chains: int) -> None:
    """Refuse a composition that is not `chains` copies of one chain, each with its own questions."""

    def by_chain(facts: Iterable[Fact]) -> dict[int | None, set]:
        found: dict[int | None, set] = {chain: set() for chain in range(1, chains + 1)}
        for fact in facts:
            ends = fact.prompt.entity, fact.answer
            chain = chain_of(ends[0]) if chain_of(ends[0]) == chain_of(ends[1]) else None
            start, end = (_NUMBER.sub("", name, count=1) for name in ends)
            found.setdefault(chain, set()).add((start, fact.prompt.relations, end))
        return found

    asked = [Fact(q.prompt, q.correct or q.prompt.entity) for q in composition.questions]
    parts = [
        by_chain(facts)
        for facts in (composition.world.base, asked, *(adapter.facts for adapter in composition.adapters))
    ]
    copies = all(len(part) == chains and all(rows == part[1] for rows in part.values()) for part in parts)
    direct = all(question.decode == "direct" for question in composition.questions)
    if composition.examples or not (copies and direct):
        raise SpecError(
            f"composition {composition.name!r} is not n copies of one chain (or it shows examples, or "
            "decodes in steps); use the dense prediction"
        )
