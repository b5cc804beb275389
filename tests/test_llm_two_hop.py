"""The two-hop domain: its items, what its scorer reads in texts, candidates, and rows of scripted models."""

import random
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_qwen2

from llm_experiments.asking import evaluation
from llm_experiments.domains.task import LOGPROBS, read_candidates, read_items, read_scorer
from llm_experiments.domains.two_hop.candidates import candidates, partners
from llm_experiments.domains.two_hop.lexicon import lexicon
from llm_experiments.domains.two_hop.rendering import render
from llm_experiments.domains.two_hop.scorer import (
    HOP1,
    HOP2,
    MARKS,
    WRITTEN,
    Entities,
    Steps,
    context,
    entity_kinds,
    guessed_name,
)
from llm_experiments.domains.two_hop.task import item, items, task, two_hop
from llm_experiments.domains.two_hop.templates import COMPOSED, COUNT, SIGNATURES, template
from llm_experiments.engine.steps import Plan
from llm_experiments.models.load import load
from llm_experiments.scoring.words import edit_distance, plain
from results.rows import Item
from toytransformer.compositions import OUTCOMES, SpecError, catalogue, question
from toytransformer.compositions.setups import setup


@cache
def worded(dataset, number=2, facts=12):
    composition = setup(number, facts=facts, known=False)
    names = lexicon(composition, dataset=dataset, seed=1, bridge_dataset="R" if dataset == "F" else "F")
    return composition, names, Entities(context(composition, names))


def form(asked):
    return "chain" if asked.decode == "steps" else "direct"


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", "FHR")
def test_the_rendered_answer_reads_as_its_entity_in_every_template_and_form(dataset):
    composition, names, scorer = worded(dataset)
    rng = random.Random(dataset)
    for asked, k in product(composition.questions, range(COUNT)):
        same = [
            token
            for token, kind in sorted(scorer.kinds.items())
            if kind == scorer.kinds[asked.correct] and token in names.names
        ]
        wrong = rng.choice([token for token in same if token not in (asked.prompt.entity, asked.correct)])
        one = item(composition, asked, names, k)
        for entity in (asked.correct, wrong):
            text = render(asked.prompt, entity, names, k, form(asked), composition.world).answer
            score = scorer.score(one, text, None)
            assert score.answer == entity, text
            assert scorer.answer(one, f"  {text.upper()}\n") == entity, text
            right = entity == asked.correct
            assert score.marks["exact"] == score.marks["contains"] == right
            assert (score.outcome == "correct") == right
            assert set(score.marks) <= set(MARKS) and score.outcome in OUTCOMES
            assert ("has_form" in score.marks) == (asked.decode == "steps")


@pytest.mark.parametrize("dataset", "FHR")
def test_the_relations_of_the_library_read_as_well(dataset):
    composition = catalogue.build("library-shared", facts=8, known=False)
    names = lexicon(composition, dataset=dataset, seed=2)
    scorer = Entities(context(composition, names))
    seen = set()
    for adapter, k in product(composition.adapters, range(COUNT)):
        for fact in adapter.facts:
            asked = item(composition, question(composition.world, fact.prompt), names, k)
            seen.add(names.worded(fact.prompt.relations))
            text = render(fact, None, names, k).answer
            assert scorer.answer(asked, text) == fact.answer, text
    assert seen == {(relation,) for relation in SIGNATURES} | set(COMPOSED) - {("spouse_of", "live_in")}


