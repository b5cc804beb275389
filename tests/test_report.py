"""The page holds every row, drawing and cell, claims only what they bear out, and refuses a broken ledger."""

import ast
import html
import inspect
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from figures import report, store, theory, words
from figures.__main__ import MEASURED, THEORY, main
from figures.measured import cells as measured
from figures.measured import toy
from figures.report import Content, opening, render, rerun, sources, tables, value
from figures.report.drawings import CAPTIONS, embed
from figures.report.ledger import COLUMNS, ReportError, claims, read
from llm_experiments.asking.statistics import mcnemar_exact
from llm_experiments.running.tables import read_file
from toytransformer.compositions import OUTCOMES, Record, write_jsonl

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
DRAWN = [row for row in store.read(store.COMMITTED) if row["figure"] == "outcomes"]
TEMPLATE = (Path(report.__file__).parent / "page.html").read_text(encoding="utf-8")


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
    assert shown.count("<details") == 3
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
    assert shown.count("<li>") == 2
    assert 'id="corrections"' in shown and 'id="corrections"' not in page()


def test_what_the_theory_says_is_read_off_the_rows():
    told = words.summary(DRAWN)
    assert list(told.values())[-1]["Alone"] == "always the right answer"
    shown = html.unescape(page(drawn=DRAWN))
    for heading, cases in told.items():
        assert heading in shown
        for case, said in cases.items():
            assert f"{case}: <i>{said}</i>." in shown
    for outcome, text in words.SAYS.items():
        rows = [{**row, "shares": {outcome: 1.0}} for row in DRAWN]
        said = {said for cases in words.summary(rows).values() for said in cases.values()}
        assert said == {f"always {text}"}
    assert words.summary([]) == {}


def test_every_drawing_has_a_caption():
    assert set(CAPTIONS) == {*THEORY, *MEASURED} and set(THEORY) == set(theory.DRAWINGS)


def test_each_drawing_is_embedded_once_as_svg_where_there_is_one(tmp_path):
    (tmp_path / "leak.svg").write_text("<svg/>")
    (tmp_path / "leak.png").write_bytes(b"png")
    (tmp_path / "outcome-map.png").write_bytes(b"png")
    drawings = embed(tmp_path)
    assert [drawing["name"] for drawing in drawings] == [CAPTIONS["leak"][0], "outcome map"]
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
def committed():
    """The committed files with their predictions, on a page without drawings."""
    read = [sources.read(path, ()) for path in sources.committed()]
    joined, predictions = toy.join([cell for source in read for cell in source.cells], toy.read())
    cells = iter(joined)
    read = [replace(source, cells=tuple(next(cells) for _ in source.cells)) for source in read]
    return Content((ROW,), committed=read, predictions=predictions)


def reasons(content):
    formed = {place: share for source in content.committed for place, share in source.formed.items()}
    return opening.reasons(content.cells, formed)


def test_the_committed_rows_bear_out_every_reason(committed):
    found = reasons(committed)
    assert len(found) == 4 and all(reason.holds for reason in found)
    shown = html.unescape(render(committed))
    assert "Contradicted" not in shown
    for reason in found:
        assert reason.says in shown and reason.numbers in shown


def with_shares(content, **wanted):
    """The content with every cell's answers, measured and predicted, of these shares."""
    shares = dict.fromkeys(OUTCOMES, 0.0) | wanted

    def changed(cell):
        predicted = cell.toy and {
            **cell.toy,
            "shares": shares,
            "margin": 1.0 if wanted.get("correct") else -1,
        }
        return replace(cell, shares=shares, toy=predicted)

    files = [replace(source, cells=tuple(map(changed, source.cells))) for source in content.committed]
    return replace(content, committed=files)


def test_a_reason_that_the_rows_contradict_is_not_claimed(committed):
    for outcome in ("correct", "other"):
        content = with_shares(committed, **{outcome: 1.0})
        refuted = [reason for reason in reasons(content) if not reason.holds]
        assert refuted
        shown = html.unescape(render(content))
        assert shown.count("Contradicted by these rows:") == len(refuted)
        for reason in refuted:
            assert f"<s>{reason.says}</s>" in shown


