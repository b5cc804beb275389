"""Questions that adapters are to answer: JSON lines of question and answer, and what else is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from toytransformer.compositions.io import read_plain

#: Most questions, and characters of a question or an answer.
MOST, LONGEST = 2000, 20_000


class QuestionsError(ValueError):
    """A file of questions that cannot be used; the message names the line and what to change."""


@dataclass(frozen=True)
class QuestionStep:
    """One step towards an answer: a question of its own, and its answer."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    question: str
    answer: str


@dataclass(frozen=True)
class Question:
    """One question and the answer wanted, as the model should write it.

    adapter: which one was trained to know it; None where nobody says so. group: what it is counted with.
    cluster: what is resampled whole, such as the fact that several wordings ask about; None for itself.
    steps: the questions that it goes through, in order, where it needs several facts.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    question: str
    answer: str
    adapter: str | None = None
    group: str = ""
    cluster: str | None = None
    steps: tuple[QuestionStep, ...] = ()


def read(file: Path, names: Sequence[str], most: int = MOST) -> list[Question]:
    """The questions of a file. names: the adapters'. most: how many there may be.

    Errors: QuestionsError on lines that are no such objects, on adapters that are not there, on an empty
    file and on too many lines; OSError where there is no file.
    """
    try:
        lines = read_plain(file).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise QuestionsError(f"{file} is not text in UTF-8 ({error})") from error
    adapter, found = TypeAdapter(Question), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            one = adapter.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise QuestionsError(
                f"{where}: {place + ': ' if place else ''}{first['msg']}; write "
                '{"question": "..", "answer": ".."}, with "adapter", "group", "cluster" and "steps" where '
                "you like"
            ) from error
        texts = [one.question, one.answer, *(text for s in one.steps for text in (s.question, s.answer))]
        if not all(text.strip() for text in texts) or len(line) > LONGEST:
            raise QuestionsError(
                f"{where}: question and answer hold some text each, {LONGEST:,} letters a line at most"
            )
        if len(one.steps) == 1:
            raise QuestionsError(f"{where}: a question of one step is that step: give two or more, or none")
        if one.adapter is not None and one.adapter not in names:
            raise QuestionsError(
                f"{where}: there is no adapter {one.adapter[:80]!r}; it is one of {', '.join(names)[:500]}"
            )
        found.append(one)
    if not 0 < len(found) <= most:
        raise QuestionsError(f"{file} holds {len(found)} questions: give 1 to {most}")
    return found
