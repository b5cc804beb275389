"""The named experiments: which adapters each trains on which base model, how it merges them, what it asks.

Each is a function from (base model, profile, seeds) to steps; steps that two experiments share are computed
once. The compositions are those the toy model predicts, so that measured rows have the spec hash of predicted
ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_experiments.domains.two_hop.lexicon import lexicon
from llm_experiments.domains.two_hop.rendering import training_examples
from llm_experiments.editing.step import Edit, KnownWorld
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.experiments.sizes import Profile
from llm_experiments.steps import Ask, RandomAdapter, Scene, Sweep, TrainAdapter, add_examples
from toytransformer.compositions import Adapter, Composition, Merge, SpecError, catalogue
from toytransformer.compositions.setups import setup

#: The paper's two routings, each in the form its text defines (factor-wise) and as PEFT has it (products).
UNIFORM = ("linear", "mean")
ARROW = ("arrow-factors", "arrow-products")
PAIR = ("hop1", "hop2")
TRIPLE = ("hop1", "hop2", "oracle")
#: Adapters asked on their own beside a library.
ALONE = (*TRIPLE, "mixed", "joint")
#: Which of a library's adapters each is: its initial factors and the order of its data differ by it.
INDEX = {name: i for i, name in enumerate(ALONE)}
#: One adapter in place of several is trained for as many steps as they are together.
IN_PLACE_OF = {"mixed": 2, "joint": 3}


@dataclass(frozen=True)
class Base:
    """What planning has to know of a base model: its id, the hash of its content, and the world it knows."""

    id: str
    digest: str
    world: Any = None


@dataclass(frozen=True)
class Planner:
    """Steps for one base model under one profile, and the plan that holds what they need."""

    base: Base
    profile: Profile
    seeds: tuple[int, ...]
    plan: Plan = field(default_factory=Plan, compare=False)

    def setup(
        self,
        number: int,
        dataset: str,
        library: tuple[str, ...] = PAIR,
        *,
        sigma: tuple[int, ...] | None = None,
        examples: int = 0,
        **regime: Any,
    ) -> Scene:
        """Setup `number` of Table 1 on a dataset; its bridge has invented names where the tested are real."""
        bridge = "F" if dataset == "R" else "R"
        composition = setup(
            number,
            facts=self.profile.facts,
            known=self._known(dataset),
            bridge_facts=self.profile.bridge_facts,
            bridge_known=self._known(bridge),
            library=library,
            sigma=sigma,
            examples=examples,
        )
        return self._scene(composition, dataset, bridge, regime)

    def relations(self, name: str, dataset: str, library: tuple[str, ...] | None = None) -> Scene:
        """Ten adapters on five relations, a pair of them held out (appendix A.3); asked both ways.

        library: other adapters by name, "Rel1Rel2" being the oracle.
        """
        facts = self.profile.library_facts
        plain = catalogue.build(
            name, facts=facts, known=self._known(dataset), library=library, seed=self.profile.items
        )
        steps = tuple(replace(question, decode="steps") for question in plain.questions)
        composition = replace(plain, questions=(*plain.questions, *steps))
        return self._scene(composition, dataset, None, {})

    def expert(self, scene: Scene, name: str, seed: int, **changes: Any) -> TrainAdapter:
        """The adapter of that name in the scene's library, trained by the profile's recipe with `changes`."""
        composition = scene.composition
        adapter = next(adapter for adapter in composition.adapters if adapter.name == name)

        def texts(templates: Iterable[int]) -> Ref:
            examples = training_examples(adapter, composition.world, scene.lexicon, tuple(templates))
            return add_examples(self.plan, examples)

        training = replace(self.profile.training, **changes)
        if training.steps is not None:
            training = replace(training, steps=training.steps * IN_PLACE_OF.get(name, 1))
        return TrainAdapter(
            title=f"{name} of {composition.name} on {scene.lexicon.dataset}",
            model=self.base.digest,
            examples=texts(self.profile.train),
            checks=texts(self.profile.test),
            training=training,
            seed=seed,
            index=INDEX.get(name, [a.name for a in composition.adapters].index(name)),
        )

    def library(self, scene: Scene, seed: int, **changes: Any) -> tuple[TrainAdapter, ...]:
        """Every adapter of the scene, in merge order."""
        return tuple(
            self.expert(scene, adapter.name, seed, **changes) for adapter in scene.composition.adapters
        )

    def answers(
        self, scene: Scene, library: Sequence[Step], rule: str | Merge, seed: int, **regime: Any
    ) -> Ask:
        """The scene's questions put to the base with this library merged; Arrow's T is chosen beforehand."""
        merge = Merge(rule) if isinstance(rule, str) else rule
        asked = replace(scene, regime={**scene.regime, "seed": seed, **regime}).with_merge(merge)
        temperature, adapters = None, tuple(self.plan.add(step) for step in library)
        if merge.rule in ARROW and "temperature" not in merge.option_dict:
            dev = self._dev(scene).with_merge(merge)
            temperature = self.plan.add(
                Sweep(dev.label, dev.add_to(self.plan), adapters, self.profile.temperatures, self.base.digest)
            )
        base = self.plan.add(self.base_answers(scene))
        return Ask(asked.label, asked.add_to(self.plan), adapters, self.base.digest, seed, temperature, base)

    def base_answers(self, scene: Scene) -> Ask:
        """What the base model says without adapters: a control, and the old answers of an unknown world."""
        name, dataset = scene.composition.name, scene.lexicon.dataset
        # All setups ask the same, and so do all libraries of one graph: one step for all of them.
        scene = self.setup(0, dataset) if name.startswith("setup") else self.relations(name, dataset)
        regime = {"control": "base"}
        scene = replace(scene, regime=regime).with_merge(Merge("sum"))
        return Ask(scene.label, scene.add_to(self.plan), (), self.base.digest)

    def controls(
        self,
        scene: Scene,
        seed: int,
        alone: Sequence[str] = ALONE,
        rules: Sequence[str] = ("sum", "mean"),
        layers: str = "mlp",
    ) -> list[Step]:
        """The base, single adapters by name, and random adapters of the experts' norms under these rules."""
        dataset = scene.lexicon.dataset
        steps: list[Step] = [self.base_answers(scene)]
        for name in alone:
            single = self.setup(0, dataset, (name,), layers=layers)
            library = self.library(single, seed, layers=layers)
            steps.append(self.answers(single, library, "sum", seed, control=name))
        randoms = self.randoms(self.library(scene, seed, layers=layers), seed)
        steps += [self.answers(scene, randoms, rule, seed, control="random") for rule in rules]
        return steps

    def randoms(self, library: Iterable[TrainAdapter], seed: int) -> list[RandomAdapter]:
        """The random controls of adapters."""
        return [RandomAdapter(expert.label, self.plan.add(expert), seed) for expert in library]

    def _known(self, dataset: str) -> bool:
        """Whether the base has old answers: it is known to only where the project made its world."""
        return dataset == "R" and self.base.world is not None

    def _dev(self, scene: Scene) -> Scene:
        """The scene in development templates, about its first chains only."""
        regime = {k: v for k, v in scene.regime.items() if k == "layers"}
        return replace(scene, templates=self.profile.dev, regime=regime).first(self.profile.dev_facts)

    def _scene(self, composition: Composition, dataset: str, bridge: str | None, regime: dict) -> Scene:
        names = lexicon(
            composition,
            dataset=dataset,
            bridge_dataset=bridge,
            seed=self.profile.items,
            base_world=self.base.world,
        )
        return Scene(composition, names, self.profile.test, {"layers": "mlp", **regime})


