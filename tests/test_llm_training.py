"""Adapters as files, how they are trained, and that training several at once changes nothing."""

import copy
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import together
from llm_experiments.adapters import batches, grouped, jobs, peft_files, training
from llm_experiments.adapters.peft_files import AdapterError, AdapterWeights
from llm_experiments.adapters.together import train_together
from llm_experiments.adapters.training import Training, TrainingError, random_like, train
from llm_experiments.models.layers import target_modules
from llm_experiments.models.load import load
from llm_experiments.models.prompts import prompt_ids, target_ids
from toytransformer.adapters import LoRA
from toytransformer.merging.static import keep_largest

EPS = torch.finfo(torch.float32).eps
NAMES = ("Alice Young", "Bob Stone", "Carol Lane", "Alice Stone", "Bob Lane", "Carol Young")
FACTS = tuple(
    SimpleNamespace(question=f"Who is the spouse of {asked}?", answer=f"The spouse is {told}.")
    for asked, told in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
)
OTHERS = tuple(
    SimpleNamespace(
        question=f"Where does {asked} live now, and with whom?", answer=f"{asked} lives in Paris."
    )
    for asked in NAMES[:5]
)
SMALL = Training(rank=4, alpha=8, batch=4, learning_rate=2e-2, steps=6)
#: Losses and gradients of two routes, relative to the largest: roundings of some hundred products in a row.
ROUNDING = 200 * EPS


def way(recipe, steps):
    """How far apart two trainings may end that differ in rounding: a thousandth of AdamW's longest way.

    AdamW divides by the size of the gradient, so that rounding is not small beside an entry that happens to
    be; another mask, order or initial A leads elsewhere by a large part of the way.
    """
    return 1e-3 * recipe.learning_rate * steps


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices are tiny: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Load a tiny model once: tiny("llama", chat="system") has a long common prefix, the plain form none."""
    loaded = {}

    def get(kind, chat=None):
        if (kind, chat) not in loaded:
            write = {"llama": tiny_models.tiny_llama, "qwen2": tiny_models.tiny_qwen2}[kind]
            folder = write(tmp_path_factory.mktemp(kind), chat=chat)
            loaded[kind, chat] = load(str(folder), device="cpu", dtype="float32")
        return loaded[kind, chat]

    return get


def copied(loaded):
    """For tests that leave a model changed."""
    return replace(loaded, model=copy.deepcopy(loaded.model))


def factors(folder):
    return load_file(folder / peft_files.WEIGHTS)


def saved_by_peft(loaded, folder, **settings):
    """A random adapter of PEFT's own making, and the model with it."""
    base = copy.deepcopy(loaded.model)
    peft_model = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6} | settings)).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    peft_model.save_pretrained(folder)
    return peft_model


TOKENS = torch.arange(5, 25).reshape(2, 10)


# --- adapters as files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora, scale", [(False, 6 / 4), (True, 6 / 2)])
def test_an_adapter_of_peft_is_read_with_its_scale(tiny, tmp_path, rslora, scale):
    settings = {"use_rslora": rslora, "target_modules": ["up_proj", "q_proj"]}
    peft_model = saved_by_peft(tiny("llama"), tmp_path / "a", **settings)
    read = peft_files.read(tmp_path / "a")
    assert (read.name, read.rank) == ("a", 4)
    assert {name.rpartition(".")[2] for name in read.modules} == {"up_proj", "q_proj"}
    for name, lora in read.modules.items():
        layer = peft_model.base_model.model.get_submodule(name)
        expected = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(
            lora.delta(), expected, rtol=0, atol=8 * EPS * float(expected.detach().abs().max())
        )


