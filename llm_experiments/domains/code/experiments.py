"""Code from Spanish: an adapter for code and one for translation, merged, with every control beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from llm_experiments.domains.code.sizes import Size
from llm_experiments.domains.code.task import code
from llm_experiments.domains.task import Task
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.parts import PartsStudy
from llm_experiments.experiments.registry import experiment
from toytransformer.compositions import Merge


@dataclass(frozen=True)
class Coding(PartsStudy):
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
        yield from study.merged(task, study.library(task, seed, "attention"), seed, "attention")


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
        yield from study.merged(task, study.library(task, seed, "attention"), seed, "attention")
