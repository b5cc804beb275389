"""The embedded model: its world, how it is pretrained, and what the weights that are shipped can do."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from llm_experiments.domains.two_hop import names
from llm_experiments.domains.two_hop.rendering import FIRST, STEP_BY_STEP, THEREFORE
from llm_experiments.domains.two_hop.templates import COMPOSED, SIGNATURES, TRAIN, templates
from llm_experiments.embedded import corpus, measure, pretrain
from llm_experiments.embedded.corpus import BaseWorld, WorldError, build_world, samples
from llm_experiments.models import sources
from llm_experiments.models.load import load

PEOPLE = names.draw("real people", 24, 0)
PLACES = names.real_cities()[:6]
INVENTED = {"person": ("Narik", "Dalmir", "Zetun", "Frobek"), "place": ("Zilora", "Frumesk", "Pelari")}


@pytest.fixture(scope="module")
def world() -> BaseWorld:
    return build_world(PEOPLE, PLACES, seed=3)


@pytest.fixture(scope="module")
def tokenizer(world):
    return pretrain.build_tokenizer(world, [name for pool in INVENTED.values() for name in pool])


def drawn(world, count=2000, **settings):
    return list(samples(world, INVENTED, **({"templates": TRAIN, "count": count, "seed": 1} | settings)))


# --- the world ----------------------------------------------------------------------------------------


def test_everybody_has_a_spouse_and_a_home_and_a_third_the_rest(world):
    count = Counter(relation for _, relation in world.facts)
    assert count["spouse_of"] == count["live_in"] == 24
    assert 6 <= count["study_in"] == count["child_of"] == count["mentor_of"] <= 8
    for (person, relation), answer in world.facts.items():
        assert answer in (PLACES if SIGNATURES[relation][1] == "place" else PEOPLE) and answer != person
        if relation == "spouse_of":
            assert world.facts[answer, "spouse_of"] == person


def test_relations_do_not_cross_between_people_shown_in_chains_and_held_out(world):
    assert len(world.chained) == 14  # 60% of 12 couples, rounded
    for (person, relation), answer in world.facts.items():
        if SIGNATURES[relation][1] == "person":
            assert (person in world.chained) == (answer in world.chained)


def test_strata_are_equally_large_where_the_number_of_people_allows():
    world = build_world(names.draw("real people", 60, 0), PLACES, seed=0)
    for part in (world.chained, set(world.people) - world.chained):
        assert set(Counter(world.frequency[person] for person in part).values()) == {len(part) // 3}


def test_worlds_follow_from_the_seed_and_survive_a_file(world, tmp_path):
    assert build_world(PEOPLE, PLACES, seed=3) == world != build_world(PEOPLE, PLACES, seed=4)
    shown = replace(world, exposures=dict.fromkeys(world.facts, 7))
    shown.write(tmp_path / "world.json")
    assert BaseWorld.read(tmp_path / "world.json") == shown


@pytest.mark.parametrize("people", [PEOPLE[:13], PEOPLE[:10], PEOPLE[:12] * 2])
def test_worlds_need_enough_different_people_in_pairs(people):
    with pytest.raises(WorldError, match="even number, at least 12"):
        build_world(people, PLACES, seed=0)


# --- the examples -------------------------------------------------------------------------------------


def test_people_held_out_never_occur_in_a_chain(world):
    held_out = set(world.people) - world.chained
    chains = [s for s in drawn(world) if "step-by-step" in s.question]
    assert len(chains) > 300
    assert not [s for s in chains for name in held_out if name in s.question + s.answer]
    asked = {name for s in drawn(world) if s.kind == "recall" for name in held_out if name in s.question}
    assert asked == held_out


def test_two_hop_questions_are_never_asked_directly(world):
    direct = [t.question for pair in COMPOSED for t in templates(pair)]
    starts = {
        question[: question.index("{x}")] + "|" + question[question.index("{x}") + 3 :] for question in direct
    }
    for sample in drawn(world):
        if sample.kind == "recall":
            (x,) = (name for name in world.people if name in sample.question)
            assert sample.question.replace(x, "|") not in starts


def test_facts_are_shown_as_often_as_their_stratum_says(world):
    shown = Counter()
    examples = drawn(world, 8000, fact_counts=shown, mixture={"recall": 1})
    assert shown.total() == len(examples) and set(shown) == set(world.facts)
    total = sum(world.frequency[person] for person, _ in world.facts)
    for stratum in corpus.FREQUENCIES:
        facts = [fact for fact in world.facts if world.frequency[fact[0]] == stratum]
        share = stratum * len(facts) / total
        seen = sum(shown[fact] for fact in facts) / len(examples)
        assert abs(seen - share) < 5 * (share * (1 - share) / len(examples)) ** 0.5


def test_a_chain_counts_as_showing_both_its_facts(world):
    shown = Counter()
    drawn(world, 500, fact_counts=shown, mixture={"chain": 1})
    assert shown.total() == 1000 and {person for person, _ in shown} <= world.chained


def test_recalled_answers_are_the_worlds(world):
    for sample in drawn(world, 300, mixture={"recall": 1}):
        assert sample.entity in sample.answer and sample.entity not in sample.question
        (x,) = (name for name in world.people if name in sample.question)
        assert sample.entity in {answer for (person, _), answer in world.facts.items() if person == x}


def test_what_is_read_is_in_the_question_and_what_is_guessed_is_not_scored(world):
    for sample in drawn(world, 600, mixture={"read": 1, "read chain": 1, "form": 1}):
        if sample.kind == "form":
            assert sample.entity not in sample.question and len(sample.unscored) == 2
            middle, last = (sample.answer[left:right] for left, right in sample.unscored)
            assert last == sample.entity
            assert f"{corpus.SECOND}" in sample.answer and middle in sample.answer.partition(corpus.SECOND)[2]
        else:
            assert sample.entity in sample.question and not sample.unscored


def test_known_share_decides_who_is_read_about(world):
    for known, there in ((0.0, False), (1.0, True)):
        examples = drawn(world, 50, mixture={"read chain": 1}, known=known)
        assert all(any(name in s.question for name in world.people) == there for s in examples)


# --- tokens and batches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['Who is Ann\'s "better" half?', "Ünï 日本 😀 <b>", "New York City", " two  spaces\n and\ttabs"]
)
def test_any_text_survives_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text.strip()


def test_words_are_one_token_and_names_two(tokenizer, world):
    sentences = [t.ask("Narik") for relation in SIGNATURES for t in templates((relation,))]
    for sentence in sentences:
        words = sentence.replace("'s", " 's").replace("?", " ?").replace(".", " .").replace(",", " ,").split()
        assert len(tokenizer(sentence)["input_ids"]) <= len(words) + 1 + sentence.count("-") * 2
    assert {
        len(tokenizer(n)["input_ids"]) for n in (*world.people, *INVENTED["person"], *INVENTED["place"])
    } == {2}
    assert {len(tokenizer(place)["input_ids"]) for place in PLACES} == {1}
    assert len(tokenizer(corpus.STEP_BY_STEP.strip())["input_ids"]) == 1


def test_samples_are_encoded_in_the_chat_form(tokenizer, world):
    for sample in drawn(world, 200):
        ((ids, labels),) = pretrain.encode(tokenizer, [sample])
        messages = [
            {"role": "user", "content": sample.question},
            {"role": "assistant", "content": sample.answer},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        begins = ids.index(tokenizer.convert_tokens_to_ids("<a>")) + 1
        assert set(labels[:begins]) == {-100}
        hidden = [i for i in range(begins, len(ids)) if labels[i] == -100]
        assert all(labels[i] == ids[i] for i in range(begins, len(ids)) if i not in hidden)
        guessed = [sample.answer[left:right] for left, right in sample.unscored]
        assert tokenizer.decode([ids[i] for i in hidden]).split() == " ".join(guessed).split()


def test_batches_hold_every_row_once_and_little_padding():
    rng = random.Random(0)
    rows = [([0] * n, [0] * n) for n in (rng.randrange(10, 60) for _ in range(500))]
    groups = pretrain.batches(rows, 256, random.Random(1))
    assert sorted(i for group in groups for i in group) == list(range(500))
    for group in groups:
        lengths = [len(rows[i][0]) for i in group]
        assert max(lengths) - min(lengths) < 4 and max(lengths) * len(group) <= 256


# --- pretraining --------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pretrain, "PEOPLE", 24)
    monkeypatch.setattr(
        pretrain, "ARCHITECTURE", pretrain.ARCHITECTURE | {"hidden_size": 64, "intermediate_size": 96}
    )
    monkeypatch.setattr(pretrain, "names", names)
    return {"examples": 400, "batch_tokens": 512, "questions": 4}


def test_pretraining_learns_and_repeats_itself(small, tmp_path):
    lines = []
    first = pretrain.main(tmp_path / "a", seed=5, log=lines.append, **small)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines if "loss" in line]
    assert len(losses) >= 15 and losses[-1] < 0.9 * losses[0]
    second = pretrain.main(tmp_path / "b", seed=5, log=lambda line: None, **small)
    for file in ("world.json", "tokenizer.json", "config.json", "measurements.json", "README.md"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    weights, again = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    loaded = load(str(first))
    assert loaded.base_world.exposures and loaded.info["license"] == "apache-2.0"


def test_every_wording_is_taught_and_no_name_of_a_dataset(small, tmp_path, monkeypatch):
    """Wordings are held out from adapters, not from the base; names of datasets are new to it."""
    seen = []

    def watched(world, invented, *, templates, **settings):
        seen.append((set(templates), {name for pool in invented.values() for name in pool}))
        return samples(world, invented, templates=templates, **settings)

    monkeypatch.setattr(pretrain, "samples", watched)
    pretrain.main(tmp_path / "new", log=lambda line: None, **small | {"examples": 20})
    assert any(wordings == set(range(50)) for wordings, _ in seen)
    used = {
        name for kind in ("people", "places") for name in names.pool(f"invented {kind}", 0, part="datasets")
    }
    assert not any(invented & used for _, invented in seen)


def test_without_chains_nothing_has_their_form_and_the_world_is_the_same(small, tmp_path, monkeypatch):
    texts, encode = [], pretrain.encode

    def watched(tokenizer, batch):
        texts.extend(sample.question + sample.answer for sample in batch)
        return encode(tokenizer, batch)

    monkeypatch.setattr(pretrain, "encode", watched)
    small |= {"examples": 200, "log": lambda line: None}
    folders = {
        chains: pretrain.main(tmp_path / str(chains), chains=chains, **small) for chains in (True, False)
    }
    formed = [any(phrase in text for phrase in (STEP_BY_STEP, FIRST, THEREFORE)) for text in texts]
    assert any(formed[:200]) and len(formed) == 400 and not any(formed[200:])
    worlds = {chains: BaseWorld.read(folder / "world.json") for chains, folder in folders.items()}
    assert worlds[True].facts == worlds[False].facts and worlds[True].chained and not worlds[False].chained
    assert "(`--no-chains`)" in (folders[False] / "README.md").read_text()


def test_pretraining_leaves_what_is_there_and_nothing_half_done(small, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(pretrain.PretrainError, match="exists"):
        pretrain.main(tmp_path / "there")

    def broken(*args, **settings):
        raise RuntimeError("measured too much")

    monkeypatch.setattr(pretrain, "measure", broken)
    with pytest.raises(RuntimeError, match="measured too much"):
        pretrain.main(tmp_path / "new", log=lambda line: None, **small | {"examples": 20})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# --- the shipped weights ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """(right, of) by what is asked, of the weights in the package."""
    loaded = load("embedded", device="cpu")
    _, kept = pretrain.invented_names(loaded.base_world.seed)
    total: dict[str, tuple[int, int]] = {}
    for row in measure.measure(loaded, kept, count=40, seed=1):
        right, of = total.get(row["what"], (0, 0))
        total[row["what"]] = right + row["right"], of + row["of"]
    return total


@pytest.mark.parametrize("what", ["known one-hop", "known chain of thought"])
def test_the_shipped_model_answers(shipped, what):
    right, of = shipped[what]
    assert of >= 25 and right >= 0.95 * of, (right, of)


def test_the_card_says_what_is_measured(shipped):
    """On other questions than the card's: two binomial shares differ by less than five standard errors."""
    card: dict[str, tuple[int, int]] = {}
    for row in json.loads((sources.EMBEDDED / "measurements.json").read_text()):
        right, of = card.get(row["what"], (0, 0))
        card[row["what"]] = right + row["right"], of + row["of"]
    assert set(card) == set(shipped)
    for what, (right, of) in shipped.items():
        stated, asked = card[what]
        share = (right + stated + 1) / (of + asked + 2)
        error = (share * (1 - share) * (1 / of + 1 / asked)) ** 0.5
        assert abs(right / of - stated / asked) <= 5 * error, (what, right, of, stated, asked)


def test_the_shipped_model_has_no_two_hops_without_steps(shipped):
    right, of = shipped["known two-hop asked directly"]
    assert right <= 0.1 * of, (right, of)


def test_the_shipped_worlds_exposures_follow_its_strata():
    world = BaseWorld.read(sources.EMBEDDED / "world.json")
    mean = {
        f: sum(world.exposures[fact] for fact in world.facts if world.frequency[fact[0]] == f)
        / sum(world.frequency[person] == f for person, _ in world.facts)
        for f in corpus.FREQUENCIES
    }
    for low, high in pairwise(corpus.FREQUENCIES):
        assert mean[high] / mean[low] == pytest.approx(high / low, rel=0.15)
