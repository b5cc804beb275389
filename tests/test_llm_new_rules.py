"""A rule that is registered in one place works in a language model as it is: routed, dense, fitted ones."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from tiny_models import tiny_qwen2

from llm_experiments.adapters.peft_files import AdapterWeights, read
from llm_experiments.merges import loss
from llm_experiments.merges.fitted import fit
from llm_experiments.merges.fitters import FITTERS, Fit, Fitting, fitter
from llm_experiments.merges.merging import apply, merge_modules
from llm_experiments.merges.saving import save_static
from llm_experiments.models.load import load as load_model
from llm_experiments.registry import RegistryError
from toytransformer.adapters import LoRA
from toytransformer.compositions.spec import Merge
from toytransformer.merging import RULES, RoutedMerge, RuleError, StaticMerge, merge_rule
from toytransformer.merging.merged import concatenated
from toytransformer.merging.registry import choice, number, positive

RANK = 2
# Rounding of float64 and float32, relative to the largest entry, with room for a few products of width 64.
DOUBLE, SINGLE = 2**16 * np.finfo(np.float64).eps, 2**10 * np.finfo(np.float32).eps
IDS = torch.tensor([[7, 41, 260, 33, 301, 8, 90], [300, 12, 13, 77, 5, 250, 6]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def loaded(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def library(loaded):
    """Two adapters on every second linear layer of the MLPs."""
    rng = np.random.default_rng(0)
    layers = {name: layer for name, layer in loaded.model.named_modules() if name.endswith("up_proj")}

    def factor(size):
        return torch.tensor(rng.normal(size=(size, RANK)), dtype=torch.float32)

    return [
        AdapterWeights(
            f"adapter-{index}",
            {name: LoRA(0.3 * factor(w.out_features), factor(w.in_features)) for name, w in layers.items()},
        )
        for index in range(2)
    ]


@pytest.fixture
def registry():
    """Rules and fitters registered in a test are gone after it."""
    rules, fitters = set(RULES), set(FITTERS)
    yield
    for name in set(RULES) - rules:
        del RULES[name]
    for name in set(FITTERS) - fitters:
        FITTERS.remove(name)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def by_hand(model, library, shift):
    """The logits when each of the library's layers adds shift(input, its factors)."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: (
                output + shift(inputs[0], [a.modules[name] for a in library])
            )
        )
        for name in library[0].modules
    ]
    try:
        return logits(model)
    finally:
        for handle in handles:
            handle.remove()


def close(a, b, tolerance):
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@dataclass(frozen=True)
class ByKey(RoutedMerge):
    """Softmax of key . phi: unlike Arrow with signs and keys of its own."""

    keys: object
    sharpness: float
    names: tuple[str, ...] = field(default=("a", "b"))

    def routing(self, features):
        scores = self.sharpness * features @ self.keys.T
        xp = array_namespace(scores)
        raised = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        return raised / xp.sum(raised, axis=1, keepdims=True)


@pytest.mark.parametrize("factor_wise", [False, True])
def test_a_routed_rule(loaded, library, registry, factor_wise):
    @merge_rule(
        "by-key", gauge_invariant=False, routed=True, weighted=False, options={"sharpness": positive(1.0)}
    )
    def by_key(adapters, weights, context, *, sharpness):
        """shift = sum_i softmax(k_i . phi)_i Delta_i phi, k_i the mean read vector (depends on the gauge)."""
        xp = array_namespace(adapters[0].read)
        keys = xp.stack([xp.mean(lora.read, axis=1) for lora in adapters])
        return ByKey(tuple(adapters), keys, sharpness, factor_wise=factor_wise)

    loaded.model.double()
    library = [
        replace(a, modules={n: LoRA(x.write.double(), x.read.double()) for n, x in a.modules.items()})
        for a in library
    ]

    def shift(x, factors):
        keys = torch.stack([lora.read.mean(dim=1) for lora in factors])
        w = torch.softmax(0.5 * x @ keys.T, dim=-1)
        if factor_wise:
            seen = sum(w[..., i, None] * (x @ lora.read) for i, lora in enumerate(factors))
            return sum(w[..., i, None] * (seen @ lora.write.T) for i, lora in enumerate(factors))
        return sum(w[..., i, None] * (x @ lora.read @ lora.write.T) for i, lora in enumerate(factors))

    wanted = by_hand(loaded.model, library, shift)
    spec = Merge("by-key", options={"sharpness": 0.5})
    with apply(loaded, library, spec, dtype=torch.float64, statistics=True) as applied:
        close(logits(loaded.model), wanted, DOUBLE)
        stats = applied.routing()
    assert stats.keys() == library[0].modules.keys()
    assert all(sum(s.weights) == pytest.approx(1) and s.tokens == IDS.numel() for s in stats.values())
    half = merge_modules(library, spec, dtype=torch.bfloat16)
    assert all(
        m.adapters[0].write.dtype == torch.bfloat16 and m.keys.dtype == torch.float32 for m in half.values()
    )
    with pytest.raises(RuleError, match="no single LoRA"):
        save_static(library, spec, "nowhere")


@dataclass(frozen=True)
class Mirrored:
    """It has only the protocol in common with the package's own: the same shift for phi and -phi."""

    update: LoRA
    spectral_gap: None = None
    details: dict = field(default_factory=dict)

    rank = property(lambda self: self.update.rank)

    def shift(self, features):
        return abs(self.update.shift(features))

    def to(self, update, gate=None):
        return Mirrored(LoRA(update(self.update.write), update(self.update.read)))


