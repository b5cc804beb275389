"""The page holds every row, drawing and cell, claims only what they bear out, and refuses a broken ledger."""

import ast
import html
import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from figures import reading, registry, report, store
from figures.__main__ import main
from figures.__main__ import read as read_measured
from figures.drawings.two_hop.weights import curves, swept
from figures.report import Content, render, rerun, sources, tables, value
from figures.report.drawings import embed
from figures.report.ledger import COLUMNS, ReportError, claims, read
from figures.report.two_hop import case_by_case, opening
from llm_experiments.engine.store import Store
from results import files
from results import frame as frames
from results.files import Measurements
from results.rows import CellInfo, Item, Row, items_hash
from results.statistics import mcnemar_exact, wilson
from toytransformer.compositions import OUTCOMES, provenance

ROW = {
    "claim": "c1 > c2 <always>",
    "source": "eq. 19",
    "regime": "limit",
    "expected": 0.5,
    "measured": 0.50000004,
    "tolerance": 1e-6,
    "tolerance_kind": "algebraic",
    "verdict": "holds",
    "note": "",
    "proof": "c2_bounds",
    "reason": "eps x operations",
    "provenance": {"git": "abc", "packages": {"jax": "1"}},
}
FIGURES = registry.figures()
DRAWN = [row for row in store.read(store.COMMITTED) if row["figure"] == "outcomes"]
TEMPLATES = [
    file.read_text(encoding="utf-8") for file in sorted(Path(report.__file__).parent.rglob("*.html"))
]


def page(*rows, **content):
    return render(Content(rows or (ROW,), **content))


def text_of(part):
    return html.unescape(re.sub(r"<[^>]*>", " ", part))


# --- the ledger and the drawings --------------------------------------------------------------------------


def test_page_shows_every_row_escaped_with_failures_first():
    shown = page(ROW, ROW | {"claim": "sound: a"}, ROW | {"claim": "broken: b", "verdict": "fails"})
    assert "c1 &gt; c2 &lt;always&gt;" in shown
    assert shown.index("broken") < shown.index("c1 &gt;")
    assert shown.count('<tr class="failed"') == shown.count('<details class="failed" open>') == 1
    assert shown.partition('id="ledger"')[2].count("<details") == 3
    for text in ("c2_bounds", "eps x operations", "jax: 1"):
        assert text in shown


def test_rows_are_grouped_by_claim_and_what_fails_comes_first():
    rows = [ROW | {"claim": f"{claim}: {check}", "verdict": verdict} for claim, check, verdict in (
        ("sound", "a", "holds"), ("mixed", "b", "holds"), ("mixed", "c", "fails"), ("sound", "d", "holds"),
    )]  # fmt: skip
    mixed, sound = claims(rows)
    assert (mixed["name"], mixed["failures"], sound["name"], sound["failures"]) == ("mixed", 1, "sound", 0)
    assert [row["statement"] for row in mixed["rows"]] == ["c", "b"]
    assert [row["statement"] for row in sound["rows"]] == ["a", "d"]


def test_what_the_paper_says_otherwise_is_told_apart_and_once():
    note = "the paper says <two>; true: one"
    shown = page(ROW | {"note": note}, ROW | {"note": note, "claim": "other: x", "verdict": "fails"})
    assert shown.partition('id="ledger"')[2].count("<li>") == 2
    assert 'id="corrections"' in shown and 'id="corrections"' not in page()


def test_what_the_theory_says_is_read_off_the_rows():
    told = case_by_case.summary(DRAWN)
    assert list(told.values())[-1]["Alone"] == "always the right answer"
    shown = html.unescape(page(drawn=DRAWN))
    for heading, cases in told.items():
        assert heading in shown
        for case, said in cases.items():
            assert f"{case}: <i>{said}</i>." in shown
    for outcome, text in case_by_case.SAYS.items():
        rows = [{**row, "shares": {outcome: 1.0}} for row in DRAWN]
        said = {said for cases in case_by_case.summary(rows).values() for said in cases.values()}
        assert said == {f"always {text}"}
    assert case_by_case.summary([]) == {}


