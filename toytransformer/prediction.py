"""What a merged model answers: a composition and a toy in, one record per question out.

A toy is a regime, a base and a readout (toytransformer.toy); a regime alone is the paper's model, whose base
is exact (it outputs i_old on every prompt whose old answer it knows and 0 on the others) and whose answers
are one-hot. An adapter is trained on the change u_new - W phi(p) of its prompts; the merged output on a
question is the base's output plus the merge's shift, and the largest score, G times that, is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from toytransformer import adapters as lora
from toytransformer import cost, merging
from toytransformer.bases import Base, ExactBase, FittedBase, base_output, one_hot, wanted_shift
from toytransformer.compositions import (
    OUTCOMES,
    Adapter,
    Composition,
    Fact,
    Prompt,
    Question,
    Record,
    World,
    provenance,
)
from toytransformer.readout import Coordinates, OneHot
from toytransformer.regimes import Regime
from toytransformer.toy import Toy, as_toy

__all__ = ["Prediction", "asked_prompts", "base_output", "predict", "toy_record", "train", "wanted_shift"]

Array = np.ndarray

#: What a rule that depends on the gauge says where the gauge is arbitrary.
ARBITRARY_GAUGE = (
    "an adapter has equal singular values, so its SVD gauge is arbitrary, and this rule depends on "
    'the gauge; use gauge "facts", a product-wise rule or finite d'
)

#: How many of the largest coefficients a record keeps; the roles' coefficients are always kept.
KEPT = 12


@dataclass(frozen=True)
class Prediction:
    """The merged output on every question of a composition, and what follows from it.

    questions: the composition's, their old answers replaced by what a base that is not exact says.
    output: (question, entity), the merged model's last scores (with one-hot answers its output), entities in
    the world's order.
    tie: scores closer than this are one value; the rounding error of a score, see `tie_tolerance`.
    distributions: for each question, the answers and their probabilities, uniform among exact ties.
    """

    composition: Composition
    toy: Toy
    questions: tuple[Question, ...]
    output: Float[Array, "question entity"]
    tie: float
    distributions: tuple[Mapping[str | None, float], ...]
    adapters: tuple[lora.LoRA, ...]
    merged: merging.Merged

    @property
    def regime(self) -> Regime:
        """The regime of the toy."""
        return self.toy.regime

    @cached_property
    def shares(self) -> dict[str, float]:
        """Mean share of each of the five outcomes over the questions."""
        rows = [q.shares(d) for q, d in zip(self.questions, self.distributions, strict=True)]
        return {outcome: math.fsum(row[outcome] for row in rows) / len(rows) for outcome in OUTCOMES}

    @property
    def undetermined(self) -> str | None:
        """Why the answers are arbitrary, where singular values tie; None where the theory determines them."""
        return self.details.get("warning")

    @property
    def details(self) -> Mapping[str, Any]:
        """What the rule says of itself: fitted weights, Arrow's spectral gaps, warnings."""
        if "warning" in self.merged.details or not self._arbitrary_gauge:
            return self.merged.details
        return {**self.merged.details, "warning": ARBITRARY_GAUGE}

    @cached_property
    def _arbitrary_gauge(self) -> bool:
        specs = self.composition.adapters
        return arbitrary_gauge(self.composition.merge.rule, zip(specs, self.adapters, strict=True))

    @property
    def accuracy(self) -> float:
        """Expected accuracy; an exact tie of k answers is right with probability 1/k if one of them is."""
        return self.shares["correct"]

    @property
    def strict_accuracy(self) -> float:
        """Share of questions on which the right answer alone has the largest output."""
        right = [
            q.correct is not None and d.get(q.correct, 0.0) == 1.0
            for q, d in zip(self.questions, self.distributions, strict=True)
        ]
        return sum(right) / len(right)

    def coefficient(self, question: int, entity: str | None) -> float:
        """The merged output of `entity` on a question, by index; NaN for None (a role nobody has)."""
        if entity is None:
            return math.nan
        return float(self.output[question, self.composition.world.entities.index(entity)])

    def records(self) -> tuple[Record, ...]:
        """One record per question, with the mixture, the outcome shares and the provenance."""
        names, origin = self.composition.world.entities, provenance()
        return tuple(
            self._record(question, self.output[row], self.distributions[row], names, origin)
            for row, question in enumerate(self.questions)
        )

    def _record(
        self, question: Question, output: Array, answers: Mapping, names: Sequence[str], origin: dict
    ) -> Record:
        largest = [names[i] for i in np.argsort(-np.abs(output))[:KEPT] if abs(output[i]) > self.tie]
        roles = [role for role in (question.correct, question.bridge, question.old) if role is not None]
        index = {name: i for i, name in enumerate(names)}
        return toy_record(
            self.composition,
            self.toy,
            question,
            answer=only(answers),
            shares=question.shares(answers),
            mixture={name: float(output[index[name]]) for name in dict.fromkeys((*roles, *largest))},
            spectral_gap=self.merged.spectral_gap,
            undetermined=self.undetermined,
            origin=origin,
        )


