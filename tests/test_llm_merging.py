"""Merges inside language models: the toy's rules on the same matrices, PEFT's where it has the formula."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import ArrowConfig, LoraConfig, PeftModel, create_arrow_model, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from tiny_models import random_library, tiny_llama, tiny_qwen2

from benchmarks import arrow
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterError, AdapterWeights
from llm_experiments.adapters.training import Training
from llm_experiments.adapters.weights import ModuleUpdate
from llm_experiments.merges import fitted, loss
from llm_experiments.merges.fitted import fit
from llm_experiments.merges.fitters import Fitting, search
from llm_experiments.merges.fitters.products import FORMS
from llm_experiments.merges.merging import (
    FittedMerge,
    apply,
    describe,
    merge_modules,
    module_seed,
)
from llm_experiments.merges.saving import LARGEST, save_static, static_adapter
from llm_experiments.models.load import load as load_model
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RULES, MergeContext, RuleError, merge
from toytransformer.merging.fitted import FORMS as TOY_FORMS

MLP = ("gate_proj", "up_proj", "down_proj")
RANK, COUNT = 3, 3
DATA_FREE = [name for name, rule in RULES.items() if not rule.needs_data]
STATIC = [name for name in DATA_FREE if not RULES[name].routed]
ARROWS = ["arrow-products", "arrow-factors"]

# Algebraic tolerances, relative to the largest entry: eps times room for a few products of width 64 and SVDs.
DOUBLE, SINGLE = 2**16 * np.finfo(np.float64).eps, 2**10 * np.finfo(np.float32).eps


def load(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def loaded(base):
    return load(base)


@pytest.fixture
def library(loaded):
    return random_library(loaded)


def folders(library, tmp_path, **options):
    """The library as PEFT folders."""
    paths = []
    for index, adapter in enumerate(library):
        paths.append(tmp_path / f"peft-{index}")
        peft_files.write(paths[-1], adapter.name, adapter.modules, "tiny", **options)
    return paths


def in_peft(base, paths):
    """A PEFT model of a fresh base with adapters "0", "1", ..."""
    model = PeftModel.from_pretrained(load(base).model, str(paths[0]), adapter_name="0")
    for index, path in enumerate(paths[1:], start=1):
        model.load_adapter(str(path), adapter_name=str(index))
    return model.eval()


def deltas_in_peft(model, name):
    return {
        key.removeprefix("base_model.model."): layer.get_delta_weight(name).detach()
        for key, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


IDS = torch.tensor([[7, 41, 260, 33, 301, 8, 90], [300, 12, 13, 77, 5, 250, 6]])


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def close(a, b, tolerance):
    a, b = (np.asarray(x.detach().double() if torch.is_tensor(x) else x, float) for x in (a, b))
    assert a.shape == b.shape
    scale = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), 1e-300)
    assert np.abs(a - b).max(initial=0) <= tolerance * scale


def exact(lora):
    """Delta W in float64, from the factors and not from a float32 product."""
    return lora.write.double() @ lora.read.double().T


def deltas(library, spec, seed=0):
    return {name: outcome.delta() for name, outcome in merge_modules(library, spec, seed).items()}


def described(library, spec):
    return describe(library, spec, 0, {n: m.details for n, m in merge_modules(library, spec).items()})


def weights_of(rule):
    return (0.7, -0.4, 1.1) if RULES[rule].weighted else None


# ---------------------------------------------------------------- the toy's rules


def watched(model, names):
    """Record what each layer gets and puts out."""
    seen = {}

    def record(name):
        def hook(layer, inputs, output):
            seen[name] = inputs[0].detach(), output.detach()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    return seen, handles


@pytest.mark.parametrize("rule", DATA_FREE)
def test_every_layer_adds_what_the_toys_rule_gives(loaded, library, rule):
    """The same factors in NumPy, the features being the layer's own inputs, everything in float64."""
    loaded.model.double()
    spec = Merge(rule, weights_of(rule), {"temperature": 2.0} if RULES[rule].routed else {})
    with apply(loaded, library, spec, seed=5, dtype=torch.float64):
        seen, _ = watched(loaded.model, library[0].modules)
        logits(loaded.model)
    assert set(seen) == set(library[0].modules)
    for name, (x, output) in seen.items():
        factors = [LoRA(*(np.asarray(f, float) for f in vars(a.modules[name]).values())) for a in library]
        context = MergeContext(rng_seed=module_seed(5, name), logit_scale=1.0)
        rows = x.reshape(-1, x.shape[-1]).numpy()
        wanted = merge(factors, spec, context).shift(rows)
        shift = output - torch.nn.functional.linear(x, loaded.model.get_submodule(name).weight)
        assert np.abs(wanted).max() > 0.01
        close(shift.reshape(wanted.shape), wanted, 100 * DOUBLE)


@pytest.mark.parametrize("rule", ["sum", "ties", "arrow-products"])
def test_the_shift_is_added_in_its_own_precision_and_rounded_once(loaded, library, rule):
    """A bf16 base: the layer's bf16 output plus a float32 shift, in bf16."""
    loaded.model.bfloat16()
    name = "model.layers.0.mlp.up_proj"
    layer, x = loaded.model.get_submodule(name), torch.randn(4, 32, dtype=torch.bfloat16)
    plain = layer(x)
    with apply(loaded, library, Merge(rule)) as applied:
        output, merged = layer(x), applied.modules[name]
    if rule == "arrow-products":
        shift = merged.shift(x.float())
    else:
        shift = merged.shift(x.float())
    assert output.dtype == torch.bfloat16 and shift.dtype == torch.float32
    assert torch.equal(output, (plain.float() + shift).bfloat16())


