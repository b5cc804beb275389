"""Adapters that take turns, against a loop without a cache that gives every position its adapter anew."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_qwen2

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.asking.decoding import answers, begun_ids, end_tokens
from llm_experiments.asking.evaluation import texts, texts_in_turn
from llm_experiments.merges import staged
from llm_experiments.merges.merging import apply
from llm_experiments.models.layers import linear_shape, target_modules
from llm_experiments.models.load import load
from llm_experiments.models.prompts import prompt_ids
from results.rows import Item
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError

QUESTIONS = ["Who is the spouse of Alice Young?", "Where does Bob Stone live?", "Who is Carol?"]
LENGTH = 12


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny_qwen2(tmp_path_factory.mktemp("model"), chat="chatml", seed=7)
    return load(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def library(loaded):
    rng = torch.Generator().manual_seed(1)
    layers = target_modules(loaded.model, "mlp")
    shapes = {name: linear_shape(loaded.model.get_submodule(name)) for name in layers}

    def drawn(shape):
        return LoRA(*(torch.randn(width, 2, generator=rng) * 0.5 for width in shape))

    one, two = ({name: drawn(shape) for name, shape in shapes.items()} for _ in range(2))
    two.pop(layers[0])  # an adapter need not change every layer
    return [AdapterWeights("one", one), AdapterWeights("two", two)]


def by_position(loaded, library, prompt, begun):
    """Greedy tokens, the whole sequence anew for each: up to the begun answer's end adapter one, then two."""
    edge, tokens = len(prompt) + len(begun), [*prompt, *begun]
    hooks = []
    for number, adapter in enumerate(library):
        for name, lora in adapter.modules.items():

            def hook(_, inputs, output, lora=lora, number=number):
                own = (torch.arange(inputs[0].shape[1]) >= edge) == bool(number)
                return output + own[None, :, None] * (inputs[0] @ lora.read @ lora.write.T)

            hooks.append(loaded.model.get_submodule(name).register_forward_hook(hook))
    stops, said = end_tokens(loaded), list(begun)
    with torch.no_grad():
        while len(said) - len(begun) < LENGTH:
            token = int(loaded.model(torch.tensor([tokens])).logits[0, -1].argmax())
            if token in stops:
                break
            tokens.append(token)
            said.append(token)
    for hook in hooks:
        hook.remove()
    return loaded.tokenizer.decode(said, skip_special_tokens=True).strip()


def test_answers_go_on_with_the_next_adapter_and_keep_what_the_first_has_read(loaded, library):
    begun = ["First, he is", "She", ""]
    with staged.apply(loaded, library) as stage:
        found = answers(loaded, QUESTIONS, max_new_tokens=LENGTH, begun=begun, turn=stage.turn, batch=2)
    pairs = [(prompt_ids(loaded, q), begun_ids(loaded, b)) for q, b in zip(QUESTIONS, begun, strict=True)]
    assert found == [by_position(loaded, library, *pair) for pair in pairs]
    with apply(loaded, library, Merge("sum")):
        assert answers(loaded, QUESTIONS, max_new_tokens=LENGTH, begun=begun) != found
    assert all(text.startswith(b) for text, b in zip(found, begun, strict=True))


def test_an_answer_without_the_marker_is_the_first_adapters(loaded, library):
    items = [Item(f"i{n}", "c", "g", "steps", question) for n, question in enumerate(QUESTIONS)]
    with apply(loaded, library[:1], Merge("sum")):
        alone = texts(loaded, items)
    marker = alone[0][3:5]
    with staged.apply(loaded, library) as stage:
        written = texts_in_turn(loaded, items, marker, stage.turn)
        assert texts_in_turn(loaded, items, "no such marker", stage.turn) == alone
    for text, before in zip(written, alone, strict=True):
        start, found, _ = before.partition(marker)
        assert text.startswith(start + found) if found else text == before
    assert written[0] != alone[0]
    assert not loaded.model.get_submodule(next(iter(library[0].modules)))._forward_hooks


def test_one_adapter_cannot_take_turns(loaded, library):
    with pytest.raises(RuleError, match="two at least"), staged.apply(loaded, library[:1]):
        pass
