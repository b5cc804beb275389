"""Compositions and records: what they mean, what they refuse, and that they survive being written down."""

import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import catalogued, compositions, prompts, questions, records, worlds

from toytransformer.compositions import (
    OUTCOMES,
    Adapter,
    Composition,
    Fact,
    Merge,
    Prompt,
    Question,
    Record,
    SpecError,
    World,
    catalogue,
    provenance,
    question,
    read_jsonl,
    write_jsonl,
)

XY = Fact.of("x", "R1", "y")
YZ = Fact.of("y", "R2", "z")
PAIR = World(("x", "y", "z"), ("R1", "R2"), edits=(XY, YZ))
ASKED = question(PAIR, Prompt("x", ("R1", "R2")))


def composed(**changes) -> Composition:
    """A small valid composition with some fields changed."""
    adapters = (Adapter("hop1", (XY,)), Adapter("hop2", (YZ,)))
    return Composition(
        **{"name": "small", "world": PAIR, "adapters": adapters, "merge": Merge(), "questions": (ASKED,)}
        | changes
    )


# ---- worlds ----


@given(st.data())
def test_truth_is_old_where_no_edit_applies(data):
    world = data.draw(worlds())
    prompt = data.draw(prompts(world))
    unedited = replace(world, edits=())
    assert unedited.truth(prompt) == unedited.old(prompt) == world.old(prompt)
    path, entity = set(), prompt.entity
    for hop, relation in enumerate(prompt.relations, start=1):
        path.add((entity, relation))
        entity = world.truth(Prompt(prompt.entity, prompt.relations[:hop]))
    if not path & {fact.prompt.tokens for fact in world.edits}:
        assert world.truth(prompt) == world.old(prompt)


@given(st.data())
def test_a_long_prompt_is_one_hop_after_the_other(data):
    world = data.draw(worlds())
    prompt, relation = data.draw(prompts(world)), data.draw(st.sampled_from(world.relations))
    longer = Prompt(prompt.entity, (*prompt.relations, relation))
    for answer in (world.old, world.truth):
        middle = answer(prompt)
        assert answer(longer) == (None if middle is None else answer(Prompt(middle, (relation,))))


@given(worlds())
def test_every_edit_is_true_and_the_rest_of_the_base_stays(world):
    assert all(world.truth(fact.prompt) == fact.answer for fact in world.edits)
    assert all(world.old(fact.prompt) == fact.answer for fact in world.base)
    edited = {fact.prompt for fact in world.edits}
    assert all(world.truth(f.prompt) == f.answer for f in world.base if f.prompt not in edited)


def test_an_edit_of_the_first_hop_moves_the_second_to_the_new_entity():
    world = World.of(
        base=[Fact.of("x", "R1", "p"), Fact.of("p", "R2", "q"), Fact.of("y", "R2", "z")], edits=[XY]
    )
    asked = Prompt("x", ("R1", "R2"))
    assert (world.old(asked), world.truth(asked)) == ("q", "z")
    assert replace(world, base=world.base[:2]).truth(asked) is None


