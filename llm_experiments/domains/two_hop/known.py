"""Real names where a base model's world is known: edits are false in it, old answers are true in it."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from llm_experiments.domains.two_hop.names import NamesError
from llm_experiments.domains.two_hop.templates import SIGNATURES
from toytransformer.compositions import Composition, Fact, Prompt


class KnownFacts(Protocol):
    """What a base model is known to know, by surface names.

    people: those it knows. facts: (person, relation such as "spouse_of") -> name.
    """

    @property
    def people(self) -> Iterable[str]: ...
    @property
    def facts(self) -> Mapping[tuple[str, str], str]: ...


def in_bridge(entity: str) -> bool:
    """Whether an abstract entity belongs to a bridge."""
    return entity.startswith("bridge_")


def names_known(
    composition: Composition,
    sources: Mapping[str, str],
    *,
    wanted: frozenset[str],
    words: Mapping[str, str],
    seed: int,
    base_world: KnownFacts,
) -> dict[str, str]:
    """Names of the real people and cities (`sources`, in order), drawn from those a base model knows.

    wanted: entities that must have a name; the others stand in facts of the base alone and get what it
    really knows. words: the English relation of each abstract one.
    No fact that is taught, and no asked question's right answer, is what the base knows. People have distinct
    names, and so have the wanted cities; old answers may share a city with each other, and with a wanted one
    only where the base knows too few. An old answer the base does not know is absent, and so are controls
    (u1 -> v1 -> w1) that nobody asks about when people run out. The tested entities come first: a bridge
    does not change their names.
    Errors: NamesError when the base knows too few people or places.
    """
    return _Names(composition, sources, wanted, words, seed, base_world).all()


class _Names:
    """The names given so far, and what may still be given."""

    def __init__(
        self,
        composition: Composition,
        sources: Mapping[str, str],
        wanted: frozenset[str],
        words: Mapping[str, str],
        seed: int,
        base_world: KnownFacts,
    ):
        self.sources, self.wanted, self.words = sources, wanted, words
        self.known = base_world.facts
        self.relations = {relation for _, relation in self.known}
        rng = random.Random(f"known names:{seed}")
        self.people = rng.sample(sorted(base_world.people), len(set(base_world.people)))
        ends = {relation: kinds[1] for relation, kinds in SIGNATURES.items()}
        places = sorted({name for (_, relation), name in self.known.items() if ends[relation] == "place"})
        self.places = rng.sample(places, len(places))
        self.old: dict[str, list[Fact]] = {}
        for fact in composition.world.base:
            self.old.setdefault(fact.prompt.entity, []).append(fact)
        self.answers = {fact.answer for fact in composition.world.base}
        self.question_entities = {question.prompt.entity for question in composition.questions}
        self.taught: dict[str, list[Fact]] = {}
        for fact in _taught(composition):
            for entity in {fact.prompt.entity, fact.answer}:
                self.taught.setdefault(entity, []).append(fact)
        self.names: dict[str, str] = {}
        self.used: set[str] = set()

    def all(self) -> dict[str, str]:
        for bridge in (False, True):
            wanted = [e for e in self.sources if e in self.wanted and in_bridge(e) == bridge]
            for entity in wanted:
                if self.sources[entity] == "real people" and not self._name_person(entity):
                    raise self._nobody(entity)
            for entity in wanted:
                if self.sources[entity] == "real cities":
                    self._name_place(entity)
        for entity, source in self.sources.items():
            root = entity not in self.answers and entity not in self.names
            if (
                source == "real people"
                and root
                and not self._name_person(entity)
                and entity in self.question_entities
            ):
                raise self._nobody(entity)
        return self.names

    def _nobody(self, entity: str) -> NamesError:
        return NamesError(
            f"the {len(self.people)} people whom the base model knows leave nobody for {entity!r}: ask for "
            "fewer triplets, give it a larger world, or build the composition with known=False"
        )

    def _name_person(self, entity: str) -> bool:
        """Give the next person of whom the base knows what it is to know; else one of whom it knows less."""
        for strict in (True, False):
            for candidate in self.people:
                given = None if candidate in self.used else self._with_old(entity, candidate, strict)
                if given is not None and not self._is_known(entity, self.names | given):
                    self.names.update(given)
                    self.used.update(given[e] for e in given if self.sources[e] == "real people")
                    return True
        return False

    def _with_old(self, entity: str, name: str, strict: bool) -> dict[str, str] | None:
        """The name, with those of the old answers behind it; None if they do not fit.

        strict: the base must know every old answer it knows of anybody, and none may be a wanted city.
        """
        given, queue, people = {}, [(entity, name)], set(self.used)
        while queue:
            entity, name = queue.pop()
            if self.sources[entity] == "real people":
                if name in people:
                    return None
                people.add(name)
            elif strict and name in self.used:
                return None
            given[entity] = name
            for fact in self.old.get(entity, ()):
                if fact.answer in self.wanted or fact.answer not in self.sources:
                    continue
                relation = self.words[fact.prompt.relations[0]]
                answer = self.known.get((name, relation))
                named = given.get(fact.answer, self.names.get(fact.answer))
                if answer is None:
                    if strict and relation in self.relations:
                        return None
                elif named is None:
                    queue.append((fact.answer, answer))
                elif named != answer:
                    return None
        return given

    def _is_known(self, entity: str, names: Mapping[str, str]) -> bool:
        """Whether something taught about the entity is what the base knows, under these names."""
        return any(
            fact.answer in names and self._base(fact.prompt, names) == names[fact.answer]
            for fact in self.taught.get(entity, ())
        )

    def _base(self, prompt: Prompt, names: Mapping[str, str]) -> str | None:
        """What the base answers, by name."""
        name = names.get(prompt.entity)
        for relation in prompt.relations:
            name = None if name is None else self.known.get((name, self.words[relation]))
        return name

    def _name_place(self, entity: str) -> None:
        """Give the next city nobody has; one that is an old answer elsewhere only when no other is left."""
        for taken in ({*self.used, *self.names.values()}, self.used):
            for name in self.places:
                if name not in taken and not self._is_known(entity, self.names | {entity: name}):
                    self.names[entity] = name
                    self.used.add(name)
                    return
        raise NamesError(
            f"the {len(self.places)} places that the base model knows leave none for {entity!r}: ask for "
            "fewer triplets, or give it a larger world"
        )


def _taught(composition: Composition) -> Iterator[Fact]:
    """What the base must not know: edits, whatever adapters and examples state, and right answers."""
    yield from composition.world.edits
    for adapter in composition.adapters:
        yield from (*adapter.facts, *adapter.chains)
    yield from composition.examples
    for question in composition.questions:
        if question.correct is not None and question.correct != question.old:
            yield Fact(question.prompt, question.correct)
