"""Hop 1's adapter in lower blocks, hop 2's in upper ones, and every other order: does the sum compose?

The arrangements, and what theory expects of each, are data: layer_order.toml.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path

from llm_experiments.adapters.late_entry import LateEntry
from llm_experiments.domains.two_hop.lexicon import DATASETS
from llm_experiments.domains.two_hop.names import draw
from llm_experiments.domains.two_hop.patching import AskPatched, Patch
from llm_experiments.domains.two_hop.scenes import PAIR, Library, Scene, TwoHop
from llm_experiments.domains.two_hop.templates import template
from llm_experiments.engine.addresses import Ref
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.registry import experiment
from llm_experiments.models.choice import Arrangement, LayerChoice
from llm_experiments.steps.adapters import TrainAdapter, TrainLate
from llm_experiments.steps.asking import Ask
from toytransformer.compositions import Merge

FILE = Path(__file__).with_suffix(".toml")
#: People drawn as strangers where nobody says whom the base knows.
STRANGERS = 200
EXPECTED = ("above", "at most", "open")
#: Weights of the sum under which the arrangement that theory expects most of is asked beside (1, 1).
WEIGHTS = ((1.5, 1.0), (2.0, 1.0), (1.0, 1.5), (1.0, 2.0))


@dataclass(frozen=True)
class Planned:
    """An arrangement, the experiment that measures it, and what theory expects of its direct questions."""

    experiment: str
    name: str
    layers: Arrangement
    expected: str


@cache
def arrangements() -> tuple[Planned, ...]:
    """Those of the file, in its order. Errors: ValueError on an expectation that is none."""
    found = []
    for line in tomllib.loads(FILE.read_text(encoding="utf-8"))["arrangement"]:
        if line["expected"] not in EXPECTED:
            raise ValueError(f"{FILE}: expected is {line['expected']!r}; use one of {', '.join(EXPECTED)}")
        layers = Arrangement({name: LayerChoice.parse(line[name]) for name in PAIR})
        found.append(Planned(line["experiment"], line["name"], layers, line["expected"]))
    return tuple(found)


@dataclass(frozen=True)
class LayerOrder(TwoHop):
    """The plain pair on dataset R, asked both hops and both together, all directly."""

    @cached_property
    def _orders(self) -> dict[tuple[str, ...], Scene]:
        return {}

    def scene(self, library: tuple[str, ...] = PAIR, *, hops: bool = True) -> Scene:
        """hops: False for the two-hop questions alone."""
        key = (*library, str(hops))
        if key not in self._orders:
            plain = self.setup(0, "R", library).composition
            direct = [q for q in plain.questions if q.decode == "direct"]
            asked = tuple(q for q in direct if hops or q.prompt.hops > 1)
            name = "layer-order" if hops else "layer-patching"
            self._orders[key] = self._scene(
                replace(plain, name=name, questions=asked),
                "R",
                None,
                lambda other: other.setup(0, "R", library),
            )
        return self._orders[key]

    def base_answers(self, scene: Scene) -> Ask:
        return self.ask_base(self.scene().task)

    def arranged(self, layers: Arrangement, seed: int, scene: Scene | None = None) -> Library:
        """The scene's adapters, each trained in layers of its own."""
        scene = scene or self.scene(tuple(layers.choices))
        adapters = {
            name: self.library(self.scene((name,)), seed, layers=str(choice)).adapters[name]
            for name, choice in layers.choices.items()
        }
        return Library(scene, adapters, {})

    def entered(self, library: Library, seed: int) -> Library:
        """A library of one adapter, hop 2's, that is trained to be entered late instead."""
        ((name, address),) = library.adapters.items()
        plain = self.plan.steps[address]
        assert isinstance(plain, TrainAdapter)
        known = {field.name: getattr(plain, field.name) for field in fields(plain)}
        lines = self.plan.add_input(self._strangers(library.scene, seed))
        guards = self.plan.add_input(self._guards(library.scene, seed))
        known["title"] = f"{plain.title}, entered late"
        step = TrainLate(**known, entries=lines, guards=guards, entry=LateEntry())
        return replace(library, adapters={name: self.plan.add(step)})

    def _strangers(self, scene: Scene, seed: int) -> Iterator[dict[str, str]]:
        """Each fact of the scene's adapter in each wording, beside the same about a stranger."""
        words, facts = self.scene().words, scene.composition.adapters[0].facts
        taken = set(words.names.values())
        if self.base.world is None:
            people = draw(DATASETS[words.dataset]["person"], STRANGERS, seed, taken)
        else:
            people = tuple(sorted(set(self.base.world.people) - taken))
        rng = random.Random(f"strangers {seed}")
        for fact in facts:
            for number in self.size.train:
                wording = template(words.worded(fact.prompt.relations), number)
                name, answer = words.name(fact.prompt.entity), words.name(fact.answer)
                stranger = rng.choice(people)
                yield {
                    "question": wording.ask(name),
                    "answer": wording.tell(name, answer),
                    "name": name,
                    "stranger_question": wording.ask(stranger),
                    "stranger_answer": wording.tell(stranger, answer),
                    "begun": wording.answer.partition("{y}")[0].replace("{x}", stranger),
                }

    def _guards(self, scene: Scene, seed: int) -> Iterator[dict[str, str]]:
        """What the base knows of people nobody asks about, in other relations; nothing where nobody says."""
        words, world = self.scene().words, self.base.world
        if world is None:
            return
        taken = set(words.names.values())
        used = {words.worded(fact.prompt.relations)[0] for fact in scene.composition.adapters[0].facts}
        rng = random.Random(f"guards {seed}")
        for (person, relation), answer in sorted(world.facts.items()):
            if person not in taken and relation not in used:
                wording = template((relation,), rng.choice(self.size.train))
                begun = wording.answer.partition("{y}")[0].replace("{x}", person)
                yield {
                    "question": wording.ask(person),
                    "answer": wording.tell(person, answer),
                    "begun": begun,
                }

    def under(self, layers: Arrangement, seed: int, merges: tuple[Merge, ...]) -> Iterator[Step]:
        """An arrangement under each of these merges."""
        library = self.arranged(layers, seed)
        for merge in merges:
            yield self.answers(library, merge, seed, layers=str(layers))

    def alone(self, layers: Arrangement, seed: int) -> Iterator[Step]:  # type: ignore[override]
        """Each adapter of an arrangement by itself."""
        for name, choice in layers.choices.items():
            own = Arrangement({name: choice})
            library = self.arranged(own, seed)
            yield self.answers(library, "sum", seed, control=name, layers=str(own))


