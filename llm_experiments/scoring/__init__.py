"""What a model's text says: scorers read it against an item, each a class entered by `@scorer`.

A scorer is made from its task's context, a JSON object that only it understands, and has its own outcomes
and marks. It is found by name in this folder or in the domain that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from llm_experiments.registry import Registry
from results.rows import Item

Json: TypeAlias = "bool | int | float | str | list[Json] | Mapping[str, Json] | None"
Mark: TypeAlias = bool | float | None


@dataclass(frozen=True)
class Score:
    """What an answer is.

    outcome: one of the scorer's. answer: what was answered, None where the text answers nothing. marks: what
    else is seen in the text, by the scorer's names; one that does not apply is absent.
    """

    outcome: str
    answer: str | None
    marks: Mapping[str, Mark] = field(default_factory=dict)


class Scorer(Protocol):
    """Reads texts against items."""

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        """What the text answers; base_answer: what the base model answers to this very item."""

    def base_answer(self, item: Item, text: str) -> str | None:
        """What the base model answers, which counts as the old answer; None where it names nothing."""

    def name(self, answer: str) -> str | None:
        """An answer in words, as a model would write it; None where it has none."""


@runtime_checkable
class StepScorer(Scorer, Protocol):
    """A scorer that also finds the steps of an answer."""

    def begun(self, item: Item, text: str, place: str) -> str | None:
        """The text up to what is named at a place, None where nothing is."""


@dataclass(frozen=True)
class ScorerKind:
    """A registered scorer: its outcomes in order of precedence, its marks with what each says.

    runs: whether it runs programs that a model wrote, and so needs a sandbox.
    """

    name: str
    outcomes: tuple[str, ...]
    marks: Mapping[str, str]
    build: Callable[[Mapping[str, Json]], Scorer]
    runs: bool = False


SCORERS: Registry[ScorerKind] = Registry("scorer", "llm_experiments.scoring", "llm_experiments.domains")

Built = TypeVar("Built", bound=Callable[[Mapping[str, Json]], Scorer])


def scorer(
    name: str, *, outcomes: tuple[str, ...], marks: Mapping[str, str], runs: bool = False
) -> Callable[[Built], Built]:
    """Enter a scorer, a class made from a context, under a name. runs: see ScorerKind."""

    def enter(build: Built) -> Built:
        SCORERS.add(name, ScorerKind(name, outcomes, marks, build, runs))
        return build

    return enter
