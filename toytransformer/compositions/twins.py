"""The known twin of a composition: the same one, with old answers where its base has none.

A base that is asked about somebody it does not know still says something: the commonest answer of the kind,
or a name it finds in the question. So a fresh fact has an old answer too; it only has no name in the
composition. The twin gives it one. A prediction of the twin stands for the fresh composition, question by
question: `old` is then "what the base says", which measurements take from the base model itself.
"""

from __future__ import annotations

from dataclasses import replace

from toytransformer.compositions.spec import Composition
from toytransformer.compositions.worlds import Fact, SpecError


def known_twin(composition: Composition, *, alike: bool = False) -> Composition:
    """The composition with an old answer, unnamed so far, to every prompt it trains, shows or asks.

    The base learns one fact for every hop on the way of a prompt to which it has no answer: x R1 -> "x R1
    before", and from there on to "x R1 before R2 before". What it knows already stays. Questions keep their
    order, prompts and roles, and get an old answer where they had none.

    alike: one unnamed answer for each relation, in place of one for each prompt: a base that tells everybody
    the same. Then n old answers are one, which the other adapter lowers n times over (theory.md, section 6).
    Errors: SpecError where a name it needs is taken.
    """
    world = composition.world
    table = {fact.prompt.tokens: fact.answer for fact in world.base}
    added: dict[tuple[str, str], str] = {}
    for prompt in composition.prompts:
        entity = prompt.entity
        for relation in prompt.relations:
            here = (entity, relation)
            if here not in table:
                added[here] = table[here] = f"{relation if alike else ' '.join(here)} before"
            entity = table[here]
    new = dict.fromkeys(added.values())
    if taken := [name for name in new if name in world.entity_set | world.relation_set]:
        raise SpecError(f"{taken[0]!r} is the twin's name for an old answer, and taken: rename it")
    facts = tuple(Fact.of(*here, answer) for here, answer in added.items())
    twin = replace(world, entities=(*world.entities, *new), base=(*world.base, *facts))
    asked = tuple(q if q.old else replace(q, old=twin.old(q.prompt)) for q in composition.questions)
    return replace(composition, world=twin, questions=asked) if added else composition
