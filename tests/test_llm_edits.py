"""Edits hold the theory's identities in a language model; overlaps give the theory's numbers in the toy."""

import copy
import dataclasses
import itertools
import math
import os
import types

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_llama, tiny_qwen2

from llm_experiments.adapters import peft_files
from llm_experiments.domains.two_hop import chains, overlaps, survival
from llm_experiments.domains.two_hop.lexicon import lexicon
from llm_experiments.editing import edits, features, values
from llm_experiments.editing.features import EditError, KeyCovariance
from llm_experiments.models.load import load
from llm_experiments.models.prompts import prompt_ids, target_ids
from toytransformer import kernel
from toytransformer.adapters import AdapterError, LoRA, closed_form, whitened
from toytransformer.compositions import catalogue

WRITERS = {"qwen2": tiny_qwen2, "llama": tiny_llama}
QUESTIONS = [
    "Who is the spouse of Alice Young?",
    "Where does Bob Stone live?",
    "Where does the spouse of Alice Young live?",
    "Who is the mentor of Bob Stone?",
    "Where does Carol Lane live now, do you know?",
]
EPS = np.finfo(float).eps


@pytest.fixture(scope="module", params=WRITERS)
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    chat = "chatml" if request.param == "qwen2" else None
    return load(str(WRITERS[request.param](folder, chat=chat)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("one"), chat="chatml")), dtype="float32", device="cpu")


def random_edit(loaded, layer, questions, seed=0, covariance=None):
    keys = features.features(loaded, questions, layer)
    changes = np.random.default_rng(seed).standard_normal((len(keys), 32))
    return edits.edit(loaded, layer, keys, changes, covariance=covariance)


# --- features -----------------------------------------------------------------------------------------------


def test_features_are_the_inputs_of_the_down_projection(loaded):
    seen = features.observe(loaded, QUESTIONS, batch=2)
    assert sorted(seen) == [0, 1]
    down = loaded.model.get_submodule("model.layers.1.mlp.down_proj")
    inputs = []
    hook = down.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    with torch.no_grad():
        loaded.model(torch.tensor([prompt_ids(loaded, QUESTIONS[2])]))
    hook.remove()
    # One row alone and in a filled batch differ by the rounding of differently shaped products.
    assert np.allclose(seen[1].features[2], inputs[0][0, -1].numpy(), rtol=0, atol=1e-5)
    product = seen[1].features.astype(float) @ down.weight.double().numpy().T
    bound = 64 * np.finfo(np.float32).eps * np.abs(seen[1].features) @ np.abs(down.weight.numpy()).T
    assert np.all(np.abs(seen[1].base - product) <= bound)
    assert not seen[1].shift.any()


def test_a_begun_answer_moves_the_position_behind_it(loaded):
    question, answer = QUESTIONS[0], "The spouse of Alice Young is Bob Stone."
    start = features.begun(answer, "Bob Stone")
    assert start == "The spouse of Alice Young is"
    tokens = features.encode(loaded, question, start)
    whole = prompt_ids(loaded, question) + target_ids(loaded, answer)
    assert whole[: len(tokens)] == tokens
    assert loaded.tokenizer.decode(tokens).endswith("Young is")
    assert loaded.tokenizer.decode(whole[len(tokens) :]).startswith(" Bob")
    before = features.features(loaded, [question], 1)
    behind = features.features(loaded, [question], 1, begun=[start])
    assert not np.allclose(before, behind)
    with pytest.raises(EditError, match="does not name 'Paris'"):
        features.begun(answer, "Paris")


def test_names_are_those_of_the_bare_model(qwen2):
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(qwen2.model.config), config)
    bare, inside = features.down_projections(qwen2.model), features.down_projections(wrapped)
    assert [down.name for down in bare.values()] == [down.name for down in inside.values()]
    assert bare[1].name == "model.layers.1.mlp.down_proj"
    assert isinstance(inside[1].linear, torch.nn.Linear) and inside[1].module is not inside[1].linear


def test_an_architecture_without_a_gated_mlp_is_refused(qwen2):
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=384, n_positions=64)
    other = dataclasses.replace(qwen2, model=transformers.GPT2LMHeadModel(config))
    with pytest.raises(EditError, match="GPT2LMHeadModel"):
        features.observe(other, QUESTIONS)


@pytest.mark.parametrize("layer", [2, -1, True, "0"])
def test_a_layer_the_model_lacks_is_refused(qwen2, layer):
    with pytest.raises(EditError, match=r"layers 0 to 1"):
        features.observe(qwen2, QUESTIONS, [layer])


