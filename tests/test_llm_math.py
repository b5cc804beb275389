"""Word problems: templates drawn and read back, answers read and judged, data, and experiments on them."""

import contextlib
import io
import itertools
import json
import operator
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from random import Random

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_experiments.domains.math import data, programs, templates
from llm_experiments.domains.math.expressions import expression, shown
from llm_experiments.domains.math.ladder import LEVELS, ladder
from llm_experiments.domains.math.numbers import in_words, number_said
from llm_experiments.domains.math.scorer import answered, calculations, is_code, results
from llm_experiments.domains.math.sizes import Size
from llm_experiments.domains.math.task import JOINT, math
from llm_experiments.domains.math.templates import sets, template
from llm_experiments.domains.task import TaskError, read_examples, read_items
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.steps import Plan
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.load import load
from llm_experiments.scoring import SCORERS
from llm_experiments.scoring.programs import sandbox
from llm_experiments.steps.asking import Ask
from results import frame, paper, tables
from results.rows import Item
from tests import math_data
from tests.tiny_models import tiny_qwen2

OWN = [one for level in ladder().values() for one in level]
by_name = pytest.mark.parametrize("one", OWN, ids=lambda one: one.name)
EXPERIMENTS_HERE = [name for name, experiment in EXPERIMENTS.items() if experiment.needs == ("math",)]
SCORER = SCORERS["numbers"].build({})


# ---- expressions ----


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 50))
def test_expressions_are_exact(a, b, c):
    values = {"a": Fraction(a), "b": Fraction(b), "c": Fraction(c)}
    assert expression("(a + b) / c * c - a")(values) == b
    assert expression("a // c * c + a % c")(values) == a
    assert expression("is_int(a / c)")(values) == (a % c == 0) == expression("divides(a, c)")(values)
    assert expression("a * 0.1 + a * 0.2 == a * 0.3")(values) is True


@pytest.mark.parametrize(
    "source",
    [
        "().__class__",
        "open('x')",
        "(lambda: 1)()",
        "[x for x in y]",
        "__import__('os')",
        "f'{a}'",
        "a.b",
        "_number('1')",
        "sample(names, key=1)",
        "a +",
    ],
)
def test_expressions_are_of_numbers_and_names_alone(source):
    with pytest.raises(TaskError, match=r"^[^\n]*$"):
        expression(source)


@pytest.mark.parametrize(
    "source", ["2 ** 9 ** 9", "range(10 ** 8)", "1 / 0", "range(0, 5, 0)", "nothing + 1"]
)
def test_what_cannot_be_computed_is_one_line(source):
    with pytest.raises(TaskError, match=r"^[^\n]*$"):
        expression(source)({})


# ---- templates ----


@by_name
def test_problems_are_read_back_and_answered_anew(one):
    for problem in one.problems(12, "law"):
        values = one.fit(problem.question)
        assert values is not None and one.meets(values)
        assert one.answer({**sets(), **values}) == problem.answer
        assert all(values[name] == problem.values[name] for name in one.answer.names)
        assert problem.solution.endswith(f"#### {shown(problem.answer)}")
        assert answered(problem.solution) == problem.answer
        assert not [other.name for other in OWN if other is not one and other.fit(problem.question)]


@by_name
def test_solutions_calculate_rightly_with_a_step_for_each_clause(one):
    level = LEVELS.index(one.name.partition("/")[0])
    for problem in one.problems(12, "law"):
        done = list(calculations(problem.solution))
        assert len(done) == level + 1 and all(each.right for each in done)
        assert done[-1].result == problem.answer


@by_name
def test_programs_print_the_answer_and_are_one_function_a_template(one):
    functions = set()
    for problem in one.problems(4, "law"):
        source, printed = programs.program(one, problem.values), io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(source, {})  # made of our own templates
        assert Fraction(printed.getvalue().strip()) == problem.answer
        assert is_code(source)
        functions.add(source.rpartition("\n\n")[0])
    assert len(functions) == 1


def test_a_level_begins_with_the_steps_of_the_level_before():
    """A level's program computes what the program of the level before does, and one step more."""
    for before, after in itertools.pairwise(LEVELS):
        for easy, hard in zip(ladder()[before], ladder()[after], strict=True):
            easy_steps, hard_steps = (
                [line.strip() for line in programs.program(one, one.problems(1, 0)[0].values).splitlines()]
                for one in (easy, hard)
            )
            done = [line for line in easy_steps if line.startswith("step")]
            assert [line for line in hard_steps if line.startswith("step")][: len(done)] == done, hard.name


