"""The training setups of the paper's Table 1: two one-hop adapters, with a bridge in both, one or neither.

A bridge is training material on other entities: their first hops, their second hops, and their two-hop
questions with the steps written out. Tested chains are x_i -> y_i -> z_i as in the catalogue; those of the
bridge are bridge_x_i -> bridge_y_i -> bridge_z_i, and share no entity with them.
"""

from dataclasses import replace
from numbers import Integral
from typing import Literal

from toytransformer.compositions import catalogue
from toytransformer.compositions.spec import (
    Adapter,
    Composition,
    Merge,
    Question,
    check_count,
    question,
    shortened,
    true_fact,
)
from toytransformer.compositions.worlds import Fact, Prompt, SpecError, World

#: What each setup adds to the adapter of hop 1 and to that of hop 2: parts of the bridge, "12-chain" with its
#: steps written out. Setups 1 and 2 differ in the names that a language model is given: in 1 the tested ones
#: are invented and the bridge's real, in 2 the other way round.
SETUPS: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: ((), ()),
    1: (("1", "2", "12-chain"), ("1", "2", "12-chain")),
    2: (("1", "2", "12-chain"), ("1", "2", "12-chain")),
    3: (("1", "2", "12"), ("1", "2", "12")),
    4: (("1", "2", "12-chain"), ()),
    5: ((), ("1", "2", "12-chain")),
    6: (("12-chain",), ("12-chain",)),
    7: (("1", "12-chain"), ("2", "12-chain")),
    8: (("1", "4", "14-chain"), ("5", "2", "52-chain")),
}

#: Start entity and relations of each part of the bridge, in Table 5's numbers: 1 spouse_of, 2 live_in,
#: 4 study_in, 5 child_of.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "1": ("x", ("R1",)),
    "2": ("y", ("R2",)),
    "4": ("y", ("R3",)),
    "5": ("w", ("R4",)),
    "12": ("x", ("R1", "R2")),
    "14": ("x", ("R1", "R3")),
    "52": ("w", ("R4", "R2")),
}
Decode = Literal["direct", "steps"]
_BRIDGE_FACTS = (("x", "R1", "y"), ("y", "R2", "z"), ("y", "R3", "s"), ("w", "R4", "y"))


def setup(
    number: int,
    *,
    facts: int,
    known: bool = True,
    bridge_facts: int | None = None,
    bridge_known: bool = False,
    library: tuple[str, ...] = ("hop1", "hop2"),
    merge: Merge | None = None,
    rank: int | None = None,
    sigma: tuple[int, ...] | None = None,
    examples: int = 0,
    seed: int = 0,
) -> Composition:
    """Setup `number` of Table 1, asked two hops directly and step by step, and each hop on its own.

    facts, bridge_facts: chains tested and chains of the bridge (as many as tested when None).
    known, bridge_known: whether the base model has old answers to the first hops and second hops of each.
    library: adapters by name in merge order: hop1 and hop2 with what the setup adds, and, as in the
    catalogue, oracle, mixed and joint, which have no bridge.
    rank: of every adapter; when None the largest that one of them needs.
    sigma, examples, seed: as in catalogue.build.
    Errors: SpecError naming the value and what is allowed.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number not in SETUPS:
        raise SpecError(f"setup {shortened(number)} is unknown: use one of {', '.join(map(str, SETUPS))}")
    facts = check_count(facts, "facts")
    bridge_facts = facts if bridge_facts is None else check_count(bridge_facts, "bridge_facts")
    if not isinstance(bridge_known, bool):
        raise SpecError(f"bridge_known is {bridge_known!r}: use True (the base has old answers) or False")
    plain = catalogue.build(
        "two-hop", facts=facts, known=known, library=library, sigma=sigma, examples=examples, seed=seed
    )
    added = dict(zip(("hop1", "hop2"), SETUPS[number], strict=True))
    used = {part.split("-")[0] for name in library for part in added.get(name, ())}
    world = _with_bridge(plain.world, used, bridge_facts, bridge_known) if used else plain.world
    bridged = [_bridged(world, a, added.get(a.name, ()), bridge_facts) for a in plain.adapters]
    rank = max(len(adapter.stored(world)) for adapter in bridged) if rank is None else rank
    adapters = tuple(replace(adapter, rank=rank) for adapter in bridged)
    setting = dict(plain.setting) | {"rank": rank}
    if used:
        setting |= {"bridge_facts": bridge_facts, "bridge_known": bridge_known}
    return Composition(
        f"setup-{number}",
        world,
        adapters,
        Merge() if merge is None else merge,
        _questions(world, facts),
        plain.examples,
        setting=setting,
    )


def _questions(world: World, facts: int) -> tuple[Question, ...]:
    """Both hops alone, then the two-hop questions, direct and step by step."""

    def ask(group: str, letter: str, *relations: str, decode: Decode = "direct") -> list[Question]:
        prompts = (Prompt(f"{letter}{i}", relations) for i in range(1, facts + 1))
        return [question(world, prompt, group=group, decode=decode) for prompt in prompts]

    one_hop = ask("hop1", "x", "R1") + ask("hop2", "y", "R2")
    two_hop = ask("two-hop", "x", "R1", "R2") + ask("two-hop", "x", "R1", "R2", decode="steps")
    return tuple(one_hop + two_hop)


def _with_bridge(world: World, used: set[str], facts: int, known: bool) -> World:
    """The world with the bridge's facts among its edits, and among what the base knew, under old answers."""
    relations = {relation for part in used for relation in _PARTS[part][1]}
    base, edits = [], []
    for i in range(1, facts + 1):
        for start, relation, end in _BRIDGE_FACTS:
            if relation in relations:
                start_name, end_name = f"bridge_{start}{i}", f"bridge_{end}{i}"
                edits.append(Fact.of(start_name, relation, end_name))
                if known:
                    base.append(Fact.of(start_name, relation, f"{end_name}_old_{relation}"))
    return World.of((*world.base, *base), (*world.edits, *edits))


def _bridged(world: World, adapter: Adapter, parts: tuple[str, ...], facts: int) -> Adapter:
    """The adapter, trained on these parts of the bridge as well."""
    shown: dict[bool, list[Fact]] = {False: [], True: []}
    for part in parts:
        number, _, form = part.partition("-")
        letter, relations = _PARTS[number]
        prompts = (Prompt(f"bridge_{letter}{i}", relations) for i in range(1, facts + 1))
        shown[form == "chain"] += [true_fact(world, prompt) for prompt in prompts]
    return Adapter(adapter.name, (*adapter.facts, *shown[False]), chains=tuple(shown[True]))
