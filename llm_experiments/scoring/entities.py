"""Which entity an answer names: a model's text read against the names of a composition.

A name counts where all its words stand together, longest names first, so "York" is not found in "New York".
Case, accents, punctuation and white space are set aside, case only where nothing is found with it ("Nice").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llm_experiments.domains.two_hop.lexicon import Lexicon
from llm_experiments.domains.two_hop.templates import SIGNATURES, vocabulary
from toytransformer.compositions import Composition, Question

_ANSWER = ("the", "answer", "is")
_SECOND = ("second", "we", "need")


def words(text: str) -> list[str]:
    """The words of a text without case, accents and punctuation: what "exact" and "contains" compare."""
    return [word.casefold() for word, _, _ in _words(text)]


def contains(text: str, name: str) -> bool:
    """Whether the name's words stand together in the text."""
    return bool(_places(words(text), words(name)))


def spoken(text: str) -> str:
    """The text behind a model's thoughts: behind the last </think>, all of it where there is none."""
    return text.rpartition("</think>")[2]


def final_answer(text: str) -> str | None:
    """What stands behind the last "the answer is", None where nobody says so."""
    shown = _plain(spoken(text))
    found = list(re.finditer(r"\bthe\W+answer\W+is\b", shown, re.IGNORECASE))
    return shown[found[-1].end() :].strip() if found else None


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


def extract(text: str, question: Question, lexicon: Lexicon, kinds: Mapping[str, str]) -> str | None:
    """The entity (abstract token) that a text answers a question with; see Reader.answer."""
    return Reader(lexicon, kinds).answer(text, question)


@dataclass(frozen=True)
class Steps:
    """What a chain of thought says on its way, in abstract tokens: to hop 1, asked in hop 2, to hop 2."""

    hop1: str | None
    asked: str | None
    hop2: str | None


@dataclass(frozen=True)
class _Mention:
    """Words start .. end - 1 are a name; tokens: the entities that bear it."""

    start: int
    end: int
    tokens: tuple[str, ...]


class Reader:
    """Finds the names of a lexicon in texts.

    kinds: "person" or "place" by entity. also: names of further entities, such as a base model's answer.
    """

    def __init__(self, lexicon: Lexicon, kinds: Mapping[str, str], also: Mapping[str, str] | None = None):
        self.lexicon = lexicon
        self.kinds = kinds
        self.names = {**lexicon.names, **(also or {})}

    def answer(self, text: str, question: Question) -> str | None:
        """The entity answered, None where none is named.

        In the text (of chains: behind the last "the answer is", else in the last sentence) the first name of
        the kind asked for, else the first other one; the entity asked about does not count. Of several
        entities with one name: the question's correct, bridge, old, then a trained answer.
        """
        said = _Text(spoken(text))
        for mentions in self._mentions(said):
            start = said.after_answer if question.decode == "steps" else 0
            if start is None:
                start = said.last_sentence(mentions)
            found = self._first(mentions, question, self._kind(question, -1), start)
            if found is None:
                found = self._first(mentions, question, None, start)
            if found is not None:
                return found
        return None

    def steps(self, text: str, question: Question) -> Steps:
        """What a chain says on its way: to hop 1, whom it then asks about, and to hop 2."""
        said = _Text(spoken(text))
        middle, last = self._kind(question, 0), self._kind(question, -1)
        second = min(_places(said.folded, _SECOND), default=len(said.folded))
        end = said.before_answer
        for mentions in self._mentions(said):
            hop1 = self._first(mentions, question, middle, 0, second)
            asked = self._first(mentions, question, middle, second, end)
            told = [mention for mention in mentions if asked not in mention.tokens]
            hop2 = self._first(told, question, last, second, end)
            if hop1 or asked or hop2:
                return Steps(hop1, asked, hop2)
        return Steps(None, None, None)

    def _kind(self, question: Question, hop: int) -> str:
        return SIGNATURES[self.lexicon.worded(question.prompt.relations)[hop]][1]

    def _mentions(self, said: _Text) -> Iterable[list[_Mention]]:
        """The names in a text in order: as written, then in any case if that finds none."""
        yield _find(said.cased, self._cased)
        yield _find(said.folded, self._folded)

    @cached_property
    def _cased(self) -> dict[str, list]:
        return _index(self.names, lambda word: word)

    @cached_property
    def _folded(self) -> dict[str, list]:
        return _index(self.names, str.casefold)

    def _first(
        self,
        mentions: Sequence[_Mention],
        question: Question,
        kind: str | None,
        start: int,
        end: int | None = None,
    ) -> str | None:
        """The first entity of a kind (None: any) named between two words, other than the one asked about."""
        for mention in mentions:
            inside = start <= mention.start and (end is None or mention.end <= end)
            if not inside or question.prompt.entity in mention.tokens:
                continue
            roles = (question.correct, question.bridge, question.old, *sorted(question.edited))
            tokens = [token for token in dict.fromkeys((*roles, *mention.tokens)) if token in mention.tokens]
            for token in tokens:
                if kind is None or self.kinds.get(token, kind) == kind:
                    return token
        return None


