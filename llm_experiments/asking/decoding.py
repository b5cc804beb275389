"""What a causal LM writes and what it gives probability to: greedy answers and the log p of candidates.

All prompts of one call begin alike (the chat template's header, "Answer the following question ..."), so the
keys and values of that prefix are computed once and read by every batch. They are computed in the call, hence
under whatever merge is active. A batch is

    [ shared prefix | padding | rest of the prompt | what is generated ]

with rotary positions that skip the padding, so that a row does not depend on its neighbours but through the
rounding of differently shaped products.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from llm_experiments.models.devices import explain_memory
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import prompt_ids, target_ids


class DecodingError(ValueError):
    """Something a model cannot be asked; the message names the value, what is allowed and what to do."""


def answers(
    loaded: LoadedModel,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    batch: int = 32,
    share_prefix: bool = True,
) -> list[str]:
    """The greedy answer to each question, in order, up to the end of turn or `max_new_tokens`.

    Greedy means the largest logit at every step: sampling, repetition penalties and whatever else a model's
    generation_config asks for play no part. Prompts are sorted by length into batches padded on the left.

    Errors: DecodingError on counts below 1.
    """
    _check_count(max_new_tokens, "max_new_tokens")
    prompts = [prompt_ids(loaded, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    written: dict[int, list[int]] = {}
    doing = f"answering {len(prompts)} questions, {batch} at once"
    with quiet(loaded.model), explain_memory(doing, "take a smaller batch"):
        prefix = _shared_prefix(loaded, prompts) if share_prefix else None
        stops = end_tokens(loaded)
        for rows in _chunks(order, batch):
            started = _start(loaded, prefix, [prompts[row] for row in rows])
            written.update(zip(rows, _greedy(loaded, started, stops, max_new_tokens), strict=True))
    decode = loaded.tokenizer.decode
    return [
        decode(written[row], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        for row in range(len(prompts))
    ]


def candidate_logprobs(
    loaded: LoadedModel,
    questions: Sequence[str],
    answer_prefixes: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    batch: int = 32,
    share_prefix: bool = True,
) -> list[list[float]]:
    """log p(candidate | question, answer begun with its prefix), in nats, for every candidate.

    The sum over the tokens of prefix + candidate behind those that all candidates of the question
    and the prefix share; it does not include how the sentence goes on. `batch` counts (question, candidate)
    rows. Errors: DecodingError on lists of different lengths, no candidates or an empty one.
    """
    if not len(questions) == len(answer_prefixes) == len(candidates):
        raise DecodingError(
            f"{len(questions)} questions, {len(answer_prefixes)} answer prefixes and {len(candidates)} lists "
            "of candidates: give one of each for every question"
        )
    jobs = []
    for question, begun, names in zip(questions, answer_prefixes, candidates, strict=True):
        if isinstance(names, str) or not names or not all(name.strip() for name in names):
            raise DecodingError(f"candidates {names!r} of {question!r}: give a list of names")
        context, tails = _split(loaded, begun, names)
        jobs.append((prompt_ids(loaded, question) + context, tails))
    order = sorted(range(len(jobs)), key=lambda job: (len(jobs[job][1]), len(jobs[job][0])))
    scored: dict[int, list[float]] = {}
    doing = f"scoring candidates of {len(jobs)} questions, {batch} rows at once"
    with quiet(loaded.model), explain_memory(doing, "take a smaller batch"):
        prefix = _shared_prefix(loaded, [context for context, _ in jobs]) if share_prefix else None
        most = max((len(tails) for _, tails in jobs), default=1)
        _check_count(batch, "batch")
        for rows in _chunks(order, max(1, batch // most)):
            scored.update(zip(rows, _score(loaded, prefix, [jobs[row] for row in rows]), strict=True))
    return [scored[row] for row in range(len(jobs))]


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end an answer: what training puts behind a target, and the model's own."""
    ends = loaded.model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


