"""What a merged stack answers: a composition, a stack and a placement in, scores and shares out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from toytransformer import merging
from toytransformer.bases import base_output, one_hot
from toytransformer.compositions import OUTCOMES, Composition, Question, Record, provenance
from toytransformer.layers.directions import Directions, drawn
from toytransformer.layers.forward import Run
from toytransformer.layers.stack import Placement, Stack
from toytransformer.memory import require_memory
from toytransformer.prediction import asked_prompts, decoded, only, toy_record
from toytransformer.two_layers import LayerError


@dataclass(frozen=True)
class StackPrediction:
    """The scores of a stack on every question of a composition, and what follows from them.

    output: (question, entity), at the last step. tie: scores closer than this are one value. written: by
    layer, the merged stack's o_l on the questions' prompts, (layer, question, entity). updates: by layer what
    was merged there, None where no adapter lies. undetermined: why the answers are arbitrary, where singular
    values tie.
    """

    composition: Composition
    stack: Stack
    placement: Placement
    questions: tuple[Question, ...]
    output: Float[np.ndarray, "question entity"]
    tie: float
    distributions: tuple[Mapping[str | None, float], ...]
    written: Float[np.ndarray, "layer question entity"]
    updates: tuple[merging.Merged | None, ...]
    undetermined: str | None = None

    @cached_property
    def shares(self) -> dict[str, float]:
        """Mean share of each of the five outcomes over the questions."""
        rows = [q.shares(d) for q, d in zip(self.questions, self.distributions, strict=True)]
        return {outcome: math.fsum(row[outcome] for row in rows) / len(rows) for outcome in OUTCOMES}

    def describe(self) -> dict[str, object]:
        """The stack and where its adapters lie, as plain data."""
        return {**self.stack.describe(), "layers": {k: list(v) for k, v in self.placement.items()}}

    @property
    def accuracy(self) -> float:
        """Expected accuracy; an exact tie of k answers is right with probability 1/k if one of them is."""
        return self.shares["correct"]

    def margins(self, among: Sequence[str] | None = None) -> Float[np.ndarray, "question"]:
        """By how much the right answer leads the best other one, or the best other one of `among`."""
        names = self.composition.world.entities
        rivals = np.array([among is None or name in among for name in names])
        right = [names.index(q.correct) for q in self.questions if q.correct is not None]
        rows = np.arange(len(right))
        others = np.where(rivals, self.output, -np.inf)
        others[rows, right] = -np.inf
        return self.output[rows, right] - others.max(axis=1)

    def records(self) -> tuple[Record, ...]:
        """One record a question, as for one layer; its regime holds stack and placement."""
        names, origin = self.composition.world.entities, provenance()
        found = []
        for q, row, answers in zip(self.questions, self.output, self.distributions, strict=True):
            order = [names[i] for i in np.argsort(-np.abs(row)) if abs(row[i]) > self.tie]
            roles = [role for role in (q.correct, q.bridge, q.old) if role is not None]
            mixture = {name: float(row[names.index(name)]) for name in dict.fromkeys((*roles, *order[:12]))}
            found.append(
                toy_record(
                    self.composition,
                    self,
                    q,
                    answer=only(answers),
                    shares=q.shares(answers),
                    mixture=mixture,
                    undetermined=self.undetermined,
                    origin=origin,
                )
            )
        return tuple(found)


def predict(
    composition: Composition, stack: Stack, placement: Placement, directions: Directions | None = None
) -> StackPrediction:
    """The scores of the merged stack on the composition's questions.

    The rule merges layer by layer what lies there: an adapter that is absent from a layer is zero in it, and
    rules that route choose among those present. directions: those of a network at hand in place of a draw.
    Errors: LayerError for an adapter without a layer, or a rule that needs data; NotEnoughMemoryError; else
    those of one layer.
    """
    world, rule = composition.world, merging.resolve(composition.merge.rule)
    if rule.needs_data:
        raise LayerError(f"rule {rule.name!r} is fitted on examples, which a stack has none of: use another")
    names = [adapter.name for adapter in composition.adapters]
    if sorted(placement) != sorted(names) or not all(placement.values()):
        raise LayerError(f"layers are given for {dict(placement)!r}; give at least one for each of {names}")
    placed = {name: stack.checked(placement[name], name) for name in names}
    asked = asked_prompts(composition, stack.base)
    known = stack.base.prompts(world)
    tokens = tuple(dict.fromkeys(t for p in (*composition.prompts, *asked, *known) for t in p.tokens))
    rows = sum(len(p.tokens) for p in (*asked, *known)) + sum(
        len(fact.prompt.tokens) for adapter in composition.adapters for fact in adapter.stored(world)
    )
    words = (2**stack.count if stack.attention_stays else 2) * (len(tokens) + len(world.entities))
    require_memory(8 * rows * (3 * words + 6 * rows), f"{rows} positions of a stream in {words} words")
    if directions is None:
        directions = drawn(stack, tokens, world.entities)
    said = base_output(world, asked)
    stored = {a.name: tuple(a.stored(world)) for a in composition.adapters}
    trained = {name: tuple(fact.prompt for fact in facts) for name, facts in stored.items()}
    before = {name: base_output(world, prompts) for name, prompts in trained.items()}
    if stack.base_layers:
        alone = Run(composition, stack, directions, {"base": known, "merged": asked, **trained}, {}, {})
        alone.forward()
        before = {name: alone.scores(name, prompts) for name, prompts in trained.items()}
        said = alone.scores("merged", asked)
    changes = {
        name: one_hot(world, [fact.answer for fact in facts]) - before[name] for name, facts in stored.items()
    }
    passes = {"merged": asked, **trained, **({"base": known} if stack.base_layers else {})}
    run = Run(composition, stack, directions, passes, placed, changes)
    run.forward()
    scores = run.scores("merged", asked) + (0.0 if stack.base_layers else said)
    by_prompt = dict(zip(asked, scores, strict=True))
    answered = [decoded(q, by_prompt, world.entities, run.tie) for q in composition.questions]
    questions = composition.questions
    if stack.base_layers:
        base_scores = dict(zip(asked, said, strict=True))
        old = [only(decoded(q, base_scores, world.entities, run.tie)[1]) for q in questions]
        questions = tuple(replace(q, old=answer) for q, answer in zip(questions, old, strict=True))
    shown = [q.prompt if q.decode == "direct" else asked[0] for q in questions]
    return StackPrediction(
        composition,
        stack,
        placed,
        questions,
        np.stack([last for last, _ in answered]),
        run.tie,
        tuple(distribution for _, distribution in answered),
        np.stack([[layer[p] for p in shown] for layer in run.written]),
        tuple(run.updates),
        run.warning,
    )


def threshold(composition: Composition, stack: Stack, placement: Placement, adapter: str) -> float:
    """The weight of one adapter from which on the sum, at the others' weights, is right on every question.

    The adapter has to lie above all others, in one layer: then scores are linear in its weight, and
    alpha* = max (rest of a rival - rest of the right answer) / (what the adapter adds to the right answer
    more than to the rival); infinite where it adds more to some rival, or as much where that leads.
    """
    rule, weights = composition.merge.rule, composition.merge.weights
    names = [a.name for a in composition.adapters]
    others = [layer for name in names if name != adapter for layer in placement[name]]
    if rule != "sum" or len(placement[adapter]) > 1 or max(others, default=0) >= placement[adapter][0]:
        raise LayerError(f"{adapter!r} has to lie in one layer above all others, under the rule sum")
    given = weights or (1.0,) * len(names)

    def at(weight: float) -> StackPrediction:
        own = tuple(weight if name == adapter else w for name, w in zip(names, given, strict=True))
        return predict(composition.with_merge(replace(composition.merge, weights=own)), stack, placement)

    rest, one = at(0.0), at(1.0)
    worst = -math.inf
    for row, q in enumerate(rest.questions):
        if q.correct is None:
            continue
        right = composition.world.entities.index(q.correct)
        lead = rest.output[row] - rest.output[row, right]
        gain = (one.output[row, right] - rest.output[row, right]) - (one.output[row] - rest.output[row])
        lead, gain = np.delete(lead, right), np.delete(gain, right)
        slow = gain <= one.tie
        if np.any(lead[slow] >= -one.tie):
            return math.inf
        worst = max(worst, float(np.max(lead[~slow] / gain[~slow], initial=-math.inf)))
    return worst
