"""Hypothesis strategies, one section for each part of the package."""

import numpy as np
from hypothesis import strategies as st

from toytransformer.compositions import (
    DECODES,
    OUTCOMES,
    Adapter,
    Composition,
    Fact,
    Merge,
    Prompt,
    Question,
    Record,
    World,
    catalogue,
    question,
)

# ---- compositions: worlds, prompts, adapters, questions, records ----

#: Names of every kind: spaces, quotes, line ends and letters outside ASCII included.
names = st.text(min_size=1, max_size=6).filter(str.strip)

#: Numbers a spec may hold.
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def worlds(draw, most: int = 5) -> World:
    """Any world: base and edits are drawn apart, so that edits may or may not override the base."""
    tokens = draw(st.lists(names, min_size=2, max_size=2 * most, unique=True))
    cut = draw(st.integers(1, len(tokens) - 1))
    entities, relations = tuple(tokens[:cut]), tuple(tokens[cut:])

    def facts() -> tuple[Fact, ...]:
        asked = st.tuples(st.sampled_from(entities), st.sampled_from(relations))
        table = draw(st.dictionaries(asked, st.sampled_from(entities), max_size=3 * most))
        return tuple(Fact.of(entity, relation, answer) for (entity, relation), answer in table.items())

    return World(entities, relations, facts(), facts())


def prompts(world: World, most_hops: int = 4) -> st.SearchStrategy[Prompt]:
    """Prompts over a world's tokens, of any number of hops."""
    relations = st.lists(st.sampled_from(world.relations), min_size=1, max_size=most_hops).map(tuple)
    return st.builds(Prompt, st.sampled_from(world.entities), relations)


def facts(world: World) -> st.SearchStrategy[Fact]:
    """Facts over a world's tokens, true or not."""
    return st.builds(Fact, prompts(world), st.sampled_from(world.entities))


gauges = st.sampled_from(("svd", "facts", "flipped")) | st.integers(0, 9).map("random:{}".format)


@st.composite
def adapters(draw, world: World, name: str = "adapter") -> Adapter:
    """An adapter trained on any facts over a world's tokens."""
    taught = draw(st.lists(facts(world), min_size=1, max_size=4, unique_by=lambda fact: fact.prompt))
    rank = draw(st.none() | st.integers(1, 4))
    return Adapter(name, tuple(taught), rank, draw(gauges), draw(st.booleans()))


def merges(adapters: int) -> st.SearchStrategy[Merge]:
    """Merge specs for a number of adapters; their rule and option names are arbitrary."""
    weights = st.none() | st.tuples(*[finite] * adapters)
    scalars = names | finite | st.integers() | st.booleans() | st.none()
    return st.builds(Merge, names, weights, st.dictionaries(names, scalars, max_size=3))


@st.composite
def compositions(draw) -> Composition:
    """Any composition over any world."""
    world = draw(worlds())
    library = tuple(draw(adapters(world, f"adapter {i}")) for i in range(draw(st.integers(1, 3))))
    asked = draw(st.lists(prompts(world), min_size=1, max_size=3, unique=True))
    shown = draw(st.lists(facts(world), max_size=3, unique_by=lambda fact: fact.prompt))
    questions = tuple(
        question(world, prompt, library, draw(names), draw(st.sampled_from(DECODES))) for prompt in asked
    )
    examples = tuple(fact for fact in shown if fact.prompt not in asked)
    return Composition(
        draw(names), world, library, draw(merges(len(library))), questions, examples, {"facts": 1}
    )


catalogued = st.builds(
    lambda name, **how: catalogue.build(name, **how),
    st.sampled_from(catalogue.names()),
    facts=st.sampled_from((1, 2, 5)),
    known=st.booleans(),
    seed=st.integers(0, 99),
    examples=st.integers(0, 2),
)
"""Compositions of the catalogue, small."""

#: Questions whose roles may coincide: few labels are drawn for many roles.
_labels = st.sampled_from("abcd")
questions = st.builds(
    Question,
    st.just(Prompt("x", ("R1", "R2"))),
    st.none() | _labels,
    st.none() | _labels,
    st.none() | _labels,
    st.frozensets(_labels),
)


@st.composite
def records(draw) -> Record:
    """Records of catalogued compositions, with any numbers and texts in their free fields."""
    composition = draw(catalogued)
    asked = draw(st.sampled_from(composition.questions))
    shares = draw(
        st.sampled_from(({"correct": 1.0}, {"old": 0.5, "bridge": 0.5}, dict.fromkeys(OUTCOMES, 0.2)))
    )
    numbers = st.dictionaries(names, finite, max_size=3)
    return Record(
        composition=composition.name,
        setting=dict(composition.setting),
        spec_hash=composition.spec_hash,
        adapters=tuple(adapter.name for adapter in composition.adapters),
        rule=composition.merge.rule,
        weights=composition.merge.weights,
        options=draw(st.dictionaries(names, finite | names | st.booleans(), max_size=2)),
        regime=draw(st.dictionaries(names, finite | names | st.integers() | st.none(), max_size=3)),
        group=asked.group,
        prompt=str(asked.prompt),
        decode=asked.decode,
        correct=asked.correct,
        bridge=asked.bridge,
        old=asked.old,
        answer=draw(st.none() | names),
        shares=shares,
        mixture=draw(numbers),
        spectral_gap=draw(st.none() | finite),
        provenance={"git": draw(names), "packages": {"numpy": draw(names)}},
    )


