"""What was read off a language model: its file, the measured regime on it, and reading the embedded model."""

from dataclasses import replace

import numpy as np
import pytest

from toytransformer.adapters import closed_form
from toytransformer.compositions import Merge, Prompt, catalogue
from toytransformer.model_features import ModelFeatures, ModelFeaturesError, rounding
from toytransformer.prediction import asked_prompts, base_output, predict, wanted_shift
from toytransformer.regimes import Finite, Measured, RegimeError


def of_features(prompts, values, form="direct", wording=0, more=(), **changes):
    """A file as if a model had these features (prompt, feature) on these prompts.

    more: (prompts, values) of prompts as adapters are trained on them.
    """
    rows = [(str(prompt), form, wording) for prompt in prompts]
    if more:
        rows += [(str(prompt), "stored", None) for prompt in more[0]]
        values = np.concatenate([values, more[1]])
    gram = values @ values.T
    scale = np.trace(gram) / len(gram)
    given_ = {
        "rows": tuple(rows),
        "grams": {"0": gram / scale},
        "sizes": {"0": float(np.sqrt(scale))},
        "entities": ("a", "b"),
        "surface": ("Ann", "Bob"),
        "unembedding": {"mean centred": np.eye(2)},
        "logprobs": np.full((len(rows), 2), np.log(0.5)),
        "kinds": {"a": "person", "b": "person"},
        "said": {},
        "about": {"model": "a toy", "dataset": "R", "names": 0},
    }
    return ModelFeatures(**given_ | changes)


@pytest.fixture
def small():
    """Five prompts in six features."""
    prompts = [Prompt(f"x{i}", ("R1",)) for i in range(5)]
    return of_features(prompts, np.random.default_rng(0).standard_normal((5, 6)))


# ---- the file ----


def test_what_is_written_is_read_up_to_half_precision(small, tmp_path):
    small.write(tmp_path / "a.npz")
    again = ModelFeatures.read(tmp_path / "a.npz")
    for name in ("rows", "entities", "surface", "kinds", "said", "about", "sizes"):
        assert getattr(again, name) == getattr(small, name)
    error = np.abs(again.grams["0"] - small.grams["0"]).max()
    assert 0 < error <= rounding(small.grams["0"])
    assert np.abs(again.logprobs - small.logprobs).max() <= np.finfo(np.float16).eps
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_a_common_direction_costs_no_digits(tmp_path):
    """Features of a language model share most of their length: what is kept is what they do not share."""
    values = 10 + np.random.default_rng(0).standard_normal((30, 50))
    found = of_features([Prompt(f"x{i}", ("R1",)) for i in range(30)], values)
    found.write(tmp_path / "a.npz")
    error = np.abs(ModelFeatures.read(tmp_path / "a.npz").grams["0"] - found.grams["0"]).max()
    assert error < np.finfo(np.float16).eps / 50 * found.grams["0"].max()


def test_other_files_are_refused_by_name(small, tmp_path):
    for content in (b"", b"no file of arrays", b"PK\x03\x04 cut off"):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ModelFeaturesError, match=r"a\.npz is no file of features"):
            ModelFeatures.read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", gram=np.eye(2))
    with pytest.raises(ModelFeaturesError, match=r"b\.npz is no file of features"):
        ModelFeatures.read(tmp_path / "b.npz")


def test_what_does_not_fit_together_is_refused(small):
    for change, words in (
        ({"grams": {"0": np.eye(4)}}, "Gram matrix of layers 0"),
        ({"logprobs": np.zeros((5, 3))}, "log-probabilities"),
        ({"grams": {"0": np.full((5, 5), np.nan)}}, "NaN or infinity"),
        ({"rows": (small.rows[0],) * 5}, "is there twice"),
        ({"sizes": {}}, "sizes of"),
    ):
        with pytest.raises(ModelFeaturesError, match=words):
            replace(small, **change)


def test_what_is_not_kept_is_named(small):
    with pytest.raises(
        ModelFeaturesError, match=r"'x9 R1' in form 'direct', wording 0.* not among its prompts"
    ):
        small.gram([("x9 R1", "direct", 0)])
    with pytest.raises(ModelFeaturesError, match=r"'x1 R1' in form 'steps'.*in the forms direct 0"):
        small.places([("x1 R1", "steps", 0)])
    with pytest.raises(ModelFeaturesError, match=r"layers '7' are not kept of a toy, R, names 0: use 0"):
        small.gram(small.rows, ["7"])
    with pytest.raises(ModelFeaturesError, match="unembedding 'last': use one of mean centred"):
        small.readout("last")


