"""Questions that need several facts: does each step survive, is the form known, is a told answer used?

Asked of a question with its steps, under the base, each adapter alone and the best merge:

    each step by itself                          right: it survives
    the answers to all steps in front of it      right: the form is known, what is told is put together
    those to all steps but the last in front     right: an answer that is told is copied, and gone on from
    the question itself                          right: the merge composes

What fails first, in this order, is what is wrong: without its steps nothing can be composed, and where told
facts are not put together, recalled ones will not be either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.diagnose.answers import EXACT, AnswerSheet
from llm_experiments.domains.own.questions import Question
from llm_experiments.merges.merging import apply
from llm_experiments.merges.mixtures import weighted
from llm_experiments.models.handle import LoadedModel
from toytransformer.compositions.spec import Merge

#: What can fail, in the order in which it is looked for.
STEP, FORM, COPY, WHOLE, NOTHING = "a step", "the form", "going on", "composing", "nothing"
#: What the base is called among those that are asked.
BASE = "the base"


@dataclass(frozen=True)
class Right:
    """What is right of one question: each of its steps, all told, all but the last told, and it itself."""

    steps: tuple[bool, ...]
    form: bool
    copied: bool
    whole: bool

    @property
    def fails(self) -> str:
        """The first thing that is wrong."""
        if self.whole:
            return NOTHING
        if not all(self.steps):
            return STEP
        if not self.form:
            return FORM
        return WHOLE if self.copied else COPY


@dataclass(frozen=True)
class Staged:
    """Of every question with steps, by who was asked: BASE, an adapter alone, the merge.

    questions: those with steps. merge: the name of the merge.
    """

    questions: tuple[Question, ...]
    merge: str
    right: Mapping[str, tuple[Right, ...]]

    @property
    def merged(self) -> tuple[Right, ...]:
        return self.right[self.merge]

    def fails(self, what: str) -> int:
        """In how many questions the merge fails first at this."""
        return sum(one.fails == what for one in self.merged)

    def lost(self, place: int, step: int) -> str | None:
        """Who answers a step of a question alone that the merge does not; None where nobody does."""
        if self.merged[place].steps[step]:
            return None
        alone = (name for name, one in self.right.items() if name != self.merge and one[place].steps[step])
        return next(alone, None)

    def knows_form(self) -> dict[str, float]:
        """The share of questions whose told steps each of those asked puts together."""
        return {name: float(np.mean([one.form for one in several])) for name, several in self.right.items()}


def asked_in_stages(
    loaded: LoadedModel,
    library: Sequence[AdapterWeights],
    questions: Sequence[Question],
    name: str,
    merge: Merge,
    *,
    reading: str = EXACT,
    batch: int = 16,
) -> Staged | None:
    """The questions with steps asked as said above; None where there are none. name: of the merge."""
    staged = tuple(question for question in questions if question.steps)
    if not staged:
        return None
    sheet = AnswerSheet.of(loaded, [text for question in staged for text in _texts(question)], reading)
    found = {}
    with weighted(loaded, library) as weights:
        for place, who in enumerate([BASE, *(adapter.name for adapter in library)]):
            weights.set(np.eye(len(library) + 1)[place, 1:].tolist())
            found[who] = sheet.scores(sheet.logits(loaded, batch=batch)).right.tolist()
    with apply(loaded, library, merge):
        found[name] = sheet.scores(sheet.logits(loaded, batch=batch)).right.tolist()
    return Staged(staged, name, {who: _taken_apart(staged, right) for who, right in found.items()})


def _texts(question: Question) -> list[Question]:
    """The steps, the question behind all their answers, behind all but the last, and by itself."""
    told = [step.answer for step in question.steps]
    behind = [" ".join([*told[:count], question.question]) for count in (len(told), len(told) - 1, 0)]
    steps = [Question(step.question, step.answer) for step in question.steps]
    return [*steps, *(Question(text, question.answer) for text in behind)]


def _taken_apart(questions: Sequence[Question], right: Sequence[bool]) -> tuple[Right, ...]:
    found, first = [], 0
    for question in questions:
        count = len(question.steps)
        form, copied, whole = right[first + count : first + count + 3]
        found.append(Right(tuple(right[first : first + count]), form, copied, whole))
        first += count + 3
    return tuple(found)