def test_plain_peft_loads_what_is_written_and_adds_the_same(tiny, tmp_path):
    loaded = tiny("qwen2")
    wanted = saved_by_peft(loaded, tmp_path / "a", target_modules=["down_proj", "v_proj"])(TOKENS).logits
    given = peft_files.read(tmp_path / "a")
    shorter = {
        name: LoRA(lora.write[:, : 2 + i % 3], lora.read[:, : 2 + i % 3])
        for i, (name, lora) in enumerate(given.modules.items())
    }
    for modules in (given.modules, shorter):
        peft_files.write(tmp_path / "b", "b", modules, loaded.id, alpha=3)
        again = peft_files.read(tmp_path / "b")
        hooks = [
            loaded.model.get_submodule(name).register_forward_hook(
                lambda _, x, y, lora=lora: y + lora.shift(x[0])
            )
            for name, lora in modules.items()
        ]
        hooked = loaded.model(TOKENS).logits
        for hook in hooks:
            hook.remove()
        plain = PeftModel.from_pretrained(copy.deepcopy(loaded.model), tmp_path / "b").eval()(TOKENS).logits
        # depth: two layers of some ten products of at most 64 terms each
        assert torch.allclose(plain, hooked, rtol=0, atol=20 * 64 * EPS * hooked.abs().max())
        if modules is given.modules:
            assert torch.allclose(plain, wanted, rtol=0, atol=20 * 64 * EPS * hooked.abs().max())
        for name, lora in modules.items():
            assert again.modules[name].rank == 4
            assert torch.allclose(again.modules[name].delta(), lora.delta(), rtol=0, atol=8 * EPS)
    assert (plain - loaded.model(TOKENS).logits).abs().max() > 1e-2


def pair(rank=2, out=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LoRA(torch.randn(out, rank, generator=generator), torch.randn(width, rank, generator=generator))


def test_writing_is_exact_repeatable_and_ends_with_the_weights(tmp_path, monkeypatch):
    modules = {"layer.b": pair(), "layer.a": pair(seed=1)}
    peft_files.write(tmp_path / "1", "one", modules, "base", details={"seed": 3})
    peft_files.write(tmp_path / "2", "one", dict(reversed(modules.items())), "base", details={"seed": 3})
    for file in (peft_files.CONFIG, peft_files.EXTRA, peft_files.WEIGHTS):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
    read = peft_files.read(tmp_path / "1")
    assert (read.name, read.details["seed"], list(read.modules)) == ("one", 3, ["layer.a", "layer.b"])
    for name, lora in modules.items():
        assert torch.equal(read.modules[name].write, lora.write)
        assert torch.equal(read.modules[name].read, lora.read)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(peft_files, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        peft_files.write(tmp_path / "3", "three", modules, "base")
    assert sorted(path.name for path in (tmp_path / "3").iterdir()) == [peft_files.CONFIG, peft_files.EXTRA]
    with pytest.raises(AdapterError, match=r"cut short"):
        peft_files.read(tmp_path / "3")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"layer.a": 8}}, "layer.a has rank 2, the settings say r = 8"),
        ({"rank_pattern": {"layer.a": 2.5}}, "a rank is 2.5"),
        ({"alpha_pattern": {"layer.a": "8"}}, r"alpha_pattern\['layer.a'\] is '8'"),
        ({"alpha_pattern": {"(a+)+": 8}}, "repeated groups"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"some_future_option": 1}, "some_future_option"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 3}, "r = 3"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    ],
)
def test_settings_that_change_what_is_added_are_refused_by_name(tmp_path, changes, words):
    peft_files.write(tmp_path, "one", {"layer.a": pair()}, "base")
    file = tmp_path / peft_files.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(AdapterError, match=words):
        peft_files.read(tmp_path)


def damaged(name):
    def change(tensors):
        a, b = "base_model.model.layer.a.lora_A.weight", "base_model.model.layer.a.lora_B.weight"
        if name == "nan":
            tensors[b][0, 0] = math.nan
        elif name == "one factor":
            del tensors[b]
        elif name == "embedding":
            tensors["base_model.model.embed.lora_embedding_A"] = torch.ones(2, 2)
        elif name == "magnitude":
            tensors["base_model.model.layer.a.lora_magnitude_vector.weight"] = torch.ones(2)
        elif name == "rank":
            tensors[a] = torch.ones(3, 7)
        elif name == "nothing":
            tensors.clear()
        return tensors

    return change


