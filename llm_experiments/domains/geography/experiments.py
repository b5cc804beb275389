"""Facts and continents, merged: does anybody say on which continent the answer lies?

The paper probes published adapters of Phi-2 at the level of continents. Here the facts are taught, so that
they are there, and continents on other places; published adapters are asked by a study (docs/study.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from llm_experiments.domains.geography.sizes import Size
from llm_experiments.domains.geography.task import geography
from llm_experiments.domains.task import Task
from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.experiments.study import Study
from toytransformer.compositions import Merge
from toytransformer.merging import RULES

#: The paper's two routings, each in the form its text defines and as PEFT has it.
ROUTINGS = tuple(sorted(name for name, rule in RULES.items() if rule.paper in ("uniform", "arrow")))
PARTS, JOINT = ("facts", "continents"), "joint"


@dataclass(frozen=True)
class Places(Study):
    """Tasks, libraries and controls of the experiments on places."""

    @cached_property
    def size(self) -> Size:
        return self.profile.size("geography")

    def task(self, source: str, **options: Any) -> Task:
        size = self.size
        return geography(
            self.plan,
            source=source,
            asked=size.questions,
            taught=size.places,
            own=size.own,
            dev=size.dev,
            names=self.names,
            **options,
        )

    def library(self, task: Task, seed: int) -> dict[str, Address]:
        """The two adapters, and the joint one for as many steps as both."""
        adapters = {}
        for index, name in enumerate((*PARTS, JOINT)):
            training = self.profile.training
            if name == JOINT and training.steps is not None:
                training = replace(training, steps=training.steps * len(PARTS))
            adapters[name] = self.train(task, name, training, seed, index)
        return adapters

    def measured(self, task: Task, dealt: Task, seed: int) -> Iterator[Step]:
        """The base, both adapters under both routings, each alone, both in one, and two controls.

        dealt: the same with the facts' answers dealt to other questions.
        """
        base, library = self.ask_base(task), self.library(task, seed)
        yield base
        common: dict[str, Any] = {"base": self.plan.add(base), "seed": seed, "layers": "mlp"}
        both = {name: library[name] for name in PARTS}
        for rule in ROUTINGS:
            merge = Merge(rule)
            sweep = self.sweep(task, both, merge, seed=seed) if RULES[rule].tempered else None
            yield self.ask(task, both, merge, sweep=sweep, **common)
        for name, address in library.items():
            yield self.ask(task, {name: address}, Merge("sum"), control=name, **common)
        randoms = {name: self.random(address, seed) for name, address in both.items()}
        yield self.ask(task, randoms, Merge("mean"), control="random", **common)
        wrong = {**both, "facts": self.train(dealt, "facts", self.profile.training, seed, 0)}
        yield self.ask(task, wrong, Merge("mean"), control="shuffled", **common)


places = partial(experiment, needs=("geography",), study=Places)


@places(
    "table20",
    about="questions about places taught, and continents of other places: the continent of the answer",
    source="Table 20",
)
def table20(study: Places) -> Iterator[Step]:
    task, dealt = study.task("hotpotqa"), study.task("hotpotqa", shuffled=True)
    for seed in study.seeds:
        yield from study.measured(task, dealt, seed)


@places("places-own", about="table20 on a few questions of our own, to try it", source="Table 20, smaller")
def places_own(study: Places) -> Iterator[Step]:
    task, dealt = study.task("own"), study.task("own", shuffled=True)
    for seed in study.seeds:
        yield from study.measured(task, dealt, seed)
