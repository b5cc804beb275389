"""Routing by mean features in a language model: what the features are, and the experiment that compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from tiny_models import random_library, tiny_qwen2

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.training import Training
from llm_experiments.asking.own_prompts import mean_inputs
from llm_experiments.domains.own.questions import Question
from llm_experiments.domains.task import read_examples, read_items
from llm_experiments.domains.two_hop.scenes import PAIR
from llm_experiments.embedded.corpus import BaseWorld
from llm_experiments.engine.context import Context
from llm_experiments.engine.inputs import decoded
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.merges.merging import apply
from llm_experiments.models.load import load
from llm_experiments.models.prompts import prompt_ids, target_ids
from llm_experiments.models.sources import EMBEDDED
from llm_experiments.steps.adapters import RandomAdapter, own_means, read_library
from results.rows import Row
from toytransformer.adapters import AdapterError
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj")
MEANS = Merge("arrow-products", options={"prototypes": "mean-features"})
TAUGHT = (
    [Question("Who?", "Ann"), Question("Where was it that they went?", "Rome"), Question("When?", "in May")],
    [Question("Why should that be so?", "because")],
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("qwen2"))), dtype="float32", device="cpu")


def test_the_mean_is_over_every_token_of_every_text(loaded):
    """Against each text alone, without padding; two a batch, so that there are batches of unequal rows."""
    found = mean_inputs(loaded, LAYERS, TAUGHT, batch=2)
    for adapter, examples in enumerate(TAUGHT):
        seen = {name: [] for name in LAYERS}
        for one in examples:
            handles = [
                loaded.model.get_submodule(name).register_forward_hook(
                    lambda layer, inputs, output, into=seen[name]: into.append(inputs[0][0].double())
                )
                for name in LAYERS
            ]
            tokens = [*prompt_ids(loaded, one.question), *target_ids(loaded, one.answer)]
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([tokens]))
            for handle in handles:
                handle.remove()
        for name in LAYERS:
            wanted = torch.cat(seen[name]).mean(0)
            assert found[name].shape == (len(TAUGHT), len(wanted))
            room = 2**10 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
            assert float((found[name][adapter] - wanted).abs().max()) <= room
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


@pytest.fixture(scope="module")
def planned():
    base = Base("embedded", "0" * 16, BaseWorld.read(EMBEDDED / "world.json"))
    return EXPERIMENTS["prototypes"].plan(base, PROFILES["embedded"], (0,))


def test_strangers_are_asked_of_neither_adapter(planned):
    steps = [planned.steps[address] for address in planned.wanted]
    strange = [step for step in steps if step.variant.get("asked") == "strangers"]
    assert len(strange) == 2 * 2
    for step in strange:
        items = read_items(planned, step.reading.items)
        assert {item.group for item in items} == {"hop1", "hop2"}
        taught = " ".join(
            f"{one.question} {one.answer}"
            for name in PAIR
            for one in read_examples(planned, planned.steps[step.library[name]].examples)
        )
        (context,) = decoded(planned.inputs[step.reading.context])
        for item in items:
            name = context["names"][str(item.extra["prompt"]).split()[0]]
            assert name in item.question and name not in taught
        base = planned.steps[step.base]
        assert base.library == {} and base.reading.items == step.reading.items


def test_both_kinds_of_prototypes_have_a_temperature_of_their_own(planned):
    steps = [planned.steps[address] for address in planned.wanted]
    routed = [step for step in steps if step.merge.rule == "arrow-products"]
    by = {}
    for step in routed:
        by.setdefault(step.merge.option_dict.get("prototypes"), set()).add(step.sweep)
    assert len(by[None]) == len(by["mean-features"]) == 1 and by[None] != by["mean-features"]


def test_a_merge_is_routed_by_what_its_adapters_were_taught(loaded):
    """Prototypes in the model are the means of the base's inputs, of length 1, in the library's order."""
    library = random_library(loaded, 2)
    found = mean_inputs(loaded, library[0].modules, TAUGHT)
    with apply(loaded, library, MEANS, own_means=found) as applied:
        assert set(applied.modules) == set(library[0].modules)
        for name, merged in applied.modules.items():
            wanted = (found[name] / found[name].norm(dim=1, keepdim=True)).float()
            assert torch.equal(merged.prototypes, wanted)
    with pytest.raises(RuleError, match="none are known here"), apply(loaded, library, MEANS):
        pass


def test_an_adapter_that_lacks_a_layer_has_no_prototype_there(loaded):
    library = random_library(loaded, 3)
    del library[1].modules[LAYERS[0]]
    found = mean_inputs(loaded, library[0].modules, (*TAUGHT, TAUGHT[0]))
    with apply(loaded, library, MEANS, own_means=found) as applied:
        merged = applied.modules[LAYERS[0]]
        kept = found[LAYERS[0]][[0, 2]]
        assert torch.equal(merged.prototypes, (kept / kept.norm(dim=1, keepdim=True)).float())


def test_cells_of_a_run_are_routed_by_the_texts_its_adapters_were_trained_on(loaded, tmp_path):
    base = Base("tiny", loaded.digest)
    profile = replace(PROFILES["embedded"], training=Training(rank=2, steps=2), temperatures=(0.1, 1.0))
    plan = EXPERIMENTS["prototypes"].plan(base, profile, (0,))
    asked = next(
        step
        for address in plan.wanted
        if (step := plan.steps[address]).merge == MEANS and step.variant.get("asked") == "strangers"
    )
    store = Store(tmp_path / "run")
    summary = run(plan, store, Context(store, lambda: loaded), wanted=[asked.address], progress=False)
    assert not summary.failed, summary.failed
    lines = (store.results(asked.address) / "rows.jsonl").read_text().splitlines()
    rows = [Row.from_json(line) for line in lines]
    assert rows and all(set(row.gates["prompt"]) == set(PAIR) for row in rows)
    context = Context(store, lambda: loaded)
    library = read_library(context, asked.library)
    found = own_means(context, asked.library, library, MEANS)
    texts = [read_examples(context, plan.steps[asked.library[name]].examples) for name in PAIR]
    wanted = mean_inputs(loaded, library[0].modules, texts)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    assert own_means(context, asked.library, library, Merge("arrow-products")) is None


def test_an_adapter_whose_texts_nobody_knows_is_refused(loaded, tmp_path):
    """The random twin of an adapter was trained on nothing."""
    store = Store(tmp_path / "run")
    plan = Plan()
    noise = plan.add(RandomAdapter("noise", plan.add(Trained()), 0))
    context = Context(store, lambda: loaded)
    run(plan, store, context, wanted=[noise], progress=False)
    with pytest.raises(AdapterError, match="hop1 was not trained in this run"):
        own_means(context, {"hop1": noise}, read_library(context, {"hop1": noise}), MEANS)


@dataclass(frozen=True)
class Trained(Step):
    """Writes an adapter of its own."""

    kind = "made-adapter"

    def compute(self, context, folder):
        (adapter,) = random_library(context.model, 1)
        peft_files.write(folder / "adapter", "made", adapter.modules, "")
