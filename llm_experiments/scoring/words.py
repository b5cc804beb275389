"""Texts as words, and names found in them.

A name counts where all its words stand together, longest names first, so "York" is not found in "New York".
Case, accents, punctuation and white space are set aside, case only where nothing is found with it ("Nice").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

_ANSWER = ("the", "answer", "is")
#: Names by their first word, longest first: the words of each, and the entities that bear it.
_Index: TypeAlias = dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]


def words(text: str) -> list[str]:
    """The words of a text without case, accents and punctuation: what "exact" and "contains" compare."""
    return [word.casefold() for word, _, _ in _words(text)]


def contains(text: str, name: str) -> bool:
    """Whether the name's words stand together in the text."""
    return bool(places(words(text), words(name)))


def spoken(text: str) -> str:
    """The text behind a model's thoughts: behind the last </think>, all of it where there is none."""
    return text.rpartition("</think>")[2]


def final_answer(text: str) -> str | None:
    """What stands behind the last "the answer is", None where nobody says so."""
    shown = plain(spoken(text))
    ends = [match.end() for match in re.finditer(r"\bthe\W+answer\W+is\b", shown, re.IGNORECASE)]
    return shown[ends[-1] :].strip() if ends else None


def plain(text: str) -> str:
    """The text without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def places(text: Sequence[str], part: Sequence[str]) -> list[int]:
    """Where a sequence of words stands in another."""
    part, length = list(part), len(part)
    return [i for i in range(len(text) - length + 1) if length and list(text[i : i + length]) == part]


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance in letters, without case and accents: insertions, deletions, substitutions.

    One row of the dynamic programme at a time; no dependency has it, and names are short.
    """
    left, right = (plain(name).casefold() for name in (first, second))
    row = list(range(len(right) + 1))
    for i, letter in enumerate(left, start=1):
        above, row = row, [i]
        for j, other in enumerate(right, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
    return row[-1]


@dataclass(frozen=True)
class Mention:
    """Words start .. end - 1 are a name; tokens: the entities that bear it."""

    start: int
    end: int
    tokens: tuple[str, ...]


class Names:
    """Finds the names of entities in texts. names: by entity; several may bear one name."""

    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def mentions(self, said: Said) -> Iterator[list[Mention]]:
        """The names in a text in order: as written, then in any case if that finds none."""
        yield _mentions(said.cased, self._cased)
        yield _mentions(said.folded, self._folded)

    @cached_property
    def _cased(self) -> _Index:
        return _index(self.names, lambda word: word)

    @cached_property
    def _folded(self) -> _Index:
        return _index(self.names, str.casefold)


class Said:
    """A text as words, with the places its sentences and its final answer begin at."""

    def __init__(self, text: str):
        self.words = _words(text)
        self.cased = [word for word, _, _ in self.words]
        self.folded = [word.casefold() for word in self.cased]
        self.plain = plain(text)

    @property
    def after_answer(self) -> int | None:
        """The word behind the last "the answer is", None where nobody says so."""
        starts = places(self.folded, _ANSWER)
        return starts[-1] + len(_ANSWER) if starts else None

    @property
    def before_answer(self) -> int:
        """The word that the last "the answer is" begins with, the number of words where nobody says so."""
        starts = places(self.folded, _ANSWER)
        return starts[-1] if starts else len(self.folded)

    def last_sentence(self, mentions: Sequence[Mention]) -> int:
        """The word that the last sentence begins with; a full stop inside a name ("St. Louis") ends none."""
        inside = {place for mention in mentions for place in range(mention.start + 1, mention.end)}
        for place in range(len(self.words) - 1, 0, -1):
            gap = self.plain[self.words[place - 1][2] : self.words[place][1]]
            if place not in inside and re.search(r"[.!?][^\w\s,;:]*\s|\n", gap):
                return place
        return 0


def _words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text without accents, where each starts and ends."""
    return [(match[0], *match.span()) for match in re.finditer(r"[^\W_]+", plain(text))]


def _index(names: Mapping[str, str], fold: Callable[[str], str]) -> _Index:
    bearers: dict[tuple[str, ...], list[str]] = {}
    for token, name in names.items():
        bearers.setdefault(tuple(fold(word) for word, _, _ in _words(name)), []).append(token)
    index: _Index = {}
    for spelled in sorted(filter(None, bearers), key=len, reverse=True):
        index.setdefault(spelled[0], []).append((spelled, tuple(bearers[spelled])))
    return index


def _mentions(text: Sequence[str], index: _Index) -> list[Mention]:
    """Every name in the text from left to right, longest first, none inside another."""
    mentions, place = [], 0
    while place < len(text):
        for spelled, tokens in index.get(text[place], ()):
            if tuple(text[place : place + len(spelled)]) == spelled:
                mentions.append(Mention(place, place + len(spelled), tokens))
                place += len(spelled)
                break
        else:
            place += 1
    return mentions
