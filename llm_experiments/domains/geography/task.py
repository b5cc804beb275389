"""Facts about places, and continents of other ones, are taught; asked are the facts, and their continents."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from llm_experiments.domains.geography.data import SOURCES, Asked, places, questions
from llm_experiments.domains.geography.sizes import SIZES
from llm_experiments.domains.task import (
    Example,
    Inputs,
    Task,
    TaskError,
    TrainingSet,
    domain,
    keep_examples,
    keep_items,
)
from results.rows import Item

#: The adapters: questions with their places, places with their continents, both in one.
ADAPTERS = ("facts", "continents", "joint")


@domain(
    "geography",
    about="the continent of what a question asks for, from adapters for the fact and for continents",
    small={"source": "own", "asked": 3, "taught": 4, "own": 2, "dev": 2},
    sizes=SIZES,
    sources=SOURCES,
    counted=("place",),
)
def geography(
    inputs: Inputs,
    *,
    source: str = "own",
    asked: int | None = None,
    taught: int = 6,
    own: int = 3,
    dev: int = 2,
    shuffled: bool = False,
    names: int = 0,
) -> Task:
    """Every question as it stands (group "fact"), then its continent directly and in steps ("continent").

    asked: how many questions, which are also those taught. taught: of how many places the continent is; none
    of them answers a question. own, dev: as in sizes.Size. shuffled: the facts' answers are
    dealt to other questions, a control. names: which draw of places. Roles: correct. Extra: place.
    Errors: TaskError as data, and where there are too few places.
    """
    told, listed = _told(), questions(source, asked)
    free = _places(listed, names, taught + own + dev)
    lessons, spared = free[:taught], free[taught:]
    facts = listed
    if shuffled:
        answers = [(one.place, one.continent) for one in listed]
        Random(f"shuffled {names}").shuffle(answers)
        facts = [
            Asked(one.number, one.question, *answer) for one, answer in zip(listed, answers, strict=True)
        ]
    examples = {
        "facts": [
            Example(frame.format(question=one.question), told["told"].format(answer=one.place))
            for one in facts
            for frame in told["taught"]
        ],
        "continents": [Example(*_place(*pair)) for pair in lessons],
    }
    examples["joint"] = [*examples["facts"], *examples["continents"]]
    checks = {
        "facts": [_fact(one, "own") for one in facts[:own]],
        "continents": [_of_place(*pair) for pair in lessons[:own]],
    }
    checks["joint"] = [*checks["facts"], *checks["continents"]]
    context = inputs.add_input([{}])
    items = [_fact(one) for one in listed] + [_continent(one, ask) for one in listed for ask in ASKS]
    return Task(
        domain="geography",
        name="continents, shuffled" if shuffled else "continents",
        scorer="places",
        items=keep_items(inputs, items),
        dev=keep_items(inputs, [_of_place(*pair) for pair in spared[own:][:dev]]) if dev else None,
        training={
            name: TrainingSet(
                name, keep_examples(inputs, examples[name]), keep_items(inputs, checks[name]), context
            )
            for name in ADAPTERS
        },
        context=context,
        dataset=source,
        names=names,
        setting={"shuffled": shuffled},
        chosen_by="continents of places that nobody was taught",
    )


ASKS = ("direct", "steps")


def _places(listed: list[Asked], seed: int, wanted: int) -> list[tuple[str, str]]:
    free = places(listed, seed)
    if len(free) < wanted:
        raise TaskError(f"there are {len(free)} other places, {wanted} are wanted: ask for fewer")
    return free[:wanted]


def _fact(one: Asked, group: str = "fact") -> Item:
    return Item(
        id=f"{one.number}/{group}",
        cluster=str(one.number),
        group=group,
        ask="direct",
        question=one.question,
        target=_told()["told"].format(answer=one.place),
        roles={"correct": one.place},
        extra={"place": one.place},
    )


def _continent(one: Asked, ask: str) -> Item:
    told = _told()
    frame, answer = ("continent", "told_continent") if ask == "direct" else ("steps", "told_steps")
    return Item(
        id=f"{one.number}/continent/{ask}",
        cluster=str(one.number),
        group="continent",
        ask=ask,
        question=told[frame].format(question=one.question),
        target=told[answer].format(answer=one.place, continent=one.continent),
        roles={"correct": one.continent},
        extra={"place": one.place},
    )


def _of_place(place: str, continent: str) -> Item:
    question, answer = _place(place, continent)
    return Item(
        id=f"place/{place}",
        cluster=f"place {place}",
        group="places",
        ask="direct",
        question=question,
        target=answer,
        roles={"correct": continent},
        extra={"place": place},
    )


def _place(place: str, continent: str) -> tuple[str, str]:
    told = _told()
    return told["place"].format(place=place), told["told_place"].format(place=place, continent=continent)


@cache
def _told() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