@given(worlds())
def test_the_smallest_world_of_some_facts_holds_no_more(world):
    smallest = World.of(world.base, world.edits)
    used = [fact.prompt.entity for fact in world.base + world.edits] + [
        fact.answer for fact in world.base + world.edits
    ]
    assert set(smallest.entities) == set(used)
    assert all(smallest.truth(fact.prompt) == world.truth(fact.prompt) for fact in world.base)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Prompt("", ("R1",)), "entity ''"),
        (lambda: Prompt(" ", ("R1",)), "entity ' '"),
        (lambda: Prompt(7, ("R1",)), "entity 7"),
        (lambda: Prompt("x", ()), "at least one hop"),
        (lambda: Prompt("x", "R1"), "is a str: give a tuple"),
        (lambda: Prompt("x", ["R1"]), "is a list: give a tuple"),
        (lambda: Prompt("x", ("",)), "relation ''"),
        (lambda: Fact("x R1", "y"), "is not a Prompt"),
        (lambda: Fact(XY.prompt, ""), "answer ''"),
        (lambda: World(("x", "y"), ("R1",), base=(XY, Fact.of("x", "R1", "x"))), "'y' and by 'x'"),
        (lambda: World(("x", "y"), ("R1",), edits=(XY, Fact.of("x", "R1", "x"))), "a relation is a function"),
        (lambda: World(("x", "y"), ("R1",), base=(XY, XY)), "given twice"),
        (lambda: World(("x", "y"), ("R1",), edits=(XY, XY)), "given twice"),
        (lambda: World(("x",), ("R1",), edits=(XY,)), "entity 'y'"),
        (lambda: World(("y",), ("R1",), edits=(XY,)), "entity 'x'"),
        (lambda: World(("x", "y"), ("R2",), edits=(XY,)), "relation 'R1'"),
        (lambda: World(("x", "x"), ("R1",)), "'x' is repeated"),
        (lambda: World(("x",), ("R1", "R1")), "'R1' is repeated"),
        (lambda: World(("x", "R1"), ("R1",)), "both an entity and a relation"),
        (lambda: World(("x", ""), ("R1",)), "one of the entities ''"),
        (lambda: World(("x", "z"), ("R1", "R2"), base=(Fact.of("x", "R1", "R2", "z"),)), "has 2 hops"),
        (lambda: World(["x"], ("R1",)), "is a list: give a tuple"),
        (lambda: PAIR.old(Prompt("q", ("R1",))), "entity 'q'"),
        (lambda: PAIR.truth(Prompt("x", ("R9",))), "use one of: R1, R2"),
    ],
)
def test_worlds_that_mean_nothing_are_refused(build, message):
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        build()


# ---- adapters, merges, questions, compositions ----


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adapter("", (XY,)), "adapter ''"),
        (lambda: Adapter("a", ()), "has no facts"),
        (lambda: Adapter("a", [XY]), "is a list: give a tuple"),
        (lambda: Adapter("a", (XY, Fact.of("x", "R1", "z"))), "trained on 'x R1' twice"),
        (lambda: Adapter("a", (XY,), rank=0), "rank of adapter 'a' is 0"),
        (lambda: Adapter("a", (XY,), rank=2.0), "rank of adapter 'a' is 2.0"),
        (lambda: Adapter("a", (XY,), rank=True), "rank of adapter 'a' is True"),
        (
            lambda: Adapter("a", (XY,), gauge="qr"),
            "gauge 'qr' .* use one of svd, facts, flipped, random:<seed>",
        ),
        (lambda: Adapter("a", (XY,), gauge="random:"), "gauge 'random:'"),
        (lambda: Adapter("a", (XY,), gauge="random:-1"), "gauge 'random:-1'"),
        (lambda: Adapter("a", (XY,), approximate="no"), "approximate='no'"),
        (lambda: Merge(""), "merge rule ''"),
        (lambda: Merge("sum", (1.0, math.nan)), "nan: use a finite number"),
        (lambda: Merge("sum", (math.inf,)), "inf: use a finite number"),
        (lambda: Merge("sum", (True,)), "True: use a finite number"),
        (lambda: Merge("sum", (10**400,)), r"0\.\.: use a finite number"),
        (lambda: Merge("ties", options=(("k",),)), r"\('k',\) among the options of 'ties' is no pair"),
        (lambda: Merge("sum", 1.0), "is a float: give a tuple"),
        (lambda: Merge("sum", ("1",)), "'1' among the weights"),
        (lambda: Merge("ties", options={"density": math.nan}), "option density=nan"),
        (lambda: Merge("ties", options={"density": [1]}), r"option density=\[1\]"),
        (lambda: Merge("ties", options="k"), "options of 'ties' 'k' is a str"),
        (lambda: Merge("ties", options=(("k", 1), ("k", 2))), "option 'k' of 'ties' is given twice"),
        (lambda: Question("x R1", "y"), "is not a Prompt"),
        (lambda: Question(XY.prompt, ""), "correct answer to 'x R1' ''"),
        (lambda: Question(XY.prompt, "y", edited="y"), "give a set of answers"),
        (lambda: Question(XY.prompt, "y", group=""), "group ''"),
        (lambda: Question(XY.prompt, "y", decode="beam"), "decode 'beam' .* use one of direct, steps"),
        (lambda: composed(name=""), "composition ''"),
        (lambda: composed(world=None), "world of 'small' is None"),
        (lambda: composed(merge="sum"), "merge of 'small' is 'sum'"),
        (lambda: composed(adapters=()), "has no adapters"),
        (lambda: composed(questions=()), "has no questions"),
        (lambda: composed(questions=(ASKED, ASKED)), "'x R1 R2' is asked twice"),
        (
            lambda: composed(adapters=(Adapter("a", (XY,)), Adapter("a", (YZ,)))),
            "two adapters are called 'a'",
        ),
        (lambda: composed(merge=Merge("sum", (1.0,))), "1 weights for 2 adapters"),
        (lambda: composed(merge=Merge("sum", (1.0, 1.0, 1.0))), "3 weights for 2 adapters"),
        (lambda: composed().with_merge(Merge("sum", ())), "0 weights for 2 adapters"),
        (lambda: composed(adapters=(Adapter("a", (Fact.of("q", "R1", "y"),)),)), "entity 'q'"),
        (lambda: composed(adapters=(Adapter("a", (Fact.of("x", "R1", "q"),)),)), "entity 'q'"),
        (lambda: composed(questions=(Question(Prompt("x", ("R9",)), "y"),)), "relation 'R9'"),
        (lambda: composed(questions=(Question(XY.prompt, "q"),)), "entity 'q'"),
        (lambda: composed(examples=(Fact.of("q", "R1", "R2", "z"),)), "entity 'q'"),
        (lambda: composed(examples=(Fact.of("x", "R1", "R2", "z"),)), "both a question and an example"),
        (lambda: composed(examples=(XY, Fact.of("x", "R1", "z"))), "'x R1' is an example twice"),
    ],
)
def test_compositions_that_mean_nothing_are_refused(build, message):
    with pytest.raises(SpecError, match=message):
        build()


