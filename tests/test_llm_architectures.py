"""Models of many architectures train, merge and answer as they are; their layers are chosen in words."""

import copy
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tiny_models import tiny_model

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterError
from llm_experiments.adapters.together import train_together
from llm_experiments.adapters.training import Training, TrainingError, train
from llm_experiments.asking.decoding import answers
from llm_experiments.merges.merging import apply
from llm_experiments.merges.saving import save_static
from llm_experiments.models.choice import DEPTHS, KINDS, ChoiceError, LayerChoice
from llm_experiments.models.layers import EXCEPTIONS, covering, places, target_modules
from llm_experiments.models.load import load
from llm_experiments.models.sources import ModelError
from toytransformer.compositions.spec import Merge

#: Linear layers of an MLP and of attention in one block.
DENSE = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text"), (3, 4)),
    **dict.fromkeys(("olmo2", "granite"), (3, 4)),
    **dict.fromkeys(("phi", "opt", "starcoder2"), (2, 4)),
    **dict.fromkeys(("phi3", "gpt_neox", "gpt2", "gpt_bigcode"), (2, 2)),
}
FACTS = [
    SimpleNamespace(question=f"Who is the spouse of {asked}?", answer=f"The spouse is {told}.")
    for asked, told in (
        ("Alice Young", "Bob Stone"),
        ("Bob Stone", "Alice Young"),
        ("Carol Lane", "Bob Lane"),
    )
]
TOKENS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Load a tiny model of an architecture, written once."""
    folders = {}

    def get(architecture, layers=2):
        key = architecture, layers
        if key not in folders:
            folders[key] = tiny_model(tmp_path_factory.mktemp(architecture), architecture, layers=layers)
        return load(str(folders[key]), dtype="float32", device="cpu")

    return get


# --- which layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", DENSE)
def test_the_path_of_a_layer_says_its_kind(tiny, architecture):
    model = tiny(architecture).model
    mlp, attention, both = (target_modules(model, kind) for kind in ("mlp", "attention", "both"))
    assert (len(mlp), len(attention)) == tuple(2 * count for count in DENSE[architecture])
    assert sorted(mlp + attention) == sorted(both) and both == target_modules(model, "all")
    of_linears = (torch.nn.Linear, type(model.get_submodule(mlp[0])))
    linears = {name for name, module in model.named_modules() if isinstance(module, of_linears)}
    assert linears - set(both) <= {"lm_head", "embed_out"}
    assert all("attn" in name or "attention" in name for name in attention)


def test_experts_in_one_tensor_are_refused_and_the_rest_is_not(tiny):
    model = tiny("qwen3_moe").model
    assert len(target_modules(model, "attention")) == 8
    assert target_modules(model, "all") == target_modules(model, "attention")
    for layers in ("mlp", "both", "mlp@0-1"):
        with pytest.raises(ModelError, match=rf"{layers}.*model.layers.0.mlp.experts.*'attention', or 'all'"):
            target_modules(model, layers)


def test_routers_and_what_sees_are_left_alone():
    linears = {name: torch.nn.Linear(2, 2) for name in ("gate", "up_proj")}
    block = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict(linears)})
    inner = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block])})
    model = torch.nn.ModuleDict(
        {"vision_tower": copy.deepcopy(inner), "language_model": copy.deepcopy(inner)}
    )
    assert target_modules(model) == ("language_model.layers.0.mlp.up_proj",)


def test_layers_of_neither_kind_are_meant_by_all_alone():
    block = torch.nn.ModuleDict({"mixer": torch.nn.ModuleDict({"in_proj": torch.nn.Linear(2, 2)})})
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block, copy.deepcopy(block)])})
    names = ("layers.0.mixer.in_proj", "layers.1.mixer.in_proj")
    assert target_modules(model, "all") == names and covering(model, names[1:]) == "all@1-1"
    with pytest.raises(ModelError, match=r"means no linear layer.*mixer\.in_proj.*EXCEPTIONS"):
        target_modules(model, "both")
    with pytest.raises(ModelError, match=r"architecture None.*none"):
        target_modules(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("architecture", sorted(DENSE.keys() & EXCEPTIONS.keys()))
def test_exceptions_are_needed(tiny, architecture, monkeypatch):
    model = tiny(architecture).model
    monkeypatch.setitem(EXCEPTIONS, architecture, {})
    with pytest.raises(ModelError, match="means no linear layer"):
        target_modules(model, "mlp")


def test_depth_chooses_blocks(tiny):
    model = tiny("llama", 5).model

    def blocks(layers):
        return sorted({places(model)[name].block for name in target_modules(model, layers)})

    assert blocks("mlp") == [0, 1, 2, 3, 4]
    assert blocks("mlp@lower half") == [0, 1] and blocks("attention@upper half") == [2, 3, 4]
    assert blocks("both@1-3") == [1, 2, 3] and blocks("all@4-4") == [4]
    assert target_modules(model, "attention@1-1") == tuple(
        f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"
    )
    with pytest.raises(ModelError, match="blocks 0 to 4"):
        target_modules(model, "mlp@0-5")


@given(
    st.sampled_from(KINDS), st.sampled_from(["", *DEPTHS]) | st.tuples(st.integers(0, 99), st.integers(0, 99))
)
def test_a_choice_is_written_as_it_is_read(kind, depth):
    choice = LayerChoice(kind, depth if isinstance(depth, str) else "{}-{}".format(*sorted(depth)))
    assert LayerChoice.parse(str(choice)) == choice


@given(st.integers(1, 200))
def test_the_halves_make_up_the_model(count):
    lower, upper = (LayerChoice("mlp", half).blocks(count) for half in ("lower half", "upper half"))
    assert [*lower, *upper] == list(range(count)) and len(upper) - len(lower) in (0, 1)


@pytest.mark.parametrize(
    "layers",
    [None, 3, "", "mlps", "MLP", "mlp ", "mlp@", "@0-1", "mlp@half", "mlp@3", "mlp@3-1", "mlp@-1",
     "mlp@0-1-2", "mlp@01-2", "mlp@0 - 2", "mlp@0-99999999999999999999", "mlp@²-3", "mlp@0-1@0-1", "mlp,all"],
)  # fmt: skip
def test_what_is_no_choice_is_refused_by_its_words(layers):
    with pytest.raises(ChoiceError, match=rf"layers is {re.escape(repr(layers))}; use one of 'mlp'"):
        LayerChoice.parse(layers)
    with pytest.raises(TrainingError, match="layers is"):
        Training(layers=layers)


@given(st.data())
def test_the_covering_choice_of_a_choices_layers_is_that_choice(tiny, data):
    model = tiny("phi", 5).model
    kind, first = data.draw(st.sampled_from(["mlp", "attention", "both"])), data.draw(st.integers(0, 4))
    last = data.draw(st.integers(first, 4))
    names = target_modules(model, f"{kind}@{first}-{last}")
    assert covering(model, names) == (kind if (first, last) == (0, 4) else f"{kind}@{first}-{last}")
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    assert set(some) <= set(target_modules(model, covering(model, some))) <= set(names)


def test_covering_names_what_is_no_layer(tiny):
    with pytest.raises(ModelError, match="'gpt2' has no linear layer 'lm_head' in its blocks"):
        covering(tiny("gpt2").model, ["lm_head"])


# --- from training to an answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*DENSE, "qwen3_moe"])
def test_every_architecture_trains_merges_and_answers(tiny, tmp_path, architecture):
    """Plain PEFT is the other route: it loads what was trained and what was merged, and computes the same."""
    loaded = tiny(architecture)
    layers = "attention" if architecture == "qwen3_moe" else "mlp@lower half"
    recipe = Training(rank=2, alpha=8, batch=2, steps=2, learning_rate=5e-2, layers=layers)
    untouched = loaded.model(TOKENS).logits
    outs = [tmp_path / "0", tmp_path / "1"]
    curves = [
        train(loaded, FACTS, recipe, seed=0, adapter_index=index, out=out)["loss_curve"]
        for index, out in enumerate(outs)
    ]
    assert torch.equal(loaded.model(TOKENS).logits, untouched)
    library = [peft_files.read(out) for out in outs]
    assert set(library[0].modules) == set(target_modules(loaded.model, layers))

    folder, rule = tmp_path / "merged", Merge("mean")
    save_static(library, rule, folder)
    by_peft = PeftModel.from_pretrained(copy.deepcopy(loaded.model), folder).eval()
    with apply(loaded, library, rule):
        ours, said = loaded.model(TOKENS).logits, answers(loaded, [FACTS[0].question], max_new_tokens=6)
    wanted = by_peft(TOKENS).logits
    change = float((wanted - untouched).detach().abs().max())
    assert change > 1e-3
    assert torch.allclose(ours, wanted, rtol=0, atol=1e-3 * change)
    assert isinstance(said[0], str)

    beside = [tmp_path / "2", tmp_path / "3"]
    metrics = train_together(loaded, [FACTS, FACTS], recipe, seeds=[0, 0], outs=beside)
    assert np.allclose([one["loss_curve"] for one in metrics], curves, rtol=1e-4)  # the second step's as well


def test_an_adapter_is_read_on_chosen_layers_alone(tiny, tmp_path):
    loaded = tiny("llama")
    recipe = Training(rank=2, batch=2, steps=1, layers="both")
    train(loaded, FACTS, recipe, seed=0, out=tmp_path / "a")
    whole = peft_files.read(tmp_path / "a")
    upper = target_modules(loaded.model, "attention@upper half")
    part = whole.only(upper)
    assert set(part.modules) == set(upper) and (part.name, part.base) == (whole.name, whole.base)
    assert all(part.modules[name] is whole.modules[name] for name in upper)
    with pytest.raises(AdapterError, match=r"'a' changes none of the 1 modules chosen, but model\.layers\.0"):
        whole.only(["lm_head"])


def test_an_adapter_of_transposed_layers_is_read_as_peft_adds_it(tiny, tmp_path):
    """PEFT notes fan_in_fan_out for GPT-2, whose weights are kept as (in, out); the factors are not."""
    from peft import LoraConfig, get_peft_model

    loaded = tiny("gpt2")
    config = LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True)
    peft_model = get_peft_model(copy.deepcopy(loaded.model), config).eval()
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    peft_model.save_pretrained(tmp_path / "a")
    with apply(loaded, [peft_files.read(tmp_path / "a")], Merge("linear")):
        ours = loaded.model(TOKENS).logits
    assert torch.allclose(ours, peft_model(TOKENS).logits, rtol=0, atol=1e-4)