def test_draws_are_uniform_on_what_the_conditions_allow():
    """A variable given by others is computed: every allowed pair comes, as often as by trying."""
    annotated = (
        "{x,1} and {y,2} make {s,3}.\n#init:\n- x = range(1, 5)\n- y = range(1, 5)\n- s = range(4, 7)\n"
    )
    given_s = template("t/0", annotated + "#conditions:\n- s == x + y\n#answer: s", "#### {s}")
    tried = template("t/0", annotated + "#conditions:\n- s - x - y == 0\n#answer: s", "#### {s}")
    assert list(given_s.given_by) == ["s"] and not tried.given_by
    allowed = {(x, y) for x in range(1, 5) for y in range(1, 5) if 4 <= x + y < 7}
    draws = 3000
    for one in (given_s, tried):
        random = Random(0)
        seen = Counter((int(d["x"][1]), int(d["y"][1])) for d in (one.draw(random) for _ in range(draws)))
        assert seen.keys() == allowed
        expected = draws / len(allowed)
        # six standard deviations of a binomial count
        assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


PLAIN = "{n,3} pens.\n#init:\n- n = range(2, 9)\n#conditions:\n- n > 3\n#answer: n"


@pytest.mark.parametrize(
    ("question", "solution", "words"),
    [
        (PLAIN.replace("n > 3", "n > 9"), "#### {n}", "none of .* draws meets its conditions"),
        (PLAIN.replace("n > 3", "n > m"), "#### {n}", "names m, which nothing draws"),
        (PLAIN.replace("#answer: n", ""), "#### {n}", "no '#answer'"),
        (PLAIN.replace("{n,3}", "{k,3}"), "#### {n}", "slot 'k' is drawn from nothing"),
        (PLAIN.replace("range(2, 9)", "range(2"), "#### {n}", "is no expression"),
        (PLAIN.replace("- n = range", "- range"), "#### {n}", "draws nothing"),
        (PLAIN.replace("range(2, 9)", "range(9, 2)"), "#### {n}", "nothing to draw from"),
        (PLAIN.replace("range(2, 9)", "sample([1, 2], 3)"), "#### {n}", "cannot be drawn from"),
        (PLAIN.replace("range(2, 9)", "numbers(2, 9)"), "#### {n}", "calls 'numbers'"),
        (PLAIN, "{n} pens.", "does not end with '#### answer'"),
        (PLAIN, "#### {n} or so", "is no number"),
        (PLAIN, "#### {n / 0}", "cannot compute"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(monkeypatch, question, solution, words):
    monkeypatch.setattr(templates, "TRIES", 500)
    with pytest.raises(TaskError, match=words) as refused:
        template("t/0", question, solution).problems(2, 0)
    assert "\n" not in str(refused.value)


def test_too_few_problems_are_one_line():
    with pytest.raises(TaskError, match="5 problems differ, 6 are wanted"):
        template("t/0", PLAIN, "#### {n}").problems(6, 0)


def test_a_check_says_what_does_not_fit():
    one = ladder()["p2"][0]
    rows = [
        {"id": "pens", "instance": k, "question": problem.question, "answer": problem.solution}
        for k, problem in enumerate(one.problems(4, 0))
    ]
    assert templates.check([one], rows) == templates.Checked(4, 4, 4, 4, ())
    rows[1]["question"] += " Or not?"
    rows[2]["answer"] = "#### 1000"
    found = templates.check([one], rows)
    assert (found.fitting, found.answered, found.meeting) == (3, 2, 3) and len(found.off) == 2


@pytest.mark.slow
def test_the_published_templates_give_every_published_row():
    """Needs LORA_LIMITS_GSM_SYMBOLIC: a folder with the published templates and p2.jsonl."""
    folder = os.environ.get(data.VARIABLE["gsm-symbolic"])
    if not folder or not data.published_templates("p2"):
        pytest.skip(f"{data.VARIABLE['gsm-symbolic']} names no templates")
    rows = data.published("gsm-symbolic", "p2").rows()
    found = templates.check(data.published_templates("p2"), rows)
    assert found == templates.Checked(len(rows), len(rows), len(rows), len(rows), ())


# ---- numbers and answers ----


@given(st.integers(0, 999))
def test_words_and_digits_say_one_number(number):
    assert number_said(in_words(number)) == number == number_said(f" {number}. ")
    assert number_said(in_words(number).replace("-", " ").title()) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("half", "1/2"), ("a third", "1/3"), ("two-fifths", "2/5"), ("three times", "3"), ("Twice", "2")),
        *(("$1,250.50", "2501/2"), ("-€3", "-3"), ("12%", "12"), ("3/4", "3/4"), (".5", "1/2")),
        *(("pens", None), ("", None), ("1/0", None), ("three pens", None), ("1,25", None)),
    ],
)
def test_numbers_said(text, number):
    assert number_said(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 5 + 3 = 8 pens.\n#### 8", "8"),
        ("#### 1,250", "1250"),
        ("#### -5", "-5"),
        ("#### -$5.50", "-11/2"),
        ("It costs £1,250,000.", "1250000"),
        ("The answer is $3.50. We used 2 steps.", "7/2"),
        (r"So \boxed{12} pens, from 3 boxes.", "12"),
        (r"\boxed{\frac{3}{4}} of 8", "3/4"),
        (r"\boxed{\text{about } 1{,}250 \text{ km}^2}", "1250"),
        (r"\boxed{\boxed{7}} and 9", "7"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{unclosed 5", "5"),
        (r"\boxed{\text{none}} so 6", "6"),
        ("It took 1 1/2 hours.", "3/2"),
        ("The answer is 61/3.", "61/3"),
        ("An area of 5 km^2", "5"),
        ("5 m2", "5"),
        ("between 3-4", "4"),
        ("10 - 4", "4"),
        ("−7", "-7"),
        ("She came 3rd.", None),
        ("no number here", None),
        ("", None),
        ("<think>99</think> It is 4.", "4"),
        ("<think>99</think> I don't know.", None),
        ("```python\nprint(3*4)\n```\n```output\n12\n```", "12"),
        (r"$\frac{1}{0}$", None),
        ("3.", "3"),
    ],
)
def test_answers_that_are_hard_to_read(text, number):
    assert answered(text) == (None if number is None else Fraction(number))


UNITS = ("", " pens", " inches", " dollars", " miles")
OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "×": operator.mul,
}


