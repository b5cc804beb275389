"""Facts and continents, merged: does anybody say on which continent the answer lies?

The paper probes published adapters of Phi-2 at the level of continents. Here the facts are taught, so that
they are there, and continents on other places; published adapters are asked by a study (docs/study.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from llm_experiments.domains.geography.sizes import Size
from llm_experiments.domains.geography.task import geography
from llm_experiments.domains.task import Task
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.parts import JOINT, PartsStudy
from llm_experiments.experiments.registry import experiment
from toytransformer.compositions import Merge


@dataclass(frozen=True)
class Places(PartsStudy):
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

    def measured(self, source: str, seed: int) -> Iterator[Step]:
        """As every task of parts; beside it facts whose answers are dealt to other questions."""
        task, dealt = self.task(source), self.task(source, shuffled=True)
        library = self.library(task, seed, "mlp")
        yield from self.merged(task, library, seed, "mlp")
        wrong = {**library, "facts": self.library(dealt, seed, "mlp")["facts"]}
        del wrong[JOINT]
        base = self.plan.add(self.ask_base(task))
        yield self.ask(task, wrong, Merge("mean"), base=base, seed=seed, layers="mlp", control="shuffled")


places = partial(experiment, needs=("geography",), study=Places)


@places(
    "table20",
    about="questions about places taught, and continents of other places: the continent of the answer",
    source="Table 20",
)
def table20(study: Places) -> Iterator[Step]:
    for seed in study.seeds:
        yield from study.measured("hotpotqa", seed)


@places("places-own", about="table20 on a few questions of our own, to try it", source="Table 20, smaller")
def places_own(study: Places) -> Iterator[Step]:
    for seed in study.seeds:
        yield from study.measured("own", seed)
