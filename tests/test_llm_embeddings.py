"""LoRA on embeddings inside a model: what PEFT computes, and which merges are refused there."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import mlp_factors, tiny_model

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.adapters.training import frobenius, random_like
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.fitted import fit
from llm_experiments.merges.merging import apply
from llm_experiments.merges.saving import save_static
from llm_experiments.models.load import load
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

IDS = torch.arange(20, 44).reshape(2, 12)
#: Algebraic: eps of float32, times room for sums over layers of width 64 in another order.
SINGLE = 2**12 * torch.finfo(torch.float32).eps
EMBEDDING = "model.embed_tokens"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT: embeddings are saved, and tied


@pytest.fixture(scope="module", params=[("qwen2", False), ("qwen2", True), ("gemma3_text", True)],
                ids=["plain", "tied", "scaled"])  # fmt: skip
def held(request, tmp_path_factory):
    """A model, and two adapters as PEFT writes them: of its embedding and one kind of layer each."""
    architecture, tied = request.param
    base = tiny_model(tmp_path_factory.mktemp(architecture), architecture, tied=tied)
    folders = []
    for seed, layer in enumerate(("up_proj", "down_proj")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=2, lora_alpha=6, target_modules=["embed_tokens", layer], init_lora_weights=False
            )
            model = get_peft_model(load(str(base), dtype="float32", device="cpu").model, config)
        folders.append(base / layer)
        model.save_pretrained(folders[-1], save_embedding_layers=False)
    return base, folders


def loaded(base):
    return load(str(base), dtype="float32", device="cpu")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def close(found, wanted):
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= SINGLE


def test_one_adapter_does_what_peft_does(held):
    base, folders = held
    ours = loaded(base)
    plain = logits(ours.model)
    for folder in folders:
        read = peft_files.read(folder)
        assert read.shape(EMBEDDING).kind == "embedding"
        wanted = logits(PeftModel.from_pretrained(loaded(base).model, folder).eval())
        with apply(ours, [read], Merge("sum")):
            close(logits(ours.model), wanted)
        embedded = read.only([EMBEDDING])
        with apply(ours, [embedded], Merge("sum")):
            moved = logits(ours.model)
        assert float((moved - plain).abs().max()) > 0.01 * float(plain.abs().max())
    assert torch.equal(logits(ours.model), plain)


@pytest.mark.parametrize("rule", ["mean", "linear", "ties", "dare"])
def test_merges_are_those_that_are_written(held, tmp_path, rule):
    base, folders = held
    library = [peft_files.read(folder) for folder in folders]
    save_static(library, Merge(rule), tmp_path / "merged")
    wanted = logits(PeftModel.from_pretrained(loaded(base).model, tmp_path / "merged").eval())
    ours = loaded(base)
    with apply(ours, library, Merge(rule)):
        close(logits(ours.model), wanted)


def test_what_routes_or_is_fitted_is_refused(held):
    base, folders = held
    ours, library = loaded(base), [peft_files.read(folder) for folder in folders]
    both = [one.only([EMBEDDING]) for one in library]
    for rule in ("arrow-products", "arrow-factors"):
        with (
            pytest.raises(RuleError, match=r"is of kind embedding.*neither route nor are fitted"),
            apply(ours, library, Merge(rule)),
        ):
            pass
    with pytest.raises(RuleError, match="is of kind embedding"):
        fit(ours, both, Merge("lorahub"), [Question("Who?", "He")])


def test_an_embedding_of_another_size_is_refused(held):
    base, folders = held
    read = peft_files.read(folders[0]).only([EMBEDDING])
    name = next(iter(mlp_factors(loaded(base).model, 0)))
    other = AdapterWeights("other", {name: read.modules[EMBEDDING]})
    with (
        pytest.raises(RuleError, match=r"they have to belong to one embedding"),
        apply(loaded(base), [other], Merge("sum")),
    ):
        pass


def test_random_ones_are_of_its_kind_and_size(held, tmp_path):
    base, folders = held
    random_like(folders[0], seed=0, out=tmp_path / "random")
    given, drawn = peft_files.read(folders[0]), peft_files.read(tmp_path / "random")
    assert {n: given.shape(n).kind for n in given.modules} == {n: drawn.shape(n).kind for n in drawn.modules}
    for name in given.modules:
        assert frobenius(drawn.modules[name]) == pytest.approx(frobenius(given.modules[name]), rel=SINGLE)
    ours = loaded(base)
    with apply(ours, [drawn], Merge("sum")):
        wanted = logits(ours.model)
    close(wanted, logits(PeftModel.from_pretrained(loaded(base).model, tmp_path / "random").eval()))
