"""What a causal LM writes and what it gives probability to: greedy answers and the log p of candidates.

All prompts of one call begin alike (the chat template's header, "Answer the following question ..."), so the
keys and values of that prefix are computed once and read by every batch. They are computed in the call, hence
under whatever merge is active.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from llm_experiments.asking import batches
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
    begun: Sequence[str] | None = None,
    turn: Callable[[int], None] = lambda number: None,
) -> list[str]:
    """The greedy answer to each question, in order, up to the end of turn or `max_new_tokens`.

    begun: what each answer begins with, which is part of it. turn: called with 0 before prompts with what is
    begun are read, with 1 before anything is written.

    Greedy means the largest logit at every step: sampling, repetition penalties and whatever else a model's
    generation_config asks for play no part. Prompts are sorted by length into batches padded on the left.

    Errors: DecodingError on counts below 1.
    """
    _check_count(max_new_tokens, "max_new_tokens")
    starts = [begun_ids(loaded, text) for text in begun] if begun else [[] for _ in questions]
    prompts = [
        prompt_ids(loaded, question) + start for question, start in zip(questions, starts, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    written: dict[int, list[int]] = {}
    doing = f"answering {len(prompts)} questions, {batch} at once"
    with quiet(loaded.model), explain_memory(doing, "take a smaller batch"):
        turn(0)
        prefix = batches.shared_prefix(loaded, prompts) if share_prefix else None
        stops = end_tokens(loaded)
        for rows in _chunks(order, batch):
            turn(0)
            started = batches.start(loaded, prefix, [prompts[row] for row in rows])
            turn(1)
            written.update(zip(rows, batches.greedy(loaded, started, stops, max_new_tokens), strict=True))
    return [_text(loaded, starts[row] + written[row]) for row in range(len(prompts))]


def _text(loaded: LoadedModel, tokens: list[int]) -> str:
    text = loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


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
        context, tails = split_names(loaded, begun, names)
        jobs.append((prompt_ids(loaded, question) + context, tails))
    order = sorted(range(len(jobs)), key=lambda job: (len(jobs[job][1]), len(jobs[job][0])))
    scored: dict[int, list[float]] = {}
    doing = f"scoring candidates of {len(jobs)} questions, {batch} rows at once"
    with quiet(loaded.model), explain_memory(doing, "take a smaller batch"):
        prefix = batches.shared_prefix(loaded, [context for context, _ in jobs]) if share_prefix else None
        for rows in _packed(order, [len(tails) for _, tails in jobs], batch):
            scored.update(zip(rows, batches.score(loaded, prefix, [jobs[row] for row in rows]), strict=True))
    return [scored[row] for row in range(len(jobs))]


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end an answer: what training puts behind a target, and the model's own."""
    ends = loaded.model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


# --- text and tokens ----------------------------------------------------------------------------------------


def split_names(loaded: LoadedModel, begun: str, names: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens that the begun answer and begun + name share for every name, and those behind, by name.

    A space before the name belongs to the name's first token in most vocabularies, so the begun answer is
    taken without it.
    """
    whole = [begun_ids(loaded, begun + name) for name in names]
    context = batches.common([begun_ids(loaded, begun.rstrip(" ")), *whole])
    if short := [name for name, tokens in zip(names, whole, strict=True) if len(tokens) <= len(context)]:
        raise DecodingError(f"candidate {short[0]!r} adds no token to {begun!r}: leave it out")
    return context, [tokens[len(context) :] for tokens in whole]


def begun_ids(loaded: LoadedModel, answer: str) -> list[int]:
    """The target's tokens without its end of turn: an answer that may go on."""
    tokens = target_ids(loaded, answer)
    special = set(loaded.tokenizer.all_special_ids)
    last = max((place for place, token in enumerate(tokens) if token in special), default=len(tokens))
    return tokens[:last]


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    _check_count(size, "batch")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _packed(order: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Jobs in order, so many together as have `most` rows, but one at least."""
    _check_count(most, "batch")
    chunk: list[int] = []
    for job in order:
        if chunk and sum(sizes[one] for one in chunk) + sizes[job] > most:
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


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
