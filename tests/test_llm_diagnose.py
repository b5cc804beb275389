"""The geometry of a library from its factors, against dense matrices; what stands out; the command."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag, orth, subspace_angles

from llm_experiments import __main__ as command
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.compatible import of_one_base
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.diagnose import rules
from llm_experiments.diagnose.findings import findings
from llm_experiments.diagnose.geometry import ModuleGeometry, gram, overlaps, padded, reduced
from llm_experiments.diagnose.library import MOST, LibraryGeometry, block_of, measure
from llm_experiments.diagnose.rules import ENTRIES, GAUGES, kept, static_rules
from llm_experiments.models.shapes import BaseShapes
from toytransformer.adapters import AdapterError, LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RULES, MergeContext, merge

#: Algebraic: eps of float64, times room for sums over the entries of these small matrices.
DOUBLE = 2**12 * np.finfo(np.float64).eps
#: Singular vectors agree up to rounding over the smallest singular value, which is of order one here.
SPACES = math.sqrt(np.finfo(np.float64).eps)


@st.composite
def modules(draw, most=3):
    """Factors of one module: ranks differ, columns may be zero, one update may be another's multiple."""
    out, inside = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    adapters = []
    for _ in range(draw(st.integers(2, most))):
        rank = draw(st.integers(1, 4))
        write, read = rng.normal(size=(out, rank)), rng.normal(size=(inside, rank))
        if draw(st.booleans()):
            write[:, draw(st.integers(0, rank - 1))] = 0
        adapters.append(LoRA(write, read))
    if draw(st.booleans()):
        adapters[-1] = LoRA(draw(st.sampled_from((0.0, -1.0, 2.0))) * adapters[0].write, adapters[0].read)
    return adapters


def library(*adapters, names=None):
    """Each adapter: module -> (write, read) of NumPy arrays."""
    names = names or [f"adapter {index}" for index in range(len(adapters))]
    return [
        AdapterWeights(
            name,
            {
                key: LoRA(*(torch.tensor(side) for side in (lora.write, lora.read)))
                for key, lora in given.items()
            },
        )
        for name, given in zip(names, adapters, strict=True)
    ]


def drawn(seed, out=12, inside=9, rank=3, size=1.0):
    rng = np.random.default_rng(seed)
    return LoRA(size * rng.normal(size=(out, rank)), rng.normal(size=(inside, rank)))


def deltas(adapters):
    return [lora.write @ lora.read.T for lora in adapters]


def close(a, b, tolerance=DOUBLE, scale=None):
    a, b = np.asarray(a, float), np.asarray(b, float)
    assert a.shape == b.shape and np.array_equal(np.isnan(a), np.isnan(b))
    scale = max(np.nanmax(np.abs(a), initial=0), np.nanmax(np.abs(b), initial=0)) if scale is None else scale
    assert np.all(np.abs(np.nan_to_num(a) - np.nan_to_num(b)) <= tolerance * scale)


# ---------------------------------------------------------------- one module, against dense matrices


@given(modules())
def test_inner_products_are_those_of_the_dense_updates(adapters):
    dense = deltas(adapters)
    close(gram(adapters), [[np.sum(a * b) for b in dense] for a in dense])


@given(modules())
def test_few_coordinates_hold_all_inner_products(adapters):
    small = reduced(adapters)
    columns = sum(lora.rank for lora in adapters)
    assert all(len(lora.write) <= columns and len(lora.read) <= columns for lora in small)
    close(gram(small), gram(adapters))