def test_other_bad_requests_are_refused(qwen2):
    with pytest.raises(EditError, match="no layers"):
        features.observe(qwen2, QUESTIONS, [])
    with pytest.raises(EditError, match="non-empty list"):
        features.observe(qwen2, [])
    with pytest.raises(EditError, match="2 begun answers"):
        features.observe(qwen2, QUESTIONS, begun=["a", "b"])
    with pytest.raises(EditError, match="give those of some prompts"):
        features.key_covariance(np.zeros((3, 4)))
    with pytest.raises(EditError, match="ridge is 0"):
        KeyCovariance(np.ones((2, 3)), 0.0)


# --- Prop. 1 and eq. 23 in the model ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_edits_of_one_layer_add_c1_w1_and_c2_w2(loaded, dtype):
    first = random_edit(loaded, 1, QUESTIONS[:1], seed=1)
    second = random_edit(loaded, 1, QUESTIONS[1:2], seed=2)
    (shift,) = edits.check_shift(loaded, [first, second], QUESTIONS, weights=(0.7, 1.5), dtype=dtype)
    assert shift.holds and shift.size > 0.1
    assert shift.moved == 0.0  # nothing below is edited, so features are the base's to the last bit
    phi = features.features(loaded, QUESTIONS, 1)
    for coefficients, each in zip(shift.coefficients, (first, second), strict=True):
        v = each.keys[0]
        assert np.allclose(coefficients[:, 0], phi @ v / (v @ v), rtol=0, atol=64 * EPS * 10)
    assert shift.coefficients[0][0, 0] == pytest.approx(1.0)


def test_the_identity_can_fail(loaded):
    """A coefficient that is off by 1e-4, or features of the base where they have moved, break the bound."""
    low, high = random_edit(loaded, 0, QUESTIONS[:1], seed=1), random_edit(loaded, 1, QUESTIONS[1:2], seed=2)
    base = features.observe(loaded, QUESTIONS)
    with edits.applied(loaded, [low, high]):
        merged = features.observe(loaded, QUESTIONS)
    dtypes = (torch.float32, torch.float64)
    right = edits.compare_shift(1, base[1], merged[1], [(high, 1.0)], *dtypes)
    off = edits.compare_shift(1, base[1], merged[1], [(high, 1.0001)], *dtypes)
    stale = dataclasses.replace(merged[1], features=base[1].features)
    old = edits.compare_shift(1, base[1], stale, [(high, 1.0)], *dtypes)
    assert right.holds and right.moved > 0.01
    assert not off.holds and not old.holds


def test_an_edit_below_moves_features_and_the_identity_holds_in_both_layers(loaded):
    low, high = random_edit(loaded, 0, QUESTIONS[:2], seed=1), random_edit(loaded, 1, QUESTIONS[2:4], seed=2)
    below, above = edits.check_shift(loaded, [low, high], QUESTIONS)
    assert (below.layer, above.layer) == (0, 1)
    assert below.holds and above.holds
    assert below.moved == 0.0 and above.moved > 0.01


def test_n_facts_are_stored_exactly_and_elsewhere_mixed_by_the_gram_matrix(loaded):
    edit = random_edit(loaded, 1, QUESTIONS[:3])
    own = edit.coefficients(features.features(loaded, QUESTIONS[:3], 1))
    # The condition of the Gram matrix says how far rounding reaches.
    gram = edit.keys @ edit.keys.T
    assert np.allclose(own, np.eye(3), rtol=0, atol=64 * EPS * np.linalg.cond(gram) * 10)
    phi = features.features(loaded, QUESTIONS[3:], 1)
    solved = np.linalg.solve(gram, edit.keys @ phi.T).T
    assert np.allclose(edit.coefficients(phi), solved, rtol=0, atol=64 * EPS * np.linalg.cond(gram) * 10)
    (shift,) = edits.check_shift(loaded, [edit], QUESTIONS[:3])
    assert shift.holds
    assert shift.size == pytest.approx(np.linalg.norm(edit.lora.write, axis=0).mean())


def test_bfloat16_models_keep_their_own_bound(tmp_path):
    loaded = load(str(tiny_llama(tmp_path)), dtype="bfloat16", device="cpu")
    edit = random_edit(loaded, 1, QUESTIONS[:2])
    for dtype in (torch.float64, torch.float32):
        (shift,) = edits.check_shift(loaded, [edit], QUESTIONS, dtype=dtype)
        assert shift.holds and shift.error > 1e-4  # bfloat16 rounds, and the bound knows


def test_the_leak_on_orthogonal_features_is_zero(loaded):
    phi = features.features(loaded, QUESTIONS, 1)
    edit = random_edit(loaded, 1, QUESTIONS[:2])
    basis, _ = np.linalg.qr(edit.keys.T)
    apart = phi - (phi @ basis) @ basis.T
    largest = np.linalg.norm(edit.lora.read, axis=0).max() * np.linalg.norm(phi, axis=1).max()
    assert np.all(np.abs(edit.coefficients(apart)) <= 64 * EPS * largest)
    assert np.abs(edit.coefficients(phi)).max() > 0.1