@given(
    st.integers(1, 999),
    st.sampled_from(sorted(OPERATORS)),
    st.integers(1, 99),
    st.sampled_from(UNITS),
    st.sampled_from(["", "$", "€"]),
    st.sampled_from(["So ", "In 3 days that is ", "After 2 hours, ", "(1) ", "She has 12. "]),
    st.integers(1, 9),
)
def test_a_calculation_is_right_where_it_comes_to_its_result(a, sign, b, unit, currency, lead, off):
    value = OPERATORS[sign](Fraction(a), Fraction(b))
    written = f"{lead}{currency}{a}{unit} {sign} {currency}{b}{unit} = {currency}"
    if "/" in shown(value):
        value = Fraction(round(value, 2))
        (found,) = calculations(f"{written}{float(value):.2f}{unit}.")
        assert found.right
        value = value.__floor__()
    else:
        (found,) = calculations(f"{written}{shown(value)}{unit}.")
        assert found.right and found.result == value
    (found,) = calculations(f"{written}{shown(value + off)}{unit}.")
    assert not found.right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("12 inches/remora * 8 remoras = 96 inches", [True]),
        ("8 feet / 32 feet * 100% = 25%", [True]),
        ("(25% + 40%) / 2 = 32.5%", [True]),
        ("20% of 50 = 10", [True]),
        ("for a total of 25+8 = 33", [True]),
        ("3 1/2 - 2 = 1 1/2", [True]),
        ("27(1/3) = 9", [True]),
        ("$350 000 x 5/100 = 17500", [True]),
        ("10/3 = 3.33 and 10/3 = 3", [True, False]),
        ("3 + 4 = 7 = 2 + 5", [True]),
        ("3 + 4 * 2 = 14", [False]),
        ("x = 3 + 4 = 7", [True]),
        *(
            (text, [])
            for text in ("n - 3 * 4 = 12", "2x + 5 = 15", "5 = 5", "a = b", "20% of the rest + 5 = 25")
        ),
        (r"\( 3 \times 4 = 12 \)", [True]),
        ("3 * 4 = <<3*4=12>>12", [True]),
    ],
)
def test_calculations_among_words(text, right):
    assert [found.right for found in calculations(text)] == right


