"""Greedy answers against `generate`, names read from texts, candidate log-probabilities, statistics."""

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny_models import tiny_llama, tiny_qwen2
from transformers import Qwen2Config, Qwen2ForCausalLM

from llm_experiments.asking import decoding
from llm_experiments.models.load import load as load_model
from llm_experiments.models.prompts import prompt_ids, target_ids
from results import statistics

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
    greedy, written = decoding._greedy, []
    monkeypatch.setattr(decoding, "_greedy", lambda *a: written.append(greedy(*a)) or written[-1])
    long = decoding.answers(loaded, QUESTIONS, max_new_tokens=40, batch=len(QUESTIONS))
    # call the tenth token of most answers an end token: what they say before it remains
    ends = decoding.end_tokens(loaded) | {row[9] for row in written[0][:10] if len(row) > 9}
    monkeypatch.setattr(decoding, "end_tokens", lambda _: ends)
    rows = []
    feed = decoding._feed
    monkeypatch.setattr(decoding, "_feed", lambda *a: rows.append(len(a[2])) or feed(*a))
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
        prefix = decoding._shared_prefix(loaded, prompts)
        assert len(prefix.tokens) > 3
        for start in (prefix, None):
            batched = decoding._start(loaded, start, prompts).logits
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
        assert decoding._shared_prefix(sliding, prompts) is None
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
            ending = len(target_ids(loaded, "")) - len(decoding._begin(loaded, ""))
            answer = target_ids(loaded, start + name)[:-ending]
            given = len(prompt) + len(decoding._split(loaded, start, each)[0])
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
        text = prompt_ids(loaded, QUESTIONS[0]) + decoding._begin(loaded, "Alice Young lives in ((")
        shares = loaded.model(torch.tensor([text])).logits[0, -1].softmax(-1)
    alone = [i for i, letter in enumerate(letters) if decoding._begin(loaded, "((" + letter)[-1] == ids[i]]
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


# --- statistics ---------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from((0.8, 0.95, 0.99)))
def test_wilson_is_scipys(successes, items, confidence):
    successes = min(successes, items)
    theirs = stats.binomtest(successes, items).proportion_ci(confidence, method="wilson")
    assert statistics.wilson(successes, items, confidence) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_wilson_of_a_known_table():
    assert statistics.wilson(4, 102) == pytest.approx((0.0154, 0.0965), abs=5e-5)
    assert statistics.wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=5e-5))
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes <= items"):
            statistics.wilson(*bad)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_a_coin_thrown_once_per_discordant_pair(pairs):
    first, second = zip(*pairs, strict=True)
    found, swapped = statistics.mcnemar_exact(first, second), statistics.mcnemar_exact(second, first)
    assert found.p == pytest.approx(swapped.p)
    assert (found.first, found.second) == (swapped.second, swapped.first)
    assert found.both + found.first + found.second + found.neither == len(pairs)
    n, k = found.first + found.second, min(found.first, found.second)
    by_hand = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert found.p == pytest.approx(by_hand)


def row(prompt="x1 R1 R2", right=1.0, template=48, decode="direct", seed=0, **changes):
    from toytransformer.compositions import Record

    shares = {"correct": right, "bridge": 0.0, "old": 0.0, "edited": 0.0, "other": 1.0 - right}
    fields = {"rule": "sum", "logprobs": None, **changes}
    return Record(
        composition="setup-0",
        setting={},
        spec_hash="0" * 16,
        source="tiny",
        adapters=("hop1", "hop2"),
        weights=None,
        options={},
        regime={"seed": seed, "template": template},
        group="two-hop",
        prompt=prompt,
        decode=decode,
        correct="z1",
        bridge="y1",
        old=None,
        answer=None,
        shares=shares,
        **fields,
    )


def rows(pattern, rule="sum", seed=0):
    """One row a character, "1" is right: triplet by triplet, two templates each."""
    return [
        row(f"x{i // 2 + 1} R1 R2", float(c), 48 + i % 2, seed=seed, rule=rule) for i, c in enumerate(pattern)
    ]


def test_rules_are_compared_item_by_item_and_seed_by_seed():
    first, second = (
        rows("110110") + rows("000011", seed=1),
        rows("100100", "mean") + rows("111111", "mean", 1),
    )
    found = statistics.compare(first, reversed(second))
    assert found[0] == statistics.McNemar(2, 2, 0, 2, 0.5)
    assert found[1] == statistics.McNemar(2, 0, 4, 0, 0.125)


def test_rules_on_different_items_are_not_compared():
    with pytest.raises(
        ValueError, match=r"second rows lack 'x3 R1 R2' \(direct, template 49\) \(1 missing\)"
    ):
        statistics.compare(rows("110110"), rows("11011"))
    with pytest.raises(ValueError, match="first rows lack 'x3 R1 R2'"):
        statistics.compare(rows("1101"), rows("110110"))
    with pytest.raises(ValueError, match="twice"):
        statistics.compare(rows("11") * 2, rows("11"))
    with pytest.raises(ValueError, match="seed 1"):
        statistics.compare(rows("11") + rows("11", seed=1), rows("11"))