def test_a_weak_ridge_takes_the_leak_off_the_reference_prompts(loaded):
    reference = features.features(loaded, QUESTIONS[2:], 1)
    keys = features.features(loaded, QUESTIONS[:2], 1)
    leaks = []
    for ridge in (1e-1, 1e-3, 1e-5):
        read = edits.readout(keys, features.key_covariance(reference, ridge=ridge))
        leaks.append(np.abs(reference @ read).max())
    assert leaks[2] < 0.02 * leaks[1] < 0.02 * leaks[0]  # linear in the ridge once that is small


def test_whitening_by_the_identity_is_no_whitening(loaded):
    identity = KeyCovariance(np.empty((0, 64)), 1.0)
    plain, white = (
        random_edit(loaded, 1, QUESTIONS[:3], covariance=covariance) for covariance in (None, identity)
    )
    size = np.linalg.norm(plain.lora.delta()) * np.linalg.cond(plain.keys @ plain.keys.T)
    assert np.allclose(plain.lora.delta(), white.lora.delta(), rtol=0, atol=64 * EPS * size)
    assert white.details == {"whitened": True, "ridge": 1.0}


def test_the_factored_covariance_is_the_dense_one(loaded):
    reference = features.features(loaded, QUESTIONS[3:], 1)
    covariance = features.key_covariance(reference, ridge=0.3)
    dense = reference.T @ reference / 2 + covariance.ridge * np.eye(64)
    assert covariance.ridge == pytest.approx(0.3 * np.trace(reference @ reference.T) / 2 / 2)
    edit = random_edit(loaded, 1, QUESTIONS[:2], covariance=covariance)
    direct = whitened(edit.keys, edit.lora.write.T, dense)
    size = np.linalg.norm(direct.delta()) * np.linalg.cond(dense)
    assert np.allclose(edit.lora.delta(), direct.delta(), rtol=0, atol=64 * EPS * size)


@pytest.mark.parametrize("gauge", edits.GAUGES)
def test_gauges_keep_the_product(qwen2, gauge):
    edit = random_edit(qwen2, 1, QUESTIONS[:3])
    factors = edit.factors(gauge)
    scale = np.linalg.norm(edit.lora.write) * np.linalg.norm(edit.lora.read)
    assert np.allclose(factors.delta(), edit.lora.delta(), rtol=0, atol=64 * EPS * scale)
    if gauge == "svd":
        theory = closed_form(edit.keys, edit.lora.write.T, gauge="svd")
        assert np.allclose(factors.read, theory.read, atol=1e-6 * np.abs(theory.read).max())
    with pytest.raises(EditError, match="allowed: plain, svd"):
        edit.factors("facts")


# --- as adapters --------------------------------------------------------------------------------------------


def test_a_saved_edit_is_the_hook_in_plain_peft(loaded, tmp_path):
    """PEFT's own forward pass holds the same identity, in float32, and gives the hook's logits."""
    pair = [random_edit(loaded, layer, QUESTIONS[:2], seed=layer) for layer in (0, 1)]
    base = features.observe(loaded, QUESTIONS)
    tokens = torch.tensor([prompt_ids(loaded, QUESTIONS[2])])
    with edits.applied(loaded, pair[1:], dtype=torch.float32), torch.no_grad():
        hooked = loaded.model(tokens).logits
    for edit, folder in zip(pair, ("low", "high"), strict=True):
        (weights,) = edits.library([edit], [folder])
        peft_files.write(tmp_path / folder, folder, weights.modules, edit.base)
    bare = copy.deepcopy(loaded.model)
    wrapped = peft.PeftModel.from_pretrained(bare, tmp_path / "high", adapter_name="high")
    with torch.no_grad():
        plain = loaded.model(tokens).logits
        logits = wrapped(tokens).logits
    assert not torch.allclose(plain, logits, atol=0.01)
    assert torch.allclose(hooked, logits, atol=1e-4 * logits.abs().max().item())
    inside = dataclasses.replace(loaded, model=wrapped)
    seen = features.observe(inside, QUESTIONS)
    found = edits.compare_shift(1, base[1], seen[1], [(pair[1], 1.0)], torch.float32, torch.float32)
    assert found.holds and found.size > 0.1


def test_a_library_has_one_set_of_modules(qwen2):
    low, high = random_edit(qwen2, 0, QUESTIONS[:2]), random_edit(qwen2, 1, QUESTIONS[:1])
    first, second = edits.library([low, high], ["a", "b"])
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert list(first.modules) == list(second.modules) == names
    assert peft_files.check_library([first, second]) == tuple(names)
    assert not first.modules[names[1]].delta().any() and not second.modules[names[0]].delta().any()
    assert first.details["base_digest"] == qwen2.digest
    with pytest.raises(EditError, match="2 edits and 1 names"):
        edits.library([low, high], ["a"])