layer_order = partial(experiment, needs=("two-hop",), study=LayerOrder, source="theory.md, section 11")


@layer_order(
    "layer-order", about="hop 1's adapter in the lower half and hop 2's in the upper, and other orders"
)
def halves(study: LayerOrder) -> Iterator[Step]:
    """Sums of the four orders of halves; weights and `mean` for hop 1 below hop 2; each adapter alone.

    Where no layer is changed by two adapters, Arrow has nothing to choose and is the sum.
    """
    planned = [one for one in arrangements() if one.experiment == "layer-order"]
    composing = next(one.layers for one in planned if one.expected == "above")
    yield study.base_answers(study.scene())
    for seed in study.seeds:
        for one in planned:
            yield from study.under(one.layers, seed, (Merge("sum"),))
        weighted = tuple(Merge("sum", weights) for weights in WEIGHTS)
        yield from study.under(composing, seed, (*weighted, Merge("mean")))
        for one in planned[:2]:  # every adapter is in one of them
            yield from study.alone(one.layers, seed)
        randoms = study.randoms(study.arranged(composing, seed), seed)
        yield study.answers(randoms, "sum", seed, control="random", layers=str(composing))


@layer_order("layer-order-cuts", about="the same at other cuts, interleaved, on all layers, in one adapter")
def cuts(study: LayerOrder) -> Iterator[Step]:
    """The sum of every other arrangement, and one adapter that holds both hops in all layers."""
    for seed in study.seeds:
        for one in arrangements():
            if one.experiment == "layer-order-cuts":
                yield from study.under(one.layers, seed, (Merge("sum"),))
                yield from study.alone(one.layers, seed)
        yield from study.alone(Arrangement({"mixed": LayerChoice("mlp")}), seed)
    yield study.base_answers(study.scene())