def test_the_summary_keeps_seeds_apart_from_items():
    table = [*rows("1100"), *rows("1111", seed=1), *rows("0001", "mean")]
    first, second = statistics.summary(table, by=("rule",))
    assert first["rule"] == "sum" and first["seeds"] == {0: 0.5, 1: 1.0} and first["share"] == 0.75
    assert first["items"] == 4 and first["triplets"] == 2
    assert (first["low"], first["high"]) == statistics.wilson(3, 4)
    assert first["seed_sd"] == pytest.approx(0.5 / math.sqrt(2)) and first["seed_min"] == 0.5
    assert second["share"] == 0.25 and second["seed_sd"] is None
    assert statistics.summary(table, by=("rule", "seed"))[1]["seeds"] == {1: 1.0}
    with pytest.raises(ValueError, match="twice"):
        statistics.summary(table, by=("composition",))
    with pytest.raises(ValueError, match="no row has 'layer'"):
        statistics.summary(table, by=("rule", "layer"))
    with pytest.raises(ValueError, match="cannot be counted"):
        statistics.summary(table, by=("rule",), of="accuracy")
    with pytest.raises(ValueError, match="has no 'exact'"):
        statistics.summary(table, by=("rule",), of="exact")
    exact = [replace(r, exact=i < 3) for i, r in enumerate(rows("0000"))]
    assert statistics.summary(exact, by=("rule",), of="exact")[0]["share"] == 0.75


def test_triplets_are_chains():
    prompts = ("x3 R1", "y3 R2", "x3_14 R1", "bridge_x3 R1", "u3 R1 R2")
    assert [statistics.triplet(row(p)) for p in prompts] == ["3", "3", "3_14", "bridge_3", "3"]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=2, max_size=30), st.integers(0, 3))
def test_the_bootstrap_is_seeded_and_draws_whole_clusters(pairs, seed):
    clusters, values = zip(*pairs, strict=True)
    if len(set(clusters)) < 2:
        return
    ask = {"seed": seed, "draws": 200}
    low, high = statistics.cluster_interval(values, clusters, **ask)
    assert (low, high) == statistics.cluster_interval(values, clusters, **ask)
    assert low <= high
    means = [np.mean([v for v, c in zip(values, clusters, strict=True) if c == k]) for k in set(clusters)]
    assert min(means) - 1e-12 <= low and high <= max(means) + 1e-12
    # the same rows twice in their clusters are no more information
    assert statistics.cluster_interval(values * 2, clusters * 2, **ask) == pytest.approx(
        (low, high), abs=1e-12
    )


def test_the_bootstrap_covers_as_often_as_it_says():
    """Of clusters of two equal items, to five standard errors of the share of hits."""
    rng, hits, runs, clusters = np.random.default_rng(0), 0, 200, 50
    for _ in range(runs):
        values = np.repeat(rng.random(clusters) < 0.4, 2).astype(float)
        low, high = statistics.cluster_interval(values, np.repeat(range(clusters), 2), seed=0, draws=400)
        hits += low <= 0.4 <= high
    assert abs(hits / runs - 0.95) <= 5 * math.sqrt(0.95 * 0.05 / runs)


def test_one_cluster_is_refused():
    with pytest.raises(ValueError, match="needs two"):
        statistics.cluster_interval([0, 1], ["a", "a"], seed=0)


def test_differences_are_resampled_over_triplets():
    low, high = statistics.difference_interval(rows("11001100"), rows("00001100"), seed=1)
    assert low == 0.0 and 0.25 < high <= 0.75
    assert statistics.difference_interval(rows("1010"), rows("1010"), seed=1) == (0.0, 0.0)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == [] and statistics.holm([0.7, 0.9]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"1\.2 is no p-value"):
        statistics.holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_and_bonferronis(p):
    adjusted = statistics.holm(p)
    assert all(
        raw <= a + 1e-15 and a <= min(1, len(p) * raw) + 1e-15 for raw, a in zip(p, adjusted, strict=True)
    )


def scored(matrix, group):
    """Rows whose log-probabilities are a matrix (question, answer), in groups of neighbours."""
    n = len(matrix)
    for i in range(n):
        part = [j for j in range(n) if j // group == i // group]
        labels = {f"{'correct' if j == i else 'shuffled'}:name{j}": float(matrix[i, j]) for j in part}
        for k in (48, 49):
            yield row(f"x{i} R1 R2", template=k, logprobs=labels)


def test_the_shuffled_baseline_by_hand_and_exactly():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    found = statistics.shuffled_baseline(scored(matrix, 3), seed=0, draws=20000)
    blocks = [matrix[:3, :3], matrix[3:, 3:]]
    right = sum(np.trace(block) for block in blocks)
    others = sum(block.sum() for block in blocks) - right
    assert found.difference == pytest.approx(right / 6 - others / 12)
    assert (found.questions, found.groups) == (6, 2)
    from itertools import permutations

    dealt = [
        sum(a[i, s[i]] + b[i, t[i]] for i in range(3))
        for a, b in [blocks]
        for s in permutations(range(3))
        for t in permutations(range(3))
    ]
    exact = np.mean([value >= right - 1e-9 for value in dealt])
    assert found.p == pytest.approx(exact, abs=5 * math.sqrt(0.25 / 20000))


def test_the_shuffled_baseline_sees_what_no_answer_shows_and_not_what_answers_share():
    rng = np.random.default_rng(1)
    noise, liked = rng.normal(size=(20, 20)), 10 * rng.normal(size=(1, 20))
    plain = statistics.shuffled_baseline(scored(noise + liked, 10), seed=0)
    shifted = statistics.shuffled_baseline(scored(noise + liked + 2 * np.eye(20), 10), seed=0)
    assert plain.p > 0.01 and shifted.p < 0.001
    assert shifted.difference - plain.difference == pytest.approx(2)
    right = noise + liked + 2 * np.eye(20)
    assert (right.argmax(1) == range(20)).mean() < 0.5
    with pytest.raises(ValueError, match="shuffled"):
        statistics.shuffled_baseline(rows("11"), seed=0)