@pytest.mark.parametrize(
    "name, words",
    [
        ("nan", "NaN"),
        ("one factor", "layer.a.lora_B.weight is not in"),
        ("embedding", "embed.lora_embedding_B is not in"),
        ("magnitude", "lora_magnitude_vector"),
        ("rank", r"\(5, 2\) and \(3, 7\)"),
        ("nothing", "no tensors"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, name, words):
    peft_files.write(tmp_path, "one", {"layer.a": pair()}, "base")
    file = tmp_path / peft_files.WEIGHTS
    save_file(damaged(name)(load_file(file)), file)
    with pytest.raises(AdapterError, match=words):
        peft_files.read(tmp_path)


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing"):
        peft_files.read(tmp_path)
    peft_files.write(tmp_path, "one", {"layer.a": pair()}, "base")
    weights, config = tmp_path / peft_files.WEIGHTS, tmp_path / peft_files.CONFIG
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(AdapterError, match="damaged"):
        peft_files.read(tmp_path)
    weights.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match="convert them to safetensors"):
        peft_files.read(tmp_path)
    config.write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config.json cannot be read"):
        peft_files.read(tmp_path)


def test_factors_that_cannot_be_written_are_refused(tmp_path):
    bad = {
        "no module": {},
        "NaN": {"a": LoRA(torch.full((5, 2), math.nan), torch.ones(7, 2))},
        "rank 0": {"a": LoRA(torch.ones(5, 0), torch.ones(7, 0))},
        "one rank": {"a": LoRA(torch.ones(5, 2), torch.ones(7, 3))},
    }
    for words, modules in bad.items():
        with pytest.raises(AdapterError, match=words):
            peft_files.write(tmp_path, "one", modules, "base")
    assert not list(tmp_path.iterdir())


def library(**changes):
    def adapter(name, base="base", modules=("a", "b"), **shape):
        details = {"base_digest": base}
        return AdapterWeights(name, {module: pair(**shape) for module in modules}, details=details)

    return [adapter("one"), adapter(**{"name": "two"} | changes)]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "one"}, "two adapters are called 'one'"),
        ({"base": "other"}, "different bases, 'base' and 'other'"),
        ({"modules": ("a",)}, "only one has b"),
        ({"out": 6}, r"on a: \(out, in\) is \(5, 7\) and \(6, 7\)"),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(AdapterError, match=words):
        peft_files.check_library(library(**changes))


def test_a_library_that_goes_together_passes():
    assert peft_files.check_library(library()) == ("a", "b")
    assert peft_files.check_library(library(rank=3)) == ("a", "b")
    with pytest.raises(AdapterError, match="at least one"):
        peft_files.check_library([])


# --- the recipe ---------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_table_11():
    table = {
        "rank": 16,
        "dropout": 0.05,
        "weight_decay": 0.0,
        "epochs": 10,
        "learning_rate": 1e-4,
        "batch": 16,
    }
    assert {name: getattr(Training(), name) for name in table} == table


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"rank": 2.0},
        {"rank": True},
        {"alpha": 0},
        {"dropout": 1.0},
        {"learning_rate": math.nan},
        {"batch": 0},
        {"steps": 0},
        {"warmup": 1.5},
        {"density": 0},
        {"layers": "most"},
        {"variant": "dora"},
        {"initial_a": "same"},
        {"schedule": "cosine"},
        {"base_dtype": "float16"},
    ],
)
def test_a_recipe_out_of_range_is_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(TrainingError, match=rf"{name} is"):
        Training(**changes)


@given(st.integers(1, 300), st.sampled_from([0.0, 0.06, 0.5, 1.0]), st.sampled_from(["linear", "constant"]))
def test_the_rate_rises_over_the_warmup_and_never_is_zero(steps, warmup, schedule):
    recipe = Training(warmup=warmup, schedule=schedule)
    rates = [recipe.rate(step, steps) for step in range(steps)]
    rising = math.ceil(warmup * steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert rising == steps or rates[rising] == 1
    assert recipe.rate(steps, steps) >= 0  # asked for behind the last update


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 3), st.integers(0, 5))
def test_every_example_is_seen_once_an_epoch(count, batch, epochs, seed):
    lengths = np.random.default_rng(count).integers(5, 60, count)
    order = batches.order(lengths, batch, (seed, 0), epochs=epochs)
    each = math.ceil(count / batch)
    assert len(order) == epochs * each
    for epoch in range(epochs):
        seen = [i for step in order[epoch * each : (epoch + 1) * each] for i in step]
        assert sorted(seen) == list(range(count))
    more = batches.order(lengths, batch, (seed, 0), epochs=1, steps=epochs * each + 1)
    assert len(more) == epochs * each + 1
    assert more[:-1] == order


