"""Adapters as people hold them: what `merge` writes, plain PEFT loads, and it is the formula's.

The other route is PEFT's own layers: their factors, in float64, go through the rule in NumPy, and the dense
results are added to the weights of the base.
"""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from strategies import held_adapters
from transformers import AutoConfig, AutoModelForCausalLM

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.compatible import compatibility
from llm_experiments.adapters.of_base import against
from llm_experiments.adapters.peft_files import AdapterError
from llm_experiments.merges.merging import module_seed
from llm_experiments.merges.saving import save_static
from llm_experiments.models.shapes import base_shapes
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RULES, MergeContext
from toytransformer.merging import merge as merge_arrays

STATIC = sorted(name for name, rule in RULES.items() if not rule.needs_data and not rule.routed)
SMALL = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
BASES = {
    "qwen2": SMALL,
    "gpt2": dict(n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "qwen2_moe": SMALL
    | dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=12
    ),
}
BASES["qwen3_moe"] = BASES["qwen2_moe"]
IDS = torch.arange(10)[None]
#: Algebraic: factors are written in float32, and PEFT computes in float64 here; room for sums over a layer's
#: width and for what two blocks do to a difference.
SINGLE = 2**6 * np.finfo(np.float32).eps
WEIGHTS = (0.7, 0.4, 1.1)

# of PEFT, about settings that are meant
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


