"""Training the adapters of a library: at once on one frozen model, one after another, and as PEFT comes.

The same examples in the same order, batches of 16, the same initial factors, dropout off; every side answers
with the loss of each step of each adapter. "As PEFT comes" is Trainer over PEFT's own layers, rows padded,
logits of all tokens, the prompts' common beginning computed for every row. The models are random, float32, on
the CPU, with one thread, which one batch of 16 keeps busy: what training at once saves there is the overhead
of small operations. A GPU has more to gain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.case import Array, Case, Side, Work

if TYPE_CHECKING:
    import torch

    from llm_experiments.adapters.batches import TokenRow
    from llm_experiments.adapters.recipe import Training
    from llm_experiments.models.handle import LoadedModel

#: Name -> hidden size, MLP size, layers, words the model knows. The first is about the embedded default's.
MODELS = {
    "tiny": (128, 384, 4, 1_000),
    "middling": (512, 1536, 8, 8_000),
    "small": (32, 64, 2, 300),
}


def at_once(model: str, adapters: int, steps: int) -> Work:
    from llm_experiments.adapters.together import train_together

    loaded, sets, recipe = prepared(model, adapters, steps)

    def work() -> Array:
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder, str(k)) for k in range(adapters)]
            return curves(train_together(loaded, sets, recipe, seeds=[0] * adapters, outs=outs))

    return work


def one_by_one(model: str, adapters: int, steps: int) -> Work:
    from llm_experiments.adapters.training import train

    loaded, sets, recipe = prepared(model, adapters, steps)

    def work() -> Array:
        with tempfile.TemporaryDirectory() as folder:
            return curves(
                train(loaded, examples, recipe, seed=0, adapter_index=k, out=Path(folder, str(k)))
                for k, examples in enumerate(sets)
            )

    return work


def as_peft_comes(model: str, adapters: int, steps: int) -> Work:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from llm_experiments.adapters.jobs import TrainingJob
    from llm_experiments.adapters.trainer import optimizer_of

    loaded, sets, recipe = prepared(model, adapters, steps)

    def padded(rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        length = max(map(len, rows))
        ids, mask, labels = (np.full((len(rows), length), fill) for fill in (0, 0, -100))
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row.prompt + row.answer, 1
            labels[i, len(row.prompt) : len(row)] = row.answer
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    class Losses(transformers.TrainerCallback):
        def on_log(
            self,
            args: transformers.TrainingArguments,
            state: transformers.TrainerState,
            control: transformers.TrainerControl,
            logs: Mapping[str, float] | None = None,
            **_: object,
        ) -> None:
            seen[-1] += [logs["loss"]] if logs and "loss" in logs else []

    def trained(examples: Sequence[Example], adapter: int) -> None:
        job = TrainingJob(loaded, examples, recipe, 0, adapter)
        rows = [type(row)(job.prefix + row.prompt, row.answer) for row in job.rows]
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # a number that PEFT divides by r
            target_modules=["gate_proj", "up_proj", "down_proj"],
        )
        peft_model = get_peft_model(loaded.model, config)
        factors = [(name, f) for name, f in peft_model.named_parameters() if f.requires_grad]
        for name, factor in factors:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
            if module != name.removeprefix("base_model.model."):
                factor.data.copy_(job.initial_a(recipe, module, *factor.shape))
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=recipe.batch,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = transformers.Trainer(
                peft_model,
                arguments,
                padded,
                [rows[i] for batch in job.order for i in batch],
                optimizers=optimizer_of([factor for _, factor in factors], recipe, job.steps),
                callbacks=[Losses()],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        peft_model.unload()

    seen: list[list[float]] = []

    def work() -> Array:
        seen.clear()
        for adapter, examples in enumerate(sets):
            seen.append([])
            trained(examples, adapter)
        return np.array(seen)

    return work


def curves(metrics: Iterable[Mapping[str, Any]]) -> Array:
    return np.array([[loss for _, loss in one["loss_curve"]] for one in metrics])


def prepared(name: str, adapters: int, steps: int) -> tuple[LoadedModel, list[list[Example]], Training]:
    """A random model of that size, examples for each adapter, and the recipe."""
    import torch

    from llm_experiments.adapters.training import Training
    from llm_experiments.models.load import load

    torch.set_num_threads(1)
    hidden, inner, layers, words = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), hidden, inner, layers, words)
        loaded = load(folder, dtype="float32", device="cpu")
    rng = np.random.default_rng(0)
    sets = [[example(rng, words) for _ in range(16 * steps)] for _ in range(adapters)]
    return loaded, sets, Training(dropout=0.0, epochs=1, learning_rate=1e-3)


class Example(NamedTuple):
    """What an adapter is trained on."""

    question: str
    answer: str


def example(rng: np.random.Generator, words: int) -> Example:
    """A question of 8 to 16 words and an answer of 6 to 12, as long as those of one hop."""
    question, answer = (rng.integers(words, size=rng.integers(*size)) for size in ((8, 17), (6, 13)))
    return Example(
        question=" ".join(f"w{word}" for word in question), answer=" ".join(f"w{word}" for word in answer)
    )


def write_model(folder: Path, hidden: int, inner: int, layers: int, words: int) -> None:
    """A random Qwen2 and a tokenizer of whole words, with a system message of 20 before every question."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    special = ["<end>", "<unknown>", "<user>", "<answer>"]
    tokens = special + [f"w{word}" for word in range(words)]
    bare = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unknown>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )
    tokenizer.chat_template = (
        " ".join(f"w{word}" for word in range(20))
        + "{% for message in messages %}{{ (' <user> ' if message['role'] == 'user' else '') "
        "+ message['content'] + (' <end>' if message['role'] != 'user' else ' <answer> ') }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
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


def same_losses(ours: Array, plain: Array) -> tuple[float, float]:
    """Roundings of some hundred products in a row, which the steps before let grow."""
    steps = ours.shape[1]
    return float(np.abs(ours - plain).max()), float(20 * steps * np.finfo(np.float32).eps * plain.max())


def cases(small: bool = False) -> Iterator[Case]:
    at_once_or_not = (("small", 2, 3),) if small else (("tiny", 2, 20), ("tiny", 8, 20), ("middling", 4, 5))
    ours_or_pefts = (("small", 1, 3),) if small else (("tiny", 1, 20), ("middling", 1, 5))
    for sizes, about, ours, plain in (
        (at_once_or_not, "at once; plain trains one after another", at_once, one_by_one),
        (ours_or_pefts, "by `train`; plain is Trainer on PEFT's layers", one_by_one, as_peft_comes),
    ):
        for model, adapters, steps in sizes:
            hidden, inner, layers, _ = MODELS[model]
            yield Case(
                "together",
                f"{adapters} adapter(s), {steps} steps of 16 short questions each, model of {layers} layers, "
                f"{hidden} x {inner}, {about}",
                Side(ours, (model, adapters, steps), repeats=3),
                Side(plain, (model, adapters, steps), repeats=3),
                same_losses,
            )