def test_every_registered_figure_is_drawn_from_committed_rows_and_stands_on_the_page(committed, tmp_path):
    by_name = {name: [r for r in store.read(store.COMMITTED) if r["figure"] == name] for name in FIGURES}
    edits = [edit for source in committed.committed for edit in source.frame.edits]
    data = registry.Data(by_name, committed.cells, edits, reading.pools())
    for figure in FIGURES.values():
        figure.save(data, tmp_path, ("svg",))
    shown = html.unescape(page(drawings=embed(tmp_path)))
    assert shown.count("<img") == len(FIGURES)
    for figure in FIGURES.values():
        assert figure.title and figure.caption.endswith(".")
        assert f"<b>{figure.title}.</b> {figure.caption}" in shown


def test_a_figure_is_registered_once(tmp_path):
    (name, other) = list(FIGURES)[:2]
    for taken in ({"name": name, "place": 0}, {"name": "a new one", "place": FIGURES[other].place}):
        with pytest.raises(ValueError, match="has place"):
            registry.figure(**taken, title="t", caption="c", needs=registry.CELLS)(lambda cells: None)
    assert registry.figures() == FIGURES


def test_each_drawing_is_embedded_once_as_svg_where_there_is_one(tmp_path):
    (tmp_path / "leak.svg").write_text("<svg/>")
    (tmp_path / "leak.png").write_bytes(b"png")
    (tmp_path / "outcome-map.png").write_bytes(b"png")
    drawings = embed(tmp_path)
    assert [drawing["name"] for drawing in drawings] == [FIGURES["leak"].title, "outcome map"]
    assert [drawing["uri"].split(";")[0] for drawing in drawings] == ["data:image/svg+xml", "data:image/png"]
    assert page(drawings=drawings).count("<img") == 2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_without_a_column_is_refused_by_name(tmp_path, column):
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps([ROW, {key: entry for key, entry in ROW.items() if key != column}]))
    with pytest.raises(ReportError, match=f"row 2 lacks {column}"):
        read(ledger)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[3]", "[{"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, text):
    ledger = tmp_path / "ledger.json"
    ledger.write_text(text)
    with pytest.raises(ReportError, match=r"ledger\.json"):
        read(ledger)


def test_cells_are_short():
    assert value(1 / 3) == "0.333333"
    assert value(None) == ""
    assert value([1, 0.5, None]) == "1, 0.5, "
    assert value({"c1": 2.0}) == "c1: 2"


# --- the answer -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The committed measurements with their predictions, on a page without drawings."""
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.json"
    ledger.write_text(json.dumps([ROW]))
    return report.gather(ledger, measured=reading.committed())


def reasons(content):
    return opening.reasons(content.cells)


def test_every_reason_is_stated_or_marked_as_contradicted(committed):
    found = reasons(committed)
    shown = html.unescape(render(committed))
    assert len(found) == 4
    assert shown.count("Contradicted by these rows:") == sum(not reason.holds for reason in found)
    for reason in found:
        assert reason.says in shown and reason.numbers in shown
        assert (f"<s>{reason.says}</s>" in shown) == (not reason.holds)


def shifted(cell, form=None, **wanted):
    """The cell with other answers: these shares of its rows, and the form of a chain where it is given."""
    rows, start = list(cell.index), 0
    columns = {f"shares.{name}": [0.0] * len(rows) for name in OUTCOMES}
    for name, share in wanted.items():
        end = start + round(share * len(rows))
        columns[f"shares.{name}"][start:end] = [1.0] * (end - start)
        start = end
    if form is not None:
        columns["marks.has_form"] = [form] * len(rows)
    own = cell.rows.with_columns(pl.Series(name, values) for name, values in columns.items())
    return replace(cell, frame=replace(cell.frame, rows=own), index=np.arange(len(rows)))


def with_shares(content, **wanted):
    """The content with every cell's answers, measured and predicted, of these shares."""

    def changed(cell):
        said = {**(cell.prediction or {}), "shares": wanted, "margin": 1.0 if wanted.get("correct") else -1}
        return replace(shifted(cell, **wanted), prediction=cell.prediction and said)

    sources_ = [replace(source, cells=tuple(map(changed, source.cells))) for source in content.committed]
    return replace(content, committed=sources_)


def test_a_reason_that_the_rows_contradict_is_not_claimed(committed):
    for outcome in ("correct", "other"):
        content = with_shares(committed, **{outcome: 1.0})
        refuted = [reason for reason in reasons(content) if not reason.holds]
        assert refuted
        shown = html.unescape(render(content))
        assert shown.count("Contradicted by these rows:") == len(refuted)
        for reason in refuted:
            assert f"<s>{reason.says}</s>" in shown


def of_pair(cell):
    return (
        cell.info.library == opening.PAIR
        and cell.question_kind == "two-hop/direct"
        and cell.info.dataset == "R"
    )


def right(cell):
    return shifted(cell, correct=1.0)


#: What contradicts each reason: which cells, and how they are changed.
AGAINST = {
    0: (
        of_pair,
        lambda cell: replace(cell, prediction=cell.prediction and {**cell.prediction, "margin": 1.0}),
    ),
    1: (lambda cell: cell.info.library == ("mixed",) and cell.ask == "direct", right),
    2: (lambda cell: swept(cell) and cell.group in opening.PAIR, right),
}


@pytest.mark.parametrize("number", AGAINST)
def test_each_reason_is_contradicted_on_its_own(committed, number):
    chosen, change = AGAINST[number]
    cells = [change(cell) if chosen(cell) else cell for cell in committed.cells]
    before, after = (
        [reason.holds for reason in opening.reasons(found)] for found in (committed.cells, cells)
    )
    assert after == [holds and place != number for place, holds in enumerate(before)]


def test_that_the_merges_fail_too_belongs_to_not_merging(committed):
    cells = [right(cell) if of_pair(cell) else cell for cell in committed.cells]
    assert not opening.reasons(cells)[1].holds


@pytest.mark.parametrize("form", [False, True])
def test_the_form_explains_nothing_unless_some_have_it_and_some_have_not(committed, form):
    def changed(cell):
        return shifted(cell, form, **cell.outcomes) if cell.question_kind == "two-hop/steps" else cell

    assert not opening.reasons(list(map(changed, committed.cells)))[-1].holds


def test_each_model_has_the_prediction_of_its_own_merge(committed):
    shown = html.unescape(render(committed))
    for line in opening.lines(committed.cells):
        for cells in line.cells.values():
            top, told = opening.best(cells), opening.measured(cells)
            said = max(top.outcomes, key=top.outcomes.get)
            assert case_by_case.SAYS[said] in told["answers"].partition("; ")[0]
            if top.prediction:
                predicted = max(top.prediction["shares"], key=top.prediction["shares"].get)
                assert case_by_case.SAYS[predicted] in told["answers"].partition("; predicted: ")[2]
            assert (
                told["answers"] in shown
                and f"{top.items} questions on {top.clusters} chains" in told["about"]
            )
    assert opening.instead(opening.lines(committed.cells)) in shown


def test_what_is_said_instead_counts_the_answers_that_are_as_predicted(committed):
    for outcome, agree in (("correct", None), ("bridge", True)):
        cells = with_shares(committed, **{outcome: 1.0}).cells
        told = opening.instead(opening.lines(cells))
        found = re.search(r"in (\d+) of (\d+) cells", told)
        assert (found and found[1] == found[2]) == agree
    old = with_shares(committed, old=0.5, bridge=0.5).cells
    assert "leave what the base itself says to the question in 50% (embedded)" in opening.instead(
        opening.lines(old)
    )
    other = list(map(right, cells))
    assert " in 0 of " in opening.instead(opening.lines(other))


def test_verdicts_follow_the_rows(committed):
    (composes,) = opening.verdicts(opening.lines(with_shares(committed, correct=1.0).cells))
    (fails,) = opening.verdicts(opening.lines(with_shares(committed, bridge=1.0).cells))
    (half,) = opening.verdicts(opening.lines(with_shares(committed, correct=0.5, old=0.5).cells))
    assert (composes, fails, half) == (opening.COMPOSES, opening.FAILS, opening.OPEN)


def test_a_verdict_names_the_models_that_it_is_said_of(committed):
    lines = opening.lines(committed.cells)
    models = {model for line in lines for model in line.cells}
    for line in lines:
        told = opening.verdicts(lines)[line.verdict][opening.WAYS[line.ask]]
        agree = len({opening.verdict(cells) for cells in line.cells.values()}) == 1
        if agree and line.cells.keys() == models:
            assert line.held.name in told
        else:
            (said,) = (text for text in told if text.startswith(f"{line.held.name} ("))
            assert all(model in said for model in line.cells) and said.endswith("only)") == agree


def test_nothing_is_said_of_what_was_not_measured():
    assert opening.lines([]) == [] and opening.verdicts([]) == {} and opening.reasons([]) == []
    shown = page()
    assert "Composes" not in shown and "<h2>Why</h2>" not in shown


@example([27, 0])  # above one half alone, not as the best of two
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_the_best_merge_alone_decides_that_a_model_composes_and_all_that_it_does_not(counts):
    cells = [cell_of([record(n) if n < count else record(n, **WRONG) for n in range(40)]) for count in counts]
    said = opening.verdict(cells)
    sure = 1 - 0.05 / len(counts)
    assert (said == opening.COMPOSES) == any(wilson(count, 40, sure)[0] > 0.5 for count in counts)
    assert (said == opening.FAILS) == all(cell.interval()[1] < 0.5 for cell in cells)


def test_no_number_is_typed_into_the_opening():
    """Neither the words of the templates nor those of the code hold a digit."""
    for template in TEMPLATES:
        text = (template.partition("<body>")[2] or template).partition('<h2 id="ledger">')[0]
        typed = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|</?h\d>|R[12]", "", text, flags=re.DOTALL)
        assert not re.search(r"\d", text_of(typed))
    for node in ast.walk(ast.parse(inspect.getsource(opening))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            assert not re.search(r"\d", node.value), node.value
    assert not re.search(
        r"\d", " ".join(text for figure in FIGURES.values() for text in (figure.title, figure.caption))
    )


def test_every_cell_and_every_file_stands_on_the_page(committed):
    shown = html.unescape(render(committed))
    for number, source in enumerate(committed.committed, start=1):
        assert sum(len(group.rows) for group in tables.groups(source.cells).values()) == len(source.cells)
        assert f'href="#of-{number}"' in shown and f'id="of-{number}"' in shown
        for told in source.origin.values():
            assert told in shown
    bodies = re.findall(r'<table class="cells">.*?</table>', shown, flags=re.DOTALL)
    lines = sum(body.count("<tr>") - 1 for body in bodies)
    assert lines == sum(len(source.cells) for source in committed.committed)


def test_the_page_loads_nothing(committed):
    shown = render(committed)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)|<link|<script|@import|url\(""", shown)


# --- a run beside the committed rows ----------------------------------------------------------------------


def record(number, seed=0, *, text="right", outcome="correct", wording=48, commit="abc", **fields):
    """A right answer to one question of a made-up cell."""
    item = Item(
        id=f"x{number} R1 R2/direct/{wording}",
        cluster=str(number),
        group="two-hop",
        ask="direct",
        question=f"Question {number} in wording {wording}?",
        roles={"correct": f"z{number}"},
    )
    about = {
        "domain": "two-hop", "task": "setup-0", "setting": {"facts": 20, "known": True}, "spec_hash": None,
        "dataset": "R", "names": 0, "base": "made <up>", "digest": "d", "dtype": "float32",
        "library": ("hop1", "hop2"), "rule": "mean", "layers": "mlp", "seed": seed,
        "provenance": {"git": commit, "modified": True, "python": "3", "packages": {"torch": "2"}},
    }  # fmt: skip
    return {"item": item, "cell": about | fields, "text": text, "outcome": outcome}


WRONG = {"text": "wrong", "outcome": "bridge"}


def measured(records, lacking=()):
    """These answers as measurements; lacking: numbers of answers that were not given."""
    items = tuple({one["item"].id: one["item"] for one in records}.values())
    found = Measurements(items={items_hash(items): items} if items else {})
    for number, one in enumerate(records):
        info = CellInfo(**one["cell"], items=items_hash(items))
        found.cells[info.key] = info
        shares = dict.fromkeys(OUTCOMES, 0.0) | {one["outcome"]: 1.0}
        if number not in lacking:
            found.rows.append(Row(info.key, one["item"].id, None, shares, one["text"]))
    return found


def cell_of(records):
    (cell,) = frames.of(measured(records)).groups()
    return cell


def source(folder, name, records, lacking=()):
    path = folder / name
    files.write(path, measured(records, lacking))
    if not records:
        Store(path).add_run({"experiment": "quick", "model": "tiny"}, [])
    return sources.read(path)


def compared(folder, here, there, lacking=()):
    return rerun.compare(source(folder, "run", here, lacking), [source(folder, "committed", there)])


def test_a_run_with_the_same_answers_has_reproduced_whatever_the_model_is_called(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [record(number, base="elsewhere") for number in range(20)], rows)
    assert (found.count(rerun.IDENTICAL), found.failed, found.alone) == (1, False, 0)
    assert found.sentence.startswith("it reproduced") and "20 of 20" in found.sentence


@given(st.integers(0, 20), st.sampled_from(["bridge", "old", "edited", "other"]))
def test_tampered_rows_are_shown_and_judged_by_the_sign_test(tmp_path_factory, flipped, outcome):
    folder = tmp_path_factory.mktemp("run")
    rows = [record(number) for number in range(20)]
    wrong = {"text": "wrong", "outcome": outcome}
    here = [row | wrong if number < flipped else row for number, row in enumerate(rows)]
    (pair,) = compared(folder, here, rows).pairs
    p = mcnemar_exact([number >= flipped for number in range(20)], [True] * 20).p
    assert (pair.same, pair.verdict == rerun.IDENTICAL) == (20 - flipped, not flipped)
    assert math.isclose(pair.holm["correct"], min(1.0, len(OUTCOMES) * p))
    assert (pair.verdict == rerun.DIFFERS) == (min(1.0, len(OUTCOMES) * p) < rerun.LEVEL)


def test_the_wordings_of_a_chain_are_one_unit(tmp_path):
    rows = [record(number) for number in range(20)]
    rows += [record(number, wording=49) for number in range(20)]
    here = [row | WRONG if row["item"].cluster in ("0", "1") else row for row in rows]
    (pair,) = compared(tmp_path, here, rows).pairs
    assert (pair.same, pair.items) == (36, 40)
    assert (pair.tests["bridge"].first, pair.tests["bridge"].second) == (2, 0)
    assert (pair.tests["correct"].first, pair.tests["correct"].second) == (0, 2)


def test_one_cell_that_differs_among_many_is_found_and_comes_first(tmp_path):
    rules = ("mean", "sum", "ties", "dare")
    rows = [record(number, rule=rule) for rule in rules for number in range(20)]
    here = [row | WRONG if row["cell"]["rule"] == "ties" else row for row in rows]
    found = compared(tmp_path, here, rows)
    assert (found.count(rerun.DIFFERS), found.count(rerun.IDENTICAL)) == (1, 3) and found.failed
    assert found.pairs[0].cell.info.rule == "ties" and "1 of 4 cells differ" in found.sentence
    p = mcnemar_exact([False] * 20, [True] * 20).p
    assert math.isclose(found.pairs[0].holm["correct"], min(1.0, len(rules) * len(OUTCOMES) * p))


def test_other_words_for_the_same_outcome_are_neither_blamed_nor_called_reproduced(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [rows[0] | {"text": "right too"}, *rows[1:]], rows)
    assert (found.count(rerun.WORDS), found.count(rerun.IDENTICAL), found.failed) == (1, 0, False)
    assert "19 of 20" in found.sentence and "reproduced" not in found.sentence and "another" in found.sentence


def test_another_training_seed_of_the_committed_rows_is_never_called_reproduced(tmp_path):
    folders = sorted(reading.committed(), key=lambda path: (path / "rows.jsonl.gz").stat().st_size)
    folder = next(
        f for f in folders if {info.seed for info in files.read(f, ("cells",)).cells.values()} >= {0, 1}
    )
    kept = files.read(folder, ("cells", "rows", "items"))
    run = Measurements(items=kept.items)
    renamed = {key: replace(info, seed=0) for key, info in kept.cells.items() if info.seed == 1}
    run.cells = {info.key: info for info in renamed.values() if info.key in kept.cells}
    there = {key: info.key for key, info in renamed.items() if info.key in kept.cells}
    run.rows = [replace(row, cell=there[row.cell]) for row in kept.rows if row.cell in there]
    files.write(tmp_path / "run", run)
    kept.rows = [row for row in kept.rows if row.cell in run.cells]
    kept.cells = dict(run.cells)
    files.write(tmp_path / "kept", kept)
    found = rerun.compare(sources.read(tmp_path / "run"), [sources.read(tmp_path / "kept")])
    assert found.pairs and "reproduced" not in found.sentence
    assert found.count(rerun.IDENTICAL) < len(found.pairs)


def test_a_question_that_only_one_side_has_is_a_difference(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, rows, rows, lacking=(19,))
    assert found.count(rerun.DIFFERS) == 1 and found.pairs[0].lacking == 1


def test_cells_without_a_counterpart_are_counted(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [*rows, *(record(number, seed=1) for number in range(20))], rows)
    assert (len(found.pairs), found.alone) == (1, 1)
    other = [record(number, digest="another") for number in range(20)]
    found = compared(tmp_path, other, rows)
    assert "no committed rows" in found.sentence and not found.failed


def test_a_cell_routed_at_another_temperature_is_another_merge(tmp_path):
    def rows(temperature):
        return [record(number, chosen={"temperature": temperature}) for number in range(20)]

    found = compared(tmp_path / "other", rows(0.1), rows(0.3))
    assert (len(found.pairs), found.alone, found.otherwise) == (0, 0, 1) and not found.failed
    found = compared(tmp_path / "same", rows(0.1), rows(0.1))
    assert (len(found.pairs), found.otherwise) == (1, 0)


def test_a_run_in_which_nothing_was_measured_fails(tmp_path):
    found = compared(tmp_path, [], [record(0)])
    assert found.failed and found.sentence == "nothing was measured"


def test_the_page_shows_what_differs_escapes_it_and_counts_as_failed(tmp_path):
    rows = [record(number) for number in range(20)]
    wrong = [row | {"text": "<b>", "outcome": "bridge"} for row in rows]
    here, there = source(tmp_path, "run", wrong), source(tmp_path, "committed", rows)
    content = Content((ROW,), committed=[there], runs=[here], reruns=[rerun.compare(here, [there])])
    shown = render(content)
    assert content.failures == 1 and "1 of 1 cells differ from the committed rows" in shown
    assert shown.count('<tr class="failed"') == shown.count('<details class="failed" open>') == 1
    assert "<b>.jsonl" not in shown and "made <up>" not in shown and "made &lt;up&gt;" in shown


def test_the_page_warns_of_a_run_of_another_commit(tmp_path):
    git = provenance()["git"]
    for commit, warned in (("abc", True), (git, False)):
        rows = [record(0, commit=commit)]
        run = source(tmp_path, "run", rows)
        shown = render(Content((ROW,), runs=[run], reruns=[rerun.compare(run, [])]))
        assert ("another commit" in shown) == warned


def test_what_a_file_says_of_itself_is_its_provenance(tmp_path):
    origin = source(tmp_path, "some", [record(0), record(1, seed=1)]).origin
    assert origin["rows"] == "2 answers in 1 cells" and origin["training seeds"] == "0, 1"
    assert origin["commit"] == "abc, with changes" and origin["versions"] == "Python 3, torch 2"
    assert len(origin["SHA-256 of rows.jsonl.gz"]) == 64 and origin["path"].endswith("some")


def test_in_what_the_base_was_held_while_adapters_trained_is_told(committed):
    for kept in committed.committed:
        adapters = kept.frame.adapters.values()
        wanted = {line["training"]["base_dtype"] for line in adapters}
        told = kept.origin["adapters trained on a base in"]
        assert all(dtype in told for dtype in wanted - {None})
        assert ("precision of the answers" in told) == (None in wanted)


def test_rows_computed_anew_are_compared_with_their_own_counterparts(tmp_path, monkeypatch):
    rows = {"a": {"n": 1, "provenance": "x"}, "b": {"n": 2}, "c": {"n": 3}}
    found = report.beside(rows, {"a": {"n": 1, "provenance": "y"}, "b": {"n": 0}, "d": {}})
    assert found == report.Anew(2, 1, 1) and "1 have no committed counterpart" in str(found)
    (tmp_path / "ledger.json").write_text(json.dumps([ROW]))
    monkeypatch.chdir(store.COMMITTED.parent)
    assert report.gather(tmp_path / "ledger.json", rows=Path(store.COMMITTED.name)).anew == {}


def test_one_point_is_no_curve(committed):
    sweep = [cell for cell in committed.cells if swept(cell) and cell.group == "hop1"]
    assert curves(sweep) == sweep and len(sweep) > 2
    one, other = (
        next(cell for cell in sweep if cell.info.setting["known"] == known) for known in (True, False)
    )
    assert curves([one]) == [] == curves([one, other])


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on a folder without committed measurements."""
    monkeypatch.setattr(reading, "committed", lambda: [])

    def run(*arguments):
        return CliRunner().invoke(
            main, ["report", "--out", str(tmp_path / "page.html"), *map(str, arguments)]
        )

    return run


def test_the_command_writes_a_page_or_says_in_words_why_not(tmp_path, run):
    ledger, broken, failing = (tmp_path / f"{name}.json" for name in ("ledger", "broken", "failing"))
    ledger.write_text(json.dumps([ROW]))
    failing.write_text(json.dumps([ROW | {"verdict": "fails"}]))
    broken.write_text("[]")
    done = run("--ledger", ledger)
    assert done.exit_code == 0 and "every claim holds" in done.output
    done = run("--ledger", failing)
    assert done.exit_code == 1 and "1 of 1 checks fail" in done.output and (tmp_path / "page.html").exists()
    for arguments in (
        ["--ledger", broken],
        ["--ledger", ledger, "--rows", broken],
        ["--ledger", ledger, "--run", broken],
        ["--ledger", tmp_path],
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and "Error: " in done.output and "Traceback" not in done.output


def test_the_command_compares_a_run_with_the_committed_rows(tmp_path, run, monkeypatch):
    kept = [record(number, rule=rule) for rule in ("mean", "sum") for number in range(20)]
    several = {
        "kept": kept,
        "same": kept,
        "other": [row | {"text": "?", "outcome": "other"} for row in kept],
        "words": [row | {"text": "right!"} if place % 2 else row for place, row in enumerate(kept)],
        "empty": [],
    }
    for name, rows in several.items():
        files.write(tmp_path / name, measured(rows))
    Store(tmp_path / "empty").add_run({"experiment": "quick", "model": "tiny"}, [])
    (tmp_path / "ledger.json").write_text(json.dumps([ROW]))
    monkeypatch.setattr(reading, "committed", lambda: [tmp_path / "kept"])
    for name, status, told in (
        ("same", 0, "it reproduced the committed rows: 40 of 40 answers"),
        ("other", 1, "differ from the committed rows"),
        ("words", 0, "20 of 40 answers are the committed ones word for word; no outcome differs"),
        ("empty", 1, "nothing was measured"),
    ):
        done = run("--ledger", tmp_path / "ledger.json", "--run", tmp_path / name)
        assert (done.exit_code, told in done.output) == (status, True), done.output


def test_edits_of_a_run_on_another_dataset_are_kept(tmp_path):
    for name, dataset, number in (("kept", "F", 0), ("same", "F", 1), ("other", "R", 2)):
        found = measured([record(0, seed=number)])
        found.edits = [{"kind": "overlap", "model": "d", "dataset": dataset, "number": number}]
        files.write(tmp_path / name, found)
    data = read_measured([tmp_path / "kept"], None, False, [tmp_path / "same", tmp_path / "other"])
    assert [edit["number"] for edit in data.edits] == [0, 2]
