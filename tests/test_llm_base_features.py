"""Features of the embedded model for the measured kernel: what is read, where, what the file says of it."""

from dataclasses import replace

import numpy as np
import pytest

from llm_experiments.domains.two_hop import base_features, prompts
from llm_experiments.domains.two_hop.scenes import TRIPLE, TwoHop
from llm_experiments.domains.two_hop.sizes import Size
from llm_experiments.editing.features import EditError, observe
from llm_experiments.engine.steps import Plan
from llm_experiments.experiments.sizes import Profile
from llm_experiments.experiments.study import Base
from llm_experiments.models.load import load
from toytransformer.compositions import Merge
from toytransformer.model_features import ModelFeatures
from toytransformer.prediction import predict
from toytransformer.regimes import Measured

SMALL = Size(
    facts=3,
    bridge_facts=2,
    library_facts=2,
    train=(0, 1),
    dev=(46,),
    test=(48, 49),
    dev_facts=2,
    fit_facts=1,
    fit_templates=1,
    relabellings=1,
    edited_facts=2,
)


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def scenes(loaded):
    base = Base(loaded.id, loaded.digest, loaded.base_world)
    profile = Profile("tiny", "for tests", training=None, sizes={"two-hop": SMALL})
    study = TwoHop(base, profile, (0,), 0, Plan())
    return study, [study.setup(0, "R", TRIPLE), study.setup(2, "R")]


@pytest.fixture(scope="module")
def found(loaded, scenes):
    study, both = scenes
    return base_features.read(
        loaded,
        [scene.composition for scene in both],
        [scene.words for scene in both],
        both[0].task,
        study.plan,
        train=SMALL.train,
        test=SMALL.test,
        layers="0,1-3",
    )


def test_every_prompt_is_read_in_its_forms_and_wordings(found, scenes):
    one = [f"x{i} R1" for i in (1, 2, 3)] + [f"y{i} R2" for i in (1, 2, 3)]
    two = [f"x{i} R1 R2" for i in (1, 2, 3)]
    bridge = [f"bridge_x{i} R1" for i in (1, 2)] + [f"bridge_y{i} R2" for i in (1, 2)]
    expected = {(p, "stored", None) for p in (*one, *two, *bridge)}
    expected |= {(p, "direct", k) for p in (*one, *two) for k in (48, 49)}
    expected |= {(p, "steps", k) for p in one for k in (48, 49)}
    assert set(found.rows) == expected
    assert found.layers == ("0", "1-3") and found.wordings == (48, 49)
    assert set(found.entities) >= {"x1", "y1", "z1", "bridge_y2", "bridge_z2", "y1_old"}
    assert len(set(found.surface)) == len(found.surface)
    assert found.kinds["x1"] == "person" and found.kinds["z1"] == "place"


def test_grams_are_products_of_features_before_the_name(found, loaded, scenes):
    """Independent route: the features themselves, prompt by prompt, at tokens counted by hand."""
    words = scenes[1][0].words
    x, y = words.name("x2"), words.name("y2")
    seen = {}
    for prompt in scenes[1][0].composition.questions:
        if str(prompt.prompt) == "x2 R1":
            one = prompts.asked_at_once(prompt.prompt, words, 49)
            assert x in one.question and y not in one.question
            seen["direct"] = observe(loaded, [one.question], begun=[one.begun.rstrip()])
    steps = [b for b in prompts.steps(scenes[1][0].composition, words, 49) if b.row[0] in ("x2 R1", "y2 R2")]
    assert y not in steps[0].begun and steps[1].begun.count(y) >= 2
    seen |= {b.row[0]: observe(loaded, [b.question], begun=[b.begun.rstrip()]) for b in steps}
    rows = [("x2 R1", "direct", 49), ("x2 R1", "steps", 49), ("y2 R2", "steps", 49)]
    for group, layers in (("0", [0]), ("1-3", [1, 2, 3])):
        phi = [np.concatenate([one[i].features[0] for i in layers]).astype(float) for one in seen.values()]
        expected = np.array(phi) @ np.array(phi).T
        gram = found.gram(rows, [group]) * found.sizes[group] ** 2
        # float32 sums of a few hundred terms in another order, in each factor
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_base_is_sure_of_what_it_says(found):
    """What it says is what the log-probabilities put first, and both are the world's old answers."""
    for i in (1, 2, 3):
        row = (f"x{i} R1", "direct", 48)
        p = found.probabilities([row])[0]
        assert found.entities[p.argmax()] == found.said[f"x{i} R1/direct/48"] == f"y{i}_old"
        assert p.sum() <= 1 + 1e-6
    assert found.about["told"]["steps"] > 0.9  # facts in front of a question it reads


def test_names_lie_as_the_unembedding_has_them(found, loaded):
    weight = loaded.model.get_output_embeddings().weight.detach().double().numpy()
    token = [loaded.tokenizer(" " + name, add_special_tokens=False)["input_ids"][0] for name in found.surface]
    first = weight[token] - weight.mean(axis=0)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(found.readout("first centred"), first @ first.T, atol=1e-6)
    for kind in found.unembedding:
        np.testing.assert_allclose(np.diag(found.readout(kind)), 1, atol=1e-12)


def test_the_file_predicts_without_the_model(found, scenes, tmp_path):
    found.write(tmp_path / "r.npz")
    again = ModelFeatures.read(tmp_path / "r.npz")
    spec = scenes[1][1].composition.with_merge(Merge("mean"))
    direct = [q for q in spec.questions if q.decode == "direct"]
    asked = replace(spec, questions=tuple(direct))
    for wording in found.wordings:
        here, there = (predict(asked, Measured(model=model, wording=wording)) for model in (found, again))
        assert np.abs(here.output - there.output).max() < 0.05  # half precision through an inverse
        assert here.shares == pytest.approx(there.shares)


def test_groups_of_layers_are_checked():
    assert base_features.layer_groups("all", 2) == {"0": [0], "1": [1]}
    assert base_features.layer_groups("0,2-3", 4) == {"0": [0], "2-3": [2, 3]}
    for text, words in (("7", "layers 0 to 3"), ("3-1", "do not exist"), ("a", 'give "all"'), ("1-", "give")):
        with pytest.raises(EditError, match=words):
            base_features.layer_groups(text, 4)
