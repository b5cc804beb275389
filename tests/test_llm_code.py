"""Code as a domain: what is taught and asked, what is read off an answer, and the experiments end to end."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_qwen2
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_experiments.__main__ import cli
from llm_experiments.domains.code import data
from llm_experiments.domains.code.scorer import Programs, digest, found
from llm_experiments.domains.code.task import code
from llm_experiments.domains.task import TaskError, read_examples, read_items
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.load import load
from llm_experiments.scoring import programs
from llm_experiments.scoring.programs import run_program
from results import frame
from results.rows import Item
from tests import other_sets
from tests.other_sets import BODY, HEAD

confined = pytest.mark.skipif(programs.sandbox() is None, reason="no sandbox works here")
WHOLE = HEAD + BODY
TESTS = "assert top([1, 3, 2]) == 3\nassert top([-1]) == -1"


@pytest.mark.parametrize(
    "text, fenced",
    [
        (f"```python\n{WHOLE}\n```", True),
        (f"Here it is:\n```\n{WHOLE}\n```\nIt takes the largest.", True),
        (f"```python\nprint(1)\n```\nand\n```python\n{WHOLE}\n```", True),
        (f"```python\n{WHOLE}", True),  # cut off before the block ended
        ("```python\n  return max(values)\n```", True),
        (WHOLE, False),
        (f"Sure.\n\n{WHOLE}\n\nThis returns the largest value; isn't it nice?", False),
        ("def top(values):\n    return max(values)\nThat is all.", False),
        (BODY, False),
        ("return max(values)", False),
        ("<think>def top(values): return 0</think>\n```py\ndef top(values): return max(values)\n```", True),
    ],
)
@confined
def test_the_program_is_found_however_it_is_written(text, fenced):
    program, in_block = found(text, HEAD, "top")
    assert in_block == fenced and run_program(program, TESTS).outcome == "passed"


@pytest.mark.parametrize("text", ["", "I do not know.", "La función devuelve el máximo: es fácil."])
def test_an_answer_without_a_program_has_none(text):
    assert found(text, HEAD, "top") == (None, False)


@given(st.text())
def test_whatever_is_said_is_read(text):
    program, fenced = found(text, HEAD, "top")
    assert (program is not None) or not fenced


def test_layout_and_comments_do_not_tell_programs_apart():
    assert digest("def f(x):\n    return x + 1") == digest("def f( x ) :\n  return (x+1) # one more\n")
    assert digest("def f(x): return x") != digest("def f(y): return y")
    assert digest("no python") == digest(" no python\n")


def asked(tests=TESTS):
    extra = {"head": HEAD, "name": "top", "tests": tests}
    return Item("0", "0", "spanish", "direct", "?", None, {"correct": digest(WHOLE)}, extra)


@confined
@pytest.mark.parametrize(
    "text, outcome, compiles",
    [
        (f"```python\n{WHOLE}\n```", "correct", True),
        ("```python\ndef top(values): return min(values)\n```", "wrong", True),
        ("```python\ndef top(values): return max(value)\n```", "error", True),
        ("```python\ndef top(values) return 1\n```", "error", False),
        ("```python\ndef top(values):\n    while True: pass\n```", "timeout", True),
        ("No sé.", "no-code", False),
        ("```python\ndef top(values): import sys; sys.exit()\n```", "error", True),
    ],
)
def test_an_answer_is_what_its_tests_say(monkeypatch, text, outcome, compiles):
    def shortly(*job, **how):
        return run_program(*job, programs.Limits(seconds=1), **how)

    monkeypatch.setattr("llm_experiments.domains.code.scorer.run_program", shortly)
    score = Programs({}).score(asked(), text, None)
    assert (score.outcome, score.marks["compiles"]) == (outcome, compiles)


def test_a_translation_is_right_by_half_of_its_words():
    item = Item("0", "0", "translation", "direct", "?", None, {}, {"translation": "La casa es muy roja."})
    for text, outcome, overlap in (
        ("La casa es muy roja", "correct", 1.0),
        ("la CASA roja", "correct", 0.75),
        ("The house is red", "wrong", 0.0),
        ("", "wrong", 0.0),
    ):
        score = Programs({}).score(item, text, None)
        assert score.outcome == outcome and score.marks["overlap"] == pytest.approx(overlap)


@confined
def test_every_published_form_is_read_and_its_own_solutions_pass(tmp_path, monkeypatch):
    """Rows as the published sets have them; a solution that is right is right in the domain's own words."""
    for variable, path in other_sets.write(tmp_path, programs=12, sentences=9).items():
        monkeypatch.setenv(variable, path)
    plan = Plan()
    task = code(plan, source="published", train=5, translated=4, own=2, dev=2)
    items = read_items(plan, task.items)
    assert [(i.group, i.cluster) for i in items] == [("english", "python/0"), ("spanish", "python/0")]
    coding = task.training["coding"]
    examples = read_examples(plan, coding.examples)
    assert len(examples) == 5 and "assert f() == " in examples[0].question and "\t" not in examples[0].answer
    own = read_items(plan, coding.own_task)
    assert not {i.question for i in own} & {e.question for e in examples}
    for item in (*items, *own, *read_items(plan, task.training["translation"].own_task)):
        score = Programs({}).score(item, item.target, None)
        assert score.outcome == "correct", item
    joint = read_examples(plan, task.training["joint"].examples)
    assert joint == [*examples, *read_examples(plan, task.training["translation"].examples)]


