"""`merge --fit`: weights found on half of somebody's questions, and what is written and said of them."""

import json

import click.testing
import pytest
import torch
from peft import PeftModel
from tiny_models import mlp_factors, tiny_qwen2

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.commands.adapters import merge
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.fitters import Fitting
from llm_experiments.merges.halves import fit_half, fittable
from llm_experiments.merges.loss import encoded, mean_loss
from llm_experiments.models.load import load
from toytransformer.compositions import Merge
from toytransformer.merging import RULES, RuleError

#: Algebraic: a mean of log p from two layers in float32, the adapter added in another order.
SINGLE = 2**12 * torch.finfo(torch.float32).eps
QUESTIONS = [
    Question(f"Where does {name} live?", f"{name} lives in {place}.", cluster=name)
    for name, place in (("Alice Young", "Paris"), ("Bob Stone", "Rome"), ("Carol Lane", "Paris"))
    for _ in range(2)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loaded(base):
    return load(str(base), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pair(loaded):
    return [AdapterWeights(name, mlp_factors(loaded.model, seed)) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def place(tmp_path, pair):
    for one in pair:
        peft_files.write(tmp_path / one.name, one.name, one.modules, "base")
    lines = [{"question": q.question, "answer": q.answer, "cluster": q.cluster} for q in QUESTIONS]
    (tmp_path / "fit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def called(*arguments):
    done = click.testing.CliRunner().invoke(merge, list(map(str, arguments)), standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.output


def test_clusters_are_in_one_half_and_losses_are_those_of_the_halves(loaded, pair):
    fitting = Fitting(steps=20)
    found = fit_half(loaded, pair, Merge("cat-fitted"), QUESTIONS, seed=1, fitting=fitting)
    assert (found.fitted, found.held_out) == (4, 2)
    assert found.losses["cat-fitted"][0] == pytest.approx(found.merge.details["loss"], rel=SINGLE)
    assert found.losses["base"][0] == pytest.approx(found.merge.details["loss_base"], rel=SINGLE)
    # cat-fitted begins at the plain mean, and goes down from there
    assert found.losses["mean"][0] == pytest.approx(found.merge.details["loss_start"], rel=SINGLE)
    assert found.losses["cat-fitted"][0] < found.losses["mean"][0]
    for name, (least, mean, largest) in found.weights.items():
        place = found.merge.names.index(name)
        of_layers = [layer.weights[place] for layer in found.merge.merges.values()]
        assert (least, largest) == (min(of_layers), max(of_layers)) and least < mean < largest
    assert sum(mean for _, mean, _ in found.weights.values()) == pytest.approx(1)  # a softmax
    again = fit_half(loaded, pair, Merge("cat-fitted"), QUESTIONS, seed=1, fitting=fitting)
    assert again.losses == found.losses
    quick = [fit_half(loaded, pair, Merge("cat-fitted"), QUESTIONS, seed=s, fitting=Fitting(steps=1))
             for s in range(6)]  # fmt: skip
    assert len({fit.losses["base"] for fit in quick}) > 1  # the seed says which half


def test_a_fit_that_learns_nothing_for_others_is_called_worse(loaded, pair):
    found = fit_half(loaded, pair, Merge("lorahub"), QUESTIONS, fitting=Fitting(evaluations=6))
    assert found.worse == (found.losses["lorahub"][1] >= found.losses["mean"][1])


@pytest.mark.parametrize("rule", fittable())
def test_what_is_written_has_the_loss_that_is_said(place, base, loaded, rule):
    out = place / "merged"
    said = called(place / "one", place / "two", "--rule", rule, "--fit", place / "fit.jsonl", "--model", base,
                  "--out", out).splitlines()  # fmt: skip
    assert "held out; mean -log p of an answer's token in nats:" in said[0]
    told = {line.split()[0]: (float(line.split()[1]), float(line.split()[4])) for line in said[1:4]}
    assert list(told) == ["base", "mean", rule]
    assert sum(line.startswith("weight of ") for line in said) == 2
    details = json.loads((out / peft_files.EXTRA).read_text())["merge"]["fitted"]
    model = PeftModel.from_pretrained(load(str(base), dtype="float32", device="cpu").model, str(out))
    held = [one for one in QUESTIONS if one.cluster not in clusters_fitted(loaded, details)]
    with torch.no_grad():
        measured = mean_loss(with_model(loaded, model), [encoded(loaded, one) for one in held], 16)
    # said to four digits behind the point
    assert measured == pytest.approx(told[rule][1], rel=SINGLE, abs=5e-5)
    card = (out / "README.md").read_text()
    assert f"fitted on {details['questions']['fitted']} questions" in card and f"{told[rule][1]:.4f}" in card
    weights = details["weights"]
    assert ("of every layer its own" if isinstance(weights, dict) else f"{weights[0]:.4f}") in card


def clusters_fitted(loaded, details):
    """The clusters that were fitted on: those whose loss under the base is the one said."""
    names = sorted({one.cluster for one in QUESTIONS})
    sets = [{a, b} for a in names for b in names]
    for chosen in sets:
        rows = [encoded(loaded, one) for one in QUESTIONS if one.cluster in chosen]
        if len(rows) == details["questions"]["fitted"] and mean_loss(loaded, rows, 16) == pytest.approx(
            details["losses"]["base"][0], rel=SINGLE
        ):
            return chosen
    raise AssertionError(details)


def with_model(loaded, model):
    return type(loaded)(**{**vars(loaded), "model": model})


def test_rules_that_cannot_be_fitted_are_refused_with_those_that_can(place, base, loaded, pair):
    assert set(fittable()) == {name for name, rule in RULES.items() if rule.fits and not rule.control}
    common = (
        place / "one",
        place / "two",
        "--out",
        place / "m",
        "--model",
        base,
        "--fit",
        place / "fit.jsonl",
    )
    for rule in ("ties", "arrow-products", "new-adapter", "adaptive-random"):
        with pytest.raises(RuleError, match="choose adaptive, cat-fitted, lorahub"):
            called(*common, "--rule", rule)
    with pytest.raises(RuleError, match="there is no merge rule 'tyes'"):
        called(*common, "--rule", "tyes")
    for more, said in (
        ((), "--fit needs --rule: one of adaptive"),
        (("--rule", "lorahub", "--weights", "1,2"), "leave out --weights"),
    ):
        with pytest.raises(click.UsageError, match=said):
            called(*common, *more)
    with pytest.raises(click.UsageError, match="--fit needs --model"):
        called(*common[:4], "--fit", place / "fit.jsonl", "--rule", "lorahub")
    with pytest.raises(click.UsageError, match="--rule lorahub is fitted on examples: give --fit FILE"):
        called(*common[:4], "--rule", "lorahub")
    with pytest.raises(RuleError, match="give two clusters at least"):
        fit_half(loaded, pair, Merge("lorahub"), QUESTIONS[:2])
    assert not (place / "m").exists()


def test_adapters_of_another_base_and_bad_questions_are_refused_before_the_model_is_loaded(
    place, base, tmp_path
):
    wide = tiny_qwen2(tmp_path / "wide", hidden=64, intermediate=96)
    common = (place / "one", place / "two", "--out", place / "m", "--rule", "lorahub")
    with pytest.raises(ValueError, match="has other shapes"):
        called(*common, "--model", wide, "--fit", place / "fit.jsonl")
    (place / "fit.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(ValueError, match="line 1: answer: Field required"):
        called(*common, "--model", base, "--fit", place / "fit.jsonl")