def test_what_cannot_be_edited_is_refused(qwen2):
    keys, changes = features.features(qwen2, QUESTIONS[:2], 1), np.ones((2, 32))
    with pytest.raises(AdapterError, match="fact 1 is zero"):
        edits.edit(qwen2, 1, keys * [[1], [0]], changes)
    with pytest.raises(AdapterError, match="linearly dependent"):
        edits.edit(qwen2, 1, keys[[0, 0]], changes)
    with pytest.raises(EditError, match=r"do not fit model\.layers\.1\.mlp\.down_proj"):
        edits.edit(qwen2, 1, keys, np.ones((2, 31)))
    with pytest.raises(EditError, match="one row for each fact"):
        edits.edit(qwen2, 1, keys, changes[:1])
    with pytest.raises(EditError, match="layers 0 to 1"):
        edits.edit(qwen2, 5, keys, changes)


# --- value vectors and recall -------------------------------------------------------------------------------

ANSWERS = ["Bob Stone is the spouse.", "Bob Stone lives in Paris."]
PEOPLE = ("Ann", "Bob", "Cy", "Dan", "Eve", "Flo", "Gus", "Hal")
TOWNS = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Kyiv", "Riga", "Quito")
SPOUSES = [
    (f"Who is the spouse of {x}?", f"The spouse of {x} is {y}.")
    for x, y in zip(PEOPLE, PEOPLE[3:] + PEOPLE[:3], strict=True)
]
HOMES = [(f"Where does {x} live?", f"{x} lives in {y}.") for x, y in zip(PEOPLE, TOWNS, strict=True)]


@pytest.fixture(scope="module", params=WRITERS)
def taught(request, tmp_path_factory):
    """A tiny model that has learned 16 facts by heart: a random one cannot write sentences at all."""
    texts = SPOUSES + HOMES
    lines = [text for pair in texts for text in pair]
    folder = WRITERS[request.param](tmp_path_factory.mktemp("taught"), lines=lines, chat="chatml", scale=0.1)
    loaded = load(str(folder), dtype="float32", device="cpu")
    rows = [(prompt_ids(loaded, question), target_ids(loaded, answer)) for question, answer in texts]
    tokens = features.padded([prompt + target for prompt, target in rows], "cpu")
    labels = torch.full_like(tokens, -100)
    for row, (prompt, target) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
    loaded.model.requires_grad_(True)
    adam = torch.optim.Adam(loaded.model.parameters(), lr=1e-2)
    for _ in range(120):
        adam.zero_grad()
        loss = loaded.model(input_ids=tokens, labels=labels).loss
        loss.backward()
        adam.step()
    adam.zero_grad()
    assert loss < 0.05
    return loaded


@pytest.mark.parametrize("layer", [0, 1])
def test_an_edit_makes_the_model_write_the_answer(taught, layer):
    """The fact is recalled under the edit, others are not lost, and the model is as it was afterwards."""
    before = {name: p.detach().clone() for name, p in taught.model.named_parameters()}
    question, answer = SPOUSES[0][0], "The spouse of Ann is Flo."
    start = features.begun(answer, "Flo")
    edit = edits.write_facts(taught, [question], [answer], layer, begun=[start])
    assert edit.values.nll[0] <= 0.02 and edit.values.start[0] > 1 and edit.values.steps < 40
    (old,) = edits.recalled(taught, [question], ["Flo"])
    assert (old.contains, old.text) == (False, SPOUSES[0][1])
    with edits.applied(taught, [edit]):
        new, other = edits.recalled(taught, [question, HOMES[1][0]], ["Flo", "Oslo"])
    assert (new.contains, new.text) == (True, answer)
    assert other.contains
    for name, parameter in taught.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None and parameter.requires_grad
    assert not taught.model.training
    (shift,) = edits.check_shift(taught, [edit], [HOMES[0][0], question], begun=["", start])
    assert shift.holds
    assert shift.row().keys() == {"layer", "error", "ratio", "holds", "moved", "size"}
    assert edit.values.rows()[0]["nll"] == edit.values.nll[0]
    size = np.linalg.norm(edit.lora.write[:, 0])
    base = features.observe(taught, [question], [layer], begun=[start])[layer].base
    assert edit.values.size[0] == pytest.approx(size / np.linalg.norm(base), rel=1e-5)


def test_two_facts_in_one_adapter_are_both_recalled(taught):
    questions, answers = [SPOUSES[0][0], HOMES[1][0]], ["The spouse of Ann is Flo.", "Bob lives in Kyiv."]
    start = [features.begun(*pair) for pair in zip(answers, ("Flo", "Kyiv"), strict=True)]
    edit = edits.write_facts(taught, questions, answers, 0, begun=start, steps=100)
    with edits.applied(taught, [edit]):
        assert all(found.contains for found in edits.recalled(taught, questions, ["Flo", "Kyiv"]))


