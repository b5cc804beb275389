"""Merged adapters of a rank that one can use: truncation against exact SVDs, losses, recipes, the command."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llm_experiments.__main__ import cli
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges import saving
from llm_experiments.merges.merging import merge_modules
from llm_experiments.merges.recipe import Part, Recipe, RecipeError, layers_named
from llm_experiments.merges.saving import LARGEST, static_adapter
from llm_experiments.merges.truncation import MORE, STEPS, cut, distance, norm, smallest_rank
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RULES, RuleError, merge

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj")
#: Algebraic: eps, times room for sums over these matrices.
DOUBLE, SINGLE = 2**12 * float(np.finfo(np.float64).eps), 2**10 * float(np.finfo(np.float32).eps)
STATIC = [rule for rule in RULES.values() if not rule.routed and not rule.needs_data]


def drawn(seed, out=12, inside=9, rank=3, falling=1.0):
    rng = np.random.default_rng(seed)
    write = rng.normal(size=(out, rank)) * falling ** np.arange(rank)
    return LoRA(
        *(torch.tensor(side, dtype=torch.float32) for side in (write, rng.normal(size=(inside, rank))))
    )


@pytest.fixture
def library():
    return [
        AdapterWeights(f"adapter-{j}", {name: drawn((i, j)) for i, name in enumerate(NAMES)})
        for j in range(2)
    ]


def with_values(values, out, inside, seed=0):
    """A matrix with these singular values, its directions drawn at random."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (out, inside))
    return torch.tensor((left * np.asarray(values)) @ right.T)


# ---------------------------------------------------------------- truncation


K = np.arange(1, 401)
SPECTRA = {
    "flat": np.ones(400),
    "falling slowly": K**-0.25,
    "falling": K**-0.5,
    "falling fast": 0.9**K,
    "a step where it is cut": np.where(K <= 16, 1.0, 0.3),
    "noise": None,
}


@pytest.mark.parametrize("rank", [1, 16, 40])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_randomised_cut_loses_a_thousandth_more_than_the_best(spectrum, rank):
    values = SPECTRA[spectrum]
    if values is None:
        matrix = torch.tensor(np.random.default_rng(0).normal(size=(800, 400)))
    else:
        matrix = with_values(values, 800, 400)
    assert (STEPS + 1) * (rank + MORE) < 400, "not the randomised route"
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False)
    found = cut(matrix, rank)
    lost, best = distance(matrix, found.to(rank)), math.sqrt(np.sum(exact[rank:] ** 2))
    assert best * (1 - DOUBLE) <= lost <= best * (1 + 1e-3) + DOUBLE * exact[0]
    assert found.lost(rank) == pytest.approx(lost**2, abs=DOUBLE * found.energy)