def guessed_name(text: str, asked: str, kind: str) -> str | None:
    """The name a text about unknown entities answers with: a guess from capital letters, None without any.

    The first run of capitalised words that is neither in the question nor made of the templates' words; of
    places, one behind a preposition where there is one. For the answers of a base model whose world nobody
    knows, never for the outcome of a merge.
    """
    shown = _plain(spoken(text))
    word = r"[^\W\d_a-z][\w'’-]*\.?"
    runs = list(re.finditer(rf"(?:St\. )?{word}(?: (?:(?:of|de|del|da|do|la|le|the|upon) )?{word})*", shown))
    known = set(words(asked)) | vocabulary()
    runs = [run for run in runs if not set(words(run[0])) <= known and len(run[0]) > 1]
    behind = [run for run in runs if re.search(r"\b(in|at|near|from|to)\W+$", shown[: run.start()])]
    chosen = behind if kind == "place" and behind else runs
    return chosen[0][0].rstrip(".") if chosen else None


class _Text:
    """A text as words, with the places its sentences and its final answer begin at."""

    def __init__(self, text: str):
        self.found = _words(text)
        self.cased = [word for word, _, _ in self.found]
        self.folded = [word.casefold() for word in self.cased]
        self.plain = _plain(text)

    @property
    def after_answer(self) -> int | None:
        places = _places(self.folded, _ANSWER)
        return places[-1] + len(_ANSWER) if places else None

    @property
    def before_answer(self) -> int:
        places = _places(self.folded, _ANSWER)
        return places[-1] if places else len(self.folded)

    def last_sentence(self, mentions: Sequence[_Mention]) -> int:
        """The word that the last sentence begins with; a full stop inside a name ("St. Louis") ends none."""
        inside = {place for mention in mentions for place in range(mention.start + 1, mention.end)}
        for place in range(len(self.found) - 1, 0, -1):
            gap = self.plain[self.found[place - 1][2] : self.found[place][1]]
            if place not in inside and re.search(r"[.!?][^\w\s,;:]*\s|\n", gap):
                return place
        return 0


def _plain(text: str) -> str:
    """The text without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text without accents, where each starts and ends."""
    return [(match[0], *match.span()) for match in re.finditer(r"[^\W_]+", _plain(text))]


def _places(text: Sequence[str], part: Sequence[str]) -> list[int]:
    """Where a sequence of words stands in another."""
    part, length = list(part), len(part)
    return [i for i in range(len(text) - length + 1) if length and list(text[i : i + length]) == part]


def _index(names: Mapping[str, str], fold) -> dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """Names by their first word, longest first: the words of each, and the entities that bear it."""
    bearers: dict[tuple[str, ...], list[str]] = {}
    for token, name in names.items():
        bearers.setdefault(tuple(fold(word) for word, _, _ in _words(name)), []).append(token)
    index: dict[str, list] = {}
    for spelled in sorted(filter(None, bearers), key=len, reverse=True):
        index.setdefault(spelled[0], []).append((spelled, tuple(bearers[spelled])))
    return index


def _find(text: Sequence[str], index: Mapping[str, list]) -> list[_Mention]:
    """Every name in the text from left to right, longest first, none inside another."""
    found, place = [], 0
    while place < len(text):
        for spelled, tokens in index.get(text[place], ()):
            if tuple(text[place : place + len(spelled)]) == spelled:
                found.append(_Mention(place, place + len(spelled), tokens))
                place += len(spelled)
                break
        else:
            place += 1
    return found
