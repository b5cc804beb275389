"""Rows that run through a model together, each with its own positions in one cache.

    [ shared prefix | padding | rest of the prompt | what is generated ]

Rotary positions skip the padding, so that a row does not depend on its neighbours but through the rounding of
differently shaped products.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from llm_experiments.models.handle import LoadedModel


@dataclass(frozen=True)
class Prefix:
    """The tokens all prompts begin with, and their keys and values for one row."""

    tokens: tuple[int, ...]
    cache: Cache

    def rows(self, count: int) -> Cache:
        """The cache of `count` rows in shared memory: a DynamicLayer grows by concatenation, not in place."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                layer.keys = layer.keys.expand(count, *layer.keys.shape[1:])
                layer.values = layer.values.expand(count, *layer.values.shape[1:])
        return cache


@dataclass
class Batch:
    """Rows in flight: the logits behind the last token, the cache, its mask and each row's next position."""

    logits: Tensor
    cache: Cache
    mask: Tensor
    position: Tensor

    def select(self, rows: Tensor) -> Batch:
        """These rows, perhaps several times each. The cache is changed in place."""
        self.cache.batch_select_indices(rows)
        return Batch(self.logits[rows], self.cache, self.mask[rows], self.position[rows])


def start(loaded: LoadedModel, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Batch:
    """Run the prompts through the model, padded on the left behind the shared prefix."""
    known = len(prefix.tokens) if prefix else 0
    width = max(len(prompt) for prompt in prompts) - known
    tokens = torch.full((len(prompts), width), _padding(loaded))
    mask = torch.zeros(len(prompts), known + width, dtype=torch.long)
    mask[:, :known] = 1
    for row, prompt in enumerate(prompts):
        rest = prompt[known:]
        tokens[row, width - len(rest) :] = torch.tensor(rest)
        mask[row, known + width - len(rest) :] = 1
    mask = mask.to(loaded.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = loaded.model(
        input_ids=tokens.to(loaded.device),
        attention_mask=mask,
        position_ids=positions[:, known:],
        past_key_values=prefix.rows(len(prompts)) if prefix else None,
        use_cache=True,
        logits_to_keep=1,
    )
    return Batch(out.logits[:, -1].to(loaded.device), out.past_key_values, mask, positions[:, -1:] + 1)


def greedy(loaded: LoadedModel, state: Batch, stops: frozenset[int], most: int) -> list[list[int]]:
    """The tokens each row goes on with, end tokens left out; rows that are done leave the batch in halves."""
    written: list[list[int]] = [[] for _ in range(len(state.logits))]
    rows, done = list(range(len(written))), [False] * len(written)
    for step in range(most):
        chosen = state.logits.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            done[row] = done[row] or token in stops
            if not done[row]:
                written[row].append(token)
        left = [place for place, row in enumerate(rows) if not done[row]]
        if not left or step + 1 == most:
            break
        if 2 * len(left) <= len(rows):
            places = torch.tensor(left, device=loaded.device)
            state, chosen, rows = state.select(places), chosen[places], [rows[place] for place in left]
        state = feed(loaded, state, chosen[:, None])
    return written


def feed(loaded: LoadedModel, state: Batch, tokens: Tensor) -> Batch:
    """One more token for every row."""
    mask = torch.cat([state.mask, torch.ones_like(tokens)], dim=-1)
    out = loaded.model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=state.position,
        past_key_values=state.cache,
        use_cache=True,
    )
    return Batch(out.logits[:, -1].to(loaded.device), out.past_key_values, mask, state.position + 1)


def score(loaded: LoadedModel, prefix: Prefix | None, jobs: Sequence[tuple]) -> list[list[float]]:
    """log p of every tail behind its context; each context is run once for all of its tails."""
    state = start(loaded, prefix, [context for context, _ in jobs])
    owner = torch.tensor([row for row, (_, tails) in enumerate(jobs) for _ in tails], device=loaded.device)
    tails = [tail for _, tails in jobs for tail in tails]
    width = max(len(tail) for tail in tails)
    tokens = torch.full((len(tails), width), _padding(loaded))
    real = torch.zeros(len(tails), width, dtype=torch.long)
    for row, tail in enumerate(tails):
        tokens[row, : len(tail)] = torch.tensor(tail)
        real[row, : len(tail)] = 1
    tokens, real = tokens.to(loaded.device), real.to(loaded.device)
    state = state.select(owner)
    logits = state.logits[:, None]
    if width > 1:  # the last token of a tail is predicted, never read
        out = loaded.model(
            input_ids=tokens[:, :-1],
            attention_mask=torch.cat([state.mask, real[:, :-1]], dim=-1),
            position_ids=state.position + torch.arange(width - 1, device=loaded.device),
            past_key_values=state.cache,
            use_cache=True,
        )
        logits = torch.cat([logits, out.logits.to(loaded.device)], dim=1)
    logits = logits.float()
    gathered = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    sums = torch.where(real.bool(), gathered, 0.0).double().sum(-1).tolist()
    each = iter(sums)
    return [[next(each) for _ in tails] for _, tails in jobs]


def shared_prefix(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> Prefix | None:
    """What all prompts begin with, run once; None where nothing is shared or the cache cannot be.

    A sliding window counts places in the cache, padding included, so such a layer's rows cannot share one.
    """
    if len(prompts) < 2:
        return None
    length = min(len(common(prompts)), min(map(len, prompts)) - 1)
    if length < 1:
        return None
    tokens = tuple(prompts[0][:length])
    out = loaded.model(
        input_ids=torch.tensor([tokens], device=loaded.device), use_cache=True, logits_to_keep=1
    )
    cache = getattr(out, "past_key_values", None)
    if not isinstance(cache, Cache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return Prefix(tokens, cache)


def common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning of all sequences."""
    columns = zip(*sequences, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def _padding(loaded: LoadedModel) -> int:
    """Any token will do, padding is masked."""
    for token in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0
