"""Tasks of which every adapter is taught a part: the parts merged, and what has to stand beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_experiments.domains.task import Task
from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.study import Study
from toytransformer.compositions import Merge
from toytransformer.merging import RULES

#: The adapter that is taught all that the others are.
JOINT = "joint"
#: The paper's two routings, each in the form its text defines and as PEFT has it.
ROUTINGS = tuple(sorted(name for name, rule in RULES.items() if rule.paper in ("uniform", "arrow")))
#: Weights at which each part is asked alone, beside 0, the base, and 1: scale curves, from which merges are
#: predicted.
SCALES = (0.5, 0.25, 0.75)


@dataclass(frozen=True)
class PartsStudy(Study):
    """Libraries and controls of such tasks."""

    def library(self, task: Task, seed: int, layers: str) -> dict[str, Address]:
        """Every adapter of the task; the joint one for as many steps as the others together."""
        alone = len(task.training) - (JOINT in task.training)
        adapters = {}
        for index, name in enumerate(task.training):
            training = replace(self.profile.training, layers=layers)
            if name == JOINT and training.steps is not None:
                training = replace(training, steps=training.steps * alone)
            adapters[name] = self.train(task, name, training, seed, index, layers=layers)
        return adapters

    def merged(self, task: Task, library: Mapping[str, Address], seed: int, layers: str) -> Iterator[Step]:
        """The base; the parts under both routings; each adapter alone, the joint one too; random ones; scale
        curves.

        The curves come last: what is interrupted has all that they are compared with.
        """
        base = self.ask_base(task)
        yield base
        common: dict[str, Any] = {"base": self.plan.add(base), "seed": seed, "layers": layers}
        parts = {name: address for name, address in library.items() if name != JOINT}
        for rule in ROUTINGS:
            merge = Merge(rule)
            sweep = self.sweep(task, parts, merge, seed=seed, layers=layers) if RULES[rule].tempered else None
            yield self.ask(task, parts, merge, sweep=sweep, **common)
        for name, address in library.items():
            yield self.ask(task, {name: address}, Merge("sum"), control=name, **common)
        randoms = {name: self.random(address, seed) for name, address in parts.items()}
        yield self.ask(task, randoms, Merge("mean"), control="random", **common)
        for weight in SCALES:
            for name, address in parts.items():
                yield self.ask(task, {name: address}, Merge("sum", (weight,)), control=name, **common)
