"""Surface names for the abstract tokens of a composition: datasets F, H and R.

F gives invented people invented places, H gives them real cities, R shuffles real people and real cities, so
that its facts are false. What an entity is, person or place, follows from the relations of the facts it
stands in. x_i, y_i and z_i have the same names in every composition of one seed and dataset that has the
chains x_i -> y_i -> z_i.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llm_experiments.domains.two_hop.known import KnownFacts, in_bridge, names_known
from llm_experiments.domains.two_hop.names import NamesError, pool
from llm_experiments.domains.two_hop.templates import SIGNATURES
from toytransformer.compositions import Composition, Fact

DATASETS: Mapping[str, Mapping[str, str]] = {
    "F": {"person": "invented people", "place": "invented places"},
    "H": {"person": "invented people", "place": "real cities"},
    "R": {"person": "real people", "place": "real cities"},
}
"""Kind of names (names.SOURCES) of people and places in each dataset."""

DEFAULT_RELATIONS: Mapping[str, str] = {
    "R1": "spouse_of",
    "R2": "live_in",
    "R3": "study_in",
    "R4": "child_of",
    "Rel1": "spouse_of",
    "Rel2": "live_in",
    "Rel3": "child_of",
    "Rel4": "study_in",
    "Rel5": "mentor_of",
}


class LexiconError(ValueError):
    """A composition that cannot be put into words; the message says why and what to do."""


@dataclass(frozen=True)
class Lexicon:
    """The surface name of every entity and the English relation behind every relation of a composition.

    dataset: "F", "H" or "R", of the tested entities; bridge_dataset: of those called bridge_*.
    names: by entity; an entity nobody named (an old answer that nobody knows) is absent.
    """

    dataset: str
    seed: int
    names: Mapping[str, str]
    relations: Mapping[str, str]
    bridge_dataset: str | None = None

    def __post_init__(self) -> None:
        for field in ("names", "relations"):
            object.__setattr__(self, field, MappingProxyType(dict(getattr(self, field))))

    def surface(self, entity: str) -> str | None:
        """The entity's name, None when it has none."""
        return self.names.get(entity)

    def name(self, entity: str) -> str:
        """The entity's name. Errors: LexiconError when it has none."""
        if (name := self.names.get(entity)) is None:
            raise LexiconError(
                f"entity {entity!r} has no name in dataset {self.dataset}: only trained and edited entities "
                "have one, and those of the base's facts where a base world is given"
            )
        return name

    def worded(self, relations: Iterable[str]) -> tuple[str, ...]:
        """The English relations of a prompt, first hop first. Errors: LexiconError on an unknown one."""
        try:
            return tuple(self.relations[relation] for relation in relations)
        except KeyError as error:
            have = ", ".join(self.relations)
            raise LexiconError(
                f"relation {error.args[0]!r} has no English relation: use one of {have}"
            ) from error


def lexicon(
    composition: Composition,
    *,
    dataset: str,
    seed: int,
    bridge_dataset: str | None = None,
    relations: Mapping[str, str] = DEFAULT_RELATIONS,
    base_world: KnownFacts | None = None,
) -> Lexicon:
    """Names for the entities that adapters are trained on or that edits and examples speak of.

    bridge_dataset: of the entities called bridge_*, the tested ones' when None.
    relations: abstract relation -> one of templates.SIGNATURES.
    base_world: what a base model is known to know, see known.names_known. Its people and places are then the
    real ones, and the tokens that only the base's facts name (y1_old, a1, b1 and u1 -> v1 -> w1) get what it
    really knows. Without it these tokens are absent.

    Errors: LexiconError on an unknown dataset or relation and on an entity that is both person and place;
    NamesError when names run out.
    """
    words = _worded(composition, relations)
    kinds = _kinds(composition, words)
    sources = _sources(kinds, dataset, bridge_dataset)
    wanted = sorted(_named(composition), key=_place)
    if base_world is None:
        names = _drawn(wanted, sources, seed)
    else:
        real = [entity for entity in kinds if sources[entity].startswith("real")]
        known = names_known(
            composition,
            {entity: sources[entity] for entity in sorted(real, key=_place)},
            wanted=frozenset(wanted),
            words=words,
            seed=seed,
            base_world=base_world,
        )
        names = _drawn([entity for entity in wanted if entity not in known], sources, seed) | known
    return Lexicon(dataset, seed, names, words, bridge_dataset or dataset)