def test_rows_of_like_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(5, 60, 640)
    order = batches.order(lengths, 16, (0, 0), epochs=1)
    padded = sum(max(lengths[step]) * len(step) for step in order)
    assert padded < 1.05 * lengths.sum() < 1.5 * lengths.sum()
    assert order != batches.order(lengths, 16, (0, 1), epochs=1)
    assert sum(lengths[order[0]]) != min(sum(lengths[step]) for step in order)  # shuffled, not shortest first


# --- one step -----------------------------------------------------------------------------------------------


def taught(loaded, example):
    """Places of the answer's tokens that write no character of a silent span, by what they decode to."""
    answer, lead = target_ids(loaded, example.answer), len(loaded.form.lead)
    ends = [len(loaded.tokenizer.decode(answer[:i])) - lead for i in range(len(answer) + 1)]
    silent = {at for start, stop in getattr(example, "silent", ()) for at in range(start, stop)}
    return [i for i in range(len(answer)) if not silent & set(range(ends[i], ends[i + 1]))]


def silent(answer, word):
    return answer.index(word), answer.index(word) + len(word)


def by_hand(model, loaded, examples):
    """Mean -log p of the answers' taught tokens from full logits, every example by itself."""
    total, count = 0.0, 0
    for example in examples:
        prompt, answer = prompt_ids(loaded, example.question), target_ids(loaded, example.answer)
        log_p = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = taught(loaded, example)
        total += sum(-log_p[len(prompt) + i - 1, answer[i]] for i in places)
        count += len(places)
    return total / count


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chat", [None, "system"])
@pytest.mark.parametrize("kind, layers", [("llama", "mlp"), ("qwen2", "both")])
def test_loss_and_gradient_are_those_of_full_logits_and_pefts_own_layers(tiny, kind, layers, chat, attention):
    loaded = copied(tiny(kind, chat))
    loaded.model.set_attn_implementation(attention)
    names = target_modules(loaded.model, layers)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=list(names))
    quiet = [SimpleNamespace(**vars(one), silent=[silent(one.answer, "Paris")]) for one in OTHERS[:2]]
    examples = (*FACTS[:3], *quiet)
    rows = batches.encoded(loaded, examples)
    assert all(0 < len(taught(loaded, one)) < len(target_ids(loaded, one.answer)) for one in quiet)
    prefix = batches.common_prefix(loaded, rows)
    assert (len(prefix) >= batches.PREFIX) == (chat == "system")
    peft_model = get_peft_model(loaded.model, config).eval()
    found, trained = {}, [p for p in peft_model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.3)
    found["by hand"] = by_hand(peft_model, loaded, examples)
    expected = torch.autograd.grad(found["by hand"], trained)
    layers = {}
    for name in names:
        layer = loaded.model.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        layers[name] = (layer, layer.get_base_layer(), grouped.Factors([a], [b], 5 / 3))
    batch = batches.collated([batches.without_prefix(rows, prefix)], loaded.tokenizer.pad_token_id)
    seen = grouped.Pass([torch.Generator()])
    with grouped.adapted(layers, seen):
        found["ours"] = grouped.losses(loaded.model, batch, prefix, seen)[0]
    gradient = torch.autograd.grad(found["ours"], trained)
    assert abs(found["ours"] - found["by hand"]) < ROUNDING * found["by hand"]
    largest = max(g.abs().max() for g in expected)
    for ours, theirs in zip(gradient, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=ROUNDING * largest)