@confined
def test_our_own_solutions_pass_their_tests():
    for one in data.programs("own", 0):
        assert run_program(one.code, "\n".join(one.tests)).outcome == "passed", one
    for language in data.LANGUAGES:
        for one in data.functions("own", language, None):
            assert run_program(one.head + one.body, one.tests).outcome == "passed", one


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "nowhere"}, "no source 'nowhere' of code: choose own or published"),
        ({"train": 100}, "there are 6 programs, 100 to train on"),
        ({"languages": ("german",)}, "no functions in 'german': choose english or spanish"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, words):
    with pytest.raises(TaskError, match=words):
        code(Plan(), **options)


@pytest.mark.parametrize(
    "content, words", [("[1]\n", "has no rows"), ("{", "cannot be read"), ("", "no rows")]
)
def test_a_damaged_copy_is_named(tmp_path, monkeypatch, content, words):
    (tmp_path / "mbpp.jsonl").write_text(content)
    monkeypatch.setenv("LORA_LIMITS_MBPP", str(tmp_path))
    with pytest.raises(TaskError, match=words):
        data.programs("published", 0)


def test_a_set_that_is_nowhere_says_how_to_name_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LORA_LIMITS_MBPP", str(tmp_path))
    with pytest.raises(TaskError, match="by LORA_LIMITS_MBPP"):
        data.programs("published", 0)


def test_tests_that_are_missing_are_named(tmp_path, monkeypatch):
    (tmp_path / "mbpp.jsonl").write_text('{"task_id": 601, "text": "Add.", "code": "x = 1"}\n')
    monkeypatch.setenv("LORA_LIMITS_MBPP", str(tmp_path))
    with pytest.raises(TaskError, match="mbpp/601 has no 'test_list'"):
        data.programs("published", 0)


def test_languages_are_paired_by_the_ids_of_their_files(tmp_path, monkeypatch):
    """Another set beside ours is not read; files of two sets and ids that stand twice are refused."""
    for variable, path in other_sets.write(tmp_path, programs=12, sentences=9).items():
        monkeypatch.setenv(variable, path)
    (row,) = (json.loads(line) for line in (tmp_path / "python" / "English.jsonl").read_text().splitlines())
    sizes = {"source": "published", "train": 5, "translated": 4, "own": 2, "dev": 2}

    def items(name, spanish):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "humaneval_xl_english.jsonl").write_text(json.dumps(row))
        (folder / "humaneval_xl_spanish.jsonl").write_text("\n".join(map(json.dumps, spanish)))
        (folder / "mhumaneval_spanish.jsonl").write_text('{"prompt": "no task_id"}')
        monkeypatch.setenv("LORA_LIMITS_HUMANEVAL_XL", str(folder))
        plan = Plan()
        return read_items(plan, code(plan, **sizes).items)

    assert [item.cluster for item in items("paired", [row])] == ["python/0"] * 2
    with pytest.raises(TaskError, match="'python/1' is not one function in english and in spanish"):
        items("longer", [row, {**row, "task_id": "python/1"}])
    with pytest.raises(TaskError, match="'python/0' is not one function in english and in spanish"):
        items("other", [{**row, "entry_point": "low"}])
    with pytest.raises(TaskError, match="an id stands twice among the functions in spanish"):
        items("twice", [row, row])


