"""Code from Spanish: an adapter for code and one for translation, merged, with every control beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from llm_experiments.domains.code.sizes import Size
from llm_experiments.domains.code.task import code
from llm_experiments.domains.task import Task
from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.experiments.study import Study
from toytransformer.compositions import Merge
from toytransformer.merging import RULES

#: The paper's two routings, each in the form its text defines and as PEFT has it.
ROUTINGS = tuple(sorted(name for name, rule in RULES.items() if rule.paper in ("uniform", "arrow")))
PARTS, JOINT = ("coding", "translation"), "joint"


@dataclass(frozen=True)
class Coding(Study):
    """Tasks, libraries and controls of the experiments on code."""

    @cached_property
    def size(self) -> Size:
        return self.profile.size("code")

    def task(self, source: str, **options: Any) -> Task:
        size = self.size
        if source == "own":  # a few of each, whatever the profile
            return code(self.plan, source=source, names=self.names, **options)
        return code(
            self.plan,
            source=source,
            train=size.programs,
            translated=size.sentences,
            asked=size.asked,
            own=size.own,
            dev=size.dev,
            names=self.names,
            **options,
        )

    def library(self, task: Task, seed: int, layers: str) -> dict[str, Address]:
        """The two adapters, and the joint one for as many steps as both."""
        adapters = {}
        for index, name in enumerate((*PARTS, JOINT)):
            training = replace(self.profile.training, layers=layers)
            if name == JOINT and training.steps is not None:
                training = replace(training, steps=training.steps * len(PARTS))
            adapters[name] = self.train(task, name, training, seed, index, layers=layers)
        return adapters

    def measured(self, task: Task, seed: int, layers: str) -> Iterator[Step]:
        """The base, the two adapters under both routings, each alone, both in one, and random ones."""
        base, library = self.ask_base(task), self.library(task, seed, layers)
        yield base
        common: dict[str, Any] = {"base": self.plan.add(base), "seed": seed, "layers": layers}
        both = {name: library[name] for name in PARTS}
        for rule in ROUTINGS:
            merge = Merge(rule)
            sweep = self.sweep(task, both, merge, seed=seed, layers=layers) if RULES[rule].tempered else None
            yield self.ask(task, both, merge, sweep=sweep, **common)
        for name, address in library.items():
            yield self.ask(task, {name: address}, Merge("sum"), control=name, **common)
        randoms = {name: self.random(address, seed) for name, address in both.items()}
        yield self.ask(task, randoms, Merge("mean"), control="random", **common)


coding = partial(experiment, needs=("code",), study=Coding)


@coding(
    "table16",
    about="adapters for code in English and for translation, merged, asked for code in Spanish and English",
    source="Tables 16 and 17",
)
def table16(study: Coding) -> Iterator[Step]:
    """The paper asks MBPP in Spanish, which is not to be had: asked is HumanEval-XL, in both languages."""
    task = study.task("published")
    for seed in study.seeds:
        yield from study.measured(task, seed, "attention")


@coding("table17", about="the coding adapter on English alone, beside the base", source="Table 17")
def table17(study: Coding) -> Iterator[Step]:
    task = study.task("published", languages=("english",))
    base = study.ask_base(task)
    yield base
    for seed in study.seeds:
        library = study.library(task, seed, "attention")
        yield study.ask(
            task,
            {"coding": library["coding"]},
            Merge("sum"),
            base=study.plan.add(base),
            seed=seed,
            layers="attention",
            control="coding",
        )


@coding(
    "code-own", about="table16 on a few problems of our own, to try it", source="Tables 16 and 17, smaller"
)
def code_own(study: Coding) -> Iterator[Step]:
    task = study.task("own")
    for seed in study.seeds:
        yield from study.measured(task, seed, "attention")