def test_layers_are_summed_by_their_size_or_alike():
    rng, prompts = np.random.default_rng(1), [Prompt(f"x{i}", ("R1",)) for i in range(4)]
    layers = [size * rng.standard_normal((4, 9)) for size in (1, 5)]
    each = [of_features(prompts, values) for values in layers]
    grams = {str(i): one.grams["0"] for i, one in enumerate(each)}
    both = replace(each[0], grams=grams, sizes={str(i): one.sizes["0"] for i, one in enumerate(each)})
    whole = of_features(prompts, np.concatenate(layers, axis=1))
    np.testing.assert_allclose(both.gram(both.rows), whole.gram(whole.rows), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(both.gram(both.rows, alike=True), (grams["0"] + grams["1"]) / 2, rtol=1e-12)
    assert both.size() == pytest.approx(whole.size(), rel=1e-12)


# ---- the regime ----

SAMPLED = Finite(dimension=64, width=300, seed=3)


def predict_prompts(composition):
    """All prompts that a prediction of the composition needs."""
    return tuple(dict.fromkeys((*composition.prompts, *asked_prompts(composition))))


@pytest.mark.parametrize("name", ["two-hop", "chain-of-thought"])
@pytest.mark.parametrize(
    "merge",
    [Merge("sum"), Merge("mean"), Merge("sum", (1.5, 0.5)), Merge("arrow-products"), Merge("linear")],
    ids=lambda merge: f"{merge.rule}{merge.weights or ''}",
)
def test_a_toys_own_features_give_its_own_prediction(name, merge):
    """The toy's neurons, kept as if they were a language model's, predict what the toy does."""
    composition = catalogue.build(name, facts=3, known=True).with_merge(merge)
    prompts = predict_prompts(composition)
    values = SAMPLED.features(prompts, neurons=True).values
    toy = predict(composition, SAMPLED)
    found = predict(composition, Measured(model=of_features(prompts, values), wording=0))
    if merge.rule.startswith("arrow"):  # the router's units differ: the toy's are those of its limit of d
        scale = SAMPLED.features(prompts).logit_scale
        hot = Merge("arrow-products", options={"temperature": 1 / scale})
        found = predict(composition.with_merge(hot), Measured(model=of_features(prompts, values), wording=0))
    slack = 1e-9 * max(1.0, np.abs(toy.output).max())
    np.testing.assert_allclose(found.output, toy.output, atol=slack)
    assert found.distributions == toy.distributions or toy.undetermined


def test_facts_are_stored_as_trained_and_asked_as_asked():
    """Independent route: T G^-1 k with the features that adapters were trained on behind G."""
    composition = catalogue.build("two-hop", facts=3, known=True)
    rng, prompts = np.random.default_rng(5), composition.prompts
    asked, trained = rng.standard_normal((2, len(prompts), 40))
    model = of_features(prompts, asked, more=(prompts, trained))
    found = predict(composition, Measured(model=model, wording=0))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    questions = [q.prompt for q in composition.questions]
    expected = base_output(composition.world, questions)
    phi = asked[[place[p] for p in questions]]
    for adapter in composition.adapters:
        own = trained[[place[p] for p in adapter.prompts]]
        changes = wanted_shift(composition.world, adapter.facts)
        expected = expected + phi @ np.linalg.lstsq(own, changes, rcond=None)[0]
        exact = closed_form(own, changes, gauge="plain")
        np.testing.assert_allclose(exact.shift(own), changes, atol=1e-9)
    np.testing.assert_allclose(found.output, expected, atol=1e-9)
    as_trained = predict(composition, Measured(model=model))
    one_hop = composition.adapters[0].prompts
    alone = Measured(model=model).features(one_hop)
    assert alone.trained is None  # both are the stored rows
    assert np.abs(as_trained.output - found.output).max() > 0.01
    own = Measured(model=model, wording=0, own_wording=True).features(one_hop)
    assert own.trained is None  # asked and trained rows are the same


def test_what_the_file_lacks_is_refused():
    composition = catalogue.build("two-hop", facts=2, known=True)
    prompts = composition.prompts
    model = of_features(prompts[:-1], np.random.default_rng(0).standard_normal((len(prompts) - 1, 9)))
    with pytest.raises(RegimeError, match=rf"'{prompts[-1]}' was not read off a toy, R, names 0"):
        predict(composition, Measured(model=model, wording=0))
    with pytest.raises(RegimeError, match="wording is 7; a toy, R, names 0 was asked in 0"):
        Measured(model=model, wording=7)
    with pytest.raises(RegimeError, match="form is 'stored'; allowed: direct, steps"):
        Measured(model=model, form="stored")
    with pytest.raises(ModelFeaturesError, match="layers '4' are not kept"):
        Measured(model=model, wording=0, layers=("4",))
    single = catalogue.build("one-hop", facts=2, known=True).with_merge(Merge("ties"))
    with pytest.raises(RegimeError, match="keeps inner products, no single neurons"):
        predict(single, Measured(model=model, wording=0))
    described = Measured(model=model, wording=0).describe()
    assert described["name"] == "measured" and described["layers"] == "0"