class Described(Protocol):
    """A model that can say what it is: a regime, a toy, a stack of layers."""

    def describe(self) -> dict[str, object]: ...


def toy_record(
    composition: Composition,
    toy: Described,
    question: Question,
    *,
    answer: str | None,
    shares: Mapping[str, float],
    mixture: Mapping[str, float],
    spectral_gap: float | None = None,
    undetermined: str | None = None,
    origin: Mapping[str, object],
) -> Record:
    """The record of one predicted answer; origin: its provenance."""
    return Record(
        composition=composition.name,
        setting=dict(composition.setting),
        spec_hash=composition.spec_hash,
        adapters=tuple(adapter.name for adapter in composition.adapters),
        rule=composition.merge.rule,
        weights=composition.merge.weights,
        options=composition.merge.option_dict,
        regime=toy.describe(),
        group=question.group,
        prompt=str(question.prompt),
        decode=question.decode,
        correct=question.correct,
        bridge=question.bridge,
        old=question.old,
        answer=answer,
        shares=shares,
        mixture=mixture,
        spectral_gap=spectral_gap,
        undetermined=undetermined,
        provenance=origin,
    )


def predict(composition: Composition, model: Regime | Toy) -> Prediction:
    """The merged model's scores on the composition's questions, by a toy or by the paper's model in a regime.

    Raises RuleError, AdapterError, RegimeError, ReadoutError, SpecError or NotEnoughMemoryError before any
    long work where it can.
    """
    toy = as_toy(model)
    regime, world = toy.regime, composition.world
    rule = merging.resolve(composition.merge.rule)
    asked = asked_prompts(composition, toy.base)
    prompts = tuple(dict.fromkeys((*composition.prompts, *asked, *toy.base.prompts(world))))
    cost.of_prediction(composition, (*asked, *toy.base.prompts(world)), regime).require()
    features = regime.features(prompts, neurons=rule.needs_neurons)
    rows = dict(zip(prompts, features.values, strict=True))
    shown = features.values if features.trained is None else features.trained
    trained_rows = dict(zip(prompts, shown, strict=True))
    base, coordinates = toy.base.fit(world, trained_rows, rows), toy.readout.on(world)
    trained = tuple(
        train(
            adapter,
            world,
            trained_rows,
            kind=rule.adapter_kind,
            gauge_matters=not rule.gauge_invariant,
            seed=(regime.seed, i),
            base=base,
            coordinates=coordinates,
        )
        for i, adapter in enumerate(composition.adapters)
    )
    context = _context(composition, regime.seed, features.logit_scale, trained_rows, base, coordinates)
    merged = merging.merge(trained, composition.merge, context)
    stacked = np.stack([rows[prompt] for prompt in asked])
    said = base.answers(asked)
    output = coordinates.apply(coordinates.apply(said) + merged.shift(stacked))
    update = merged.update if isinstance(merged, merging.StaticMerge) else None
    factors = [*trained, *([update] if isinstance(update, lora.LoRA) else [])]  # merge weights count too
    factors += [base.update] if base.update else []
    tie = tie_tolerance(features.values, output, factors, coordinates)
    decode = partial(decoded, entities=world.entities, tie=tie)
    by_prompt = dict(zip(asked, output, strict=True))
    answered = [decode(question, by_prompt) for question in composition.questions]
    questions = composition.questions
    if not toy.base.exact:
        scores = dict(zip(asked, coordinates.apply(coordinates.apply(said)), strict=True))
        questions = tuple(replace(q, old=only(decode(q, scores)[1])) for q in questions)
    return Prediction(
        composition,
        toy,
        questions,
        np.stack([last for last, _ in answered]),
        tie,
        tuple(distribution for _, distribution in answered),
        trained,
        merged,
    )


