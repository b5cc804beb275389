"""Every lesson runs from top to bottom in a fresh kernel, and its exercises tell right answers from wrong."""

import copy
import itertools
import math

import jupytext
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner

import notebooks.__main__ as build
from notebooks import checks
from notebooks.__main__ import LESSONS, executed, handed_out, tags
from notebooks.lesson import reveal
from toytransformer.mixture import mixture


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(notebook) -> int:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_runs_from_top_to_bottom(name):
    notebook = executed(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert pictures(notebook) >= 1
    for cell in code:
        assert ("check" in tags(cell)) == ("Right" in printed(cell)), cell.source
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source

    student = handed_out(notebook)
    nbformat.validate(student)
    kinds = [tags(cell) for cell in student.cells]
    assert not any("solution" in kind for kind in kinds)
    assert not any(c.outputs for c, kind in zip(student.cells, kinds, strict=True) if kind)
    assert pictures(student) == pictures(notebook)


def test_nine_lessons_each_predict_plot_and_ask():
    assert [name[:2] for name in LESSONS] == ["01", "02", "03", "04", "05", "06", "07", "08", "09"]
    for number, path in enumerate(LESSONS.values(), start=1):
        cells = jupytext.read(path).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert text.startswith(f"# {number}. ")
        assert all(
            part in text for part in ("**Question.**", "## Predict first", "## Exercise", "**Take home.**")
        )
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        assert all(word in code for word in ("= None", "reveal(", "assert ", "with drawing("))
        tagged = ["".join(sorted(tags(cell))) for cell in cells if tags(cell)]
        assert tagged and tagged == ["exercise", "solution", "check"] * (len(tagged) // 3)


def test_exercises_are_handed_out_open():
    """With the dots for which each check says that there is no answer yet."""
    for name, path in LESSONS.items():
        exercises = [cell.source for cell in jupytext.read(path).cells if "exercise" in tags(cell)]
        assert all("..." in source for source in exercises), name


def test_a_cell_that_raises_stops_the_build(tmp_path, monkeypatch):
    lesson = tmp_path / "10_broken.py"
    lesson.write_text("# %% [markdown]\n# # 10. Broken\n\n# %%\nassert 1 + 1 == 3\n")
    monkeypatch.setitem(build.LESSONS, "10_broken", lesson)
    # The command knows the lessons that were there when it was defined: let it know this one, too.
    monkeypatch.setattr(build.main.params[0].type, "choices", list(build.LESSONS))
    done = CliRunner().invoke(build.main, ["--out", str(tmp_path / "out"), "10_broken"])
    assert done.exit_code == 1
    assert not list((tmp_path / "out").glob("**/*.ipynb"))


def test_handing_out_leaves_the_teachers_copy_alone():
    notebook = jupytext.read(next(iter(LESSONS.values())))
    before = copy.deepcopy(notebook)
    handed_out(notebook)
    assert notebook == before


def test_a_guess_stands_beside_the_answer(capsys):
    reveal("c", None, 1 / 3)
    reveal("who", "old", "bridge")
    assert capsys.readouterr().out == "c: 0.3333   (you wrote no guess)\nwho: bridge   (your guess: old)\n"


# ---- what the checks accept and refuse ----


def both_facts(features, changes):
    return changes.T @ np.linalg.solve(features @ features.T, features)


def by_least_squares(features, changes):
    return np.linalg.lstsq(features, changes)[0].T


def each_alone(features, changes):
    return sum(np.outer(w, v) / (v @ v) for v, w in zip(features, changes, strict=True))


def too_long(features, changes):
    flat = np.linalg.svd(features)[2][-1]  # at a right angle to both feature vectors
    return both_facts(features, changes) + np.outer(np.ones(len(changes[0])), flat)


def agreement(a):
    n = len(a)
    return np.mean([[a[i] == sigma[i] for i in range(n)] for sigma in itertools.permutations(range(n))])


def own_minus_other(c):
    n = len(c)
    return np.trace(c) / n - (c.sum() - np.trace(c)) / (n * (n - 1))


def enough(modules, facts, shown):
    return math.ceil(shown * (facts - 1) ** 2 / (facts * modules))


RIGHT = [
    (checks.two_facts, both_facts),
    (checks.two_facts, by_least_squares),
    (checks.three_hops, (2, 1 / 3, 4 / 3)),
    (checks.weights, (0, 2)),
    (checks.weights, [2.0, 2.5]),
    (checks.gauge, [[0, 1], [1, 0]]),
    (checks.gauge, np.array([[0, 1.2], [1.1, 0]])),
    (checks.hits, agreement),
    (checks.hits, lambda a: 1 / len(a)),
    (checks.escapes, {"D", "E"}),
    (checks.escapes, "ED"),
    (checks.gap, own_minus_other),
    (checks.needed_weight, lambda own, bridge, old: max(bridge / own, old / own)),
    (checks.three_layers, (1, 2, 3)),
    (checks.merged_logits, mixture),
    (checks.enough, enough),
]

WRONG = [
    (checks.two_facts, None, "no answer yet"),
    (checks.two_facts, lambda features, changes: None, "no answer yet"),
    (checks.two_facts, lambda features, changes: both_facts(features, changes).T, r"shape \(4, 12\)"),
    (checks.two_facts, lambda features, changes: np.full((4, 12), np.nan), "finite"),
    (checks.two_facts, each_alone, "overlap"),
    (checks.two_facts, lambda features, changes: changes.T @ features, "orthogonal"),
    (checks.two_facts, too_long, "the smallest has"),
    (checks.three_hops, (..., 1 / 3, 4 / 3), "no answer yet"),
    (checks.three_hops, ("two", 1 / 3, 4 / 3), "hold numbers"),
    (checks.three_hops, (1, 1 / 3, 4 / 3), "last token counts 1"),
    (checks.three_hops, (2, 2 / 3, 4 / 3), "attended to in both"),
    (checks.three_hops, (2, 1 / 3, 2), "weights are squared"),
    (checks.weights, (..., ...), "no answer yet"),
    (checks.weights, (1, 1), r"b1 1\.000"),
    (checks.weights, (5, 2), "above y1"),
    (checks.weights, (1, 2, 3), r"shape \(2,\)"),
    (checks.gauge, ..., "no answer yet"),
    (checks.gauge, [[1, 0], [0, 1]], "x1 R1 R2: z2, right is z1"),
    (checks.gauge, [[0, -1], [-1, 0]], "right is z1"),
    (checks.gauge, [[1, 1], [1, 1]], "no inverse"),
    (checks.gauge, [1, 0], r"shape \(2, 2\)"),
    (checks.hits, lambda a: None, "no answer yet"),
    (checks.hits, lambda a: 1.0 * len(a), "times too much"),
    (checks.hits, lambda a: 1 / (1 + len(a)), "permutations"),
    (checks.escapes, ..., "no answer yet"),
    (checks.escapes, {"A"}, "A = hop1 \\+ hop2 does not beat"),
    (checks.escapes, {"D"}, "E = joint beats"),
    (checks.escapes, {"F"}, "is no library"),
    (checks.gap, lambda c: None, "no answer yet"),
    (checks.gap, lambda c: -own_minus_other(c), "other way round"),
    (checks.gap, lambda c: np.trace(c) / len(c) - c.mean(), "leave it out"),
    (checks.gap, lambda c: np.trace(c), "off the diagonal"),
    (checks.needed_weight, lambda own, bridge, old: None, "no answer yet"),
    (checks.needed_weight, lambda own, bridge, old: bridge / own, "the old answer has 1"),
    (checks.needed_weight, lambda own, bridge, old: (bridge + old) / own, "the old answer has 1"),
    (checks.three_layers, ..., "no answer yet"),
    (checks.three_layers, (3, 2, 1), "each hop has to read"),
    (checks.three_layers, (1, 1, 2), "each hop has to read"),
    (checks.three_layers, (1, 2, 4), "each is 1, 2 or 3"),
    (checks.three_layers, (1, 2), r"shape \(3,\)"),
    (checks.merged_logits, lambda base, alone, weights: None, "no answer yet"),
    (checks.merged_logits, lambda base, alone, weights: base[0], r"shape \(4, 5\)"),
    (checks.merged_logits, lambda base, alone, w: np.einsum("a,apt->pt", w, alone), "in each of them"),
    (checks.merged_logits, lambda base, alone, w: base + np.einsum("a,apt->pt", w, alone), "subtract it"),
    (checks.merged_logits, lambda base, alone, w: base, "its weight counts"),
    (checks.enough, lambda modules, facts, shown: None, "no answer yet"),
    (checks.enough, lambda modules, facts, shown: shown * (facts - 1) ** 2 / (facts * modules), "round up"),
    (checks.enough, lambda modules, facts, shown: math.ceil((facts - 1) ** 2 / modules), "p of n"),
    (checks.enough, lambda modules, facts, shown: enough(1, facts, shown), "every module"),
    (checks.enough, lambda modules, facts, shown: 3, "solve for K"),
]


def given(check, answer):
    check(*answer) if check is checks.three_hops else check(answer)


@pytest.mark.parametrize("check, answer", RIGHT)
def test_right_answers_are_accepted(check, answer, capsys):
    given(check, answer)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("check, answer, message", WRONG)
def test_wrong_answers_are_told_why(check, answer, message):
    with pytest.raises(checks.WrongAnswer, match=message) as told:
        given(check, answer)
    assert told.value._render_traceback_() == [f"Not yet: {told.value}"]  # what a notebook shows of it