@pytest.mark.parametrize("rule", DATA_FREE)
def test_the_model_is_restored(loaded, library, rule):
    before, state = logits(loaded.model), {k: v.clone() for k, v in loaded.model.state_dict().items()}
    with apply(loaded, library, Merge(rule), statistics=True):
        assert not torch.allclose(logits(loaded.model), before, atol=0.01)
    with pytest.raises(ZeroDivisionError), apply(loaded, library, Merge(rule), statistics=True):
        raise ZeroDivisionError
    assert torch.equal(logits(loaded.model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
    assert all(torch.equal(state[key], value) for key, value in loaded.model.state_dict().items())


def test_no_adapters_are_the_base(loaded):
    before = logits(loaded.model)
    with apply(loaded, [], Merge("arrow-products")) as applied:
        assert torch.equal(logits(loaded.model), before)
    assert applied.modules == {} and applied.routing() == {}


@pytest.mark.parametrize("rule", DATA_FREE)
def test_one_adapter_alone_is_that_adapter(base, loaded, library, rule, tmp_path):
    options = {"density": 1} if "density" in RULES[rule].options else {}
    alone = logits(in_peft(base, folders(library[:1], tmp_path)))
    with apply(loaded, library[:1], Merge(rule, options=options)):
        close(logits(loaded.model), alone, 10 * SINGLE)


def test_an_adapter_in_bf16_is_the_one_peft_applies(base, library, loaded, tmp_path):
    """One rounding to bf16 in both; PEFT's products differ in float32's last digit, which can turn it."""
    model = in_peft(base, folders(library[:1], tmp_path))
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    loaded.model.bfloat16()
    with apply(loaded, library[:1], Merge("sum")):
        close(logits(loaded.model), logits(model), 4 * torch.finfo(torch.bfloat16).eps)


def test_llama_and_attention_layers(tmp_path):
    loaded = load(tiny_llama(tmp_path))
    library = random_library(loaded, 2, names=(*MLP, "q_proj", "k_proj", "v_proj", "o_proj"))
    before = logits(loaded.model)
    with apply(loaded, library, Merge("arrow-products")) as applied:
        assert not torch.allclose(logits(loaded.model), before, atol=0.01)
    assert len(applied.modules) == 2 * 7


# ---------------------------------------------------------------- Arrow


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"top_k": 2}, {"top_k": 1, "temperature": 5}])
@pytest.mark.parametrize("rule", ARROWS)
def test_routing_equals_the_formula_on_the_dense_matrices(library, rule, options):
    x = torch.randn(50, 32, dtype=torch.float64)
    name = "model.layers.1.mlp.up_proj"
    routed = merge_modules(library, Merge(rule, options=options))[name]
    updates = [exact(adapter.modules[name]) for adapter in library]
    prototypes = torch.stack([torch.linalg.svd(update)[2][0] for update in updates])
    logits = (x @ prototypes.T).abs() / options.get("temperature", 1)
    kept, where = logits.topk(options.get("top_k", COUNT), dim=1)
    wanted = torch.zeros_like(logits).scatter(1, where, kept.softmax(dim=1))
    close(routed.routing(x), wanted, 100 * DOUBLE)
    close(routed.routing(-x), wanted, 100 * DOUBLE)  # fails without the abs
    if rule == "arrow-products":
        dense = torch.einsum("ti,ioj,tj->to", wanted, torch.stack(updates), x)
        close(routed.shift(x), dense, 100 * DOUBLE)


def test_close_similarities_are_no_tie(loaded):
    """Activations of LLMs have cosines near 1/sqrt(width); the theory's room for rounding would tie many."""
    name, eye = "model.layers.0.mlp.up_proj", torch.eye(32)
    pair = [AdapterWeights(f"{i}", {name: LoRA(torch.ones(64, 1), eye[:, [i]])}) for i in (0, 1)]
    x = torch.zeros(3, 32)
    x[:, 2] = 1.0
    x[:, :2] = torch.tensor([[0.03, 0.03], [0.03 + 1e-5, 0.03], [0.03, 0.03 + 1e-7]])
    spec = Merge("arrow-products", options={"top_k": 1})
    routed = merge_modules(pair, spec, dtype=torch.float32)[name]
    close(routed.routing(x), [[0.5, 0.5], [1, 0], [0.5, 0.5]], SINGLE)


@pytest.mark.parametrize("rule", ARROWS)
def test_every_token_is_routed_on_its_own(loaded, library, rule):
    """A prompt in a padded batch answers as alone, and what it is padded with does not count."""
    alone = IDS[:1, 2:]
    with apply(loaded, library, Merge(rule, options={"temperature": 0.5}), statistics=True) as applied:
        wanted, single = logits(loaded.model, alone), applied.routing()
        applied.reset()
        assert applied.routing() == {}
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
        position = torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
        padded = logits(loaded.model, IDS[:1], attention_mask=mask, position_ids=position)
        close(padded[:, 2:], wanted, 10 * SINGLE)
        for name, routing in applied.routing().items():
            assert routing.tokens == single[name].tokens == 5
            close(routing.weights, single[name].weights, 10 * SINGLE)
            assert abs(routing.entropy - single[name].entropy) <= 10 * SINGLE