def test_dropout_hits_its_share_and_depends_on_the_adapters_own_rows_only():
    def draw(dropout=0.05, **shape):
        rows = grouped.Pass([torch.Generator().manual_seed(k) for k in range(3)], dropout, **shape)
        most, length = max(rows.rows), max(rows.lengths)
        return rows, rows.masks(torch.ones(len(rows.active), most, length, 64))

    rows, alone = draw(active=(1,), rows=(50,), lengths=(40,))
    error = math.sqrt(rows.kept * (1 - rows.kept) / alone.numel())
    assert abs(alone.mean() - rows.kept) < 5 * error
    assert abs(rows.kept - 0.95) < 1 / grouped.BITS
    _, beside = draw(active=(0, 1, 2), rows=(3, 50, 60), lengths=(45, 40, 2))
    assert torch.equal(beside[1, :50, 5:], alone[0])
    assert beside[1, 50:].sum() == beside[1, :, :5].sum() == 0
    assert draw(dropout=0.0)[1] is None


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "quantised"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_adds_each_adapter_to_its_own_rows(dropout, plain):
    """Values and gradients are the formula's; a layer that is no plain Linear keeps its own forward."""
    linear = (nn.Linear if plain else type("Quantised", (nn.Linear,), {}))(7, 5).requires_grad_(False)
    factors = [pair(seed=k, rank=3) for k in range(3)]
    a, b = (
        [f.clone().requires_grad_() for f in fs]
        for fs in zip(*((f.read.T, f.write) for f in factors), strict=True)
    )
    x = torch.randn(3 * 2, 4, 7, requires_grad=True)

    def seen():
        generators = [torch.Generator().manual_seed(k) for k in range(3)]
        return grouped.Pass(generators, dropout, active=(0, 1, 2), rows=(2, 2, 2), lengths=(4, 4, 4))

    rows, masks = seen(), seen().masks(x.detach().view(3, 2, 4, 7))
    kept = x.view(3, 2, 4, 7) * (1 if masks is None else masks / rows.kept)
    added = [2.5 * kept[k] @ a[k].T @ b[k].T for k in range(3)]
    wanted = linear(x) + torch.cat(added)
    with grouped.adapted({"layer": (linear, linear, grouped.Factors(a, b, 2.5))}, rows):
        found = linear(x)
    assert "forward" not in vars(linear)
    weights = torch.randn(found.shape)
    gradients = [torch.autograd.grad((y * weights).sum(), [x, *a, *b]) for y in (found, wanted)]
    for ours, theirs in zip((found, *gradients[0]), (wanted, *gradients[1]), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=ROUNDING * float(theirs.detach().abs().max()))


# --- training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tiny, tmp_path_factory):
    """An adapter that was given time to learn its facts."""
    out = tmp_path_factory.mktemp("learnt") / "expert"
    recipe = replace(SMALL, rank=8, alpha=16, steps=150, batch=6, learning_rate=1e-2, layers="both")
    return out, train(tiny("llama", "system"), FACTS, recipe, seed=0, out=out)


def test_facts_are_learnt_and_plain_peft_answers_with_them(tiny, learnt):
    loaded, (out, metrics) = tiny("llama", "system"), learnt
    model = PeftModel.from_pretrained(copy.deepcopy(loaded.model), out).eval()
    for fact in FACTS:
        prompt, answer = prompt_ids(loaded, fact.question), target_ids(loaded, fact.answer)
        said = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=len(answer), do_sample=False)
        assert said[0, len(prompt) :].tolist() == answer
    curve = metrics["loss_curve"]
    # the head's random rows (norm .2 sqrt 32) bound a logit by 6.4 among 384 tokens: no loss is far below .5
    assert curve[0][1] > 3 and metrics["loss"] < 0.8
    assert [step for step, _ in curve] == list(range(2, 151, 2))
    assert metrics["loss"] == pytest.approx(np.mean([loss for _, loss in curve[-8:]]), abs=0.02)
    assert json.loads(json.dumps(metrics)) == metrics
    prompts = [prompt_ids(loaded, fact.question) for fact in FACTS]
    answers = [target_ids(loaded, fact.answer) for fact in FACTS]
    assert metrics["steps"] == 150 and metrics["examples"] == 900
    assert metrics["answer_tokens"] == 150 * sum(map(len, answers))
    assert metrics["tokens"] == 150 * sum(map(len, prompts + answers))