@given(modules())
def test_spectra_gaps_and_overlaps_are_those_of_the_dense_updates(adapters):
    found, dense = ModuleGeometry.of(adapters), deltas(adapters)
    for index, (update, values) in enumerate(zip(dense, found.values, strict=True)):
        whole = np.linalg.svd(update, compute_uv=False)
        close(values, whole[: len(values)], scale=whole[0])
        assert np.all(whole[len(values) :] <= SPACES * whole[0])
        gap = (whole[0] - (whole[1] if len(whole) > 1 else 0)) / whole[0] if whole[0] else math.nan
        close(found.gaps[index], gap, SPACES, scale=1)
    for side, sides in (("write", dense), ("read", [update.T for update in dense])):
        bases = [orth(update, rcond=SPACES) for update in sides]
        for i, j in np.ndindex(len(dense), len(dense)):
            empty = not (bases[i].shape[1] and bases[j].shape[1])
            wanted = math.nan if empty else np.mean(np.cos(subspace_angles(bases[i], bases[j])) ** 2)
            close(getattr(found, side)[i, j], wanted, SPACES, scale=1)


@pytest.mark.parametrize("rule", static_rules(), ids=lambda rule: rule.name)
@given(adapters=modules(), seed=st.integers(0, 9))
def test_what_rules_keep_is_the_projection_of_the_dense_merge(rule, adapters, seed):
    found = kept(rule, adapters, reduced(adapters), gram(adapters), seed)
    merged = merge(padded(adapters), Merge(rule.name), MergeContext(rng_seed=seed)).delta()
    dense = deltas(adapters)
    norms = [np.linalg.norm(update) for update in [merged, *dense]]
    close(found.products, [np.sum(merged * update) for update in dense], scale=max(norms) ** 2)
    close(found.energy, np.sum(merged**2), scale=max(norms) ** 2)
    assert not found.errors.any()


@pytest.mark.parametrize(
    "rule", [rule for rule in static_rules() if rule.factor_wise], ids=lambda rule: rule.name
)
def test_gauges_are_other_factors_of_the_same_updates(rule):
    adapters = [drawn(seed) for seed in range(3)]
    merged = merge(adapters, Merge(rule.name)).delta()
    balanced, turned = [], []
    for lora in adapters:
        left, values, right_t = np.linalg.svd(lora.delta(), full_matrices=False)
        root = np.sqrt(values[: lora.rank])
        balanced.append(LoRA(left[:, : lora.rank] * root, right_t[: lora.rank].T * root))
    flipped = [LoRA(-a.write, -a.read) if i % 2 else a for i, a in enumerate(adapters)]
    moved = kept(rule, adapters, reduced(adapters), gram(adapters), 0).moved
    assert len(moved) == len(GAUGES) and min(moved) > 0
    close(moved[1], np.sum((merge(flipped, Merge(rule.name)).delta() - merged) ** 2))
    # the signs of singular vectors are free: each column's, in both factors at once, as the merge has them
    best = math.inf
    for signs in np.ndindex(*(2,) * (3 * len(adapters))):
        turned = [
            LoRA(lora.write * sign, lora.read * sign)
            for lora, sign in zip(balanced, (1 - 2 * np.array(signs)).reshape(len(adapters), -1), strict=True)
        ]
        change = np.sum((merge(turned, Merge(rule.name)).delta() - merged) ** 2)
        best = min(best, abs(change - moved[0]) / moved[0])
    assert best <= DOUBLE
    assert not kept(rule, adapters, reduced(adapters), gram(adapters), 0, gauges=False).moved


def test_rules_on_products_move_with_no_gauge():
    adapters = [drawn(seed) for seed in range(2)]
    for rule in static_rules():
        moved = kept(rule, adapters, reduced(adapters), gram(adapters), 0).moved
        assert bool(moved) == (not RULES[rule.name].gauge_invariant)


def test_samples_of_entries_tell_what_all_entries_do():
    """Statistical: five standard errors, of the sample's own spread."""
    out, inside = 400, 300
    assert out * inside > ENTRIES
    scale = np.linspace(0.2, 3, out)[:, None]  # rows differ, so that entries do
    adapters = [LoRA(scale * lora.write, lora.read) for lora in (drawn(s, out, inside) for s in range(3))]
    for rule in static_rules():
        if not rule.dense or rule.seeded:  # masks drawn anew are another merge
            continue
        found = kept(rule, adapters, reduced(adapters), gram(adapters), 0)
        merged = merge(adapters, Merge(rule.name)).delta()
        exact = np.array([np.sum(merged * update) for update in deltas(adapters)])
        assert (found.errors > 0).all()
        assert (np.abs(found.products - exact) <= 5 * found.errors).all()
        assert (found.errors <= 0.1 * np.abs(exact)).all(), "an estimate that tells nothing"


