"""The page holds every row and drawing, escapes what it is given, and refuses a broken ledger."""

import html
import json
import re

import pytest
from click.testing import CliRunner

from figures import store, theory, words
from figures.__main__ import MEASURED, THEORY, main
from figures.report import CAPTIONS, COLUMNS, ReportError, claims, embed, read_ledger, render, value

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


def test_page_shows_every_row_escaped_with_failures_first():
    page = render([ROW, ROW | {"claim": "sound: a"}, ROW | {"claim": "broken: b", "verdict": "fails"}], [])
    assert "c1 &gt; c2 &lt;always&gt;" in page
    assert page.index("broken") < page.index("c1 &gt;")
    assert page.count('<tr class="failed"') == page.count('<details class="failed" open>') == 1
    assert page.count("<details") == 3
    for text in ("c2_bounds", "eps x operations", "packages jax"):
        assert text in page


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
    page = render([ROW | {"note": note}, ROW | {"note": note, "claim": "other: x", "verdict": "fails"}], [])
    assert page.count("<li>") == 2
    assert 'id="corrections"' in page and 'id="corrections"' not in render([ROW], [])


def test_the_opening_is_read_off_the_rows():
    told = words.summary(DRAWN)
    assert list(told.values())[-1]["Alone"] == "always the right answer"
    page = html.unescape(render([ROW], [], DRAWN))
    for heading, cases in told.items():
        assert heading in page
        for case, said in cases.items():
            assert f"{case}: <i>{said}</i>." in page
    for outcome, text in words.SAYS.items():
        rows = [{**row, "shares": {outcome: 1.0}} for row in DRAWN]
        said = {said for cases in words.summary(rows).values() for said in cases.values()}
        assert said == {f"always {text}"}
    assert words.summary([]) == {}


def test_opening_and_captions_hold_no_typed_numbers():
    """Counts come from rows: without rules there is none left."""
    page = render([ROW], [], DRAWN)
    opening = page[page.index("<h1>") : page.index("<h2>Figures")]
    text = html.unescape(re.sub(r"<[^>]*>", "", opening)).replace("R1", "").replace("R2", "")
    rules = {row["rule"] for row in DRAWN if row["group"] == "pair"}
    assert set(re.findall(r"\d+", text)) == {"1", str(len(rules))}  # one check of one claim
    assert not re.search(r"\d", " ".join(text for pair in CAPTIONS.values() for text in pair))


def test_every_drawing_has_a_caption():
    assert set(CAPTIONS) == {*THEORY, *MEASURED} and set(THEORY) == set(theory.DRAWINGS)


def test_the_command_writes_a_page_or_says_in_words_why_not(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(
            main, ["report", "--out", str(tmp_path / "page.html"), *map(str, arguments)]
        )

    ledger, broken = tmp_path / "ledger.json", tmp_path / "broken.json"
    ledger.write_text(json.dumps([ROW]))
    broken.write_text("[]")
    done = run("--ledger", ledger)
    assert done.exit_code == 0 and "every claim holds" in done.output
    for arguments in (["--ledger", broken], ["--ledger", ledger, "--rows", broken], ["--ledger", tmp_path]):
        done = run(*arguments)
        assert done.exit_code == 2 and "Error: " in done.output and "Traceback" not in done.output


def test_each_drawing_is_embedded_once_as_svg_where_there_is_one(tmp_path):
    (tmp_path / "leak.svg").write_text("<svg/>")
    (tmp_path / "leak.png").write_bytes(b"png")
    (tmp_path / "outcome-map.png").write_bytes(b"png")
    drawings = embed(tmp_path)
    assert [drawing["name"] for drawing in drawings] == [CAPTIONS["leak"][0], "outcome map"]
    assert [drawing["uri"].split(";")[0] for drawing in drawings] == ["data:image/svg+xml", "data:image/png"]
    page = render([ROW], drawings)
    assert "http" not in page  # nothing is loaded from elsewhere
    assert page.count("<img") == 2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_row_without_a_column_is_refused_by_name(tmp_path, column):
    ledger = tmp_path / "ledger.json"
    ledger.write_text(json.dumps([ROW, {key: entry for key, entry in ROW.items() if key != column}]))
    with pytest.raises(ReportError, match=f"row 2 lacks {column}"):
        read_ledger(ledger)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[3]", "[{"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, text):
    ledger = tmp_path / "ledger.json"
    ledger.write_text(text)
    with pytest.raises(ReportError, match=r"ledger\.json"):
        read_ledger(ledger)


def test_cells_are_short():
    assert value(1 / 3) == "0.333333"
    assert value(None) == ""
    assert value([1, 0.5, None]) == "1, 0.5, "
    assert value({"c1": 2.0}) == "c1: 2"
