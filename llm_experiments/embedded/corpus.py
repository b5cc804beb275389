"""The synthetic world the embedded model is pretrained on, and the stream of examples that shows it.

People with real-style names have facts: everybody a spouse and a home, a third of them each a place of study,
a child, a mentor. The model meets every fact as a plain question. The two-hop chain of thought it meets for a
part of the people only (`chained`); the others never occur in that form, neither as the one asked about nor
as the entity in between. Three further kinds of example store nothing and teach to read: facts and chains
that are answered from sentences in the question, and chains whose entities are drawn anew each time and are
not scored where they could only be guessed.

How often a fact is seen is a factor under control: people belong to three strata (`frequency` 1, 3 or 9,
relative), and `exposures` counts the examples that really showed each fact.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from llm_experiments.domains.two_hop.rendering import FIRST, SECOND, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.templates import COMPOSED, SIGNATURES, template
from llm_experiments.models.files import FileError, read_json

RELATIONS = tuple(SIGNATURES)
FREQUENCIES = (1, 3, 9)


class WorldError(ValueError):
    """A world that cannot be built or read; the message says what to change."""


class PersonRow(TypedDict):
    """A person as world.json has it."""

    name: str
    frequency: int
    chained: bool


class FactRow(TypedDict):
    """A fact as world.json has it."""

    person: str
    relation: str
    answer: str
    exposures: int


class WorldFile(TypedDict):
    """The content of world.json."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    seed: int
    places: list[str]
    people: list[PersonRow]
    facts: list[FactRow]


@dataclass(frozen=True)
class BaseWorld:
    """What the embedded model was taught.

    facts: (person, relation) -> name. chained: people whose chains of thought were shown. frequency: of each
    person's facts, relative. exposures: (person, relation) -> in how many examples the fact was shown.
    """

    people: tuple[str, ...]
    places: tuple[str, ...]
    facts: Mapping[tuple[str, str], str]
    chained: frozenset[str]
    frequency: Mapping[str, int]
    exposures: Mapping[tuple[str, str], int] = field(default_factory=dict)
    seed: int = 0

    def chains(self, chained: bool) -> tuple[tuple[str, str, str], ...]:
        """(person, first relation, second relation) of every known chain of people `chained` or not."""
        return tuple(
            (person, first, second)
            for person in self.people
            if (person in self.chained) == chained
            for first, second in COMPOSED
            if (self.facts.get((person, first), ""), second) in self.facts
        )

    def write(self, path: Path) -> None:
        rows = [
            {"person": p, "relation": r, "answer": y, "exposures": self.exposures.get((p, r), 0)}
            for (p, r), y in self.facts.items()
        ]
        people = [
            {"name": p, "frequency": self.frequency[p], "chained": p in self.chained} for p in self.people
        ]
        content = {"seed": self.seed, "places": list(self.places), "people": people, "facts": rows}
        path.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> BaseWorld:
        """Errors: WorldError for a file that `write` did not write."""
        try:
            content = TypeAdapter(WorldFile).validate_python(read_json(Path(path)))
        except (FileError, ValidationError) as error:
            reason = "; ".join(str(error).split("\n")[:3])
            raise WorldError(
                f"{path} is no world of an embedded model ({reason}); remove it, or take the folder that "
                "`pretrain` wrote"
            ) from error
        people, rows = content["people"], content["facts"]
        return BaseWorld(
            people=tuple(row["name"] for row in people),
            places=tuple(content["places"]),
            facts={(row["person"], row["relation"]): row["answer"] for row in rows},
            chained=frozenset(row["name"] for row in people if row["chained"]),
            frequency={row["name"]: row["frequency"] for row in people},
            exposures={(row["person"], row["relation"]): row["exposures"] for row in rows},
            seed=content["seed"],
        )