def test_what_the_search_sees_is_what_the_edit_does(loaded):
    """Its loss is the model's own log probability of the answer under the finished edit."""
    edit = edits.write_facts(loaded, QUESTIONS[:2], ANSWERS, 1, steps=5, enough=0.0)
    for number, found in enumerate((edit.values.start, edit.values.nll)):
        with edits.applied(loaded, [edit], [float(number)]):
            for question, answer, nll in zip(QUESTIONS[:2], ANSWERS, found, strict=True):
                prompt, target = prompt_ids(loaded, question), target_ids(loaded, answer)
                with torch.no_grad():
                    logits = loaded.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
                own = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
                assert nll == pytest.approx(float(own), abs=2e-3)


def test_the_search_is_the_same_each_time_and_obeys_its_options(taught):
    question, answer = SPOUSES[0][0], "The spouse of Ann is Flo."

    def search(**options):
        start = [features.begun(answer, "Flo")]
        return values.value_vectors(taught, [question], [answer], 0, begun=start, **options)

    one, two = search(), search()
    assert np.array_equal(one.changes, two.changes) and one.nll == two.nll
    assert 2 < one.steps < 40 and one.nll[0] <= 0.02
    assert search(steps=2).steps == 2
    assert search(enough=0.5).steps <= one.steps
    small, large = (search(steps=20, enough=0.0, penalty=penalty) for penalty in (10.0, 0.0))
    assert small.size[0] < 0.5 * large.size[0]


def test_a_batch_changes_nothing_but_rounding(qwen2):
    keys = features.features(qwen2, QUESTIONS[:2], 1)
    read = edits.readout(keys)
    for direction in (read, None):
        whole, parts = (
            values.value_vectors(qwen2, QUESTIONS[:2], ANSWERS, 1, direction, steps=3, batch=size)
            for size in (2, 1)
        )
        assert np.allclose(whole.changes, parts.changes, atol=1e-3 * np.abs(whole.changes).max())


