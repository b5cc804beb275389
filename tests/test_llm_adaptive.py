"""Adaptive merging as published, and its controls: coefficients by part, starts, validation, replacements."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_qwen2

from llm_experiments.adapters.weights import AdapterWeights, ModuleUpdate
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.fitted import fit, save
from llm_experiments.merges.fitted import load as fitted_from
from llm_experiments.merges.fitters import Fitting
from llm_experiments.merges.fitters.gauss_newton import quadratic
from llm_experiments.merges.loss import encoded, mean_loss
from llm_experiments.merges.merging import FittedMerge, apply
from llm_experiments.models.load import load
from llm_experiments.pools.controls import CONTROLS, Setting, drawn_like
from llm_experiments.pools.published import ADAPTIVE, PI_TUNING
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

RANK = 2
EXAMPLES = tuple(
    Question(question, answer)
    for question, answer in (
        ("Who is the spouse of Alice Young?", "Bob Stone"),
        ("Where does Bob Stone live?", "Paris"),
        ("Who is the mentor of Bob Stone?", "Carol Lane"),
        ("Where does Carol Lane live?", "Paris"),
        ("Who is Alice Young?", "the spouse of Bob Stone"),
    )
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("qwen2"))), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def library(loaded):
    """Three adapters on every linear layer of the blocks."""
    rng = np.random.default_rng(0)
    layers = {name: layer for name, layer in loaded.model.named_modules() if name.endswith("_proj")}

    def factor(size, scale):
        return torch.tensor(scale * rng.normal(size=(size, RANK)), dtype=torch.float32)

    return tuple(
        AdapterWeights(
            f"adapter-{index}",
            {
                name: LoRA(factor(w.out_features, 0.3), factor(w.in_features, 0.4))
                for name, w in layers.items()
            },
        )
        for index in range(3)
    )


def loss_of(loaded, library, merge, examples=EXAMPLES):
    with apply(loaded, library, merge):
        return mean_loss(loaded, [encoded(loaded, one) for one in examples], 8)


#: Modules -> what shares their coefficients.
PARTS = {
    "expert": lambda name: "",
    "layer": lambda name: name.split(".")[2],
    "sublayer": lambda name: tuple(name.split(".")[2:4]),
    "module": lambda name: name,
}
FREE = Merge("cat-fitted", options={"form": "free"})


@pytest.mark.parametrize("per", [*PARTS, "dimension"])
def test_one_step_goes_against_the_slope_of_each_part(loaded, library, per):
    """Adam's first step moves every coefficient by the rate against its slope's sign, here by differences."""
    rate, pair = 1e-3, library[:2]
    fitting = Fitting(steps=1, batch=len(EXAMPLES), learning_rate=rate, per=per)
    merge = fit(loaded, pair, FREE, EXAMPLES, fitting=fitting)
    weights = merge.details["weights"]
    if per == "dimension":
        assert {len(own) for own in weights.values()} == {2 * RANK}
        assert [adapter.name for adapter in merge.library] == ["scaled-adapter-0", "scaled-adapter-1"]
        name, column = "model.layers.1.mlp.up_proj", 1
        for place, adapter in enumerate(merge.library):
            own = torch.tensor(weights[name][place * RANK : (place + 1) * RANK])
            assert torch.equal(adapter.modules[name].write, pair[place].modules[name].write * own)

        def losses(step):
            scale = torch.full((RANK,), 0.5)
            scale[column] += step
            lora = pair[0].modules[name]
            first = {one: LoRA(0.5 * lora.write, lora.read) for one, lora in pair[0].modules.items()}
            second = {one: LoRA(0.5 * lora.write, lora.read) for one, lora in pair[1].modules.items()}
            first[name] = LoRA(lora.write * scale, lora.read)
            return loss_of(
                loaded, [replace(pair[0], modules=first), replace(pair[1], modules=second)], Merge("sum")
            )

        moved = weights[name][column]
    else:
        parts = {}
        for name, own in weights.items():
            parts.setdefault(PARTS[per](name), set()).add(own)
        assert all(len(several) == 1 for several in parts.values())
        assert len(set(weights.values())) <= len(parts) == len({PARTS[per](name) for name in weights})
        part = PARTS[per]("model.layers.1.mlp.up_proj")

        def losses(step):
            merges = {name: Merge("sum", (0.5 + step * (PARTS[per](name) == part), 0.5)) for name in weights}
            return loss_of(loaded, pair, FittedMerge(FREE, ("adapter-0", "adapter-1"), pair, merges))

        moved = weights["model.layers.1.mlp.up_proj"][0]
    slope = losses(0.01) - losses(-0.01)
    assert abs(slope) > 1e-5 and moved == pytest.approx(0.5 - rate * math.copysign(1, slope), rel=1e-3)
    assert merge.details["loss"] == pytest.approx(loss_of(loaded, pair, merge), abs=1e-5)


def test_from_zero_the_base_is_left(loaded, library):
    recipe = ADAPTIVE
    merge = fit(loaded, library, recipe.merge, EXAMPLES, fitting=recipe.fitting)
    details = merge.details
    assert details["loss_start"] == pytest.approx(details["loss_base"], abs=1e-6)
    assert details["loss"] < details["loss_base"]
    root = fit(
        loaded,
        library,
        Merge("adaptive"),
        EXAMPLES,
        fitting=Fitting(steps=1, start="root", learning_rate=1e-9),
    )
    assert np.allclose(list(root.details["weights"].values()), 1 / math.sqrt(3), atol=1e-6)


def test_what_is_kept_is_the_best_on_what_was_held_out(loaded, library):
    fitting = replace(ADAPTIVE.fitting, learning_rate=0.5, steps=40, every=4, validation=0.4)
    merge = fit(loaded, library, ADAPTIVE.merge, EXAMPLES, seed=3, fitting=fitting)
    validation = merge.details["validation"]
    inside, held = fitting.split(len(EXAMPLES), 3)
    assert sorted(inside + held) == list(range(5)) and len(held) == validation["examples"] == 2
    losses = dict(validation["losses"])
    assert list(losses) == list(range(0, 41, 4)) and losses[validation["step"]] == min(losses.values())
    own = loss_of(loaded, library, merge, [EXAMPLES[place] for place in held])
    assert own == pytest.approx(losses[validation["step"]], abs=1e-5)
    last = fit(loaded, library, ADAPTIVE.merge, EXAMPLES, seed=3, fitting=replace(fitting, validation=0))
    assert "validation" not in last.details


def entropy(loaded, library, merge):
    """Mean entropy of the token behind each question, question by question."""
    found = []
    with apply(loaded, library, merge), torch.no_grad():
        for one in EXAMPLES:
            prompt, _ = encoded(loaded, one)
            p = loaded.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
            found.append(float(-(p * p.log()).sum()))
    return sum(found) / len(found)


def test_adamerging_lowers_the_entropy_and_looks_at_no_answer(loaded, library):
    fitting = Fitting(steps=1, batch=len(EXAMPLES), learning_rate=1e-3, per="expert", objective="entropy")
    found = fit(loaded, library, FREE, EXAMPLES, fitting=fitting).details
    moved = np.array(next(iter(found["weights"].values()))) - 1 / 3

    def at(place, step):
        weights = [1 / 3 + step * (place == k) for k in range(3)]
        return entropy(loaded, library, Merge("sum", tuple(weights)))

    slopes = np.array([(at(place, 1e-2) - at(place, -1e-2)) / 2e-2 for place in range(3)])
    assert np.sign(moved).tolist() == (-np.sign(slopes)).tolist()
    assert found["loss_curve"] == pytest.approx([entropy(loaded, library, Merge("mean"))], rel=1e-4)
    others = [Question(one.question, "something else entirely") for one in EXAMPLES]
    longer = replace(fitting, steps=5)
    one, other = (fit(loaded, library, FREE, given, fitting=longer).details for given in (EXAMPLES, others))
    assert one["loss_curve"] == pytest.approx(other["loss_curve"], rel=1e-5)
    assert one["loss_curve"][-1] < one["loss_curve"][0]
    assert one["loss"] != pytest.approx(other["loss"], rel=1e-2)  # of the answers, as everywhere


def test_pi_tuning_is_the_softmax_fit_where_factors_stand_still(loaded, library):
    soft, fitting = Merge("adaptive", options={"f": "softmax"}), Fitting(steps=12, batch=4)
    plain = fit(loaded, library, soft, EXAMPLES, fitting=fitting)
    still = fit(loaded, library, soft, EXAMPLES, fitting=replace(fitting, factors=True, factor_rate=1e-12))
    for name, weights in plain.details["weights"].items():
        assert still.details["weights"][name] == pytest.approx(weights, abs=1e-5)
        assert sum(still.details["weights"][name]) == pytest.approx(1)
    assert still.details["loss"] == pytest.approx(plain.details["loss"], rel=1e-5)


def test_pi_tuning_moves_factors_and_goes_lower(loaded, library, tmp_path):
    before = [adapter.modules["model.layers.0.mlp.up_proj"].write.clone() for adapter in library]
    fitting = replace(PI_TUNING.fitting, validation=0.0, factor_rate=1e-2)
    plain = fit(loaded, library, PI_TUNING.merge, EXAMPLES, fitting=replace(fitting, factors=False))
    tuned = fit(loaded, library, PI_TUNING.merge, EXAMPLES, fitting=fitting)
    assert tuned.details["loss"] < 0.5 * plain.details["loss"]
    assert loss_of(loaded, library, tuned) == pytest.approx(tuned.details["loss"], rel=1e-4)
    assert [one.name for one in tuned.library] == [f"tuned-adapter-{k}" for k in range(3)]
    for own, adapter, new in zip(before, library, tuned.library, strict=True):
        assert torch.equal(own, adapter.modules["model.layers.0.mlp.up_proj"].write)
        assert not torch.equal(own, new.modules["model.layers.0.mlp.up_proj"].write)
    save(tmp_path, tuned)
    assert loss_of(loaded, library, fitted_from(tmp_path, library)) == pytest.approx(
        tuned.details["loss"], rel=1e-4
    )


def test_the_best_factors_are_kept_with_their_weights(loaded, library):
    fitting = replace(PI_TUNING.fitting, steps=30, every=5, validation=0.4, factor_rate=0.3)
    found = fit(loaded, library, PI_TUNING.merge, EXAMPLES, fitting=fitting)
    losses = dict(found.details["validation"]["losses"])
    best = found.details["validation"]["step"]
    assert losses[best] == min(losses.values()) and best < 30  # so fast that the end is not the best
    _, held = fitting.split(len(EXAMPLES), 0)
    kept = loss_of(loaded, library, found, [EXAMPLES[place] for place in held])
    assert kept == pytest.approx(losses[best], rel=1e-4)


@pytest.mark.parametrize("more", [{"objective": "entropy"}, {"factors": True}])
@pytest.mark.parametrize(
    ("merge", "method"),
    [(Merge("lorahub"), "gradient"), (Merge("new-adapter"), "gradient"), (FREE, "closed form")],
)
def test_what_only_gradients_do_is_refused_elsewhere(loaded, library, merge, method, more):
    with pytest.raises(RuleError, match=r"needs a fit by gradient.*'adaptive' or 'cat-fitted'"):
        fit(loaded, library, merge, EXAMPLES, fitting=Fitting(method=method, **more))


def test_rates_rise_and_fall():
    fitting = Fitting(steps=100, schedule="cosine", warmup=0.1)
    rates = [fitting.rate(step) for step in range(100)]
    assert np.allclose(rates[:10], np.arange(1, 11) / 11) and rates[10] == 1
    assert rates[55] == pytest.approx(0.5) and rates[99] == pytest.approx((math.pi / 180) ** 2, rel=0.01)
    assert [Fitting(steps=4).rate(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]


# --- in closed form -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(loaded):
    """Two adapters of the output layer alone, so that the logits are linear in their coefficients."""
    rng, head = np.random.default_rng(5), loaded.model.lm_head

    def factor(size, scale):
        return torch.tensor(scale * rng.normal(size=(size, RANK)), dtype=torch.float32)

    modules = [
        {"lm_head": LoRA(factor(head.out_features, 0.5), factor(head.in_features, 0.3))} for _ in range(2)
    ]
    return tuple(AdapterWeights(f"head-{number}", one) for number, one in enumerate(modules))


def test_the_quadratic_has_slope_and_curvature_of_the_loss(loaded, heads):
    found = quadratic(loaded, heads, [encoded(loaded, one) for one in EXAMPLES], 2)

    def losses(a, b):
        return loss_of(loaded, heads, Merge("sum", (a, b)))

    h = 0.05
    slope = [(losses(h, 0) - losses(-h, 0)) / (2 * h), (losses(0, h) - losses(0, -h)) / (2 * h)]
    curvature = [(losses(h, 0) + losses(-h, 0) - 2 * losses(0, 0)) / h**2,
                 (losses(0, h) + losses(0, -h) - 2 * losses(0, 0)) / h**2]  # fmt: skip
    cross = (losses(h, h) - losses(h, -h) - losses(-h, h) + losses(-h, -h)) / (4 * h**2)
    # float32 losses of order 5 over h^2, and the next term of the series
    assert np.allclose(found.slope, slope, rtol=1e-2, atol=1e-3)
    assert np.allclose(np.diag(found.curvature), curvature, rtol=2e-2, atol=5e-3)
    assert np.allclose(found.curvature, found.curvature.T, rtol=1e-12)
    assert found.curvature[0, 1] == pytest.approx(cross, rel=2e-2, abs=5e-3)


def test_the_closed_form_is_where_many_steps_end(loaded, heads):
    """Where the optimum is near enough for the second order: adapters scaled so that a is small of them."""
    strong = tuple(
        replace(one, modules={"lm_head": LoRA(4 * one.modules["lm_head"].write, one.modules["lm_head"].read)})
        for one in heads
    )
    closed = fit(loaded, strong, FREE, EXAMPLES, fitting=Fitting(method="closed form"))
    long = Fitting(steps=400, batch=len(EXAMPLES), learning_rate=0.02, per="expert", start="zero")
    stepped = fit(loaded, strong, FREE, EXAMPLES, fitting=long)
    gained = [one.details["loss_base"] - one.details["loss"] for one in (closed, stepped)]
    assert 0.5 * gained[1] < gained[0] <= gained[1] + 1e-4
    assert closed.details["loss"] == pytest.approx(loss_of(loaded, strong, closed), abs=1e-5)


def test_the_closed_form_never_leaves_the_base_for_worse(loaded, library):
    merge = fit(loaded, library, FREE, EXAMPLES, fitting=Fitting(method="closed form"))
    details = merge.details
    assert details["loss"] <= details["loss_base"] + 1e-6
    assert len(set(details["weights"].values())) == 1
    with pytest.raises(RuleError, match="coefficients are free"):
        fit(loaded, library, Merge("cat-fitted"), EXAMPLES, fitting=Fitting(method="closed form"))


@pytest.mark.parametrize(
    ("form", "more", "said"),
    [
        ("squared", {"start": "zero"}, "cannot start"),
        ("softmax", {"start": "root"}, "cannot start"),
        ("sigmoid", {"start": "zero"}, "cannot start"),
        ("identity", {"validation": 0.05}, "leaves one part empty"),
    ],
)
def test_starts_and_shares_that_cannot_be(loaded, library, form, more, said):
    with pytest.raises(RuleError, match=said):
        fit(
            loaded,
            library,
            Merge("adaptive", options={"f": form}),
            EXAMPLES,
            fitting=Fitting(steps=1, **more),
        )
    for wrong in (
        {"per": "head"},
        {"start": "one"},
        {"schedule": "step"},
        {"warmup": 1},
        {"validation": -0.1},
    ):
        with pytest.raises(RuleError, match="it has to be"):
            Fitting(**wrong)


# --- controls -----------------------------------------------------------------------------------------------


@pytest.fixture
def setting(library):
    return Setting(library, EXAMPLES, Merge("adaptive"), target=1)


def products(adapter):
    return {name: lora.delta() for name, lora in adapter.modules.items()}


def test_every_control_can_be_fitted_or_applied(loaded, setting):
    for name, make in CONTROLS.items():
        made = make(setting, 0)
        if made.merge.rule == "sum":
            assert math.isfinite(loss_of(loaded, made.library, made.merge, made.examples)), name
        elif made.merge.rule != "new-adapter":
            merge = fit(loaded, made.library, made.merge, made.examples, fitting=Fitting(steps=2))
            assert math.isfinite(merge.details["loss"]), name


@pytest.mark.parametrize("name", ["drawn", "norms"])
def test_the_target_stays_real_and_the_others_do_not(setting, name):
    made, alone = CONTROLS[name](setting, 0), CONTROLS[f"{name}-alone"](setting, 0)
    assert made.library[1] is setting.library[1] and made.target == 1 and alone.target is None
    assert len(made.library) == len(alone.library) == 3
    for place, (before, after) in enumerate(zip(setting.library, alone.library, strict=True)):
        for module, delta in products(before).items():
            other = after.modules[module].delta()
            cosine = float((delta * other).sum() / (delta.norm() * other.norm()))
            assert abs(cosine) < 0.5
            if name == "norms":
                assert torch.allclose(
                    torch.linalg.svdvals(delta)[:RANK], torch.linalg.svdvals(other)[:RANK], rtol=1e-4
                )
        if place != 1:
            assert all(
                not torch.equal(products(made.library[place])[m], d) for m, d in products(before).items()
            )
    with pytest.raises(RuleError, match="there is none"):
        CONTROLS[name](replace(setting, target=None), 0)


def test_drawn_adapters_have_the_deviations_of_all_factors_of_a_module():
    rng = np.random.default_rng(1)

    def adapter(scale, size):
        b = torch.tensor(size * rng.normal(size=(3000, 4)), dtype=torch.float32)
        a = torch.tensor(size * rng.normal(size=(2000, 4)), dtype=torch.float32)
        return AdapterWeights(f"of-{size}", {"up": ModuleUpdate(scale * b, a, scale, None, "linear", b)})

    library = [adapter(2.0, 1.0), adapter(0.5, 3.0)]
    drawn = drawn_like(library, 0)
    # both factors of both adapters: the root of (1 + 9) / 2, to five standard errors of so many entries
    expected, error = math.sqrt(5), 5 / math.sqrt(2 * 4 * 2000)
    for one, scale in zip(drawn, (2.0, 0.5), strict=True):
        lora = one.modules["up"]
        assert float(lora.read.std()) == pytest.approx(expected, rel=error)
        assert float(lora.write.std()) == pytest.approx(scale * expected, rel=error)
    assert not torch.equal(drawn_like(library, 1)[0].modules["up"].read, drawn[0].modules["up"].read)


def test_shuffled_examples_keep_questions_and_answers_apart(setting):
    distinct = tuple(Question(f"question {n}", f"answer {n}") for n in range(7))
    for seed in range(5):
        made = CONTROLS["shuffled"](replace(setting, examples=distinct), seed)
        assert [one.question for one in made.examples] == [one.question for one in distinct]
        assert sorted(one.answer for one in made.examples) == sorted(one.answer for one in distinct)
        assert all(one.answer != before.answer for one, before in zip(made.examples, distinct, strict=True))
        assert made.library == setting.library
    with pytest.raises(RuleError, match="no answers to exchange"):
        CONTROLS["shuffled"](replace(setting, examples=distinct[:1]), 0)
