"""A composition in words: the task that measures on a language model what the toy predicts of it.

Items ask a composition's questions in several wordings, training sets are its adapters' facts and chains, the
scorer (`entities`) reads answers against its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from llm_experiments.domains.task import (
    Inputs,
    Task,
    TrainingSet,
    domain,
    keep_examples,
    keep_items,
)
from llm_experiments.domains.two_hop import scorer
from llm_experiments.domains.two_hop.candidates import candidates
from llm_experiments.domains.two_hop.known import KnownFacts
from llm_experiments.domains.two_hop.lexicon import Lexicon, lexicon
from llm_experiments.domains.two_hop.rendering import Form, question_text, render, training_examples
from llm_experiments.domains.two_hop.sizes import SIZES
from llm_experiments.domains.two_hop.templates import DEV, TEST, TRAIN
from results.rows import Item
from toytransformer.compositions import Adapter, Composition, Fact, Question, catalogue
from toytransformer.compositions.setups import setup
from toytransformer.compositions.spec import hops, question, trained_answers

Decode = Literal["direct", "steps"]


@domain(
    "two-hop",
    about="x R1 R2 from adapters that hold x R1 -> y and y R2 -> z, in words: people and places",
    small={"composition": "setup-2", "facts": 3, "train": [0, 1], "test": [48]},
    sizes=SIZES,
)
def two_hop(
    inputs: Inputs,
    *,
    composition: str = "setup-0",
    facts: int = 20,
    dataset: str = "R",
    library: Sequence[str] | None = None,
    train: Sequence[int] = tuple(TRAIN),
    dev: Sequence[int] = DEV,
    test: Sequence[int] = TEST,
    names: int = 0,
    base_world: KnownFacts | None = None,
) -> Task:
    """A composition by name, "setup-0" .. "setup-8" or one of the catalogue's, in words; see `task`.

    names: which draw. Errors: what composition, lexicon and rendering raise.
    """
    known = dataset == "R" and base_world is not None
    number = re.fullmatch(r"setup-(\d+)", composition)
    if number:
        spec = setup(int(number[1]), facts=facts, known=known, library=tuple(library or ("hop1", "hop2")))
    else:
        spec = catalogue.build(
            composition, facts=facts, known=known, library=None if library is None else tuple(library)
        )
    bridge = "F" if dataset == "R" else "R"
    words = lexicon(
        spec, dataset=dataset, seed=names, bridge_dataset=bridge if number else None, base_world=base_world
    )
    return task(inputs, spec, words, train=train, dev=dev, test=test, dev_chains=facts)


def task(
    inputs: Inputs,
    composition: Composition,
    words: Lexicon,
    *,
    train: Sequence[int],
    dev: Sequence[int],
    test: Sequence[int],
    dev_chains: int,
    logprobs: str = "direct",
    made: dict[object, TrainingSet] | None = None,
    form_alone: bool = False,
) -> Task:
    """The composition in the words of a lexicon.

    train, dev, test: numbers of the wordings that adapters are trained in, choices are made on and questions
    are asked in. dev_chains: choices are made on the single hops of so many of the chains that are asked.
    logprobs: of which questions the probabilities of answers are wanted (domains.task.LOGPROBS).
    made: training sets of other compositions in the same wordings, which this one takes or adds to.
    form_alone: whether chains are taught without their facts (rendering.training_examples).
    Errors: SpecError on facts that cannot be worded, LexiconError on entities without a name.
    """
    single = single_hops(composition, dev_chains)
    scored = candidates(composition, words, test, level=logprobs)
    return Task(
        domain="two-hop",
        name=composition.name,
        scorer="entities",
        items=keep_items(inputs, items(composition, composition.questions, words, test)),
        dev=keep_items(inputs, items(composition, single, words, dev)) if single else None,
        training={
            adapter.name: training_set(inputs, composition, adapter, words, train, test, made, form_alone)
            for adapter in composition.adapters
        },
        context=inputs.add_input([scorer.context(composition, words)]),
        candidates=inputs.add_input(asdict(given) for given in scored),
        dataset=words.dataset,
        names=words.seed,
        setting=dict(composition.setting),
        composition=inputs.add_spec(composition.to_json()),
        chosen_by="hops",
    )


def items(
    composition: Composition, questions: Iterable[Question], words: Lexicon, templates: Sequence[int]
) -> list[Item]:
    """Every question in every wording, question by question."""
    return [item(composition, question, words, k) for question in questions for k in templates]


def item(composition: Composition, asking: Question, words: Lexicon, template: int) -> Item:
    """A question in one wording. Roles: correct, bridge and world_old, the answer before the edits."""
    target = None
    if asking.correct in words.names:
        form: Form = "chain" if asking.decode == "steps" else "direct"
        target = render(asking.prompt, asking.correct, words, template, form, composition.world).answer
    roles = {"correct": asking.correct, "bridge": asking.bridge, "world_old": asking.old}
    return Item(
        id=f"{asking.prompt}/{asking.decode}/{template}",
        cluster=cluster(asking.prompt.entity),
        group=asking.group,
        ask=asking.decode,
        question=question_text(asking, words, template),
        target=target,
        roles={role: entity for role, entity in roles.items() if entity is not None},
        extra={"prompt": str(asking.prompt), "template": template},
    )


def cluster(entity: str) -> str:
    """The chain that an entity belongs to, so that x3 and y3 are one, as are x3_14 and z3_14."""
    bridge, name = entity.startswith("bridge_"), entity.removeprefix("bridge_")
    number = re.sub(r"^[A-Za-z]+(?=\d)", "", name)
    return f"bridge {number}" if bridge else number


def training_set(
    inputs: Inputs,
    composition: Composition,
    adapter: Adapter,
    words: Lexicon,
    train: Sequence[int],
    test: Sequence[int],
    made: dict[object, TrainingSet] | None = None,
    form_alone: bool = False,
) -> TrainingSet:
    """What an adapter is trained on, and its facts in the wordings of the test.

    It says nothing of the rest of the composition, so that compositions share the adapters they have in
    common; made: those that there are already. form_alone: its chains are taught without their facts, and so
    are no part of its own task.
    """
    world = composition.world
    names = {entity: words.names.get(entity) for entity in _entities(composition, adapter)}
    key = (adapter.name, adapter.facts, adapter.chains, tuple(sorted(names.items())), form_alone)
    if made is not None and key in made:
        return made[key]
    facts: list[tuple[Fact, Decode]] = [(fact, "direct") for fact in adapter.facts]
    facts += [] if form_alone else [(chain, "steps") for chain in adapter.chains]
    own = [item(composition, _taught(composition, fact, ask), words, k) for fact, ask in facts for k in test]
    relations = {relation for fact, _ in facts for relation in fact.prompt.relations}
    whole = scorer.context(composition, words)
    context = {
        "names": {entity: name for entity, name in whole["names"].items() if entity in names},
        "kinds": {entity: kind for entity, kind in whole["kinds"].items() if entity in names},
        "ends": {relation: kind for relation, kind in whole["ends"].items() if relation in relations},
        "edited": sorted(trained_answers([adapter])),
    }
    examples = keep_examples(inputs, training_examples(adapter, world, words, train, form_alone))
    taught = TrainingSet(adapter.name, examples, keep_items(inputs, own), inputs.add_input([context]))
    if made is not None:
        made[key] = taught
    return taught


def _entities(composition: Composition, adapter: Adapter) -> set[str]:
    """Whom and what an adapter is taught of, the steps of its chains included."""
    taught = adapter.stored(composition.world) + adapter.chains
    return {name for fact in taught for name in (fact.prompt.entity, fact.answer)}


def _taught(composition: Composition, fact: Fact, ask: Decode) -> Question:
    """A trained fact as a question; its first hop's answer only where its steps are written out."""
    bridge = hops(composition.world, fact.prompt)[0].answer if ask == "steps" else None
    return Question(fact.prompt, fact.answer, bridge, group="own task", decode=ask)


def single_hops(composition: Composition, chains: int) -> list[Question]:
    """The single hops of the first chains that are asked about: all first hops, then all second ones."""
    world = composition.world
    prompts = dict.fromkeys(q.prompt for q in composition.questions if q.prompt.hops > 1)
    steps = [hops(world, prompt) for prompt in list(prompts)[:chains]]
    places = zip(*steps, strict=True)
    asked = {fact.prompt: f"hop{k}" for k, facts in enumerate(places, start=1) for fact in facts}
    return [question(world, prompt, group=group) for prompt, group in asked.items()]