@given(questions, st.sampled_from("abcd"))
def test_coinciding_labels_count_as_the_first_role(asked, answer):
    roles = {"correct": {asked.correct}, "bridge": {asked.bridge}, "old": {asked.old}, "edited": asked.edited}
    held = [role for role in OUTCOMES[:4] if answer in roles[role]]
    assert asked.outcome(answer) == (held or ["other"])[0]


@given(questions)
def test_no_answer_fills_no_role(asked):
    assert asked.outcome(None) == "other"


@given(questions, st.lists(st.none() | st.sampled_from("abcde"), min_size=1, unique=True))
def test_tied_answers_share_evenly(asked, tied):
    shares = asked.shares(dict.fromkeys(tied, 1 / len(tied)))
    assert tuple(shares) == OUTCOMES
    for outcome, share in shares.items():
        assert share == pytest.approx(sum(asked.outcome(answer) == outcome for answer in tied) / len(tied))


@given(compositions())
def test_json_restores_the_composition(composition):
    restored = Composition.from_json(composition.to_json())
    assert restored == composition
    assert restored.spec_hash == composition.spec_hash
    assert restored.to_json() == composition.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", composed().to_json()[:-1], composed().to_json().replace('"rule"', '"rul"')]
)
def test_other_json_is_refused(text):
    with pytest.raises(SpecError, match="not the JSON of a composition"):
        Composition.from_json(text)


@given(compositions())
def test_a_composition_knows_its_prompts_and_trained_answers(composition):
    assert len(set(composition.prompts)) == len(composition.prompts)
    order = [*composition.adapters[0].prompts, *(asked.prompt for asked in composition.questions)]
    assert composition.prompts[: len(composition.adapters[0].facts)] == composition.adapters[0].prompts
    assert set(order) <= set(composition.prompts)
    trained = {fact.answer for adapter in composition.adapters for fact in adapter.facts}
    assert all(asked.edited == trained for asked in composition.questions)


