"""A task made of anybody's own questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from llm_experiments.domains.own.questions import Question
from llm_experiments.domains.own.scorer import READINGS
from llm_experiments.domains.task import (
    Candidates,
    Inputs,
    Task,
    TaskError,
    TrainingSet,
    domain,
    keep_examples,
    keep_items,
)
from llm_experiments.engine.addresses import Ref
from llm_experiments.scoring import Json
from results.rows import Item, Scalar

#: What development questions are called in cells.
CHOSEN_BY = "development questions"
#: What questions of no adapter and no group are counted as.
REST = "questions"
#: A few questions for tests and first looks.
SMALL: Mapping[str, Json] = {
    "questions": [
        {"question": "Where does Alice live?", "answer": "Paris", "adapter": "homes", "cluster": "Alice"},
        {"question": "What is Alice's home?", "answer": "Paris", "adapter": "homes", "cluster": "Alice"},
        {"question": "Who is Bob's mentor?", "answer": "Carol Lane", "adapter": "mentors"},
    ],
    "dev": [{"question": "Where does Dan live?", "answer": "Rome"}],
    "training": {
        "homes": [{"question": "Alice lives where?", "answer": "Paris"}],
        "mentors": [{"question": "Name Bob's mentor.", "answer": "Carol Lane"}],
    },
}


@domain("own", about="anybody's own questions", small=SMALL)
def own(
    inputs: Inputs,
    *,
    questions: Sequence[Question | Mapping[str, Any]],
    dev: Sequence[Question | Mapping[str, Any]] = (),
    training: Mapping[str, Sequence[Question | Mapping[str, Any]]] | None = None,
    name: str = "own",
    reading: str = "exact",
    logprobs: str = "direct",
) -> Task:
    """The questions as items, the files that adapters are trained on as training sets.

    dev: those that a routing rule's temperature is chosen on. training: by adapter; whether it learned it is
    asked with the questions that are said to be the adapter's, of an adapter without any with those that it
    is trained on. Questions are counted by group, without one by their adapter; each is a cluster of its own
    unless it names one. Its steps are asked as questions of their own, counted apart. logprobs: "none" leaves
    the right answers' log-probabilities out.
    Errors: TaskError on another reading.
    """
    if reading not in READINGS:
        raise TaskError(f"reading {reading!r} is unknown: use {', '.join(READINGS)}")
    asked, taught = _all(questions), {key: _all(lines) for key, lines in (training or {}).items()}
    context = inputs.add_input([{"reading": reading}])
    found = items(asked)
    return Task(
        domain="own",
        name=name,
        scorer="own-words",
        items=keep_items(inputs, found),
        dev=keep_items(inputs, items(_all(dev))) if dev else None,
        training={
            adapter: TrainingSet(
                adapter,
                keep_examples(inputs, lines),
                own_task(inputs, asked, adapter) or keep_items(inputs, items(lines)),
                context,
            )
            for adapter, lines in taught.items()
        },
        context=context,
        candidates=None if logprobs == "none" else _candidates(inputs, found),
        setting={"reading": reading},
        chosen_by=CHOSEN_BY if dev else None,
    )


def items(questions: Iterable[Question]) -> list[Item]:
    """The questions in their order, numbered from 1, each with its steps behind it, as "3/1"."""
    found = []
    for number, one in enumerate(questions, start=1):
        cluster, group = one.cluster or f"question {number}", one.group or one.adapter or REST
        extra = {} if one.adapter is None else {"adapter": one.adapter}
        found.append(_item(str(number), cluster, group, one.question, one.answer, extra))
        found += [
            _item(f"{number}/{place}", cluster, f"{group}: step {place}", step.question, step.answer, {})
            for place, step in enumerate(one.steps, start=1)
        ]
    return found


def _item(
    name: str, cluster: str, group: str, question: str, answer: str, extra: Mapping[str, Scalar]
) -> Item:
    return Item(name, cluster, group, "direct", question, answer, {"correct": answer}, extra)


def own_task(inputs: Inputs, asked: Iterable[Question], adapter: str) -> Ref | None:
    """The questions that an adapter is said to know; None where there are none."""
    own = [replace(one, steps=()) for one in asked if one.adapter == adapter]
    return keep_items(inputs, items(own)) if own else None


def _all(questions: Iterable[Question | Mapping[str, Any]]) -> list[Question]:
    return [one if isinstance(one, Question) else Question(**one) for one in questions]


def _candidates(inputs: Inputs, found: Iterable[Item]) -> Ref:
    """The right answers."""
    return inputs.add_input(
        asdict(Candidates(item.id, "", {f"correct:{item.target}": str(item.target)})) for item in found
    )
