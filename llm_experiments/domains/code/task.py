"""Python from English and Spanish from English are taught; asked is Python from Spanish, and from English."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm_experiments.domains.code.data import (
    LANGUAGES,
    SOURCES,
    Function,
    Program,
    functions,
    programs,
    sentences,
)
from llm_experiments.domains.code.scorer import digest
from llm_experiments.domains.code.sizes import SIZES
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

#: The adapters: programs from English, Spanish from English, and one of both.
ADAPTERS = ("coding", "translation", "joint")


@domain(
    "code",
    about="Python from Spanish instructions, from adapters for code and for translation",
    small={"source": "own", "train": 2, "translated": 2, "asked": 2, "own": 1, "dev": 1},
    sizes=SIZES,
    sources=SOURCES,
    counted=("fenced", "compiles"),
)
def code(
    inputs: Inputs,
    *,
    source: str = "own",
    languages: Sequence[str] = LANGUAGES,
    train: int = 3,
    translated: int = 3,
    asked: int | None = None,
    own: int = 1,
    dev: int = 2,
    names: int = 0,
) -> Task:
    """Functions to complete in each language, a group each. source: "own" or "published".

    train, translated: programs and sentences to train on. asked, own, dev: as in sizes.Size. names: which
    draw of training examples. Roles: correct, the digest of the published solution. Extra: head, name and
    tests of what is asked, or the translation that is wanted.
    Errors: TaskError as data, where a set is too small, and where languages do not ask the same functions.
    """
    spare = own + dev
    taught, pairs = programs(source, names), sentences(source, names, translated + spare)
    for what, have, wanted in (("programs", taught, train), ("sentences", pairs, translated)):
        if len(have) < wanted + spare:
            raise TaskError(
                f"there are {len(have)} {what}, {wanted} to train on and {spare} to check on are wanted: ask "
                "for fewer, or give the whole published set"
            )
    wanted_in = {language: functions(source, language, asked) for language in languages}
    _check_pairs(wanted_in)
    items = [_completed(one) for found in wanted_in.values() for one in found]
    checks = {
        "coding": [_written(one) for one in taught[train : train + own]],
        "translation": [_translated(*pair, number) for number, pair in enumerate(pairs[translated:][:own])],
    }
    lessons = {
        "coding": [_lesson(one) for one in taught[:train]],
        "translation": [_sentence(*pair) for pair in pairs[:translated]],
    }
    for either in (checks, lessons):
        either["joint"] = [*either["coding"], *either["translation"]]
    chosen_on = [_written(one) for one in taught[train + own :][: (dev + 1) // 2]]
    chosen_on += [_translated(*pair, own + n) for n, pair in enumerate(pairs[translated + own :][: dev // 2])]
    context = inputs.add_input([{}])
    return Task(
        domain="code",
        name="functions",
        scorer="programs",
        items=keep_items(inputs, items),
        dev=keep_items(inputs, chosen_on) if chosen_on else None,
        training={
            name: TrainingSet(
                name, keep_examples(inputs, lessons[name]), keep_items(inputs, checks[name]), context
            )
            for name in ADAPTERS
        },
        context=context,
        dataset=source,
        names=names,
        setting={"benchmark": "own" if source == "own" else "HumanEval-XL"},
        chosen_by="programs and sentences that nobody was trained on",
    )


def _check_pairs(found: Mapping[str, Sequence[Function]]) -> None:
    """A problem is known by its id: once in each language, with the same function to write."""
    named = {language: {one.id: one.name for one in those} for language, those in found.items()}
    for language, those in found.items():
        if len(named[language]) < len(those):
            raise TaskError(f"an id stands twice among the functions in {language}: give the published rows")
    for one, other in pairwise(named):
        if odd := sorted(dict(named[one].items() ^ named[other].items())):
            raise TaskError(
                f"{odd[0]!r} is not one function in {one} and in {other}: give the files of one published "
                "set, whose task_id and entry_point are the same in all languages"
            )


def _completed(one: Function) -> Item:
    solution = f"{one.head}{one.body}"
    return Item(
        id=f"{one.id}/{one.language}",
        cluster=one.id,
        group=one.language,
        ask="direct",
        question=_told()[one.language]["ask"].format(head=one.head),
        target=f"```python\n{solution}\n```",
        roles={"correct": digest(solution)},
        extra={"head": one.head, "name": one.name, "tests": one.tests},
    )


def _written(one: Program) -> Item:
    return Item(
        id=one.id,
        cluster=one.id,
        group="coding",
        ask="direct",
        question=_lesson(one).question,
        target=_lesson(one).answer,
        roles={"correct": digest(one.code)},
        extra={"head": "", "name": _called(one), "tests": "\n".join(one.tests)},
    )


def _translated(english: str, spanish: str, number: int) -> Item:
    return Item(
        id=f"sentence/{number}",
        cluster=f"sentence {number}",
        group="translation",
        ask="direct",
        question=_sentence(english, spanish).question,
        target=spanish,
        roles={"correct": spanish},
        extra={"translation": spanish},
    )


def _lesson(one: Program) -> Example:
    told = _told()["program"]
    tests = [line for line in one.tests if line.startswith("assert")]
    if not tests:
        raise TaskError(f"{one.id} has no test that begins with 'assert': give the published rows")
    return Example(told["ask"].format(said=one.said, test=tests[0]), told["answer"].format(code=one.code))


def _sentence(english: str, spanish: str) -> Example:
    told = _told()["sentence"]
    return Example(told["ask"].format(english=english), told["answer"].format(spanish=spanish))


def _called(one: Program) -> str:
    """The function that the first test calls, as far as its text says."""
    import re

    tests = " ".join(line for line in one.tests if line.startswith("assert"))
    defined = re.findall(r"^def (\w+)", one.code, re.MULTILINE)
    return next((name for name in defined if re.search(rf"\b{name}\(", tests)), "")


@cache
def _told() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
