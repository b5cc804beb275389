"""What the experiments on two-hop compositions plan with: scenes, libraries, controls, temperatures.

The compositions are those the toy model predicts, so that measured rows have the spec hash of predicted ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llm_experiments.domains.task import Task, TrainingSet
from llm_experiments.domains.two_hop.lexicon import Lexicon, lexicon
from llm_experiments.domains.two_hop.sizes import Size
from llm_experiments.domains.two_hop.task import task
from llm_experiments.engine.addresses import Address
from llm_experiments.engine.steps import Step
from llm_experiments.experiments.study import Study
from llm_experiments.steps.asking import Ask
from results.rows import Scalar
from toytransformer.compositions import Composition, Merge, catalogue
from toytransformer.compositions.setups import setup
from toytransformer.merging import RULES, resolve

#: The paper's two routings, each in the form its text defines (factor-wise) and as PEFT has it (products).
UNIFORM, ARROW = (
    tuple(sorted(name for name, rule in RULES.items() if rule.paper == family))
    for family in ("uniform", "arrow")
)
PAIR = ("hop1", "hop2")
TRIPLE = ("hop1", "hop2", "oracle")
#: Adapters asked on their own beside a library.
ALONE = (*TRIPLE, "mixed", "joint")
#: Which of a library's adapters each is: its initial factors and the order of its data differ by it.
INDEX = {name: i for i, name in enumerate(ALONE)}
#: One adapter in place of several is trained for as many steps as they are together.
IN_PLACE_OF = {"mixed": 2, "joint": 3}


@dataclass(frozen=True)
class Scene:
    """A composition in words, and the same on another draw of names."""

    composition: Composition
    words: Lexicon
    task: Task
    elsewhere: Callable[[TwoHop], Scene] = field(repr=False)


@dataclass(frozen=True)
class Library:
    """A scene's adapters by name, in merge order, and what their recipe changes of the profile's."""

    scene: Scene
    adapters: Mapping[str, Address]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class TwoHop(Study):
    """Scenes, libraries and controls of the two-hop experiments."""

    @cached_property
    def size(self) -> Size:
        """How many chains, in how many wordings."""
        return self.profile.size("two-hop")

    @cached_property
    def _scenes(self) -> dict[tuple, Scene]:
        return {}

    @cached_property
    def _training_sets(self) -> dict[object, TrainingSet]:
        return {}

    def setup(
        self,
        number: int,
        dataset: str,
        library: tuple[str, ...] = PAIR,
        *,
        sigma: tuple[int, ...] | None = None,
        examples: int = 0,
        bridge: str | None = None,
        form_alone: bool = False,
    ) -> Scene:
        """Setup `number` of Table 1 on a dataset; its bridge has invented names where the tested are real.

        bridge: the dataset of the bridge's names instead. form_alone: chains are taught without their facts.
        """
        key = (number, dataset, library, sigma, examples, bridge, form_alone)
        if key not in self._scenes:
            bridge = ("F" if dataset == "R" else "R") if bridge is None else bridge
            composition = setup(
                number,
                facts=self.size.facts,
                known=self._known(dataset),
                bridge_facts=self.size.bridge_facts,
                bridge_known=self._known(bridge),
                library=library,
                sigma=sigma,
                examples=examples,
            )
            self._scenes[key] = self._scene(
                composition, dataset, bridge, lambda other: other.setup(0, dataset, library), form_alone
            )
        return self._scenes[key]

    def relations(self, name: str, dataset: str, library: tuple[str, ...] | None = None) -> Scene:
        """Ten adapters on five relations, a pair of them held out (appendix A.3); asked both ways.

        library: other adapters by name, "Rel1Rel2" being the oracle.
        """
        key = (name, dataset, library)
        if key not in self._scenes:
            plain = catalogue.build(
                name,
                facts=self.size.library_facts,
                known=self._known(dataset),
                library=library,
                seed=self.names,
            )
            steps = tuple(replace(question, decode="steps") for question in plain.questions)
            composition = replace(plain, questions=(*plain.questions, *steps))
            self._scenes[key] = self._scene(
                composition, dataset, None, lambda other: other.relations(name, dataset, library)
            )
        return self._scenes[key]

    def library(self, scene: Scene, seed: int, **changes: Any) -> Library:
        """Every adapter of the scene, trained by the profile's recipe with `changes`."""
        names = [adapter.name for adapter in scene.composition.adapters]
        adapters = {}
        for place, name in enumerate(names):
            training = replace(self.profile.training, **changes)
            if training.steps is not None:
                training = replace(training, steps=training.steps * IN_PLACE_OF.get(name, 1))
            index = INDEX.get(name, place)
            adapters[name] = self.train(scene.task, name, training, seed, index, **changes)
        return Library(scene, adapters, changes)

    def randoms(self, library: Library, seed: int) -> Library:
        """The random controls of a library."""
        return replace(library, adapters={n: self.random(a, seed) for n, a in library.adapters.items()})

    def answers(
        self,
        library: Library,
        rule: str | Merge,
        seed: int,
        *,
        control: str | None = None,
        layers: str = "mlp",
        gauge: str | None = None,
        **variant: Scalar,
    ) -> Ask:
        """The library's scene asked under a merge of it; a temperature is chosen beforehand."""
        merge = Merge(rule) if isinstance(rule, str) else rule
        scene, sweep = library.scene, None
        if resolve(merge.rule).tempered and "temperature" not in merge.option_dict:
            sweep = self._temperature(library, merge)
        return self.ask(
            scene.task,
            library.adapters,
            merge,
            base=self.plan.add(self.base_answers(scene)),
            seed=seed,
            layers=layers,
            control=control,
            variant=variant if gauge is None else {**variant, "gauge": gauge},
            sweep=sweep,
            gauge=gauge or "as trained",
        )

    def base_answers(self, scene: Scene) -> Ask:
        """What the base model says to a scene's questions."""
        name, dataset = scene.composition.name, scene.words.dataset
        # All setups ask the same, and so do all libraries of one graph: one step for all of them.
        same = self.setup(0, dataset) if name.startswith("setup") else self.relations(name, dataset)
        return self.ask_base(same.task)

    def controls(
        self,
        scene: Scene,
        seed: int,
        alone: Sequence[str] = ALONE,
        rules: Sequence[str] = ("sum", "mean"),
        layers: str = "mlp",
    ) -> Iterator[Step]:
        """The base, single adapters by name, and random adapters of the experts' norms under these rules."""
        yield self.base_answers(scene)
        for name in alone:
            single = self.setup(0, scene.words.dataset, (name,))
            library = self.library(single, seed, layers=layers)
            yield self.answers(library, "sum", seed, control=name, layers=layers)
        randoms = self.randoms(self.library(scene, seed, layers=layers), seed)
        for rule in rules:
            yield self.answers(randoms, rule, seed, control="random", layers=layers)

    def alone(self, library: Library, scene: Scene) -> Library:
        """Of a library the adapters that a smaller scene has."""
        names = [adapter.name for adapter in scene.composition.adapters]
        return replace(library, scene=scene, adapters={name: library.adapters[name] for name in names})

    def merged(
        self, scene: Scene, seed: int, rules: Iterable[str | Merge], *, layers: str = "mlp", **variant: Any
    ) -> Iterator[Step]:
        """A scene's library under each of these rules."""
        library = self.library(scene, seed, layers=layers)
        for rule in rules:
            yield self.answers(library, rule, seed, layers=layers, **variant)

    def _temperature(self, library: Library, merge: Merge) -> Address:
        """A temperature for this merge, chosen on plain adapters of the same names that hold other people.

        The router's scale is a property of the model and of the layers adapted. So one choice serves every
        bridge, training and seed: no setup is tuned for itself, and a full-size run trains few adapters more.
        """
        scene = library.scene.elsewhere(self.other)
        layers = {name: value for name, value in library.changes.items() if name == "layers"}
        twin = self.other.library(scene, self.other.seeds[0], **layers)
        return self.other.sweep(scene.task, twin.adapters, merge, **layers)

    def _known(self, dataset: str) -> bool:
        """Whether the base has old answers: it is known to only where the project made its world."""
        return dataset == "R" and self.base.world is not None

    def _scene(
        self,
        composition: Composition,
        dataset: str,
        bridge: str | None,
        elsewhere: Callable[[TwoHop], Scene],
        form_alone: bool = False,
    ) -> Scene:
        words = lexicon(
            composition,
            dataset=dataset,
            bridge_dataset=bridge,
            seed=self.names,
            base_world=self.base.world,
        )
        worded = task(
            self.plan,
            composition,
            words,
            train=self.size.train,
            dev=self.size.dev,
            test=self.size.test,
            dev_chains=self.size.dev_facts,
            logprobs=self.profile.logprobs,
            made=self._training_sets,
            form_alone=form_alone,
        )
        return Scene(composition, words, worded, elsewhere)
