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

A typed readout acts sector by sector too: with K = [same kind] on the types of entities, as 1 - t on
deviations and as (1 - t) + t n K on the mean. Bystanders (compositions.knowledge), B copies of one whatever
n is, are interchangeable among themselves: they meet the chains in the mean only, where chain and bystander
types have Gram entries sqrt(n B) O, and an output on them is M_mean / sqrt(n B).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toytransformer import adapters as lora
from toytransformer import merging
from toytransformer.arrays import rounding
from toytransformer.bases import ExactBase, TrainedBase, base_output, one_hot
from toytransformer.compositions import (
    OUTCOMES,
    Composition,
    Fact,
    Prompt,
    Question,
    Record,
    SpecError,
    World,
    provenance,
)
from toytransformer.compositions.knowledge import BYSTANDER
from toytransformer.merging import RuleError
from toytransformer.merging.merged import concatenated
from toytransformer.merging.static import ones
from toytransformer.prediction import tie_tolerance, toy_record
from toytransformer.readout import Coordinates, OneHot, Typed
from toytransformer.regimes import FullLimit, Regime, square_root
from toytransformer.toy import Toy, as_toy

#: Chains looked at to see that all are copies of one. Two are too few: x_i -> y_sigma(i) with sigma = (1 2)
#: commutes with the exchange of both.
PROBE = 5

#: The number of an entity's chain: x1, y1_old, x1_14 belong to chain 1.
_NUMBER = re.compile(r"\d+")


#: A sector: the mean over chains, or what deviates from it.
MEAN, DEVIATION = "mean", "deviation"


@dataclass(frozen=True)
class Scores:
    """Scores of representatives, by question: each stands for as many entities as there are chains like it.

    own: (question, entity) of the asked chain's entities; other: the same for those of another chain; beside:
    (question, bystander's entity). tie: scores closer than this are one value.
    """

    own: np.ndarray
    other: np.ndarray
    beside: np.ndarray
    tie: float


@dataclass(frozen=True)
class SymmetricPrediction:
    """The merged scores on one representative question per type; every chain's question is its copy.

    composition: two of its `facts` chains, the first asked about, the second standing for all the others.
    questions: those about chain 1, the representatives. entities: those of chain 1; own, other: their scores
    and those of another chain's, (question, entity). beside: those of a bystander's entities `outside`, of
    whom there are `bystanders`.
    """

    composition: Composition
    toy: Toy
    facts: int
    questions: tuple[Question, ...]
    entities: tuple[str, ...]
    outside: tuple[str, ...]
    bystanders: int
    scores: Scores

    @property
    def regime(self) -> Regime:
        """The regime of the toy."""
        return self.toy.regime

    @property
    def own(self) -> np.ndarray:
        """Scores of the asked chain's entities, (question, entity)."""
        return self.scores.own

    @property
    def other(self) -> np.ndarray:
        """Scores of the same entities of any other chain, (question, entity)."""
        return self.scores.other

    @property
    def tie(self) -> float:
        """Scores closer than this are one value."""
        return self.scores.tie

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
            mixture = dict(zip(self.entities, self.own[row], strict=True))
            if self.facts > 1:
                mixture |= {
                    swap[name]: value for name, value in zip(self.entities, self.other[row], strict=True)
                }
            mixture |= zip(self.outside, self.scores.beside[row], strict=True)
            roles = (question.correct, question.bridge, question.old)
            records.append(
                toy_record(
                    self.composition,
                    self.toy,
                    question,
                    answer=self.top(self.scores, row)[1],
                    shares=self._question_shares(row),
                    mixture={
                        name: float(v) for name, v in mixture.items() if abs(v) > self.tie or name in roles
                    },
                    origin=origin,
                )
            )
        return tuple(records)

    def top(self, scores: Scores, row: int) -> tuple[list[tuple[str, int]], str | None]:
        """The entities whose scores tie for the largest, with how many chains have one each; the only one."""
        swap = chains_swapped(self.composition)
        groups = [(self.entities, scores.own, 1)]
        if self.facts > 1:
            groups.append((tuple(swap[name] for name in self.entities), scores.other, self.facts - 1))
        if self.bystanders:
            groups.append((self.outside, scores.beside, self.bystanders))
        best = max(values[row].max() for _, values, _ in groups) - scores.tie
        top = [
            (name, copies)
            for names, values, copies in groups
            for name, value in zip(names, values[row], strict=True)
            if value >= best
        ]
        return top, top[0][0] if len(top) == 1 and top[0][1] == 1 else None

    def _question_shares(self, row: int) -> dict[str, float]:
        top, _ = self.top(self.scores, row)
        count = sum(copies for _, copies in top)
        return self.questions[row].shares({name: copies / count for name, copies in top})