def train(
    adapter: Adapter,
    world: World,
    rows: Mapping[Prompt, Array],
    *,
    kind: str = "closed-form",
    gauge_matters: bool = True,
    seed: int | tuple[int, ...] = 0,
    base: FittedBase | None = None,
    coordinates: Coordinates | None = None,
) -> lora.LoRA:
    """The adapter that its spec describes, on the features `rows` of its prompts.

    kind: "closed-form" or "frozen-read". gauge_matters: False allows any factors of Delta W. base: the exact
    one when None. coordinates: those of one-hot answers when None; its write factor is in them.
    """
    stored = adapter.stored(world)
    features = np.stack([rows[fact.prompt] for fact in stored])
    changes = changed(world, stored, base or ExactBase().fit(world, rows), coordinates or OneHot().on(world))
    if kind == "frozen-read":
        rank = adapter.rank or 2 * len(stored)
        return lora.frozen_read(features, changes, rank=rank, seed=seed, approximate=adapter.approximate)
    return lora.closed_form(
        features,
        changes,
        rank=adapter.rank,
        gauge=adapter.gauge if gauge_matters else "plain",
        approximate="loss" if adapter.approximate else None,
    )


def changed(
    world: World, facts: Sequence[Fact], base: FittedBase, coordinates: Coordinates
) -> Float[Array, "fact entity"]:
    """(i_new - W phi(p)) R for each fact: what an adapter that stores it must add to the output vector."""
    new = one_hot(world, [fact.answer for fact in facts])
    return coordinates.apply(new - base.outputs([fact.prompt for fact in facts]))


def tie_tolerance(
    features: Array, output: Array, adapters: Sequence[lora.LoRA], coordinates: Coordinates | None = None
) -> float:
    """Rounding error of a score: eps * (numbers summed) * condition of the readout * size.

    Each entry sums over the features and ranks, so its error is at most eps * (feature + rank) times the
    size of the terms, |phi| |read| |write|. Scores nearer than that are equal as far as float64 can tell.
    Scores are such outputs times R, each a sum over the entities, and an error grows by R's largest row sum;
    so did that of the changes the adapters were trained on.
    """
    terms = sum(np.linalg.norm(a.read) * np.abs(a.write).max() for a in adapters)
    count = features.shape[1] + max(a.rank for a in adapters)
    grows = 1.0 if coordinates is None else coordinates.largest
    if grows != 1.0:
        count += output.shape[1]
    size = max(np.linalg.norm(features, axis=1).max() * terms * grows, np.abs(output).max(), 1.0)
    return float(np.finfo(float).eps * count * size)


