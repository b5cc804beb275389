"""The named compositions: every situation the theory or the paper speaks of, at any number of facts.

Tokens of chain i: x_i is asked, y_i is the bridge, z_i the new answer; y_i_old = r1(x_i), a_i = r2(y_i) and
b_i = r2(y_i_old) are what the base model knows instead; u_i -> v_i -> w_i is known and never edited.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

from toytransformer.compositions.knowledge import check_degree, known_to, with_bystanders
from toytransformer.compositions.spec import (
    Adapter,
    Composition,
    Merge,
    Scalar,
    check_count,
    question,
    shortened,
    true_fact,
)
from toytransformer.compositions.worlds import Fact, Prompt, SpecError, World

Library = dict[str, tuple[Fact, ...]]
#: Prompts and the group each is averaged in.
Asked = tuple[tuple[str, Prompt], ...]


@dataclass(frozen=True)
class Chains:
    """How many chains to build and how: the arguments every entry shares (see build)."""

    facts: int
    known: bool
    examples: int
    seed: int
    sigma: tuple[int, ...] | None

    @property
    def asked(self) -> range:
        """Numbers of the chains that are asked about: 1 .. facts."""
        return range(1, self.facts + 1)

    @property
    def shown(self) -> range:
        """Numbers of the extra chains whose two-hop facts are examples."""
        return range(self.facts + 1, self.facts + self.examples + 1)

    @property
    def all(self) -> range:
        """Every chain's number: 1 .. facts + examples."""
        return range(1, self.facts + self.examples + 1)

    def bridge(self, i: int) -> int:
        """Number of the bridge that x_i is edited to: sigma(i), or i itself."""
        return i if self.sigma is None or i > self.facts else self.sigma[i - 1] + 1


@dataclass(frozen=True)
class Scene:
    """What an entry builds: a world, the libraries to choose from, and what is asked and shown."""

    world: World
    library: Library
    default: tuple[str, ...]
    asked: tuple[tuple[str, Prompt], ...]
    shown: tuple[Prompt, ...] = ()
    decode: Literal["direct", "steps"] = "direct"

    @property
    def several_hops(self) -> tuple[Prompt, ...]:
        """The prompts of several hops that it is about: asked, shown, or trained by an adapter it offers."""
        taught = (fact.prompt for facts in self.library.values() for fact in facts)
        every = (*(prompt for _, prompt in self.asked), *self.shown, *taught)
        return tuple(dict.fromkeys(prompt for prompt in every if prompt.hops > 1))


def _prompts(entities: Iterable[str], *relations: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(entity, relations) for entity in entities)