def predict(
    build: Callable[[int], Composition], facts: int, model: FullLimit | Toy | None = None
) -> SymmetricPrediction:
    """The full-limit prediction of the composition `build(facts)`, from `build(2)` alone.

    model: a toy in the full limit, its base exact or trained, its readout one-hot or typed; or the regime.
    Rules: those that are `sectorwise` or `by_sectors`, the factor-wise of them in gauge "facts". Arrow by
    mean features only: the largest singular value of Delta W lies in the second sector (G is larger by n O
    > 0 in the first), where it comes n - 1 times over: for n >= 3 the symmetric adapter has no prototype. For
    the same reason a truncation is determined at some ranks only. Raises SpecError for a composition or a toy
    that is not symmetric, RuleError for another rule, or where the rule is not determined.
    """
    if isinstance(facts, bool) or not isinstance(facts, int | np.integer) or not 1 <= facts <= 2**53:
        raise SpecError(f"facts is {facts!r}; it must be a whole number from 1 to 2^53")
    toy = as_toy(model or FullLimit())
    pair = build(2)
    rule = merging.resolve(pair.merge.rule)
    if not (rule.sectorwise or rule.by_sectors):
        able = ", ".join(
            other.name for other in merging.RULES.values() if other.sectorwise or other.by_sectors
        )
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
    bystanders = len({chain_of(name) for name in pair.world.entities if _is_bystander(name)})
    sectors = [
        _sector(pair, toy, name, facts, bystanders) for name in ((MEAN, DEVIATION) if facts > 1 else (MEAN,))
    ]
    mean, *rest = sectors
    gauge = "plain" if rule.gauge_invariant else "facts"
    questions = tuple(q for q in pair.questions if chain_of(q.prompt.entity) == 1)
    merged = _shifts(sectors, pair, gauge, questions, facts)
    said = [sector.said(q.prompt for q in questions) for sector in sectors]

    count = sum(not _is_bystander(name) for name in mean.names)
    factors = [*mean.adapters(pair, gauge), *([mean.base] if mean.base else [])]

    def scores(parts: Sequence[Sequence[np.ndarray]]) -> Scores:
        """The sum of parts that are given sector by sector: own, other and beside."""
        deviations = [part[1] if rest else np.zeros((len(questions), count)) for part in parts]
        gaps = [part[0][:, :count] - own for part, own in zip(parts, deviations, strict=True)]
        other = np.sum(gaps, axis=0) / facts
        own = np.sum(deviations, axis=0) + other
        means = np.sum([part[0][:, count:] for part in parts], axis=0)
        beside = means / math.sqrt(facts * max(bystanders, 1))
        every = np.hstack([own, other, beside])
        tie = tie_tolerance(np.stack(list(mean.rows.values())), every, factors, mean.coordinates)
        return Scores(own, other, beside, tie)

    found = SymmetricPrediction(
        replace(pair, setting={**dict(pair.setting), "facts": facts}),
        toy,
        facts,
        questions,
        mean.names[:count],
        mean.names[count:],
        bystanders,
        scores([said, merged]),
    )
    if toy.base.exact:
        return found
    alone = scores([said])
    old = (found.top(alone, row)[1] for row in range(len(questions)))
    return replace(found, questions=tuple(map(lambda q, name: replace(q, old=name), questions, old)))


@dataclass(frozen=True)
class _Sector:
    """One sector: a problem with one prompt, entity and fact per type.

    rows: features by prompt. names: the entities, bystanders' last; coordinates: the readout's root on them.
    base: the trained base's readout, None for an exact one.
    """

    world: World
    rows: Mapping[Prompt, np.ndarray]
    names: tuple[str, ...]
    coordinates: Coordinates
    base: lora.LoRA | None

    def _columns(self, rows: np.ndarray) -> np.ndarray:
        place = {name: i for i, name in enumerate(self.world.entities)}
        return rows[:, [place[name] for name in self.names]]

    def one_hot(self, answers: Iterable[str | None]) -> np.ndarray:
        return self._columns(one_hot(self.world, list(answers)))

    def outputs(self, prompts: Iterable[Prompt]) -> np.ndarray:
        """The base's output coordinates, (prompt, entity)."""
        asked = list(prompts)
        if self.base is None:
            return self._columns(base_output(self.world, asked))
        return self.base.shift(np.stack([self.rows[prompt] for prompt in asked]))

    def said(self, prompts: Iterable[Prompt]) -> np.ndarray:
        """The base's scores, (prompt, entity)."""
        return self.coordinates.apply(self.coordinates.apply(self.outputs(prompts)))

    def adapters(self, pair: Composition, gauge: str) -> tuple[lora.LoRA, ...]:
        trained = []
        for adapter in pair.adapters:
            facts = [fact for fact in adapter.facts if chain_of(fact.prompt.entity) == 1]
            changes = self.one_hot(f.answer for f in facts) - self.outputs(f.prompt for f in facts)
            features = np.stack([self.rows[fact.prompt] for fact in facts])
            trained.append(lora.closed_form(features, self.coordinates.apply(changes), gauge=gauge))
        return tuple(trained)

    def features(self, asked: Iterable[Prompt]) -> np.ndarray:
        """The rows of the prompts, (prompt, feature)."""
        return np.stack([self.rows[prompt] for prompt in asked])


