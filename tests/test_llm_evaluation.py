"""Greedy answers against `generate`, and log-probabilities of candidates."""

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama, tiny_qwen2
from transformers import Qwen2Config, Qwen2ForCausalLM

from llm_experiments.asking import batches, decoding
from llm_experiments.models.load import load as load_model
from llm_experiments.models.prompts import prompt_ids, target_ids

EPS = float(np.finfo(np.float32).eps)
MAKERS = {"qwen2": tiny_qwen2, "llama": tiny_llama}
NAMES = ("Alice Young", "Bob Stone", "Carol Lane", "Zint", "the spouse of the mentor of Alice Young")
QUESTIONS = [f"Where does {a} live{b}?" for a, b in product(NAMES, ("", " now", " since Bob Stone left"))]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    @cache
    def loader(kind, chat=None):
        folder = MAKERS[kind](tmp_path_factory.mktemp("model"), chat=chat, seed=3)
        return load_model(str(folder), dtype="float32", device="cpu")

    return loader


MODELS = pytest.mark.parametrize(
    "kind, chat",
    [("qwen2", None), ("qwen2", "system"), ("qwen2", "think"), ("llama", None), ("llama", "chatml")],
)


def rounding(loaded, length, logits):
    """How far two orders of summation may put logits apart: eps times the terms summed along the depth."""
    config = loaded.model.config
    layer = 4 * config.hidden_size + config.intermediate_size + length
    terms = config.num_hidden_layers * layer + config.hidden_size
    return EPS * terms * float(logits.abs().max())


# --- answers ------------------------------------------------------------------------------------------------


def one_by_one(loaded, text, most):
    """The plain greedy answer, and how much its closest decision was decided by."""
    tokens = torch.tensor([prompt_ids(loaded, text)])
    out = loaded.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(decoding.end_tokens(loaded)),
        output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(out.logits).topk(2).values
    tokens = out.sequences[0, tokens.shape[1] :]
    written = loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return written.strip(), float((top[..., 0] - top[..., 1]).min())


@MODELS
def test_answers_are_those_of_generate_one_by_one(load, kind, chat):
    loaded, most = load(kind, chat), 16
    plain = [one_by_one(loaded, text, most) for text in QUESTIONS]
    logits = loaded.model(torch.tensor([prompt_ids(loaded, QUESTIONS[-1])])).logits
    tie = rounding(loaded, 100, logits)
    assert sum(gap > tie for _, gap in plain) >= 0.75 * len(plain)
    for batch, share in ((1, True), (4, True), (len(QUESTIONS), True), (4, False)):
        found = decoding.answers(loaded, QUESTIONS, max_new_tokens=most, batch=batch, share_prefix=share)
        assert len(set(found)) > len(QUESTIONS) // 2
        for mine, (theirs, gap) in zip(found, plain, strict=True):
            assert mine == theirs or gap <= tie


def test_answers_stop_at_the_end_of_turn_and_finished_rows_leave(load, monkeypatch):
    loaded = load("llama", "chatml")
    greedy, written = batches.greedy, []
    monkeypatch.setattr(batches, "greedy", lambda *a: written.append(greedy(*a)) or written[-1])
    long = decoding.answers(loaded, QUESTIONS, max_new_tokens=40, batch=len(QUESTIONS))
    # call the tenth token of most answers an end token: what they say before it remains
    ends = decoding.end_tokens(loaded) | {row[9] for row in written[0][:10] if len(row) > 9}
    monkeypatch.setattr(decoding, "end_tokens", lambda _: ends)
    rows = []
    feed = batches.feed
    monkeypatch.setattr(batches, "feed", lambda *a: rows.append(len(a[2])) or feed(*a))
    short = decoding.answers(loaded, QUESTIONS, max_new_tokens=40, batch=len(QUESTIONS))
    assert any(a != b for a, b in zip(short, long, strict=True))
    for before, now in zip(*written, strict=True):
        cut = next((place for place, token in enumerate(before) if token in ends), len(before))
        assert now == before[:cut]
    assert rows[0] == len(QUESTIONS) > rows[-1] and sorted(rows, reverse=True) == rows


def test_the_end_of_turn_is_what_training_puts_behind_an_answer(load):
    loaded = load("qwen2", "system")
    assert target_ids(loaded, "Paris.")[-1] in decoding.end_tokens(loaded)


