"""What a page shows of a pool: made of adapters written here, asked through a tiny random model."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from llm_experiments.adapters import peft_files
from llm_experiments.diagnose.answers import BEGINS, AnswerSheet
from llm_experiments.domains.geography.data import CONTINENTS
from llm_experiments.merges.merging import apply
from llm_experiments.models.load import load
from llm_experiments.pools import shown
from tests.tiny_models import tiny_qwen2
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and three adapters of it in a folder, one of them damaged; what is shown of them."""
    root = tmp_path_factory.mktemp("pool")
    texts = [text for one in shown.questions() for text in (one.question, one.answer)]
    model = tiny_qwen2(root / "model", texts, vocabulary=700)
    loaded, rng = load(str(model)), np.random.default_rng(0)
    layers = {name: layer for name, layer in loaded.model.named_modules() if name.endswith("_proj")}
    for number in range(2):
        modules = {
            name: LoRA(
                torch.tensor(0.2 * rng.normal(size=(layer.out_features, 2)), dtype=torch.float32),
                torch.tensor(0.2 * rng.normal(size=(layer.in_features, 2)), dtype=torch.float32),
            )
            for name, layer in layers.items()
        }
        peft_files.write(root / "adapters" / f"adapter-{number}", f"adapter-{number}", modules, "tiny")
    broken = root / "adapters" / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    out = root / "out" / "shown.json"
    arguments = [str(root / "adapters"), "--model", str(model), "--out", str(out)]
    result = CliRunner().invoke(shown.main, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), loaded, root


def test_countries_are_on_one_continent_each():
    asked = shown.questions()
    assert len({one.question for one in asked}) == shown.COUNTRIES
    assert {one.answer for one in asked} <= set(CONTINENTS.values())
    told = {one.question: one.answer for one in shown.questions(300)}
    assert told["On which continent is Kenya?"] == "Africa"
    assert told["On which continent is Peru?"] == "South America"


def test_all_that_is_there_is_shown_and_nothing_of_where_it_lay(made):
    told, _, root = made
    assert [row["id"] for row in told["rows"]] == ["adapter-0", "adapter-1", "broken"]
    assert [bool(row["refused"]) for row in told["rows"]] == [False, False, True]
    assert told["bases"][0]["members"] == ["adapter-0", "adapter-1"]
    assert str(root / "adapters") not in json.dumps(told)
    assert {"sum", "ties"} < {line["rule"] for line in told["merges"]}


def test_folders_of_strangers_are_not_shown():
    told = {"base": "D:\\x\\gemma", "said": "one of D:\\x\\gemma, /a/b/gemma-it and org/gemma"}
    shorter = shown.without_folders(told, ["D:\\x\\gemma", "/a/b/gemma-it", "org/gemma"])
    assert shorter == {"base": "gemma", "said": "one of gemma, gemma-it and org/gemma"}


def test_losses_are_those_of_the_model(made):
    told, loaded, root = made
    held = shown.questions()[1::2]
    sheet = AnswerSheet.of(loaded, held, BEGINS)
    library = [peft_files.read(root / "adapters" / f"adapter-{k}", name=f"adapter-{k}") for k in range(2)]
    recycled = told["answers"]["recycled"]
    for name, merge in (("mean", Merge("mean")), ("recycled", Merge("sum", tuple(recycled["weights"])))):
        with apply(loaded, library, merge):
            scores = sheet.scores(sheet.logits(loaded))
        assert told["answers"][name]["loss"][1] == pytest.approx(scores.loss, abs=2e-3)
        assert told["answers"][name]["right"][1] == scores.share
        assert -np.mean(told["answers"][name]["held_out"]) == pytest.approx(-scores.loss, abs=2e-3)
    assert recycled["loss"][0] <= told["answers"]["base"]["loss"][0] + 0.05  # weights of zero are allowed
    assert set(shown.FITTED) < set(told["answers"])
