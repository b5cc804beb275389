"""The questions edits are measured on: each chain's two hops, their composition, and unrelated ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llm_experiments.domains.two_hop import names
from llm_experiments.domains.two_hop.known import KnownFacts
from llm_experiments.domains.two_hop.lexicon import DATASETS, Lexicon
from llm_experiments.domains.two_hop.rendering import Example, render
from llm_experiments.domains.two_hop.templates import SIGNATURES, TRAIN, template
from llm_experiments.editing.features import EditError
from toytransformer.compositions import Composition, Prompt


@dataclass(frozen=True)
class Chains:
    """x R1 -> y, y R2 -> z and x R1 R2 -> z of every chain, in the same order and wording."""

    hop1: tuple[Example, ...]
    hop2: tuple[Example, ...]
    two_hop: tuple[Example, ...]

    def questions(self) -> dict[str, list[str]]:
        """The questions by kind, as `overlaps.measured` takes them."""
        return {kind: [example.question for example in examples] for kind, examples in vars(self).items()}

    def lines(self) -> dict[str, list[dict[str, str]]]:
        """Question, answer and the entity answered of each, by kind."""
        return {
            kind: [{"question": e.question, "answer": e.answer, "entity": e.entity} for e in examples]
            for kind, examples in vars(self).items()
        }


def chains(composition: Composition, lexicon: Lexicon, number: int, first: int | None = None) -> Chains:
    """The chains that a composition asks about, in paraphrase `number`; asking in steps counts as asking.

    first: only so many of them.
    """
    found: dict[str, list[Example]] = {"hop1": [], "hop2": [], "two_hop": []}
    prompts = dict.fromkeys(q.prompt for q in composition.questions if q.prompt.hops == 2)
    for prompt in list(prompts)[:first]:
        relation, second = prompt.relations
        hop1 = Prompt(prompt.entity, (relation,))
        y = composition.world.truth(hop1)
        z = None if y is None else composition.world.truth(hop2 := Prompt(y, (second,)))
        if z is None:
            raise EditError(f"'{prompt}' has no answer in the world; ask about chains that are edited")
        for kind, asked, answer in (("hop1", hop1, y), ("hop2", hop2, z), ("two_hop", prompt, z)):
            found[kind].append(render(asked, answer, lexicon, number))
    if not found["hop1"]:
        raise EditError(f"composition {composition.name!r} asks no two-hop question; give one that does")
    return Chains(*map(tuple, found.values()))


def unrelated(
    lexicon: Lexicon, count: int, *, seed: int, base_world: KnownFacts | None = None
) -> tuple[str, ...]:
    """`count` questions that share neither entity nor relation with the chains, drawn by the seed.

    Each asks one of the relations that the lexicon does not use for its first two, in a random paraphrase, of
    a person whom it does not name: of the base's world where that is given, else of its dataset's kind.
    """
    used = set(list(lexicon.relations.values())[:2])
    relations = sorted(set(SIGNATURES) - used)
    taken = set(lexicon.names.values())
    people: Sequence[str]
    if base_world is None:
        people = names.draw(DATASETS[lexicon.dataset]["person"], count, seed, taken)
    else:
        people = _others(base_world.people, base_world.facts, taken)
    if len(people) < count:
        raise EditError(f"{count} unrelated people are wanted and {len(people)} there are; ask for fewer")
    rng = random.Random(f"unrelated:{seed}")
    chosen = rng.sample(list(people), count)
    return tuple(
        template((relations[place % len(relations)],), rng.choice(TRAIN)).ask(person)
        for place, person in enumerate(chosen)
    )


def _others(people: Iterable[str], facts: Mapping[tuple[str, str], str], taken: set[str]) -> list[str]:
    """People neither in the lexicon nor in a fact of the base's world about somebody who is."""
    near = {end for (person, _), end in facts.items() if person in taken}
    return [person for person in people if person not in taken | near]
