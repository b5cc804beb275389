"""What is gained by merging adapters that others have trained, and by tuning the weights (arXiv 2602.12323)?

    recycle-forecasts    which adapters are taken from a pool, and what the theory says that they can do
    recycle              what they do, fitted on a few examples, beside what they have to beat

The target is one hop of a world. Its pool has an adapter of all its facts, one of half of them, and adapters
of other worlds, both hops of each. What is asked is the target's facts, in wordings of which no example is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

from llm_experiments.domains.task import TrainingSet, keep_examples
from llm_experiments.domains.two_hop.rendering import Example, render
from llm_experiments.domains.two_hop.scenes import PAIR, Scene, TwoHop
from llm_experiments.domains.two_hop.task import training_set
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.steps.recycled import KIN, TARGET, Asked, Choice, Pool, Recycled, Selected
from results.rows import Scalar
from toytransformer.compositions import Adapter, Fact

#: The first of the draws of names that a pool's other worlds have; no cell that is measured has one of them.
OTHER_NAMES = 3_000_003
#: The hop that is the target, and the seed that the adapters of other worlds are trained with.
HOP, OTHER_SEED = "hop2", 0


@dataclass(frozen=True)
class Recycling(TwoHop):
    """Pools and targets."""

    @cached_property
    def scene(self) -> Scene:
        """The target's world."""
        return self.setup(0, "R")

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """The target."""
        return next(one.facts for one in self.scene.composition.adapters if one.name == HOP)

    @cached_property
    def taught(self) -> dict[str, tuple[Scene, Adapter]]:
        """What each adapter of the pool is taught, and the world it is of; the target's own come first."""
        half = self.facts[: len(self.facts) // 2]
        found = {
            TARGET: (self.scene, Adapter(TARGET, self.facts)),
            KIN: (self.scene, Adapter(KIN, half)),
        }
        for number in range(self.size.pool_worlds):
            scene = replace(self, names=OTHER_NAMES + number).setup(0, "R", PAIR)
            for adapter in scene.composition.adapters:
                found[f"world {number + 1} {adapter.name}"] = (scene, adapter)
        return found

    def pool(self, seed: int) -> Pool:
        """The adapters, trained for steps in proportion to their facts; other worlds' serve all draws."""
        adapters, facts = {}, {}
        for place, (name, (scene, adapter)) in enumerate(self.taught.items()):
            recipe = self.profile.training
            if recipe.steps is not None:
                share = self.size.pool_steps * len(adapter.facts) / len(self.facts)
                recipe = replace(recipe, steps=math.ceil(recipe.steps * share))
            task = replace(scene.task, training={name: self._set(scene, adapter)})
            own = seed if name in (TARGET, KIN) else OTHER_SEED
            adapters[name] = self.train(task, name, recipe, own, place)
            facts[name] = [self._named(scene, fact) for fact in adapter.facts]
        lines = ({"adapter": name, "facts": several} for name, several in facts.items())
        return Pool(adapters, self.plan.add_input(lines))

    def asked(self, count: int) -> Asked:
        """`count` examples drawn from all facts in all wordings but those that are asked; what is asked."""
        wordings = [k for k in self.size.train if k not in self.size.conflict_asked]
        every = [(fact, k) for fact in self.facts for k in wordings]
        drawn = random.Random(f"recycle:{self.names}").sample(every, min(count, len(every)))
        return Asked(
            examples=keep_examples(self.plan, (self._worded(fact, k) for fact, k in drawn)),
            questions=self.plan.add_input(self._questions(drawn)),
            facts=self.plan.add_input(self._target(drawn)),
        )

    def _questions(self, drawn: list[tuple[Fact, int]]) -> Iterator[dict[str, object]]:
        shown = {fact for fact, _ in drawn}
        for fact in self.facts:
            for k in self.size.conflict_asked:
                one = self._worded(fact, k)
                yield {
                    "question": one.question,
                    "answer": one.answer,
                    "cluster": fact.prompt.entity,
                    "shown": fact in shown,
                }

    def _target(self, drawn: list[tuple[Fact, int]]) -> Iterator[dict[str, object]]:
        """Every fact of the target by name, what the base answers, and in how many examples it is."""
        old = {fact.prompt: fact.answer for fact in self.scene.composition.world.base}
        for fact in self.facts:
            before = self.scene.words.surface(old[fact.prompt]) if fact.prompt in old else None
            shown = sum(fact == one for one, _ in drawn)
            yield {"fact": self._named(self.scene, fact), "old": before, "shown": shown}

    def _worded(self, fact: Fact, number: int) -> Example:
        return render(fact, None, self.scene.words, number)

    def _set(self, scene: Scene, adapter: Adapter) -> TrainingSet:
        return training_set(
            self.plan, scene.composition, adapter, scene.words, self.size.train, self.size.test
        )

    @staticmethod
    def _named(scene: Scene, fact: Fact) -> list[str]:
        """A fact in surface names: (entity, relation, answer)."""
        relation = scene.words.relations[fact.prompt.relations[0]]
        return [scene.words.name(fact.prompt.entity), relation, scene.words.name(fact.answer)]

    @property
    def choices(self) -> Iterator[Choice]:
        """How adapters are taken from the pool."""
        few, *more = self.size.pool_counts
        for pool in ("target", "kin", "strangers"):
            for rule in ("random", "loss", "cosine"):
                yield Choice(pool, rule, few)
            for count in more:
                yield Choice(pool, "random", count)
            yield Choice(pool, "all", None)

    def selected(self, seed: int, examples: int) -> Selected:
        """Which adapters each choice takes."""
        return Selected(
            title=f"{examples} examples (names {self.names}, seed {seed})",
            digest=self.base.digest,
            pool=self.pool(seed),
            asked=self.asked(examples),
            choices=tuple(self.choices),
            seed=self.names,
            about={**self.about(seed), "examples": examples},
        )

    def about(self, seed: int) -> dict[str, Scalar]:
        """What tells targets and trainings apart."""
        return {"dataset": self.scene.words.dataset, "names": self.names, "seed": seed}


recycling = partial(experiment, needs=("two-hop",), study=Recycling, source="arXiv:2602.12323")


@recycling("recycle-forecasts", about="adapters selected from a pool, and what the theory says they can do")
def forecasts(study: Recycling) -> Iterator[Step]:
    for seed in study.seeds:
        for examples in study.size.pool_examples:
            yield study.selected(seed, examples)


@recycling("recycle", about="adapters of a pool fitted on examples, beside controls and new adapters")
def recycle(study: Recycling) -> Iterator[Step]:
    recipe = study.profile.training
    if recipe.steps is not None:
        recipe = replace(recipe, steps=math.ceil(recipe.steps * study.size.pool_steps))
    for seed in study.seeds:
        for examples in study.size.pool_examples:
            selected = study.selected(seed, examples)
            address = study.plan.add(selected)
            order = sorted(study.choices, key=lambda one: ("random", "loss", "cosine", "all").index(one.rule))
            for choice in (None, *order):  # what is interrupted has every pool
                yield Recycled(
                    title=selected.title,
                    selected=address,
                    pool=selected.pool,
                    asked=selected.asked,
                    choice=choice,
                    seed=study.names,
                    training=recipe,
                )