def test_prompts_come_adapter_by_adapter_then_examples_then_questions():
    composition = composed(
        examples=(Fact.of("y", "R1", "R2", "z"),), questions=(ASKED, Question(XY.prompt, "y"))
    )
    assert [str(prompt) for prompt in composition.prompts] == ["x R1", "y R2", "y R1 R2", "x R1 R2"]


def test_fewer_adapters_have_fewer_trained_answers():
    both = composed()
    assert both.questions[0].edited == {"y", "z"}
    assert replace(both, adapters=both.adapters[1:]).questions[0].edited == {"z"}


def test_equal_merges_have_equal_hashes_and_other_merges_other_ones():
    one, two = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert Merge("r", options=one) == Merge("r", options=two) == Merge("r", options=tuple(two.items()))
    assert Merge("r", options=one).option_dict == one
    hashes = {
        composed().with_merge(merge).spec_hash
        for merge in (Merge(weights=(1, 0)), Merge(weights=(1.0, 0.0)), Merge(weights=(1.0, -0.0)))
    }
    assert len(hashes) == 1
    others = {
        composed(merge=m).spec_hash
        for m in (Merge(), Merge("mean"), Merge(weights=(1, 2)), Merge("r", options=one))
    }
    assert len(others) == 4 and not others & hashes


