"""Steps that make adapters, and the libraries that other steps read of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.late_entry import Guard, LateEntry, Line, train_late
from llm_experiments.adapters.locate import locate
from llm_experiments.adapters.recipe import Training
from llm_experiments.adapters.training import random_like, train
from llm_experiments.adapters.weights import AdapterWeights
from llm_experiments.asking import evaluation
from llm_experiments.asking.own_prompts import mean_inputs
from llm_experiments.domains.task import read_examples, read_items, read_scorer
from llm_experiments.engine.addresses import Address, Ref, content_key
from llm_experiments.engine.context import Context
from llm_experiments.engine.steps import Resources, Step
from llm_experiments.merges import merging
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.compositions import Merge, replace_file

#: Adapters below this on their own task make the run say so: a merge would be blamed for what they lack.
OWN_TASK = 0.95


@dataclass(frozen=True)
class TrainAdapter(Step):
    """A LoRA adapter trained on texts, and checked on its own task.

    digest: of the base. examples: what it is trained on. own_task: items that say whether it learned it, read
    by the scorer made from the context. index: which of a library's adapters it is, so that initial factors
    and data orders differ. title: for people only. Writes adapter/, an ordinary
    PEFT folder, metrics.json, and adapters.jsonl with the part of it that is kept.
    """

    kind = "adapter"
    version = 2
    resources = Resources(model=True, training=True)

    title: str = field(compare=False)
    digest: str
    examples: Ref
    own_task: Ref
    scorer: str
    context: Ref | None
    training: Training
    seed: int
    index: int = 0

    @property
    def label(self) -> str:
        return f"adapter {self.title}, seed {self.seed}"

    @property
    def batch_key(self) -> str:
        """Adapters of one recipe on one base."""
        return content_key({"digest": self.digest, "training": asdict(self.training)})

    def compute(self, context: Context, folder: Path) -> None:
        out = folder / "adapter"
        metrics = self._train(context, out)
        metrics["own_task"] = _own_task(context, out, self)
        replace_file(folder / "metrics.json", [json.dumps(metrics, indent=1), "\n"])
        about = {
            "address": self.address,
            "label": self.label,
            "training": asdict(self.training),
            "seed": self.seed,
        }
        about |= {name: metrics[name] for name in ("seconds", "steps", "examples", "loss", "own_task")}
        replace_file(folder / "adapters.jsonl", [json.dumps(about), "\n"])

    def _train(self, context: Context, out: Path) -> dict[str, Any]:
        """Write the adapter; what came out."""
        examples = read_examples(context, self.examples)
        return train(
            context.model, examples, self.training, seed=self.seed, adapter_index=self.index, out=out
        )


@dataclass(frozen=True)
class TrainLate(TrainAdapter):
    """An adapter of upper blocks that learns to read its entity where lower blocks leave an answer.

    entries: the examples, each with its stranger; guards: facts of the base that stay; entry: how they enter
    (adapters.late_entry).
    """

    kind = "late-adapter"
    version = 1

    entries: Ref | None = None
    guards: Ref | None = None
    entry: LateEntry | None = None

    def _train(self, context: Context, out: Path) -> dict[str, Any]:
        assert self.entries is not None and self.guards is not None and self.entry is not None
        return train_late(
            context.model,
            [Line(**line) for line in context.input(self.entries)],
            self.training,
            self.entry,
            guards=[Guard(**line) for line in context.input(self.guards)],
            seed=self.seed,
            index=self.index,
            out=out,
        )


@dataclass(frozen=True)
class GivenAdapter(Step):
    """An adapter that somebody has, copied into the run, and asked what it is said to know.

    source: a folder, file or hub id (adapters.locate). content: its digest when the run was planned; other
    files under the same name are refused. own_task: as in TrainAdapter, None where nobody says what it knows.
    Writes adapter/ and adapters.jsonl.
    """

    kind = "given-adapter"
    resources = Resources(model=True)

    title: str = field(compare=False)
    source: str = field(compare=False)
    content: str
    digest: str
    own_task: Ref | None
    scorer: str
    context: Ref | None

    @property
    def label(self) -> str:
        return f"adapter {self.title}, as given"

    def compute(self, context: Context, folder: Path) -> None:
        found, out = locate(self.source), folder / "adapter"
        found.copy(out)
        if locate(out).digest != self.content:
            raise AdapterError(
                f"{self.source} is no longer the adapter it was when this run was planned: run it again"
            )
        about: dict[str, Any] = {"address": self.address, "label": self.label, "content": self.content}
        about["own_task"] = None if self.own_task is None else _own_task(context, out, self)
        replace_file(folder / "adapters.jsonl", [json.dumps(about), "\n"])


def _own_task(context: Context, adapter: Path, step: TrainAdapter | GivenAdapter) -> dict[str, Any]:
    """How an adapter alone does on its own task; the run says so where that is not well."""
    assert step.own_task is not None
    scorer = read_scorer(context, step.scorer, step.context)
    with merging.apply(context.model, [peft_files.read(adapter)], Merge("sum")):
        own = evaluation.own_task(context.model, read_items(context, step.own_task), scorer)
    if own.share is not None and own.share < OWN_TASK:
        context.log(f"{step.label}: only {own.share:.0%} of {own.items} right on its own task")
    return asdict(own)


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
class Rewritten(Step):
    """An adapter made of a trained one: its update times `factor`, in modules wider by `wider` on both sides.

    With wider > 0 it is an adapter for another base, whose new entries it leaves alone.
    """

    kind = "rewritten-adapter"

    title: str = field(compare=False)
    of: Address
    factor: float = 1.0
    wider: int = 0

    @property
    def label(self) -> str:
        return f"{self.title}, rewritten"

    def compute(self, context: Context, folder: Path) -> None:
        given = peft_files.read(context.results(self.of) / "adapter")
        more = (0, 0, 0, self.wider)
        modules = {
            name: LoRA(
                torch.nn.functional.pad(self.factor * lora.write, more),
                torch.nn.functional.pad(lora.read, more),
            )
            for name, lora in given.modules.items()
        }
        base = given.config.get("base_model_name_or_path") or ""
        details = None if self.wider else {"base_digest": given.details.get("base_digest")}
        peft_files.write(folder / "adapter", self.title, modules, base, details=details)


def read_library(context: Context, library: Mapping[str, Address]) -> list[peft_files.AdapterWeights]:
    """The adapters that steps made, under these names and in this order; none for the base."""
    return [
        replace(peft_files.read(context.results(address) / "adapter"), name=name)
        for name, address in library.items()
    ]


def own_means(
    context: Context, library: Mapping[str, Address], adapters: Sequence[AdapterWeights], merge: Merge
) -> dict[str, torch.Tensor] | None:
    """What a rule that routes by mean features is given (asking.own_prompts); None for any other.

    Errors: AdapterError on an adapter that was not trained in this run: its texts are not known.
    """
    if merge.option_dict.get("prototypes") != "mean-features":
        return None
    taught = []
    for name, address in library.items():
        examples = context.document(address)["spec"].get("examples")
        if examples is None:
            raise AdapterError(
                f"{name} was not trained in this run, so that the texts it was trained on are not known: "
                'route by prototypes "singular-vectors"'
            )
        taught.append(read_examples(context, Ref(examples)))
    layers = dict.fromkeys(layer for adapter in adapters for layer in adapter.modules)
    return mean_inputs(context.model, layers, taught)


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
