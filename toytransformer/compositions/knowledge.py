"""What a base model knows besides the facts that are edited: bystanders, and how well it knows two hops.

A trained base answers a prompt it never saw by those that it did see (toytransformer.bases), so it matters
what else it knows. An exact base answers bystanders too, and they move nothing.

Degrees of knowledge of the edited chains x R1 -> y_old, y_old R2 -> b, y R2 -> a:

    nothing   the facts are fresh
    one-hop   these facts, and no answer to x R1 R2
    both      these facts, and x R1 R2 -> b as an answer of its own
"""

from collections.abc import Iterable
from dataclasses import replace

from toytransformer.compositions.spec import check_count, shortened
from toytransformer.compositions.worlds import Fact, Prompt, SpecError, World

DEGREES = ("nothing", "one-hop", "both")
#: What the names of bystanders begin with, before their number.
BYSTANDER = "by"


def with_bystanders(
    world: World, asked: Iterable[Prompt], count: int = 0, *, own_second: bool = False
) -> World:
    """The world, in which the base knows more facts of one hop, about others and about those who are asked.

    asked: the prompts of several hops that the composition is about; only their relations and entities count.
    count: bystanders for every sequence of relations R1 .. Rk among them, whom no adapter touches: by_0 has
    an answer by_1 to R1, that one by_2 to R2, and so on, and by_0 has an answer by_own_k to every later Rk of
    its own.
    own_second: whether the base knows x Rk -> x_own for those who are asked x R1 .. Rk.
    Errors: SpecError on a count below 0, and on bystanders where nothing of several hops is asked.
    """
    count = check_count(count, "number of bystanders", least=0)
    if not isinstance(own_second, bool):
        raise SpecError(f"own_second is {shortened(own_second)}: use True (the base knows x R2) or False")
    several = [prompt for prompt in dict.fromkeys(asked) if prompt.hops > 1]
    if (count or own_second) and not several:
        raise SpecError("nothing of several hops is asked: bystanders and own answers need two relations")
    facts: list[Fact] = []
    if own_second:
        there = {fact.prompt for fact in (*world.base, *world.edits)}
        last = dict.fromkeys(Prompt(prompt.entity, prompt.relations[-1:]) for prompt in several)
        facts += [Fact(prompt, f"{prompt.entity}_own") for prompt in last if prompt not in there]
    for number, relations in enumerate(dict.fromkeys(prompt.relations for prompt in several)):
        tag = f"_{number}" if number else ""
        for i in range(1, count + 1):
            names = [f"{BYSTANDER}{i}_{hop}{tag}" for hop in range(len(relations) + 1)]
            facts += [Fact.of(*hop) for hop in zip(names, relations, names[1:], strict=False)]
            facts += [
                Fact.of(names[0], relation, f"{BYSTANDER}{i}_own_{hop}{tag}")
                for hop, relation in enumerate(relations[1:], start=2)
                if relation != relations[0]
            ]
    if not facts:
        return world
    new = dict.fromkeys(fact_name for fact in facts for fact_name in (fact.prompt.entity, fact.answer))
    entities = tuple(dict.fromkeys((*world.entities, *new)))
    return replace(world, entities=entities, base=(*world.base, *dict.fromkeys(facts)))


def check_degree(degree: object) -> None:
    """Refuse anything but one of DEGREES."""
    if degree not in DEGREES:
        raise SpecError(f"degree {shortened(degree)} is unknown: use one of {', '.join(DEGREES)}")


def known_to(world: World, asked: Iterable[Prompt], degree: str) -> World:
    """The world in which the base knows its one-hop facts ("one-hop"), or their compositions too ("both").

    asked: as above; "both" holds an answer to every entity under the same relations that the facts entail.
    "nothing" is a world without these facts, so it is left as it is. Errors: SpecError on another degree.
    """
    check_degree(degree)
    if degree == "nothing":
        return world
    if degree == "one-hop":
        return replace(world, multi_hop=())
    sequences = dict.fromkeys(prompt.relations for prompt in asked if prompt.hops > 1)
    prompts = (Prompt(entity, relations) for relations in sequences for entity in world.entities)
    entailed = ((prompt, world.entailed(prompt)) for prompt in prompts)
    return replace(world, multi_hop=tuple(Fact(p, answer) for p, answer in entailed if answer is not None))