# ---------------------------------------------------------------- chance


def test_cosines_and_overlaps_of_random_turns_have_the_derived_mean():
    """Statistical: five standard errors over independent draws."""
    rng = np.random.default_rng(0)
    out, inside, draws = 6, 5, 4000
    first, second = drawn(1, out, inside, 2), drawn(2, out, inside, 3)
    left, right = (np.linalg.qr(rng.normal(size=(draws, n, n)))[0] for n in (out, inside))
    products = np.einsum("dij,jk,dlk,il->d", left, first.delta(), right, second.delta())
    squares = (products / np.linalg.norm(first.delta()) / np.linalg.norm(second.delta())) ** 2
    other = np.linalg.qr(second.read)[0]
    reads = [overlaps([turn @ np.linalg.qr(first.read)[0], other])[0, 1] for turn in right]
    for values, wanted in (
        (squares, ModuleGeometry.of([first, second]).cosine_variance),
        (reads, 3 / inside),
    ):
        assert abs(np.mean(values) - wanted) <= 5 * np.std(values) / math.sqrt(draws)


# ---------------------------------------------------------------- a library


NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")


def test_a_library_is_one_block_diagonal_matrix():
    first, second = ({name: drawn((i, j), 4 + i, 3 + i, 2) for i, name in enumerate(NAMES)} for j in (0, 1))
    del second[NAMES[2]]  # absent is zero
    found = measure(library(first, second))
    zero = {NAMES[2]: LoRA(np.zeros((6, 1)), np.zeros((5, 1)))}
    a, b = (block_diag(*deltas([{**zero, **given}[name] for name in NAMES])) for given in (first, second))
    close(found.norms, [np.linalg.norm(a), np.linalg.norm(b)])
    close(found.cosines[0, 1], np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), scale=1)
    close(found.energy, np.sum((a + b) ** 2) / (np.sum(a**2) + np.sum(b**2)))
    assert found.present.tolist() == [3, 2] and found.ranks == (2, 2)
    energies = [np.sum(first[name].delta() ** 2) for name in NAMES]
    close(found.blocks[0][0], energies[0] / sum(energies))
    close(found.blocks[1][0], sum(energies[1:]) / sum(energies))
    close(found.kinds["down_proj"], [energies[2] / sum(energies), 0.0])
    linear = found.rules["linear"]
    merged = [merge(padded(p), Merge("linear")).delta() for p in _pairs(first, second)]
    whole = block_diag(*merged)
    close(linear.keeps, [np.sum(whole * a) / np.sum(a**2), np.sum(whole * b) / np.sum(b**2)])
    design = np.stack([a.ravel(), b.ravel()], axis=1)
    weights = np.linalg.lstsq(design, whole.ravel(), rcond=None)[0]
    close(linear.weights, weights)
    close(linear.own, np.sum((design @ weights) ** 2) / np.sum(whole**2), scale=1)


def _pairs(first, second):
    zero = LoRA(np.zeros((6, 2)), np.zeros((5, 2)))
    return [[first[name], second.get(name, zero)] for name in NAMES]


def test_the_chance_of_a_cosine_over_modules_is_that_of_independent_turns():
    """Statistical: five standard errors."""
    rng, draws = np.random.default_rng(0), 3000
    first, second = ({name: drawn((i, j), 4, 3, 2) for i, name in enumerate(NAMES)} for j in (0, 1))
    found: LibraryGeometry = measure(library(first, second))
    products = np.zeros(draws)
    for name in NAMES:
        left, right = (np.linalg.qr(rng.normal(size=(draws, n, n)))[0] for n in (4, 3))
        given = first[name].delta(), second[name].delta()
        products += np.einsum("dij,jk,dlk,il->d", left, given[0], right, given[1])
    squares = (products / found.norms.prod()) ** 2
    wanted = found.cosine_errors[0, 1] ** 2
    assert abs(squares.mean() - wanted) <= 5 * squares.std() / math.sqrt(draws)