def _numbered(letter: str, numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{letter}{i}" for i in numbers)


def _grouped(group: str, prompts: Iterable[Prompt]) -> tuple[tuple[str, Prompt], ...]:
    return tuple((group, prompt) for prompt in prompts)


def _true(world: World, prompts: Iterable[Prompt]) -> tuple[Fact, ...]:
    return tuple(true_fact(world, prompt) for prompt in prompts)


def _control(numbers: Iterable[int], *relations: str) -> list[Fact]:
    """The facts nobody edits: u_i -> v_i -> w_i (-> s_i)."""
    letters = "uvws"[: len(relations) + 1]
    hops = zip(letters, relations, letters[1:], strict=False)
    return [Fact.of(f"{a}{i}", relation, f"{b}{i}") for a, relation, b in hops for i in numbers]


def _with_joint(world: World, hops: Library, asked: Iterable[Prompt]) -> Library:
    """The one-hop adapters, oracle (the asked prompts), mixed (all hops) and joint (everything)."""
    oracle, mixed = _true(world, asked), tuple(fact for facts in hops.values() for fact in facts)
    return hops | {"oracle": oracle, "mixed": mixed, "joint": mixed + oracle}


def _pair(chains: Chains, coincident: bool = False) -> tuple[World, Library]:
    """The plain pair of edited relations: x_i R1 -> y_sigma(i), y_i R2 -> z_i (section 3, appendix A.1.1)."""
    hop1 = tuple(Fact.of(f"x{i}", "R1", f"y{chains.bridge(i)}") for i in chains.all)
    hop2 = tuple(Fact.of(f"y{i}", "R2", f"z{i}") for i in chains.all)
    base = _control(chains.asked, "R1", "R2")
    if chains.known:
        base += [Fact.of(f"x{i}", "R1", f"y{i}_old") for i in chains.all]
        base += [Fact.of(f"y{i}", "R2", f"a{i}") for i in chains.all]
        base += [Fact.of(f"y{i}_old", "R2", f"{'a' if coincident else 'b'}{i}") for i in chains.all]
    # Entities in the order of the pair that is not relabelled: sigma moves answers, never their positions,
    # so that a rule which looks at positions can tell two relabellings apart.
    plain = tuple(Fact.of(f"x{i}", "R1", f"y{i}") for i in chains.all)
    world = replace(World.of(base, hop1 + hop2), entities=World.of(base, plain + hop2).entities)
    asked = _prompts(_numbered("x", chains.asked), "R1", "R2")
    return world, _with_joint(world, {"hop1": hop1, "hop2": hop2}, asked)


def _two_hop(
    *default: str,
    decode: Literal["direct", "steps"] = "direct",
    coincident: bool = False,
    asks: Callable[[Chains], tuple[tuple[str, Prompt], ...]] | None = None,
) -> Callable[[Chains], Scene]:
    """An entry on the plain pair: its default library, and what it asks if not x_i R1 R2."""

    def scene(chains: Chains) -> Scene:
        world, library = _pair(chains, coincident)
        asked = _grouped("two-hop", _prompts(_numbered("x", chains.asked), "R1", "R2"))
        shown = _prompts(_numbered("x", chains.shown), "R1", "R2")
        return Scene(world, library, default, asks(chains) if asks else asked, shown, decode)

    return scene


def _asks_single_hops(chains: Chains) -> Asked:
    first, second = (_prompts(_numbered(c, chains.asked), r) for c, r in (("x", "R1"), ("y", "R2")))
    return _grouped("hop1", first) + _grouped("hop2", second)


def _asks_other_entity(chains: Chains) -> Asked:
    return _grouped("other-entity", _prompts(_numbered("u", chains.asked), "R1", "R2"))


def _asks_swapped(chains: Chains) -> Asked:
    return _grouped("swapped", _prompts(_numbered("x", chains.asked), "R2", "R1"))


def _both_directions(chains: Chains) -> Scene:
    """A cyclic pair, x_i R1 -> y_i and y_i R2 -> x_i, asked as x_i R1 R2 and as y_i R2 R1."""
    hop1 = tuple(Fact.of(f"x{i}", "R1", f"y{i}") for i in chains.all)
    hop2 = tuple(Fact.of(f"y{i}", "R2", f"x{i}") for i in chains.all)
    base = _control(chains.asked, "R1", "R2")
    if chains.known:
        base += [Fact.of(f"x{i}", "R1", f"y{i}_old") for i in chains.all]
        base += [Fact.of(f"y{i}", "R2", f"a{i}") for i in chains.all]
        base += [Fact.of(f"y{i}_old", "R2", f"b{i}") for i in chains.all]
        base += [Fact.of(f"a{i}", "R1", f"c{i}") for i in chains.all]
    world = World.of(base, hop1 + hop2)

    def cycle(numbers: range) -> tuple[tuple[str, Prompt], ...]:
        there = _grouped("forward", _prompts(_numbered("x", numbers), "R1", "R2"))
        return there + _grouped("backward", _prompts(_numbered("y", numbers), "R2", "R1"))

    asked, shown = cycle(chains.asked), tuple(prompt for _, prompt in cycle(chains.shown))
    library = _with_joint(world, {"hop1": hop1, "hop2": hop2}, (prompt for _, prompt in asked))
    return Scene(world, library, ("hop1", "hop2"), asked, shown)


def _three_hop(chains: Chains) -> Scene:
    """Three edited relations, x_i R1 -> y_i, y_i R2 -> z_i, z_i R3 -> t_i; the old answer is c_i."""
    hops = {
        f"hop{k}": tuple(Fact.of(f"{a}{i}", f"R{k}", f"{b}{i}") for i in chains.all)
        for k, a, b in ((1, "x", "y"), (2, "y", "z"), (3, "z", "t"))
    }
    base = _control(chains.asked, "R1", "R2", "R3")
    if chains.known:
        known = (("x", 1, "y{}_old"), ("y{}_old", 2, "b"), ("b", 3, "c"), ("y", 2, "a"), ("z", 3, "d"))
        for a, k, b in known:
            name = [token if "{}" in token else token + "{}" for token in (a, b)]
            base += [Fact.of(name[0].format(i), f"R{k}", name[1].format(i)) for i in chains.all]
    world = World.of(base, (fact for facts in hops.values() for fact in facts))
    asked, shown = (
        _prompts(_numbered("x", numbers), "R1", "R2", "R3") for numbers in (chains.asked, chains.shown)
    )
    return Scene(world, _with_joint(world, hops, asked), tuple(hops), _grouped("three-hop", asked), shown)


_TRAINED_PAIRS = ((1, 4), (3, 4), (3, 2), (5, 2), (5, 4))
_HELD_OUT = (1, 2)
_ATOMIC = (1, 2, 3, 4, 5)


def _relation_library(
    chains: Chains, world: World, edits: tuple[Fact, ...], starts: dict[tuple[int, int], tuple[str, ...]]
) -> Scene:
    """Ten adapters, for the atomic relations and the trained pairs; Rel1 Rel2 is held out.

    starts: the entities that the two-hop prompts of each pair ask about.
    """
    library = {f"Rel{k}": tuple(f for f in edits if f.prompt.relations == (f"Rel{k}",)) for k in _ATOMIC}
    for a, b in _TRAINED_PAIRS:
        library[f"Rel{a}Rel{b}"] = _true(world, _prompts(starts[a, b], f"Rel{a}", f"Rel{b}"))
    default = tuple(library)
    held_out = _prompts(starts[_HELD_OUT], "Rel1", "Rel2")
    asked, shown = held_out[: chains.facts], held_out[chains.facts :]
    library["Rel1Rel2"] = _true(world, asked)
    return Scene(world, library, default, _grouped("two-hop", asked), shown)


def _library_disjoint(chains: Chains) -> Scene:
    """Six graphs, one for each pair Rel_a Rel_b, with chains of their own entities: x1_14, y1_14, z1_14."""
    edits, base, starts = [], _control(chains.asked, "Rel1", "Rel2"), {}
    for a, b in (_HELD_OUT, *_TRAINED_PAIRS):
        numbers = chains.all if (a, b) == _HELD_OUT else chains.asked
        starts[a, b] = tuple(f"x{i}_{a}{b}" for i in numbers)
        for tag in (f"{i}_{a}{b}" for i in numbers):
            edits += [Fact.of(f"x{tag}", f"Rel{a}", f"y{tag}"), Fact.of(f"y{tag}", f"Rel{b}", f"z{tag}")]
            if chains.known:
                base += [
                    Fact.of(f"x{tag}", f"Rel{a}", f"y{tag}_old"),
                    Fact.of(f"y{tag}", f"Rel{b}", f"a{tag}"),
                ]
                base += [Fact.of(f"y{tag}_old", f"Rel{b}", f"b{tag}")]
    world = World.of(base, edits)
    return _relation_library(chains, world, world.edits, starts)


def _library_shared(chains: Chains) -> Scene:
    """One pool each of x, y and z, and of old values; every relation is a random bijection between pools."""
    rng = random.Random(chains.seed)

    def bijection(start: str, relation: str, end: str) -> list[Fact]:
        images = rng.sample(chains.all, len(chains.all))
        return [
            Fact.of(start.format(i), relation, end.format(j)) for i, j in zip(chains.all, images, strict=True)
        ]

    edits, base = [], _control(chains.asked, "Rel1", "Rel2")
    for k in _ATOMIC:
        first = any(k == a for a, _ in _TRAINED_PAIRS)
        edits += bijection("x{}", f"Rel{k}", "y{}") if first else bijection("y{}", f"Rel{k}", "z{}")
    if chains.known:
        for k in _ATOMIC:
            if any(k == a for a, _ in _TRAINED_PAIRS):
                base += bijection("x{}", f"Rel{k}", "y{}_old")
            else:
                base += bijection("y{}", f"Rel{k}", "a{}") + bijection("y{}_old", f"Rel{k}", "b{}")
    world = World.of(base, edits)
    starts = dict.fromkeys((_HELD_OUT, *_TRAINED_PAIRS), _numbered("x", chains.all))
    return _relation_library(chains, world, world.edits, starts)


@dataclass(frozen=True)
class Entry:
    """A named composition: how its scene is built, one line about it, where it comes from."""

    scene: Callable[[Chains], Scene]
    about: str
    source: str
    relabels: bool = False
    """Whether x_i R1 may be edited to y_sigma(i) instead of y_i."""


_ENTRIES = {
    "two-hop": Entry(
        _two_hop("hop1", "hop2"),
        "one adapter for each hop, asked x R1 R2",
        "Theorem 2, eq. 25; Table 7, 2-combination library",
        relabels=True,
    ),
    "with-oracle": Entry(
        _two_hop("hop1", "hop2", "oracle"),
        "one adapter for each hop and one trained on the two-hop prompts themselves",
        "Table 7, 3-combination library",
        relabels=True,
    ),
    "mixed": Entry(
        _two_hop("mixed"),
        "one adapter trained on both hops together",
        "Table 7, Mixed Two-Hop Expert",
        relabels=True,
    ),
    "hop1-only": Entry(
        _two_hop("hop1"),
        "the first hop's adapter alone, asked x R1 R2",
        "Proposition 1, eq. 1",
        relabels=True,
    ),
    "hop2-only": Entry(
        _two_hop("hop2"),
        "the second hop's adapter alone, asked x R1 R2",
        "Proposition 1, eq. 1",
        relabels=True,
    ),
    "oracle-only": Entry(
        _two_hop("oracle"),
        "one adapter trained on the two-hop prompts that are asked",
        "Table 7, Oracle Expert",
        relabels=True,
    ),
    "one-hop": Entry(
        _two_hop("hop1", "hop2", asks=_asks_single_hops),
        "do the single hops survive the merge? asked x R1 and y R2",
        "section 3, eq. 1 (control)",
        relabels=True,
    ),
    "chain-of-thought": Entry(
        _two_hop("hop1", "hop2", decode="steps"),
        "the answer to x R1 is fed back as a token and asked R2",
        "Table 10, bridge with chain of thought",
        relabels=True,
    ),
    "coincident": Entry(
        _two_hop("hop1", "hop2", coincident=True),
        "the base knows r2(y) = r2(r1(x)), the case the proof of Theorem 2 takes for granted",
        "Theorem 2, proof (appendix A.1)",
        relabels=True,
    ),
    "both-directions": Entry(
        _both_directions,
        "a cyclic pair r1(x) = y, r2(y) = x, asked in both directions",
        "appendix A.1.1, below eq. 26",
    ),
    "other-entity": Entry(
        _two_hop("hop1", "hop2", asks=_asks_other_entity),
        "asked about an entity that was never edited: the base's answer stays right",
        "appendix A.1.1, eq. 24-25 (control)",
        relabels=True,
    ),
    "swapped": Entry(
        _two_hop("hop1", "hop2", asks=_asks_swapped),
        "asked x R2 R1: the same tokens in the wrong order, nothing is right",
        "section 3 (control)",
        relabels=True,
    ),
    "three-hop": Entry(
        _three_hop, "three adapters in one chain, asked x R1 R2 R3", "Theorem 2, taken one hop further"
    ),
    "library-disjoint": Entry(
        _library_disjoint,
        "ten adapters on six graphs that share no entity, held out: Rel1 Rel2",
        "appendix A.3, Table 12, disjoint graphs",
    ),
    "library-shared": Entry(
        _library_shared,
        "ten adapters on shared pools of entities, held out: Rel1 Rel2",
        "appendix A.3, Table 12, shared graphs",
    ),
}


def names() -> tuple[str, ...]:
    """The names build takes."""
    return tuple(_ENTRIES)


def describe(name: str) -> str:
    """One line: what the composition is and where it comes from. Errors: SpecError on an unknown name."""
    entry = _entry(name)
    return f"{entry.about} [{entry.source}]"


def build(
    name: str,
    *,
    facts: int = 1,
    known: bool = True,
    library: tuple[str, ...] | None = None,
    merge: Merge | None = None,
    seed: int = 0,
    gauge: str = "svd",
    rank: int | None = None,
    examples: int = 0,
    sigma: tuple[int, ...] | None = None,
    degree: str | None = None,
    bystanders: int = 0,
    own_second: bool = False,
) -> Composition:
    """The composition of this name.

    facts: chains asked about, so facts in each one-hop adapter (library-disjoint: in each graph).
    known: whether the base has old answers to what is edited; the never edited controls it always knows.
    library: adapters by name, in merge order, in place of the entry's own.
    merge: the plain sum when None. gauge, rank: of every adapter, rank None for as many as its facts need.
    seed: draws the bijections of library-shared, unused elsewhere.
    examples: extra chains, in the one-hop adapters like the others, whose composed facts are examples and not
    in the oracle.
    sigma: a permutation of range(facts), x_i R1 -> y_sigma(i), so that z_sigma(i) is right on x_i R1 R2; only
    for entries on the plain pair.
    degree: in place of `known`, how well the base knows the chains: "nothing", "one-hop" or "both";
    bystanders, own_second: what else it knows (compositions.knowledge).

    Errors: SpecError naming the value and what is allowed.
    """
    entry = _entry(name)
    facts = check_count(facts, "facts")
    examples = check_count(examples, "examples", least=0)
    seed = check_count(seed, "seed", least=0)
    if not isinstance(known, bool):
        raise SpecError(f"known is {known!r}: use True (the base has old answers) or False (fresh facts)")
    if degree is not None:
        check_degree(degree)
        known = degree != "nothing"
    if sigma is not None:
        _check_sigma(name, sigma, facts)
    scene = entry.scene(Chains(facts, known, examples, seed, sigma))
    about = scene.several_hops
    world = with_bystanders(scene.world, about, bystanders, own_second=own_second)
    world = world if degree is None else known_to(world, about, degree)
    more: dict[str, Scalar] = {"degree": degree, "bystanders": bystanders, "own_second": own_second}
    chosen = scene.default if library is None else check_library(library, scene.library, name)
    adapters = tuple(Adapter(adapter, scene.library[adapter], rank, gauge) for adapter in chosen)
    asked = tuple(question(world, p, group=group, decode=scene.decode) for group, p in scene.asked)
    return Composition(
        name,
        world,
        adapters,
        Merge() if merge is None else merge,
        asked,
        _true(world, scene.shown),
        {
            **{
                "facts": facts,
                "known": known,
                "examples": examples,
                "gauge": gauge,
                "rank": rank,
                "seed": seed,
            },
            **{key: value for key, value in more.items() if value},
        },
    )


def check_library(library: object, allowed: Iterable[str], name: str) -> tuple[str, ...]:
    """Refuse anything but a tuple of names among `allowed` as the library of the composition `name`."""
    names = tuple(allowed)
    if isinstance(library, tuple) and all(isinstance(n, str) and n in names for n in library):
        return library
    wrong = next((n for n in library if n not in names), library) if isinstance(library, tuple) else library
    raise SpecError(f"library {shortened(wrong)} of {name!r}: give a tuple of names among {', '.join(names)}")


def _entry(name: str) -> Entry:
    if not isinstance(name, str) or name not in _ENTRIES:
        raise SpecError(f"composition {shortened(name)} is unknown: use one of {', '.join(_ENTRIES)}")
    return _ENTRIES[name]


def _check_sigma(name: str, sigma: tuple[int, ...], facts: int) -> None:
    if not _ENTRIES[name].relabels:
        able = ", ".join(other for other, entry in _ENTRIES.items() if entry.relabels)
        raise SpecError(f"{name!r} takes no sigma: use one of {able}")
    whole = isinstance(sigma, tuple) and all(
        isinstance(i, Integral) and not isinstance(i, bool) for i in sigma
    )
    if not whole or sorted(sigma) != list(range(facts)):
        raise SpecError(
            f"sigma {shortened(sigma)} is not a permutation: give a tuple with each of 0 .. {facts - 1} once"
        )
