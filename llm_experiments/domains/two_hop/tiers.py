"""What predictions of merges start from, and the merges that they are held against.

    scales               each adapter alone over weights, and random ones of its norm
    oracle-gate          each step of a chain by its own adapter: a router that knows the step
    context              the base and each adapter with the facts in the prompt: copying, form, the chains' k
    tiers-development    merges of the setups that predictions may be developed on
    tiers-test           merges of the others, which are not looked at before predictions of them are kept

Setups 4 and 5 hold adapters of setups 0 and 2. All steps name adapters by what they are trained on, so in one
folder the merges are of those very adapters that were asked alone: CellInfo.adapters says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from functools import partial

from llm_experiments.domains.task import keep_items, read_items
from llm_experiments.domains.two_hop.rendering import SECOND, in_context
from llm_experiments.domains.two_hop.scenes import PAIR, Library, Scene, TwoHop
from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.steps.staged import AskInTurn
from toytransformer.compositions import Merge

#: Weights of an adapter alone, and of a random one.
WEIGHTS = tuple(tenths / 10 for tenths in range(1, 16))
RANDOM_WEIGHTS = (0.5, 1.0, 1.5)
#: Setups whose adapters are all there are, those of the first ones first.
SETUPS = ((0, 2), (7, 6, 8))
#: Setups whose merges predictions are developed on, and those that they are tested on.
DEVELOPMENT, TEST = (0, 4, 5), (2, 7, 6, 8)
#: Rules that are predicted: those that add products, with weights that are given or routed.
RULES = ("mean", "sum", "arrow-products")
#: The variant of cells whose questions have both facts of their chain in front.
CONTEXT = {"context": "facts"}

two_hop = partial(experiment, needs=("two-hop",), study=TwoHop, source="theory.md, section 9")


@two_hop("scales", about="each adapter of every setup alone over weights .1 to 1.5, direct questions")
def scales(study: TwoHop) -> Iterator[Step]:
    yield study.base_answers(study.setup(0, "R"))
    for numbers in SETUPS:
        for seed in study.seeds:
            for number in numbers:
                library = study.library(study.setup(number, "R"), seed, layers="mlp")
                for name in PAIR:
                    alone = study.alone(library, direct(study, study.setup(number, "R", (name,))))
                    for weight in WEIGHTS:
                        yield study.answers(alone, Merge("sum", (weight,)), seed, control=name)
                    if number == 0:
                        noise = study.randoms(alone, seed)
                        for weight in RANDOM_WEIGHTS:
                            yield study.answers(noise, Merge("sum", (weight,)), seed, control="random")


@two_hop("tiers-development", about="setups 0, 4 and 5 merged: what predictions may be developed on")
def development(study: TwoHop) -> Iterator[Step]:
    yield from _merged(study, DEVELOPMENT)


@two_hop("tiers-test", about="setups 2, 6, 7 and 8 merged: for predictions that are kept beforehand")
def test(study: TwoHop) -> Iterator[Step]:
    yield from _merged(study, TEST)


def _merged(study: TwoHop, numbers: Sequence[int]) -> Iterator[Step]:
    for seed in study.seeds:
        for number in numbers:
            yield from study.merged(study.setup(number, "R"), seed, RULES)


@two_hop("context", about="the base and single adapters with the facts in the prompt: copying and form")
def context(study: TwoHop) -> Iterator[Step]:
    """Direct one-hop questions say how well names are copied, chains how often form and copying meet.

    The base on three kinds of names, then each adapter at weight 1, on real names with and without a bridge.
    """
    bases = {}
    for dataset in "RHF":
        scene = told(study, study.setup(0, dataset))
        asked = study.ask(scene.task, {}, Merge("sum"), base=None, control="base", variant=CONTEXT)
        bases[dataset] = study.plan.add(asked)
        yield asked
    for seed in study.seeds:
        for dataset, numbers in (("R", (0, 2)), ("H", (0,)), ("F", (0,))):
            for number in numbers:
                library = study.library(study.setup(number, dataset), seed, layers="mlp")
                for name in PAIR:
                    alone = study.alone(library, study.setup(number, dataset, (name,)))
                    yield _in_context(study, alone, bases[dataset], seed, name)


def _in_context(study: TwoHop, alone: Library, base: Address, seed: int, name: str) -> Step:
    scene = told(study, alone.scene)
    return study.ask(
        scene.task,
        alone.adapters,
        Merge("sum"),
        base=base,
        seed=seed,
        layers="mlp",
        control=name,
        variant=CONTEXT,
    )


@two_hop(
    "oracle-gate", about="hop 1's adapter writes the first step, hop 2's the second: a router that knows"
)
def oracle_gate(study: TwoHop) -> Iterator[Step]:
    """Beside it Arrow's hard choice and both adapters at weight 1.

    Adapters change places behind the words that open the second step: an adapter of plain facts that has to
    write them itself falls back to a plain sentence, and what is measured then is the form.
    Only setups that predictions may be developed on: what the others' merges say is not looked at yet.
    """
    for seed in study.seeds:
        for number in DEVELOPMENT:
            scene = study.setup(number, "R")
            library = study.library(scene, seed, layers="mlp")
            items = [item for item in read_items(study.plan, scene.task.items) if item.ask == "steps"]
            asked = study.answers(library, "sum", seed, gate="by step")
            fields = {field.name: getattr(asked, field.name) for field in dataclass_fields(asked)}
            fields["reading"] = replace(asked.reading, items=keep_items(study.plan, items), candidates=None)
            yield AskInTurn(**fields, marker=SECOND.rstrip())
            hard = Merge("arrow-products", options={"top_k": 1, "temperature": 1.0})
            yield from study.merged(scene, seed, (hard, "sum"))


def direct(study: TwoHop, scene: Scene) -> Scene:
    """The scene without chains; candidates are those of setup 0, so that all of its adapters share them."""
    pair = study.setup(0, scene.words.dataset)
    items = [item for item in read_items(study.plan, scene.task.items) if item.ask == "direct"]
    task = replace(scene.task, items=keep_items(study.plan, items), candidates=pair.task.candidates)
    return replace(scene, task=task)


def told(study: TwoHop, scene: Scene) -> Scene:
    """The scene with both facts of its chain in front of every question."""
    items = read_items(study.plan, scene.task.items)
    asked = [in_context(item, scene.composition, scene.words) for item in items]
    pair = study.setup(0, scene.words.dataset)
    task = replace(scene.task, items=keep_items(study.plan, asked), candidates=pair.task.candidates)
    return replace(scene, task=task)