def test_what_stands_out_is_named():
    one, two, shared = drawn(0), drawn(1), drawn(2)
    given = {
        "one": one,
        "again": LoRA(3 * one.write, one.read),
        "against": LoRA(-one.write, one.read),
        "two": two,
        "tiny": LoRA(1e-4 * two.write[:, ::-1], two.read),
        "nothing": LoRA(0 * two.write, two.read),
        "same A": LoRA(shared.write, two.read),
    }
    found = findings(measure(library(*({NAMES[0]: lora} for lora in given.values()), names=list(given))))
    named = {(finding.kind, finding.adapters): finding for finding in found}
    assert ("same", ("one", "again")) in named and "3 times" in named["same", ("one", "again")].text
    assert {("opposite", ("one", "against")), ("opposite", ("again", "against"))} <= named.keys()
    assert {("zero", ("nothing",)), ("small", ("tiny",)), ("space", ("two", "same A"))} <= named.keys()
    serious = [finding.against for finding in found]
    assert serious == sorted(serious, reverse=True)
    assert not any("nothing" in pair for kind, pair in named if len(pair) > 1)


def test_adapters_that_have_little_in_common_are_left_alone():
    far = [{NAMES[0]: drawn(seed, 300, 200, 3)} for seed in (0, 1)]
    assert not [finding for finding in findings(measure(library(*far))) if finding.against]


def test_adapters_that_share_much_or_no_module_are_named():
    one, other = drawn(0, 300, 200), drawn(1, 300, 200)
    both = LoRA(np.hstack([one.write, other.write]), np.hstack([one.read, other.read]))
    half = {"one": one, "alike": both}
    found = findings(measure(library(*({NAMES[0]: lora} for lora in half.values()), names=list(half))))
    assert [(f.kind, f.adapters) for f in found] == [("alike", ("one", "alike"))]
    apart = library({NAMES[0]: one}, {NAMES[0]: other}, {NAMES[1]: other}, names=["one", "two", "elsewhere"])
    found = findings(measure(apart), notes=["a note"])
    assert [(f.kind, f.adapters) for f in found] == [("alone", ("elsewhere",)), ("note", ())]


def test_adapters_of_another_base_are_left_out_and_named():
    small, large = {NAMES[0]: drawn(0)}, {NAMES[0]: drawn(1, 13, 9)}
    adapters = library(large, small, small, large, small, names=list("abcde"))
    kept, apart = of_one_base(adapters)
    assert [one.name for one in kept] == ["b", "c", "e"] and apart.keys() == {"a", "d"}
    assert "(12, 9)" in apart["a"] and "(13, 9)" in apart["a"] and "'b'" in apart["a"]
    named = findings(measure(kept), apart)
    assert [f.adapters for f in named if f.kind == "base"] == [("a",), ("d",)] and named[0].against
    digests = [replace(one, details={"base_digest": digest}) for one, digest in zip(kept, "xyx", strict=True)]
    kept, apart = of_one_base(digests)
    assert [one.name for one in kept] == ["b", "e"] and "different bases" in apart["c"]
    base = BaseShapes("base", "x", {NAMES[0]: (13, 9)}, {}, {})
    kept, apart = of_one_base(adapters, base)
    assert [one.name for one in kept] == ["a", "d"] and "other shapes" in apart["b"]
    with pytest.raises(AdapterError, match=r"a: .*; b: "):
        of_one_base(adapters, replace(base, linear={NAMES[0]: (14, 9)}))
    assert of_one_base(adapters[:1]) == ((adapters[0],), {})
    with pytest.raises(AdapterError, match="two adapters are called 'b'; give them different names"):
        of_one_base([adapters[1], replace(adapters[1])])  # one folder given twice


