"""The experiments on two-hop compositions: which adapters each trains, how it merges them, what it asks.

Steps that two experiments share are computed once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from llm_experiments.domains.task import keep_examples
from llm_experiments.domains.two_hop.chains import chains, unrelated
from llm_experiments.domains.two_hop.edit_step import REFERENCE, UNRELATED, Edit
from llm_experiments.domains.two_hop.rendering import training_examples
from llm_experiments.domains.two_hop.scenes import ALONE, ARROW, PAIR, TRIPLE, UNIFORM, TwoHop
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from toytransformer.compositions import Adapter, Merge

two_hop = partial(experiment, needs=("two-hop",), study=TwoHop)


@two_hop(
    "fig1",
    about="libraries of two and three adapters against single experts, datasets F, H, R",
    source="Figure 1",
)
def fig1(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for dataset in "FHR":
            for library in (PAIR, TRIPLE):
                yield from study.merged(study.setup(0, dataset, library), seed, UNIFORM + ARROW)
            for name in ("oracle", "mixed"):
                alone = study.library(study.setup(0, dataset, (name,)), seed)
                yield study.answers(alone, "sum", seed, control=name)


@two_hop("table1", about="bridge setups 0 to 8 under uniform and Arrow routing", source="Tables 1 and 10")
def table1(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for number in range(9):
            scene = study.setup(number, "F" if number == 1 else "R")
            yield from study.merged(scene, seed, UNIFORM + ARROW)
        yield from study.controls(study.setup(0, "R"), seed)


@two_hop(
    "bridge",
    about="setups 0, 2, 4 and 5 with controls, product-wise rules only: table1 at a third of its cost",
    source="Table 1",
)
def bridge(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for number in (0, 2, 5, 4):
            yield from study.merged(study.setup(number, "R"), seed, ("mean", "arrow-products"))
        yield from study.controls(study.setup(0, "R"), seed, ("hop1", "hop2", "oracle", "joint"), ("mean",))


@two_hop(
    "contrast",
    about="plain against bridged: matched and longer training, initial A's of their own or one",
    source="Figure 2",
)
def contrast(study: TwoHop) -> Iterator[Step]:
    """Plain against bridged, under matched and longer training, from one initial A for each or one for all.

    Every adapter is also asked alone, which parts what its training left out from what the merge took away.
    The paper trains by epochs, so its bridged adapters take about three times the steps of plain ones at our
    sizes.
    """
    steps = study.profile.training.steps
    for seed in study.seeds:
        for number, longer in ((2, 1), (0, 1), (2, 3)):
            if longer > 1 and steps is None:
                continue  # trained by epochs already
            more = {} if longer == 1 or steps is None else {"steps": longer * steps}
            for start in ({}, {"initial_a": "shared"}):
                changed: dict[str, Any] = {**start, **more}
                library = study.library(study.setup(number, "R"), seed, **changed)
                for rule in ("sum", "mean", "arrow-products"):
                    yield study.answers(library, rule, seed, **changed)
                for name in PAIR:
                    alone = study.alone(library, study.setup(number, "R", (name,)))
                    yield study.answers(alone, "sum", seed, control=name, **changed)
        yield from study.controls(study.setup(0, "R"), seed, ("oracle", "joint"), ("mean",))


@two_hop(
    "table2", about="other merge rules on the adapters of setup 0, data-free and fitted", source="Table 2"
)
def table2(study: TwoHop) -> Iterator[Step]:
    """Rules on setup 0's adapters; those that need data get it on chains that are not asked."""
    rules = ("linear", "linear-peft", "mean", "ties", "dare", "knots", "magnitude-prune", *ARROW)
    fitted = ("cat-fitted", "lorahub", "adaptive", "adaptive-random", "new-adapter")
    for seed in study.seeds:
        scene = study.setup(0, "R")
        yield from study.merged(scene, seed, rules)
        for variant, label in (("frozen-a", "LoRI-D"), ("sparse-b", "LoRI-S")):
            library = study.library(scene, seed, variant=variant)
            for rule, form in (("sum", "cat"), ("mean", "mean"), ("linear", "linear")):
                yield study.answers(library, rule, seed, adapters=label, form=form)
        with_data = study.setup(0, "R", examples=study.size.fit_facts)
        library = study.library(with_data, seed)
        shown = Adapter("shown", with_data.composition.examples)
        templates = study.size.train[: study.size.fit_templates]
        examples = training_examples(shown, with_data.composition.world, with_data.words, templates)
        fit = keep_examples(study.plan, examples)
        for rule in fitted:
            step = study.answers(library, rule, seed)
            yield replace(step, fit=fit, training=study.profile.training)
        yield from study.controls(scene, seed)


@two_hop("table7", about="as fig1, with every control beside it", source="Table 7")
def table7(study: TwoHop) -> Iterator[Step]:
    yield from fig1(study)
    for seed in study.seeds:
        for dataset in "FHR":
            scene = study.setup(0, dataset)
            yield from study.merged(scene, seed, ("sum",))
            yield from study.controls(scene, seed)