def _merged(
    planner: Planner, scene: Scene, seed: int, rules: Iterable[str | Merge], **changes: Any
) -> list[Step]:
    library = planner.library(scene, seed, **changes)
    return [planner.answers(scene, library, rule, seed) for rule in rules]


def fig1(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for dataset in "FHR":
            for library in (PAIR, TRIPLE):
                yield from _merged(planner, planner.setup(0, dataset, library), seed, UNIFORM + ARROW)
            for name in ("oracle", "mixed"):
                alone = planner.setup(0, dataset, (name,))
                yield planner.answers(alone, planner.library(alone, seed), "sum", seed, control=name)


def table7(planner: Planner) -> Iterable[Step]:
    yield from fig1(planner)
    for seed in planner.seeds:
        for dataset in "FHR":
            scene = planner.setup(0, dataset)
            yield from _merged(planner, scene, seed, ("sum",))
            yield from planner.controls(scene, seed)


def table1(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for number in range(9):
            scene = planner.setup(number, "F" if number == 1 else "R")
            yield from _merged(planner, scene, seed, UNIFORM + ARROW)
        yield from planner.controls(planner.setup(0, "R"), seed)


def bridge(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for number in (0, 2, 5, 4):
            yield from _merged(planner, planner.setup(number, "R"), seed, ("mean", "arrow-products"))
        yield from planner.controls(
            planner.setup(0, "R"), seed, ("hop1", "hop2", "oracle", "joint"), ("mean",)
        )


def contrast(planner: Planner) -> Iterable[Step]:
    """Plain against bridged, under matched and longer training, from one initial A for each or one for all.

    Every adapter is also asked alone, which parts what its training left out from what the merge took away.
    The paper trains by epochs, so its bridged adapters take about three times the steps of plain ones at our
    sizes.
    """
    steps = planner.profile.training.steps
    for seed in planner.seeds:
        for number, longer in ((2, 1), (0, 1), (2, 3)):
            if longer > 1 and steps is None:
                continue  # trained by epochs already
            more = {} if longer == 1 else {"steps": longer * steps}
            for start in ({}, {"initial_a": "shared"}):
                library = planner.library(planner.setup(number, "R"), seed, **start, **more)
                scene = planner.setup(number, "R", **start, **more)
                for rule in ("sum", "mean", "arrow-products"):
                    yield planner.answers(scene, library, rule, seed)
                for name, adapter in zip(PAIR, library, strict=True):
                    alone = planner.setup(number, "R", (name,), **start, **more)
                    yield planner.answers(alone, [adapter], "sum", seed, control=name)
        yield from planner.controls(planner.setup(0, "R"), seed, ("oracle", "joint"), ("mean",))


def table2(planner: Planner) -> Iterable[Step]:
    """Rules on setup 0's adapters; those that need data get it on chains that are not asked."""
    rules = ("linear", "linear-peft", "mean", "ties", "dare", "knots", "magnitude-prune", *ARROW)
    fitted = ("cat-fitted", "lorahub", "adaptive", "adaptive-random", "new-adapter")
    for seed in planner.seeds:
        scene = planner.setup(0, "R")
        yield from _merged(planner, scene, seed, rules)
        for variant, label in (("frozen-a", "LoRI-D"), ("sparse-b", "LoRI-S")):
            library = planner.library(scene, seed, variant=variant)
            for rule, form in (("sum", "cat"), ("mean", "mean"), ("linear", "linear")):
                yield planner.answers(scene, library, rule, seed, adapters=label, form=form)
        with_data = planner.setup(0, "R", examples=planner.profile.fit_facts)
        library = planner.library(with_data, seed)
        shown = Adapter("shown", with_data.composition.examples)
        examples = training_examples(
            shown,
            with_data.composition.world,
            with_data.lexicon,
            planner.profile.train[: planner.profile.fit_templates],
        )
        fit = add_examples(planner.plan, examples)
        for rule in fitted:
            step = planner.answers(with_data, library, rule, seed)
            yield replace(step, fit=fit, training=planner.profile.training)
        yield from planner.controls(scene, seed)


def table8(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for layers in ("mlp", "attention", "both"):
            for library in (PAIR, TRIPLE):
                scene = planner.setup(0, "F", library, layers=layers)
                yield from _merged(planner, scene, seed, ("linear", *ARROW), layers=layers)
            scene, alone = planner.setup(0, "F", layers=layers), (*TRIPLE, "mixed")
            yield from planner.controls(scene, seed, alone if layers != "mlp" else ALONE, layers=layers)


def table9(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for layers in ("mlp", "attention", "both"):
            for number, dataset in ((1, "F"), (2, "R")):
                scene = planner.setup(number, dataset, layers=layers)
                yield from _merged(planner, scene, seed, ("linear", *ARROW), layers=layers)
                scene = planner.setup(0, dataset, layers=layers)
                yield from planner.controls(scene, seed, TRIPLE if layers != "mlp" else ALONE, layers=layers)


def table12(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for name in ("library-disjoint", "library-shared"):
            scene = planner.relations(name, "F")
            library = planner.library(scene, seed)
            for rule in ("sum", *UNIFORM, *ARROW):
                yield planner.answers(scene, library, rule, seed)
            yield planner.base_answers(scene)
            for single in ("Rel1", "Rel2", "Rel1Rel2"):
                alone = planner.relations(name, "F", (single,))
                yield planner.answers(alone, planner.library(alone, seed), "sum", seed, control=single)
            randoms = planner.randoms(library, seed)
            yield planner.answers(scene, randoms, "mean", seed, control="random")


def edits(planner: Planner) -> Iterable[Step]:
    for dataset in "FR":
        scene = planner.setup(0, dataset).first(planner.profile.edited_facts)
        known = planner.base.world and KnownWorld(planner.base.world.people, planner.base.world.facts)
        world = known and known.add_to(planner.plan)
        yield Edit(scene.lexicon.dataset, scene.add_to(planner.plan), planner.base.digest, world)


def survival(planner: Planner) -> Iterable[Step]:
    """Known (R) and fresh (F) facts under weights (a, 1 - a), and under (1, s): the second is scaled."""
    shifted = [(tenths / 10, (10 - tenths) / 10) for tenths in range(11)]
    scaled = [(1.0, fifths / 5) for fifths in range(1, 11)]  # s = 0 is shifted's last
    for seed in planner.seeds:
        for dataset in "FR":
            scene = planner.setup(0, dataset)
            merges = [Merge("sum", weights) for weights in (*shifted, *scaled)]
            yield from _merged(planner, scene, seed, merges)
            yield from planner.controls(scene, seed)


def relabel(planner: Planner) -> Iterable[Step]:
    """Adapter 1 trained anew under random relabellings of its answers; adapter 2 is the same."""
    for seed in planner.seeds:
        for dataset in "FR":
            for draw in range(planner.profile.relabellings + 1):
                sigma = list(range(planner.profile.facts))
                if draw:
                    random.Random(draw).shuffle(sigma)
                scene = planner.setup(0, dataset, sigma=tuple(sigma), relabelling=draw)
                yield from _merged(planner, scene, seed, ("sum", "mean", "linear", "arrow-products"))
                alone = planner.setup(0, dataset, ("mixed",), sigma=tuple(sigma), relabelling=draw)
                yield from _merged(planner, alone, seed, ("sum",))
            yield from planner.controls(planner.setup(0, dataset), seed)


def gauge(planner: Planner) -> Iterable[Step]:
    """Factor-wise and product-wise rules on adapters from one initial A or several, in several gauges."""
    for seed in planner.seeds:
        scene = planner.setup(0, "F")
        for start in ("independent", "shared"):
            library = planner.library(scene, seed, initial_a=start)
            for form in ("as trained", "flipped", "random:0", "svd"):
                for rule in ("mean", "linear", "linear-peft", "arrow-factors"):
                    step = planner.answers(scene, library, rule, seed, initial_a=start, gauge=form)
                    yield replace(step, gauge=form)
        yield from planner.controls(scene, seed)


def quick(planner: Planner) -> Iterable[Step]:
    for seed in planner.seeds:
        for number in (0, 2):
            yield from _merged(planner, planner.setup(number, "R"), seed, ("mean", "arrow-products"))
    yield planner.base_answers(planner.setup(0, "R"))


@dataclass(frozen=True)
class Work:
    """What an experiment asks for: adapters, training examples seen (with repeats), questions answered.

    questions: without those on which Arrow's temperature is chosen and an adapter's own task is checked.
    """

    adapters: int
    examples: int
    questions: int


@dataclass(frozen=True)
class Experiment:
    """A named experiment: how its steps are planned, one line about it, its place in the paper."""

    steps: Callable[[Planner], Iterable[Step]] = field(repr=False)
    about: str
    source: str

    def plan(self, base: Base, profile: Profile, seeds: Sequence[int]) -> Plan:
        """The steps whose results are wanted, each once, in a fixed order, and all they need."""
        if not seeds or len(set(seeds)) < len(seeds):
            raise SpecError(f"seeds {list(seeds)}: give at least one, each once")
        planner = Planner(base, profile, tuple(seeds))
        planner.plan.want(*self.steps(planner))
        return planner.plan

    def work(self, base: Base, profile: Profile, seeds: Sequence[int]) -> Work:
        """What a run with nothing finished has to do; the closed-form edits of `edits` train nothing."""
        plan = self.plan(base, profile, seeds)
        trained = [step for step in plan.order() if isinstance(step, TrainAdapter)]
        scenes = [step.scene.read(plan) for step in plan.order() if isinstance(step, Ask)]
        return Work(
            adapters=len(trained),
            examples=sum(step.training.seen(len(plan.input(step.examples))) for step in trained),
            questions=sum(len(scene.composition.questions) * len(scene.templates) for scene in scenes),
        )


EXPERIMENTS: dict[str, Experiment] = {
    "fig1": Experiment(
        fig1, "libraries of two and three adapters against single experts, datasets F, H, R", "Figure 1"
    ),
    "table1": Experiment(table1, "bridge setups 0 to 8 under uniform and Arrow routing", "Tables 1 and 10"),
    "bridge": Experiment(
        bridge,
        "setups 0, 2, 4 and 5 with controls, product-wise rules only: table1 at a third of its cost",
        "Table 1",
    ),
    "contrast": Experiment(
        contrast,
        "plain against bridged: matched and longer training, initial A's of their own or one",
        "Figure 2",
    ),
    "table2": Experiment(
        table2, "other merge rules on the adapters of setup 0, data-free and fitted", "Table 2"
    ),
    "table7": Experiment(table7, "as fig1, with every control beside it", "Table 7"),
    "table8": Experiment(table8, "adapters on MLP layers, attention layers or both", "Table 8"),
    "table9": Experiment(table9, "the same for bridge setups 1 and 2", "Table 9"),
    "table12": Experiment(
        table12, "ten adapters on five relations, one pair held out", "appendix A.3, Table 12"
    ),
    "edits": Experiment(
        edits, "closed-form edits of one MLP: coefficients and leaks, layer by layer", "Prop. 1, eq. 24-25"
    ),
    "survival": Experiment(
        survival,
        "does one hop survive as weight moves to the other adapter, or as that is scaled?",
        "theory.md, section 6",
    ),
    "relabel": Experiment(
        relabel, "adapter 1 trained anew under random relabellings", "theory.md, section 5"
    ),
    "gauge": Experiment(
        gauge, "factor-wise merging under other initial factors and gauges", "eq. 27-28; theory.md, 5a"
    ),
    "quick": Experiment(quick, "setups 0 and 2 under mean and Arrow", "Table 1"),
}
