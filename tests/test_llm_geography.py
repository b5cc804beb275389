"""Places and continents as a domain: what is taught, what is read off an answer, and the experiment."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_qwen2

from llm_experiments.domains.geography import data
from llm_experiments.domains.geography.scorer import Places
from llm_experiments.domains.geography.task import geography
from llm_experiments.domains.task import TaskError, read_examples, read_items
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.load import load
from results import frame


def test_places_are_on_their_continents_and_answer_no_question():
    asked = data.questions("own", None)
    for one in asked:
        assert data.continents()[one.place] == one.continent
    others = dict(data.places(asked, 0))
    assert not {one.place for one in asked} & set(others)
    assert others["Germany"] == "Europe" and others["Nairobi"] == "Africa" and len(others) > 400
    assert data.places(asked, 0) == data.places(asked, 0) != data.places(asked, 1)
    assert set(others.values()) == set(data.CONTINENTS.values())


def test_what_is_taught_answers_no_continent_that_is_asked():
    plan = Plan()
    task = geography(plan, asked=4, taught=5, own=2, dev=3)
    facts, continents, joint = (read_examples(plan, task.training[n].examples) for n in task.training)
    listed = data.questions("own", 4)
    assert len(facts) == 3 * len(listed) and len(continents) == 5 and joint == [*facts, *continents]
    names = set(data.CONTINENTS.values())
    assert not any(name in example.answer for example in facts for name in names)
    assert not any(one.place in example.question for example in continents for one in listed)
    items = read_items(plan, task.items)
    assert [(i.group, i.ask) for i in items if i.cluster == "0"] == [
        ("fact", "direct"),
        ("continent", "direct"),
        ("continent", "steps"),
    ]
    taught = {example.question for example in continents}
    assert not taught & {item.question for item in read_items(plan, task.dev)}


def test_shuffled_facts_are_the_same_places_for_other_questions():
    plan = Plan()
    plain, dealt = (geography(plan, asked=None, shuffled=shuffled) for shuffled in (False, True))
    assert plain.items == dealt.items
    told = [[e.answer for e in read_examples(plan, t.training["facts"].examples)] for t in (plain, dealt)]
    assert sorted(told[0]) == sorted(told[1]) and told[0] != told[1]


ASKED = {
    item.group + "/" + item.ask: item
    for plan in [Plan()]
    for item in read_items(plan, geography(plan, asked=1).items)
}


@pytest.mark.parametrize(
    "asked, text, base, outcome",
    [
        ("fact/direct", "The answer is Paris.", None, "correct"),
        ("fact/direct", "It stands in PARIS, in Europe", None, "correct"),
        ("fact/direct", "London", None, "other"),
        ("fact/direct", "London.", "london", "old"),
        ("continent/direct", "It is in Europe.", None, "correct"),
        ("continent/direct", "Paris", None, "first-step"),
        ("continent/direct", "Paris is in Asia.", None, "first-step"),
        ("continent/direct", "Paris is in Asia.", "Asia", "old"),
        ("continent/direct", "Not in Asia but in Europe.", None, "correct"),
        ("continent/direct", "In Europe or Asia", None, "other"),
        ("continent/direct", "European", None, "other"),
        ("continent/steps", "The answer is Paris. Paris is in Europe.", None, "correct"),
        ("continent/steps", "<think>Europe</think> I do not know", None, "other"),
        ("continent/steps", "", None, "other"),
    ],
)
def test_an_answer_is_the_continent_that_is_named_last(asked, text, base, outcome):
    assert Places({}).score(ASKED[asked], text, base).outcome == outcome


@given(st.sampled_from(sorted(ASKED)), st.text())
def test_whatever_is_said_is_read(asked, text):
    scorer = Places({})
    said = scorer.base_answer(ASKED[asked], text)
    assert scorer.score(ASKED[asked], text, said).outcome in ("correct", "old", "first-step", "other")


def test_the_targets_of_all_items_are_right():
    plan = Plan()
    task = geography(plan, asked=None)
    kept = (task.items, task.dev, *(taught.own_task for taught in task.training.values()))
    for item in (item for ref in kept for item in read_items(plan, ref)):
        assert Places({}).score(item, item.target, None).outcome == "correct", item


def test_a_copy_is_read_and_what_is_no_place_left_out(tmp_path, monkeypatch):
    rows = [
        {"question": "Where?", "answer": "Berlin"},
        {"question": "Who?", "answer": "Alice"},
        {"question": "In which town?", "answer": "Springfield", "continent": "North America"},
    ]
    file = tmp_path / "hotpotqa.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("LORA_LIMITS_HOTPOTQA", str(file))
    found = data.questions("hotpotqa", None)
    assert [(one.number, one.place, one.continent) for one in found] == [
        (0, "Berlin", "Europe"),
        (1, "Springfield", "North America"),
    ]
    file.write_text(json.dumps(rows[1]))
    monkeypatch.setenv("LORA_LIMITS_HOTPOTQA", str(tmp_path))  # a folder, read anew
    with pytest.raises(TaskError, match="none of these questions is answered by a city or country"):
        data.questions("hotpotqa", None)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "x"}, "no source 'x' of questions: choose own or hotpotqa"),
        ({"taught": 10**6}, "other places"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, words):
    with pytest.raises(TaskError, match=words):
        geography(Plan(), **options)


def test_the_experiment_runs_end_to_end(tmp_path):
    """On a random model: every cell is there, and every control."""
    profile = PROFILES["embedded"]
    training = replace(profile.training, steps=2, batch=2, rank=2, base_dtype=None)
    texts = [f"{one.question} {one.place} {one.continent}" for one in data.questions("own", None)] * 5
    folder = tiny_qwen2(tmp_path / "model", texts, vocabulary=400)
    tiny = replace(profile, temperatures=(1.0, 0.1), training=training)
    plan = EXPERIMENTS["places-own"].plan(Base("tiny", "0" * 16), tiny, (0,))
    store = Store(tmp_path / "run")
    listed = [{"address": step.address, "label": step.label} for step in plan.order()]
    store.add_run({"experiment": "places-own"}, listed)
    summary = run(plan, store, Context(store, lambda: load(str(folder))), progress=False)
    assert not summary.failed, summary.failed
    cells = frame.read(tmp_path / "run").groups()
    controls = {cell.info.control for cell in cells}
    assert controls == {None, "base", "facts", "continents", "joint", "random", "shuffled"}
    assert {cell.question_kind for cell in cells} == {"fact/direct", "continent/direct", "continent/steps"}
