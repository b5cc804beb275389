"""What a run consists of: adapters that are trained, and questions put to a base model under a merge.

A step is described by its content alone (the texts an adapter is trained on, not the name of the experiment),
so experiments that need the same adapter share it, and a change of any part makes a new step.

    TrainAdapter -> RandomAdapter -> Sweep -> Ask -> rows
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.recipe import Training
from llm_experiments.adapters.training import random_like, train
from llm_experiments.asking import evaluation
from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.rendering import Example
from llm_experiments.engine.addresses import Address, Ref, content_key
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Plan, Resources, Step
from llm_experiments.merges import fitted, merging
from llm_experiments.origin import origin
from toytransformer.adapters import LoRA
from toytransformer.compositions import (
    Composition,
    Fact,
    Merge,
    Prompt,
    Record,
    read_jsonl,
    replace_file,
    write_jsonl,
)

#: Experts below this on their own task make the run say so: a merge would be blamed for what they lack.
OWN_TASK = 0.95


class Texts(Protocol):
    """What reads the texts that steps name: a plan, or the context of a step that is computed."""

    def input(self, ref: Ref) -> list[Any]: ...

    def spec(self, ref: Ref) -> str: ...


def add_examples(plan: Plan, examples: Iterable[Example]) -> Ref:
    """Enter examples as an input: question, answer, entity, form, template and the fact's tokens."""
    return plan.add_input(
        [e.question, e.answer, e.entity, e.form, e.template, [*e.fact.prompt.tokens, e.fact.answer]]
        for e in examples
    )


def read_examples(texts: Texts, ref: Ref) -> tuple[Example, ...]:
    """The examples that add_examples() entered."""
    return tuple(
        Example(question, answer, entity, Fact(Prompt(start, tuple(relations)), end), template, form)
        for question, answer, entity, form, template, (start, *relations, end) in texts.input(ref)
    )


@dataclass(frozen=True)
class TrainAdapter(Step):
    """A LoRA adapter trained on texts, and checked on its own task.

    title: for people only. model: digest of the base. checks: its facts in the words of templates it was not
    trained on. index: which of a library's adapters it is, so that initial factors and data orders differ.
    Writes adapter/, an ordinary PEFT folder, and metrics.json.
    """

    kind = "adapter"
    resources = Resources(model=True, training=True)

    title: str = field(compare=False)
    model: str
    examples: Ref
    checks: Ref
    training: Training
    seed: int
    index: int = 0

    @property
    def label(self) -> str:
        return f"adapter {self.title}, seed {self.seed}"

    @property
    def batch_key(self) -> str:
        """Adapters of one base and one recipe are trained together."""
        return content_key({"model": self.model, "training": asdict(self.training)})

    def compute(self, context: Context, folder: Path) -> None:
        out = folder / "adapter"
        examples, checks = (read_examples(context, ref) for ref in (self.examples, self.checks))
        metrics = train(
            context.model, examples, self.training, seed=self.seed, adapter_index=self.index, out=out
        )
        with merging.apply(context.model, [peft_files.read(out)], Merge("sum")):
            metrics["own_task"] = own = evaluation.own_task(context.model, checks)
        if own["share"] < OWN_TASK:
            context.log(f"{self.label}: only {own['share']:.0%} of {own['items']} right on its own task")
        replace_file(folder / "metrics.json", [json.dumps(metrics, indent=1), "\n"])


@dataclass(frozen=True)
class RandomAdapter(Step):
    """The control of an adapter: random factors with its Frobenius norm of Delta W in every module."""

    kind = "random-adapter"

    title: str = field(compare=False)
    of: Address
    seed: int

    @property
    def label(self) -> str:
        return f"random control of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        random_like(context.results(self.of) / "adapter", seed=self.seed, out=folder / "adapter")


@dataclass(frozen=True)
class SceneRef:
    """A scene as steps hold it: spec: hash of its composition; names: the lexicon as an input."""

    composition: Ref
    names: Ref
    templates: tuple[int, ...]
    regime: Mapping[str, Any] = field(default_factory=dict)

    def read(self, texts: Texts) -> Scene:
        """The scene itself."""
        (names,) = texts.input(self.names)
        return Scene(
            Composition.from_json(texts.spec(self.composition)), Lexicon(**names), self.templates, self.regime
        )


