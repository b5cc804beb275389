"""Worlds of entities and relations: what the base model knows, what is edited, and what is then true.

A relation r is a partial function on entities. The base model knows facts y = r(x); edits replace some of
them, written r~(x) in the paper (section 3). The prompt ``x R1 R2`` asks for r2(r1(x)).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


class SpecError(ValueError):
    """A specification that means nothing; the message names the value, what is allowed and what to do."""


def check_name(name: object, what: str) -> None:
    """Refuse anything but a non-blank string as the name of `what`."""
    if not isinstance(name, str) or not name.strip():
        raise SpecError(f"{what} {name!r} is not a name: give a non-empty string")


def check_tuple(values: object, kind: type, what: str) -> None:
    """Refuse anything but a tuple of `kind`: a bare string and a list are refused too."""
    if not isinstance(values, tuple):
        raise SpecError(f"{what} {values!r} is a {type(values).__name__}: give a tuple of {kind.__name__}")
    for value in values:
        if not isinstance(value, kind):
            raise SpecError(
                f"{value!r} among the {what} is not a {kind.__name__}: give a tuple of {kind.__name__}"
            )


def repeated(values: Iterable) -> list:
    """The values that occur more than once, in order of their repetition."""
    seen, again = set(), []
    for value in values:
        if value in seen:
            again.append(value)
        seen.add(value)
    return again


@dataclass(frozen=True)
class Prompt:
    """An entity and the relations to apply to it, first hop first: ``X REL1 REL2`` (section 3)."""

    entity: str
    relations: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.entity, "entity")
        check_tuple(self.relations, str, "relations")
        for relation in self.relations:
            check_name(relation, "relation")
        if not self.relations:
            raise SpecError(
                f"the prompt of {self.entity!r} has no relations: a prompt asks for at least one hop"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens p_1 .. p_N in order: the entity, then the relations."""
        return (self.entity, *self.relations)

    @property
    def hops(self) -> int:
        """Number of relations, N - 1."""
        return len(self.relations)

    def __str__(self) -> str:
        return " ".join(self.tokens)


@dataclass(frozen=True)
class Fact:
    """What a model is to answer on a prompt, of one hop or more."""

    prompt: Prompt
    answer: str

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, Prompt):
            raise SpecError(f"{self.prompt!r} is not a Prompt: write Fact(Prompt(entity, relations), answer)")
        check_name(self.answer, "answer")

    @classmethod
    def of(cls, entity: str, *relations_and_answer: str) -> "Fact":
        """Fact.of("x1", "R1", "R2", "z1") says that ``x1 R1 R2`` is answered by z1."""
        *relations, answer = relations_and_answer
        return cls(Prompt(entity, tuple(relations)), answer)

    def __str__(self) -> str:
        return f"{self.prompt} -> {self.answer}"


def _function(facts: tuple[Fact, ...], what: str) -> dict[tuple[str, ...], str]:
    """Look-up (entity, relation) -> answer; SpecError unless each fact has one hop and is given once."""
    table: dict[tuple[str, ...], str] = {}
    for fact in facts:
        if fact.prompt.hops != 1:
            raise SpecError(
                f"{what} fact '{fact}' has {fact.prompt.hops} hops: a world is given by one-hop facts only"
            )
        if (known := table.setdefault(fact.prompt.tokens, fact.answer)) != fact.answer:
            raise SpecError(
                f"{what} facts answer '{fact.prompt}' by {known!r} and by {fact.answer!r}: "
                "a relation is a function, keep one answer"
            )
    if len(table) < len(facts):
        raise SpecError(f"{what} fact '{repeated(facts)[0]}' is given twice: state each fact once")
    return table


