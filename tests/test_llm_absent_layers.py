"""Libraries whose adapters change different layers: an adapter is zero where it is absent."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_qwen2

from llm_experiments.adapters.peft_files import AdapterError, AdapterWeights, check_library
from llm_experiments.merges.fitted import fit
from llm_experiments.merges.merging import apply, merge_modules
from llm_experiments.merges.saving import save_static
from llm_experiments.models.choice import DEPTHS, KINDS, Arrangement, ChoiceError, LayerChoice
from llm_experiments.models.layers import target_modules
from llm_experiments.models.load import load
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RULES

RANK = 3
STATIC = [name for name, rule in RULES.items() if not rule.needs_data and not rule.routed]
ROUTED = [name for name, rule in RULES.items() if rule.routed]
IDS = torch.tensor([[5, 9, 2, 7, 11], [3, 4, 8, 6, 10]])
#: Algebraic: eps of float32 times room for products of width 64.
SINGLE = 2**10 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("qwen2"))), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def library(loaded):
    """One adapter in block 0, one in block 1, one in both; rank 3 everywhere."""
    generator = torch.Generator().manual_seed(0)

    def drawn(layers):
        modules = {}
        for name in target_modules(loaded.model, layers):
            out, inside = loaded.model.get_submodule(name).weight.shape
            write, read = (torch.randn(size, RANK, generator=generator) for size in (out, inside))
            modules[name] = LoRA(0.3 * write, read / math.sqrt(RANK))
        return modules

    choices = {"one": "mlp@0-0", "two": "mlp@1-1", "both": "mlp"}
    return [AdapterWeights(name, drawn(layers)) for name, layers in choices.items()]


def filled(library):
    """The same with factors of zeros where an adapter is absent."""
    shapes = {name: lora for adapter in library for name, lora in adapter.modules.items()}
    zeros = {
        name: LoRA(torch.zeros_like(lora.write), torch.zeros_like(lora.read)) for name, lora in shapes.items()
    }
    return [replace(adapter, modules={**zeros, **adapter.modules}) for adapter in library]


def logits(loaded, library, merge):
    with apply(loaded, library, merge), torch.no_grad():
        return loaded.model(input_ids=IDS).logits


@pytest.mark.parametrize("rule", STATIC)
def test_an_absent_adapter_is_one_of_zeros(library, rule):
    merge = Merge(rule, (0.7, -0.4, 1.1) if RULES[rule].weighted else None)
    ours, wanted = (merge_modules(given, merge, seed=5) for given in (library, filled(library)))
    assert ours.keys() == wanted.keys()
    for name in ours:
        assert torch.equal(ours[name].delta(), wanted[name].delta())


def test_products_keep_their_weights_and_factors_square_them(library):
    """By hand, in the two layers' own terms: nothing of the rules' code."""
    one, two, _ = library
    for rule, weights, kept in (
        ("sum", (0.7, -0.4), (0.7, -0.4)),
        ("mean", None, (0.5, 0.5)),
        ("linear", (0.7, -0.4), (0.49, 0.16)),
    ):
        merged = merge_modules([one, two], Merge(rule, weights))
        for adapter, weight in zip((one, two), kept, strict=True):
            for name, lora in adapter.modules.items():
                wanted = weight * (lora.write.double() @ lora.read.double().T)
                assert torch.allclose(merged[name].delta(), wanted, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("rule", ROUTED)
def test_what_routes_does_so_among_the_adapters_that_a_layer_has(loaded, library, rule):
    one, two, both = library
    apart, summed = (logits(loaded, [one, two], Merge(name)) for name in (rule, "sum"))
    assert (apart - summed).abs().max() <= SINGLE * summed.abs().max()
    merge = Merge(rule, options={"temperature": 0.5})
    merged = merge_modules(library, merge)
    for first, own in ((one, 0), (two, 1)):
        pair = merge_modules([first, both.only(first.modules)], merge)
        x = torch.randn(4, len(next(iter(first.modules.values())).read), dtype=torch.float64)
        name = next(iter(first.modules))
        assert torch.equal(merged[name].shift(x), pair[name].shift(x))
        with apply(loaded, library, merge, statistics=True) as applied:
            loaded.model(input_ids=IDS)
        routing = applied.routing()[name]
        assert routing.weights[1 - own] == routing.first[1 - own] == 0
        assert sum(routing.weights) == pytest.approx(1) and 0 < routing.weights[own] < 1


@pytest.mark.parametrize("rule", ROUTED)
def test_the_best_k_are_those_of_the_adapters_that_are_there(library, rule):
    of = [merge_modules(library, Merge(rule, options={"top_k": k})) for k in (2, 3)]
    for name in of[0]:
        assert of[0][name].top_k == of[1][name].top_k == 2
    with pytest.raises(ValueError, match="top_k is 4"):
        merge_modules(library, Merge(rule, options={"top_k": 4}))


def test_where_an_adapter_is_absent_is_said_and_written(loaded, library, tmp_path):
    details = save_static(library[:2], Merge("sum", (1.0, 2.0)), tmp_path / "merged")
    assert details["absent"] == {"one": 3, "two": 3} and details["relative_error"] <= SINGLE
    assert "absent" not in save_static(library[2:], Merge("sum"), tmp_path / "whole")


def test_rules_that_are_fitted_want_the_same_layers(loaded, library):
    with pytest.raises(AdapterError, match="change different modules"):
        fit(loaded, library[:2], Merge("cat-fitted"), [SimpleNamespace(question="a", answer="b")])


def test_shapes_are_compared_between_all_that_share_a_layer(library):
    one, two, both = library
    name = next(iter(two.modules))
    odd = replace(both, name="odd", modules={name: LoRA(torch.ones(7, RANK), torch.ones(5, RANK))})
    with pytest.raises(AdapterError, match=r"'two' and 'odd' disagree on model\.layers\.1"):
        check_library([one, two, odd], same_modules=False)
    assert check_library([one, two], same_modules=False) == (*one.modules, *two.modules)


# ---- arrangements ----

DEPTH = st.sampled_from(["", *DEPTHS]) | st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
    lambda pair: "-".join(map(str, sorted(pair)))
)
CHOICES = st.builds(LayerChoice, st.sampled_from(KINDS), DEPTH)
NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=8)


@given(st.dictionaries(NAMES, CHOICES, min_size=1, max_size=4))
def test_an_arrangement_is_read_from_what_it_is_written_as(choices):
    arrangement = Arrangement(choices)
    again = Arrangement.parse(str(arrangement))
    assert again == arrangement and list(again.choices) == list(choices)


@given(st.text("hop12=mlp@0-, ", max_size=24))
def test_text_is_refused_or_has_one_spelling(text):
    try:
        assert str(Arrangement.parse(text)) == text
    except ChoiceError as error:
        assert repr(text) in str(error) or "layers is" in str(error)


@given(st.integers(1, 40))
def test_named_depths_part_the_blocks(count):
    blocks = {name: set(LayerChoice("mlp", name).blocks(count)) for name in DEPTHS}
    parts = [("lower half", "upper half"), ("even blocks", "odd blocks")]
    parts += [("lower quarter", "upper three quarters"), ("lower three quarters", "upper quarter")]
    for one, other in parts:
        assert blocks[one] | blocks[other] == set(range(count)) and not blocks[one] & blocks[other]