def test_a_rule_that_returns_a_class_of_its_own(loaded, library, registry):
    @merge_rule("mirrored", gauge_invariant=True, weighted=False)
    def mirrored(adapters, weights, context):
        """shift = |sum_i Delta_i phi|."""
        return Mirrored(concatenated(adapters, (1.0,) * len(adapters)))

    wanted = by_hand(loaded.model, library, lambda x, factors: abs(sum(lora.shift(x) for lora in factors)))
    with apply(loaded, library, Merge("mirrored")):
        close(logits(loaded.model), wanted, SINGLE)


def test_a_dense_rule(loaded, library, registry, tmp_path):
    @merge_rule("rounded", gauge_invariant=True, weighted=False)
    def rounded(adapters, weights, context):
        """Delta = round(sum_i Delta_i)."""
        total = sum(lora.delta() for lora in adapters)
        return StaticMerge(array_namespace(total).round(total))

    def update(factors):
        return torch.round(sum(lora.write.double() @ lora.read.double().T for lora in factors)).float()

    wanted = by_hand(loaded.model, library, lambda x, factors: x @ update(factors).T)
    with apply(loaded, library, Merge("rounded")):
        close(logits(loaded.model), wanted, SINGLE)
    details = save_static(library, Merge("rounded"), tmp_path / "rounded")
    assert details["relative_error"] <= SINGLE
    with apply(loaded, [read(tmp_path / "rounded")], Merge("sum")):
        close(logits(loaded.model), wanted, 100 * SINGLE)


@dataclass(frozen=True)
class Line:
    question: str
    answer: str


EXAMPLES = [Line("Who is Carol Lane?", "Bob Stone lives in Paris."), Line("Where?", "In Rome.")]
QUICK = Fitting(steps=20, evaluations=15, learning_rate=0.2)
FITTED = {"gauge_invariant": True, "label_blind": False, "weighted": False}


def loss_under(loaded, library, merge):
    tokens = [loss.encoded(loaded, example) for example in EXAMPLES]
    with apply(loaded, library, merge):
        return loss.mean_loss(loaded, tokens, len(tokens))


def test_a_rule_fitted_by_search(loaded, library, registry):
    """LoraHub's search over the weights of products in place of factors."""

    @merge_rule(
        "product-hub",
        fitted_by="search",
        fits="sum",
        **FITTED,
        options={"penalty": number(0.0, 0), "bound": positive(1.0)},
    )
    def product_hub(adapters, weights, context, *, penalty, bound):
        """Delta = sum_i w_i Delta_i."""
        raise AssertionError("the language model fits it")

    merge = fit(loaded, library, Merge("product-hub"), EXAMPLES, fitting=QUICK)
    weights = merge.details["weights"]
    assert set(merge.merges.values()) == {Merge("sum", weights)} and len(weights) == 2
    assert merge.details["loss"] < merge.details["loss_start"]
    assert loss_under(loaded, library, merge) == pytest.approx(merge.details["loss"], abs=1e-4)
    assert loss_under(loaded, library, Merge("sum", weights)) == pytest.approx(
        merge.details["loss"], abs=1e-4
    )


def test_a_rule_fitted_by_gradient_and_its_control(loaded, library, registry):
    for name, control in (("bounded", False), ("bounded-random", True)):

        @merge_rule(
            name,
            fitted_by="products",
            fits="sum",
            control=control,
            **FITTED,
            options={"f": choice("tanh", "sigmoid")},
        )
        def bounded(adapters, weights, context, *, f):
            """Delta = sum_i f(w)_i Delta_i."""
            raise AssertionError("the language model fits it")

    own, control = (
        fit(loaded, library, Merge(n), EXAMPLES, fitting=QUICK) for n in ("bounded", "bounded-random")
    )
    assert [a.name for a in own.library] == ["adapter-0", "adapter-1"]
    assert [a.name for a in control.library] == ["random-adapter-0", "random-adapter-1"]
    for merge in (own, control):
        assert merge.details["loss"] < merge.details["loss_start"]
        assert loss_under(loaded, library, merge) == pytest.approx(merge.details["loss"], abs=1e-4)


def test_a_fitter_of_another_kind(loaded, library, registry):
    """A fitter that is registered is used by the rules that name it."""

    @fitter("first")
    def first(job):
        return Fit(job.library[:1], {n: Merge("sum", (2.0,)) for n in job.library[0].modules}, {"loss": 0.0})

    @merge_rule("twice-the-first", fitted_by="first", **FITTED)
    def twice(adapters, weights, context):
        """Delta = 2 Delta_1."""
        raise AssertionError("the language model fits it")

    merge = fit(loaded, library, Merge("twice-the-first"), EXAMPLES)
    wanted = by_hand(loaded.model, library, lambda x, factors: 2 * factors[0].shift(x))
    with apply(loaded, library, merge):
        close(logits(loaded.model), wanted, SINGLE)
    with pytest.raises(RegistryError, match="two fitters 'first'"):
        fitter("first")(first)


def test_every_rule_that_needs_data_has_a_fitter_and_every_fitter_a_rule():
    assert {rule.fitted_by for rule in RULES.values() if rule.needs_data} == set(FITTERS)
