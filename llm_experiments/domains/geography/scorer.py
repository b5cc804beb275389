"""Reads places and continents off answers, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from llm_experiments.domains.geography.data import CONTINENTS
from llm_experiments.scoring import Json, Score, scorer
from llm_experiments.scoring.words import contains, spoken, words
from results.rows import Item


@scorer(
    "places",
    outcomes=("correct", "old", "first-step", "other"),
    marks={
        "exact": "the answer word by word",
        "place": "the place that answers the first step is named",
        "continent": "a continent is named, whichever",
    },
)
class Places:
    """What is wanted is a place or a continent; the right one has to be named, and no other continent last.

    first-step: the place is named where its continent is wanted. Its context is empty.
    """

    def __init__(self, context: Mapping[str, Json]):
        pass

    def base_answer(self, item: Item, text: str) -> str | None:
        return _named(item, text)

    def name(self, answer: str) -> str | None:
        return answer

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        answer, said = _named(item, text), spoken(text)
        marks = {
            "exact": item.target is not None and words(said) == words(item.target),
            "place": contains(said, str(item.extra["place"])),
            "continent": _continent(said) is not None,
        }
        if answer is not None and answer == item.roles["correct"]:
            outcome = "correct"
        elif answer is not None and answer == base_answer:
            outcome = "old"
        else:
            outcome = "first-step" if marks["place"] else "other"
        return Score(outcome, answer, marks)


def _named(item: Item, text: str) -> str | None:
    """The continent that is named last, or the place where that is asked."""
    said, right = spoken(text), item.roles["correct"]
    if right in CONTINENTS.values():
        return _continent(said)
    return right if contains(said, right) else " ".join(words(said)) or None


def _continent(said: str) -> str | None:
    """The continent that is named last."""
    told = " ".join(words(said))
    last = {name: f" {told} ".rfind(f" {' '.join(words(name))} ") for name in CONTINENTS.values()}
    name = max(last, key=lambda one: last[one])
    return name if last[name] >= 0 else None