# --- batches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prefix:
    """The tokens all prompts begin with, and their keys and values for one row."""

    tokens: tuple[int, ...]
    cache: Cache

    def rows(self, count: int) -> Cache:
        """The cache of `count` rows in shared memory: a DynamicLayer grows by concatenation, not in place."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(count, *layer.keys.shape[1:])
            layer.values = layer.values.expand(count, *layer.values.shape[1:])
        return cache


@dataclass
class _Batch:
    """Rows in flight: the logits behind the last token, the cache, its mask and each row's next position."""

    logits: Tensor
    cache: Cache
    mask: Tensor
    position: Tensor

    def select(self, rows: Tensor) -> _Batch:
        """These rows, perhaps several times each. The cache is changed in place."""
        self.cache.batch_select_indices(rows)
        return _Batch(self.logits[rows], self.cache, self.mask[rows], self.position[rows])


def _start(loaded: LoadedModel, prefix: _Prefix | None, prompts: Sequence[Sequence[int]]) -> _Batch:
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
    return _Batch(out.logits[:, -1].to(loaded.device), out.past_key_values, mask, positions[:, -1:] + 1)


def _greedy(loaded: LoadedModel, state: _Batch, stops: frozenset[int], most: int) -> list[list[int]]:
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
        state = _feed(loaded, state, chosen[:, None])
    return written


def _feed(loaded: LoadedModel, state: _Batch, tokens: Tensor) -> _Batch:
    """One more token for every row."""
    mask = torch.cat([state.mask, torch.ones_like(tokens)], dim=-1)
    out = loaded.model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=state.position,
        past_key_values=state.cache,
        use_cache=True,
    )
    return _Batch(out.logits[:, -1].to(loaded.device), out.past_key_values, mask, state.position + 1)


def _score(loaded: LoadedModel, prefix: _Prefix | None, jobs: Sequence[tuple]) -> list[list[float]]:
    """log p of every tail behind its context; each context is run once for all of its tails."""
    state = _start(loaded, prefix, [context for context, _ in jobs])
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


def _shared_prefix(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> _Prefix | None:
    """What all prompts begin with, run once; None where nothing is shared or the cache cannot be.

    A sliding window counts places in the cache, padding included, so such a layer's rows cannot share one.
    """
    if len(prompts) < 2:
        return None
    length = min(len(_common(prompts)), min(map(len, prompts)) - 1)
    if length < 1:
        return None
    tokens = tuple(prompts[0][:length])
    out = loaded.model(
        input_ids=torch.tensor([tokens], device=loaded.device), use_cache=True, logits_to_keep=1
    )
    cache = getattr(out, "past_key_values", None)
    if not isinstance(cache, Cache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return _Prefix(tokens, cache)


# --- text and tokens ----------------------------------------------------------------------------------------


def _split(loaded: LoadedModel, begun: str, names: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens that the begun answer and begun + name share for every name, and those behind, by name.

    A space before the name belongs to the name's first token in most vocabularies, so the begun answer is
    taken without it.
    """
    whole = [_begin(loaded, begun + name) for name in names]
    context = _common([_begin(loaded, begun.rstrip(" ")), *whole])
    if short := [name for name, tokens in zip(names, whole, strict=True) if len(tokens) <= len(context)]:
        raise DecodingError(f"candidate {short[0]!r} adds no token to {begun!r}: leave it out")
    return context, [tokens[len(context) :] for tokens in whole]


def _begin(loaded: LoadedModel, answer: str) -> list[int]:
    """The target's tokens without its end of turn: an answer that may go on."""
    tokens = target_ids(loaded, answer)
    special = set(loaded.tokenizer.all_special_ids)
    last = max((place for place, token in enumerate(tokens) if token in special), default=len(tokens))
    return tokens[:last]


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning of all sequences."""
    columns = zip(*sequences, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def _padding(loaded: LoadedModel) -> int:
    """Any token will do, padding is masked."""
    for token in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    _check_count(size, "batch")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _check_count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DecodingError(f"{what} is {value!r}: use an int >= 1")


@contextlib.contextmanager
def quiet(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; the model's mode is as before behind it.

    no_grad and not inference_mode: what hooks keep from here may later be trained through.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