#: Weights under which a library whose hop 2 enters late is asked.
LATE_WEIGHTS = ((1.5, 1.0), (1.0, 1.0))
#: The arrangement in which it is.
LATE = "lower to upper"


@layer_order("layer-order-late", about="hop 2 trained to read its entity where lower layers leave an answer")
def late(study: LayerOrder) -> Iterator[Step]:
    """Hop 1 as it is, below or beside hop 2 in the upper half, which is trained to be entered late.

    Beside it hop 1 writes nothing that hop 2 could read: what is right there is right by chance. The cut, the
    shares and the bounds of late entry were chosen on the draw of names for development.
    """
    composing = next(one.layers for one in arrangements() if one.name == LATE)
    same = Arrangement(dict.fromkeys(PAIR, composing.choices["hop2"]))
    for seed in study.seeds:
        yield from study.under(composing, seed, (Merge("sum"),))
        own = Arrangement({"hop2": composing.choices["hop2"]})
        second = study.entered(study.arranged(own, seed), seed)
        yield study.answers(second, "sum", seed, control="hop2", layers=str(own), entry="late")
        for layers, weights in ((composing, LATE_WEIGHTS), (same, LATE_WEIGHTS[:1])):
            library = study.arranged(layers, seed)
            library = replace(library, adapters={**library.adapters, **second.adapters})
            for given in weights:
                yield study.answers(library, Merge("sum", given), seed, layers=str(layers), entry="late")
        yield study.base_answers(study.scene())


#: What is put where in a two-hop question's residual stream behind the lower half; see Patch.
PATCHES = (
    Patch("own", "names and last"),
    Patch("second hop", "last"),
    Patch("second hop", "names"),
    Patch("second hop", "names and last"),
    Patch("embedding", "last"),
    Patch("embedding", "names"),
)


@layer_order(
    "layer-patching", about="what keeps hop 2 in upper blocks from reading hop 1's answer in lower ones"
)
def patching(study: LayerOrder) -> Iterator[Step]:
    """Two-hop questions with hop 1's right answer put into the residual stream between the two halves.

    The right answer y is told from outside, so this says what limits the sum, and is no merge.
    """
    composing = next(one.layers for one in arrangements() if one.expected == "above")
    scene = study.scene(hops=False)
    pairs = study.plan.add_input(_pairs(study, scene))
    for seed in study.seeds:
        library = study.arranged(composing, seed, scene)
        plain = study.answers(library, "sum", seed, layers=str(composing))
        yield study.base_answers(scene)
        for patch in PATCHES:
            yield _patched(plain, pairs, patch)


def _patched(plain: Ask, pairs: Ref, patch: Patch) -> AskPatched:
    """The question of an Ask under a patch."""
    variant: Mapping[str, str] = {"patched": patch.place, "with": patch.source}
    return AskPatched(
        title=f"{plain.title} (patched at {patch.place} with {patch.source})",
        digest=plain.digest,
        about=replace(plain.about, spec_hash=None),  # nothing predicts it
        reading=plain.reading,
        library=plain.library,
        merge=plain.merge,
        base=plain.base,
        seed=plain.seed,
        layers=plain.layers,
        variant=variant,
        pairs=pairs,
        patch=patch,
    )


def _pairs(study: LayerOrder, scene: Scene) -> Iterator[dict[str, str]]:
    """By item the two-hop question, hop 2's question, and the answers to both up to the name asked for."""
    words = scene.words
    for question in scene.composition.questions:
        assert question.bridge is not None
        first, second = words.name(question.prompt.entity), words.name(question.bridge)
        for number in study.size.test:
            line = {"item": f"{question.prompt}/{question.decode}/{number}"}
            both = template(words.worded(question.prompt.relations), number)
            last = template(words.worded(question.prompt.relations[1:]), number)
            for what, asking, name in (("", both, first), ("donor_", last, second)):
                begun = asking.answer.partition("{y}")[0].replace("{x}", name)
                line |= {f"{what}question": asking.ask(name), f"{what}begun": begun, f"{what}name": name}
            yield line
