"""Which entity an answer names: a model's text read against the names of a composition's entities.

Of several entities with one name counts the question's correct, its bridge, what the base answers, the
world's old answer, then a trained answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.templates import SIGNATURES, vocabulary
from llm_experiments.scoring import Mark, Score, scorer
from llm_experiments.scoring.words import (
    Mention,
    Names,
    Said,
    contains,
    edit_distance,
    final_answer,
    places,
    plain,
    spoken,
    words,
)
from results.rows import Item
from toytransformer.compositions import OUTCOMES, Composition
from toytransformer.compositions.spec import trained_answers

_SECOND = ("second", "we", "need")
#: Where an answer step by step names something: in its first step, in its second behind the right first one,
#: and in its second behind what was written.
HOP1, HOP2, WRITTEN = "hop1", "hop2", "hop2 as written"

MARKS = {
    "exact": "the text is the expected one; of chains: ends in the right name",
    "contains": "the text names the right entity somewhere",
    "hop1_right": "the first step names the bridge",
    "bridge_copied": "the second question is about the entity that the first step gave",
    "hop2_right": "the second step names the right entity",
    "has_form": "the text says what the answer is, as a chain ends",
    "says_world_old": "the answer is what the world held before the edits",
    "edit_distance": "of an answer that is `other`: letters between its name and the nearest trained answer",
}


@dataclass(frozen=True)
class Steps:
    """What a chain of thought says on its way, as entities: to hop 1, asked in hop 2, to hop 2.

    begun: the text up to the name that answers hop 2.
    """

    hop1: str | None
    asked: str | None
    hop2: str | None
    begun: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class _Question:
    """An item as the scorer sees it: the entity asked about, its relations, the roles in precedence."""

    entity: str
    relations: tuple[str, ...]
    roles: tuple[str | None, ...]
    ask: str

    @classmethod
    def of(cls, item: Item, base_answer: str | None) -> _Question:
        entity, *relations = str(item.extra["prompt"]).split()
        roles = (
            item.roles.get("correct"),
            item.roles.get("bridge"),
            base_answer,
            item.roles.get("world_old"),
        )
        return cls(entity, tuple(relations), roles, item.ask)


def context(composition: Composition, lexicon: Lexicon) -> dict[str, Any]:
    """What Entities is made from: names, kinds and relations by token, and the answers that are trained.

    In one order whatever the composition, so that equal contexts are one input.
    """
    return {
        "names": dict(sorted(lexicon.names.items())),
        "kinds": dict(sorted(entity_kinds(composition, lexicon).items())),
        "ends": {relation: SIGNATURES[word][1] for relation, word in sorted(lexicon.relations.items())},
        "edited": sorted(trained_answers(composition.adapters)),
    }


def entity_kinds(composition: Composition, lexicon: Lexicon) -> dict[str, str]:
    """Whether each entity is a "person" or a "place", from the relations of the facts it stands in."""
    facts = [*composition.world.edits, *composition.world.base, *composition.examples]
    for adapter in composition.adapters:
        facts += [*adapter.facts, *adapter.chains]
    kinds = {}
    for fact in facts:
        first, last = (SIGNATURES[lexicon.worded(fact.prompt.relations)[hop]] for hop in (0, -1))
        kinds[fact.prompt.entity], kinds[fact.answer] = first[0], last[1]
    return kinds


@scorer("entities", outcomes=OUTCOMES, marks=MARKS)
class Entities:
    """Reads texts as entities. Made from the context: {"names", "kinds", "ends", "edited"}, see `context`."""

    def __init__(self, context: Mapping[str, Any]):
        self.names: Mapping[str, str] = context["names"]
        self.kinds: Mapping[str, str] = context["kinds"]
        self.ends: Mapping[str, str] = context["ends"]
        self.edited: frozenset[str] = frozenset(context["edited"])
        self._with: dict[str, Names] = {}
        self._distances: dict[tuple[str, str], int | None] = {}

    def score(self, item: Item, text: str, base_answer: str | None) -> Score:
        """The entity answered, which of the five outcomes that is, and the marks of its text.

        base_answer: as the base's own context calls it, where what is an entity here may be a mere name.
        """
        base_answer = None if base_answer is None else self.entity(base_answer)
        answer = self.answer(item, text, base_answer)
        outcome = self.outcome(item, answer, base_answer)
        marks = self._marks(item, text, answer, base_answer)
        if outcome == "other":
            marks["edit_distance"] = self._edit_distance(item, text, answer)
        return Score(outcome, answer, marks)

    def outcome(self, item: Item, answer: str | None, base_answer: str | None) -> str:
        """Which of the five an answer is: the first that fits."""
        if answer is not None:
            roles = {"correct": item.roles.get("correct"), "bridge": item.roles.get("bridge")}
            for role, entity in (roles | {"old": base_answer}).items():
                if answer == entity:
                    return role
        return "edited" if answer in self.edited else "other"

    def answer(self, item: Item, text: str, base_answer: str | None = None) -> str | None:
        """The entity answered, None where none is named.

        In the text (of chains: behind the last "the answer is", else in the last sentence) the first name of
        the kind asked for, else the first other one; the entity asked about does not count. base_answer: may
        be a name that no entity has, which is looked for as well, unless the right answer or the bridge is
        found without it.
        """
        if base_answer is not None and base_answer not in self.names and base_answer not in self.kinds:
            answer = self.answer(item, text)
            if answer is not None and answer in (item.roles.get("correct"), item.roles.get("bridge")):
                return answer
        asked = _Question.of(item, base_answer)
        said = Said(spoken(text))
        for mentions in self._mentions(said, base_answer):
            start = self._start(asked, said, mentions)
            answer = self._first(mentions, asked, self._kind(asked, -1), start)
            if answer is None:
                answer = self._first(mentions, asked, None, start)
            if answer is not None:
                return answer
        return None

    def base_answer(self, item: Item, text: str) -> str | None:
        """What the base answers: an entity of the kind asked for, else a name that no entity here has (a
        guess from capital letters, as nobody knows its world), else another entity."""
        asked = _Question.of(item, None)
        said, kind = Said(spoken(text)), self._kind(asked, -1)
        for mentions in self._mentions(said, None):
            answer = self._first(mentions, asked, kind, self._start(asked, said, mentions))
            if answer is not None:
                return answer
        guess = self._guess(item, text)
        if guess is None or any(self._mentions(Said(guess), None)):
            return self.answer(item, text)
        return guess

    def _guess(self, item: Item, text: str) -> str | None:
        """A name in the text that no entity here need have, from capital letters."""
        asked = _Question.of(item, None)
        ending = final_answer(text) if asked.ask == "steps" else None
        return guessed_name(ending or text, item.question, self._kind(asked, -1))

    def _edit_distance(self, item: Item, text: str, answer: str | None) -> int | None:
        """Letters between the name answered and the nearest trained answer of the kind asked for.

        None where the text has no name, or nothing of that kind was trained.
        """
        name = self._guess(item, text) if answer is None else self.name(answer)
        kind = self._kind(_Question.of(item, None), -1)
        return None if name is None else self._nearest(name, kind)

    def _nearest(self, name: str, kind: str) -> int | None:
        """Letters between a name and the nearest trained answer of a kind."""
        if (name, kind) not in self._distances:
            trained = (t for t in self.edited if t in self.names and self.kinds.get(t) == kind)
            distances = (edit_distance(name, self.names[token]) for token in trained)
            self._distances[name, kind] = min(distances, default=None)
        return self._distances[name, kind]

    def name(self, answer: str) -> str | None:
        """The entity's name; a name that no entity has is its own."""
        return self.names.get(answer, None if answer in self.kinds else answer)

    def entity(self, answer: str) -> str:
        """The entity of that name, the first by token where several have it; else the answer as it is."""
        return answer if answer in self.names else self._entities.get(answer, answer)

    @cached_property
    def _entities(self) -> dict[str, str]:
        """The first entity of each name."""
        return {self.names[token]: token for token in sorted(self.names, reverse=True)}

    def steps(self, item: Item, text: str, base_answer: str | None = None) -> Steps:
        """What a chain says on its way: to hop 1, whom it then asks about, and to hop 2."""
        asked = _Question.of(item, base_answer)
        said = Said(spoken(text))
        middle, last = self._kind(asked, 0), self._kind(asked, -1)
        second = min(places(said.folded, _SECOND), default=len(said.folded))
        end = said.before_answer
        for mentions in self._mentions(said, base_answer):
            hop1 = self._first(mentions, asked, middle, 0, second)
            about = self._first(mentions, asked, middle, second, end)
            behind = [mention for mention in mentions if about not in mention.tokens]
            hop2, where = self._first_at(behind, asked, last, second, end)
            if hop1 or about or hop2:
                begun = None if where is None else said.plain[: said.words[where.start][1]]
                return Steps(hop1, about, hop2, begun)
        return Steps(None, None, None)

    def begun(self, item: Item, text: str, place: str) -> str | None:
        """The text up to the name that its second step answers with, None where it names nobody there."""
        return self.steps(item, text).begun if place == WRITTEN else None

    def _marks(self, item: Item, text: str, answer: str | None, base_answer: str | None) -> dict[str, Mark]:
        said = spoken(text)
        marks: dict[str, Mark] = {}
        name = self.names.get(item.roles.get("correct", ""))
        if item.target is not None and name is not None:
            if item.ask == "steps":
                ending = final_answer(said)
                marks["exact"] = ending is not None and words(ending) == words(name)
            else:
                marks["exact"] = words(said) == words(item.target)
            marks["contains"] = contains(said, name)
        if item.ask == "steps":
            marks["has_form"] = final_answer(said) is not None
            marks |= self._hops(item, text, base_answer)
        if (old := self.names.get(item.roles.get("world_old", ""))) is not None:
            marks["says_world_old"] = answer is not None and self.names.get(answer, answer) == old
        return marks

    def _hops(self, item: Item, text: str, base_answer: str | None) -> dict[str, Mark]:
        if len(str(item.extra["prompt"]).split()) != 3:
            return {}
        said = self.steps(item, text, base_answer)
        return {
            "hop1_right": None if said.hop1 is None else said.hop1 == item.roles.get("bridge"),
            "bridge_copied": None if None in (said.hop1, said.asked) else said.asked == said.hop1,
            "hop2_right": None if said.hop2 is None else said.hop2 == item.roles.get("correct"),
        }

    def _kind(self, asked: _Question, hop: int) -> str:
        return self.ends[asked.relations[hop]]

    def _start(self, asked: _Question, said: Said, mentions: Sequence[Mention]) -> int:
        """The word from which an answer is looked for."""
        start = said.after_answer if asked.ask == "steps" else 0
        return said.last_sentence(mentions) if start is None else start

    def _mentions(self, said: Said, base_answer: str | None) -> Iterator[list[Mention]]:
        """The names in a text, the base's answer among them where no entity has it."""
        if base_answer is None or base_answer in self.kinds or base_answer in self.names:
            return self._finder.mentions(said)
        if base_answer not in self._with:
            self._with[base_answer] = Names({**self.names, base_answer: base_answer})
        return self._with[base_answer].mentions(said)

    @cached_property
    def _finder(self) -> Names:
        return Names(self.names)

    def _first(
        self,
        mentions: Sequence[Mention],
        asked: _Question,
        kind: str | None,
        start: int,
        end: int | None = None,
    ) -> str | None:
        """The first entity of a kind (None: any) named between two words, other than the one asked about."""
        return self._first_at(mentions, asked, kind, start, end)[0]

    def _first_at(
        self,
        mentions: Sequence[Mention],
        asked: _Question,
        kind: str | None,
        start: int,
        end: int | None = None,
    ) -> tuple[str | None, Mention | None]:
        """The same, and where it is named."""
        for mention in mentions:
            inside = start <= mention.start and (end is None or mention.end <= end)
            if not inside or asked.entity in mention.tokens:
                continue
            edited = sorted(self.edited.intersection(mention.tokens))
            for token in dict.fromkeys((*asked.roles, *edited, *mention.tokens)):
                if token in mention.tokens and (kind is None or self.kinds.get(token, kind) == kind):
                    return token, mention
        return None, None


def guessed_name(text: str, asked: str, kind: str) -> str | None:
    """The name a text about unknown entities answers with: a guess from capital letters, None without any.

    The first run of capitalised words that is neither in the question nor made of the templates' words; of
    places, one behind a preposition where there is one. For the answers of a base model whose world nobody
    knows, and for how far a name is from others, never for the outcome of a merge.
    """
    shown = plain(spoken(text))
    word = r"[^\W\d_a-z][\w'’-]*\.?"
    runs = list(re.finditer(rf"(?:St\. )?{word}(?: (?:(?:of|de|del|da|do|la|le|the|upon) )?{word})*", shown))
    known = set(words(asked)) | vocabulary()
    runs = [run for run in runs if not set(words(run[0])) <= known and len(run[0]) > 1]
    behind = [run for run in runs if re.search(r"\b(in|at|near|from|to)\W+$", shown[: run.start()])]
    chosen = behind if kind == "place" and behind else runs
    return chosen[0][0].rstrip(".") if chosen else None