def test_specs_are_frozen():
    for spec, name in (
        (PAIR, "base"),
        (ASKED, "old"),
        (composed(), "merge"),
        (XY, "answer"),
        (Merge(), "rule"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(spec, name, None)


def test_the_hash_is_the_same_in_another_process():
    build = "catalogue.build('library-shared', facts=4, seed=3)"
    code = f"from toytransformer.compositions import catalogue; print({build}.spec_hash)"
    for seed in ("1", "2"):
        there = _python(code, PYTHONHASHSEED=seed).stdout.strip()
        assert there == catalogue.build("library-shared", facts=4, seed=3).spec_hash


def test_compositions_import_without_arrays():
    arrays = "{'jax', 'numpy', 'scipy', 'torch'} & set(sys.modules)"
    code = f"import sys, toytransformer.compositions; print({arrays} or 'none')"
    assert _python(code).stdout.strip() == "none"


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )


# ---- catalogue ----


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("facts", [1, 2, 5])
@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_builds_and_its_roles_are_read_off_the_world(name, facts, known):
    composition = catalogue.build(name, facts=facts, known=known, examples=1)
    assert composition.name == name and composition.merge == Merge()
    world = composition.world
    for asked in composition.questions:
        assert (asked.correct, asked.old) == (world.truth(asked.prompt), world.old(asked.prompt))
        assert asked.prompt.hops == 1 or asked.bridge == world.truth(
            Prompt(asked.prompt.entity, asked.prompt.relations[:1])
        )
    for fact in (*(f for a in composition.adapters for f in a.facts), *composition.examples):
        assert fact.answer == world.truth(fact.prompt)
        assert (world.old(fact.prompt) is not None) == known
    assert composition.examples
    assert Composition.from_json(composition.to_json()) == composition


@given(catalogued)
def test_old_answers_are_no_trained_answers(composition):
    if composition.name in ("other-entity", "swapped"):
        return
    assert all(asked.old not in asked.edited for asked in composition.questions)
    assert all(asked.correct not in (asked.old, asked.bridge) for asked in composition.questions)


@pytest.mark.parametrize("name", catalogue.names())
def test_entries_are_described_in_one_line_with_their_source(name):
    line = catalogue.describe(name)
    assert "\n" not in line and line.endswith("]") and "[" in line


@pytest.mark.parametrize("known", [True, False])
def test_the_plain_pair(known):
    composition = catalogue.build("two-hop", facts=2, known=known)
    assert [str(fact) for fact in composition.adapters[0].facts] == ["x1 R1 -> y1", "x2 R1 -> y2"]
    assert [str(fact) for fact in composition.adapters[1].facts] == ["y1 R2 -> z1", "y2 R2 -> z2"]
    base = ["u1 R1 -> v1", "u2 R1 -> v2", "v1 R2 -> w1", "v2 R2 -> w2"]
    if known:
        base += ["x1 R1 -> y1_old", "x2 R1 -> y2_old", "y1 R2 -> a1", "y2 R2 -> a2"]
        base += ["y1_old R2 -> b1", "y2_old R2 -> b2"]
    assert [str(fact) for fact in composition.world.base] == base
    first = composition.questions[0]
    assert (str(first.prompt), first.correct, first.bridge) == ("x1 R1 R2", "z1", "y1")
    assert (first.old, first.edited) == ("b1" if known else None, {"y1", "y2", "z1", "z2"})


@pytest.mark.parametrize("facts", [1, 2, 3, 4])
def test_relabelling_moves_the_first_adapters_answers_and_the_right_ones(facts):
    plain = catalogue.build("two-hop", facts=facts)
    for sigma in itertools.permutations(range(facts)):
        relabelled = catalogue.build("two-hop", facts=facts, sigma=sigma)
        hop1, hop2 = relabelled.adapters
        assert hop1.prompts == plain.adapters[0].prompts and hop2 == plain.adapters[1]
        assert [fact.answer for fact in hop1.facts] == [f"y{j + 1}" for j in sigma]
        assert [asked.correct for asked in relabelled.questions] == [f"z{j + 1}" for j in sigma]
        assert [asked.bridge for asked in relabelled.questions] == [f"y{j + 1}" for j in sigma]
        assert [asked.old for asked in relabelled.questions] == [asked.old for asked in plain.questions]
        assert relabelled.world.base == plain.world.base
        assert (relabelled.spec_hash == plain.spec_hash) == (sigma == tuple(range(facts)))


def test_libraries_of_the_plain_pair():
    facts = {
        name: [str(f) for f in catalogue.build("two-hop", library=(name,)).adapters[0].facts]
        for name in ("hop1", "hop2", "oracle", "mixed", "joint")
    }
    assert facts["mixed"] == facts["hop1"] + facts["hop2"]
    assert facts["joint"] == facts["mixed"] + facts["oracle"]
    assert facts["oracle"] == ["x1 R1 R2 -> z1"]
    swapped = catalogue.build("two-hop", library=("hop2", "hop1"))
    assert [adapter.name for adapter in swapped.adapters] == ["hop2", "hop1"]


def test_controls():
    one_hop = catalogue.build("one-hop")
    assert [(str(q.prompt), q.correct, q.bridge, q.old) for q in one_hop.questions] == [
        ("x1 R1", "y1", None, "y1_old"),
        ("y1 R2", "z1", None, "a1"),
    ]
    coincident = catalogue.build("coincident")
    assert coincident.world.old(Prompt("y1", ("R2",))) == coincident.questions[0].old == "a1"
    for known in (True, False):
        other = catalogue.build("other-entity", known=known).questions[0]
        assert (str(other.prompt), other.correct, other.old) == ("u1 R1 R2", "w1", "w1")
        swapped = catalogue.build("swapped", known=known).questions[0]
        assert (str(swapped.prompt), swapped.correct, swapped.bridge, swapped.old) == (
            "x1 R2 R1",
            None,
            None,
            None,
        )
    assert {q.decode for q in catalogue.build("chain-of-thought", facts=3).questions} == {"steps"}
    both = catalogue.build("both-directions").questions
    assert [(str(q.prompt), q.correct, q.bridge, q.old) for q in both] == [
        ("x1 R1 R2", "x1", "y1", "b1"),
        ("y1 R2 R1", "y1", "x1", "c1"),
    ]
    three = catalogue.build("three-hop").questions[0]
    assert (str(three.prompt), three.correct, three.bridge, three.old) == ("x1 R1 R2 R3", "t1", "y1", "c1")


def test_examples_are_further_chains_that_are_not_asked():
    composition = catalogue.build("with-oracle", facts=2, examples=2)
    assert [str(fact) for fact in composition.examples] == ["x3 R1 R2 -> z3", "x4 R1 R2 -> z4"]
    assert [len(adapter.facts) for adapter in composition.adapters] == [4, 4, 2]
    assert [str(asked.prompt) for asked in composition.questions] == ["x1 R1 R2", "x2 R1 R2"]


@pytest.mark.parametrize("known", [True, False])
def test_the_disjoint_library_shares_no_entity_between_graphs(known):
    composition = catalogue.build("library-disjoint", facts=3, known=known)
    sizes = {adapter.name: len(adapter.facts) for adapter in composition.adapters}
    assert sizes == {
        **{"Rel1": 6, "Rel2": 9, "Rel3": 6, "Rel4": 9, "Rel5": 6},
        **dict.fromkeys(("Rel1Rel4", "Rel3Rel4", "Rel3Rel2", "Rel5Rel2", "Rel5Rel4"), 3),
    }
    for kind in (("Rel1", "Rel3", "Rel5"), ("Rel2", "Rel4")):
        edits = [f for f in composition.world.edits if f.prompt.relations[0] in kind]
        assert len({f.prompt.entity for f in edits}) == len({f.answer for f in edits}) == len(edits) == 18
    asked = {asked.prompt for asked in composition.questions}
    assert {prompt.relations for prompt in asked} == {("Rel1", "Rel2")}
    assert not asked & {prompt for adapter in composition.adapters for prompt in adapter.prompts}


@given(st.integers(1, 12), st.booleans(), st.integers(0, 999))
def test_the_shared_library_is_made_of_bijections_of_common_pools(facts, known, seed):
    composition = catalogue.build("library-shared", facts=facts, known=known, seed=seed)
    assert len(composition.adapters) == 10
    for adapter in composition.adapters:
        start, end = (
            ("y" if adapter.name in ("Rel2", "Rel4") else "x"),
            ("y" if adapter.name in ("Rel1", "Rel3", "Rel5") else "z"),
        )
        pool = range(1, facts + 1)
        assert {fact.prompt.entity for fact in adapter.facts} == {f"{start}{i}" for i in pool}
        assert {fact.answer for fact in adapter.facts} == {f"{end}{i}" for i in pool}
    assert composition == catalogue.build("library-shared", facts=facts, known=known, seed=seed)
    assert not any(
        asked.prompt in adapter.prompts for asked in composition.questions for adapter in composition.adapters
    )


def test_the_seed_draws_the_shared_library():
    hashes = {catalogue.build("library-shared", facts=6, seed=seed).spec_hash for seed in range(5)}
    assert len(hashes) == 5


def test_the_offered_oracle_of_a_library_answers_the_held_out_pair():
    for name in ("library-disjoint", "library-shared"):
        composition = catalogue.build(name, facts=3, library=("Rel1Rel2",))
        assert composition.adapters[0].prompts == tuple(asked.prompt for asked in composition.questions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two-hops"}, "'two-hops' is unknown: use one of two-hop, with-oracle"),
        ({"facts": 0}, "facts is 0: use an int >= 1"),
        ({"facts": True}, "facts is True"),
        ({"facts": 2.0}, "facts is 2.0"),
        ({"facts": "2"}, "facts is '2'"),
        ({"seed": None}, "seed is None: use an int >= 0"),
        ({"merge": ""}, "merge of 'two-hop' is ''"),
        ({"examples": -1}, "examples is -1: use an int >= 0"),
        ({"known": 1}, "known is 1: use True"),
        ({"library": ("hop3",)}, "'hop3' of 'two-hop': give a tuple of names among hop1, hop2, oracle"),
        ({"library": "hop1"}, "library 'hop1'"),
        ({"library": ()}, "no adapters"),
        ({"library": ("hop1", "hop1")}, "two adapters are called 'hop1'"),
        ({"gauge": "qr"}, "gauge 'qr'"),
        ({"merge": Merge("sum", (1.0,))}, "1 weights for 2 adapters"),
        ({"facts": 2, "sigma": (0, 0)}, "not a permutation: give a tuple with each of 0 .. 1"),
        ({"facts": 2, "sigma": (0, 1, 2)}, "not a permutation"),
        ({"facts": 2, "sigma": [1, 0]}, "not a permutation"),
        ({"facts": 2, "sigma": ("a", 0)}, "not a permutation"),
        ({"facts": 2, "sigma": (1.0, 0.0)}, "not a permutation"),
        ({"name": "three-hop", "sigma": (0,)}, "'three-hop' takes no sigma: use one of two-hop"),
    ],
)
def test_what_the_catalogue_refuses(arguments, message):
    with pytest.raises(SpecError, match=message):
        catalogue.build(**{"name": "two-hop"} | arguments)