def most_chains(one: Composition, *, dataset: str, seed: int, bridge_dataset: str | None = None) -> int:
    """How many chains there are names for, where `one` holds one and every other takes as many new names.

    Errors: as lexicon.
    """
    kinds = _kinds(one, _worded(one, DEFAULT_RELATIONS))
    sources = _sources(kinds, dataset, bridge_dataset)
    needed = Counter(sources[entity] for entity in _named(one))
    return min(len(pool(source, seed, part="datasets")) // count for source, count in needed.items())


def _sources(kinds: Mapping[str, str], dataset: str, bridge_dataset: str | None) -> dict[str, str]:
    """Kind of names (names.SOURCES) of every entity. Errors: LexiconError on an unknown dataset."""
    for value in (dataset, dataset if bridge_dataset is None else bridge_dataset):
        if value not in DATASETS:
            raise LexiconError(f"dataset {value!r} is unknown: use one of {', '.join(DATASETS)}")
    return {
        entity: DATASETS[(bridge_dataset or dataset) if in_bridge(entity) else dataset][kind]
        for entity, kind in kinds.items()
    }


def _worded(composition: Composition, relations: Mapping[str, str]) -> dict[str, str]:
    """The English relation of every relation of the world."""
    words = {}
    for relation in composition.world.relations:
        word = relations.get(relation)
        if word is None or word not in SIGNATURES:
            raise LexiconError(
                f"relation {relation!r} is worded {word!r}: map it to one of {', '.join(SIGNATURES)}"
            )
        words[relation] = word
    return words


def _facts(composition: Composition) -> Iterator[Fact]:
    """Every fact anybody states: edits, adapters' facts and chains, examples, and what the base knows."""
    yield from composition.world.edits
    for adapter in composition.adapters:
        yield from (*adapter.facts, *adapter.chains)
    yield from composition.examples
    yield from composition.world.base


def _kinds(composition: Composition, words: Mapping[str, str]) -> dict[str, str]:
    """Whether each entity is a person or a place."""
    kinds: dict[str, str] = {}
    for fact in _facts(composition):
        first, last = (SIGNATURES[words[fact.prompt.relations[i]]] for i in (0, -1))
        for entity, kind in ((fact.prompt.entity, first[0]), (fact.answer, last[1])):
            if kinds.setdefault(entity, kind) != kind:
                raise LexiconError(
                    f"{entity!r} is a {kinds[entity]} elsewhere and a {kind} in '{fact}': this composition "
                    "cannot be worded with these relations, give others"
                )
    return kinds


def _named(composition: Composition) -> set[str]:
    """The entities that need a name whatever the base knows: all but those of its own facts alone."""
    base = len(composition.world.base)
    facts = list(_facts(composition))
    return {name for fact in facts[: len(facts) - base] for name in (fact.prompt.entity, fact.answer)}


def _place(entity: str) -> tuple:
    """Order of the entities: x1, y1, z1, x2 .. first, so that more chains and other tokens rename none."""
    parts = re.fullmatch(r"(?:bridge_)?([a-z]+)(\d+)(.*)", entity)
    if parts is None:
        return (2, 0, "", entity)
    letter, number, suffix = parts.groups()
    return (0 if letter in ("x", "y", "z") else 1, int(number), suffix, letter)


def _drawn(wanted: Iterable[str], sources: Mapping[str, str], seed: int) -> dict[str, str]:
    """Names by entity: tested ones from the front of a shuffled pool, those of a bridge from its end.

    sources: kind of names (names.SOURCES) of each entity.
    """
    pools: dict[str, list[str]] = {}
    names = {}
    for entity in wanted:
        source = sources[entity]
        if source not in pools:
            pools[source] = list(reversed(pool(source, seed, part="datasets")))
        if not pools[source]:
            raise NamesError(f"no {source} are left for {entity!r}: ask for fewer triplets")
        names[entity] = pools[source].pop(0 if in_bridge(entity) else -1)
    return names