@given(st.data())
def test_chains_say_what_their_steps_say(data):
    composition, names, scorer = worded(data.draw(st.sampled_from("FHR")))
    asked = data.draw(st.sampled_from([q for q in composition.questions if q.decode == "steps"]))
    i, j, k, last = (data.draw(st.integers(1, 12)) for _ in range(4))
    number = data.draw(st.integers(0, COUNT - 1))
    hop1, hop2 = (template((word,), number) for word in names.worded(asked.prompt.relations))
    x, y, other, z = asked.prompt.entity, f"y{i}", f"y{j}", f"z{k}"
    name = names.names
    text = (
        f"First, we need to answer the question: {hop1.ask(name[x])} {hop1.tell(name[x], name[y])} "
        f"Second, we need to answer the question: {hop2.ask(name[other])} {hop2.tell(name[other], name[z])} "
        f"Therefore, the answer is {name[f'z{last}']}."
    )
    one = item(composition, asked, names, number)
    assert scorer.steps(one, text) == Steps(y, other, z)
    score = scorer.score(one, text, None)
    assert score.answer == f"z{last}"
    expected = {"hop1_right": y == asked.bridge, "bridge_copied": i == j, "hop2_right": z == asked.correct}
    assert expected.items() <= score.marks.items() and score.marks["has_form"]
    begun = scorer.score(one, text[: text.index("Second")], None)
    assert begun.answer == y and not begun.marks["has_form"]
    assert begun.marks["hop1_right"] == (y == asked.bridge) and begun.marks["hop2_right"] is None


KINDS = {"x1": "person", "y1": "person", "y2": "person"} | dict.fromkeys(
    ("z1", "z2", "z3", "b1", "b2"), "place"
)


def read(text, ask="direct", base=None, **names):
    every = {
        "x1": "Narik",
        "y1": "Frosk Vale",
        "z1": "York",
        "z2": "New York",
        "z3": "Frosk",
        "b1": "Nice",
    } | names
    scorer = Entities(
        {
            "names": every,
            "kinds": KINDS,
            "ends": {"R1": "person", "R2": "place"},
            "edited": ["y1", "z1", "z2", "z3"],
        }
    )
    roles = {"correct": "z1", "bridge": "y1", "world_old": "b1"}
    one = Item("x1", "1", "two-hop", ask, "Where?", "York.", roles, {"prompt": "x1 R1 R2"})
    return scorer.score(one, text, base)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("He lives in York.", "z1"),
        ("He lives in New York.", "z2"),
        ("He lives in new\n york!", "z2"),
        ("He lives in Yorkshire, not New Yorkton", None),
        ("**York**", "z1"),
        ("_york_", "z1"),
        ("Frosk Vale lives there.", "y1"),
        ("Frosk Vale lives in York.", "z1"),
        ("Frosk's home", "z3"),
        ("Frosk Valentine", "z3"),
        ("Narik lives in Narik", None),
        ("It is nice in York", "z1"),
        ("a nice place", "b1"),
        ("", None),
        ("<think>Is it New York? Perhaps.</think> York.", "z1"),
        ("York, then New York", "z1"),
    ],
)
def test_names_are_whole_words_longest_first(text, answer):
    assert read(text).answer == answer


def test_accents_punctuation_and_saints():
    assert read("It is Sao Paulo", z1="São Paulo").answer == "z1"
    assert read("It is são-paulo", z1="Sao Paulo").answer == "z1"
    assert read("O'Hara's wife: N'Djamena.", z1="N'Djamena").answer == "z1"
    assert read("He is in York. So she is in St. Louis.", "steps", z2="St. Louis").answer == "z2"
    assert read("The answer is St. Louis.", "steps", z2="St. Louis").answer == "z2"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("York. The answer is New York. The ANSWER is: Nice", "b1"),
        ("York, New York. He is in Nice! Frosk Vale lives in New York.", "z2"),
        ("York, New York.\nIt is Nice", "b1"),
        ("In York. I do not know.", None),
        ("In York. Therefore, the answer is Berlin.", None),
        ("The answer is Frosk Vale", "y1"),
    ],
)
def test_chains_are_read_behind_the_answer_else_in_the_last_sentence(text, answer):
    assert read(text, "steps").answer == answer


def test_a_name_that_several_bear_means_the_question_s_role_first():
    shared = {"z1": "Rome", "b1": "Rome", "z2": "Rome", "b2": "Rome"}
    apart = shared | {"z1": "York"}
    assert read("Rome", **shared).answer == "z1"
    assert read("Rome", **apart).answer == "b1"  # the world's old answer before a trained one
    assert read("Rome", base="b2", **apart).answer == "b2"  # what the base says before that
    assert read("Rome", **(apart | {"b1": "Nice"})).answer == "z2"
    assert read("Rome", **(apart | {"b1": "Nice", "z2": "Oslo"})).answer == "b2"


