"""Questions and answers as the batches a training sees: their order, and rows of tokens.

A batch of several adapters puts their rows one adapter after another, as many for each as for the largest;
rows that fill up hold one token and no target. A row is padded on the left, so that every answer ends the row
and the vocabulary is computed on the last positions only. Tokens that all prompts begin with (a chat
template's system message) are kept apart, to be computed once for each adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_experiments.models.prompts import Example, prompt_ids, silent_targets, target_ids

if TYPE_CHECKING:
    from llm_experiments.models.handle import LoadedModel

#: Position without a target, as in transformers.
IGNORED = -100
#: Batches that are sorted by length together: long enough that hardly anything is padding, short enough that
#: the order stays random.
POOL = 32
#: Fewer common tokens than this are not worth a pass of their own.
PREFIX = 8


@dataclass(frozen=True)
class TokenRow:
    """One example in tokens.

    prompt: without the common prefix. silent: places of the answer that are read but are no targets.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    silent: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class TrainingBatch:
    """One step of one or several adapters; R = adapters x rows rows of L tokens, the last K answers.

    tokens, mask: (R, L); mask is 0 on padding. targets: (R, K), IGNORED where a row's answer is shorter
    or silent. lengths: longest row of each adapter, rows: how many it has of its own.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    def to(self, device: torch.device | str) -> TrainingBatch:
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            targets=self.targets.to(device),
        )


def encoded(loaded: LoadedModel, examples: Sequence[Example]) -> list[TokenRow]:
    """Every example (with `question` and `answer`) in the tokens in which evaluation asks it."""
    rows = []
    for one in examples:
        prompt, answer = prompt_ids(loaded, one.question), target_ids(loaded, one.answer)
        rows.append(TokenRow(tuple(prompt), tuple(answer), _silent(loaded, one)))
    return rows


def _silent(loaded: LoadedModel, one: Example) -> tuple[int, ...]:
    spans = getattr(one, "silent", ())
    return tuple(np.flatnonzero(silent_targets(loaded, one.answer, spans)).tolist()) if spans else ()


def common_prefix(loaded: LoadedModel, rows: Sequence[TokenRow]) -> tuple[int, ...]:
    """The tokens that every prompt of this model begins with, empty where they are too few to matter.

    Found from the rows and from two questions with nothing in common, so that it does not depend on what is
    asked. At least one token of every prompt is left behind it.
    """
    prompts = [row.prompt for row in rows] + [tuple(prompt_ids(loaded, question)) for question in ("A", "7")]
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), most)
    length = min(same, most)
    return first[:length] if length >= PREFIX else ()


def without_prefix(rows: Sequence[TokenRow], prefix: tuple[int, ...]) -> list[TokenRow]:
    return [replace(row, prompt=row.prompt[len(prefix) :]) for row in rows]


def order(
    lengths: Sequence[int], batch: int, seed: Sequence[int], *, epochs: int, steps: int | None = None
) -> list[list[int]]:
    """Which examples make up each step: every example once an epoch, rows of like length together.

    Each epoch is shuffled, cut into pools of POOL batches, sorted by length within a pool, and its batches
    are shuffled again. One batch of an epoch may be smaller. steps: cut, or go on for more epochs, to exactly
    so many.
    """
    long, epoch = np.asarray(lengths), 0
    batches: list[list[int]] = []
    while len(batches) < steps if steps is not None else epoch < epochs:
        rng = np.random.default_rng((*seed, epoch))
        shuffled, made = rng.permutation(len(long)), []
        for start in range(0, len(shuffled), POOL * batch):
            pool = shuffled[start : start + POOL * batch]
            pool = pool[np.argsort(long[pool], kind="stable")]
            made += [pool[i : i + batch].tolist() for i in range(0, len(pool), batch)]
        batches += [made[i] for i in rng.permutation(len(made))]
        epoch += 1
    return batches[:steps]


def collated(groups: Sequence[Sequence[TokenRow]], padding: int) -> TrainingBatch:
    """The rows of each adapter as one TrainingBatch."""
    most = max(len(rows) for rows in groups)
    length = max(len(row) for rows in groups for row in rows)
    answers = max(len(row.answer) for rows in groups for row in rows)
    tokens = np.full((len(groups) * most, length), padding)
    mask = np.zeros_like(tokens)
    targets = np.full((len(tokens), answers), IGNORED)
    for group, rows in enumerate(groups):
        for i, row in enumerate(rows, start=group * most):
            tokens[i, length - len(row) :] = row.prompt + row.answer
            mask[i, length - len(row) :] = 1
            targets[i, answers - len(row.answer) :] = row.answer
            targets[i, [answers - len(row.answer) + place for place in row.silent]] = IGNORED
        mask[group * most + len(rows) : (group + 1) * most, -1] = (
            1  # a row of padding sees one token, not none
        )
    return TrainingBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(targets),
        lengths=tuple(max(map(len, rows)) for rows in groups),
        rows=tuple(map(len, groups)),
    )