def build_world(
    people: Sequence[str], places: Sequence[str], *, seed: int, chained: float = 0.6
) -> BaseWorld:
    """Facts drawn at random over the given names.

    Marriage is mutual. `chained` is the share of couples shown in chains; every relation between people stays
    within that part or the other, so that no chain crosses. The strata of `frequency` are equally
    large in both parts. Errors: WorldError on an odd number of people, fewer than 12, or equal names.
    """
    if len(people) % 2 or len(people) < 12 or len(set(people)) < len(people):
        raise WorldError(
            f"{len(people)} people: the world needs an even number, at least 12, of different names"
        )
    rng = random.Random(seed)
    order = rng.sample(list(people), len(people))
    couples = list(zip(order[::2], order[1::2], strict=True))
    cut = round(chained * len(couples))
    facts: dict[tuple[str, str], str] = {}
    frequency: dict[str, int] = {}
    for part in (couples[:cut], couples[cut:]):
        members = [person for couple in part for person in couple]
        for number, (a, b) in enumerate(part):
            facts[a, "spouse_of"], facts[b, "spouse_of"] = b, a
            frequency[a] = frequency[b] = FREQUENCIES[number % len(FREQUENCIES)]
        for person in members:
            facts[person, "live_in"] = rng.choice(list(places))
        for person in rng.sample(members, len(members) // 3):
            facts[person, "study_in"] = rng.choice(list(places))
        for relation in ("child_of", "mentor_of"):
            for person in rng.sample(members, len(members) // 3):
                others = [m for m in members if m not in (person, facts[person, "spouse_of"])]
                facts[person, relation] = rng.choice(others)
    return BaseWorld(
        people=tuple(people),
        places=tuple(places),
        facts={(p, r): facts[p, r] for p in people for r in RELATIONS if (p, r) in facts},
        chained=frozenset(person for couple in couples[:cut] for person in couple),
        frequency={person: frequency[person] for person in people},
        seed=seed,
    )


@dataclass(frozen=True)
class Sample:
    """A question and its answer.

    entity: the name to answer. unscored: character spans of the answer that nothing could tell the model.
    """

    question: str
    answer: str
    entity: str
    kind: str
    unscored: tuple[tuple[int, int], ...] = ()


def ask(relation: str, k: int, x: str) -> str:
    return template((relation,), k).ask(x)


def tell(relation: str, k: int, x: str, y: str) -> str:
    return template((relation,), k).tell(x, y)


def ask_steps(first: str, second: str, k: int, x: str) -> str:
    return STEP_BY_STEP + template((first, second), k).ask(x)


def tell_steps(first: str, second: str, k: int, x: str, y: str, z: str) -> str:
    return (
        f"{FIRST}{ask(first, k, x)} {tell(first, k, x, y)} "
        f"{SECOND}{ask(second, k, y)} {tell(second, k, y, z)} {THEREFORE}{z}."
    )


MIXTURE: Mapping[str, float] = {"recall": 0.5, "chain": 0.07, "read": 0.2, "read chain": 0.13, "form": 0.1}
"""Shares of the kinds of example. "recall" and "chain" show the world; the rest teaches to read and copy."""
ONE_HOP: Mapping[str, float] = {"recall": 0.6, "read": 0.4}
"""The same without anything in the form of a chain of thought."""


def samples(
    world: BaseWorld,
    invented: Mapping[str, Sequence[str]],
    *,
    templates: Sequence[int],
    count: int,
    seed: int,
    mixture: Mapping[str, float] = MIXTURE,
    known: float = 0.3,
    fact_counts: Counter[tuple[str, str]] | None = None,
) -> Iterator[Sample]:
    """`count` examples in the proportions of `mixture`, worded by `templates`.

    invented: names of each kind, "person" and "place". known: share of the examples about drawn entities that
    draw people of the world, whose facts these then contradict. fact_counts: how often each fact of the
    world was taught, counted here.
    """
    draw = _Draw(world, invented, templates, known, random.Random(seed))
    facts, chains = list(world.facts), list(world.chains(chained=True))
    fact_weights = list(accumulate(world.frequency[person] for person, _ in facts))
    chain_weights = list(accumulate(world.frequency[person] for person, _, _ in chains))
    kinds, kind_weights = list(mixture), list(mixture.values())
    for _ in range(count):
        (kind,) = draw.rng.choices(kinds, kind_weights)
        taught = []
        if kind == "recall":
            ((x, relation),) = taught = draw.rng.choices(facts, cum_weights=fact_weights)
            sample = draw.plain(kind, x, relation, world.facts[x, relation], draw.wording())
        elif kind == "chain":
            ((x, first, second),) = draw.rng.choices(chains, cum_weights=chain_weights)
            y = world.facts[x, first]
            taught = [(x, first), (y, second)]
            sample = draw.chain(kind, x, first, y, second, world.facts[y, second], draw.wording())
        else:
            sample = draw.about_drawn_entities(kind)
        if fact_counts is not None:
            fact_counts.update(taught)
        yield sample


class _Draw:
    """Examples with a random wording, and entities drawn anew for one example."""

    def __init__(
        self,
        world: BaseWorld,
        invented: Mapping[str, Sequence[str]],
        templates: Sequence[int],
        known: float,
        rng: random.Random,
    ):
        self.world, self.invented, self.known = world, invented, known
        self.templates, self.rng = templates, rng
        self.chained = sorted(world.chained)
        self.taken: list[str] = []

    def wording(self) -> int:
        return self.rng.choice(self.templates)

    def plain(self, kind: str, x: str, relation: str, y: str, k: int, context: str = "") -> Sample:
        return Sample(context + ask(relation, k, x), tell(relation, k, x, y), y, kind)

    def chain(
        self, kind: str, x: str, first: str, y: str, second: str, z: str, k: int, context: str = ""
    ) -> Sample:
        answer = tell_steps(first, second, k, x, y, z)
        unscored = _guesses(answer, (first, second, k, x, y, z)) if kind == "form" else ()
        return Sample(context + ask_steps(first, second, k, x), answer, z, kind, unscored)

    def about_drawn_entities(self, kind: str) -> Sample:
        """A fact or chain of drawn entities, told in the question unless only the form is taught."""
        self.people = list(self.world.people) if kind == "read" else self.chained
        self.real, self.taken = self.rng.random() < self.known, []
        k, x = self.wording(), self.person()
        if kind == "read":
            relation = self.rng.choice(RELATIONS)
            y = self.end_of(relation)
            return self.plain(kind, x, relation, y, k, self.context([(x, relation, y)], k))
        first, second = self.rng.choice(COMPOSED)
        y, z = self.end_of(first), self.end_of(second)
        context = "" if kind == "form" else self.context([(x, first, y), (y, second, z)], k)
        return self.chain(kind, x, first, y, second, z, k, context)

    def context(self, facts: list[tuple[str, str, str]], k: int) -> str:
        """The facts as sentences in any order, half of them worded as the answer, sometimes with one more."""
        worded = {fact: k if self.rng.random() < 0.5 else self.wording() for fact in facts}
        if self.rng.random() < 0.4:
            about, relation, _ = self.rng.choice(facts)
            if self.rng.random() < 0.5:
                about = self.person()
            else:
                relation = self.rng.choice(
                    [r for r in RELATIONS if (about, r) not in {(a, b) for a, b, _ in facts}]
                )
            worded[about, relation, self.end_of(relation)] = self.wording()
        sentences = [tell(r, j, x, y) + " " for (x, r, y), j in worded.items()]
        self.rng.shuffle(sentences)
        return "".join(sentences)

    def person(self) -> str:
        return self.new(self.people if self.real else self.invented["person"])

    def end_of(self, relation: str) -> str:
        if SIGNATURES[relation][1] == "person":
            return self.person()
        return self.new(self.world.places if self.rng.random() < 0.5 else self.invented["place"])

    def new(self, names: Sequence[str]) -> str:
        while (name := self.rng.choice(names)) in self.taken:
            pass
        self.taken.append(name)
        return name


def _guesses(answer: str, chain: tuple[str, str, int, str, str, str]) -> tuple[tuple[int, int], ...]:
    """Where the two hop answers name y and z: not to be known from the question, so not scored."""
    first, second, k, x, y, z = chain
    start = len(FIRST) + len(ask(first, k, x)) + 1
    middle = start + len(tell(first, k, x, y)) + 1 + len(SECOND) + len(ask(second, k, y)) + 1
    spans = []
    for begin, sentence, left, right in (
        (start, template((first,), k).answer, x, y),
        (middle, template((second,), k).answer, y, z),
    ):
        at = begin + len(sentence[: sentence.index("{y}")].replace("{x}", left))
        if answer[at : at + len(right)] != right:
            raise WorldError(f"template {k} of {first} or {second} must name {{y}} once: {sentence!r}")
        spans.append((at, at + len(right)))
    return tuple(spans)
