"""A task: what a language model is trained on and asked, as data that carries no texts of its own.

    Task(items, dev, candidates, context: ref)     ref: hash of JSON lines that a run keeps beside its results
        training: {name: TrainingSet(examples, own_task: ref)}

A domain is a folder: a function that builds tasks, entered by `@domain`, its scorers and its experiments.
Nothing outside knows more of it than its tasks, its scorers' outcomes and marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from llm_experiments.engine.addresses import Ref
from llm_experiments.registry import Registry
from llm_experiments.scoring import SCORERS, Json, Scorer, ScorerKind
from results.rows import Item, Scalar

#: Of which questions the log-probabilities of answers are kept: of none, of those that are answered at once,
#: or also at every step of the others.
LOGPROBS = ("none", "direct", "all")


class TaskError(ValueError):
    """A task that cannot be built or asked; the message says why and what to do."""


class Inputs(Protocol):
    """Where a task's texts are kept: a plan, which puts them into the store of a run."""

    def add_input(self, lines: Iterable[object]) -> Ref:
        """Keep JSON lines under the hash of their content."""

    def add_spec(self, text: str) -> Ref:
        """Keep the JSON of a composition under its spec hash."""


class Reading(Protocol):
    """Where a task's texts are read: a plan, or what a step computes with."""

    def input(self, ref: Ref) -> list[Any]:
        """The lines that are kept under a hash."""


class Taught(Protocol):
    """A question and the answer that is taught."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Example:
    """A question and the answer that is taught, as texts alone.

    silent: spans of the answer, from and to which character, that are read but not taught.
    """

    question: str
    answer: str
    silent: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Candidates:
    """Answers to one item, or to one of its steps, whose log-probabilities are wanted.

    begun: how the answer begins before the candidate's name; None for what was written up to there, which
    the scorer says (`StepScorer.begun`). texts: by label, "role:name". place: what is named there, where an
    answer names several things; labels of log-probabilities then begin with it, "place/role:name".
    """

    item: str
    begun: str | None
    texts: Mapping[str, str]
    place: str = ""


@dataclass(frozen=True)
class TrainingSet:
    """What one adapter is trained on, and the items that say whether it learned it.

    examples, own_task: refs of Examples and Items. context: ref of what the scorer reads own_task with.
    """

    name: str
    examples: Ref
    own_task: Ref
    context: Ref | None = None


@dataclass(frozen=True)
class Task:
    """What is asked, what adapters are trained on and how answers are read.

    name, setting: which task of the domain, and what its name leaves open. dataset, names: where its names
    come from and which draw of them. items, dev: refs of the Items tested, and of those that choices are made
    on. training: by adapter. context: ref of what its scorer is made from. candidates: ref of the Candidates
    of its items. composition: spec hash of the Composition that predicts it, whose JSON is kept beside.
    chosen_by: what the development items are, as a cell says of what was chosen on them.
    """

    domain: str
    name: str
    scorer: str
    items: Ref
    dev: Ref | None = None
    training: Mapping[str, TrainingSet] = field(default_factory=dict)
    context: Ref | None = None
    candidates: Ref | None = None
    dataset: str | None = None
    names: int | None = None
    setting: Mapping[str, Scalar] = field(default_factory=dict)
    composition: Ref | None = None
    chosen_by: str | None = None

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What an answer can be, in order of precedence."""
        return self.kind.outcomes

    @property
    def marks(self) -> Mapping[str, str]:
        """What else is seen in an answer, by name, with what each says."""
        return self.kind.marks

    @property
    def kind(self) -> ScorerKind:
        return SCORERS[self.scorer]


def keep_items(inputs: Inputs, items: Iterable[Item]) -> Ref:
    """Keep the items, in their order. Errors: TaskError where two have one id."""
    lines: dict[str, dict[str, object]] = {}
    for item in items:
        if item.id in lines:
            raise TaskError(f"two items are called '{item.id}': ids are distinct in their task")
        lines[item.id] = item.to_dict()
    return inputs.add_input(lines.values())


def read_items(reading: Reading, ref: Ref) -> list[Item]:
    """The items that `keep_items` kept."""
    return [Item(**line) for line in reading.input(ref)]


def keep_examples(inputs: Inputs, examples: Iterable[Taught]) -> Ref:
    """Keep what is taught."""

    def line(one: Taught) -> dict[str, object]:
        silent = [list(span) for span in getattr(one, "silent", ())]
        plain: dict[str, object] = {"question": one.question, "answer": one.answer}
        return {**plain, "silent": silent} if silent else plain

    return inputs.add_input(line(one) for one in examples)


def read_examples(reading: Reading, ref: Ref) -> list[Example]:
    """The examples that `keep_examples` kept."""
    return [Example(**line) for line in reading.input(ref)]


def read_candidates(reading: Reading, ref: Ref | None) -> list[Candidates]:
    """The candidates of a task's items; none without a ref."""
    return [] if ref is None else [Candidates(**line) for line in reading.input(ref)]


def read_scorer(reading: Reading, name: str, context: Ref | None) -> Scorer:
    """The scorer of that name, made from its context."""
    return SCORERS[name].build({} if context is None else reading.input(context)[0])


@dataclass(frozen=True)
class Domain:
    """A registered domain: how its tasks are built, one line about it, the options of a small one.

    sizes: how large a measurement is, by the name of the profile, in terms that only the domain understands.
    sources: the data sets that it can ask, as cells name them. counted: marks that a page shows beside
    outcomes.
    """

    name: str
    about: str
    build: Callable[..., Task]
    small: Mapping[str, Json]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()

    def small_task(self, inputs: Inputs) -> Task:
        """A task of a few items, for tests and first looks."""
        return self.build(inputs, **self.small)


DOMAINS: Registry[Domain] = Registry("domain", "llm_experiments.domains")

Build = TypeVar("Build", bound=Callable[..., Task])


def domain(
    name: str,
    *,
    about: str,
    small: Mapping[str, Json] | None = None,
    sizes: Mapping[str, Any] | None = None,
    sources: Iterable[str] = (),
    counted: Iterable[str] = (),
) -> Callable[[Build], Build]:
    """Enter a function (inputs, **options) -> Task as a domain.

    small: options of a task of a few items. sizes, sources, counted: see Domain.
    """

    def enter(build: Build) -> Build:
        there = Domain(name, about, build, small or {}, sizes or {}, tuple(sources), tuple(counted))
        DOMAINS.add(name, there)
        return build

    return enter