# ---- records ----


def record(**changes) -> Record:
    answered = composed().questions[0]
    fields = {
        **{"composition": "two-hop", "setting": {}, "spec_hash": "0" * 16, "regime": {}},
        **{"adapters": ("hop1",), "rule": "sum", "weights": None, "options": {}},
        **{name: getattr(answered, name) for name in ("group", "decode", "correct", "bridge", "old")},
        **{"prompt": str(answered.prompt), "answer": "y", "shares": {"bridge": 1.0}},
    }
    return Record(**fields | changes)


@given(records())
def test_json_restores_the_record(row):
    assert Record.from_json(row.to_json()) == row
    assert "\n" not in row.to_json()


@given(st.lists(records(), max_size=3))
def test_files_restore_the_records(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_whoever_is_reading_keeps_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [record()])
    with path.open(encoding="utf-8") as reader:
        write_jsonl(path, [record(answer="z"), record()])
        assert reader.read() == record().to_json() + "\n"
    assert len(read_jsonl(path)) == 2


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [record()])
    with pytest.raises(SpecError, match="is not JSON"):
        write_jsonl(path, [record(answer="z1"), record(options={"set": {1}})])
    assert read_jsonl(path) == [record()]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "row", ["", "{", "[1]", "7", '{"composition": "two-hop"}', record().to_json()[:-1] + ', "new": 1}']
)
def test_a_corrupt_row_is_named_by_file_and_line(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{record().to_json()}\n{row}\n{record().to_json()}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"rows\.jsonl, line 2: not a record"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": ""}, "rule ''"),
        ({"decode": "beam"}, "decode 'beam'"),
        ({"shares": {"right": 1.0}}, "outcome 'right'"),
        ({"shares": {"correct": 0.5}}, "sum to 1"),
        ({"shares": {}}, "sum to 1"),
        ({"shares": {"correct": 1.5, "old": -0.5}}, "must be >= 0"),
        ({"shares": {"correct": math.nan}}, "must be >= 0"),
        ({"mixture": {"z1": math.inf}}, "mixture of 'z1'"),
        ({"spectral_gap": math.nan}, "spectral_gap"),
    ],
)
def test_records_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        record(**changes)


def test_a_limit_is_written_as_text():
    row = record(regime={"name": "limit", "dimension": math.inf, "width": math.inf})
    assert row.regime == {"name": "limit", "dimension": "inf", "width": "inf"}
    assert Record.from_json(row.to_json()) == row


def test_provenance_says_which_code_and_versions():
    origin = provenance()
    assert set(origin) == {"git", "modified", "python", "packages"}
    assert re.fullmatch("unknown|[0-9a-f]{40,64}", origin["git"])
    assert (origin["modified"] is None) == (origin["git"] == "unknown")
    assert origin["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "numpy" not in origin["packages"] or re.match(r"\d+\.\d+", origin["packages"]["numpy"])
    everything = json.dumps(origin)
    assert os.getcwd() not in everything and platform.node() not in everything


def test_provenance_without_git_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] == "unknown"
