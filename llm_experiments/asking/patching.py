"""Activations of one question put into another's residual stream, between two blocks of a model.

A question is run with its answer begun, up to the name that is asked for. What a block puts out is replaced
at chosen positions, and the answer is written on greedily with the same replacement at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_experiments.asking.decoding import begun_ids, end_tokens, quiet
from llm_experiments.models.handle import LoadedModel, embedding
from llm_experiments.models.prompts import prompt_ids


class PatchingError(ValueError):
    """What cannot be patched; the message names the value, what is allowed and what to do."""


def begun_prompt(loaded: LoadedModel, question: str, begun: str) -> list[int]:
    """The tokens of a question and of its answer up to, and without, the space before a name."""
    return prompt_ids(loaded, question) + begun_ids(loaded, begun.rstrip(" "))


def name_tokens(loaded: LoadedModel, name: str) -> list[int]:
    """A name's tokens behind a word and a space."""
    head = begun_ids(loaded, "is")
    whole = begun_ids(loaded, f"is {name}")
    if whole[: len(head)] != head or len(whole) == len(head):
        raise PatchingError(f"the tokens of the name {name!r} cannot be told from what stands before it")
    return whole[len(head) :]


def mentions(tokens: Sequence[int], name: Sequence[int]) -> list[int]:
    """Where a name's tokens begin among these, in order."""
    size = len(name)
    return [place for place in range(len(tokens) - size + 1) if list(tokens[place : place + size]) == [*name]]


def blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks: the longest list of modules. Errors: PatchingError where a model has none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise PatchingError(
            f"{type(model).__name__} has no list of blocks: patch a decoder of a stack of them"
        )
    return max(lists, key=len)


@contextmanager
def hooked(block: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it the block puts out `change` of its output, (row, token, width)."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return change(output[0]), *output[1:]
        return change(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def residual(loaded: LoadedModel, tokens: Sequence[int], after: int) -> Tensor:
    """What block `after` puts out for these tokens, (token, width)."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.detach().clone())
        return output

    with quiet(loaded.model), hooked(blocks(loaded.model)[after], keep):
        loaded.model(input_ids=torch.tensor([list(tokens)], device=loaded.device), use_cache=False)
    return kept[0][0]


def written(
    loaded: LoadedModel, tokens: Sequence[int], after: int, values: Mapping[int, Tensor], most: int
) -> list[int]:
    """The tokens that follow greedily, up to an end token or `most`, without it.

    values: what replaces the output of block `after`, by position. Every token is computed from the whole
    sequence, without a cache, so that a position is what it is told to be at every step.
    """
    stops, sequence = end_tokens(loaded), list(tokens)
    if wrong := [place for place in values if not 0 <= place < len(sequence)]:
        raise PatchingError(f"position {wrong[0]} is none of the {len(sequence)} tokens: use 0 and above")

    def change(output: Tensor) -> Tensor:
        output = output.clone()
        for place, value in values.items():
            output[0, place] = value.to(output)
        return output

    with quiet(loaded.model), hooked(blocks(loaded.model)[after], change):
        for _ in range(most):
            out = loaded.model(input_ids=torch.tensor([sequence], device=loaded.device), use_cache=False)
            token = int(out.logits[0, -1].argmax())
            if token in stops:
                break
            sequence.append(token)
    return sequence[len(tokens) :]


def embedded(loaded: LoadedModel, name: Sequence[int]) -> Tensor:
    """The input embeddings of a name's tokens, (token, width)."""
    return embedding(loaded.model)[torch.tensor(list(name), device=loaded.device)].detach()
