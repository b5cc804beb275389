"""What a text says to a question of one's own, whose right answer is a text and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from llm_experiments.scoring import Json, Score, scorer
from llm_experiments.scoring.words import contains, final_answer, spoken, words
from results.rows import Item

#: How an answer is read out of a text.
READINGS = {
    "exact": "the text is the answer, word by word",
    "contains": "the text has the answer's words, next to one another",
    "final": 'what stands behind the last "the answer is" is the answer, word by word',
}


@scorer(
    "own-words",
    outcomes=("correct", "old", "other", "none"),
    marks={
        "exact": "the text is the expected one, word by word",
        "contains": "the text has the answer's words, next to one another",
    },
)
class OwnWords:
    """Compares words, without case, accents and punctuation. Made from {"reading"}, one of READINGS.

    correct: as the reading says. old: the base model's own answer to that very question. other: any other.
    none: a text without words, and under "final" one that nowhere says what the answer is.
    """

    def __init__(self, context: Mapping[str, Json]):
        self.reading = str(context["reading"])

    def base_answer(self, item: Item, text: str) -> str | None:
        return self._answer(text)

    def name(self, answer: str) -> str | None:
        return None  # a text of any length: nothing to set beside the right one

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        wanted, answer = item.roles["correct"], self._answer(text)
        exact, there = _same(spoken(text), wanted), _within(spoken(text), wanted)
        right = there if self.reading == "contains" else answer is not None and _same(answer, wanted)
        if right:
            outcome = "correct"
        elif answer is None:
            outcome = "none"
        else:
            outcome = "old" if base_answer is not None and _same(answer, base_answer) else "other"
        return Score(outcome, answer, {"exact": exact, "contains": there})

    def _answer(self, text: str) -> str | None:
        """What a text answers; None where it answers nothing."""
        said = final_answer(text) if self.reading == "final" else spoken(text).strip()
        return said or None


def _same(text: str, other: str) -> bool:
    """Word by word; letter by letter where there are no words, as in a formula."""
    if not words(other):
        return text.strip() == other.strip()
    return words(text) == words(other)


def _within(text: str, other: str) -> bool:
    return contains(text, other) if words(other) else other.strip() in text