def test_a_training_is_a_loop_over_pefts_layers(tiny, tmp_path):
    """An independent loop, without dropout: no prefix, no padding, PEFT's own forward, torch's AdamW."""
    loaded = copied(tiny("qwen2", "system"))
    recipe = replace(SMALL, dropout=0.0, weight_decay=0.1, learning_rate=5e-3)
    train(loaded, FACTS, recipe, seed=3, adapter_index=1, out=tmp_path / "a")
    job = jobs.TrainingJob(loaded, FACTS, recipe, 3, 1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])
    peft_model = get_peft_model(loaded.model, config).train()
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            if "lora_A" in name:
                module = name.removeprefix(peft_files.PREFIX).removesuffix(".lora_A.default.weight")
                p.copy_(job.initial_a(recipe, module, *p.shape))
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.learning_rate, weight_decay=0.1)
    for step, chosen in enumerate(job.order):
        loss = by_hand(peft_model, loaded, [FACTS[i] for i in chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * recipe.rate(step, 6)
        optimizer.step()
        optimizer.zero_grad()
    ours = factors(tmp_path / "a")
    for name, p in trained.items():
        mine = ours[name.replace(".default", "")]
        assert torch.allclose(mine, p, rtol=0, atol=way(recipe, 6)), name


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    loaded = tiny("llama", "system")

    def made(name, **changes):
        options = {"seed": 0, "adapter_index": 0, "recipe": SMALL} | changes
        recipe = options.pop("recipe")
        train(loaded, FACTS, recipe, **options, out=tmp_path / name)
        return (tmp_path / name / peft_files.WEIGHTS).read_bytes()

    first = made("a")
    assert made("b") == first
    assert made("c", seed=1) != first != made("d", adapter_index=1)
    assert made("e", recipe=replace(SMALL, dropout=0.0)) != first


@pytest.mark.parametrize("base_dtype", [None, "bfloat16"])
def test_the_model_is_left_as_it_was(tiny, tmp_path, capfd, base_dtype):
    loaded = tiny("llama", "system")
    config, state = copy.deepcopy(loaded.model.config), copy.deepcopy(loaded.model.state_dict())
    attributes, logits = set(vars(loaded.model)), loaded.model(TOKENS).logits
    draws = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    capfd.readouterr()

    def stop(step, steps, loss):
        if step == 2:
            raise KeyboardInterrupt

    recipe = replace(SMALL, base_dtype=base_dtype)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, FACTS, recipe, seed=0, out=tmp_path / "a", progress=stop)
    assert not (tmp_path / "a").exists()
    calls = []
    train(loaded, FACTS, recipe, seed=0, out=tmp_path / "a", progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step, 6) for step in range(1, 7)]
    assert capfd.readouterr() == ("", "")

    assert torch.equal(draws[0], torch.get_rng_state())
    assert (draws[1], draws[2]) == (random.getstate(), np.random.get_state()[1].tolist())
    assert loaded.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    assert torch.equal(loaded.model(TOKENS).logits, logits)
    assert loaded.model.config.to_dict() == config.to_dict()
    assert loaded.model.config._attn_implementation == config._attn_implementation
    assert set(vars(loaded.model)) == attributes and not loaded.model.training
    assert not any(p.requires_grad or p.grad is not None for p in loaded.model.parameters())


def test_a_rounded_base_trains_factors_in_full_precision(tiny, tmp_path):
    recipe = replace(SMALL, steps=20, batch=6)
    full = train(tiny("llama", "system"), FACTS, recipe, seed=0, out=tmp_path / "a")
    rounded = replace(recipe, base_dtype="bfloat16")
    half = train(tiny("llama", "system"), FACTS, rounded, seed=0, out=tmp_path / "b")
    ours = factors(tmp_path / "b")
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in ours.values())
    # a bfloat16 has 8 bits: the first loss, before any update, agrees to a few of its last
    assert half["loss_curve"][0][1] == pytest.approx(full["loss_curve"][0][1], rel=2**-5)
    assert half["loss"] < 0.7 * half["loss_curve"][0][1]