def item(problem):
    steps = " ".join(map(str, results(problem.solution)))
    roles = {"correct": shown(problem.answer)}
    return Item("a", "a", "problems", "steps", problem.question, problem.solution, roles, {"steps": steps})


def outcome(problem, text):
    score = SCORER.score(item(problem), text, None)
    assert score.outcome in SCORERS["numbers"].outcomes and set(score.marks) == set(SCORERS["numbers"].marks)
    return score


@by_name
def test_outcomes_by_what_is_wrong(one):
    problem = one.problems(1, "outcomes")[0]
    lines = problem.solution.splitlines()
    right = outcome(problem, problem.solution)
    assert right.outcome == "correct" and right.marks["strict"] and right.marks["flexible"]
    assert right.marks["steps_found"] == 1 and not right.marks["code"]
    assert outcome(problem, f"The answer is {shown(problem.answer)}.").marks["strict_cot"]
    assert outcome(problem, "I do not know.").outcome == "no-answer"
    miscalculated = problem.solution.replace(f"= {shown(problem.answer)}", "= 1001").replace(
        f"#### {shown(problem.answer)}", "#### 1001"
    )
    if "= 1001" in miscalculated:
        assert outcome(problem, miscalculated).outcome == "calculation"
    assert outcome(problem, "#### 1001").outcome == "step-missing"
    last = [line for line in lines[:-1] if calculations(line)]
    other = [*last[:-1], "At last 1000 + 1 = 1001.", "#### 1001"]
    assert outcome(problem, "\n".join(other)).outcome == "other"
    assert SCORER.base_answer(item(problem), problem.solution) == shown(problem.answer)


@pytest.mark.skipif(sandbox() is None, reason="no sandbox works here")
def test_programs_are_run_in_a_sandbox():
    problem = ladder()["p2"][0].problems(1, 0)[0]
    runs = SCORERS["numbers"].build({"run": True})

    def read(program, said="99"):
        text = f"So:\n```python\n{program}\n```\n```output\n{said}\n```\nThe answer is {said}."
        return runs.score(item(problem), text, None)

    written = programs.program(ladder()["p2"][0], problem.values)
    right = read(written)
    assert (right.outcome, right.marks["ran"]) == ("correct", True)
    assert SCORER.score(item(problem), right.answer, None).marks["ran"] is None
    for failing in ("print(1 / 0)", "print('none')", "", "import os; os._exit(0)"):
        assert read(failing).answer == "99" and not read(failing).marks["ran"]
    assert read("print(open('/etc/passwd').read(), 5)").answer == "99"
    several = "x = 6\n```\nthen\n```python\nprint(x * 7)"
    assert read(several).answer == "42"
    assert read("print('AssertionError: 3')").answer == "3"


def test_filters_compare_texts_as_lm_eval_does():
    problem = replace(ladder()["p0"][0].problems(1, 0)[0], answer=Fraction(1250))
    for text, strict, cot, flexible in (
        ("#### 1,250", True, False, True),
        ("####1250", False, False, True),
        ("#### 1250.0", False, False, False),
        ("The answer is 1,250.", False, True, True),
        ("The answer is $1250.", False, False, True),
        ("#### 1250 pens in 3 boxes", True, False, False),
        ("", False, False, False),
    ):
        marks = outcome(problem, text).marks
        assert (marks["strict"], marks["strict_cot"], marks["flexible"]) == (strict, cot, flexible), text


