"""Items put to a language model, its answers read by the task's scorer: one Row for each.

What is merged is whatever hooks are active on the model while these functions run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llm_experiments.asking.decoding import answers, candidate_logprobs
from llm_experiments.asking.gates import ANSWER, PROMPT_END, Begun, gates
from llm_experiments.domains.task import Candidates, TaskError
from llm_experiments.merges.merging import AppliedMerge
from llm_experiments.models.handle import LoadedModel
from llm_experiments.models.prompts import target_ids
from llm_experiments.scoring import Scorer, StepScorer
from llm_experiments.scoring.words import spoken, words
from results.rows import Item, Row

__all__ = [
    "OwnTask",
    "answers",
    "ask",
    "base_answers",
    "budget",
    "candidate_logprobs",
    "own_task",
    "texts",
    "texts_in_turn",
]


def texts(
    loaded: LoadedModel, items: Sequence[Item], *, max_new_tokens: int | None = None, batch: int = 32
) -> list[str]:
    """The greedy answer to each item, in order.

    Items of one way of asking run together: they begin and end alike. max_new_tokens: None for half as much
    again as the longest target of that way, and 8 more; 64 where nothing is right. batch: rows run at once.
    """
    written = [""] * len(items)
    for way in dict.fromkeys(item.ask for item in items):
        rows = [row for row, item in enumerate(items) if item.ask == way]
        most = max_new_tokens or budget(loaded, [items[row].target for row in rows])
        questions = [items[row].question for row in rows]
        said = answers(loaded, questions, max_new_tokens=most, batch=batch)
        for row, text in zip(rows, said, strict=True):
            written[row] = text
    return written


def texts_in_turn(
    loaded: LoadedModel, items: Sequence[Item], marker: str, turn: Callable[[int], None]
) -> list[str]:
    """The greedy answers; from behind the marker's first place on, written when it is the next one's turn.

    turn: says whose turn it is, 0 up to the marker, 1 behind it.
    """
    turn(0)
    first = texts(loaded, items)
    rows = [row for row, text in enumerate(first) if marker in text]
    said = answers(
        loaded,
        [items[row].question for row in rows],
        max_new_tokens=budget(loaded, [items[row].target for row in rows]),
        begun=[first[row].partition(marker)[0] + marker for row in rows],
        turn=turn,
    )
    again = dict(zip(rows, said, strict=True))
    return [again.get(row, text) for row, text in enumerate(first)]


def base_answers(items: Iterable[Item], written: Iterable[str], scorer: Scorer) -> dict[str, str | None]:
    """What the base model answers to each item, by id, given its texts: the old answers of every merge."""
    return {item.id: scorer.base_answer(item, text) for item, text in zip(items, written, strict=True)}


def ask(
    loaded: LoadedModel,
    items: Sequence[Item],
    scorer: Scorer,
    cell: str,
    outcomes: Sequence[str],
    *,
    old: Mapping[str, str | None] | None = None,
    candidates: Iterable[Candidates] = (),
    applied: AppliedMerge | None = None,
    max_new_tokens: int | None = None,
    batch: int = 32,
) -> list[Row]:
    """One Row for each item, in order.

    cell: key of the cell the rows belong to. outcomes: the scorer's. old: the base model's answers by item,
    None where this model is the base itself, whose own they are. candidates: answers whose log-probabilities
    are wanted; the base's answer joins those without a place as "old:name". applied: the merge in force,
    whose gates are kept where it routes. max_new_tokens, batch: as in `texts`.
    """
    written = texts(loaded, items, max_new_tokens=max_new_tokens, batch=batch)
    old = base_answers(items, written, scorer) if old is None else old
    named = _named(items, written, scorer, candidates)
    logprobs = _logprobs(loaded, named, scorer, old, batch)
    routed = {} if applied is None else gates(loaded, applied, _begun(items, named), batch=batch)
    rows = []
    for item, text in zip(items, written, strict=True):
        score = scorer.score(item, text, old.get(item.id))
        shares = {outcome: float(outcome == score.outcome) for outcome in outcomes}
        numbers = logprobs.get(item.id)
        rows.append(Row(cell, item.id, score.answer, shares, text, score.marks, numbers, routed.get(item.id)))
    return rows


@dataclass(frozen=True)
class OwnTask:
    """How a model does on the items of an adapter's own task.

    share: of outcome "correct"; exact: of texts that are the target, word by word. None without items.
    """

    share: float | None
    exact: float | None
    items: int


def own_task(loaded: LoadedModel, items: Sequence[Item], scorer: Scorer, *, batch: int = 32) -> OwnTask:
    """How many of an adapter's own items the model answers right, greedily."""
    written = texts(loaded, items, batch=batch)
    scores = [scorer.score(item, text, None) for item, text in zip(items, written, strict=True)]
    right = [score.outcome == "correct" for score in scores]
    exact = [
        words(spoken(text)) == words(item.target or "") for item, text in zip(items, written, strict=True)
    ]
    count = len(items)
    return OwnTask(sum(right) / count if count else None, sum(exact) / count if count else None, count)


