"""The loss that merges are fitted on: mean -log p of the answers' tokens under the frozen model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch

from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import Example, prompt_ids, target_ids

#: The tokens of a prompt and those of its answer.
Tokens: TypeAlias = tuple[list[int], list[int]]


def encoded(loaded: LoadedModel, example: Example) -> Tokens:
    """The example in the model's tokens."""
    return prompt_ids(loaded, example.question), target_ids(loaded, example.answer)


#: A sum over tokens that is made small, and how many tokens there are.
Objective: TypeAlias = Callable[[LoadedModel, Sequence[Tokens]], tuple[torch.Tensor, int]]


def mean_loss(
    loaded: LoadedModel, rows: Sequence[Tokens], batch: int, objective: Objective | None = None
) -> float:
    """Mean -log p of the answers' tokens, in nats, over all rows; or the mean of another objective."""
    summed = objective or summed_loss
    with torch.no_grad():
        sums = [summed(loaded, rows[first : first + batch]) for first in range(0, len(rows), batch)]
    return sum(float(loss) for loss, _ in sums) / sum(tokens for _, tokens in sums)


def summed_loss(loaded: LoadedModel, rows: Sequence[Tokens]) -> tuple[torch.Tensor, int]:
    """Sum of -log p over the answers' tokens, and their number; only their logits are computed."""
    logits, right = answer_logits(loaded, rows)
    return torch.nn.functional.cross_entropy(logits, right, reduction="sum"), len(right)


def summed_entropy(loaded: LoadedModel, rows: Sequence[Tokens]) -> tuple[torch.Tensor, int]:
    """Sum over the prompts of -sum_t p_t log p_t, p of the token that comes next, and their number.

    What is answered is not looked at, only that something is: rows need no labels.
    """
    logits, there = answer_logits(loaded, [(prompt, answer[:1]) for prompt, answer in rows])
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(), len(there)


def answer_logits(loaded: LoadedModel, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits before the tokens of the answers, (token, vocabulary) in float32; which token is right."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    kept = length - min(len(prompt) for prompt, _ in rows) + 1
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor([*prompt, *answer])
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    logits = loaded.model(
        input_ids=ids.to(loaded.device),
        attention_mask=mask.to(loaded.device),
        use_cache=False,
        logits_to_keep=kept,
    ).logits
    labels = labels[:, -kept:][:, 1:].to(logits.device)
    there = labels >= 0
    return logits[:, :-1][there].float(), labels[there]


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights, for a while."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