def _shifts(
    sectors: Sequence[_Sector], pair: Composition, gauge: str, questions: Sequence[Question], facts: int
) -> list[np.ndarray]:
    """What the merge adds to the scores in each sector, (question, entity)."""
    rule, options = merging.check(pair.merge)
    trained = [sector.adapters(pair, gauge) for sector in sectors]
    asked = [sector.features(q.prompt for q in questions) for sector in sectors]
    if rule.sectorwise:
        added = [merging.merge(own, pair.merge).shift(x) for own, x in zip(trained, asked, strict=True)]
    elif rule.routed:
        weights = _routing(sectors[0], pair, trained[0], asked[0], facts)
        added = [
            merging.RoutedMerge(own, factor_wise=rule.factor_wise).mixed(x, weights)
            for own, x in zip(trained, asked, strict=True)
        ]
    else:
        rank = options["rank"] or facts * max(own.rank for own in trained[0])
        sums = [concatenated(own, ones(own, pair.merge.weights)) for own in trained]
        cut = _truncated([update.svd() for update in sums], facts, rank)
        added = [update.shift(x) for update, x in zip(cut, asked, strict=True)]
    return [sector.coordinates.apply(shift) for sector, shift in zip(sectors, added, strict=True)]


def _routing(
    mean: _Sector, pair: Composition, trained: Sequence[lora.LoRA], asked: np.ndarray, facts: int
) -> np.ndarray:
    """The weights of the adapters on each question, (question, adapter): those of its copies too.

    The mean of phi over the n prompts of one type is r / sqrt(n), r its row in the sector of the mean, and so
    is the part of each phi that a mean feature sees.
    """
    if pair.merge.option_dict.get("prototypes") != "mean-features":
        raise RuleError(
            f"rule {pair.merge.rule!r} routes by the top singular vectors of adapters, whose singular values "
            'tie between interchangeable facts; use prototypes="mean-features"'
        )
    own = (
        mean.features(fact.prompt for fact in adapter.facts if chain_of(fact.prompt.entity) == 1)
        for adapter in pair.adapters
    )
    means = np.stack([rows.mean(axis=0) for rows in own])
    context = merging.MergeContext(logit_scale=math.inf, own_means=means)
    merged = merging.merge(trained, pair.merge, context)
    assert isinstance(merged, merging.Routed)  # as every rule that is `routed`
    return merged.routing(asked / math.sqrt(facts))


def _truncated(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], facts: int, rank: int
) -> list[lora.LoRA]:
    """The `rank` largest singular triples of the whole update, sector by sector.

    parts: U, s, V of each sector; s counts once in that of the mean, n - 1 times in that of the deviations.
    Raises RuleError where the cut falls between equal ones, with the ranks that have none.
    """
    copies = (1, facts - 1)
    top = max(float(values[0]) for _, values, _ in parts)
    each = [(float(value), i) for i, (_, values, _) in enumerate(parts) for value in values]
    found = sorted((one for one in each if one[0] > rounding(parts[0][1]) * top), reverse=True)
    kept, total, ranks = [0] * len(parts), 0, []
    tied = math.sqrt(np.finfo(float).eps) * top
    following = [value for value, _ in found[1:]] + [-math.inf]
    for (value, sector), after in zip(found, following, strict=True):
        total += copies[sector]
        if total <= rank:
            kept[sector] += 1
        if value - after > tied:
            ranks.append(total)
    if rank < total and rank not in ranks:
        raise RuleError(
            f"rank {rank} cuts between equal singular values of the sum, as interchangeable facts have them; "
            f"determined are the ranks {', '.join(map(str, ranks))}"
        )
    return [
        lora.LoRA(left[:, :count] * values[:count], right[:, :count])
        for (left, values, right), count in zip(parts, kept, strict=True)
    ]