@pytest.fixture(scope="module", autouse=True)
def offline():
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tiny models in float64 by architecture, and their folders."""
    made = {}

    def get(kind):
        if kind not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, vocab_size=29, tie_word_embeddings=False, **BASES[kind])
                model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            made[kind] = model.double(), folder
        return made[kind]

    return get


@pytest.fixture(scope="module")
def shapes(bases):
    """The same by names and shapes, as `check --model` reads them."""
    return functools.cache(lambda kind: base_shapes(str(bases(kind)[1])))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def adapted(bases, kind, settings, seed):
    """A PEFT model whose factors are drawn at random."""
    model, folder = bases(kind)
    config = LoraConfig(**settings, init_lora_weights=False, fan_in_fan_out=kind == "gpt2")
    config.base_model_name_or_path = str(folder)
    held = get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(held.named_parameters()):
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.data = (0.3 * drawn).bfloat16().to(parameter.dtype)
    return held


def disguised(held, folder, disguise):
    """The adapter in a folder as somebody may have it; the same function whatever the disguise."""
    folder = folder / "runs" / "checkpoint-10" if disguise == "subfolder" else folder
    held.save_pretrained(folder)
    weights, config = folder / peft_files.WEIGHTS, folder / peft_files.CONFIG
    tensors = {key: tensor.float() for key, tensor in load_file(weights).items()}
    if disguise == "compiled":
        tensors = {
            key.replace("base_model.model.", "base_model.model._orig_mod.", 1): t
            for key, t in tensors.items()
        }
    if disguise == "no prefix":
        tensors = {key.replace("base_model.model.", "", 1): tensor for key, tensor in tensors.items()}
    if disguise == "half":  # the numbers are bfloat16's already
        tensors = {key: t.bfloat16() if "lora_" in key else t for key, t in tensors.items()}
    if disguise == "bom":
        config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    if disguise == "other base":
        said = json.loads(config.read_text()) | {"base_model_name_or_path": "C:\\models\\tiny"}
        config.write_text(json.dumps(said))
    weights.unlink()
    if disguise == "bin":
        torch.save(tensors, folder / "adapter_model.bin")
    elif disguise == "shards":
        keys = sorted(tensors)
        parts = {"adapter_model-1.safetensors": keys[::2], "adapter_model-2.safetensors": keys[1::2]}
        for name, some in parts.items():
            save_file({key: tensors[key].contiguous() for key in some}, folder / name)
        where = {key: name for name, some in parts.items() for key in some}
        (folder / f"{peft_files.WEIGHTS}.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, weights)


def factors(layer):
    """(name behind the layer's, LoRA in NumPy, scale, bias) of each matrix that PEFT's layer changes."""
    scale = layer.scaling["default"]
    if isinstance(layer, ParamWrapper):
        count = layer.num_experts
        a = layer.lora_A["default"].weight.detach()
        b = layer.lora_B["default"].weight.detach()
        a, b = a.reshape(count, -1, a.shape[1]), b.reshape(len(b), -1, count)
        pairs = [(f"[{expert}]", a[expert], b[:, :, expert], None) for expert in range(count)]
    elif "default" in layer.lora_embedding_A:
        pairs = [
            ("", layer.lora_embedding_A["default"].detach(), layer.lora_embedding_B["default"].detach(), None)
        ]
    else:
        lora_b = layer.lora_B["default"]
        bias = None if lora_b.bias is None else lora_b.bias.detach().numpy() * scale
        pairs = [("", layer.lora_A["default"].weight.detach(), lora_b.weight.detach(), bias)]
    return [
        (end, LoRA(scale * b.double().numpy(), a.double().numpy().T), scale, bias)
        for end, a, b, bias in pairs
    ]


def filled(lora, rank):
    more = ((0, 0), (0, rank - lora.rank))
    return LoRA(np.pad(lora.write, more), np.pad(lora.read, more))


def by_formula(bases, kind, models, spec, seed):
    """The base with the rule's dense updates in its weights, and what PEFT's layers said of each matrix."""
    model = copy.deepcopy(bases(kind)[0])
    found = {}
    for place, held in enumerate(models):
        for path, layer in held.named_modules():
            if isinstance(layer, LoraLayer):
                name = path.removeprefix("base_model.model.")
                for end, *parts in factors(layer):
                    found.setdefault(name + end, {})[place] = (layer, *parts)
    for name, has in found.items():
        lora = next(iter(has.values()))[1]
        zero = LoRA(np.zeros_like(lora.write), np.zeros_like(lora.read))
        given = [has[place][1] if place in has else zero for place in range(len(models))]
        if RULES[spec.rule].factor_wise:
            given = [filled(one, max(other.rank for other in given)) for one in given]
        scales = tuple(has[place][2] if place in has else 1.0 for place in range(len(models)))
        merged = merge_arrays(given, spec, MergeContext(rng_seed=module_seed(seed, name), scales=scales))
        layer = next(iter(has.values()))[0]
        path = name.replace(".base_layer", "").partition("[")[0]
        module, delta = model.get_submodule(path), torch.tensor(np.asarray(merged.delta()))
        if isinstance(layer, ParamWrapper):
            weight = getattr(module, layer.parameter_name).data[int(name.rpartition("[")[2][:-1])]
            weight += delta if weight.shape == delta.shape and layer._did_swap_in_out_features else delta.T
        else:
            module.weight.data += delta if isinstance(module, torch.nn.Linear) else delta.T
        weights = spec.weights or ((1.0 if spec.rule == "sum" else 1 / len(models)),) * len(models)
        shift = sum(weights[place] * has[place][3] for place in has if has[place][3] is not None)
        if isinstance(shift, np.ndarray):
            old = 0.0 if module.bias is None else module.bias.data
            module.bias = torch.nn.Parameter(torch.tensor(shift) + old)
    return model


def in_plain_peft(bases, kind, folder):
    return PeftModel.from_pretrained(copy.deepcopy(bases(kind)[0]), folder).eval()


def spec_of(rule, count):
    options = {"density": 0.6} if "density" in RULES[rule].options else {}
    return Merge(rule, WEIGHTS[:count] if RULES[rule].weighted else None, options)


def close(ours, wanted, untouched):
    change = float((wanted - untouched).abs().max())
    assert change > 1e-3
    assert float((ours - wanted).abs().max()) <= SINGLE * max(change, float(wanted.abs().max()))


@given(held=held_adapters())
def test_what_is_merged_is_what_plain_peft_loads(bases, shapes, tmp_path_factory, held):
    kind, library = held
    tmp_path = tmp_path_factory.mktemp("held")
    models = [adapted(bases, kind, settings, seed) for seed, (settings, _) in enumerate(library)]
    for place, (_, disguise) in enumerate(library):
        disguised(models[place], tmp_path / f"a{place}", disguise)
    read = [peft_files.opened(tmp_path / f"a{place}", name=f"a{place}") for place in range(len(models))]
    together = compatibility(read)
    assert not together.problems
    assert [against(adapter, shapes(kind)) for adapter in read] == [[]] * len(read)
    defined = [rule for rule in STATIC if together.undefined(RULES[rule]) is None]
    if not defined:
        assert "PEFT has no adapter with both" in together.undefined(RULES["sum"])
        return
    assert {"sum", "mean"} <= set(defined)
    rule = defined[len(str(library)) % len(defined)]
    spec = spec_of(rule, len(models))
    save_static(read, spec, tmp_path / "merged", seed=5)
    wanted = by_formula(bases, kind, models, spec, 5)
    close(logits(in_plain_peft(bases, kind, tmp_path / "merged")), logits(wanted), logits(bases(kind)[0]))


def test_adapters_of_single_experts_load_as_their_parts_do(bases, tmp_path):
    """As transformers 4 names them; PEFT stacks them for a base of transformers 5 if it knows their names."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"gate_proj": (12, 16), "up_proj": (12, 16), "down_proj": (16, 12)}
    changes = []
    for place in (0, 1):
        tensors = {}
        for layer, expert, (name, (out, inside)) in itertools.product(range(2), range(4), sizes.items()):
            key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
            tensors[f"{key}.lora_A.weight"] = 0.2 * torch.randn(2, inside, generator=generator)
            tensors[f"{key}.lora_B.weight"] = 0.2 * torch.randn(out, 2, generator=generator)
        folder = tmp_path / f"a{place}"
        folder.mkdir()
        save_file(tensors, folder / peft_files.WEIGHTS)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=list(sizes), task_type="CAUSAL_LM")
        config.save_pretrained(folder)
        changes.append(logits(in_plain_peft(bases, "qwen3_moe", folder)) - logits(bases("qwen3_moe")[0]))
        read = [peft_files.opened(folder)]
        save_static(read, Merge("sum"), tmp_path / f"same{place}")
        again = logits(in_plain_peft(bases, "qwen3_moe", tmp_path / f"same{place}"))
        close(again, logits(bases("qwen3_moe")[0]) + changes[-1], logits(bases("qwen3_moe")[0]))
    assert all(float(change.abs().max()) > 1e-3 for change in changes)