@two_hop("table8", about="adapters on MLP layers, attention layers or both", source="Table 8")
def table8(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for layers in ("mlp", "attention", "both"):
            for library in (PAIR, TRIPLE):
                scene = study.setup(0, "F", library)
                yield from study.merged(scene, seed, ("linear", *ARROW), layers=layers)
            alone = (*TRIPLE, "mixed") if layers != "mlp" else ALONE
            yield from study.controls(study.setup(0, "F"), seed, alone, layers=layers)


@two_hop("table9", about="the same for bridge setups 1 and 2", source="Table 9")
def table9(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for layers in ("mlp", "attention", "both"):
            for number, dataset in ((1, "F"), (2, "R")):
                scene = study.setup(number, dataset)
                yield from study.merged(scene, seed, ("linear", *ARROW), layers=layers)
                alone = TRIPLE if layers != "mlp" else ALONE
                yield from study.controls(study.setup(0, dataset), seed, alone, layers=layers)


@two_hop(
    "table12", about="ten adapters on five relations, one pair held out", source="appendix A.3, Table 12"
)
def table12(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for name in ("library-disjoint", "library-shared"):
            scene = study.relations(name, "F")
            library = study.library(scene, seed)
            for rule in ("sum", *UNIFORM, *ARROW):
                yield study.answers(library, rule, seed)
            yield study.base_answers(scene)
            for single in ("Rel1", "Rel2", "Rel1Rel2"):
                alone = study.library(study.relations(name, "F", (single,)), seed)
                yield study.answers(alone, "sum", seed, control=single)
            yield study.answers(study.randoms(library, seed), "mean", seed, control="random")


@two_hop(
    "edits",
    about="closed-form edits of one MLP: coefficients and leaks, layer by layer",
    source="Prop. 1, eq. 24-25",
)
def edits(study: TwoHop) -> Iterator[Step]:
    for dataset in "FR":
        scene = study.setup(0, dataset)
        asked = chains(scene.composition, scene.words, study.size.test[0], first=study.size.edited_facts)
        others = unrelated(scene.words, REFERENCE + UNRELATED, seed=0, base_world=study.base.world)
        yield Edit(
            dataset=dataset,
            names=study.names,
            spec_hash=str(scene.task.composition),
            digest=study.base.digest,
            chains={kind: study.plan.add_input(lines) for kind, lines in asked.lines().items()},
            others=study.plan.add_input(others),
        )


@two_hop(
    "survival",
    about="does one hop survive as weight moves to the other adapter, or as that is scaled?",
    source="theory.md, section 6",
)
def survival(study: TwoHop) -> Iterator[Step]:
    """Known (R) and fresh (F) facts under weights (a, 1 - a), and under (1, s): the second is scaled."""
    shifted = [(tenths / 10, (10 - tenths) / 10) for tenths in range(11)]
    scaled = [(1.0, fifths / 5) for fifths in range(1, 11)]  # s = 0 is shifted's last
    for seed in study.seeds:
        for dataset in "FR":
            scene = study.setup(0, dataset)
            yield from study.merged(scene, seed, [Merge("sum", weights) for weights in (*shifted, *scaled)])
            yield from study.controls(scene, seed)


@two_hop("relabel", about="adapter 1 trained anew under random relabellings", source="theory.md, section 5")
def relabel(study: TwoHop) -> Iterator[Step]:
    """Adapter 1 trained anew under random relabellings of its answers; adapter 2 is the same."""
    for seed in study.seeds:
        for dataset in "FR":
            for draw in range(study.size.relabellings + 1):
                sigma = list(range(study.size.facts))
                if draw:
                    random.Random(draw).shuffle(sigma)
                scene = study.setup(0, dataset, sigma=tuple(sigma))
                rules = ("sum", "mean", "linear", "arrow-products")
                yield from study.merged(scene, seed, rules, relabelling=draw)
                alone = study.setup(0, dataset, ("mixed",), sigma=tuple(sigma))
                yield from study.merged(alone, seed, ("sum",), relabelling=draw)
            yield from study.controls(study.setup(0, dataset), seed)


@two_hop(
    "gauge",
    about="factor-wise merging under other initial factors and gauges",
    source="eq. 27-28; theory.md, 5a",
)
def gauge(study: TwoHop) -> Iterator[Step]:
    """Factor-wise and product-wise rules on adapters from one initial A or several, in several gauges."""
    for seed in study.seeds:
        scene = study.setup(0, "F")
        for start in ("independent", "shared"):
            library = study.library(scene, seed, initial_a=start)
            for form in ("as trained", "flipped", "random:0", "svd"):
                for rule in ("mean", "linear", "linear-peft", "arrow-factors"):
                    yield study.answers(library, rule, seed, initial_a=start, gauge=form)
        yield from study.controls(scene, seed)


@two_hop("quick", about="setups 0 and 2 under mean and Arrow", source="Table 1")
def quick(study: TwoHop) -> Iterator[Step]:
    for seed in study.seeds:
        for number in (0, 2):
            yield from study.merged(study.setup(number, "R"), seed, ("mean", "arrow-products"))
    yield study.base_answers(study.setup(0, "R"))
