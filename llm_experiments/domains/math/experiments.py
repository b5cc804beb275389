"""The experiments on word problems: adapters on two easier levels, their merges asked the harder one.

Beside every merge stand the base, each adapter alone, one adapter on both levels, and random ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from llm_experiments.domains.math.data import SOURCES
from llm_experiments.domains.math.sizes import Size
from llm_experiments.domains.math.task import math
from llm_experiments.domains.task import Task
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.parts import PartsStudy
from llm_experiments.experiments.registry import experiment


@dataclass(frozen=True)
class Problems(PartsStudy):
    """Tasks, libraries and controls of the experiments on word problems."""

    @cached_property
    def size(self) -> Size:
        return self.profile.size("math")

    def task(self, source: str, **options: Any) -> Task:
        """A task of a source at this size; options: as `math`."""
        size, times = self.size, 5 if source == "ladder" else 1
        return math(
            self.plan,
            source=source,
            templates=size.templates,
            train=times * size.train,
            per_template=times * size.asked,
            own=size.own,
            dev=size.dev,
            names=self.names,
            **options,
        )


word_problems = partial(experiment, needs=("math",), study=Problems)


@word_problems(
    "table3", about="adapters on GSM-Symbolic and its P1, merged, asked P2 without examples", source="Table 3"
)
def table3(study: Problems) -> Iterator[Step]:
    task = study.task("gsm-symbolic")
    for seed in study.seeds:
        yield from study.merged(task, study.library(task, seed, "attention"), seed, "attention")


@word_problems(
    "table4",
    about="the same taught as programs, which are run, on attention and MLP layers",
    source="Table 4",
)
def table4(study: Problems) -> Iterator[Step]:
    task = study.task("gsm-symbolic", form="tir")
    for seed in study.seeds:
        for layers in ("attention", "mlp"):
            yield from study.merged(task, study.library(task, seed, layers), seed, layers)


@word_problems("table13", about="the base alone on GSM8K, GSM-Symbolic, P1 and P2", source="Table 13")
def table13(study: Problems) -> Iterator[Step]:
    yield study.ask_base(study.task("gsm8k", taught=(), asked="all"))
    for level in SOURCES["gsm-symbolic"]:
        yield study.ask_base(study.task("gsm-symbolic", taught=(), asked=level))


@word_problems("table14", about="table3 with eight examples in the prompt, and without", source="Table 14")
def table14(study: Problems) -> Iterator[Step]:
    taught, shown = study.task("gsm-symbolic"), study.task("gsm-symbolic", shots=8)
    for seed in study.seeds:
        library = study.library(taught, seed, "attention")
        for task in (taught, shown):
            yield from study.merged(task, library, seed, "attention")


@word_problems(
    "table15", about="form and errors of table3's answers: the base, uniform and Arrow", source="Table 15"
)
def table15(study: Problems) -> Iterator[Step]:
    yield from table3(study)


@word_problems(
    "math-ladder",
    about="table3 on problems of our own, of one and two clauses taught and three asked; attention and MLP",
    source="Table 3, smaller",
)
def math_ladder(study: Problems) -> Iterator[Step]:
    for form in ("cot", "tir"):
        task = study.task("ladder", form=form)
        for seed in study.seeds:
            for layers in ("attention", "mlp"):
                yield from study.merged(task, study.library(task, seed, layers), seed, layers)


@word_problems(
    "math-steps",
    about="table3 one step down: GSM8K's problems of two and three steps taught, those of more asked",
    source="Table 3, smaller",
)
def math_steps(study: Problems) -> Iterator[Step]:
    task = study.task("gsm8k", taught=("two", "three"), asked="four")
    for seed in study.seeds:
        yield from study.merged(task, study.library(task, seed, "attention"), seed, "attention")