# ---- tasks and data ----


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Copies of the published sets, made here, named by the environment."""
    with pytest.MonkeyPatch.context() as patched:
        for variable, path in math_data.write(tmp_path_factory.mktemp("sets")).items():
            patched.setenv(variable, path)
        yield patched


SMALL = {"templates": 2, "train": 2, "own": 4, "dev": 4}


@pytest.mark.parametrize("form", ["cot", "tir"])
@pytest.mark.parametrize("source", ["ladder", "gsm-symbolic", "gsm8k"])
def test_nothing_asked_or_chosen_on_is_trained_on(copies, source, form):
    plan = Plan()
    options = {"taught": ("two",), "asked": "three"} if source == "gsm8k" else {}
    if (source, form) == ("gsm8k", "tir"):
        with pytest.raises(TaskError, match="no templates"):
            math(plan, source=source, form=form, **SMALL, **options)
        return
    task = math(plan, source=source, form=form, **SMALL, **options)
    taught = {
        name: {e.question for e in read_examples(plan, s.examples)} for name, s in task.training.items()
    }
    own = {name: {i.question for i in read_items(plan, s.own_task)} for name, s in task.training.items()}
    asked, chosen = ({i.question for i in read_items(plan, ref)} for ref in (task.items, task.dev))
    everything = set.union(*taught.values())
    assert everything and asked and chosen and all(own.values())
    assert not everything & (asked | chosen | set.union(*own.values()))
    assert not chosen & set.union(asked, *own.values())
    if JOINT in taught:
        alone = [name for name in taught if name != JOINT]
        assert len(alone) == 2 and taught[JOINT] == everything
        assert not set.intersection(*(taught[name] for name in alone))
    for one in read_items(plan, task.items):
        score = SCORER.score(one, one.target, None)
        assert score.outcome == "correct" and score.marks["code"] == (form == "tir")


def test_another_draw_has_other_problems_and_one_draw_the_same(copies):
    for source in ("ladder", "gsm-symbolic"):
        plan = Plan()
        first, again, other = (math(plan, source=source, names=names, **SMALL) for names in (0, 0, 1))
        assert first == again
        assert first.training["p1"].examples != other.training["p1"].examples


def test_eight_examples_stand_before_the_question(copies):
    plan = Plan()
    plain, shown_eight = (math(plan, shots=shots, **SMALL) for shots in (0, 8))
    assert plain.training == shown_eight.training and plain.name != shown_eight.name
    for one, other in zip(read_items(plan, plain.items), read_items(plan, shown_eight.items), strict=True):
        assert other.question.count("Question: ") == 9 and (one.id, one.roles) == (other.id, other.roles)
    for solved in other.question.split("Question: ")[1:-1]:
        text = solved.partition("Answer: ")[2].strip()
        assert all(found.right for found in calculations(text)) and list(calculations(text))
        assert results(text)[-1] == answered(text)


def test_rows_are_read_from_every_layout(copies, tmp_path, monkeypatch):
    here = os.environ[data.VARIABLE["gsm-symbolic"]]
    wanted = data.problems("gsm-symbolic", "p1", each=3, seed=0)
    rows = data.published("gsm-symbolic", "p1").rows()
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv(data.VARIABLE["gsm-symbolic"], str(tmp_path))
    assert data.problems("gsm-symbolic", "p1", each=3, seed=0) == wanted
    with pytest.raises(TaskError, match=r"has none of p2\.jsonl"):
        data.problems("gsm-symbolic", "p2", each=3, seed=0)
    with pytest.raises(TaskError, match="made from the published templates"):
        data.problems("gsm-symbolic", "p1", each=3, seed=0, programs=True)
    polars.DataFrame(rows).write_parquet(tmp_path / "p2.parquet")
    assert len(data.problems("gsm-symbolic", "p2", each=3, seed=0)) == 2
    with pytest.raises(TaskError, match="99 are wanted"):
        data.problems("gsm-symbolic", "p2", each=99, seed=0)
    math_data.write(tmp_path / "drawn", rows=False)
    monkeypatch.setenv(data.VARIABLE["gsm-symbolic"], str(tmp_path / "drawn"))
    drawn = data.problems("gsm-symbolic", "main", each=3, seed=0)
    assert len(drawn) == 2 and here not in str(drawn)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"has none of main\.jsonl"),
        ("", "has no rows"),
        ("{", "cannot be read"),
        ("[1]", "has no rows"),
        ('{"question": "q"}', "no 'answer'"),
        ('{"question": "q", "answer": "many"}', "does not end with '#### number'"),
        ('{"question": "q", "answer": "<<1>> <<2>> #### many"}', "does not end with '#### number'"),
    ],
)
def test_data_that_cannot_be_used_are_one_line(copies, tmp_path, monkeypatch, content, words):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(data.VARIABLE["gsm8k"], str(file))
    with pytest.raises(TaskError, match=words) as refused:
        data.problems("gsm8k", "all", each=1, seed=0)
    assert "\n" not in str(refused.value)


def test_without_the_hub_it_is_said_what_to_do(tmp_path):
    code = (
        "from llm_experiments.domains.math import data\n"
        "from llm_experiments.domains.task import TaskError\n"
        "try: data.problems('gsm8k', 'all', each=1, seed=0)\n"
        "except TaskError as error: print(error)"
    )
    kept = {name: value for name, value in os.environ.items() if name not in data.VARIABLE.values()}
    offline = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=offline, check=True
    )
    assert "openai/gsm8k cannot be fetched" in done.stdout and data.VARIABLE["gsm8k"] in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "algebra"}, "choose of ladder"),
        ({"asked": "p9"}, "choose of ladder"),
        ({"form": "sonnet"}, "choose cot"),
        ({"shots": 3}, "0 or 8"),
        ({"form": "tir", "shots": 8}, "tir with none"),
    ],
)
def test_tasks_that_there_are_not(options, words):
    with pytest.raises(TaskError, match=words):
        math(Plan(), **options)


# ---- experiments ----

TINY = replace(
    PROFILES["small"],
    temperatures=(0.3,),
    training=replace(PROFILES["small"].training, steps=1, batch=2, rank=2, base_dtype=None),
    sizes={"math": Size(templates=2, train=1, asked=1, own=1, dev=1)},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model to which the words of our problems are single tokens."""
    lines = [
        text for one in OWN for problem in one.problems(4, 0) for text in (problem.question, problem.solution)
    ]
    return load(str(tiny_qwen2(tmp_path_factory.mktemp("model"), lines, vocabulary=900)))