@dataclass(frozen=True)
class World:
    """Entities, relations, the one-hop facts the base model knows and the edits that override them.

    multi_hop: facts of several hops that the base knows as answers to prompts of their own. None: whatever
    its one-hop facts entail, if it is exact; nothing, if it is trained (toytransformer.bases).
    Errors: SpecError if a relation has two answers on one entity, a fact is repeated, has the wrong number of
    hops or uses a token outside the world, a token is both entity and relation, or a name is blank or
    repeated.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    base: tuple[Fact, ...] = ()
    edits: tuple[Fact, ...] = ()
    multi_hop: tuple[Fact, ...] | None = None

    def __post_init__(self) -> None:
        for what, names in (("entities", self.entities), ("relations", self.relations)):
            check_tuple(names, str, what)
            for name in names:
                check_name(name, f"one of the {what}")
            if twice := repeated(names):
                raise SpecError(f"{twice[0]!r} is repeated among the {what}: list each name once")
        if both := self.entity_set & self.relation_set:
            raise SpecError(
                f"{min(both)!r} is both an entity and a relation: a token has one role, rename one of the two"
            )
        for what, facts in (("base", self.base), ("edit", self.edits), ("multi-hop", self.multi_hop or ())):
            check_tuple(facts, Fact, f"{what} facts")
            for fact in facts:
                self.check_tokens(fact.prompt, fact.answer)
        _ = self._edited  # built now, so that a relation with two answers is refused here
        if short := [fact for fact in self.multi_hop or () if fact.prompt.hops == 1]:
            raise SpecError(f"multi-hop fact '{short[0]}' has one hop: list it among the base's facts")
        if twice := repeated(fact.prompt for fact in self.multi_hop or ()):
            raise SpecError(f"'{twice[0]}' has two multi-hop facts: keep one")

    @classmethod
    def of(cls, base: Iterable[Fact] = (), edits: Iterable[Fact] = ()) -> "World":
        """The smallest world that holds these facts; names in order of first appearance, edits first."""
        base, edits = tuple(base), tuple(edits)
        names = ((fact.prompt.entity, fact.answer) for fact in edits + base)
        entities = dict.fromkeys(name for pair in names for name in pair)
        relations = dict.fromkeys(relation for fact in edits + base for relation in fact.prompt.relations)
        return cls(tuple(entities), tuple(relations), base, edits)

    @cached_property
    def entity_set(self) -> frozenset[str]:
        """The entities, for membership tests."""
        return frozenset(self.entities)

    @cached_property
    def relation_set(self) -> frozenset[str]:
        """The relations, for membership tests."""
        return frozenset(self.relations)

    @cached_property
    def _base(self) -> Mapping[tuple[str, ...], str]:
        return _function(self.base, "base")

    @cached_property
    def _edited(self) -> Mapping[tuple[str, ...], str]:
        return {**self._base, **_function(self.edits, "edit")}

    @cached_property
    def _multi_hop(self) -> Mapping[Prompt, str] | None:
        facts = self.multi_hop
        return None if facts is None else {fact.prompt: fact.answer for fact in facts}

    def old(self, prompt: Prompt) -> str | None:
        """The base model's answer to the prompt, None when it has none.

        r_k(..r_1(x)) where it knows every hop; where `multi_hop` is given, that of several hops is among it.
        """
        if self._multi_hop is not None and prompt.hops > 1:
            self.check_tokens(prompt)
            return self._multi_hop.get(prompt)
        return self.entailed(prompt)

    def entailed(self, prompt: Prompt) -> str | None:
        """r_k(..r_1(x)) by the base's one-hop facts, as it answers step by step; None without one of them."""
        return self._follow(self._base, prompt)

    @property
    def known(self) -> tuple[Fact, ...]:
        """Every fact that the base is given as such: of one hop, then of several."""
        return (*self.base, *(self.multi_hop or ()))

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """The kind of every entity, named after the first of its members.

        Entities that answer the same relation, or are asked the same relation, are of one kind.
        """
        parent = {entity: entity for entity in self.entities}

        def root(entity: str) -> str:
            while parent[entity] != entity:
                parent[entity] = entity = parent[parent[entity]]
            return entity

        first: dict[tuple[str, str], str] = {}
        for fact in (*self.base, *self.edits):
            (relation,) = fact.prompt.relations
            for role, entity in (("asked", fact.prompt.entity), ("answer", fact.answer)):
                parent[root(entity)] = root(first.setdefault((role, relation), entity))
        named: dict[str, str] = {}
        return {entity: named.setdefault(root(entity), entity) for entity in self.entities}

    def truth(self, prompt: Prompt) -> str | None:
        """The right answer once edits override the base, r~_k(..r~_1(x)), None when a hop is undefined."""
        return self._follow(self._edited, prompt)

    def _follow(self, table: Mapping[tuple[str, ...], str], prompt: Prompt) -> str | None:
        self.check_tokens(prompt)
        entity: str | None = prompt.entity
        for relation in prompt.relations:
            entity = None if entity is None else table.get((entity, relation))
        return entity

    def check_tokens(self, prompt: Prompt, *answers: str | None) -> None:
        """SpecError when the prompt or one of the answers (None is none) uses a token outside the world."""
        for entity in (prompt.entity, *answers):
            if entity is not None and entity not in self.entity_set:
                raise SpecError(_outside("entity", entity, prompt, self.entities))
        for relation in prompt.relations:
            if relation not in self.relation_set:
                raise SpecError(_outside("relation", relation, prompt, self.relations))


def _outside(role: str, token: str, prompt: Prompt, allowed: tuple[str, ...], most: int = 8) -> str:
    shown = ", ".join(allowed[:most]) + (", .." if len(allowed) > most else "")
    return f"{role} {token!r} at '{prompt}' is not in the world: add it, or use one of: {shown or '(none)'}"
