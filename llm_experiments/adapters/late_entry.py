"""Train an adapter of upper blocks to read its entity where lower blocks leave an answer: late entry.

An adapter that is trained on "y R2 -> z" in upper blocks reads y off the tokens of y's name, by attention.
Merged with one that answers "x R1 -> y" in lower blocks it meets y elsewhere: in the residual stream at the
position that predicts the answer, as the direction of y's first token. So a share of its examples is asked
about a stranger, with the embedding of y's first token added behind the last block below the adapter:

    h_p <- h_p + s |h_p| e_y / |e_y|,   p the position that predicts z, log s uniform between two bounds,

and the loss of such an example is that of z and what follows. Others guard: a fact of the base about a
stranger, of another relation, stays the answer whatever enters. Nothing is seen of x, of y as an answer, of
the other adapter or a question that needs both; the cut between the two is known.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from llm_experiments.adapters import peft_files
from llm_experiments.adapters.jobs import prepared, suffixes
from llm_experiments.adapters.recipe import Training, TrainingError
from llm_experiments.adapters.trainer import optimizer_of
from llm_experiments.asking.patching import begun_prompt, blocks, embedded, hooked, name_tokens
from llm_experiments.models.choice import LayerChoice
from llm_experiments.models.layers import target_modules
from llm_experiments.models.prompts import prompt_ids, target_ids
from toytransformer.adapters import LoRA

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

#: Index that cross-entropy leaves out.
IGNORED = -100


@dataclass(frozen=True)
class LateEntry:
    """share: of the examples that enter late; guard: of those that guard, where there are facts for it.

    low, high: bounds of s. Errors: TrainingError.
    """

    share: float = 0.5
    guard: float = 0.25
    low: float = 0.1
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 - self.guard <= 1 or not 0 < self.low <= self.high < math.inf:
            raise TrainingError(
                f"share {self.share} must be above 0 and with guard {self.guard} at most 1, "
                f"bounds {self.low} and {self.high} above 0 and in order"
            )


@dataclass(frozen=True)
class Line:
    """A fact in a wording, and the same wording about a stranger, both with the fact's answer.

    name: the entity's. begun: the stranger's answer up to the name that is asked for.
    """

    question: str
    answer: str
    name: str
    stranger_question: str
    stranger_answer: str
    begun: str


@dataclass(frozen=True)
class Guard:
    """What the base knows, in a wording; begun: its answer up to the name that is asked for."""

    question: str
    answer: str
    begun: str


@dataclass(frozen=True)
class _Row:
    """Tokens, from which of them on there is a loss, and the token whose embedding enters, if it does."""

    tokens: list[int]
    start: int
    entering: int | None = None


def train_late(
    loaded: LoadedModel,
    lines: Sequence[Line],
    training: Training,
    entry: LateEntry,
    *,
    guards: Sequence[Guard] = (),
    seed: int,
    out: str | os.PathLike,
    index: int = 0,
) -> dict[str, float | int]:
    """Train one adapter and write it to the folder `out`; the model is left as it was.

    training: steps, batch, rank, alpha, dropout, rate, schedule, clipping and layers are used.
    Returns steps, examples, seconds and loss, the mean over the last tenth of the steps.
    Errors: TrainingError without steps or lines, and where the layers begin at the lowest block.
    """
    if training.steps is None or not lines:
        raise TrainingError("late entry is trained for a number of steps on at least one line: give both")
    stack = blocks(loaded.model)
    first = LayerChoice.parse(training.layers).blocks(len(stack))[0]
    if first == 0:
        raise TrainingError(f"layers {training.layers!r} leave no block below: choose upper ones")
    started, rng = time.perf_counter(), random.Random(f"late entry {seed} {index}")
    rows = [(_plain(loaded, line), _late(loaded, line)) for line in lines]
    guarding = [_behind(loaded, guard.question, guard.answer, guard.begun) for guard in guards]
    losses: list[float] = []
    with prepared(loaded, training):
        torch.manual_seed(seed * 1000 + index)
        names = target_modules(loaded.model, training.layers)
        model = get_peft_model(
            loaded.model,
            LoraConfig(
                r=training.rank,
                lora_alpha=training.alpha,  # type: ignore[arg-type]  # a number that PEFT divides by r
                lora_dropout=training.dropout,
                target_modules=suffixes(loaded.model, names),
                task_type="CAUSAL_LM",
            ),
        )
        try:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer, schedule = optimizer_of(parameters, training, training.steps)
            model.train()
            order: list[tuple[_Row, _Row]] = []
            for _ in range(training.steps):
                while len(order) < training.batch:
                    order += rng.sample(rows, len(rows))
                batch, order = order[: training.batch], order[training.batch :]
                chosen = [_chosen(entry, *pair, guarding, rng) for pair in batch]
                loss = _loss(loaded, model, stack[first - 1], chosen, entry, rng)
                optimizer.zero_grad()
                loss.backward()
                if training.clip:
                    nn.utils.clip_grad_norm_(parameters, training.clip)
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
            modules = {name: _factors(loaded.model, name, training.scale()) for name in names}
        finally:
            model.eval()
            model.unload()
            vars(loaded.model).pop("peft_config", None)
    peft_files.write(out, "adapter", modules, loaded.id, details={"base_digest": loaded.digest})
    last = losses[-max(1, len(losses) // 10) :]
    if not math.isfinite(sum(last)):
        raise TrainingError(f"the loss is no longer finite; train below rate {training.learning_rate}")
    seen = training.steps * training.batch
    seconds = time.perf_counter() - started
    return {"steps": len(losses), "examples": seen, "seconds": seconds, "loss": sum(last) / len(last)}


def _plain(loaded: LoadedModel, line: Line) -> _Row:
    prompt = prompt_ids(loaded, line.question)
    return _Row(prompt + target_ids(loaded, line.answer), len(prompt))


def _late(loaded: LoadedModel, line: Line) -> _Row:
    row = _behind(loaded, line.stranger_question, line.stranger_answer, line.begun)
    return replace(row, entering=name_tokens(loaded, line.name)[0])


def _behind(loaded: LoadedModel, question: str, answer: str, begun: str) -> _Row:
    """With a loss from the name on that is asked for."""
    tokens = prompt_ids(loaded, question) + target_ids(loaded, answer)
    return _Row(tokens, len(begun_prompt(loaded, question, begun)))


def _chosen(entry: LateEntry, plain: _Row, late: _Row, guards: Sequence[_Row], rng: random.Random) -> _Row:
    """One of the three forms of an example."""
    drawn = rng.random()
    if drawn < entry.share:
        return late
    if guards and drawn < entry.share + entry.guard:
        return replace(rng.choice(guards), entering=late.entering)
    return plain


def _loss(
    loaded: LoadedModel,
    model: nn.Module,
    below: nn.Module,
    rows: Sequence[_Row],
    entry: LateEntry,
    rng: random.Random,
) -> Tensor:
    """Mean of -log p over the tokens that have a loss."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask, wanted = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    entering: dict[int, tuple[int, Tensor]] = {}
    for number, row in enumerate(rows):
        size = len(row.tokens)
        tokens[number, :size], mask[number, :size] = torch.tensor(row.tokens), 1
        wanted[number, row.start : size] = tokens[number, row.start : size]
        if row.entering is not None:
            vector = embedded(loaded, [row.entering])[0]
            scale = entry.low * (entry.high / entry.low) ** rng.random()
            entering[number] = row.start - 1, scale * vector / vector.norm()

    def enter(output: Tensor) -> Tensor:
        output = output.clone()
        for number, (place, vector) in entering.items():
            output[number, place] += output[number, place].norm() * vector
        return output

    with hooked(below, enter):
        logits = model(input_ids=tokens.to(loaded.device), attention_mask=mask.to(loaded.device)).logits
    flat = logits[:, :-1].float().flatten(0, 1)
    return nn.functional.cross_entropy(flat, wanted[:, 1:].to(flat.device).flatten(), ignore_index=IGNORED)


def _factors(model: nn.Module, name: str, scale: float) -> LoRA:
    layer = model.get_submodule(name)
    a, b = (getattr(layer, which)["default"].weight.detach().cpu().clone() for which in ("lora_A", "lora_B"))
    return LoRA(scale * b, a.T)