def budget(loaded: LoadedModel, targets: Iterable[str | None], unknown: int = 64) -> int:
    """Half as many tokens again as the longest target, and 8."""
    lengths = [len(target_ids(loaded, text)) for text in targets if text is not None]
    return math.ceil(1.5 * max(lengths)) + 8 if lengths else unknown


@dataclass(frozen=True)
class _Named:
    """Where an answer names something: its item, how it begins, what may be named there."""

    item: Item
    begun: str
    candidates: Candidates


def _named(
    items: Sequence[Item], written: Sequence[str], scorer: Scorer, candidates: Iterable[Candidates]
) -> list[_Named]:
    """The places of these items; those behind a written text only where it names something there."""
    by_id = {item.id: (item, text) for item, text in zip(items, written, strict=True)}
    found = []
    for given in candidates:
        if given.item not in by_id:
            continue
        item, text = by_id[given.item]
        begun = given.begun
        if begun is None:
            if not isinstance(scorer, StepScorer):
                raise TaskError(f"the scorer of '{item.id}' finds no steps: say how its answer begins")
            begun = scorer.begun(item, text, given.place)
        if begun is not None:
            found.append(_Named(item, begun, given))
    return found


def _begun(items: Sequence[Item], named: Iterable[_Named]) -> list[Begun]:
    """Every place of every item at which gates are kept; of items without any, the end of the prompt."""
    found = [
        Begun(one.item.id, one.candidates.place or ANSWER, one.item.question, one.begun) for one in named
    ]
    told = {begun.item for begun in found}
    return found + [Begun(item.id, PROMPT_END, item.question, "") for item in items if item.id not in told]


def _logprobs(
    loaded: LoadedModel, named: Sequence[_Named], scorer: Scorer, old: Mapping[str, str | None], batch: int
) -> dict[str, dict[str, float]]:
    """log p of every candidate answer by label, for the items that have candidates."""
    labelled = [_labelled(one.candidates, old.get(one.item.id), scorer) for one in named]
    distinct = [list(dict.fromkeys(texts.values())) for texts in labelled]
    questions, begun = [one.item.question for one in named], [one.begun for one in named]
    values = candidate_logprobs(loaded, questions, begun, distinct, batch=2 * batch)
    logprobs: dict[str, dict[str, float]] = {}
    for one, texts, names, numbers in zip(named, labelled, distinct, values, strict=True):
        by_name = dict(zip(names, numbers, strict=True))
        start = one.candidates.place and one.candidates.place + "/"
        told = {start + label: round(by_name[name], 4) for label, name in texts.items()}
        logprobs.setdefault(one.item.id, {}).update(told)
    return logprobs


def _labelled(given: Candidates, old: str | None, scorer: Scorer) -> dict[str, str]:
    """A place's candidates, and the base's own answer where that names one thing and can be written."""
    name = None if old is None or given.place else scorer.name(old)
    return {**given.texts, **({} if name is None else {f"old:{name}": name})}
