"""What a merged model answers: a composition and a regime in, one record per question out.

The base model is taken as exact (section 3): it outputs i_old on every prompt whose old answer it knows and
0 on the others, so W itself is never needed. An adapter is trained on the change i_new - W phi(p) of its
prompts; the merged output on a question is the base's output plus the merge's shift, a linear mixture of
one-hot answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from toytransformer import adapters as lora
from toytransformer import cost, merging
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
from toytransformer.regimes import Regime

Array = np.ndarray

#: How many of the largest coefficients a record keeps; the roles' coefficients are always kept.
KEPT = 12


@dataclass(frozen=True)
class Prediction:
    """The merged output on every question of a composition, and what follows from it.

    output: (question, entity), the merged model's last output, entities in the world's order.
    tie: outputs closer than this are one value; the rounding error of an output, see `tie_tolerance`.
    distributions: for each question, the answers and their probabilities, uniform among exact ties.
    """

    composition: Composition
    regime: Regime
    output: Float[Array, "question entity"]
    tie: float
    distributions: tuple[Mapping[str | None, float], ...]
    adapters: tuple[lora.LoRA, ...]
    merged: merging.Merged

    @cached_property
    def shares(self) -> dict[str, float]:
        """Mean share of each of the five outcomes over the questions."""
        rows = [q.shares(d) for q, d in zip(self.composition.questions, self.distributions, strict=True)]
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
        warning = (
            "an adapter has equal singular values, so its SVD gauge is arbitrary, and this rule depends on "
            'the gauge; use gauge "facts", a product-wise rule or finite d'
        )
        return {**self.merged.details, "warning": warning}

    @cached_property
    def _arbitrary_gauge(self) -> bool:
        """Whether a gauge-dependent rule merged factors from an SVD whose singular values tie."""
        if merging.resolve(self.composition.merge.rule).gauge_invariant:
            return False
        for spec, adapter in zip(self.composition.adapters, self.adapters, strict=True):
            values = adapter.svd()[1]
            kept = values[values > lora.SINGULAR * values[0]]
            tied = np.min(-np.diff(kept), initial=np.inf) < math.sqrt(np.finfo(float).eps) * values[0]
            if spec.gauge != "facts" and tied:
                return True
        return False

    @property
    def accuracy(self) -> float:
        """Expected accuracy; an exact tie of k answers is right with probability 1/k if one of them is."""
        return self.shares["correct"]

    @property
    def strict_accuracy(self) -> float:
        """Share of questions on which the right answer alone has the largest output."""
        right = [
            q.correct is not None and d.get(q.correct, 0.0) == 1.0
            for q, d in zip(self.composition.questions, self.distributions, strict=True)
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
            for row, question in enumerate(self.composition.questions)
        )

    def _record(
        self, question: Question, output: Array, answers: Mapping, names: Sequence[str], origin: dict
    ) -> Record:
        largest = [names[i] for i in np.argsort(-np.abs(output))[:KEPT] if abs(output[i]) > self.tie]
        roles = [role for role in (question.correct, question.bridge, question.old) if role is not None]
        index = {name: i for i, name in enumerate(names)}
        return toy_record(
            self.composition,
            self.regime,
            question,
            answer=next(iter(answers)) if len(answers) == 1 else None,
            shares=question.shares(answers),
            mixture={name: float(output[index[name]]) for name in dict.fromkeys((*roles, *largest))},
            spectral_gap=self.merged.spectral_gap,
            undetermined=self.undetermined,
            origin=origin,
        )


def toy_record(
    composition: Composition,
    regime: Regime,
    question: Question,
    *,
    answer: str | None,
    shares: Mapping[str, float],
    mixture: Mapping[str, float],
    spectral_gap: float | None = None,
    undetermined: str | None = None,
    origin: Mapping[str, Any],
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
        regime=regime.describe(),
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


def predict(composition: Composition, regime: Regime) -> Prediction:
    """The merged model's outputs on the composition's questions in a regime.

    Raises RuleError, AdapterError, RegimeError or NotEnoughMemoryError before any long work where it can.
    """
    rule = merging.resolve(composition.merge.rule)
    asked = asked_prompts(composition)
    prompts = tuple(dict.fromkeys((*composition.prompts, *asked)))
    entities = composition.world.entities
    cost.of_prediction(composition, asked, regime).require()
    features = regime.features(prompts, neurons=rule.needs_neurons)
    rows = dict(zip(prompts, features.values, strict=True))
    shown = features.values if features.trained is None else features.trained
    trained_rows = dict(zip(prompts, shown, strict=True))
    trained = tuple(
        train(
            adapter,
            composition.world,
            trained_rows,
            kind=rule.adapter_kind,
            gauge_matters=not rule.gauge_invariant,
            seed=(regime.seed, i),
        )
        for i, adapter in enumerate(composition.adapters)
    )
    merged = merging.merge(
        trained, composition.merge, _context(composition, regime, features.logit_scale, trained_rows)
    )
    stacked = np.stack([rows[prompt] for prompt in asked])
    output = base_output(composition.world, asked) + merged.shift(stacked)
    update = merged.update if isinstance(merged, merging.StaticMerge) else None
    factors = (*trained, update) if isinstance(update, lora.LoRA) else trained  # merge weights count too
    tie = tie_tolerance(features.values, output, factors)
    by_prompt = dict(zip(asked, output, strict=True))
    decoded = [_decode(question, by_prompt, entities, tie) for question in composition.questions]
    return Prediction(
        composition,
        regime,
        np.stack([last for last, _ in decoded]),
        tie,
        tuple(distribution for _, distribution in decoded),
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
) -> lora.LoRA:
    """The adapter that its spec describes, on the features `rows` of its prompts.

    kind: "closed-form" or "frozen-read". gauge_matters: False allows any factors of Delta W.
    """
    stored = adapter.stored(world)
    features = np.stack([rows[fact.prompt] for fact in stored])
    changes = wanted_shift(world, stored)
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


def base_output(world: World, prompts: Sequence[Prompt]) -> Float[Array, "prompt entity"]:
    """W phi(p): the one-hot old answer, 0 where the base knows none."""
    return _one_hot(world, [world.old(prompt) for prompt in prompts])


def wanted_shift(world: World, facts: Sequence[Fact]) -> Float[Array, "fact entity"]:
    """i_new - W phi(p) for each fact: what an adapter that stores it must add."""
    return _one_hot(world, [f.answer for f in facts], minus=[world.old(f.prompt) for f in facts])


def _one_hot(world: World, answers: Sequence[str | None], minus: Sequence[str | None] = ()) -> Array:
    index = {name: i for i, name in enumerate(world.entities)}
    rows = np.zeros((len(answers), len(index)))
    for names, sign in ((answers, 1.0), (minus, -1.0)):
        for row, name in enumerate(names):
            if name is not None:
                rows[row, index[name]] += sign
    return rows


def tie_tolerance(features: Array, output: Array, adapters: Sequence[lora.LoRA]) -> float:
    """Rounding error of an output: eps * (numbers summed) * condition of the readout * size.

    Each entry sums over the features and ranks, so its error is at most eps * (feature + rank) times the
    size of the terms, |phi| |read| |write|. Outputs nearer than that are equal as far as float64 can tell.
    """
    terms = sum(np.linalg.norm(a.read) * np.abs(a.write).max() for a in adapters)
    count = features.shape[1] + max(a.rank for a in adapters)
    size = max(np.linalg.norm(features, axis=1).max() * terms, np.abs(output).max(), 1.0)
    return float(np.finfo(float).eps * count * size)


def asked_prompts(composition: Composition) -> tuple[Prompt, ...]:
    """The questions' prompts, or each one-hop prompt that answering them step by step can reach.

    A step can answer what a merged output can be non-zero on: a trained answer, what an adapter was trained
    to forget, or the base's own answer to the step. Any other answer (where the output is zero, all entities
    tie) is not asked further and counts as "other".
    """
    world = composition.world
    trained = (fact for adapter in composition.adapters for fact in adapter.stored(world))
    moved = [
        entity
        for fact in (*trained, *composition.examples)
        for entity in (fact.answer, world.old(fact.prompt))
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
            reached = [*moved, *map(world.old, step)]
    return tuple(dict.fromkeys(asked))


def _context(
    composition: Composition, regime: Regime, logit_scale: float, rows: Mapping[Prompt, Array]
) -> merging.MergeContext:
    examples = composition.examples
    return merging.MergeContext(
        rng_seed=regime.seed,
        logit_scale=logit_scale,
        example_features=np.stack([rows[fact.prompt] for fact in examples]) if examples else None,
        example_targets=wanted_shift(composition.world, examples) if examples else None,
    )


def _decode(
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