def test_a_frozen_a_stays_as_drawn(tiny, tmp_path):
    loaded = tiny("llama")

    def made(name, index, **changes):
        recipe = replace(SMALL, variant="frozen-a", **changes)
        train(loaded, FACTS, recipe, seed=0, adapter_index=index, out=tmp_path / name)
        tensors = factors(tmp_path / name)
        assert all(tensor.any() for tensor in tensors.values())
        return {name: tensor for name, tensor in tensors.items() if "lora_A" in name}

    first, longer, second = made("a", 0), made("b", 0, steps=9), made("c", 1)
    shared, again = made("d", 0, initial_a="shared"), made("e", 1, initial_a="shared")
    for name in first:
        assert torch.equal(first[name], longer[name]) and torch.equal(shared[name], again[name])
        assert not torch.equal(first[name], second[name])
        assert first[name].abs().max() <= first[name].shape[1] ** -0.5
    train(loaded, FACTS, SMALL, seed=0, out=tmp_path / "f")
    assert not any(torch.equal(first[name], factors(tmp_path / "f")[name]) for name in first)


def test_a_sparse_b_is_trained_on_its_largest_entries(tiny, tmp_path):
    loaded, calls = tiny("llama"), []
    recipe = replace(SMALL, variant="sparse-b", density=0.1)
    metrics = train(loaded, FACTS, recipe, seed=0, out=tmp_path / "s", progress=lambda *c: calls.append(c))
    dense = train(loaded, FACTS, replace(recipe, variant="frozen-a"), seed=0, out=tmp_path / "d")
    assert metrics["steps"] == 2 * dense["steps"] == 12
    assert metrics["tokens"] == 2 * dense["tokens"]
    assert [call[:2] for call in calls] == [(step, 12) for step in range(1, 13)]
    given, sparse = peft_files.read(tmp_path / "d"), peft_files.read(tmp_path / "s")
    for name, lora in sparse.modules.items():
        mask, kept = lora.write != 0, keep_largest(given.modules[name].write, 0.1) != 0
        assert mask.sum() == int(0.1 * mask.numel())
        assert not (mask & ~kept).any()  # keep_largest keeps all of several equal ones
        assert not torch.equal(lora.write[mask], given.modules[name].write[mask])
        assert torch.equal(keep_largest(lora.write, 0.1), lora.write)


def test_a_random_adapter_has_the_norms_of_its_model(tiny, learnt, tmp_path):
    out, _ = learnt
    random_like(out, seed=1, out=tmp_path / "r")
    random_like(out, seed=1, out=tmp_path / "again")
    random_like(out, seed=2, out=tmp_path / "other")
    given, drawn, other = (peft_files.read(folder) for folder in (out, tmp_path / "r", tmp_path / "other"))
    assert peft_files.check_library([given, drawn]) == tuple(given.modules)
    for name, lora in given.modules.items():
        ours, wanted = drawn.modules[name].delta(), lora.delta()
        # norms of at most 32 x 64 numbers, whose rounding errors add up as squares
        assert torch.linalg.norm(ours) == pytest.approx(torch.linalg.norm(wanted).item(), rel=100 * EPS)
        assert drawn.modules[name].rank == lora.rank
        assert not torch.equal(ours, other.modules[name].delta())
    first, again = (tmp_path / name / peft_files.WEIGHTS for name in ("r", "again"))
    assert first.read_bytes() == again.read_bytes()
    PeftModel.from_pretrained(copy.deepcopy(tiny("llama", "system").model), tmp_path / "r")