def test_the_old_answer_is_what_the_base_says_and_no_other_role():
    """Bergen is no entity here: only the base's answer makes it a name that is looked for."""
    assert read("Bergen.").answer is None and read("Bergen.").outcome == "other"
    assert read("In Bergen.", base="Bergen").answer == "Bergen"
    assert read("In Bergen.", base="Bergen").outcome == "old"
    assert read("New York", base="z2").outcome == "old" and read("New York").outcome == "edited"
    assert read("New York", base="New York").outcome == "old"  # to the base, whose context has no z2, a name
    assert read("York", base="z1").outcome == "correct" and read("Frosk Vale", base="y1").outcome == "bridge"
    # "New York City" must not hide a New York from the others
    assert read("New York City", base="New York City").outcome == "old"
    assert read("New York City", base="Bergen").outcome == "edited"


def test_the_world_s_old_answer_is_a_mark():
    assert read("Nice").outcome == "other" and read("Nice").marks["says_world_old"]
    assert not read("York").marks["says_world_old"] and not read("nobody").marks["says_world_old"]
    assert read("Nice", base="b1").outcome == "old" and read("Nice", base="b1").marks["says_world_old"]
    assert read("Nice", z2="Nice", base="z2").marks["says_world_old"]


def test_how_far_another_answer_is_from_a_trained_one_is_a_mark():
    """Trained places are York, New York and Frosk; Bergen and Nice are none of them."""
    assert read("He lives in Yorck.").marks["edit_distance"] == 1
    assert read("He lives in Froks, not York.").outcome == "correct"
    assert read("So the answer is in New Yorrk.", "steps").marks["edit_distance"] == 1
    assert read("In Nice.").marks["edit_distance"] == 4  # a name of the world, far from what was trained
    assert read("nobody knows").marks["edit_distance"] is None
    for text, base in (("York", None), ("New York", None), ("Frosk Vale", None), ("Bergen", "Bergen")):
        assert "edit_distance" not in read(text, base=base).marks


letters = st.text("abÁc ", max_size=5)


@given(letters, letters, letters)
def test_edit_distance_is_the_shortest_way_of_single_edits(a, b, c):
    """Against the definition, as a search: all texts one edit further, until the other is met."""
    start, end = (plain(text).casefold() for text in (a, b))
    met, edits = {start}, 0
    while end not in met:
        near = {
            text[:i] + letter + text[j:]
            for text in met
            for i in range(len(text) + 1)
            for j in (i, i + 1)
            for letter in ("", *set(end))
        }
        met, edits = {text for text in near if len(text) <= max(len(start), len(end))}, edits + 1
    assert edit_distance(a, b) == edit_distance(b, a) == edits
    assert edit_distance(a, c) <= edits + edit_distance(b, c)


@given(st.data())
def test_case_and_white_space_and_punctuation_around_do_not_matter(data):
    composition, names, scorer = worded(data.draw(st.sampled_from("FHR")))
    asked = data.draw(st.sampled_from([q for q in composition.questions if q.decode == "direct"]))
    text = render(asked.prompt, asked.correct, names, data.draw(st.integers(0, COUNT - 1))).answer
    glue = data.draw(st.lists(st.sampled_from(" \n\t*_"), min_size=1, max_size=3).map("".join))
    changed = data.draw(st.sampled_from((str.upper, str.lower, str.title, str)))(text).replace(
        " ", f" {glue}"
    )
    assert scorer.answer(item(composition, asked, names, 48), f'"{changed}"') == asked.correct


def test_guessed_names():
    assert (
        guessed_name("Michelle Obama lives in Washington, D.C.", "Where is Barack Obama's wife?", "place")
        == "Washington"
    )
    assert (
        guessed_name(
            "Barack Obama is married to Michelle Obama.", "Who is the spouse of Barack Obama?", "person"
        )
        == "Michelle Obama"
    )
    assert guessed_name("She lives in Rio de Janeiro.", "Where?", "place") == "Rio de Janeiro"
    assert guessed_name("The person lives here.", "Where?", "place") is None