RICH = [
    {"target_modules": ["q_proj", "up_proj", "lm_head", "embed_tokens"], "r": 3, "lora_alpha": 7}
    | {"rank_pattern": {"up_proj": 4}, "alpha_pattern": {"q_proj": 2}, "use_rslora": True},
    {
        "target_modules": ["q_proj", "k_proj", "embed_tokens"],
        "r": 2,
        "lora_alpha": 16,
        "task_type": "CAUSAL_LM",
    },
]


@pytest.fixture(scope="module")
def rich(bases, tmp_path_factory):
    """Two adapters of different ranks, scales and modules, head and embedding among them, as PEFT models
    too."""
    folder = tmp_path_factory.mktemp("rich")
    models = [adapted(bases, "qwen2", settings, seed) for seed, settings in enumerate(RICH)]
    for place, held in enumerate(models):
        disguised(held, folder / f"a{place}", "none")
    return models, [peft_files.opened(folder / f"a{place}", name=f"a{place}") for place in (0, 1)]


@pytest.mark.parametrize("rule", STATIC)
def test_every_static_rule_is_what_plain_peft_loads(bases, rich, tmp_path, rule):
    models, read = rich
    save_static(read, spec_of(rule, 2), tmp_path / "merged", seed=5)
    wanted = by_formula(bases, "qwen2", models, spec_of(rule, 2), 5)
    close(
        logits(in_plain_peft(bases, "qwen2", tmp_path / "merged")), logits(wanted), logits(bases("qwen2")[0])
    )


def test_a_head_trained_as_a_whole_is_kept_by_a_merge(bases, tmp_path):
    held = adapted(bases, "qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 0)
    with torch.no_grad():
        held.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    disguised(held, tmp_path / "a", "none")
    save_static([peft_files.opened(tmp_path / "a")], Merge("sum"), tmp_path / "merged")
    found = logits(in_plain_peft(bases, "qwen2", tmp_path / "merged"))
    close(found, logits(held), logits(bases("qwen2")[0]))


def test_starting_points_that_leave_the_base_alone_are_read(bases, tmp_path):
    held = adapted(bases, "qwen2", {"target_modules": ["q_proj"]}, 0)
    disguised(held, tmp_path / "a", "none")
    config = tmp_path / "a" / peft_files.CONFIG
    for start, fine in (
        ("eva", True),
        ("gaussian", True),
        ("orthogonal", True),
        ("pissa", False),
        ("olora", False),
    ):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": start}))
        if fine:
            assert len(peft_files.opened(tmp_path / "a").modules) == 2
        else:
            with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
                peft_files.opened(tmp_path / "a")
