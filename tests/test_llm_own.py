"""A study of one's own: what is written, read, run, resumed, and refused in one line."""

import json
import shutil
from pathlib import Path

import click.testing
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from safetensors.torch import load_file, save_file
from tiny_models import mlp_factors, tiny_qwen2

from figures import registry
from figures import report as page
from figures.__main__ import read as read_measured
from figures.report.ledger import COLUMNS
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.locate import locate
from llm_experiments.adapters.weights import ModuleUpdate, WholeTensor
from llm_experiments.asking import evaluation
from llm_experiments.commands.rows import table
from llm_experiments.commands.runs import run_experiments, status
from llm_experiments.domains.own.planning import planned
from llm_experiments.domains.own.questions import Question, QuestionsError, QuestionStep
from llm_experiments.domains.own.scorer import READINGS, OwnWords
from llm_experiments.domains.own.study import StudyError, StudyFile
from llm_experiments.domains.own.task import items, own_task
from llm_experiments.domains.task import read_items
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.study import Base
from llm_experiments.merges.merging import apply
from llm_experiments.models.load import load
from llm_experiments.models.shapes import base_shapes
from llm_experiments.steps.asking import Ask
from results import frame
from results.rows import Item
from toytransformer.compositions import Merge

EXAMPLE = Path(__file__).parents[1] / "docs" / "study"
QUESTIONS = [
    {"question": "Where does Bob Stone live?", "answer": "Paris", "adapter": "one", "cluster": "Bob"},
    {"question": "Where is Bob Stone's home?", "answer": "Paris", "adapter": "one", "cluster": "Bob"},
    {"question": "Who is the mentor of Bob Stone?", "answer": "Carol Lane", "adapter": "two"},
    {"question": "Who is Alice Young?", "answer": "the spouse", "group": "neither"},
]
#: A head that somebody trained beside an adapter.
HEAD = {"score.weight": WholeTensor((2, 32), False, lambda: torch.ones(2, 32))}
FIT = [{"question": "Where does Alice Young live?", "answer": "Paris"}]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def random_adapter(folder, loaded, seed, *, name=None, rank=2, **settings):
    """An adapter of random factors on the tiny model's MLPs, as PEFT writes it."""
    modules = mlp_factors(loaded.model, seed, rank=rank)
    peft_files.write(folder, name or folder.name, modules, loaded.id, **settings)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def loaded(base):
    return load(str(base), dtype="float32", device="cpu")


@pytest.fixture
def place(tmp_path, loaded):
    """A folder with two adapters, questions, and what a study needs besides."""
    for seed, name in enumerate(("one", "two")):
        random_adapter(tmp_path / name, loaded, seed)
    lines(tmp_path / "questions.jsonl", QUESTIONS)
    lines(tmp_path / "fit.jsonl", FIT)
    lines(tmp_path / "taught.jsonl", [{"question": "Bob Stone lives where?", "answer": "Paris"}])
    return tmp_path


def written(place, base, merges=(), head="", run="", questions="", adapters=None):
    """A study of the two given adapters; what is passed stands in the places of the same names."""
    if adapters is None:
        adapters = "".join(f'[[adapters]]\nname = "{name}"\ngiven = "{name}"\n' for name in ("one", "two"))
    text = f'name = "mine"\nbase = "{base}"\n{head}\n[questions]\nasked = "questions.jsonl"\n{questions}\n'
    text += (
        adapters + "".join(f"[[merges]]\n{merge}\n" for merge in merges) + (f"[run]\n{run}\n" if run else "")
    )
    (place / "study.toml").write_text(text)
    return place / "study.toml"


def plan_of(file, base):
    source = base_shapes(str(base))
    return planned(StudyFile.read(file), Base(source.id, source.digest), source)


def computed(plan, folder, loaded, **options):
    store = Store(folder)
    store.add_run({"experiment": "mine", "model": loaded.id}, plan.listed())
    summary = run(plan, store, Context(store, lambda: loaded), progress=False, **options)
    assert not summary.failed, summary.failed
    return store


def called(command, *arguments, status=0):
    done = click.testing.CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)
    assert done.exception is None, done.exception
    assert (done.return_value or 0) == status, done.output
    return done.output