@dataclass(frozen=True)
class Scene:
    """What is asked, in words: a composition, the names of its tokens, the templates, and more for the rows.

    regime: scalars that rows carry to say where they belong (training seed, layers, control, ..).
    """

    composition: Composition
    lexicon: Lexicon
    templates: tuple[int, ...]
    regime: Mapping[str, Any] = field(default_factory=dict)

    def add_to(self, plan: Plan) -> SceneRef:
        """Enter the composition and the names into a plan; what steps hold of them."""
        names = {item.name: getattr(self.lexicon, item.name) for item in fields(self.lexicon)}
        plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in names.items()}
        spec = plan.add_spec(self.composition.to_json())
        return SceneRef(spec, plan.add_input([plain]), self.templates, dict(self.regime))

    def with_merge(self, merge: Merge) -> Scene:
        """The same questions under another merge."""
        return replace(self, composition=self.composition.with_merge(merge))

    def first(self, chains: int) -> Scene:
        """Only the questions about the first chains of each group, in each way of asking."""
        taken: dict[tuple[str, str], int] = {}
        kept = []
        for asked in self.composition.questions:
            count = taken[asked.group, asked.decode] = taken.get((asked.group, asked.decode), 0) + 1
            if count <= chains:
                kept.append(asked)
        return replace(self, composition=replace(self.composition, questions=tuple(kept)))

    def records(self, context: Context, **options: Any) -> tuple[Record, ...]:
        """The questions asked of the context's model as it is now; options as in evaluation.records."""
        return evaluation.records(
            context.model, self.composition, self.lexicon, self.templates, provenance=origin(), **options
        )

    @property
    def label(self) -> str:
        names = "+".join(adapter.name for adapter in self.composition.adapters)
        more = ", ".join(f"{key} {value}" for key, value in self.regime.items())
        merge = self.composition.merge
        weights = "" if merge.weights is None else f" {merge.weights}"
        return f"{self.composition.name} {self.lexicon.dataset} {names} by {merge.rule}{weights} ({more})"


@dataclass(frozen=True)
class Sweep(Step):
    """Arrow's temperature for one library, chosen on development templates. Writes sweep.json.

    The router's scale is a property of the model. Chosen is the temperature with most two-hop questions right
    step by step; among equals, most single hops right; among equals, the highest.
    """

    kind = "temperature"
    resources = Resources(model=True)

    title: str = field(compare=False)
    scene: SceneRef
    library: tuple[Address, ...]
    temperatures: tuple[float, ...]
    model: str

    @property
    def label(self) -> str:
        return f"temperature of {self.title}"

    def compute(self, context: Context, folder: Path) -> None:
        scene = self.scene.read(context)
        library = read_library(context, scene, self.library)
        sweep = []
        for temperature in self.temperatures:
            merge = with_temperature(scene.composition.merge, temperature)
            with merging.apply(context.model, library, merge):
                rows = scene.records(context, split="dev", score_hops=None)
            shares = {
                "steps": _accuracy(row for row in rows if row.decode == "steps"),
                "hops": _accuracy(row for row in rows if row.decode == "direct" and row.group != "two-hop"),
            }
            sweep.append({"temperature": temperature, **shares})
        written = {"chosen": best_temperature(sweep), "sweep": sweep}
        replace_file(folder / "sweep.json", [json.dumps(written, indent=1), "\n"])