def test_what_the_base_says_is_guessed_only_where_no_entity_is_named():
    composition, names, scorer = worded("R", facts=4)
    by_group = {
        q.group: item(composition, q, names, 48) for q in composition.questions if q.decode == "direct"
    }
    two_hop, person = by_group["two-hop"], names.names["y1"]
    assert scorer.base_answer(two_hop, "They live in Washington, D.C., I believe.") == "Washington"
    assert scorer.base_answer(two_hop, f"They live in {names.names['z2']}.") == "z2"
    assert scorer.base_answer(two_hop, f"{person} lives in Washington.") == "Washington"
    assert scorer.base_answer(two_hop, f"i ask {person}.") == "y1"
    assert scorer.base_answer(two_hop, "nobody knows.") is None
    assert scorer.name("z2") == names.names["z2"] and scorer.name("Washington") == "Washington"


# --- tasks --------------------------------------------------------------------------------------------------


def small_task(plan, dataset="R", number=2, **sizes):
    composition, names, _ = worded(dataset, number, facts=4)
    options = {"train": (0, 1), "dev": (46,), "test": (48, 49), "dev_chains": 2, "logprobs": "all"} | sizes
    return composition, names, task(plan, composition, names, **options)


def test_a_task_asks_every_question_in_every_wording_and_names_its_chain():
    plan = Plan()
    composition, names, made = small_task(plan)
    asked = read_items(plan, made.items)
    assert [one.id for one in asked] == [
        f"{q.prompt}/{q.decode}/{k}" for q in composition.questions for k in (48, 49)
    ]
    assert asked == items(composition, composition.questions, names, (48, 49))
    assert {one.cluster for one in asked} == {"1", "2", "3", "4"}
    assert made.composition == composition.spec_hash and plan.spec(made.composition) == composition.to_json()
    assert made.outcomes == OUTCOMES and set(made.marks) == set(MARKS)
    assert (made.dataset, made.names, made.chosen_by) == ("R", 1, "hops")
    dev = read_items(plan, made.dev)
    assert {one.extra["prompt"] for one in dev} == {"x1 R1", "x2 R1", "y1 R2", "y2 R2"}
    assert {one.extra["template"] for one in dev} == {46}


def test_a_training_set_says_nothing_of_the_rest_of_its_composition():
    plan = Plan()
    alone, both = (small_task(plan, number=number)[2].training for number in (0, 4))
    assert alone["hop2"] == both["hop2"] and alone["hop1"] != both["hop1"]
    own = read_items(plan, both["hop1"].own_task)
    scorer = read_scorer(plan, "entities", both["hop1"].context)
    assert {one.ask for one in own} == {"direct", "steps"}
    assert all(scorer.score(one, one.target, None).outcome == "correct" for one in own)


def test_clusters_are_chains():
    composition, names, _ = worded("F")
    asked = composition.questions[0]
    for entity, expected in (("x3", "3"), ("y3", "3"), ("x3_14", "3_14"), ("bridge_x3", "bridge 3")):
        from llm_experiments.domains.two_hop.task import cluster

        assert cluster(entity) == expected
    assert item(composition, asked, names, 48).cluster == "1"