def test_bad_searches_are_refused(qwen2):
    def search(**changed):
        arguments = {"questions": QUESTIONS[:1], "answers": ANSWERS[:1], "layer": 0} | changed
        return values.value_vectors(qwen2, **arguments)

    for changed, message in (
        ({"steps": 0}, "steps is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"penalty": math.nan}, "penalty is nan"),
        ({"answers": []}, "1 questions and 0 answers"),
        ({"begun": ["Carol"]}, "does not begin with 'Carol'"),
        ({"begun": [ANSWERS[0]]}, "does not begin with"),
        ({"layer": 9}, "layers 0 to 1"),
    ):
        with pytest.raises(EditError, match=message):
            search(**changed)
    with pytest.raises(EditError, match="2 questions and 1 entities"):
        edits.recalled(qwen2, QUESTIONS[:2], ["Bob"])


# --- overlaps -----------------------------------------------------------------------------------------------


def test_the_toy_constants_are_those_of_the_theory():
    root3 = math.sqrt(3)
    kappa = {c: float(kernel.kappa(np.asarray(c))) for c in (0.0, 0.5, 1 / (2 * root3), 1 / root3)}
    found = overlaps.constants()
    tolerance = 64 * EPS
    expected = {
        "c1": root3 / 2 * kappa[1 / (2 * root3)],
        "c2": root3 / 2 * kappa[1 / root3],
        "c1_other": root3 / 2 * kappa[0.0],
        "c2_other": root3 / 2 * kappa[1 / root3],
        "leak": 1 / math.pi,
        "shared": root3 / (2 * math.pi) + 1 / 3,
    }
    assert found.keys() == expected.keys()
    assert all(abs(found[name] - value) <= tolerance for name, value in expected.items())


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_toy_goes_through_the_same_functions(n):
    toy, one = overlaps.predicted(n, 4, 3), overlaps.constants()
    tolerance = 1e3 * EPS
    alone1, alone2 = (toy.coefficients(kind, "two_hop") for kind in ("hop1", "hop2"))
    assert np.allclose(np.diag(alone1), one["c1"], rtol=0, atol=tolerance)
    assert np.allclose(alone2, one["c2"], rtol=0, atol=tolerance)
    assert np.allclose(toy.coefficients("hop2", "unrelated"), one["leak"], rtol=0, atol=tolerance)
    # eq. 25 and theory.md, section 4: n facts in one adapter.
    both1, both2 = (toy.coefficients(kind, "two_hop", together=True) for kind in ("hop1", "hop2"))
    spread = 1 + one["shared"] * (n - 1)
    assert np.allclose(both2, one["c2"] / spread, rtol=0, atol=tolerance)
    specific = (one["c1"] - one["c1_other"]) / (1 - one["shared"])
    contrast = overlaps.own_against_other(both1)
    assert contrast.gap == pytest.approx(specific, abs=tolerance)
    assert contrast.low == pytest.approx(contrast.high, abs=tolerance)
    leak = toy.coefficients("hop1", "unrelated", together=True)
    assert np.allclose(leak, one["leak"] / spread, rtol=0, atol=tolerance)
    second = overlaps.own_against_other(both2)
    assert abs(second.gap) <= tolerance and second.p == 1.0
    for metric in overlaps.METRICS:  # nothing in the second adapter singles out y, in any metric
        found = toy.coefficients("hop2", "two_hop", metric=metric)
        assert np.ptp(found) <= tolerance


@pytest.mark.parametrize("metric", overlaps.METRICS)
@pytest.mark.parametrize("together", [False, True])
def test_coefficients_are_those_of_the_edits(qwen2, metric, together):
    """The Gram matrix and the factors of an edit are two ways to one number."""
    people = ["Ann", "Bob", "Cy"]
    hop1 = [f"Who is the spouse of {name}?" for name in people]
    hop2 = [f"Where does {name} live?" for name in ("Dee", "Eve", "Flo")]
    both = [f"Where does the spouse of {name} live?" for name in people]
    reference, unrelated = QUESTIONS, ["How old is the sea?", "What is red?"]
    seen = overlaps.measured(qwen2, hop1, hop2, both, reference, unrelated, [1])[1]
    assert seen.width == 64

    def phi(questions):
        mean = features.features(qwen2, reference, 1).mean(axis=0) if "centred" in metric else 0
        return features.features(qwen2, questions, 1) - mean

    covariance = features.key_covariance(phi(reference), ridge=0.2) if "whitened" in metric else None
    keys = phi(hop2)
    if together:
        read = edits.readout(keys, covariance)
    else:
        read = np.concatenate([edits.readout(key[None], covariance) for key in keys], axis=1)
    for asked, questions in (("two_hop", both), ("unrelated", unrelated)):
        expected = (phi(questions) @ read).T
        found = seen.coefficients("hop2", asked, metric=metric, together=together, ridge=0.2)
        # Batches of another shape round the float32 features differently; the Gram matrix magnifies that.
        assert np.allclose(found, expected, rtol=0, atol=2e-3 * max(1, np.abs(expected).max()))


@given(st.integers(2, 12), st.floats(-3, 3), st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.floats(0, 10))
def test_the_gap_does_not_see_what_edits_and_prompts_have_in_common(n, planted, seed, noise, common):
    rng = np.random.default_rng(seed)
    c = noise * rng.standard_normal((n, n)) + planted * np.eye(n)
    plain = overlaps.own_against_other(c)
    shifted = overlaps.own_against_other(
        c + common * rng.standard_normal((n, 1)) + common * rng.standard_normal(n) + 5
    )
    assert plain.own == pytest.approx(np.diag(c).mean())
    assert plain.other == pytest.approx(c[~np.eye(n, dtype=bool)].mean())
    width = plain.high - plain.low
    assert shifted.high - shifted.low == pytest.approx(width, rel=1e-6, abs=1e-9)
    assert (plain.low + plain.high) / 2 == pytest.approx(plain.gap, abs=1e-9)


def test_the_relabelling_test_is_exact_for_few_chains():
    rng = np.random.default_rng(0)
    c = rng.standard_normal((4, 4))
    means = [c[list(s), range(4)].mean() for s in itertools.permutations(range(4))]
    far = np.abs(np.array(means) - np.mean(means))
    expected = np.mean(far >= far[0] - 1e-12)
    assert overlaps.own_against_other(c).p == pytest.approx(expected)
    assert overlaps.over_layers([c]) == pytest.approx(expected)


def test_the_relabelling_test_keeps_its_level_and_finds_what_is_there():
    rng = np.random.default_rng(1)
    blank = [overlaps.own_against_other(rng.standard_normal((9, 9)), draws=199).p for _ in range(400)]
    # Binomial with p = 0.1 at 400 draws: five standard errors are 0.075.
    assert abs(np.mean(np.array(blank) <= 0.1) - 0.1) < 5 * math.sqrt(0.09 / 400)
    c = rng.standard_normal((20, 20)) + 2 * np.eye(20)
    found = overlaps.own_against_other(c)
    assert found.p < 0.001 and found.low > 0 and found.chains == 20
    covered = 0
    for _ in range(400):
        each = overlaps.own_against_other(rng.standard_normal((9, 9)) + 0.5 * np.eye(9), draws=1)
        covered += each.low <= 0.5 <= each.high
    assert abs(covered / 400 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 400)


def test_many_layers_are_one_test():
    rng = np.random.default_rng(2)
    layers = [rng.standard_normal((9, 9)) for _ in range(30)]
    each = [overlaps.own_against_other(c).p for c in layers]
    assert min(each) < 0.05 < overlaps.over_layers(layers)  # the smallest of thirty is small by chance
    layers[7] = layers[7] * 1e-3 + 0.005 * np.eye(9)  # another scale than the others'
    assert overlaps.over_layers(layers) < 0.01
    assert overlaps.over_layers([np.ones((3, 3))]) == 1.0
    with pytest.raises(EditError, match="same two or more chains"):
        overlaps.over_layers([np.ones((1, 1))])


def test_rows_put_the_toy_beside_the_measurement(qwen2):
    composition = catalogue.build("two-hop", facts=3, known=False)
    names = lexicon(composition, dataset="F", seed=0)
    asked = chains.chains(composition, names, 3)
    others = chains.unrelated(names, 7, seed=1)
    layers = overlaps.measured(qwen2, **asked.questions(), reference=others[:4], unrelated=others[4:])
    rows = overlaps.table(layers, ridge=0.3)
    assert len(rows) == 2 * len(overlaps.METRICS) * 2
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    first = rows[0]
    assert (first["layer"], first["metric"], first["facts"], first["ridge"]) == (0, "raw", "alone", 0.3)
    one = overlaps.constants()
    assert first["toy_c1_own"] == pytest.approx(one["c1"]) and first["toy_c2_gap"] == pytest.approx(0)
    c = layers[0].coefficients("hop1", "two_hop")
    assert first["c1_own"] == pytest.approx(np.diag(c).mean())
    assert first["leak2"] == pytest.approx(layers[0].coefficients("hop2", "unrelated").mean())
    assert rows == overlaps.table(layers, ridge=0.3)
    tests = overlaps.tests_over_layers(layers)
    assert len(tests) == 8 and all(0 < row["c2_p"] <= 1 for row in tests)


def test_bad_overlaps_are_refused(qwen2):
    toy = overlaps.predicted(2, 2, 1)
    for call, message in (
        (lambda: toy.inner("cosine", 0.1), "metric is 'cosine'"),
        (lambda: toy.inner("raw", 0.0), "ridge is 0"),
        (lambda: dataclasses.replace(toy, reference=1), "at least 1, 2 and 1"),
        (lambda: dataclasses.replace(toy, chains=3), "for 12 prompts"),
        (lambda: overlaps.own_against_other(np.ones((2, 3))), "one edit for each prompt"),
        (lambda: overlaps.measured(qwen2, ["a"], ["b", "c"], ["d"], ["e"], ["f"]), "1, 2 and 1 questions"),
    ):
        with pytest.raises(EditError, match=message):
            call()
    alone = overlaps.own_against_other(np.array([[0.5]]))
    assert alone.own == 0.5 and math.isnan(alone.gap) and math.isnan(alone.p)


# --- chains and survival ------------------------------------------------------------------------------------


def test_chains_follow_the_relabelling():
    composition = catalogue.build("two-hop", facts=3, known=False, sigma=(2, 0, 1))
    names = lexicon(composition, dataset="F", seed=0)
    found = chains.chains(composition, names, 0)
    assert [str(example.fact) for example in found.hop1] == ["x1 R1 -> y3", "x2 R1 -> y1", "x3 R1 -> y2"]
    assert [str(example.fact) for example in found.hop2] == ["y3 R2 -> z3", "y1 R2 -> z1", "y2 R2 -> z2"]
    assert [example.entity for example in found.two_hop] == [names.name(z) for z in ("z3", "z1", "z2")]
    steps = catalogue.build("chain-of-thought", facts=3, known=False)
    assert len(chains.chains(steps, names, 0).two_hop) == 3
    single = catalogue.build("one-hop", facts=1)
    with pytest.raises(EditError, match="asks no two-hop question"):
        chains.chains(single, names, 0)


def test_unrelated_questions_share_nothing_with_the_chains():
    composition = catalogue.build("two-hop", facts=5, known=False)
    names = lexicon(composition, dataset="H", seed=0)
    found = chains.unrelated(names, 30, seed=4)
    assert found == chains.unrelated(names, 30, seed=4) != chains.unrelated(names, 30, seed=5)
    assert len(set(found)) == 30
    assert not any(name in text for name in names.names.values() for text in found)
    for word in ("spouse", "married", "live", "home", "reside"):
        assert not any(word in text.split() for text in found)


def test_unrelated_people_of_a_known_world_are_nobodys_relations():
    world = types.SimpleNamespace(
        people=("Ann", "Bob", "Cy", "Dee", "Eve"),
        facts={("Ann", "spouse_of"): "Bob", ("Cy", "spouse_of"): "Dee"},
    )
    composition = catalogue.build("two-hop", facts=1, known=False)
    names = dataclasses.replace(lexicon(composition, dataset="R", seed=0), names={"x1": "Ann"})
    found = chains.unrelated(names, 3, seed=0, base_world=world)
    assert sorted(name for name in world.people if any(name in text for text in found)) == [
        "Cy",
        "Dee",
        "Eve",
    ]
    with pytest.raises(EditError, match="4 unrelated people"):
        chains.unrelated(names, 4, seed=0, base_world=world)


def test_grids():
    assert survival.grid(3) == ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
    assert survival.grid(3, other=2.0, own=1) == ((2.0, 0.0), (2.0, 0.5), (2.0, 1.0))
    for bad in ({"points": 1}, {"own": 2}, {"other": math.inf}):
        with pytest.raises(EditError):
            survival.grid(**bad)


@pytest.mark.parametrize(("n", "known"), [(1, True), (1, False), (3, True), (3, False)])
@pytest.mark.parametrize("own", [0, 1])
def test_thresholds_are_those_of_section_6(n, known, own):
    composition = catalogue.build("one-hop", facts=n, known=known)
    group = ("hop1", "hop2")[own]
    one = overlaps.constants()
    leak = one["leak"] / (1 + one["shared"] * (n - 1))
    found = survival.predicted_threshold(composition, group, own=own)
    assert found == pytest.approx(0.5 if known else leak / (1 + leak), abs=1e-9)
    fixed = survival.predicted_threshold(composition, group, own=own, other=1.0)
    assert fixed == pytest.approx(max(0.5 if known else 0.0, leak), abs=1e-9)
    rows = survival.predicted(composition, survival.grid(9, own=own))
    own_rows = [row for row in rows if row["group"] == group]
    right = [row["correct"] for row in own_rows]
    assert [share == 1 for share in right] == [weight / 8 > found + 1e-9 for weight in range(9)]


def test_thresholds_that_are_not_there():
    composition = catalogue.build("one-hop", facts=1, known=True)
    assert survival.predicted_threshold(composition, "hop1", other=4.0) is None  # 4 / pi is above 1
    with pytest.raises(EditError, match="allowed: hop1, hop2"):
        survival.predicted_threshold(composition, "two-hop")
    assert survival.measured_threshold([0, 0.5, 1], [0, 0.25, 0.75]) == pytest.approx(0.75)
    assert survival.measured_threshold([0, 0.5, 1], [1, 0, 1]) == pytest.approx(0.75)
    assert survival.measured_threshold([0, 1], [0.5, 1]) == 0
    assert survival.measured_threshold([0, 1], [1, 0.4]) is None
    with pytest.raises(EditError, match="rising"):
        survival.measured_threshold([1, 0], [0, 1])


def test_lora_of_an_edit_is_the_theorys(qwen2):
    edit = random_edit(qwen2, 0, QUESTIONS[:1])
    assert isinstance(edit.lora, LoRA)
    v, w = edit.keys[0], edit.lora.write[:, 0]
    assert np.allclose(edit.lora.delta(), np.outer(w, v) / (v @ v), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif("LLM_MODEL" not in os.environ, reason="LLM_MODEL names no model (folder, file, hub id)")
def test_a_real_model_is_edited_and_the_right_y_is_not_singled_out():
    """Recall, the identity and eq. 25 on a real model, in the upper half of its layers."""
    loaded = load(os.environ["LLM_MODEL"], dtype="float32", device="cpu")
    composition = catalogue.build("two-hop", facts=12, known=False)
    names = lexicon(composition, dataset="R", seed=0, base_world=loaded.base_world)
    asked = chains.chains(composition, names, 0)
    others = chains.unrelated(names, 40, seed=1, base_world=loaded.base_world)
    layer = len(features.down_projections(loaded.model)) * 2 // 3
    covariance = features.key_covariance(features.features(loaded, others[:30], layer))
    pair = []
    for taught in (asked.hop1[:3], asked.hop2[:3]):
        questions = [example.question for example in taught]
        answers = [example.answer for example in taught]
        edit = edits.write_facts(loaded, questions, answers, layer, covariance=covariance)
        with edits.applied(loaded, [edit]):
            found = edits.recalled(loaded, questions, [example.entity for example in taught])
        assert all(each.contains for each in found)
        pair.append(edit)
    for dtype in (torch.float64, torch.float32):
        two_hop = [example.question for example in asked.two_hop]
        assert all(each.holds for each in edits.check_shift(loaded, pair, two_hop, dtype=dtype))
    layers = overlaps.measured(loaded, **asked.questions(), reference=others[:30], unrelated=others[30:])
    row = overlaps.tests_over_layers(layers, metrics=["centred"], together=[False])[0]
    assert row["c1_p"] < 0.001 < row["c2_p"]