@pytest.mark.parametrize("rule", [rule for rule in STATIC if rule.dense], ids=lambda rule: rule.name)
def test_what_rules_on_entries_leave_is_cut_as_well(rule):
    """In single precision, as large layers are: TIES leaves a spectrum that falls to noise."""
    factors = [drawn(seed, 300, 240, 16, 0.9) for seed in range(3)]
    matrix = merge(factors, Merge(rule.name)).delta()
    assert matrix.dtype == torch.float32
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    lost, best = distance(matrix, cut(matrix, 16).to(16)), math.sqrt(np.sum(exact[16:] ** 2))
    assert best * (1 - SINGLE) <= lost <= best * (1 + 1e-3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_cuts_of_factors_and_of_small_matrices_are_exact(out, inside, rank, kept, seed):
    lora = LoRA(
        *(
            side.double()
            for side in (drawn(seed, out, inside, rank).write, drawn(seed, out, inside, rank).read)
        )
    )
    dense = lora.delta()
    exact = np.linalg.svd(dense.numpy(), compute_uv=False)
    best = math.sqrt(np.sum(exact[kept:] ** 2))
    for update in (lora, dense):
        found = cut(update, kept)
        assert found.to(kept).rank <= kept
        assert distance(update, found.to(kept)) == pytest.approx(best, abs=math.sqrt(DOUBLE) * exact[0])
        assert norm(update) == pytest.approx(np.linalg.norm(dense.numpy()), abs=DOUBLE * exact[0])


def test_the_least_rank_for_a_loss_is_the_least():
    several = [with_values(0.7 ** np.arange(8), 20, 10, 1), with_values(0.5 ** np.arange(8), 15, 9, 2)]
    cuts = [cut(matrix, 10) for matrix in several]
    spectra = [np.linalg.svd(matrix.numpy(), compute_uv=False) for matrix in several]
    total = sum(np.sum(values**2) for values in spectra)
    for loss in (0.5, 0.1, 0.01):
        rank = smallest_rank(cuts, loss)
        lost = [sum(np.sum(values[r:] ** 2) for values in spectra) for r in (rank, rank - 1)]
        assert lost[0] <= loss**2 * total < lost[1]
    assert smallest_rank([cut(several[0], 2)], 0.01) is None


@pytest.mark.parametrize("rule", [rule for rule in STATIC if rule.dense], ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_merging_some_rows_at_a_time_is_merging_all(rule, kind, monkeypatch):
    factors = [drawn(seed, 12, 9, 3) for seed in range(3)]
    if kind == "numpy":
        factors = [LoRA(lora.write.numpy(), lora.read.numpy()) for lora in factors]
    whole = merge(factors, Merge(rule.name)).delta()
    monkeypatch.setattr("toytransformer.merging.pruning.ENTRIES", 2 * 9 * 3)  # two rows
    parts = merge(factors, Merge(rule.name)).delta()
    assert np.abs(np.asarray(parts) - np.asarray(whole)).max() <= SINGLE * np.abs(np.asarray(whole)).max()


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("rule", STATIC, ids=lambda rule: rule.name)
def test_by_default_dense_merges_have_the_rank_of_the_inputs_and_others_all(library, rule):
    found = static_adapter(library, Merge(rule.name), rank=LARGEST)
    ranks = {lora.rank for lora in found.modules.values()}
    exact = merge_modules(library, Merge(rule.name), dtype=torch.float64)
    lost = total = 0.0
    for name, merged in exact.items():
        delta = merged.delta().numpy()
        kept = found.modules[name].delta().double().numpy()
        lost, total = lost + np.sum((delta - kept) ** 2), total + np.sum(delta**2)
        if rule.dense:
            assert ranks == {3}
            values = np.linalg.svd(delta, compute_uv=False)
            assert np.sum((delta - kept) ** 2) == pytest.approx(np.sum(values[3:] ** 2), rel=1e-3)
    assert found.details["relative_error"] == pytest.approx(math.sqrt(lost / total), abs=SINGLE)
    assert rule.dense or math.sqrt(lost / total) <= SINGLE


@pytest.mark.parametrize("rule", ["sum", "ties"])
def test_a_loss_is_kept_by_the_least_rank(library, rule):
    found = static_adapter(library, Merge(rule), loss=0.3)
    rank = found.details["rank"]
    assert 0 < found.details["relative_error"] <= 0.3
    assert static_adapter(library, Merge(rule), rank=rank - 1).details["relative_error"] > 0.3
    with pytest.raises(RuleError, match="loss is 2; give a number above 0"):
        static_adapter(library, Merge(rule), loss=2)


def test_large_dense_layers_are_merged_in_single_precision(library, monkeypatch):
    exact = static_adapter(library, Merge("ties"), rank=LARGEST)
    monkeypatch.setattr(saving, "MANY", 1)
    single = static_adapter(library, Merge("ties"), rank=LARGEST)
    assert single.details["relative_error"] == pytest.approx(exact.details["relative_error"], rel=1e-3)
    for name, lora in single.modules.items():
        close = torch.allclose(lora.delta(), exact.modules[name].delta(), atol=1e-3)
        assert close, "the spectrum of these has gaps, so the directions agree"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sizes_and_losses_are_those_of_the_file(library, dtype, tmp_path):
    found = static_adapter(library, Merge("sum"), dtype=dtype)
    found.write(tmp_path / "merged", "merged")
    modes = {file.stat().st_mode for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "whoever may read one file may read all"
    file = tmp_path / "merged" / "adapter_model.safetensors"
    assert 0 <= file.stat().st_size - found.details["bytes"] < 2000  # the header's names
    again, lost, total = peft_files.read(tmp_path / "merged"), 0.0, 0.0
    for name, merged in merge_modules(library, Merge("sum"), dtype=torch.float64).items():
        exact, kept = merged.delta(), again.modules[name].write.double() @ again.modules[name].read.double().T
        lost, total = lost + float(((exact - kept) ** 2).sum()), total + float((exact**2).sum())
    assert found.details["relative_error"] == pytest.approx(math.sqrt(lost / total), rel=1e-5)
    assert 0 < found.details["relative_error"] <= 4 * torch.finfo(dtype).eps


# ---------------------------------------------------------------- recipes


def test_words_and_patterns_name_layers():
    assert layers_named("mlp", NAMES) == list(NAMES[:2])
    assert layers_named("attention@1-1", NAMES) == [NAMES[2]]
    assert layers_named("both@upper half", NAMES) == list(NAMES[1:])
    assert layers_named("*.q_proj", NAMES) == [NAMES[2]]
    assert layers_named("*.nothing", NAMES) == []


def test_a_recipe_weights_layers_apart(library, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(
        'rule = "sum"\nweights = [1.0, 0.5]\n'
        '[[layers]]\nwhere = "mlp"\nweights = [0, 2.0]\n'
        '[[layers]]\nwhere = "mlp@0-0"\nweights = [1.0, 1.0]\n'
    )
    found = static_adapter(library, Recipe.read(file).merge(library))
    for name, weights in zip(NAMES, ((1, 1), (0, 2), (1, 0.5)), strict=True):
        wanted = sum(w * one.modules[name].delta() for w, one in zip(weights, library, strict=True))
        assert torch.allclose(found.modules[name].delta(), wanted, atol=1e-5)
    assert Recipe("ties").merge(library) == Merge("ties")


@pytest.mark.parametrize(
    "text, said",
    [
        ("rule = ", "is not TOML"),
        ("weights = [1.0]", "rule"),
        ('rule = "sum"\nweight = [1]', "weight"),
        ('rule = "sum"\nweights = ["a"]', "weights.0"),
        ('rule = "sum"\n[[layers]]\nwhere = "mlp"', "layers.0.weights"),
        ("rule = " + "[" * 5000, "is not TOML"),
    ],
)
def test_recipes_that_say_nothing_are_refused(text, said, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        Recipe.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    "recipe, said",
    [
        (Recipe("sum", layers=(Part("*.nothing", (1.0, 1.0)),)), "names none of the 3 layers"),
        (Recipe("sum", layers=(Part("mlp", (1.0,)),)), "1 weights"),
        (Recipe("mean", (1.0, 1.0)), "sets its own weights"),
        (Recipe("adaptive"), "fitted on examples"),
        (Recipe("average"), "no merge rule"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(library, recipe, said):
    with pytest.raises(ValueError, match=said):
        recipe.merge(library)


# ---------------------------------------------------------------- the command


@pytest.fixture
def folders(library, tmp_path):
    for adapter in library:
        peft_files.write(tmp_path / adapter.name, adapter.name, adapter.modules, "base")
    return [str(tmp_path / adapter.name) for adapter in library]


def test_the_command_says_what_it_will_write(folders, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(cli, ["merge", *folders, *map(str, arguments)])
        return done.exit_code, done.output, done.exception

    status, out, _ = run("--rule", "ties", "--dtype", "bfloat16", "--out", tmp_path / "new")
    first, second = out.splitlines()
    assert status == 0 and first.startswith("rank 3, relative loss 0.") and "MB in bfloat16" in first
    assert second == str(tmp_path / "new")
    for arguments, rank in ((("--rank", 1), 1), (("--rank", "all"), 9), (("--loss", 0.5), None)):
        status, out, _ = run("--rule", "ties", *arguments, "--out", tmp_path / f"new-{arguments[-1]}")
        assert status == 0 and (rank is None or out.startswith(f"rank {rank},"))
    (tmp_path / "recipe.toml").write_text('rule = "sum"\n[[layers]]\nwhere = "mlp"\nweights = [1, 0.5]\n')
    assert run("--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "by-recipe")[0] == 0
    for arguments in (
        ("--rank", 2, "--loss", 0.1),
        ("--rank", "most"),
        ("--rank", 0),
        ("--recipe", tmp_path / "recipe.toml", "--rule", "sum"),
    ):
        status, out, _ = run(*arguments, "--out", tmp_path / "refused")
        assert status == 2 and not (tmp_path / "refused").exists()


def test_what_cannot_fit_is_refused_before_it_starts(library, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(MemoryError, match=r"merging .* by 'ties'"):
        static_adapter(library, Merge("ties"))
    assert static_adapter(library, Merge("sum")).modules
