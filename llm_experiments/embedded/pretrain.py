"""Pretrains the embedded model, a small Qwen2, on the world of `corpus`.

Everything follows from the seed: names, facts, tokenizer, examples, initial weights. Answers only are scored.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from llm_experiments.domains.two_hop import names
from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.templates import COMPOSED, COUNT, SIGNATURES, templates
from llm_experiments.embedded.corpus import MIXTURE, ONE_HOP, BaseWorld, Sample, build_world, samples
from llm_experiments.embedded.measure import measure, write_card
from llm_experiments.models.load import load

QUESTION, ANSWER, END, PAD = "<q>", "<a>", "<end>", "<pad>"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    + ANSWER
    + "{{ m['content'] }}"
    + END
    + "{% else %}"
    + QUESTION
    + "{{ m['content'] }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}"
    + ANSWER
    + "{% endif %}"
)
ARCHITECTURE: dict[str, Any] = {  # arguments of Qwen2Config
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "initializer_range": 0.06,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
PEOPLE, PLACES = 240, 120
PLURALS = {"person": "people", "place": "places"}


Row = tuple[list[int], list[int]]
"""Token ids and labels."""


class PretrainError(ValueError):
    """A pretraining that cannot start; the message says what to change."""


def build_tokenizer(world: BaseWorld, invented: Iterable[str]) -> PreTrainedTokenizerFast:
    """Reads any text: words of templates and world are one token, invented names two, the rest bytes.

    An invented name is cut behind its first vowel ("Da" + "lmir"), as a person's name is behind the first
    name, so that every person is two tokens: names cut by byte-pair merges, into two to four syllables that
    many share, were copied with their syllables mixed up. Of several readings (Unigram) the best counts.
    """
    relations = [(relation,) for relation in SIGNATURES] + list(COMPOSED)
    sentences = [text for r in relations for t in templates(r) for text in (t.ask(""), t.tell("", ""))]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = [
        word
        for text in (*sentences, *world.people, *world.places)
        for word, _ in splitter.pre_tokenize_str(text)
    ]
    halves = {half for name in invented for half in split_name(name)}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    scores = dict.fromkeys(letters, -10.0) | dict.fromkeys(sorted(halves), -2.0) | dict.fromkeys(words, -1.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items())))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END, QUESTION, ANSWER])
    form = (STEP_BY_STEP.rstrip(), FIRST.rstrip(), f" {SECOND.rstrip()}", f" {THEREFORE.rstrip()}")
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in form])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def split_name(name: str) -> tuple[str, str]:
    """The tokens of an invented name: a space and what ends with the first vowel, then the rest."""
    cut = next(i for i, letter in enumerate(name) if letter in "aeiou") + 1
    return f"Ġ{name[:cut]}", name[cut:]


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Sample]) -> list[Row]:
    """Token ids of each sample, <q> question <a> answer <end>, and labels, -100 on what is not scored."""
    question, answer, end = (cast(int, tokenizer.convert_tokens_to_ids(t)) for t in (QUESTION, ANSWER, END))
    questions = tokenizer([s.question for s in batch])["input_ids"]
    answers = tokenizer([s.answer for s in batch], return_offsets_mapping=True)
    rows = []
    for sample, q, a, offsets in zip(
        batch, questions, answers["input_ids"], answers["offset_mapping"], strict=True
    ):
        labels = [
            -100 if any(start < right and stop > left for left, right in sample.unscored) else token
            for token, (start, stop) in zip(a, offsets, strict=True)
        ]
        rows.append(([question, *q, answer, *a, end], [-100] * (len(q) + 2) + labels + [end]))
    return rows


def batches(rows: Sequence[Row], tokens: int, rng: random.Random) -> list[list[int]]:
    """Row numbers grouped into batches of about `tokens` tokens, padding counted, in random order.

    Rows of a batch have the same length, rounded up to a multiple of 4: few shapes are quicker to compute.
    """
    widths: dict[int, list[int]] = {}
    for number in rng.sample(range(len(rows)), len(rows)):
        widths.setdefault(padded(len(rows[number][0])), []).append(number)
    groups = []
    for width, numbers in sorted(widths.items()):
        size = max(1, tokens // width)
        groups += [numbers[i : i + size] for i in range(0, len(numbers), size)]
    rng.shuffle(groups)
    return groups


def padded(length: int) -> int:
    return -(-length // 4) * 4


class Batches(torch.utils.data.Dataset):
    """Ready batches, padded on the right."""

    def __init__(self, rows: Sequence[Row], groups: Sequence[Sequence[int]]):
        self.rows, self.groups = rows, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        rows = [self.rows[i] for i in self.groups[number]]
        width = padded(max(len(ids) for ids, _ in rows))
        return {
            "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        }


class Progress(TrainerCallback):
    """Says how far the training is."""

    def __init__(self, log: Callable[[str], None]):
        self.log, self.started = log, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs and "loss" in logs:
            seconds = time.monotonic() - self.started
            loss = float(logs["loss"])
            self.log(f"step {state.global_step} of {state.max_steps}, loss {loss:.3f}, {seconds:.0f} s")


class AnswerTrainer(Trainer):
    """Computes logits where an answer token is scored only: most positions are questions or padding.

    Padding is on the right and attention is causal, so no mask is needed.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert isinstance(model, Qwen2ForCausalLM)
        labels = inputs["labels"][:, 1:]
        scored = labels != -100
        hidden = model.model(input_ids=inputs["input_ids"]).last_hidden_state[:, :-1][scored]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), labels[scored])
        return (loss, {}) if return_outputs else loss


