"""The bridge setups of Table 1 as compositions, and adapters that are shown chains of thought."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toytransformer.compositions import (
    Adapter,
    Composition,
    Fact,
    Merge,
    SpecError,
    World,
    catalogue,
    question,
)
from toytransformer.compositions.setups import SETUPS, setup
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

HOP1, HOP2 = Fact.of("x", "R1", "y"), Fact.of("y", "R2", "z")
WORLD = World.of((), (HOP1, HOP2))
CHAIN = Fact.of("x", "R1", "R2", "z")
QUESTIONS = (question(WORLD, CHAIN.prompt, decode="steps"), question(WORLD, HOP1.prompt))


def parts(adapter):
    """What an adapter is shown besides its own hop: first letter of the entity, relations, form."""
    shown = [(fact, "direct") for fact in adapter.facts] + [(fact, "chain") for fact in adapter.chains]
    return {
        (fact.prompt.entity.removeprefix("bridge_")[0], fact.prompt.relations, form)
        for fact, form in shown
        if fact.prompt.entity.startswith("bridge_")
    }


B = {("x", ("R1",), "direct"), ("y", ("R2",), "direct"), ("x", ("R1", "R2"), "chain")}
COT = ("x", ("R1", "R2"), "chain")
# Table 1 of the paper, row by row.
TABLE_1 = {
    0: (set(), set()),
    1: (B, B),
    2: (B, B),
    3: ((B - {COT}) | {("x", ("R1", "R2"), "direct")},) * 2,
    4: (B, set()),
    5: (set(), B),
    6: ({COT}, {COT}),
    7: ({("x", ("R1",), "direct"), COT}, {("y", ("R2",), "direct"), COT}),
    8: (
        {("x", ("R1",), "direct"), ("y", ("R3",), "direct"), ("x", ("R1", "R3"), "chain")},
        {("w", ("R4",), "direct"), ("y", ("R2",), "direct"), ("w", ("R4", "R2"), "chain")},
    ),
}


@pytest.mark.parametrize("number", SETUPS)
def test_each_setup_trains_on_what_table_1_says(number):
    composition = setup(number, facts=3, bridge_facts=2)
    hop1, hop2 = composition.adapters
    assert (parts(hop1), parts(hop2)) == TABLE_1[number]
    plain = catalogue.build("two-hop", facts=3)
    for adapter, own in zip((hop1, hop2), plain.adapters, strict=True):
        assert adapter.facts[:3] == own.facts


@given(
    number=st.sampled_from(sorted(SETUPS)),
    facts=st.integers(1, 4),
    bridge_facts=st.integers(1, 4),
    known=st.booleans(),
    bridge_known=st.booleans(),
)
def test_the_bridge_shares_no_entity_with_what_is_asked(number, facts, bridge_facts, known, bridge_known):
    composition = setup(
        number, facts=facts, bridge_facts=bridge_facts, known=known, bridge_known=bridge_known
    )
    asked = {q.prompt.entity for q in composition.questions}
    roles = {role for q in composition.questions for role in (q.correct, q.bridge, q.old)}
    assert not any(name.startswith("bridge_") for name in (asked | roles) - {None})
    for world_fact in (*composition.world.base, *composition.world.edits):
        ends = {world_fact.prompt.entity.startswith("bridge_"), world_fact.answer.startswith("bridge_")}
        assert len(ends) == 1
    assert Composition.from_json(composition.to_json()) == composition


def test_setups_ask_the_same_questions_with_the_same_answers():
    asked = {setup(number, facts=4).questions[0].prompt for number in SETUPS}
    assert len(asked) == 1
    roles = {
        tuple((q.prompt, q.decode, q.correct, q.bridge, q.old) for q in setup(number, facts=4).questions)
        for number in SETUPS
    }
    assert len(roles) == 1


def test_a_chain_is_its_hops_to_the_toy_model():
    """An adapter shown the chain holds the same update as one shown both hops."""
    chained = Adapter("one", (), chains=(CHAIN,), rank=2)
    direct = Adapter("one", (HOP1, HOP2), rank=2)
    assert chained.stored(WORLD) == direct.facts
    outputs = [
        predict(Composition("c", WORLD, (adapter,), Merge(), QUESTIONS), FullLimit()).output
        for adapter in (chained, direct)
    ]
    assert (outputs[0] == outputs[1]).all()


def test_specs_without_chains_keep_their_hash():
    """Committed rows carry these hashes."""
    assert "chains" not in catalogue.build("two-hop", facts=2).to_json()


def test_bad_chains_and_setups_are_refused_by_name():
    with pytest.raises(SpecError, match="has one hop"):
        Adapter("one", (), chains=(HOP1,))
    with pytest.raises(SpecError, match="no facts"):
        Adapter("one", ())
    with pytest.raises(SpecError, match="twice"):
        Adapter("one", (), chains=(CHAIN, CHAIN))
    with pytest.raises(SpecError, match="ends at 'z'"):
        wrong = Adapter("one", (), chains=(Fact.of("x", "R1", "R2", "y"),))
        Composition("c", WORLD, (wrong,), Merge(), QUESTIONS)
    with pytest.raises(SpecError, match="has no answer in the world"):
        Adapter("one", (), chains=(Fact.of("z", "R1", "R2", "y"),)).stored(WORLD)
    for number in (9, -1, "2", True):
        with pytest.raises(SpecError, match="is unknown"):
            setup(number, facts=1)
    with pytest.raises(SpecError, match="bridge_facts"):
        setup(2, facts=1, bridge_facts=0)
    with pytest.raises(SpecError, match="bridge_known"):
        setup(2, facts=1, bridge_known=1)