def test_verdicts_follow_the_rows(committed):
    (composes,) = opening.verdicts(opening.lines(with_shares(committed, correct=1.0).cells))
    (fails,) = opening.verdicts(opening.lines(with_shares(committed, bridge=1.0).cells))
    (half,) = opening.verdicts(opening.lines(with_shares(committed, correct=0.5, old=0.5).cells))
    assert (composes, fails, half) == (opening.COMPOSES, opening.FAILS, opening.OPEN)


def test_nothing_is_said_of_what_was_not_measured():
    assert opening.lines([]) == [] and opening.verdicts([]) == {} and opening.reasons([], {}) == []
    shown = page()
    assert "Composes" not in shown and "<h2>Why</h2>" not in shown


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_the_best_merge_alone_decides_that_a_model_composes_and_all_that_it_does_not(counts):
    place = dict.fromkeys((entry.name for entry in fields(measured.Place)), None)
    place = measured.Place(
        **place | {"library": ("hop1", "hop2"), "setting": (), "options": (), "variant": ()}
    )
    shares = [{**dict.fromkeys(OUTCOMES, 0.0), "correct": count / 40} for count in counts]
    cells = [measured.Cell(place, (0,), 40, 20, share) for share in shares]
    said = opening.verdict(cells)
    assert (said == opening.COMPOSES) == any(cell.interval()[0] > 0.5 for cell in cells)
    assert (said == opening.FAILS) == all(cell.interval()[1] < 0.5 for cell in cells)


