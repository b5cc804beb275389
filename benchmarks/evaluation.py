"""Asking a language model: `decoding.answers` against plain `generate`, one question at a time and batched.

The same questions, the same greedy answers, float32 on the CPU. Ours sorts by length, prefills what all
prompts begin with once, and lets finished rows leave the batch; `generate` in batches does none of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.case import Array, Case, Side, Work

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

#: Share of answers that may differ: a token whose two largest logits are closer than rounding may flip.
FLIPPED = 0.02


def ours(model: str, decode: str, count: int, most: int, batch: int) -> Work:
    from llm_experiments.asking.decoding import answers

    loaded, questions = prepared(model, decode, count)
    return lambda: codes(answers(loaded, questions, max_new_tokens=most, batch=batch))


def generated(model: str, decode: str, count: int, most: int, batch: int) -> Work:
    import torch

    from llm_experiments.models.prompts import prompt_text

    loaded, questions = prepared(model, decode, count)
    tokenizer = loaded.tokenizer
    generate: Callable[..., torch.Tensor] = loaded.model.generate  # type: ignore[assignment]

    def work() -> Array:
        texts = []
        for start in range(0, count, batch):
            prompts = [prompt_text(loaded, question) for question in questions[start : start + batch]]
            given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
            given = {name: given[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                out = generate(**given, max_new_tokens=most, do_sample=False)
            out = out[:, given["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return codes(text.strip() for text in texts)

    return work


def prepared(model: str, decode: str, count: int) -> tuple[LoadedModel, list[str]]:
    """The model, and two-hop questions of the bridge setup in held-out paraphrases."""
    import torch

    from llm_experiments.domains.two_hop.lexicon import lexicon
    from llm_experiments.domains.two_hop.rendering import question_text
    from llm_experiments.domains.two_hop.templates import TEST
    from llm_experiments.models.load import load
    from toytransformer.compositions.setups import setup

    torch.set_num_threads(1)
    loaded = load(model, dtype="float32", device="cpu")
    composition = setup(0, facts=-(-count // len(TEST)), known=loaded.base_world is not None)
    names = lexicon(composition, dataset="R", seed=0, base_world=loaded.base_world)
    two_hop = [q for q in composition.questions if q.group == "two-hop" and q.decode == decode]
    return loaded, [question_text(question, names, k) for question in two_hop for k in TEST][:count]


def codes(texts: Iterable[str]) -> Array:
    """Each text as a number that a float holds."""
    return np.array([int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) for text in texts], float)


def same_answers(ours: Array, plain: Array) -> tuple[float, float]:
    return float(np.mean(ours != plain)), FLIPPED


def cases(small: bool = False, model: str = "embedded") -> Iterator[Case]:
    """Chains and direct answers against both plain ways; `small` takes a moment."""
    count, batch = (6, 3) if small else (100, 32)
    for decode, most in (("steps", 96), ("direct", 32)):
        for about, size in (("one question at a time", 1), (f"in batches of {batch}", batch)):
            yield Case(
                "answers",
                f"{count} two-hop questions ({decode}), {model}, batches of {batch}; plain generate {about}",
                Side(ours, (model, decode, count, most, batch), repeats=2),
                Side(generated, (model, decode, count, most, size), repeats=1),
                same_answers,
            )