def test_statistics_are_means_over_the_tokens(loaded, library):
    spec = Merge("arrow-products", options={"temperature": 0.2})
    name = "model.layers.0.mlp.gate_proj"  # nothing before it changes: its inputs are the base's
    seen, _ = watched(loaded.model, library[0].modules)
    inputs = []
    for ids in (IDS, IDS[:1]):
        logits(loaded.model, ids)
        inputs.append(seen[name][0].reshape(-1, 32))
    with apply(loaded, library, spec, statistics=True) as applied:
        logits(loaded.model)
        logits(loaded.model, IDS[:1])
    assert set(applied.routing()) == set(library[0].modules)
    weights = applied.modules[name].routing(torch.cat(inputs)).double()
    found = applied.routing()[name]
    assert found.tokens == 3 * IDS.shape[1] == len(weights)
    close(found.weights, weights.mean(0), 10 * SINGLE)
    close(found.first, torch.nn.functional.one_hot(weights.argmax(1), COUNT).double().mean(0), DOUBLE)
    close(found.entropy, -(weights * weights.log()).sum(1).mean(), 10 * SINGLE)
    with apply(loaded, library, Merge("arrow-products", options={"top_k": 1}), statistics=True) as hard:
        logits(loaded.model)
    assert all(
        routing.entropy == 0 and routing.first == routing.weights for routing in hard.routing().values()
    )