def _sector(pair: Composition, toy: Toy, name: str, facts: int, bystanders: int) -> _Sector:
    """The sector of the mean or of the deviations; only the chains have deviations that are asked for."""
    world, swap = pair.world, chains_swapped(pair)
    if not isinstance(toy.regime, FullLimit):
        raise SpecError(f"regime {toy.regime.name!r} draws what tells chains apart; use the dense prediction")
    ours = isinstance(toy.base, ExactBase | TrainedBase) and isinstance(toy.readout, OneHot | Typed)
    if not ours:
        raise SpecError("a base or a readout that was measured tells chains apart; use the dense prediction")
    known = [fact for fact in world.known if chain_of(fact.prompt.entity) == 1 and not toy.base.exact]
    every = (*(prompt for prompt in pair.prompts if chain_of(prompt.entity) == 1), *(f.prompt for f in known))
    names = [entity for entity in world.entities if chain_of(entity) == 1]
    names.sort(key=_is_bystander)
    if name == DEVIATION:
        known = [fact for fact in known if not _is_bystander(fact.prompt.entity)]
        every = tuple(prompt for prompt in every if not _is_bystander(prompt.entity))
        names = [entity for entity in names if not _is_bystander(entity)]
    prompts = tuple(dict.fromkeys(every))

    def partner(entity: str) -> str:
        return entity if _is_bystander(entity) and bystanders == 1 else swap[entity]

    def weights(entities: Iterable[str]) -> np.ndarray:
        """sqrt of the number of copies; 0 in the sector of deviations."""
        counts = [bystanders if _is_bystander(entity) else facts for entity in entities]
        return np.sqrt(np.array(counts, float)) * (name == MEAN)

    k = len(prompts)
    gram = toy.regime.gram((*prompts, *(Prompt(partner(p.entity), p.relations) for p in prompts)))
    other, scale = gram[:k, k:], weights(p.entity for p in prompts)
    own = gram[:k, :k] - other  # 0 between a chain and a bystander, who share no entity
    root = square_root(own + np.outer(scale, scale) * other)
    rows = dict(zip(prompts, root, strict=True))
    readout = toy.readout if isinstance(toy.readout, Typed) else OneHot()
    if isinstance(readout, Typed):
        kinds = readout.kind_of(world)
        if apart := [entity for entity in names if kinds[entity] != kinds[partner(entity)]]:
            raise SpecError(
                f"{apart[0]!r} and {partner(apart[0])!r} are of two kinds, which tells chains apart; use the "
                "dense prediction"
            )
    sector = _Sector(world, rows, tuple(names), readout.sector(world, names, weights(names)), None)
    if not known:
        empty = lora.LoRA(np.zeros((len(names), 1)), np.zeros((root.shape[1], 1)))
        return sector if toy.base.exact else replace(sector, base=empty)
    features = np.stack([rows[fact.prompt] for fact in known])
    targets = sector.one_hot(fact.answer for fact in known)
    return replace(sector, base=lora.closed_form(features, targets, gauge="plain"))


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


def _is_bystander(entity: str) -> bool:
    return _NUMBER.sub("", entity, count=1).startswith(f"{BYSTANDER}_")


def _check_symmetric(composition: Composition, chains: int) -> None:
    """Refuse a composition that is not `chains` copies of one chain, each with its own questions.

    Its bystanders have to be copies of one.
    """

    def copies(facts: Iterable[Fact], number: int) -> bool:
        found: dict[int | None, set] = {chain: set() for chain in range(1, number + 1)}
        for fact in facts:
            ends = fact.prompt.entity, fact.answer
            chain = chain_of(ends[0]) if chain_of(ends[0]) == chain_of(ends[1]) else None
            start, end = (_NUMBER.sub("", name, count=1) for name in ends)
            found.setdefault(chain, set()).add((start, fact.prompt.relations, end))
        return len(found) == number and all(rows == found[1] for rows in found.values())

    asked = [Fact(q.prompt, q.correct or q.prompt.entity) for q in composition.questions]
    beside = {name for name in composition.world.entities if _is_bystander(name)}
    known = [fact for fact in composition.world.known if fact.prompt.entity not in beside]
    others = [fact for fact in composition.world.known if fact.prompt.entity in beside]
    alike = all(copies(facts, chains) for facts in (known, asked, *(a.facts for a in composition.adapters)))
    alike = alike and copies(others, len({chain_of(name) for name in beside}))
    direct = all(question.decode == "direct" for question in composition.questions)
    if composition.examples or not (alike and direct):
        raise SpecError(
            f"composition {composition.name!r} is not n copies of one chain (or it shows examples, or "
            "decodes in steps); use the dense prediction"
        )