# --- the documented study, from its file to tables, figures and the report ----------------------------------


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The study of docs/study.md with shorter trainings and one fit less; the folder of its results."""
    place = tmp_path_factory.mktemp("documented")
    shutil.copytree(EXAMPLE, place / "study")
    file = place / "study" / "study.toml"
    text = file.read_text()
    assert f"```toml\n{text}```" in EXAMPLE.with_suffix(".md").read_text()
    for written, short in (("steps = 200", "steps = 100"), ('[[merges]]\nrule = "cat-fitted"\n\n', "")):
        assert written in text
        text = text.replace(written, short)
    file.write_text(text)
    said = called(run_experiments, file, "--out", place / "out", "--device", "cpu")
    assert "2 adapters to train" in said and "13 of 13 steps finished" in said
    return place / "out"


def test_the_documented_study_is_measured(documented):
    read = frame.read(documented)
    infos = list(read.cells.values())
    assert {info.domain for info in infos} == {"own"} and {info.task for info in infos} == {
        "homes-and-mentors"
    }
    assert {info.control for info in infos} == {None, "base", "homes", "mentors", "random"}
    study = StudyFile.read(EXAMPLE / "study.toml")
    rules = [merge.rule for merge, _ in study.merges if merge.rule != "cat-fitted"]
    assert [info.rule for info in infos if info.control is None] == rules
    assert read.outcomes == ("correct", "old", "other", "none")
    cells = {(cell.info.control or cell.info.rule, cell.group): cell for cell in read.groups()}
    for group, other in (("homes", "mentors"), ("mentors", "homes")):
        assert cells["base", group].share == cells["random", group].share == 0
        # what an adapter was taught it knows in other wordings, and the other does not
        assert cells[group, group].share > 0.5 > cells[other, group].share == 0
        assert cells["mean", group].clusters == 8 and cells["mean", group].items == 16
        low, high = cells["mean", group].cluster_interval()
        assert low <= cells["mean", group].share <= high
    (arrow,) = (info for info in infos if info.rule == "arrow-products")
    assert arrow.chosen["temperature"] in study.profile.temperatures
    assert arrow.chosen["chosen_by"] == "development questions"


def test_its_tables_figures_and_report_are_those_of_every_experiment(documented, tmp_path):
    shown = called(table, documented)
    for words in ("homes+mentors arrow-products", "mentors alone", "control=random", "lorahub"):
        assert words in shown
    told = called(status, documented)
    assert "homes-and-mentors on embedded" in told and "13 of 13 steps finished" in told
    figure = registry.figures()["libraries"].from_data(read_measured([documented], None, False))
    assert any("homes-and-mentors" in text.get_text() for text in figure.findobj(Text))
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps([dict.fromkeys(COLUMNS, "") | {"claim": "one: holds", "provenance": {}}]))
    assert "homes + mentors" in page.render(page.gather(ledger, runs=[documented]))


# --- given adapters -----------------------------------------------------------------------------------------


def test_given_adapters_answer_as_they_do_when_applied(place, base, loaded, tmp_path):
    file = written(
        place, base, ['rule = "ties"\noptions = { density = 0.5 }', 'rule = "sum"\nweights = [1, -0.5]']
    )
    store = computed(plan_of(file, base), tmp_path / "out", loaded)
    read = frame.read(store.folder)
    library = [peft_files.read(place / name, name=name) for name in ("one", "two")]
    items = [read.items[key] for key in read.items]
    wanted = {"ties": Merge("ties", options={"density": 0.5}), "sum": Merge("sum", (1.0, -0.5))}
    for rule, merge in wanted.items():
        with apply(loaded, library, merge):
            said = evaluation.texts(loaded, items)
        (cell,) = {i.key for i in read.cells.values() if i.rule == rule and i.control is None}
        rows = read.rows.filter(read.rows["cell"] == cell)
        assert dict(zip(rows["item"], rows["text"], strict=True)) == {
            item.id: text for item, text in zip(items, said, strict=True)
        }
    assert [item.group for item in items] == ["one", "one", "two", "neither"]
    assert [item.cluster for item in items] == ["Bob", "Bob", "question 3", "question 4"]


def test_steps_of_a_question_are_asked_as_questions_of_their_own():
    parts = [
        {"question": "Who is A's mentor?", "answer": "B"},
        {"question": "Where does B live?", "answer": "C"},
    ]
    asked = Question("Where does A's mentor live?", "C", "one", steps=tuple(QuestionStep(**p) for p in parts))
    found = items([Question("Who?", "He"), asked])
    assert [(i.id, i.group, i.cluster, i.target) for i in found] == [
        ("1", "questions", "question 1", "He"),
        ("2", "one", "question 2", "C"),
        ("2/1", "one: step 1", "question 2", "B"),
        ("2/2", "one: step 2", "question 2", "C"),
    ]
    plan = Plan()
    assert [i.id for i in read_items(plan, own_task(plan, [asked], "one"))] == ["1"]


def test_what_depends_on_no_draw_is_asked_once(place, base):
    file = written(place, base, ['rule = "mean"', 'rule = "dare"'], run="seeds = [3, 4]")
    asked = [step for step in plan_of(file, base).order() if isinstance(step, Ask)]
    seeds = {}
    for step in asked:
        seeds.setdefault(step.control or step.merge.rule, []).append(step.seed)
    assert seeds == {
        "base": [None],
        "one": [None],
        "two": [None],
        "mean": [None],
        "dare": [3, 4],
        "random": [3, 4],
    }


def test_a_run_that_is_cut_short_goes_on_to_the_same_rows(place, base, loaded, tmp_path):
    trained = '[[adapters]]\nname = "two"\ntrained = "taught.jsonl"\n'
    file = written(
        place,
        base,
        [
            'rule = "cat-fitted"',
            'rule = "lorahub"',
            'rule = "arrow-factors"\noptions = { temperature = 0.5 }',
        ],
        questions='fit = "fit.jsonl"',
        adapters='[[adapters]]\nname = "one"\ngiven = "one"\n'
        + trained
        + "[training]\nsteps = 2\nrank = 2\n",
    )
    plan = plan_of(file, base)
    whole = computed(plan, tmp_path / "whole", loaded)
    order = [step.address for step in plan.order()]
    for end in (3, 7, len(order)):
        # planned anew, as another process does
        parts = computed(plan_of(file, base), tmp_path / "parts", loaded, wanted=order[:end])
    assert [step.address for step in plan_of(file, base).order()] == order
    same = frame.read(whole.folder).rows, frame.read(parts.folder).rows
    assert same[0].equals(same[1]) and len(same[0]) == 7 * len(QUESTIONS)


def test_a_study_that_was_changed_takes_the_place_of_what_it_was(place, base):
    out = place / "out"
    common = ("--out", out, "--device", "cpu", "--dtype", "float32")
    called(run_experiments, written(place, base, ['rule = "mean"']), *common)
    before = {info.rule: key for key, info in frame.read(out).cells.items() if info.control is None}
    random_adapter(place / "two", load(str(base), dtype="float32", device="cpu"), 9)
    said = called(run_experiments, written(place, base, ['rule = "mean"', 'rule = "ties"']), *common)
    assert "10 of 10 steps finished, 6 of them now" in said  # the base and all of adapter one stay
    after = {info.rule: key for key, info in frame.read(out).cells.items() if info.control is None}
    assert set(after) == {"mean", "ties"} and after["mean"] == before["mean"]


def test_an_adapter_that_is_another_when_it_is_copied_is_refused(place, base, loaded, tmp_path):
    plan = plan_of(written(place, base), base)
    random_adapter(place / "two", loaded, 9)
    store = Store(tmp_path / "out")
    failed = run(plan, store, Context(store, lambda: loaded), progress=False).failed
    assert any("no longer the adapter it was when this run was planned" in line for line in failed.values())


def in_a_file(folder):
    (folder / peft_files.WEIGHTS).rename(folder / "epoch-3.safetensors")
    return folder / "epoch-3.safetensors"


def below(folder):
    shutil.move(folder, folder.parent / "checkpoint-10")
    (folder / "runs").mkdir(parents=True)
    shutil.move(folder.parent / "checkpoint-10", folder / "runs")
    return folder


def in_shards(folder):
    tensors = load_file(folder / peft_files.WEIGHTS)
    (folder / peft_files.WEIGHTS).unlink()
    parts = {f"adapter_model-{n}.safetensors": list(tensors)[n::2] for n in (0, 1)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def in_mttl(folder):
    read = peft_files.read(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    tensors = {f"{name}.lora_a": lora.read for name, lora in read.modules.items()}
    tensors |= {f"{name}.lora_b": lora.write.T for name, lora in read.modules.items()}
    torch.save(tensors, folder / "expert.ckpt")
    torch.save({"expert_config": {"lora_rank": 2, "lora_alpha": 2}}, folder / "expert.meta")
    return folder


@pytest.mark.parametrize("layout", [lambda folder: folder, in_a_file, below, in_shards, in_mttl],
                         ids=["peft", "file", "below", "shards", "mttl"])  # fmt: skip
def test_copies_are_read_as_what_they_were_copied_from(layout, loaded, tmp_path):
    source = layout(random_adapter(tmp_path / "one", loaded, 0))
    found = locate(source)
    found.copy(tmp_path / "copy")
    assert locate(tmp_path / "copy").digest == found.digest
    there, copied = peft_files.read(source), peft_files.read(tmp_path / "copy")
    assert there.modules.keys() == copied.modules.keys() and there.layout == copied.layout
    for name, lora in there.modules.items():
        assert torch.equal(lora.delta(), copied.modules[name].delta())
    other = locate(random_adapter(tmp_path / "other", loaded, 1))
    assert other.digest != found.digest


# --- what is refused ----------------------------------------------------------------------------------------


GOOD = 'name = "mine"\nbase = "embedded"\n[questions]\nasked = "questions.jsonl"\n'
ONE = '[[adapters]]\nname = "one"\ntrained = "taught.jsonl"\n'


WRONG = [
    ("", r"name is missing; name, base, questions, adapters have to be there"),
    ("name = ", r"this is no TOML"),
    (b"\xff\xfe", r"this is no TOML"),
    (GOOD, r"adapters is missing"),
    ("nmae = 1\n" + GOOD + ONE, r"there is no key 'nmae'; allowed are name, base, questions, adapters"),
    (GOOD.replace('"mine"', "3") + ONE, r"name is '3': Input should be a valid string"),
    (GOOD.replace('"mine"', "1979-05-27") + ONE, r"texts, numbers, true and false"),
    (GOOD.replace("mine", "../mine") + ONE, r"name is '../mine'; use 1 to 80"),
    (GOOD.replace("mine", "..") + ONE, r"no dot at the beginning"),
    (GOOD.replace("mine", "a\\u0007") + ONE, r"printable letters"),
    (GOOD + "answered = 1\n" + ONE, r"\[questions\]: there is no key 'answered'; allowed are asked, dev"),
    (GOOD + 'reading = "regex"\n' + ONE, r"reading is 'regex'; use one of exact: "),
    (GOOD.replace("questions.jsonl", "none.jsonl") + ONE, r"asked: there is no file .*none.jsonl"),
    (GOOD.replace("questions.jsonl", "a\\u0000b") + ONE, r"asked: there is no file"),
    (GOOD + 'fit = "questions.jsonl"\n' + ONE, r"fit: 'Where does Bob.*' is asked too"),
    (GOOD + "[[adapters]]\n", r"\[\[adapters\]\] 1: name is missing; name have to be there"),
    (GOOD + '[[adapters]]\nname = "a"\ngivn = "x"', r"\[\[adapters\]\] 1: there is no key 'givn'; allow"),
    (GOOD + '[[adapters]]\nname = "a"\n', r"'a' has neither given and trained; write given = a folder"),
    (GOOD + ONE + 'given = "one"\n', r"'one' has both given and trained"),
    (GOOD + ONE + ONE, r"two are called 'one'"),
    (GOOD + ONE.replace('"one"', '"base"'), r"'base' is what a control is called"),
    (GOOD + ONE.replace('"one"', '"a+b"'), r"none of \+ /"),
    (GOOD + ONE.replace("taught", "nothing"), r"'one' trained: there is no file"),
    (GOOD + "adapters = 3\n", r"there is no key 'adapters'; allowed are asked"),
    ("adapters = 3\n" + GOOD, r"adapters is '3': Input should be a valid (list|array)"),
    (GOOD + ONE + "[training]\nstep = 3", r"\[training\]: there is no key 'step'; allowed are"),
    (GOOD + ONE + '[training]\nsteps = "3"', r"\[training\]: steps is '3'; it must be a whole number"),
    (GOOD + ONE + '[training]\nprofile = "big"', r"profile is 'big'; use one of embedded, paper"),
    (GOOD + ONE + '[[merges]]\nrule = "tyes"', r"\[\[merges\]\] 1: there is no merge rule 'tyes'"),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\nweights = [1, 2]', r"2 weights for 1 adapters \(one\)"),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\nweights = ["1"]', r"\[\[merges\]\] 1: weights.0 is '1'"),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\nweights = [nan]', r"use a finite number"),
    (GOOD + ONE + '[[merges]]\nrule = "ties"\noptions = {density = 7}', r"has to be a share above 0"),
    (GOOD + ONE + '[[merges]]\nrule = "ties"\noptions = {a = [1]}', r"\[\[merges\]\] 1: options.a"),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\nadapters = ["two"]', r"there is no adapter 'two'; it is "),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\nadapters = []', r"name each once, one at least"),
    (GOOD + ONE + '[[merges]]\nrule = "lorahub"', r"'lorahub' is fitted on examples: name a "),
    (GOOD + ONE + '[[merges]]\nrule = "sum"\n[[merges]]\nrule = "cat"', r"the same merge stands there"),
    (GOOD + ONE + "[run]\nseeds = []", r"seeds are \[\]; give at least one"),
    (GOOD + ONE + "[run]\nseeds = [1, 1]", r"each once"),
    (GOOD + ONE + "[run]\nseeds = [-1]", r"seeds are \[-1\]"),
    (GOOD + ONE + "[run]\nseeds = [true]", r"\[run\]: seeds.0 is 'True'"),
    (GOOD + ONE + '[run]\ncontrols = ["none"]', r"there is no 'none'; they are alone, random"),
    (GOOD + ONE + "[run]\ntemperatures = [0]", r"give numbers above 0"),
]


@pytest.mark.parametrize("text, said", WRONG, ids=[said for _, said in WRONG])
def test_what_is_written_wrongly_is_named(place, text, said):
    file = place / "study.toml"
    lines(place / "questions.jsonl", QUESTIONS[:2])
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError, match=said) as refused:
        StudyFile.read(file)
    assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value).strip()


@pytest.mark.parametrize(
    "rows, said",
    [
        ("", "holds 0 questions: give 1 to 2000"),
        ("\n \n", "holds 0 questions"),
        ('{"question": "a"}\n', "line 1: answer: Field required"),
        ('{"question": "a", "answer": "b", "adapter": "three"}', "there is no adapter 'three'; it is one of"),
        ("[1]\n", "line 1"),
        ('{"question": "a", "answer": " "}', "hold some text each"),
        ('{"question": "a", "answer": "b", "cluster": 3}', "cluster: Input should be a valid string"),
    ],
    ids=str,
)
def test_files_of_questions_are_refused_by_line(place, rows, said):
    (place / "questions.jsonl").write_text(rows)
    (place / "study.toml").write_text(GOOD + ONE)
    with pytest.raises(QuestionsError, match=said):
        StudyFile.read(place / "study.toml")


def test_adapters_that_do_not_fit_are_named_before_anything_runs(place, base, loaded, tmp_path):
    def refused(said, **more):
        with pytest.raises(StudyError, match=rf"study.toml: .*{said}"):
            plan_of(written(place, base, **more), base)

    wide = tiny_qwen2(tmp_path / "wide", hidden=64, intermediate=96)
    random_adapter(place / "two", load(str(wide), dtype="float32", device="cpu"), 0)
    refused(r"'two': the base .* has other shapes: model.layers.0.mlp.down_proj: \(out, in\) is")
    random_adapter(place / "two", loaded, 0, details={"base_digest": "0123456789abcdef"})
    refused(r"'two': it was trained on the base 0123456789abcdef")
    shutil.rmtree(place / "two")
    refused("'two': .*there is no folder or file 'two'")
    (place / "two").mkdir()
    refused("'two': .*holds no PEFT adapter")
    random_adapter(
        place / "two",
        loaded,
        0,
        settings={"modules_to_save": ["score"]},
        whole=HEAD,
    )
    refused("'two' changes score.weight, which is neither a linear layer's update nor an embedding's")
    tokens = {"model.embed_tokens": ModuleUpdate(torch.ones(32, 2), torch.ones(384, 2), kind="embedding")}
    peft_files.write(place / "two", "two", tokens, loaded.id)
    routed = ['rule = "mean"', 'rule = "arrow-products"']
    refused("'two' changes the embedding model.embed_tokens, on which 'arrow-products' is not", merges=routed)
    assert plan_of(written(place, base, ['rule = "mean"']), base).order()


def test_a_head_of_its_own_is_not_left_out_in_silence(place, loaded):
    random_adapter(place / "two", loaded, 0, settings={"modules_to_save": ["score"]}, whole=HEAD)
    with (
        pytest.raises(ValueError, match=r"'two' replaces score\.weight as a whole"),
        apply(loaded, [peft_files.read(place / "two")], Merge("sum")),
    ):
        pass


@pytest.mark.parametrize(
    "more, said",
    [
        (["--model", "embedded"], "a study says that itself (base)"),
        (["--seeds", "1"], "[run] seeds"),
        (["fig1"], "run it alone"),
        (["--profile", "small"], "[training] profile"),
    ],
    ids=str,
)
def test_the_command_refuses_what_a_study_says_itself(place, base, more, said):
    file = written(place, base, ['rule = "mean"'])
    done = click.testing.CliRunner().invoke(run_experiments, [str(file), *more])
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_the_command_says_what_there_is_to_do_and_stops(place, base):
    file = written(place, base, ['rule = "mean"'])
    said = called(run_experiments, file, "--count", "--out", place / "out", "--device", "cpu")
    assert said == "0 adapters to train on 0 examples (repeats counted), 20 questions to answer: 9 steps\n"
    assert not (place / "out").exists()
    file.write_text(file.read_text().replace('"mine"', '"fig1"'))
    done = click.testing.CliRunner().invoke(run_experiments, [str(file), "--count"])
    assert done.exit_code == 2 and "is an experiment's" in done.output
    done = click.testing.CliRunner().invoke(run_experiments, ["none.toml"])
    assert done.exit_code == 2 and "there is no file 'none.toml'" in done.output


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PARTS = st.sampled_from(["name", "base", "questions", "adapters", "merges", "run", "training", "revision"])
KEYS = st.sampled_from(
    ["asked", "fit", "reading", "name", "given", "trained", "rule", "weights", "options", "seeds", "controls"]
)


@given(st.dictionaries(PARTS, JSON | st.dictionaries(KEYS, JSON) | st.lists(st.dictionaries(KEYS, JSON))))
def test_whatever_is_written_is_a_study_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    lines(folder / "questions.jsonl", QUESTIONS)
    (folder / "study.toml").write_text(
        "\n".join(f"{key} = {in_toml(value)}" for key, value in content.items())
    )
    with pytest.raises((StudyError, QuestionsError)) as refused:
        StudyFile.read(folder / "study.toml")
    assert len(str(refused.value)) < 2000


def in_toml(value):
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {in_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf").replace("null", '""')


# --- what an answer is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reading, text, outcome",
    [
        ("exact", "paris.", "correct"),
        ("exact", "In Paris", "other"),
        ("exact", "Rome", "old"),
        ("exact", "  ", "none"),
        ("exact", "<think>Rome?</think> Páris", "correct"),
        ("contains", "He lives in Paris, France", "correct"),
        ("contains", "He lives in Parisia", "other"),
        ("final", "Rome is big. The answer is Paris.", "correct"),
        ("final", "Paris", "none"),
        ("final", "The answer is Rome", "old"),
    ],
)
def test_answers_are_read_as_asked(reading, text, outcome):
    item = Item("1", "c", "g", "direct", "Where?", "Paris", {"correct": "Paris"})
    score = OwnWords({"reading": reading}).score(item, text, "Rome")
    assert score.outcome == outcome and reading in READINGS
    assert score.marks["contains"] == (
        text not in ("Rome", "  ", "He lives in Parisia", "The answer is Rome")
    )


def test_an_answer_without_words_is_compared_by_its_letters():
    item = Item("1", "c", "g", "direct", "Which sign?", "=>", {"correct": "=>"})
    scorer = OwnWords({"reading": "exact"})
    assert scorer.score(item, " => ", None).outcome == "correct"
    assert scorer.score(item, "<=", None).outcome == "other"