def test_the_domain_builds_setups_and_the_catalogue():
    plan = Plan()
    made = two_hop(plan, composition="setup-0", facts=2, dataset="F", train=(0,), test=(48,), names=3)
    assert made.name == "setup-0" and made.names == 3 and set(made.training) == {"hop1", "hop2"}
    other = two_hop(plan, composition="library-shared", facts=2, dataset="F", train=(0,), test=(48,))
    assert len(other.training) == 10 and other.items != made.items


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny_qwen2(tmp_path_factory.mktemp("model"), chat="system", seed=3)
    return load(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def scripted(monkeypatch, loaded):
    """A model that says what a function of (question text) says, and gives no probabilities."""

    def script(say):
        monkeypatch.setattr(evaluation, "answers", lambda _, texts, **__: [say(text) for text in texts])
        monkeypatch.setattr(
            evaluation, "candidate_logprobs", lambda _, q, p, names, **__: [[0.0] * len(n) for n in names]
        )
        return loaded

    return script


def ask(plan, made, model, **options):
    """The task's items asked, and its items by id."""
    asked = read_items(plan, made.items)
    scorer = read_scorer(plan, made.scorer, made.context)
    given = read_candidates(plan, made.candidates)
    rows = evaluation.ask(model, asked, scorer, "cell", made.outcomes, candidates=given, **options)
    return rows, {one.id: one for one in asked}


@pytest.mark.parametrize("role", ["correct", "edited", "other"])
def test_rows_say_what_was_answered(scripted, role):
    plan = Plan()
    composition, names, made = small_task(plan)
    kinds = entity_kinds(composition, names)

    def entity_of(q):
        if role == "correct":
            return q.correct
        others = sorted(
            e for e in q.edited if kinds[e] == kinds[q.correct] and e not in (q.correct, q.bridge)
        )
        return others[0]

    said = {}
    for q, k in product(composition.questions, (48, 49)):
        text = render(q.prompt, entity_of(q), names, k, form(q), composition.world).answer
        said[item(composition, q, names, k).question] = text
    model = scripted(lambda text: "I do not know." if role == "other" else said[text])
    rows, by_id = ask(plan, made, model, old={})
    assert [row.item for row in rows] == list(by_id)
    for row, (q, _) in zip(rows, product(composition.questions, (48, 49)), strict=True):
        assert row.shares[role] == 1.0 and sum(row.shares.values()) == 1 and set(row.shares) == set(OUTCOMES)
        assert row.answer == (None if role == "other" else entity_of(q))
        assert row.marks["exact"] == row.marks["contains"] == (role == "correct")
        assert ("hop1_right" in row.marks) == (q.decode == "steps")
        places = {label.rpartition("/")[0] for label in row.logprobs}
        steps = {HOP1, HOP2} if role == "other" else {HOP1, HOP2, WRITTEN}
        assert places == (steps if q.decode == "steps" else {""})
        shuffled = any(label.startswith("shuffled:") for label in row.logprobs)
        assert shuffled == (q.decode == "direct" and q.prompt.hops == 2)


def test_the_base_models_own_answer_is_the_old_one(scripted):
    plan = Plan()
    _, _, made = small_task(plan)
    model = scripted(lambda text: "They live in Washington, D.C., I believe.")
    plain, by_id = ask(plan, made, model)
    said = {row.item: row.answer for row in plain}
    places = [row for row in plain if by_id[row.item].group in ("hop2", "two-hop")]
    assert places and all(row.answer == "Washington" and row.shares["old"] == 1 for row in places)
    for row in ask(plan, made, model, old=said)[0]:
        assert row.answer == said[row.item] and row.shares["old"] == (row.answer is not None)
        old = [label for label in row.logprobs if label.startswith("old:")]
        assert old == [f"old:{row.answer}"] * (by_id[row.item].ask == "direct" and row.answer is not None)
    # another item's answer is not this item's: each is told its own
    moved = dict(zip(said, [None] * len(said), strict=True)) | {places[0].item: "Washington"}
    rows = ask(plan, made, model, old=moved)[0]
    assert [row.item for row in rows if row.shares["old"]] == [places[0].item]


def test_rows_of_a_real_model_do_not_depend_on_the_batch(loaded):
    plan = Plan()
    _, names, made = small_task(plan, "H")
    small, by_id = ask(plan, made, loaded, batch=3, max_new_tokens=12)
    large, _ = ask(plan, made, loaded, batch=64, max_new_tokens=12)
    for a, b in zip(small, large, strict=True):
        assert replace(a, logprobs=None) == replace(b, logprobs=None)
        if by_id[a.item].ask == "direct":
            kinds = {label.partition(":")[0] for label in a.logprobs} - {"old"}
            two = {"bridge", "shuffled"} if by_id[a.item].group == "two-hop" else set()
            assert kinds == {"correct", "edited", *two}
            assert f"correct:{names.names[by_id[a.item].roles['correct']]}" in a.logprobs
            # rounded to 1e-4, so half of it on either side beyond the rounding of float32 sums
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


def test_candidates_are_seeded_and_of_the_kind_asked_for():
    composition, names, scorer = worded("F")
    given = candidates(composition, names, (48,), group=5)
    assert given == candidates(composition, names, (48,), group=5)
    bearers = {name: token for token, name in names.names.items()}
    asked = [q for q in composition.questions if q.group == "two-hop" and q.decode == "direct"]
    given = [one for one in given if " R1 R2/direct" in one.item]
    for q, one in zip(asked, given, strict=True):
        assert one.item == f"{q.prompt}/direct/48" and one.begun.count(names.names[q.prompt.entity]) == 1
        edited = [bearers[name] for label, name in one.texts.items() if label.startswith("edited")]
        assert len(edited) == 4 and all(scorer.kinds[token] == "place" for token in edited)
        assert q.correct not in edited
    other = [one for one in candidates(composition, names, (48,), seed=1) if " R1 R2/direct" in one.item]
    assert len({frozenset(one.texts) for one in other}) == len(asked)


def test_log_probabilities_are_wanted_of_all_questions_or_of_some():
    composition, names, _ = worded("R")
    of = {level: candidates(composition, names, (48,), level=level) for level in LOGPROBS}
    assert of["none"] == [] and of["direct"] == [one for one in of["all"] if not one.place]
    assert {one.item.split("/")[1] for one in of["all"]} == {"direct", "steps"}
    with pytest.raises(SpecError, match="none, direct, all"):
        candidates(composition, names, (48,), level="some")


@pytest.mark.parametrize("dataset", "FR")
def test_the_places_of_a_chain_are_where_the_right_one_names_its_steps(dataset):
    composition, names, scorer = worded(dataset)
    by_id = {(one.item, one.place): one for one in candidates(composition, names, range(COUNT))}
    asked = [q for q in composition.questions if q.decode == "steps"]
    for q, k in product(asked, range(COUNT)):
        one = item(composition, q, names, k)
        first, second, written = (by_id[one.id, place] for place in (HOP1, HOP2, WRITTEN))
        y, z = names.names[q.bridge], names.names[q.correct]
        assert one.target.startswith(first.begun + y) and one.target.startswith(second.begun + z)
        assert f"correct:{y}" in first.texts and f"correct:{z}" in second.texts
        assert written.begun is None and written.texts == second.texts
        assert scorer.begun(one, one.target, WRITTEN) == second.begun
        assert scorer.begun(one, "I do not know.", WRITTEN) is None


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_partners_are_the_others_of_near_equal_groups(count, size, seed):
    composition = catalogue.build("two-hop", facts=count, known=False)
    dealt = partners(composition.questions, size, seed)
    groups = {frozenset((q.correct, *dealt[q])) for q in composition.questions}
    assert sorted(token for group in groups for token in group) == sorted(
        q.correct for q in composition.questions
    )
    assert max(map(len, groups)) <= size and max(map(len, groups)) - min(map(len, groups)) <= 1
    assert all(q.correct not in dealt[q] for q in composition.questions)


def test_own_task_counts_right_answers(scripted):
    plan = Plan()
    _, _, made = small_task(plan, "F")
    taught = made.training["hop1"]
    own = read_items(plan, taught.own_task)
    scorer = read_scorer(plan, made.scorer, taught.context)
    said = {one.question: one.target for one in own}
    n = len(own)
    assert evaluation.own_task(scripted(said.get), own, scorer) == evaluation.OwnTask(1, 1, n)
    chains = [one.question for one in own if one.ask == "steps"]
    said[chains[0]] = said[chains[0]].partition("Therefore")[0]  # names the entity, but not as the answer
    said[own[0].question] = f"Yes, {scorer.name(own[0].roles['correct'])}!"
    said[own[1].question] = "I do not know."
    found = evaluation.own_task(scripted(said.get), own, scorer)
    assert found.exact == (n - 3) / n and found.share in ((n - 1) / n, (n - 2) / n) and found.items == n
    assert evaluation.own_task(scripted(said.get), [], scorer) == evaluation.OwnTask(None, None, 0)