# ---- the model: prompts over few tokens, feature vectors, role worlds ----

seeds = st.integers(0, 2**32 - 1)

#: Prompts over so few tokens that sharing and repetition are common.
few_tokens = st.builds(
    Prompt,
    st.sampled_from(("x", "y")),
    st.lists(st.sampled_from(("R", "S")), min_size=1, max_size=3).map(tuple),
)


@st.composite
def fact_arrays(draw, facts: int = 3, features: int = 7, entities: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features (fact, feature) >= 0 as a ReLU gives, of any size, and changes of output (fact, entity)."""
    rng = np.random.default_rng(draw(seeds))
    scale = 10.0 ** draw(st.integers(-3, 3))
    phi = scale * (np.abs(rng.normal(size=(facts, features))) + 0.1 * np.eye(facts, features))
    return phi, rng.normal(size=(facts, entities))


@st.composite
def role_compositions(draw, known: bool = True, distinct: bool = False) -> Composition:
    """One fact for each of two hops, asked x R1 R2, where the labels may coincide in every consistent way.

    Base: x R1 -> y0, y0 R2 -> b, y R2 -> a (nothing when not known). Edits: x R1 -> y, y R2 -> z.
    """
    pool = ("p", "q", "r", "s", "t")
    if distinct:
        y, y0, z, a, b = draw(st.permutations(pool))
    else:
        y, y0, z, a, b = (draw(st.sampled_from(pool)) for _ in range(5))
    if y == y0:
        b = a
    edits = (Fact.of("x", "R1", y), Fact.of(y, "R2", z))
    base = {Fact.of("x", "R1", y0), Fact.of(y0, "R2", b), Fact.of(y, "R2", a)} if known else set()
    world = World(("x", *pool), ("R1", "R2"), tuple(sorted(base, key=str)), edits)
    library = tuple(Adapter(f"hop{i}", (fact,)) for i, fact in enumerate(edits, start=1))
    asked = question(world, Prompt("x", ("R1", "R2")), library)
    return Composition("roles", world, library, Merge(), (asked,))


# ---- adapters as people hold them: settings of PEFT, and how the folder was written ----

#: What a LoRA may change in tiny models: full or last names of modules, by architecture.
LINEAR_NAMES = {
    "qwen2": ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "layers.1.mlp.gate_proj"),
    "gpt2": ("c_attn", "c_fc", "mlp.c_proj"),
    "qwen2_moe": ("q_proj", "v_proj", "shared_expert.up_proj"),
}
#: Beside the layers: the head and the embedding, and parameters that stack experts.
MORE_NAMES = {"qwen2": ("lm_head", "embed_tokens"), "gpt2": ("wte",), "qwen2_moe": ()}
STACKED = {"qwen2_moe": (("mlp.experts.gate_up_proj", "mlp.experts.down_proj"), ("mlp.experts.down_proj",))}


@st.composite
def peft_settings(draw, kind: str, stacked: tuple[str, ...] | None = None) -> dict:
    """Settings of a LoraConfig for a tiny model: which modules, ranks and scales by pattern, biases.

    stacked: parameters of experts, which all adapters of a library have to share.
    """
    names = draw(st.lists(st.sampled_from(LINEAR_NAMES[kind] + MORE_NAMES[kind]), min_size=1, unique=True))
    settings = {
        "target_modules": names,
        "r": draw(st.integers(1, 4)),
        "lora_alpha": draw(st.integers(1, 16)),
        "use_rslora": draw(st.booleans()),
        "task_type": draw(st.sampled_from(["CAUSAL_LM", None])),
    }
    if stacked:
        return settings | {"target_parameters": list(stacked)}
    for pattern in ("rank_pattern", "alpha_pattern"):
        if draw(st.booleans()):
            settings[pattern] = {draw(st.sampled_from(names)): draw(st.integers(1, 6))}
    if kind == "qwen2" and names != ["embed_tokens"] and draw(st.booleans()):
        settings["layers_to_transform"] = [draw(st.integers(0, 1))]
        settings["target_modules"] = [name for name in LINEAR_NAMES[kind] if "." not in name][: len(names)]
        for pattern in ("rank_pattern", "alpha_pattern"):
            settings.pop(pattern, None)
    if draw(st.integers(0, 3)) == 0 and not set(names) & {"embed_tokens", "wte"}:
        settings["lora_bias"] = True
    return settings


#: What is done to a folder that PEFT wrote: nothing that changes what it adds.
DISGUISES = ("none", "bin", "compiled", "subfolder", "shards", "half", "bom", "other base", "no prefix")


@st.composite
def held_adapters(draw, most: int = 3) -> tuple[str, list[tuple[dict, str]]]:
    """An architecture, and the settings and the disguise of each adapter of a library for it."""
    kind = draw(st.sampled_from(sorted(LINEAR_NAMES)))
    stacked = draw(st.sampled_from((None, *STACKED.get(kind, ()))))
    disguise = st.sampled_from(DISGUISES)
    return kind, draw(st.lists(st.tuples(peft_settings(kind, stacked), disguise), min_size=1, max_size=most))