def invented_names(seed: int) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Invented people and places to train on, and the tenth of them that is kept for the measurement.

    None of them is ever a name of a dataset.
    """
    pools = {
        kind: names.pool(f"invented {plural}", seed, part="pretraining") for kind, plural in PLURALS.items()
    }
    cut = {kind: len(pool) * 9 // 10 for kind, pool in pools.items()}
    return (
        {kind: pool[: cut[kind]] for kind, pool in pools.items()},
        {kind: pool[cut[kind] :] for kind, pool in pools.items()},
    )


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    examples: int = 220_000,
    batch_tokens: int = 1536,
    learning_rate: float = 3e-3,
    chains: bool = True,
    questions: int = 300,
    log: Callable[[str], None] = print,
) -> Path:
    """Trains from nothing, measures, and writes everything that `load("embedded")` needs.

    out: a new folder, complete or not there. examples: how many, each seen once. batch_tokens: of a step.
    chains: whether anything in the form of a chain of thought is shown; if not, nobody is `chained`.
    questions: at most so many for each ability on the model's card.
    """
    out = Path(out)
    if out.exists():
        raise PretrainError(f"{out} exists: name a new folder or remove it")
    invented, kept = invented_names(seed)
    world = build_world(names.draw("real people", PEOPLE, seed), names.real_cities()[:PLACES], seed=seed)
    if not chains:
        world = replace(world, chained=frozenset())
    mixture = MIXTURE if chains else ONE_HOP
    tokenizer = build_tokenizer(world, (name for pool in invented.values() for name in pool))
    fact_counts: Counter[tuple[str, str]] = Counter()
    stream = samples(
        world,
        invented,
        templates=range(COUNT),
        count=examples,
        seed=seed,
        mixture=mixture,
        fact_counts=fact_counts,
    )
    rows = [row for chunk in chunks(stream, 10_000) for row in encode(tokenizer, chunk)]
    data = Batches(rows, batches(rows, batch_tokens, random.Random(seed)))
    log(
        f"{len(world.facts)} facts about {len(world.people)} people; {examples} examples, "
        f"{sum(len(ids) for ids, _ in rows)} tokens in {len(data)} batches"
    )
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ARCHITECTURE,
    )
    # On a CPU the fused attention is slow backwards in bfloat16: it took half of a step.
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="eager")
    log(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as partial:
        folder = Path(partial) / out.name
        arguments = TrainingArguments(
            output_dir=partial,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, len(data) // 4),
            weight_decay=0.01,
            adam_beta2=0.98,
            bf16=True,
            use_cpu=True,
            seed=seed,
            logging_steps=max(1, len(data) // 40),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = AnswerTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=lambda batch: batch[0],
            callbacks=[Progress(log)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        replace(world, exposures=dict(fact_counts)).write(folder / "world.json")
        write_card(folder, measure(load(str(folder)), kept, count=questions, seed=seed))
        os.replace(folder, out)
    return out


def chunks(items: Iterable[Sample], size: int) -> Iterable[list[Sample]]:
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def main(out: str | Path, seed: int = 0, **settings: Any) -> Path:
    """What `python -m llm_experiments pretrain` runs; `settings` are those of `pretrain`."""
    return pretrain(Path(out), seed=seed, **settings)