@dataclass(frozen=True)
class Ask(Step):
    """A scene's questions put to the base model under a merge of a library. Writes rows and details.json,
    which has what the rule says of every layer: spectral gaps, fitted weights, how Arrow routed.

    library: adapters in merge order, none for the base itself. temperature: where Arrow's comes from. base:
    the base's answers, which count as the old ones where the world it knows is not known to us. fit: target
    examples for rules that need data, training: the recipe of a new adapter among them. gauge: factors the
    library is rewritten in before it is merged.
    """

    kind = "answers"
    resources = Resources(model=True)

    title: str = field(compare=False)
    scene: SceneRef
    library: tuple[Address, ...]
    model: str
    seed: int = 0
    temperature: Address | None = None
    base: Address | None = None
    fit: Ref | None = None
    training: Training | None = None
    gauge: str = "as trained"

    @property
    def label(self) -> str:
        return self.title

    def compute(self, context: Context, folder: Path) -> None:
        scene, regime = self.scene.read(context), dict(self.scene.regime)
        trained = read_library(context, scene, self.library)
        library = [regauged(adapter, self.gauge, place) for place, adapter in enumerate(trained)]
        merge = scene.composition.merge
        if self.temperature is not None:
            found = json.loads((context.results(self.temperature) / "sweep.json").read_text())
            regime["temperature"] = found["chosen"]
            merge = with_temperature(merge, found["chosen"])
        if self.fit is not None:
            examples = read_examples(context, self.fit)
            merge = fitted.fit(
                context.model, library, merge, examples, seed=self.seed, training=self.training
            )
        routed = self.temperature is not None
        with merging.apply(context.model, library, merge, seed=self.seed, statistics=routed) as applied:
            rows = scene.records(
                context,
                split="test",
                regime=regime,
                adapters=[adapter.name for adapter in library],
                spectral_gap=applied.details.get("spectral_gap", {}).get("smallest"),
                old_answers=self._old_answers(context, scene.lexicon),
            )
        write_jsonl(folder / "rows.jsonl", rows)
        details = {**applied.details, "routing": {name: asdict(r) for name, r in applied.routing().items()}}
        replace_file(folder / "details.json", [json.dumps(details, indent=1, default=str), "\n"])

    def _old_answers(self, context: Context, lexicon: Lexicon) -> dict[str, str]:
        """What the base answers, where nobody said what it knows."""
        if self.base is None:
            return {}
        rows = read_jsonl(context.results(self.base) / "rows.jsonl")
        return evaluation.own_answers(rows, lexicon)


def read_library(
    context: Context, scene: Scene, library: Sequence[Address]
) -> list[peft_files.AdapterWeights]:
    """The adapters that steps trained, under the names they have in the composition; none for the base."""
    if not library:
        return []
    return [
        replace(peft_files.read(context.results(address) / "adapter"), name=adapter.name)
        for adapter, address in zip(scene.composition.adapters, library, strict=True)
    ]


def best_temperature(sweep: Iterable[Mapping[str, float]]) -> float:
    """Of rows with temperature, steps and hops (shares right) the best, as Sweep says."""
    return max(sweep, key=lambda row: (row["steps"], row["hops"], row["temperature"]))["temperature"]


def with_temperature(merge: Merge, temperature: float) -> Merge:
    return replace(merge, options={**merge.option_dict, "temperature": temperature})


def regauged(adapter: peft_files.AdapterWeights, gauge: str, place: int) -> peft_files.AdapterWeights:
    """The adapter with the same Delta W in other factors; place: its number in the library.

    What all adapters share cancels in the cross terms, so each is turned by its own matrix. gauge: "as
    trained"; "flipped", the signs of every second adapter turned; "svd", U sqrt(s) and V sqrt(s), the
    strongest direction first; "random:<seed>", turned by random orthogonal matrices.
    """
    kind, _, seed = gauge.partition(":")
    if gauge not in ("as trained", "flipped", "svd") and not (kind == "random" and seed.isdecimal()):
        raise ValueError(f'gauge {gauge!r} is unknown: use "as trained", "flipped", "svd" or "random:<seed>"')
    generator = torch.Generator().manual_seed(1000 * int(seed or 0) + place)

    def rewritten(lora: LoRA) -> LoRA:
        if kind == "as trained" or (kind == "flipped" and place % 2 == 0):
            return lora
        if kind == "flipped":
            return LoRA(-lora.write, -lora.read)
        if kind == "svd":
            left, values, right = lora.svd()
            return LoRA(left * values.sqrt(), right * values.sqrt())
        normal = torch.randn(lora.rank, lora.rank, generator=generator, dtype=torch.float64)
        return lora.regauge(torch.linalg.qr(normal)[0].to(lora.write))

    return replace(adapter, modules={name: rewritten(lora) for name, lora in adapter.modules.items()})


def _accuracy(rows: Iterable[Record]) -> float:
    shares = [row.shares["correct"] for row in rows]
    return sum(shares) / len(shares) if shares else 0.0