def test_equal_singular_values_leave_the_prototype_open():
    tied = LoRA(np.eye(6, 2), np.eye(5, 2))
    found = findings(measure(library({NAMES[0]: tied}, {NAMES[0]: drawn(0, 6, 5)})))
    assert [finding.adapters for finding in found if finding.kind == "tie"] == [("adapter 0",)]


def test_few_and_many_adapters_are_refused():
    one = {NAMES[0]: drawn(0)}
    for count in (1, MOST + 1):
        with pytest.raises(AdapterError, match=f"{count} adapters .* give 2 to {MOST}"):
            measure(library(*[one] * count))
    assert len(measure(library(*({NAMES[0]: drawn(s, 5, 4, 1)} for s in range(MOST)))).names) == MOST


def test_updates_whose_squares_overflow_are_refused():
    huge = [{NAMES[0]: LoRA(1e38 * drawn(s).write, 1e38 * drawn(s).read)} for s in range(2)]
    with pytest.raises(AdapterError, match=r"norm above 1e\+70"):
        measure(library(*huge))


@pytest.mark.parametrize(
    "name, block", [("model.layers.11.mlp.up_proj", 11), ("lm_head", None), ("h.0.attn.c_attn", 0)]
)
def test_the_block_is_the_first_number_of_a_path(name, block):
    assert block_of(name) == block


# ---------------------------------------------------------------- the command


HOSTILE = "[red]a[/]\x1b[2J<script>alert(1)</script>"


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm_experiments", "diagnose", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def folders(tmp_path):
    paths = {}
    for adapter in library(
        {NAMES[0]: drawn(0), NAMES[1]: drawn(1)},
        {NAMES[0]: drawn(2), NAMES[1]: drawn(3)},
        {NAMES[0]: drawn(0), NAMES[1]: drawn(1)},
        names=[HOSTILE, "two", "copy"],
    ):
        key = "hostile" if adapter.name == HOSTILE else adapter.name
        paths[key] = tmp_path / key
        peft_files.write(paths[key], adapter.name, adapter.modules, "base")
    return paths


def test_the_command_shows_tables_and_what_stands_out(run, folders):
    status, out, err = run(folders["hostile"], folders["copy"])
    assert status == 1 and err == ""
    assert "the same update" in out and "+1.0000" in out
    for rule in static_rules():
        assert rule.name in out
    assert "\x1b" not in out and "[red]a[/]" in out and "\\x1b[2J" in out
    status, out, _ = run(folders["hostile"], folders["two"])
    assert status == 0 and "Nothing stands out" in out


def test_the_command_writes_json(run, folders, tmp_path):
    status, out, _ = run(folders["two"], folders["copy"], "--json", "-")
    told = json.loads(out)
    assert status == 0 and told["adapters"][0]["name"] == "two"
    file = tmp_path / "told.json"
    run(folders["two"], folders["copy"], "--json", file)
    assert json.loads(file.read_text()) == told
    close(told["cosine"], measure([peft_files.read(folders[name]) for name in ("two", "copy")]).cosines)
    assert told["modules"].keys() == set(NAMES[:2]) and told["rules"].keys() == {
        r.name for r in static_rules()
    }


def test_the_command_refuses_in_one_line(run, folders, tmp_path):
    for arguments, said in (
        ((folders["two"],), "1 adapters cannot"),
        ((folders["two"], tmp_path / "nothing"), "is missing"),
        ((folders["two"], folders["copy"], "--json", tmp_path / "no" / "file"), "cannot be written"),
    ):
        status, out, err = run(*arguments)
        assert status == 2 and said in err and err.count("\n") == 1 and out == ""


def test_samples_are_as_large_as_they_say():
    assert rules.ENTRIES % rules.GROUPS == 0