def test_cached_decoding_counts_each_token_once(loaded, library):
    with apply(loaded, library, Merge("arrow-products"), statistics=True) as applied:
        mask = torch.ones_like(IDS)
        mask[0, :3] = 0
        loaded.model.generate(
            input_ids=IDS, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    tokens = {routing.tokens for routing in applied.routing().values()}
    assert tokens == {int(mask.sum()) + 2 * 3}  # the last token written is not read again


def test_spectral_gaps_are_reported(library):
    spec = Merge("arrow-products")
    details = described(library, spec)
    gaps = {}
    for name in library[0].modules:
        values = [np.linalg.svd(exact(a.modules[name]).numpy(), compute_uv=False) for a in library]
        gaps[name] = [(v[0] - v[1]) / v[0] for v in values]
        close(details["modules"][name]["spectral_gaps"], gaps[name], 100 * DOUBLE)
    smallest = min(min(found) for found in gaps.values())
    assert details["spectral_gap"]["smallest"] == pytest.approx(smallest, rel=1e-9)
    assert smallest in [pytest.approx(gap) for gap in gaps[details["spectral_gap"]["module"]]]
    assert details["warnings"] == [] and json.loads(json.dumps(details))

    name = next(iter(library[0].modules))
    eye = torch.eye(32)
    tied = replace(library[0], modules={**library[0].modules, name: LoRA(torch.eye(64)[:, :2], eye[:, :2])})
    details = described([tied], spec)
    assert details["spectral_gap"]["module"] == name and details["spectral_gap"]["smallest"] < 1e-12
    assert len(details["warnings"]) == 1 and name in details["warnings"][0]


@pytest.mark.parametrize("rule", ARROWS)
def test_a_temperature_that_grows_with_the_width(library, rule):
    x = torch.randn(20, 64, dtype=torch.float64)
    name = "model.layers.0.mlp.down_proj"
    grown = Merge(rule, options={"temperature": 0.25, "temperature_scaling": "sqrt-width"})
    fixed = Merge(rule, options={"temperature": 0.25 * math.sqrt(64)})
    first, second = (merge_modules(library, spec)[name].routing(x) for spec in (grown, fixed))
    close(first, second, DOUBLE)


@pytest.mark.parametrize("rule", ARROWS)
def test_arrow_refuses_what_it_cannot_do(loaded, library, rule):
    with pytest.raises(RuleError, match=r"model\.layers.*top_k is 4 but there are 3 adapters"):
        merge_modules(library, Merge(rule, options={"top_k": 4}))
    untrained = {name: LoRA(0 * lora.write, lora.read) for name, lora in library[1].modules.items()}
    with (
        pytest.raises(RuleError, match=r"model\.layers\.0.*no Arrow prototype"),
        apply(loaded, [library[0], replace(library[1], modules=untrained)], Merge(rule)),
    ):
        pass
    with apply(loaded, [library[0], replace(library[1], modules=untrained)], Merge("sum")):
        pass


def test_pefts_arrow_on_exact_prototypes(base, loaded, library, tmp_path, monkeypatch):
    """PEFT mixes products: given the exact prototypes, of either sign, the same numbers."""
    paths = [str(path) for path in folders(library, tmp_path)]
    spec = Merge("arrow-products", options={"temperature": 0.4, "top_k": 2})
    config = ArrowConfig(top_k=2, router_temperature=0.4, rng_seed=0)
    with apply(loaded, library, spec):
        wanted = logits(loaded.model)

    for sign in (1, -1):

        def prototype(self, a, b, sign=sign):
            return sign * torch.linalg.svd((b @ a).double())[2][0].float()

        monkeypatch.setattr(ArrowLoraLinearLayer, "top_right_singular_vec_from_BA", prototype)
        model = create_arrow_model(load(base).model, paths, replace(config)).eval()
        close(logits(model), wanted, 100 * SINGLE)


def test_pefts_power_iteration_needs_a_spectral_gap(base, loaded, library, tmp_path):
    """Fifteen steps shrink the rest by (s2/s1)^30: enough at s2/s1 = 1/3, far from it at 0.99."""
    spec, distances = Merge("arrow-products", options={"temperature": 0.4}), []
    for ratio in (1 / 3, 0.99):
        shaped = []
        for adapter in library:
            modules = {}
            for name, lora in adapter.modules.items():
                left, _, right = lora.svd()
                values = 3 * ratio ** torch.arange(RANK)
                modules[name] = LoRA(left * values, right)
            shaped.append(replace(adapter, modules=modules))
        paths = [str(path) for path in folders(shaped, tmp_path / str(ratio))]
        config = ArrowConfig(top_k=COUNT, router_temperature=0.4, rng_seed=1)
        model = create_arrow_model(load(base).model, paths, config).eval()
        with apply(loaded, shaped, spec):
            wanted = logits(loaded.model)
        distances.append(float((logits(model) - wanted).abs().max() / wanted.abs().max()))
    # (1/3)^30 leaves rounding; at 0.99 a random start leaves two directions of about equal size.
    assert distances[0] <= 100 * SINGLE and distances[1] > 0.01


@pytest.mark.parametrize("case", list(arrow.cases(small=True)), ids=lambda case: case.about[:60])
def test_the_benchmarked_prototypes_are_the_top_singular_vectors(case):
    ours, other = (np.asarray(side.prepare(*side.arguments)()) for side in (case.ours, case.plain))
    apart, allowed = case.difference(ours, other)
    assert apart <= allowed
    for p, (write, read) in zip(ours, arrow.adapters(*case.ours.arguments), strict=True):
        _, values, right = np.linalg.svd(write.astype(float) @ read.T.astype(float))
        assert 1 - abs(p @ right[0]) <= DOUBLE
        assert np.linalg.norm((write.astype(float) @ read.T) @ p) == pytest.approx(values[0])
    # PEFT's start has about equal parts of 16 directions; 30 powers of 0.95 leave the second at 0.2
    if "0.95" in case.about:
        assert 0.01 < apart < 0.5


# ---------------------------------------------------------------- PEFT's static merges

FULL = 32  # rank of every layer of the tiny model
PEFT = [
    ("cat", Merge("sum", (0.7, -0.4, 1.1)), {}),
    ("cat", Merge("mean"), {}),
    ("svd", Merge("sum-truncated", (0.7, -0.4, 1.1), {"rank": 4}), {"svd_rank": 4}),
    ("linear", Merge("linear-peft", (0.7, -0.4, 1.1)), {}),
    ("ties", Merge("ties-factors", (0.7, -0.4, 1.1), {"density": 0.5}), {"density": 0.5}),
    ("ties_svd", Merge("ties", (0.7, -0.4, 1.1), {"density": 0.3}), {"density": 0.3, "svd_rank": FULL}),
    (
        "ties_svd",
        Merge("ties", (0.7, -0.4, 1.1), {"density": 0.3, "sign": "frequency"}),
        {"density": 0.3, "svd_rank": FULL, "majority_sign_method": "frequency"},
    ),
    (
        "magnitude_prune_svd",
        Merge("magnitude-prune", (0.7, -0.4, 1.1), {"density": 0.3}),
        {"density": 0.3, "svd_rank": FULL},
    ),
    ("dare_linear_svd", Merge("dare", (0.7, -0.4, 1.1)), {"density": 0.5, "svd_rank": FULL}),
    ("dare_ties_svd", Merge("dare-ties", (0.7, -0.4, 1.1)), {"density": 0.5, "svd_rank": FULL}),
]


@pytest.mark.parametrize("kind, spec, options", PEFT, ids=[f"{kind}-{spec.rule}" for kind, spec, _ in PEFT])
def test_static_merges_equal_pefts(base, library, kind, spec, options, tmp_path, monkeypatch):
    """With the scale in, and DARE's masks the ones our seeds give: layer by layer, adapter by adapter."""
    model = in_peft(base, folders(library, tmp_path, alpha=7))
    order = [key for key, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    calls = iter((name.removeprefix("base_model.model."), i) for name in order for i in range(COUNT))
    drawing = {}

    def pruned(tensor, density, rescale):
        name, index = next(calls)
        if index == 0:
            drawing[name] = np.random.default_rng(module_seed(11, name))
        return tensor * torch.tensor(drawing[name].random(tensor.shape) < density) / density

    monkeypatch.setattr("peft.utils.merge_utils.random_pruning", pruned)
    weights = list(spec.weights or (1 / COUNT,) * COUNT)
    model.add_weighted_adapter(
        [str(index) for index in range(COUNT)], weights, "merged", combination_type=kind, **options
    )
    ours, theirs = deltas(library, spec, seed=11), deltas_in_peft(model, "merged")
    assert set(ours) == set(theirs)
    for name, delta in ours.items():
        close(delta, theirs[name], 10 * SINGLE)
    assert (next(calls, None) is None) == kind.startswith("dare")


ON_FACTORS = [
    ("linear", Merge("linear-peft", (0.7, -0.4, 1.1)), {}),
    ("ties", Merge("ties-factors", (0.7, -0.4, 1.1), {"density": 0.5}), {"density": 0.5}),
    ("dare_linear", Merge("dare_linear", (0.7, -0.4, 1.1)), {"density": 0.5}),
    ("dare_ties", Merge("dare_ties", (0.7, -0.4, 1.1)), {"density": 0.5}),
    ("magnitude_prune", Merge("magnitude_prune", (0.7, -0.4, 1.1), {"density": 0.3}), {"density": 0.3}),
]


@pytest.mark.parametrize("kind, spec, options", ON_FACTORS, ids=[kind for kind, *_ in ON_FACTORS])
def test_rules_on_factors_equal_pefts_at_unequal_scales(
    base, library, kind, spec, options, tmp_path, monkeypatch
):
    """Three alphas, one of them by pattern, and PEFT's own names; the masks are the ones our seeds give."""
    paths = folders(library, tmp_path)
    for path, alpha in zip(paths, (2, 7, 24), strict=True):
        config = json.loads((path / "adapter_config.json").read_text())
        config |= {"lora_alpha": alpha, "alpha_pattern": {"up_proj": alpha + 3}, "use_rslora": alpha == 7}
        (path / "adapter_config.json").write_text(json.dumps(config))
    model = in_peft(base, paths)
    order = [key for key, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    calls = iter(
        (key.removeprefix("base_model.model."), place) for key in order for place in range(2 * COUNT)
    )
    drawing = {}

    def pruned(tensor, density, rescale):
        name, place = next(calls)
        if place == 0:
            drawing[name] = np.random.default_rng(module_seed(11, name))
        return tensor * torch.tensor(drawing[name].random(tensor.shape) < density) / density

    monkeypatch.setattr("peft.utils.merge_utils.random_pruning", pruned)
    model.add_weighted_adapter(
        ["0", "1", "2"], list(spec.weights), "merged", combination_type=kind, **options
    )
    theirs = deltas_in_peft(model, "merged")
    read = [peft_files.opened(path, name=path.name) for path in paths]
    for name, delta in deltas(read, spec, seed=11).items():
        close(delta, theirs[name], 10 * SINGLE)


def test_a_negative_weight_that_would_be_squared_is_refused(library, tmp_path):
    for spec in (Merge("linear", (1.0, -1.0, 0.5)), Merge("lori-d", (1, -1, 1), {"combine": "linear"})):
        with pytest.raises(RuleError, match=r"weight -1 of adapter 2 adds 1 times its update.*use 'sum'"):
            save_static(library, spec, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    save_static(library, Merge("sum", (1.0, -1.0, 0.5)), tmp_path / "merged")


def test_one_adapter_in_pefts_linear_branch(base, library, tmp_path):
    """PEFT merges a single adapter by "linear" whatever is asked; sqrt(w) on both factors is the sum's w."""
    model = in_peft(base, folders(library[:1], tmp_path))
    model.add_weighted_adapter(["0"], [0.5], "merged", combination_type="svd")
    theirs = deltas_in_peft(model, "merged")
    for name, delta in deltas(library[:1], Merge("sum", (0.5,))).items():
        close(delta, theirs[name], SINGLE)


def test_rslora_scales_each_adapter_by_its_own_rule(base, library, tmp_path):
    """PEFT gives the merged adapter the first one's use_rslora, and so sqrt(rank) too much; we do not."""
    paths = folders(library[:2], tmp_path)
    for path, rslora in zip(paths, (True, False), strict=True):
        config = json.loads((path / "adapter_config.json").read_text())
        config.update(use_rslora=rslora, lora_alpha=2)
        (path / "adapter_config.json").write_text(json.dumps(config))
    read = [peft_files.read(path, name=str(index)) for index, path in enumerate(paths)]
    model = in_peft(base, paths)
    model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "merged", combination_type="cat")
    wrong = deltas_in_peft(model, "merged")
    parts = [deltas_in_peft(model, name) for name in ("0", "1")]
    for name, delta in deltas(read, Merge("sum")).items():
        close(delta, parts[0][name] + parts[1][name], SINGLE)
        close(delta * math.sqrt(2 * RANK), wrong[name], SINGLE)


# ---------------------------------------------------------------- gauges and weights


def regauged(adapter, rng):
    """The same Delta W in other factors: a random R of condition 4 times a sign flip of everything."""
    modules = {}
    for name, lora in adapter.modules.items():
        left, right = (np.linalg.qr(rng.normal(size=(RANK, RANK)))[0] for _ in range(2))
        transform = torch.tensor(-(left * np.geomspace(0.5, 2, RANK)) @ right, dtype=torch.float32)
        modules[name] = lora.regauge(transform)
    return replace(adapter, modules=modules)


@pytest.mark.parametrize("rule", DATA_FREE)
def test_product_wise_rules_do_not_see_the_gauge_and_factor_wise_ones_do(loaded, library, rule):
    rng = np.random.default_rng(3)
    other = [library[0], *(regauged(adapter, rng) for adapter in library[1:])]
    for one, two in zip(library, other, strict=True):
        for name in one.modules:
            close(one.modules[name].delta(), two.modules[name].delta(), 10 * SINGLE)
    combine = {"combine": "linear"} if rule == "lori-d" else {}
    found = []
    for given in (library, other):
        with apply(loaded, given, Merge(rule, weights_of(rule), combine)):
            found.append(logits(loaded.model))
    moved = float(torch.linalg.norm(found[0] - found[1]) / torch.linalg.norm(found[0]))
    if RULES[rule].gauge_invariant:
        assert moved <= 100 * SINGLE
    else:
        assert moved > 0.1


def test_a_sign_flip_alone_moves_the_linear_rules(library):
    flipped = {name: LoRA(-lora.write, -lora.read) for name, lora in library[1].modules.items()}
    other = [library[0], replace(library[1], modules=flipped), library[2]]
    for rule in ("linear", "linear-peft"):
        one, two = deltas(library, Merge(rule)), deltas(other, Merge(rule))
        for name in one:
            assert torch.linalg.norm(one[name] - two[name]) > 0.5 * torch.linalg.norm(one[name])


@pytest.mark.parametrize(
    "rule, multiple", [("sum", 1), ("linear", 1), ("linear-peft", 2), ("ties", 0.5), ("mean", 1)]
)
def test_an_adapter_merged_with_itself_at_half_and_half(library, rule, multiple):
    twice = [library[0], replace(library[0], name="again")]
    options = {"density": 1} if rule == "ties" else {}
    weights = (0.5, 0.5) if RULES[rule].weighted else None
    for name, delta in deltas(twice, Merge(rule, weights, options)).items():
        close(delta, multiple * library[0].modules[name].delta(), SINGLE)


def test_masks_follow_the_seed_and_differ_between_layers(library):
    spec = Merge("dare", options={"density": 0.5})
    first, again, other = (deltas(library[:1], spec, seed) for seed in (1, 1, 2))
    drawn = deltas(library[:1], Merge("dare", options={"density": 0.5, "seed": 1}), 9)
    same = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
    for name in first:
        assert torch.equal(first[name], again[name]) and torch.equal(first[name], drawn[name])
        assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[same[0]] == 0, first[same[1]] == 0)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("rule", STATIC)
def test_saved_merges_are_what_plain_peft_loads(base, loaded, library, rule, tmp_path):
    spec = Merge(rule, (0.7, 0.4, 1.1) if rule == "linear" else weights_of(rule))
    details = save_static(library, spec, tmp_path / "merged", seed=4)
    assert details["relative_error"] <= SINGLE
    with apply(loaded, library, spec, seed=4):
        wanted = logits(loaded.model)
    model = PeftModel.from_pretrained(load(base).model, str(tmp_path / "merged")).eval()
    close(logits(model), wanted, 100 * SINGLE)
    again = peft_files.read(tmp_path / "merged")
    with apply(loaded, [again], Merge("sum")):
        close(logits(loaded.model), wanted, 100 * SINGLE)
    text = (tmp_path / "merged" / "README.md").read_text()
    assert rule in text and "library_name: peft" in text and all(a.name in text for a in library)


def test_layers_that_lose_nothing_count_in_what_is_lost_relative_to_all(library):
    """One layer added up, kept as it is; the others by TIES at the rank of the inputs."""
    names = tuple(adapter.name for adapter in library)
    first, *others = library[0].modules
    rules = {first: Merge("sum"), **dict.fromkeys(others, Merge("ties"))}
    merged = FittedMerge(Merge("sum"), names, tuple(library), rules)
    details = static_adapter(library, merged, rank=LARGEST).details
    lost = total = 0.0
    for name, rule in rules.items():
        values = np.linalg.svd(deltas(library, rule)[name].numpy(), compute_uv=False)
        lost += 0.0 if name == first else np.sum(values[RANK:] ** 2)
        total += np.sum(values**2)
    assert details["relative_error"] == pytest.approx(math.sqrt(lost / total), rel=1e-5)


def test_sums_are_written_in_the_precision_they_are_added_up_in(library):
    """Single precision in, single precision out: nothing is rounded twice, and nothing is lost."""
    details = static_adapter(library, Merge("sum", (0.7, 0.4, 1.1)), rank=LARGEST).details
    assert details["relative_error"] == 0.0
    half = static_adapter(library, Merge("sum"), rank=LARGEST, dtype=torch.bfloat16).details
    assert 0 < half["relative_error"] <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("rule", ["sum", "ties"])
def test_a_saved_merge_can_be_cut_to_a_rank(library, rule, tmp_path):
    details = save_static(library, Merge(rule), tmp_path / "merged", rank=2)
    saved, lost, total = peft_files.read(tmp_path / "merged"), 0.0, 0.0
    assert saved.rank == details["rank"] == 2
    for name, delta in deltas(library, Merge(rule)).items():
        values = np.linalg.svd(delta.numpy(), compute_uv=False)
        close(np.linalg.norm(delta.numpy() - saved.modules[name].delta().numpy(), 2), values[2], SINGLE)
        lost, total = lost + np.sum(values[2:] ** 2), total + np.sum(values**2)
    assert details["relative_error"] == pytest.approx(math.sqrt(lost / total), rel=1e-5)
    assert f"{details['relative_error']:.1e}" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize("rule", ARROWS)
def test_a_routing_cannot_be_saved(library, rule, tmp_path):
    with pytest.raises(RuleError, match=f"'{rule}' gives every token its own update"):
        save_static(library, Merge(rule), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# ---------------------------------------------------------------- refusals


def test_libraries_that_do_not_fit_the_model_are_refused(loaded, library):
    def refused(given, words, error=RuleError, spec=None, **options):
        with pytest.raises(error, match=words), apply(loaded, given, spec or Merge("sum"), **options):
            pass
        assert not any(module._forward_hooks for module in loaded.model.modules())

    first, name = library[0], "model.layers.0.mlp.up_proj"
    refused([replace(first, modules={"model.layers.9.mlp.up_proj": first.modules[name]})], "has no layer")
    other = {name: LoRA(torch.ones(64, 1), torch.ones(33, 1))}
    refused([replace(first, modules=other)], r"\(64, 32\).*\(64, 33\)")
    norm = {"model.layers.0.input_layernorm": LoRA(torch.ones(32, 1), torch.ones(32, 1))}
    refused([replace(first, modules=norm)], "RMSNorm")
    refused([first, first], "two adapters are called", AdapterError)
    shifted = ModuleUpdate(*vars(first.modules[name]).values(), bias=torch.ones(64))
    refused([replace(first, modules={name: shifted})], "has a bias", spec=Merge("linear"))
    refused(library, "2 weights", spec=Merge("sum", (1.0, 2.0)))
    refused(library, "no merge rule 'average'", spec=Merge("average"))
    refused(library, "fitted on examples first", spec=Merge("cat-fitted"))
    refused(library, "floating point", dtype=torch.int8)
    marked = replace(first, details={"base_digest": "feed"})
    refused([marked], f"trained on the base feed.*{loaded.digest}")
    with apply(loaded, [replace(first, details={"base_digest": loaded.digest})], Merge("sum")):
        pass
    get_peft_model(loaded.model, LoraConfig(target_modules=["up_proj"]))
    refused(library, "still carries PEFT's adapters")


def test_dense_updates_that_cannot_fit_are_refused(loaded, library, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with (
        pytest.raises(MemoryError, match="dense updates of rule 'ties'"),
        apply(loaded, library, Merge("ties")),
    ):
        pass
    with apply(loaded, library, Merge("sum")):
        pass


# ---------------------------------------------------------------- merges fitted through the model


@dataclass(frozen=True)
class Line:
    question: str
    answer: str


QUESTIONS = (
    "Who is the spouse of Alice Young?",
    "Where does Bob Stone live?",
    "Who is Carol Lane?",
    "Where?",
)
QUICK = Fitting(steps=60, batch=4, learning_rate=0.2)


@pytest.fixture
def taught(loaded, library, monkeypatch):
    """Examples whose answers are what the first adapter alone makes of the questions, as tokens."""
    answers = {}
    with apply(loaded, library[:1], Merge("sum")), torch.no_grad():
        for question in QUESTIONS:
            prompt = torch.tensor([loss.prompt_ids(loaded, question)])
            written = loaded.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=5,
                min_new_tokens=5,
                do_sample=False,
            )
            answers[question] = written[0, prompt.shape[1] :].tolist()
    monkeypatch.setattr(loss, "target_ids", lambda loaded, answer: answers[answer])
    return [Line(question, question) for question in QUESTIONS]


def loss_under(loaded, library, spec, examples, seed=0):
    """Mean -log p of the answers' tokens, one example at a time."""
    total, count = 0.0, 0
    with apply(loaded, library, spec, seed=seed):
        for example in examples:
            prompt = loss.prompt_ids(loaded, example.question)
            answer = loss.target_ids(loaded, example.answer)
            logp = logits(loaded.model, torch.tensor([prompt + answer])).double().log_softmax(-1)[0]
            for place, token in enumerate(answer, start=len(prompt)):
                total, count = total - float(logp[place - 1, token]), count + 1
    return total / count


def test_fits_have_the_forms_of_the_toy():
    assert set(FORMS) == set(TOY_FORMS)
    for function, inverse in FORMS.values():
        w = torch.full((2, 4), inverse(0.25), dtype=torch.float64)
        close(function(w), torch.full((2, 4), 0.25), DOUBLE)


FITS = [
    Merge("cat-fitted"),
    Merge("cat-fitted", options={"form": "free"}),
    Merge("adaptive", options={"f": "tanh"}),
    Merge("adaptive", options={"f": "sigmoid"}),
]


@pytest.mark.parametrize("spec", FITS, ids=lambda spec: f"{spec.rule}-{'-'.join(spec.option_dict.values())}")
def test_coefficients_fitted_by_gradient(loaded, library, taught, spec):
    """The first adapter explains the answers best; per layer nothing may be worse than one set for all."""
    pair = library[:2]
    merge = fit(loaded, pair, spec, taught, fitting=QUICK)
    details = merge.details
    assert details["loss"] == pytest.approx(loss_under(loaded, pair, merge, taught), abs=1e-4)
    assert details["loss_base"] == pytest.approx(loss_under(loaded, [], Merge("sum"), taught), abs=1e-4)
    parts = Merge("sum", (0.5, 0.5))
    assert details["loss_start"] == pytest.approx(loss_under(loaded, pair, parts, taught), abs=1e-4)
    shared = [Merge("sum", (a, 1 - a)) for a in np.linspace(0.1, 0.9, 5)]
    best = min(loss_under(loaded, pair, given, taught) for given in shared)
    assert details["loss"] < best < details["loss_start"]
    assert len(details["loss_curve"]) == QUICK.steps
    weights = np.array(list(details["weights"].values()))
    assert weights.shape == (len(pair[0].modules), 2) and weights[:, 0].mean() > weights[:, 1].mean() + 0.3
    form = spec.option_dict.get("f") or spec.option_dict.get("form", "softmax")
    if form == "softmax":
        close(weights.sum(axis=1), np.ones(len(weights)), SINGLE)
    assert form == "free" or np.abs(weights).max() < 1
    again = fit(loaded, pair, spec, taught, fitting=QUICK)
    assert again.details == details
    assert not any(
        parameter.grad is not None or parameter.requires_grad for parameter in loaded.model.parameters()
    )
    assert not any(module._forward_hooks for module in loaded.model.modules())


@pytest.mark.parametrize("rule", ["cat-fitted", "lorahub"])
def test_a_fit_leaves_the_model_as_it_was(loaded, library, taught, rule):
    loaded.model.train()
    loaded.model.model.norm.eval()
    weight = loaded.model.model.norm.weight.requires_grad_(True)
    fit(loaded, library, Merge(rule), taught, fitting=Fitting(steps=1, evaluations=2))
    assert loaded.model.training and not loaded.model.model.norm.training
    assert weight.requires_grad and weight.grad is None
    assert sum(parameter.requires_grad for parameter in loaded.model.parameters()) == 1


def test_the_gradient_is_that_of_the_loss(loaded, library, taught):
    """One step of plain size: Adam's first step moves every logit by the rate against the slope's sign."""
    pair, rate = library[:2], 1e-3
    start = 0.5
    merge = fit(
        loaded,
        pair,
        Merge("cat-fitted", options={"form": "free"}),
        taught,
        fitting=Fitting(steps=1, batch=len(taught), learning_rate=rate),
    )
    for name, index in [("model.layers.0.mlp.up_proj", 0), ("model.layers.1.mlp.down_proj", 1)]:
        ends = []
        for sign in (1, -1):
            merges = {layer: Merge("sum", (start, start)) for layer in pair[0].modules}
            weights = [start, start]
            weights[index] += sign * 0.01
            merges[name] = Merge("sum", tuple(weights))
            ends.append(loss_under(loaded, pair, replace(merge, merges=merges), taught))
        slope = (ends[0] - ends[1]) / 0.02
        assert abs(slope) > 1e-3
        moved = merge.details["weights"][name][index] - start
        assert moved == pytest.approx(-math.copysign(rate, slope), rel=0.01)


def test_lorahub_searches_without_gradients(loaded, library, taught):
    pair = library[:2]
    spec = Merge("lorahub", options={"penalty": 0.05, "bound": 1.5})
    merge = fit(loaded, pair, spec, taught)
    w, details = merge.details["weights"], merge.details

    def objective(weights):
        loss = loss_under(loaded, pair, Merge("linear", tuple(weights)), taught)
        return loss, loss + 0.05 * np.mean(np.abs(weights))

    loss, total = objective(w)
    assert details["loss"] == pytest.approx(loss, abs=1e-4)
    assert total < objective((0.5, 0.5))[1] - 0.05
    assert max(map(abs, w)) <= 1.5 and sum(w) >= 0 and details["evaluations"] <= 40
    for nearby in np.array(w) + 0.15 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]):
        assert objective(np.clip(nearby, -1.5, 1.5))[1] >= total - 1e-3
    assert all(given == Merge("linear", w) for given in merge.merges.values())
    narrow = fit(loaded, pair, Merge("lorahub", options={"bound": 0.2}), taught)
    assert max(map(abs, narrow.details["weights"])) <= 0.2


def test_lorahub_returns_the_twin_with_the_larger_sum(loaded, library, taught, monkeypatch):
    """L(w) = L(-w): whichever of the two a search ends at."""
    monkeypatch.setattr(search, "minimize", lambda objective, *_, **__: objective(np.array([-0.9, 0.2])))
    details = fit(loaded, library[:2], Merge("lorahub"), taught).details
    assert details["weights"] == (0.9, -0.2)
    twins = [loss_under(loaded, library[:2], Merge("linear", w), taught) for w in ((0.9, -0.2), (-0.9, 0.2))]
    assert [details["loss"]] * 2 == pytest.approx(twins, abs=1e-4)


def test_the_random_control_has_the_adapters_singular_values_only(loaded, library, taught):
    spec = Merge("adaptive-random")
    short = Fitting(steps=3)
    merge = fit(loaded, library[:2], spec, taught, seed=3, fitting=short)
    for twin, adapter in zip(merge.library, library[:2], strict=True):
        for name, lora in adapter.modules.items():
            one, two = lora.delta(), twin.modules[name].delta()
            close(*(torch.linalg.svdvals(delta)[:RANK] for delta in (one, two)), 10 * SINGLE)
            cosine = float((one * two).sum() / one.norm() / two.norm())
            assert abs(cosine) < 0.2  # of 2048 entries in random directions: 9 standard deviations of 1/45
    again, other = (
        fit(
            loaded,
            library[:2],
            Merge("adaptive-random", options=options),
            taught,
            3,
            fitting=Fitting(steps=3),
        )
        for options in ({}, {"seed": 4})
    )
    assert again.details == merge.details and other.details["weights"] != merge.details["weights"]


@pytest.mark.parametrize("rule", ["cat-fitted", "adaptive-random", "lorahub"])
def test_fitted_merges_survive_saving(loaded, library, taught, rule, tmp_path):
    merge = fit(loaded, library, Merge(rule), taught, fitting=Fitting(steps=2, evaluations=5))
    fitted.save(tmp_path / "fit", merge)
    again = fitted.load(tmp_path / "fit", library)
    assert again.details == json.loads(json.dumps(merge.details)) and again.merges == merge.merges
    found = []
    for given in (merge, again):
        with apply(loaded, library, given):
            found.append(logits(loaded.model))
    assert torch.equal(*found)
    details = save_static(library, merge, tmp_path / "static")
    assert details["fitted"]["loss"] == merge.details["loss"] and details["relative_error"] <= SINGLE
    with apply(loaded, [peft_files.read(tmp_path / "static")], Merge("sum")):
        close(logits(loaded.model), found[0], 100 * SINGLE)
    with pytest.raises(RuleError, match="was fitted on the adapters"):
        fitted.load(tmp_path / "fit", library[:2])
    with pytest.raises(RuleError, match="fitted on the adapters"), apply(loaded, library[:2], merge):
        pass
    (tmp_path / "fit" / "fitted.json").write_text("{")
    with pytest.raises(RuleError, match="no fitted merge"):
        fitted.load(tmp_path / "fit", library)


def test_a_new_adapter_is_trained_on_the_examples_alone(loaded, library, tmp_path):
    examples = [Line(question, "Bob Stone lives in Paris.") for question in QUESTIONS]
    recipe = Training(rank=2, alpha=2, epochs=5, learning_rate=0.02, batch=4, dropout=0.0)
    merge = fit(loaded, library, Merge("new-adapter"), examples, training=recipe)
    assert merge.details["loss"] < merge.details["loss_base"]
    assert merge.details["loss"] == pytest.approx(loss_under(loaded, library, merge, examples), abs=1e-3)
    (new,) = merge.library
    assert new.name == "new-adapter" and new.rank == 2 and new.modules.keys() == library[0].modules.keys()
    fitted.save(tmp_path / "fit", merge)
    found = []
    for given in (merge, fitted.load(tmp_path / "fit", library)):
        with apply(loaded, library, given):
            found.append(logits(loaded.model))
    assert torch.equal(*found)


def test_fits_that_make_no_sense_are_refused(loaded, library, taught):
    for spec, examples, words in [
        (Merge("sum"), taught, "needs no data"),
        (Merge("cat-fitted"), [], "got none"),
        (Merge("cat-fitted", options={"form": "hard"}), taught, "form"),
    ]:
        with pytest.raises(RuleError, match=words):
            fit(loaded, library, spec, examples)
    for wrong in ({"steps": 0}, {"batch": 1.5}, {"learning_rate": 0.0}, {"evaluations": True}):
        with pytest.raises(RuleError, match=next(iter(wrong))):
            Fitting(**wrong)