def asked_prompts(composition: Composition, base: Base | None = None) -> tuple[Prompt, ...]:
    """The questions' prompts, or each one-hop prompt that answering them step by step can reach.

    A step can answer what a merged output can be non-zero on: a trained answer, what an adapter was trained
    to forget, or the base's own answers to the step. Any other answer (where the output is zero, all entities
    tie) is not asked further and counts as "other".
    """
    world = composition.world
    base = base or ExactBase()
    trained = (fact for adapter in composition.adapters for fact in adapter.stored(world))
    moved = [
        entity
        for fact in (*trained, *composition.examples)
        for entity in (fact.answer, *base.answers(world, fact.prompt))
    ]
    asked = [question.prompt for question in composition.questions if question.decode == "direct"]
    starts: dict[tuple[str, ...], list[str | None]] = {}
    for question in composition.questions:
        if question.decode == "steps":
            starts.setdefault(question.prompt.relations, []).append(question.prompt.entity)
    for relations, reached in starts.items():
        for relation in relations:
            step = [Prompt(entity, (relation,)) for entity in dict.fromkeys(reached) if entity is not None]
            asked += step
            said = (entity for prompt in step for entity in base.answers(world, prompt))
            reached = list(dict.fromkeys((*moved, *said)))
    return tuple(dict.fromkeys(asked))


def _context(
    composition: Composition,
    seed: int,
    logit_scale: float,
    rows: Mapping[Prompt, Array],
    base: FittedBase,
    coordinates: Coordinates,
) -> merging.MergeContext:
    examples = composition.examples
    return merging.MergeContext(
        rng_seed=seed,
        logit_scale=logit_scale,
        example_features=np.stack([rows[fact.prompt] for fact in examples]) if examples else None,
        example_targets=changed(composition.world, examples, base, coordinates) if examples else None,
        own_means=_own_means(composition, rows) if merging.resolve(composition.merge.rule).routed else None,
    )


def _own_means(composition: Composition, rows: Mapping[Prompt, Array]) -> Float[Array, "adapter feature"]:
    """The mean feature of the prompts that each adapter stores."""
    stored = (adapter.stored(composition.world) for adapter in composition.adapters)
    return np.stack([np.mean([rows[fact.prompt] for fact in facts], axis=0) for facts in stored])


def arbitrary_gauge(rule: str, adapters: Iterable[tuple[Adapter, lora.LoRA]]) -> bool:
    """Whether a gauge-dependent rule merges factors from an SVD whose singular values tie."""
    if merging.resolve(rule).gauge_invariant:
        return False
    for spec, adapter in adapters:
        values = adapter.svd()[1]
        kept = values[values > lora.SINGULAR * values[0]]
        tied = np.min(-np.diff(kept), initial=np.inf) < math.sqrt(np.finfo(float).eps) * values[0]
        if spec.gauge != "facts" and tied:
            return True
    return False


def only(answers: Mapping[str | None, float]) -> str | None:
    """The answer, where there is one; None where several tie."""
    return next(iter(answers)) if len(answers) == 1 else None


def decoded(
    question: Question, outputs: Mapping[Prompt, Array], entities: Sequence[str], tie: float
) -> tuple[Array, Mapping[str | None, float]]:
    """The output at the last step (averaged over tied paths) and the distribution of the final answer."""
    if question.decode == "direct":
        output = outputs[question.prompt]
        return output, spread_over_ties(output, entities, tie)
    answers: dict[str | None, float] = {question.prompt.entity: 1.0}
    last = np.zeros(len(entities))
    for relation in question.prompt.relations:
        reached: dict[str | None, float] = {}
        last = np.zeros(len(entities))
        for entity, probability in answers.items():
            step = outputs.get(Prompt(entity, (relation,))) if entity is not None else None
            spread = {None: 1.0} if step is None else spread_over_ties(step, entities, tie)
            if step is not None:
                last = last + probability * step
            for answer, share in spread.items():
                reached[answer] = reached.get(answer, 0.0) + probability * share
        answers = reached
    return last, answers


def spread_over_ties(output: Array, entities: Sequence[str], tie: float) -> dict[str | None, float]:
    """Uniform over the entities whose output ties for the largest."""
    top = np.flatnonzero(output >= output.max() - tie)
    return {entities[i]: 1.0 / len(top) for i in top.tolist()}
