"""Training the adapters of a library at once on one frozen model, against one after another.

The same examples in the same order, batches of 16, dropout off; both sides go through `llm_experiments`, and
both answer with the loss of every step of every adapter. The models are random, float32, on the CPU, with one
thread; on a GPU, which one small batch leaves idle, the gain is larger.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.cases import Case, Side

#: Name -> hidden size, MLP size, layers, words the model knows. The first is about the embedded default's.
MODELS = {
    "tiny": (128, 384, 4, 1_000),
    "middling": (512, 1536, 8, 8_000),
    "small": (32, 64, 2, 300),
}


def at_once(model: str, adapters: int, steps: int):
    from llm_experiments.lora.together import train_together

    loaded, sets, recipe = prepared(model, adapters, steps)

    def work():
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder, str(k)) for k in range(adapters)]
            return curves(train_together(loaded, sets, recipe, seeds=[0] * adapters, outs=outs))

    return work


def one_by_one(model: str, adapters: int, steps: int):
    from llm_experiments.lora.training import train

    loaded, sets, recipe = prepared(model, adapters, steps)

    def work():
        with tempfile.TemporaryDirectory() as folder:
            return curves(
                train(loaded, examples, recipe, seed=0, adapter_index=k, out=Path(folder, str(k)))
                for k, examples in enumerate(sets)
            )

    return work


def curves(metrics) -> np.ndarray:
    return np.array([[loss for _, loss in one["loss_curve"]] for one in metrics])


def prepared(name: str, adapters: int, steps: int):
    """A random model of that size, examples for each adapter, and the recipe."""
    import torch

    from llm_experiments.loading.models import load
    from llm_experiments.lora.training import Training

    torch.set_num_threads(1)
    hidden, inner, layers, words = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), hidden, inner, layers, words)
        loaded = load(folder, dtype="float32", device="cpu")
    rng = np.random.default_rng(0)
    sets = [[example(rng, words) for _ in range(16 * steps)] for _ in range(adapters)]
    return loaded, sets, Training(dropout=0.0, epochs=1, learning_rate=1e-3)


def example(rng: np.random.Generator, words: int) -> SimpleNamespace:
    """A question of 8 to 16 words and an answer of 6 to 12, as long as those of one hop."""
    question, answer = (rng.integers(words, size=rng.integers(*size)) for size in ((8, 17), (6, 13)))
    return SimpleNamespace(
        question=" ".join(f"w{word}" for word in question), answer=" ".join(f"w{word}" for word in answer)
    )


def write_model(folder: Path, hidden: int, inner: int, layers: int, words: int) -> None:
    """A random Qwen2 and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    special = ["<end>", "<unknown>", "Question", ":", "Answer"]
    tokens = special + [f"w{word}" for word in range(words)]
    bare = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unknown>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokens),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32 or 1,
        num_key_value_heads=hidden // 32 or 1,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=0,
    )
    logging.disable_progress_bar()
    Qwen2ForCausalLM(config).save_pretrained(folder)


def same_losses(ours, plain) -> tuple[float, float]:
    """Roundings of some hundred products in a row, which the steps before let grow."""
    steps = ours.shape[1]
    return float(np.abs(ours - plain).max()), float(200 * steps * np.finfo(np.float32).eps * plain.max())


def cases(small: bool = False) -> Iterator[Case]:
    sizes = (("small", 2, 3),) if small else (("tiny", 2, 20), ("tiny", 8, 20), ("middling", 4, 5))
    for model, adapters, steps in sizes:
        hidden, inner, layers, _ = MODELS[model]
        yield Case(
            "together",
            f"{adapters} adapters at once on one model ({layers} layers, {hidden} x {inner}), {steps} steps "
            "of 16 short questions each; plain trains one after another",
            Side(at_once, (model, adapters, steps), repeats=3),
            Side(one_by_one, (model, adapters, steps), repeats=3),
            same_losses,
        )
