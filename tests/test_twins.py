"""The known twin: a fresh composition with unnamed old answers is predicted as the known one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import compositions

from toytransformer import symmetry
from toytransformer.compositions import (
    Adapter,
    Composition,
    Fact,
    Merge,
    Prompt,
    SpecError,
    World,
    catalogue,
    known_twin,
    question,
    setups,
)
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

#: Where the catalogue's known base knows something else than one old answer to each prompt: labels that
#: coincide, prompts in the wrong order that nobody knows, and old answers drawn from shared pools.
OTHERWISE = {"coincident", "swapped", "library-shared"}


def shares(composition):
    """Rounded: the world's entities stand in another order, and so do sums."""
    return {name: round(share, 9) for name, share in predict(composition, FullLimit()).shares.items()}


@pytest.mark.parametrize("rule", ["sum", "mean", "linear"])
@pytest.mark.parametrize("name", sorted(set(catalogue.names()) - OTHERWISE))
def test_twin_is_predicted_as_the_known_composition(name, rule):
    facts = 1 if name.startswith("library") else 3
    if name.startswith("library") and rule == "linear":
        pytest.skip("adapters of several ranks")
    fresh, known = (catalogue.build(name, facts=facts, known=k, merge=Merge(rule)) for k in (False, True))
    assert shares(known_twin(fresh)) == shares(known)


@pytest.mark.parametrize("number", range(9))
def test_twin_of_a_setup_has_a_known_bridge(number):
    def built(known):
        return setups.setup(number, facts=2, known=known, bridge_known=known, merge=Merge("mean"))

    assert shares(known_twin(built(False))) == shares(built(True))


def test_twin_of_a_known_composition_is_itself():
    for name in set(catalogue.names()) - {"swapped"}:
        composition = catalogue.build(name, facts=2)
        assert known_twin(composition) is composition


@settings(max_examples=30)
@given(compositions(), st.booleans())
def test_twin_asks_the_same_and_knows_everything(composition, alike):
    try:
        twin = known_twin(composition, alike=alike)
    except SpecError as error:
        assert "taken" in str(error)
        return
    assert known_twin(twin, alike=alike) is twin
    assert twin.adapters == composition.adapters and twin.merge == composition.merge
    assert set(composition.world.base) <= set(twin.world.base) and twin.world.edits == composition.world.edits
    for before, after in zip(composition.questions, twin.questions, strict=True):
        assert (before.prompt, before.correct, before.bridge, before.group, before.decode) == (
            (after.prompt, after.correct, after.bridge, after.group, after.decode)
        )
        assert after.old == twin.world.old(after.prompt) is not None
        assert before.old in (None, after.old)
    for adapter in twin.adapters:
        assert all(twin.world.old(fact.prompt) is not None for fact in adapter.stored(twin.world))


def test_one_answer_for_everybody_is_lowered_by_every_fact():
    """The mean of two bridged adapters: n old answers that are one give way, n answers of their own tie."""
    fresh = setups.setup(2, facts=3, known=False, merge=Merge("mean"))
    own, one = (shares(known_twin(fresh, alike=alike)) for alike in (False, True))
    assert one["correct"] > own["correct"] and one["old"] < own["old"]


def test_twin_keeps_the_symmetry_of_many_facts():
    def build(facts):
        return known_twin(catalogue.build("two-hop", facts=facts, known=False))

    assert symmetry.predict(build, 10**6).shares["old"] == 1
    assert (
        symmetry.predict(lambda n: catalogue.build("two-hop", facts=n, known=False), 10**6).shares["bridge"]
        == 1
    )


def test_a_name_that_is_taken_is_refused():
    fact = Fact.of("x", "R", "x R before")
    world = World.of((), (fact,))
    asked = (question(world, Prompt("x", ("R",))),)
    with pytest.raises(SpecError, match="'x R before' is the twin's name"):
        known_twin(Composition("taken", world, (Adapter("a", (fact,)),), Merge(), asked))