HANGS = "```python\nwhile True: pass\n```"


def model_that_writes(folder, answer):
    """A checkpoint that answers everything with one token, `answer`, and ends.

    Layers add nothing, so the normed embedding of the last token is all that the head sees.
    """
    tiny_qwen2(folder, vocabulary=400)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([answer])
    model.resize_token_embeddings(len(tokenizer))
    written = tokenizer.convert_tokens_to_ids(answer)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        table, head = model.model.embed_tokens.weight, model.lm_head.weight
        table.zero_()
        head.zero_()
        table[:, 0] = 1
        table[written] = torch.eye(table.shape[1])[1]
        head[written, 0] = head[tokenizer.eos_token_id, 1] = 50
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@confined
def test_a_run_goes_on_behind_programs_that_hang(tmp_path, monkeypatch):
    """Every answer never ends: it is a timeout, the steps behind it are done, and all cells are kept."""

    def shortly(*job, **how):
        return run_program(*job, programs.Limits(seconds=1), **how)

    monkeypatch.setattr("llm_experiments.domains.code.scorer.run_program", shortly)
    for variable, path in other_sets.write(tmp_path / "sets", programs=12, sentences=9).items():
        monkeypatch.setenv(variable, path)
    profile = PROFILES["embedded"]
    tiny = replace(profile, training=replace(profile.training, steps=2, batch=2, rank=2, base_dtype=None))
    folder = model_that_writes(tmp_path / "model", HANGS)
    plan = EXPERIMENTS["table17"].plan(Base("tiny", "0" * 16), tiny, (0,))
    store = Store(tmp_path / "run")
    store.add_run(
        {"experiment": "table17"}, [{"address": step.address, "label": step.label} for step in plan.order()]
    )
    summary = run(plan, store, Context(store, lambda: load(str(folder))), progress=False)
    assert not summary.failed, summary.failed
    asked = [cell for cell in frame.read(tmp_path / "run").groups() if cell.group == "english"]
    assert {cell.info.control for cell in asked} == {"base", "coding"}
    assert all(cell.outcomes["timeout"] == 1 for cell in asked)


@confined
def test_the_experiment_runs_end_to_end(tmp_path):
    """On a random model, whose answers are no programs: every cell is there, and every control."""
    profile = PROFILES["embedded"]
    tiny = replace(
        profile,
        temperatures=(1.0, 0.1),
        training=replace(profile.training, steps=2, batch=2, rank=2, base_dtype=None),
    )
    texts = [f"{one.said} {one.code}" for one in data.programs("own", 0)] * 5
    folder = tiny_qwen2(tmp_path / "model", texts, vocabulary=400)
    plan = EXPERIMENTS["code-own"].plan(Base("tiny", "0" * 16), tiny, (0,))
    store = Store(tmp_path / "run")
    listed = [{"address": step.address, "label": step.label} for step in plan.order()]
    store.add_run({"experiment": "code-own"}, listed)
    summary = run(plan, store, Context(store, lambda: load(str(folder))), progress=False)
    assert not summary.failed, summary.failed
    cells = frame.read(tmp_path / "run").groups()
    controls = {cell.info.control for cell in cells}
    assert controls == {None, "base", "coding", "translation", "joint", "random"}
    assert {cell.group for cell in cells} == set(data.LANGUAGES)
    assert all(sum(cell.outcomes.values()) == pytest.approx(1) for cell in cells)


@pytest.mark.parametrize(("experiment", "refused"), [("code-own", True), ("places-own", False)])
def test_without_a_sandbox_nothing_is_trained_unless_it_is_allowed(
    monkeypatch, tmp_path, experiment, refused
):
    """--limit 1: the base is asked, of what is not refused."""
    monkeypatch.setattr(programs, "sandbox", lambda: None)
    monkeypatch.setenv(programs.UNSAFE, "")
    folder = tmp_path / "run"
    command = ["run", experiment, "--seeds", "0", "--limit", "1", "--out", str(folder)]
    done = CliRunner().invoke(cli, command)
    assert (done.exit_code == 2) == refused and folder.exists() != refused, done.output
    if refused:
        assert "none works here" in done.output and "--unsafe-code" in done.output
        allowed = CliRunner().invoke(cli, [*command, "--unsafe-code"])
        assert allowed.exit_code == 0 and folder.exists(), allowed.output