@MODELS
def test_the_shared_prefix_gives_the_logits_of_the_whole_prompt(load, kind, chat):
    loaded = load(kind, chat)
    prompts = [prompt_ids(loaded, text) for text in QUESTIONS]
    with torch.no_grad():
        plain = [loaded.model(torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
        prefix = batches.shared_prefix(loaded, prompts)
        assert len(prefix.tokens) > 3
        for start in (prefix, None):
            batched = batches.start(loaded, start, prompts).logits
            for mine, theirs, prompt in zip(batched, plain, prompts, strict=True):
                assert torch.allclose(mine, theirs, rtol=0, atol=rounding(loaded, len(prompt), theirs))


def test_the_prefix_is_computed_under_the_active_merge(load):
    loaded = load("qwen2", "system")
    ask = {"max_new_tokens": 16, "batch": 5}
    base = decoding.answers(loaded, QUESTIONS, **ask)
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(32, 64, generator=generator) / 8
    layer = loaded.model.model.layers[0].mlp.down_proj
    hook = layer.register_forward_hook(lambda _, x, y: y + x[0] @ update.T)
    try:
        merged = decoding.answers(loaded, QUESTIONS, **ask)
        alone = decoding.answers(loaded, QUESTIONS, share_prefix=False, **ask)
    finally:
        hook.remove()
    assert merged == alone
    assert sum(a != b for a, b in zip(base, merged, strict=True)) > len(QUESTIONS) // 2
    assert decoding.answers(loaded, QUESTIONS, **ask) == base


def test_the_models_mode_is_as_before(load):
    loaded = load("llama")
    loaded.model.train()
    seen = []
    hook = loaded.model.register_forward_pre_hook(
        lambda m, _: seen.append((m.training, torch.is_grad_enabled()))
    )
    try:
        decoding.answers(loaded, QUESTIONS[:2], max_new_tokens=2)
        assert loaded.model.training and torch.is_grad_enabled()
    finally:
        hook.remove()
        loaded.model.eval()
    assert set(seen) == {(False, False)}


def test_a_sliding_window_shares_no_prefix_and_answers_all_the_same(load):
    loaded = load("qwen2")
    config = Qwen2Config.from_dict(
        loaded.model.config.to_dict()
        | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "layer_types": None}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sliding = replace(loaded, model=Qwen2ForCausalLM(config).eval())
    prompts = [prompt_ids(loaded, text) for text in QUESTIONS]
    with torch.no_grad():
        assert batches.shared_prefix(sliding, prompts) is None
    found = decoding.answers(sliding, QUESTIONS, max_new_tokens=8, batch=4)
    assert found == [one_by_one(sliding, text, 8)[0] for text in QUESTIONS]


def test_one_question_and_none_can_be_asked(load):
    loaded = load("llama")
    assert decoding.answers(loaded, [], max_new_tokens=3) == []
    assert (
        decoding.answers(loaded, QUESTIONS[:1] * 3, max_new_tokens=3)
        == [one_by_one(loaded, QUESTIONS[0], 3)[0]] * 3
    )


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"max_new_tokens": True}, {"batch": 0}, {"batch": 2.0}]
)
def test_bad_counts_are_named(load, bad):
    with pytest.raises(ValueError, match="use an int >= 1"):
        decoding.answers(load("llama"), QUESTIONS, **{"max_new_tokens": 3, **bad})


# --- log-probabilities --------------------------------------------------------------------------------------


@MODELS
def test_candidate_logprobs_are_those_of_the_sentence_token_by_token(load, kind, chat):
    loaded = load(kind, chat)
    begun = ["Alice Young lives in ", "", "She is in "] * 5
    names = [["Paris", "Bob Stone", "Q", "Parisville"], ["Zint"], ["Rome", "Paris"]] * 5
    found = decoding.candidate_logprobs(loaded, QUESTIONS, begun, names, batch=7)
    apart = decoding.candidate_logprobs(loaded, QUESTIONS, begun, names, batch=1, share_prefix=False)
    for text, start, each, mine, again in zip(QUESTIONS, begun, names, found, apart, strict=True):
        for name, value, other in zip(each, mine, again, strict=True):
            prompt = prompt_ids(loaded, text)
            ending = len(target_ids(loaded, "")) - len(decoding.begun_ids(loaded, ""))
            answer = target_ids(loaded, start + name)[:-ending]
            given = len(prompt) + len(decoding.split_names(loaded, start, each)[0])
            tokens = torch.tensor([prompt + answer])
            with torch.no_grad():
                logits = loaded.model(tokens).logits[0]
            steps = range(given, tokens.shape[1])
            parts = [float(logits[t - 1].log_softmax(-1)[tokens[0, t]]) for t in steps]
            tolerance = 2 * len(parts) * rounding(loaded, tokens.shape[1], logits)
            assert value == pytest.approx(sum(parts), abs=tolerance)
            assert value == pytest.approx(other, abs=tolerance)


def test_every_possible_next_token_has_probability_one_in_all(load):
    loaded = load("llama")
    letters = [chr(code) for code in range(33, 127)]
    ids = loaded.tokenizer.convert_tokens_to_ids(letters)
    (found,) = decoding.candidate_logprobs(loaded, QUESTIONS[:1], ["Alice Young lives in (("], [letters])
    with torch.no_grad():
        text = prompt_ids(loaded, QUESTIONS[0]) + decoding.begun_ids(loaded, "Alice Young lives in ((")
        shares = loaded.model(torch.tensor([text])).logits[0, -1].softmax(-1)
    alone = [i for i, letter in enumerate(letters) if decoding.begun_ids(loaded, "((" + letter)[-1] == ids[i]]
    assert len(alone) > 60
    assert sum(math.exp(found[i]) for i in alone) == pytest.approx(
        float(shares[[ids[i] for i in alone]].sum()), rel=1e-4
    )


@pytest.mark.parametrize("names", [[], ["Paris", " "], "Paris", [""]])
def test_bad_candidates_are_named(load, names):
    with pytest.raises(ValueError, match="give a list of names"):
        decoding.candidate_logprobs(load("llama"), QUESTIONS[:1], ["In "], [names])


def test_lists_of_different_lengths_are_refused(load):
    with pytest.raises(ValueError, match="one of each"):
        decoding.candidate_logprobs(load("llama"), QUESTIONS[:2], ["In "], [["Paris"]])
