"""Gates of a routed merge, item by item: against each prompt run alone through the layers' own inputs."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_qwen2

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.asking.decoding import begun_ids
from llm_experiments.asking.gates import PROMPT, Begun, gates
from llm_experiments.merges.merging import apply
from llm_experiments.models.layers import linear_shape, target_modules
from llm_experiments.models.load import load
from llm_experiments.models.prompts import prompt_ids
from results.rows import Row, RowsError
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge

#: One step of float32 in a sum of a few hundred terms, and the last digit that is kept.
TOLERANCE = 1e-5 + 0.5e-4
BEGUN = [
    Begun("a", "hop1", "Who is the spouse of Alice Young?", "First, the spouse of Alice Young is "),
    Begun("a", "hop2", "Who is the spouse of Alice Young?", "First, he is Bob Stone. Second, he lives in "),
    Begun("b", "answer", "Where does Bob Stone live?", "Bob Stone lives in"),
    Begun("c", "answer", "Who?", ""),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny_qwen2(tmp_path_factory.mktemp("model"), chat="chatml", seed=5)
    return load(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def library(loaded):
    rng = torch.Generator().manual_seed(0)
    layers = target_modules(loaded.model, "mlp")
    shapes = {name: linear_shape(loaded.model.get_submodule(name)) for name in layers}

    def drawn(shape):
        return LoRA(*(torch.randn(width, 2, generator=rng) * 0.3 for width in shape))

    return [
        AdapterWeights(adapter, {name: drawn(shape) for name, shape in shapes.items()})
        for adapter in ("one", "two", "three")
    ]


def alone(loaded, applied, begun):
    """Routing weights of one prompt by block, (position, adapter), from the inputs that its layers get."""
    seen, hooks = {}, []
    for name in applied.modules:
        layer = loaded.model.get_submodule(name)
        keep = lambda _, inputs, name=name: seen.__setitem__(name, inputs[0][0])  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(keep))
    tokens = prompt_ids(loaded, begun.question) + begun_ids(loaded, begun.answer.rstrip(" "))
    with torch.no_grad():
        loaded.model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    weights = {name: applied.modules[name].routing(x) for name, x in seen.items()}
    return [
        torch.stack([w for name, w in weights.items() if f".{block}." in name]).mean(0) for block in range(2)
    ]


@pytest.mark.parametrize("rule", ["arrow-products", "arrow-factors"])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_gates_are_those_of_every_prompt_alone(loaded, library, rule, batch):
    with apply(loaded, library, Merge(rule, options={"temperature": 0.3}), statistics=True) as applied:
        found = gates(loaded, applied, BEGUN, batch=batch)
        assert applied.routing() == {}  # they are no part of the statistics of the answers
        assert {item: set(on) for item, on in found.items()} == {
            "a": {PROMPT, "hop1", "hop2"},
            "b": {PROMPT, "answer"},
            "c": {PROMPT, "answer"},
        }
        for begun in BEGUN:
            by_block = alone(loaded, applied, begun)
            prompt = len(prompt_ids(loaded, begun.question))
            for place, expected in (
                (begun.place, [w[-1] for w in by_block]),
                (PROMPT, [w[:prompt].mean(0) for w in by_block]),
            ):
                for number, adapter in enumerate(library):
                    kept = found[begun.item][place][adapter.name]
                    assert kept == pytest.approx([float(w[number]) for w in expected], abs=TOLERANCE)
        spread = [weight for on in found.values() for weights in on.values() for weight in weights["one"]]
        assert max(spread) - min(spread) > 0.1  # or the test would say little


def test_static_merges_and_the_base_have_no_gates(loaded, library):
    for adapters in (library, []):
        with apply(loaded, adapters, Merge("sum"), statistics=True) as applied:
            assert gates(loaded, applied, BEGUN) == {}
    with apply(loaded, library, Merge("arrow-products")) as applied:
        assert gates(loaded, applied, BEGUN) == {}


def test_rows_keep_gates_and_lines_without_them_are_as_before():
    plain = Row("c", "i", "a", {"correct": 1.0})
    assert "gates" not in plain.to_json() and Row.from_json(plain.to_json()) == plain
    routed = Row("c", "i", "a", {"correct": 1.0}, gates={"answer": {"one": [0.25, 1], "two": (0.75, 0)}})
    assert Row.from_json(routed.to_json()) == routed
    for wrong in ({"answer": [0.5]}, {"answer": {"one": 0.5}}, {"answer": {"one": [float("nan")]}}, [1]):
        with pytest.raises(RowsError, match="gates"):
            Row("c", "i", "a", {"correct": 1.0}, gates=wrong)
