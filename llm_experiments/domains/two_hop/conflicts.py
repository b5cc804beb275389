"""Adapters that agree, contradict one another or have nothing in common: what do their merges lose?

    merge-forecasts    what every pair and some triples of them will lose, predicted from single adapters
    merge-outcomes     what they then lose
    diagnosis          what the doctor says of adapters whose conflicts are known

The first two are planned alike, so that forecasts can be kept before a merge is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations

from llm_experiments.diagnose.combining import FITTED
from llm_experiments.domains.two_hop.rendering import render
from llm_experiments.domains.two_hop.scenes import TwoHop
from llm_experiments.domains.two_hop.task import training_set
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.steps.adapters import Rewritten
from llm_experiments.steps.forecasts import Diagnosis, Forecast, Outcome
from results.rows import Scalar
from toytransformer.compositions import Adapter, Fact


@dataclass(frozen=True)
class Taught:
    """What one adapter is taught of a world's chains: the facts of one hop about some of them.

    hop: 1 or 2. first, last: which of them, as shares of all. shift: whose answer each gets, counted on among
    these; 0 for its own. steps: as a share of what half of the facts take.
    """

    hop: int
    first: float = 0.0
    last: float = 0.5
    shift: int = 0
    steps: float = 1.0


#: The adapters by name, in the order that triples are taken in.
POOL: Mapping[str, Taught] = {
    "spouses": Taught(1),
    "spouses again": Taught(1),
    "homes": Taught(2),
    "spouses denied": Taught(1, shift=1),
    "spouses of others": Taught(1, 0.5, 1.0),
    "homes denied": Taught(2, shift=1),
    "spouses in part": Taught(1, 0.25, 0.75),
    "homes in brief": Taught(2, steps=0.25),
}
#: The merges that are predicted and then measured: two mixtures, the best one predicted, and no mixture.
MERGES = ("sum", "mean", FITTED, "ties")
#: Adapters whose conflicts are known: four of the pool, two taught the same, the third the contrary,
#: and what is made of the last by a factor and by how much wider its base is.
KNOWN = ("spouses", "spouses again", "spouses denied", "homes")
MADE = {
    "homes, a copy": (1.0, 0),
    "homes, turned round": (-1.0, 0),
    "homes, a trace": (1e-3, 0),
    "homes of a wider base": (1.0, 8),
}
#: A triple of each adapter, the next one and the third after it, round and round.
TRIPLE = (0, 1, 3)


@dataclass(frozen=True)
class Conflicts(TwoHop):
    """The adapters of POOL, and their pairs and triples."""

    @cached_property
    def facts(self) -> dict[str, tuple[Fact, ...]]:
        """What each adapter is taught."""
        by_hop = {
            i: adapter.facts for i, adapter in enumerate(self.setup(0, "R").composition.adapters, start=1)
        }
        found = {}
        for name, taught in POOL.items():
            every = by_hop[taught.hop]
            own = every[round(taught.first * len(every)) : round(taught.last * len(every))]
            found[name] = tuple(
                Fact(fact.prompt, own[(place + taught.shift) % len(own)].answer)
                for place, fact in enumerate(own)
            )
        return found

    def taught(self, name: str, seed: int) -> Address:
        """The adapter of that name, trained."""
        scene, recipe = self.setup(0, "R"), self.profile.training
        adapter = Adapter(name, self.facts[name])
        own = training_set(
            self.plan, scene.composition, adapter, scene.words, self.size.train, self.size.test
        )
        if recipe.steps is not None:
            share = self.size.conflict_steps * POOL[name].steps
            recipe = replace(recipe, steps=math.ceil(recipe.steps * share))
        task = replace(scene.task, training={name: own})
        return self.train(task, name, recipe, seed, tuple(POOL).index(name))

    def questions(self, names: tuple[str, ...]) -> Ref:
        """All that these adapters were taught, in the wordings that are asked."""
        words = self.setup(0, "R").words
        return self.plan.add_input(
            {"question": one.question, "answer": one.answer, "adapter": name}
            for name in names
            for fact in self.facts[name]
            for one in (render(fact, None, words, number) for number in self.size.conflict_asked)
        )

    def forecast(self, names: tuple[str, ...], seed: int) -> Forecast:
        """Of the library of these adapters, asked all that they were taught."""
        return Forecast(
            title=f"{', '.join(names)} (names {self.names}, seed {seed})",
            digest=self.base.digest,
            library={name: self.taught(name, seed) for name in names},
            questions=self.questions(names),
            merges=MERGES,
            about=self.about(seed),
        )

    def about(self, seed: int) -> dict[str, Scalar]:
        """What tells worlds and trainings apart."""
        return {"dataset": self.setup(0, "R").words.dataset, "names": self.names, "seed": seed}

    @property
    def libraries(self) -> Iterator[tuple[str, ...]]:
        """Every pair and the triples, in the order in which their adapters are there."""
        names = tuple(POOL)
        places: list[tuple[int, ...]] = list(combinations(range(len(names)), 2))
        for start in range(len(names)):
            places.append(tuple(sorted((start + step) % len(names) for step in TRIPLE)))
        for library in sorted(places, key=max):
            yield tuple(names[place] for place in library)


conflicts = partial(experiment, needs=("two-hop",), study=Conflicts, source="theory.md, section 9")


@conflicts("merge-forecasts", about="what merges of adapters that agree, differ or conflict will lose")
def forecasts(study: Conflicts) -> Iterator[Step]:
    for seed in study.seeds:
        for names in study.libraries:
            yield study.forecast(names, seed)


@conflicts("merge-outcomes", about="what the merges of merge-forecasts then lose")
def outcomes(study: Conflicts) -> Iterator[Step]:
    for seed in study.seeds:
        for names in study.libraries:
            said = study.forecast(names, seed)
            yield Outcome(
                title=said.title,
                forecast=study.plan.add(said),
                library=said.library,
                questions=said.questions,
            )


@conflicts(
    "diagnosis", about="what the doctor says of adapters that agree, contradict, repeat or undo another"
)
def diagnosis(study: Conflicts) -> Iterator[Step]:
    for seed in study.seeds:
        library = {name: study.taught(name, seed) for name in KNOWN}
        for name, (factor, wider) in MADE.items():
            library[name] = study.plan.add(Rewritten(name, library[KNOWN[-1]], factor, wider))
        yield Diagnosis(
            title=f"{len(library)} adapters (names {study.names}, seed {seed})",
            digest=study.base.digest,
            library=library,
            questions=study.questions(KNOWN),
            about=study.about(seed),
        )
