"""The doctor with a model and questions: what is asked, predicted and said, on a tiny model and by hand."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from tiny_models import mlp_factors, tiny_qwen2

from llm_experiments import __main__ as command
from llm_experiments.adapters import peft_files
from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.diagnose import page
from llm_experiments.diagnose.answers import BEGINS, EXACT, PROBABLE, READINGS, AnswerSheet, Scores
from llm_experiments.diagnose.asked_tables import groups, in_stages
from llm_experiments.diagnose.combining import (
    SCALES,
    Combination,
    Combinations,
    combine,
    held_out,
    least_loss,
    who_knows,
)
from llm_experiments.diagnose.findings import findings
from llm_experiments.diagnose.leaks import NEUTRAL, NEUTRAL_PROMPTS, Leaks, leaks
from llm_experiments.diagnose.library import measure
from llm_experiments.diagnose.staged import BASE, Right, Staged, asked_in_stages
from llm_experiments.diagnose.verdict import COMBINE, OPEN, SEPARATE, questions_needed, verdict
from llm_experiments.domains.own.questions import Question, QuestionsError, QuestionStep, read
from llm_experiments.merges.loss import encoded, mean_loss
from llm_experiments.merges.merging import apply
from llm_experiments.merges.mixtures import weighted
from llm_experiments.models.load import load as load_model
from results.statistics import wilson
from toytransformer.adapters import LoRA
from toytransformer.compositions import Merge
from toytransformer.merging import RuleError
from toytransformer.mixture import mixture

#: Algebraic: eps of float32, times room for sums over two layers of width 64.
SINGLE = 2**12 * float(np.finfo(np.float32).eps)
HOSTILE = "<script>alert(1)</script>[red]\x1b[2J"
QUESTIONS = [
    Question("Who is Bob Stone?", "Carol Lane", "one"),
    Question("Where does Bob Stone live?", "Paris", "two", "places"),
    Question("Who is the mentor of Alice Young?", "Bob Stone lives in Paris."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


def adapter(loaded, name, seed, size=0.3):
    return AdapterWeights(name, mlp_factors(loaded.model, seed, size=size))


@pytest.fixture(scope="module")
def library(loaded):
    return [adapter(loaded, "one", 0), adapter(loaded, "two", 1)]


@pytest.fixture(scope="module")
def asked(loaded, library):
    return combine(loaded, library, QUESTIONS, measure(library))


def close(a, b, tolerance=SINGLE):
    scale = max(float(a.abs().max()), float(b.abs().max()), 1.0)
    assert float((a - b).abs().max()) <= tolerance * scale


# ---------------------------------------------------------------- asking


def test_weights_in_force_are_the_sum_with_these_weights(loaded, library):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    base = sheet.logits(loaded)
    with weighted(loaded, library) as weights:
        close(sheet.logits(loaded), base)
        weights.set((0.5, -1.5))
        found = sheet.logits(loaded)
        for wrong in ((1.0,), (1.0, math.nan)):
            with pytest.raises(RuleError, match="give 2 finite numbers"):
                weights.set(wrong)
    with apply(loaded, library, Merge("sum", (0.5, -1.5))):
        close(found, sheet.logits(loaded))
    close(sheet.logits(loaded), base, 0)
    with pytest.raises(RuleError, match="no adapters"), weighted(loaded, []):
        pass


def test_scores_are_those_of_one_question_at_a_time(loaded):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    scores = sheet.scores(sheet.logits(loaded, batch=2))
    for place, question in enumerate(QUESTIONS):
        prompt, answer = tokens = encoded(loaded, question)
        wanted = -mean_loss(loaded, [tokens], 1) * len(answer)
        assert float(scores.logprob[place]) == pytest.approx(wanted, rel=SINGLE)
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        said = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert bool(scores.right[place]) == (said == answer)


def test_an_answer_that_greedy_decoding_writes_is_right(loaded):
    prompt, _ = encoded(loaded, QUESTIONS[0])
    answer = []
    with torch.no_grad():
        for _ in range(3):
            logits = loaded.model(input_ids=torch.tensor([[*prompt, *answer]])).logits
            answer.append(int(logits[0, -1].argmax()))
    wrong = [*answer[:2], (answer[2] + 1) % 300]
    owner = torch.tensor([0, 0, 0, 1, 1, 1])
    sheet = AnswerSheet(
        ((prompt, answer), (prompt, wrong)), owner, torch.tensor([*answer, *wrong]), owner[::3]
    )
    assert sheet.scores(sheet.logits(loaded)).right.tolist() == [True, False]


# ---------------------------------------------------------------- predicting and measuring


def test_an_adapter_alone_is_asked_what_it_owns_at_every_weight(loaded, library, asked):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    for index, name in enumerate(asked.names):
        curve = asked.curves[name]
        assert tuple(curve) == SCALES and curve[0.0] is asked.base
        assert curve[1.0] is asked.alone(index)
        own = asked.owned(index)
        for scale in set(SCALES) - {0.0, 1.0}:
            known = ~curve[scale].logprob.isnan().numpy()
            assert np.array_equal(known, own) and not curve[scale].right.numpy()[~own].any()
            with apply(loaded, [library[index]], Merge("sum", (scale,))):
                whole = sheet.scores(sheet.logits(loaded))
            close(curve[scale].logprob[own], whole.logprob[own])
    assert asked.owners[:2] == (0, 1)


def test_measured_merges_are_those_of_the_rules(loaded, library, asked):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    there = {one.name: one for one in asked.measured}
    assert {"sum", "mean"} <= there.keys() and len(there) >= 3
    for one in there.values():
        with apply(loaded, library, one.merge):
            wanted = sheet.scores(sheet.logits(loaded))
        # the weights of a rule that is a mixture are kept to four digits
        assert torch.allclose(one.measured.logprob, wanted.logprob, rtol=1e-3)


def test_predictions_are_the_mixture_law_on_logits(loaded, library, asked):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    logits = []
    for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        with apply(loaded, library, Merge("sum", weights)):
            logits.append(sheet.logits(loaded))
    base, alone = logits[0], torch.stack(logits[1:])
    for one in asked.merges:
        wanted = base + sum(w * (f - base) for w, f in zip(one.weights, alone, strict=True))
        assert torch.allclose(one.predicted.logprob, sheet.scores(wanted).logprob, rtol=1e-3, atol=1e-3)
    best = least_loss(sheet, base, alone)
    least = sheet.scores(mixture(base, alone, best)).loss
    grid = [(a, b) for a in np.linspace(0, 1.5, 16) for b in np.linspace(0, 1.5, 16)]
    assert least <= min(sheet.scores(mixture(base, alone, w)).loss for w in grid) + SINGLE * abs(least)


def test_what_is_held_out_is_predicted_by_weights_of_the_other_half(loaded, library, asked):
    sheet = AnswerSheet.of(loaded, QUESTIONS)
    with weighted(loaded, library) as weights:
        logits = []
        for values in ((0, 0), (1, 0), (0, 1)):
            weights.set(values)
            logits.append(sheet.logits(loaded))
    base, alone = logits[0], torch.stack(logits[1:])
    for own, other in (((0, 2), (1,)), ((1,), (0, 2))):
        part = AnswerSheet.of(loaded, [QUESTIONS[place] for place in own])
        places = torch.isin(sheet.owner, torch.tensor(own))
        fitted = least_loss(part, base[places], alone[:, places])
        wanted = sheet.scores(mixture(base, alone, fitted)).logprob
        assert torch.allclose(asked.held_out.logprob[list(other)], wanted[list(other)], rtol=1e-3)
    single = AnswerSheet.of(loaded, QUESTIONS[:1])
    assert held_out(single, single.logits(loaded), alone) is None


def test_who_knows_a_question_is_said_or_seen():
    three = [Question("a", "b"), Question("c", "d"), Question("e", "f", "two")]
    made = by_hand([[1, 1, 0], [1, 0, 0]], base=[0, 1, 0], owners=None, questions=three)
    found = who_knows(three, made.names, made.base, [made.alone(0), made.alone(1)])
    assert found == [1, None, 1]  # of two that are right the surer one


# ---------------------------------------------------------------- leaks


def test_leaks_are_divergences_from_the_base(loaded, library):
    found = leaks(loaded, library, QUESTIONS, (0, 1, None))
    assert set(found.moved) == {NEUTRAL, "one", "two"}
    values = []
    for prompt in NEUTRAL_PROMPTS:
        tokens, _ = encoded(loaded, Question(prompt, ""))
        rows = []
        for weights in ((0.0, 0.0), (0.0, 1.0)):
            with torch.no_grad(), apply(loaded, library, Merge("sum", weights)):
                rows.append(loaded.model(input_ids=torch.tensor([tokens])).logits[0, -1].double().softmax(-1))
        values.append(float(torch.sum(rows[0] * (rows[0] / rows[1]).log())))
    assert found.moved[NEUTRAL][1] == pytest.approx(np.mean(values), rel=1e-3)
    sheet, rows = AnswerSheet.of(loaded, QUESTIONS[:1]), []
    for weights in ((0.0, 0.0), (0.0, 1.0)):
        with apply(loaded, library, Merge("sum", weights)):
            rows.append(sheet.logits(loaded).double().softmax(-1))
    assert found.moved["one"][1] == pytest.approx(
        float(torch.sum(rows[0] * (rows[0] / rows[1]).log(), -1).mean()), rel=1e-3
    )
    for row in found.gates.values():
        assert sum(row) == pytest.approx(1) and min(row) > 0


def test_a_zero_adapter_moves_nothing_and_cannot_be_routed(loaded, library):
    zero = adapter(loaded, "nothing", 0, 0.0)
    found = leaks(loaded, [library[0], zero])
    assert found.moved[NEUTRAL][1] == pytest.approx(0, abs=SINGLE) and found.moved[NEUTRAL][0] > 0
    assert found.gates is None and "no Arrow prototype" in found.reason


# ---------------------------------------------------------------- the verdict


def scores(right):
    right = torch.tensor(right, dtype=torch.bool)
    return Scores(torch.where(right, -0.1, -5.0).double(), right)


def by_hand(alone, *, merged=None, base=None, owners=None, questions=None, curves=None):
    """Combinations of two adapters: who is right on what, and one merge that was measured."""
    count = len(alone[0])
    nothing = scores(base or [0] * count)
    names = ("one", "two")
    one = scores(alone[1])
    one = Scores(one.logprob + 0.05, one.right)  # the second is a little surer
    each = {"one": scores(alone[0]), "two": one}
    made = {name: {s: nothing if s == 0 else each[name] for s in SCALES} for name in names}
    for name, scale, right in curves or ():
        made[name][scale] = scores(right)
    merges = ()
    if merged is not None:
        merges = (Combination("sum", Merge("sum"), (1.0, 1.0), 1.0, scores(merged), scores(merged)),)
    questions = questions or [Question("q", "a")] * count
    owners = owners if owners is not None else [0] * (count // 2) + [1] * (count - count // 2)
    return Combinations(names, tuple(questions), nothing, made, tuple(owners), merges)


HALF = 30
ALONE = [[1] * HALF + [0] * HALF, [0] * HALF + [1] * HALF]


def test_a_merge_that_keeps_the_answers_is_recommended():
    found = verdict(by_hand(ALONE, merged=[1] * 2 * HALF))
    first = found.sentences[0]
    assert found.decision == COMBINE and first.interval == wilson(2 * HALF, 2 * HALF)
    assert "Combine them by sum (1, 1)" in first.text and "60 of 60" in first.text
    assert "instead" not in {sentence.kind for sentence in found.sentences}


def test_a_merge_that_loses_them_is_not_and_something_else_is_named():
    gates = {"one": (0.9, 0.1), "two": (0.2, 0.8)}
    found = verdict(by_hand(ALONE, merged=[1] * HALF + [0] * HALF), Leaks({}, gates))
    said = {sentence.kind: sentence for sentence in found.sentences}
    assert found.decision == SEPARATE and "30 of 60" in said["verdict"].text
    texts = " ".join(sentence.text for sentence in found.sentences)
    assert "Route in place of merging" in texts and "(0.90, 0.80)" in texts
    assert "one alone keeps as many, 30" in texts and "Train one adapter" in texts
    assert "two alone answers 30 of its 30 questions; merged, 30 of these 30 are lost" in texts
    apart = verdict(by_hand(ALONE, merged=[0] * 2 * HALF), Leaks({}, {"one": (0.4, 0.6), "two": (0.5, 0.5)}))
    assert any("would not tell them apart" in sentence.text for sentence in apart.sentences)


def test_too_few_questions_cannot_tell():
    found = verdict(by_hand([[1, 0], [0, 1]], merged=[1, 1]))
    assert found.decision == OPEN and f"about {questions_needed(1.0)} questions" in found.sentences[0].text
    assert wilson(questions_needed(1.0), questions_needed(1.0))[0] >= 0.8
    nothing = verdict(by_hand([[0, 0], [0, 0]], merged=[0, 0]))
    assert nothing.decision == OPEN and "nothing that a merge could keep" in nothing.sentences[0].text
    assert verdict(by_hand([[1, 0], [0, 1]])).decision == OPEN


def test_what_no_part_answers_and_weights_that_are_too_low_are_said():
    alone = [[1] * HALF + [0] * HALF, [0] * HALF + [1] * (HALF - 1) + [0]]
    merged = [0] * (2 * HALF - 1) + [1]
    later = [0] * HALF + [1] * HALF
    found = verdict(by_hand(alone, merged=merged, curves=[("two", 1.25, later)]))
    texts = " ".join(sentence.text for sentence in found.sentences)
    assert "Of 1 questions that neither" in texts and "answers 1 (" in texts
    assert "two is right more often at weight 1.25 than at 1" in texts
    assert "Predicted and measured shares are 0.00 apart" in texts


# ---------------------------------------------------------------- files, page, command


def test_questions_are_read(tmp_path):
    file = tmp_path / "questions.jsonl"
    lines = ['{"question": "a?", "answer": "b"}', "", '{"question": "c?", "answer": "d", "adapter": "one"}']
    file.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert read(file, ["one"]) == [Question("a?", "b"), Question("c?", "d", "one")]


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 1"),
        ("[" * 100_000, "line 1"),
        ('{"question": "a"}', "answer"),
        ('{"question": 1, "answer": "b"}', "question"),
        ('{"question": "a", "answer": " "}', "some text"),
        ('{"question": "a", "answer": "b", "adapter": "three"}', "no adapter 'three'"),
        ('{"question": "a", "answer": "b", "more": 1}', "more"),
        ('{"question": "a", "answer": "' + "b" * 30_000 + '"}', "letters"),
        ("", "holds 0 questions"),
    ],
)
def test_lines_that_are_no_questions_are_refused(tmp_path, line, said):
    (tmp_path / "questions.jsonl").write_text(line)
    with pytest.raises(QuestionsError, match=said):
        read(tmp_path / "questions.jsonl", ["one", "two"])


def test_the_page_escapes_names_and_texts(loaded, library, asked):
    names = (HOSTILE, "two")
    renamed = [AdapterWeights(name, one.modules) for name, one in zip(names, library, strict=True)]
    geometry = measure(renamed)
    curves = {HOSTILE: asked.curves["one"], "two": asked.curves["two"]}
    again = Combinations(names, asked.questions, asked.base, curves, asked.owners, asked.merges)
    moved = Leaks({HOSTILE: (1.0, 0.1)}, None, HOSTILE)
    said = page.render(page.Diagnosis(geometry, findings(geometry), moved, again, verdict(again)))
    assert "<script" not in said and "&lt;script&gt;" in said and "\x1b" not in said
    assert "http" not in said and "src=" not in said, "it loads nothing"
    assert said.count("<svg") == 2 and said.count("<circle") == len(asked.measured)
    assert "<svg" not in page.render(page.Diagnosis(geometry, ()))


def test_groups_are_counted_apart(asked):
    told = {name: (count, base, merged) for name, count, base, merged in groups(asked)}
    assert {name: count for name, (count, _, _) in told.items()} == {"": 2, "places": 1}
    best = asked.measured[0].measured
    assert told["places"][1].logprob.tolist() == asked.base.logprob[1:2].tolist()
    assert told[""][2].logprob.tolist() == best.logprob[[0, 2]].tolist()
    assert groups(by_hand(ALONE, merged=[1] * 2 * HALF)) == []


def test_many_modules_are_shown_by_block():
    rng = np.random.default_rng(0)
    several = [
        AdapterWeights(
            str(j),
            {
                f"layers.{i}.mlp.up_proj": LoRA(*(torch.tensor(rng.normal(size=(3, 1))) for _ in range(2)))
                for i in range(page.LINES + 1)
            },
        )
        for j in range(2)
    ]
    lines = page.heat(measure(several))
    assert lines[0][0] == "block 0" and sum(cells[0][0] for _, cells in lines) == pytest.approx(1)
    few = [one.only(["layers.0.mlp.up_proj"]) for one in several]
    assert page.heat(measure(few))[0][0] == "layers.0.mlp.up_proj"


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llm_experiments", "diagnose", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_the_command_asks_and_says(run, folder, library, tmp_path):
    for one in library:
        peft_files.write(tmp_path / one.name, one.name, one.modules, "tiny")
    lines = [{"question": q.question, "answer": q.answer, "adapter": q.adapter} for q in QUESTIONS]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = (tmp_path / "one", tmp_path / "two")
    options = ("--model", folder, "--dtype", "float32", "--device", "cpu", "--ask", tmp_path / "ask.jsonl")
    status, out, err = run(
        *both, *options, "--html", tmp_path / "page.html", "--json", tmp_path / "told.json"
    )
    assert status == 0 and err == "" and "Verdict: cannot tell" in out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["verdict"]["decision"] == OPEN and len(told["curves"]["one"]) == len(SCALES)
    assert told["owners"][:2] == ["one", "two"] and {"kl"} == told["leaks"].keys()
    assert "cannot tell" in (tmp_path / "page.html").read_text()
    status, out, _ = run(*both, *options[:6], "--html", tmp_path / "page.html")
    assert status == 0 and NEUTRAL in out and "Verdict" not in out
    assert NEUTRAL in (tmp_path / "page.html").read_text()
    status, out, err = run(*both, "--ask", tmp_path / "ask.jsonl")
    assert status == 2 and "--model" in err


# ---------------------------------------------------------------- what is right, questions in steps


def test_readings_are_told_apart_at_the_end_and_by_the_probability(loaded):
    question = QUESTIONS[0]
    sheets = {reading: AnswerSheet.of(loaded, [question], reading) for reading in READINGS}
    targets, count = sheets[EXACT].targets, len(sheets[EXACT].targets)
    assert 0 < int(sheets[BEGINS].counted.sum()) < count and not sheets[BEGINS].counted[-1]
    size = loaded.model.get_output_embeddings().weight.shape[0]
    sure = torch.nn.functional.one_hot(targets, size).float() * 100
    unsure = torch.nn.functional.one_hot(targets, size).float() * 1e-3  # largest, and next to no probability
    late = sure.clone()
    late[~sheets[BEGINS].counted] = 0
    late[~sheets[BEGINS].counted, (targets[~sheets[BEGINS].counted] + 1) % size] = 100
    right = {
        name: [bool(sheet.scores(logits).right[0]) for logits in (sure, unsure, late)]
        for name, sheet in sheets.items()
    }
    assert right == {EXACT: [True, True, False], BEGINS: [True, True, True], PROBABLE: [True, False, False]}
    with pytest.raises(ValueError, match="use one of exact, begins, probable"):
        AnswerSheet.of(loaded, [question], "nearly")


STEPS = (QuestionStep("Who is Ann?", "Ann is Bo."), QuestionStep("Where is Bo?", "Bo is in Rome."))


@pytest.mark.parametrize(
    "steps, form, copied, whole, fails",
    [
        ((True, True), True, True, True, "nothing"),
        ((False, True), True, True, True, "nothing"),
        ((False, True), True, True, False, "a step"),
        ((True, True), False, True, False, "the form"),
        ((True, True), True, False, False, "going on"),
        ((True, True), True, True, False, "composing"),
    ],
)
def test_the_first_thing_that_fails_is_named(steps, form, copied, whole, fails):
    assert Right(steps, form, copied, whole).fails == fails


def test_questions_in_steps_are_asked_as_a_whole_in_parts_and_with_parts_told(loaded, library):
    two = Question("Where is Ann's Bo?", "He is in Rome.", steps=STEPS)
    found = asked_in_stages(loaded, library, [QUESTIONS[0], two], "sum", Merge("sum"))
    assert found.questions == (two,) and list(found.right) == [BASE, "one", "two", "sum"]
    texts = [
        *STEPS,
        Question("Ann is Bo. Bo is in Rome. Where is Ann's Bo?", two.answer),
        Question("Ann is Bo. Where is Ann's Bo?", two.answer),
        two,
    ]
    with apply(loaded, library, Merge("sum")):
        sheet = AnswerSheet.of(loaded, texts)
        wanted = sheet.scores(sheet.logits(loaded)).right.tolist()
    assert found.merged == (Right(tuple(wanted[:2]), *wanted[2:]),)
    assert asked_in_stages(loaded, library, QUESTIONS, "sum", Merge("sum")) is None


def test_the_verdict_says_what_fails_in_questions_with_steps():
    lost, known = Right((True, False), True, True, False), Right((True, True), True, True, False)
    formless = Right((True, True), False, False, False)
    staged = Staged(
        (Question("q", "a", steps=STEPS),) * 3,
        "sum",
        {BASE: (lost, lost, lost), "two": (known, known, known), "sum": (lost, known, formless)},
    )
    found = verdict(by_hand(ALONE, merged=[1] * 2 * HALF), staged=staged)
    texts = [sentence.text for sentence in found.sentences if sentence.kind == "steps"]
    assert texts[0].startswith("Of 3 questions in steps sum answers 0 at once")
    assert "step 2 in 1 (1 of these an adapter or the base answers alone)" in texts[1]
    assert "the form is missing" in texts[2] and "puts 100% together" in texts[2]
    assert "ask in steps" in texts[3]
    assert in_stages(staged)[0] == ("q", "a step", "2 (two alone)")


def test_adapters_that_agree_and_that_contradict_each_other_are_named():
    same = [Question(f"q{k}", "a") for k in range(HALF)] * 2
    both = [[1] * 2 * HALF, [1] * 2 * HALF]
    agreeing = verdict(by_hand(both, merged=[1] * 2 * HALF, questions=same))
    assert [s.text for s in agreeing.sentences if s.kind == "pair"] == [
        "one and two agree: the first answers 30 of the second's 30 questions, the second 30 of the first's "
        "30; either alone may do"
    ]
    apart = [*same[:HALF], *(Question(one.question, "b") for one in same[HALF:])]
    against = verdict(by_hand(ALONE, merged=[1] * HALF + [0] * HALF, questions=apart))
    (text,) = [s.text for s in against.sentences if s.kind == "pair"]
    assert "contradict each other on 30 questions" in text and "30 of these 60 answers" in text


def test_a_question_of_one_step_is_refused(tmp_path):
    file = tmp_path / "questions.jsonl"
    step = {"question": "c", "answer": "d"}
    file.write_text(json.dumps({"question": "a", "answer": "b", "steps": [step, step]}))
    assert read(file, [])[0].steps == (QuestionStep("c", "d"),) * 2
    for steps, said in (([step], "one step"), ([step, {"question": "c", "answer": " "}], "some text")):
        file.write_text(json.dumps({"question": "a", "answer": "b", "steps": steps}))
        with pytest.raises(QuestionsError, match=said):
            read(file, [])