def test_errors_are_counted_on_the_same_answers(copies):
    answers, errors = (
        EXPERIMENTS[name].plan(Base("x", "0" * 16), TINY, (0,)) for name in ("table3", "table15")
    )
    assert answers.wanted == errors.wanted


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS_HERE if name != "table15"])
def test_every_experiment_runs_from_training_to_tables(copies, tiny, tmp_path, name):
    """The base, two merges and two controls of the last layers that are trained, asked two problems."""
    plan = EXPERIMENTS[name].plan(Base(tiny.id, tiny.digest), TINY, (0,))
    asked = [plan.steps[address] for address in plan.wanted]
    assert all(isinstance(step, Ask) for step in asked)
    last = asked[-1].layers
    rules = ("mean", "arrow-products")
    of_last = [step for step in asked if step.layers == last and step.control in (None, "random", JOINT)]
    chosen = [step for step in asked if step.control == "base"]
    chosen += [step for step in of_last if step.control or step.merge.rule in rules]
    store = Store(tmp_path)
    listed = [{"address": step.address, "label": step.label} for step in plan.order()]
    store.add_run({"experiment": name}, listed)
    wanted = [step.address for step in chosen]
    summary = run(plan, store, Context(store, lambda: tiny), wanted=wanted, progress=False)
    assert not summary.failed, summary.failed
    read = frame.read(tmp_path)
    assert len(read.cells) == len({step.address for step in chosen})
    assert set(read.outcomes) == set(SCORERS["numbers"].outcomes)
    assert tables.entries(read.groups())
    beside = {(cell.info.control, cell.info.rule): paper.beside(cell, name) for cell in read.groups()}
    for (control, _), printed in beside.items():
        has_one = name.startswith("table") and control in (None, "base")
        assert (printed is not None and printed.table == name) == has_one


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS_HERE if name != "table13"])
def test_every_merge_stands_beside_its_controls(copies, name):
    plan = EXPERIMENTS[name].plan(Base("x", "0" * 16), TINY, (0, 1))
    asked = [plan.steps[address] for address in plan.wanted]
    for seed in (0, 1):
        told = {(step.control, step.merge.rule) for step in asked if step.seed == seed}
        merged = {rule for control, rule in told if control is None}
        assert {"mean", "linear", "arrow-products", "arrow-factors"} <= merged
        alone = {control for control, _ in told if control not in (None, "random")}
        assert JOINT in alone and len(alone) == 3 and ("random", "mean") in told
    assert sum(step.control == "base" for step in asked) >= 1