def test_no_number_is_typed_into_the_opening():
    """Neither the words of the template nor those of the code hold a digit."""
    start, end = TEMPLATE.index("<body>"), TEMPLATE.index('<h2 id="ledger">')
    typed = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|</?h\d>|R[12]", "", TEMPLATE[start:end], flags=re.DOTALL)
    assert not re.search(r"\d", text_of(typed))
    for node in ast.walk(ast.parse(inspect.getsource(opening))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            assert not re.search(r"\d", node.value), node.value
    assert not re.search(r"\d", " ".join(text for pair in CAPTIONS.values() for text in pair))


def test_every_cell_and_every_file_stands_on_the_page(committed):
    shown = html.unescape(render(committed))
    for number, source in enumerate(committed.committed, start=1):
        assert sum(map(len, tables.groups(source.cells).values())) == len(source.cells)
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


def record(number, seed=0, **changes):
    """A right answer to one question of a made-up cell."""
    regime = {"model": "d", "dataset": "R", "seed": seed, "template": 48, "layers": "mlp"}
    row = Record(
        composition="setup-0", setting={"facts": 20, "known": True, "examples": 0, "seed": 0},
        spec_hash="s", source="made <up>", adapters=("hop1", "hop2"), rule="mean", weights=None, options={},
        regime=regime, group="two-hop", prompt=f"x{number} R1 R2", decode="direct", correct=f"z{number}",
        bridge=f"y{number}", old=None, answer=f"z{number}", shares={"correct": 1.0}, text="right",
        provenance={"git": "abc", "modified": True, "python": "3", "packages": {"torch": "2"}},
    )  # fmt: skip
    return replace(row, **changes)


def source(folder, name, rows):
    path = folder / f"{name}.jsonl"
    write_jsonl(path, rows)
    return sources.read(path)


def compared(folder, here, there):
    return rerun.compare(source(folder, "run", here), [source(folder, "committed", there)])


def test_a_run_with_the_same_answers_has_reproduced_whatever_the_model_is_called(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [replace(row, source="elsewhere") for row in rows], rows)
    assert (found.equal, found.differing, found.alone) == (1, 0, 0)
    assert (found.same, found.answers) == (20, 20) and found.told.startswith("it reproduced")


@given(st.integers(0, 20), st.sampled_from(["bridge", "old", "edited", "other"]))
def test_a_tampered_row_is_shown_and_judged_by_mcnemars_test(tmp_path_factory, flipped, outcome):
    folder = tmp_path_factory.mktemp("run")
    rows = [record(number) for number in range(20)]
    wrong = {"text": "wrong", "shares": {outcome: 1.0}}
    here = [replace(row, **wrong) if number < flipped else row for number, row in enumerate(rows)]
    (pair,) = compared(folder, here, rows).pairs
    p = mcnemar_exact([number >= flipped for number in range(20)], [True] * 20).p
    assert (pair.same, pair.equal) == (20 - flipped, not flipped)
    assert math.isclose(pair.holm["correct"], min(1.0, len(OUTCOMES) * p))
    assert pair.differs == (min(1.0, len(OUTCOMES) * p) < rerun.LEVEL)


def test_other_words_for_the_same_outcome_are_counted_but_not_blamed(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [replace(rows[0], text="right too"), *rows[1:]], rows)
    assert (found.same, found.answers, found.equal, found.differing) == (19, 20, 0, 0)
    assert "19 of 20" in found.told


def test_a_question_that_only_one_side_has_is_a_difference(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, rows[:19], rows)
    assert found.differing == 1 and found.pairs[0].lacking == 1


def test_cells_without_a_counterpart_are_counted(tmp_path):
    rows = [record(number) for number in range(20)]
    found = compared(tmp_path, [*rows, *(record(number, seed=1) for number in range(20))], rows)
    assert (len(found.pairs), found.alone) == (1, 1)
    other = [replace(row, regime={**row.regime, "model": "another"}) for row in rows]
    assert "no committed rows" in compared(tmp_path, other, rows).told


def test_the_page_shows_what_differs_escapes_it_and_counts_as_failed(tmp_path):
    rows = [record(number) for number in range(20)]
    wrong = [replace(row, text="<b>", shares={"bridge": 1.0}) for row in rows]
    here, there = source(tmp_path, "run", wrong), source(tmp_path, "committed", rows)
    content = Content((ROW,), committed=[there], runs=[here], reruns=[rerun.compare(here, [there])])
    shown = render(content)
    assert content.failures == 1 and "1 of 1 cells did not reproduce" in shown
    assert shown.count('<tr class="failed"') == shown.count('<details class="failed" open>') == 1
    assert "<b>.jsonl" not in shown and "made <up>" not in shown and "made &lt;up&gt;" in shown


def test_what_a_file_says_of_itself_is_its_provenance(tmp_path):
    origin = source(tmp_path, "some", [record(0), record(1, seed=1)]).origin
    assert origin["rows"] == "2 answers in 1 cells" and origin["training seeds"] == "0, 1"
    assert origin["commit"] == "abc, with changes" and origin["versions"] == "Python 3, torch 2"
    assert len(origin["SHA-256"]) == 64 and origin["path"].endswith("some.jsonl")


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on a folder without committed measurements."""
    monkeypatch.setattr(sources, "committed", lambda: [])

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
    committed = next(path for path in measured.committed() if path.name == "no-chains.jsonl.gz")
    kept = [record for record in read_file(committed) if record.regime.get("control") is None][:160]
    write_jsonl(tmp_path / "kept.jsonl", kept)
    write_jsonl(tmp_path / "same.jsonl", kept)
    write_jsonl(tmp_path / "other.jsonl", [replace(row, text="?", shares={"other": 1.0}) for row in kept])
    (tmp_path / "ledger.json").write_text(json.dumps([ROW]))
    monkeypatch.setattr(sources, "committed", lambda: [tmp_path / "kept.jsonl"])
    for name, status, told in (
        ("same", 0, "160 of 160 answers word for word"),
        ("other", 1, "did not reprod"),
    ):
        done = run("--ledger", tmp_path / "ledger.json", "--run", tmp_path / f"{name}.jsonl")
        assert (done.exit_code, told in done.output) == (status, True), done.output
