"""The page holds every row and drawing, escapes what it is given, and refuses a broken ledger."""

import json

import pytest

from figures.report import COLUMNS, ReportError, embed, read_ledger, render, value

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
}


def test_page_shows_every_row_escaped_with_failures_first():
    page = render(
        [ROW, ROW | {"claim": "broken", "verdict": "fails"}], [], {"git": "abc", "packages": {"jax": "1"}}
    )
    assert "c1 &gt; c2 &lt;always&gt;" in page
    assert page.index("broken") < page.index("c1 &gt;")
    assert page.count('class="failed"') == 1
    assert "packages jax" in page


def test_each_drawing_is_embedded_once_as_svg_where_there_is_one(tmp_path):
    (tmp_path / "leak.svg").write_text("<svg/>")
    (tmp_path / "leak.png").write_bytes(b"png")
    (tmp_path / "outcome-map.png").write_bytes(b"png")
    drawings = embed(tmp_path)
    assert [drawing["name"] for drawing in drawings] == ["leak", "outcome map"]
    assert [drawing["uri"].split(";")[0] for drawing in drawings] == ["data:image/svg+xml", "data:image/png"]
    page = render([ROW], drawings, {})
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