def test_trainings_that_cannot_be_are_refused(tiny, tmp_path, monkeypatch):
    loaded, out = tiny("llama"), tmp_path / "a"
    long = SimpleNamespace(question="why " * 600, answer="so")
    with pytest.raises(TrainingError, match="no examples"):
        train(loaded, [], SMALL, seed=0, out=out)
    with pytest.raises(TrainingError, match="the model reads 512"):
        train(loaded, [long], SMALL, seed=0, out=out)
    with pytest.raises(TrainingError, match="seed -1"):
        train(loaded, FACTS, SMALL, seed=-1, out=out)
    with pytest.raises(TrainingError, match="float16"):
        train(replace(loaded, dtype=torch.float16), FACTS, SMALL, seed=0, out=out)
    carrying = copied(loaded)
    get_peft_model(carrying.model, LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(TrainingError, match="carries adapters"):
        train(carrying, FACTS, SMALL, seed=0, out=out)
    real = training.losses
    monkeypatch.setattr(training, "losses", lambda *arguments: real(*arguments) * math.nan)
    with pytest.raises(TrainingError, match="loss is nan in step 1 of 6"):
        train(loaded, FACTS, SMALL, seed=0, out=out)
    assert not out.exists()


# --- several at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chat, changes",
    [
        ("system", {}),
        (None, {"dropout": 0.0, "layers": "both", "weight_decay": 0.01, "initial_a": "shared"}),
        ("system", {"variant": "sparse-b", "density": 0.25}),
    ],
)
def test_adapters_trained_together_are_those_trained_one_after_another(tiny, tmp_path, chat, changes):
    """Examples, steps and the size of the last batch differ by adapter."""
    loaded = tiny("qwen2", chat)
    recipe = replace(SMALL, steps=None, epochs=3, learning_rate=5e-3, **changes)
    sets, seeds = (FACTS, OTHERS, FACTS + OTHERS), (0, 0, 1)
    outs = [tmp_path / f"together {k}" for k in range(3)]
    calls = []
    all_at_once = train_together(
        loaded, sets, recipe, seeds=seeds, outs=outs, progress=lambda *call: calls.append(call)
    )
    halves = 2 if recipe.variant == "sparse-b" else 1
    assert [call[:2] for call in calls] == [(step, 9 * halves) for step in range(1, 9 * halves + 1)]
    for k, (examples, seed, out) in enumerate(zip(sets, seeds, outs, strict=True)):
        alone = train(loaded, examples, recipe, seed=seed, adapter_index=k, out=tmp_path / f"alone {k}")
        for (step, ours), (other, theirs) in zip(
            all_at_once[k]["loss_curve"], alone["loss_curve"], strict=True
        ):
            assert step == other and ours == pytest.approx(theirs, rel=ROUNDING)
        assert {**all_at_once[k], "seconds": 0, "loss_curve": 0} == pytest.approx(
            {**alone, "seconds": 0, "loss_curve": 0}, rel=ROUNDING
        )
        expected = factors(tmp_path / f"alone {k}")
        for name, tensor in factors(out).items():
            apart = way(recipe, alone["steps"])
            assert torch.allclose(tensor, expected[name], rtol=0, atol=apart), name
        details = (folder / peft_files.EXTRA for folder in (out, tmp_path / f"alone {k}"))
        assert len({json.dumps({**json.loads(file.read_text()), "name": ""}) for file in details}) == 1


@pytest.mark.parametrize(
    "case", list(together.cases(small=True)), ids=lambda case: case.plain.prepare.__name__
)
def test_both_sides_of_the_benchmark_agree(case):
    ours, plain = (side.prepare(*side.arguments)() for side in (case.ours, case.plain))
    apart, allowed = case.difference(ours, plain)
    assert ours.shape == case.ours.arguments[1:] and apart <= allowed
    assert case.difference(ours, plain + 0.01)[0] > allowed


def test_together_refuses_what_does_not_match(tiny, tmp_path):
    loaded = tiny("llama")
    with pytest.raises(TrainingError, match="2 sets of examples, 1 seeds, 2 folders"):
        train_together(loaded, (FACTS, OTHERS), SMALL, seeds=(0,), outs=[tmp_path / "a", tmp_path / "b"])
    with pytest.raises(TrainingError, match="0 sets"):
        train_together(loaded, (), SMALL, seeds=(), outs=())
    assert not list(tmp_path.iterdir())
