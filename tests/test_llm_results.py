"""The pages that are written from kept rows: they say what the rows say, and refuse what rows contradict."""

import gzip
import json

import pytest

from llm_experiments.adapters.recipe import Training
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.two_hop import EXPERIMENTS, Base
from results.pages import (
    DATA,
    PAGES,
    Cell,
    ResultsError,
    Rows,
    claim,
    printed,
    render,
    span,
)

FILES = sorted(DATA.glob("*.jsonl.gz"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_what_its_template_and_the_kept_rows_give(page):
    assert page.read_text(encoding="utf-8") == render(PAGES[page]), "python -m llm_experiments results"


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_kept_rows_were_measured_at_a_commit(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    origins = [row["provenance"] for row in rows if "provenance" in row]
    origins += [row for row in rows if row.get("kind") == "provenance"]
    assert all(len(origin["git"]) == 40 and origin["modified"] is False for origin in origins)
    assert origins or file.name.endswith("-cells.jsonl.gz")


def test_a_page_that_its_rows_contradict_is_not_written(tmp_path):
    assert claim(0.2 < 0.3) == ""
    page = tmp_path / "page.md.jinja"
    page.write_text("{{ claim(rows('smollm2-135m').cell(0, 'mean').share > 0.99) }}")
    with pytest.raises(ResultsError, match="does not hold"):
        render(page)
    page.write_text("{{ rows('smollm2-135m').cell(0, 'mean', dataset='H') }}")
    with pytest.raises(ResultsError, match="has 0 cells"):
        render(page)
    page.write_text("{{ nothing }}")
    with pytest.raises(ResultsError, match="nothing"):
        render(page)


@pytest.mark.parametrize("file", sorted(DATA.glob("*-cells.jsonl.gz")), ids=lambda path: path.name)
def test_examples_seen_are_foretold_by_the_recipe(file):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        trained = [row for row in map(json.loads, lines) if row["kind"] == "adapter"]
    assert trained
    for (
        row
    ) in trained:  # one batch of an epoch lacks less than its size, and an epoch has more steps than that
        short = Training(**row["training"]).seen(0) - row["examples"]
        assert 0 <= short <= row["steps"]
    assert Training(epochs=3).seen(7) == 21 and Training(epochs=3, variant="sparse-b").seen(7) == 42


def test_the_work_of_seeds_adds_up():
    work, small = EXPERIMENTS["bridge"].work, PROFILES["small"]
    one, two = (work(Base("", ""), small, seeds) for seeds in ((0,), (0, 1)))
    assert two.adapters == 2 * one.adapters and two.examples == 2 * one.examples
    base = one.questions - (two.questions - one.questions)  # asked once, whatever the seeds
    assert base == 4 * small.facts * len(small.test)  # both hops; two hops directly and step by step


def test_wins_are_counted_over_the_seeds_that_both_have():
    mean, arrow = (
        Rows(DATA / "smollm2-135m.jsonl.gz").cell(0, rule, "hop1") for rule in ("mean", "arrow-products")
    )
    better = sum(a > b for a, b in zip(arrow.seeds, mean.seeds, strict=True))
    assert arrow.wins(mean) == f"{better} of 2" != mean.wins(arrow)
    first = Cell(tuple(row for row in mean.rows if row.regime["seed"] == 0))
    assert arrow.wins(first).endswith(" of 1")


def test_what_the_paper_prints_is_one_row_of_its_table():
    assert span(printed("table1", setup=0)) == "1–8.8%" and span([3.0, 3.0]) == "3%"
    with pytest.raises(ValueError):
        printed("table1", setup=99)


def test_a_cell_is_counted_from_its_rows():
    rows = Rows(DATA / "smollm2-135m.jsonl.gz")
    cell = rows.cell(0, "mean", "hop1")
    assert len(cell.rows) == cell.items * len(cell.seeds)
    right = sum(row.shares["correct"] for row in cell.rows)
    assert cell.share == pytest.approx(right / len(cell.rows)) and cell.low < cell.share < cell.high
    assert {row.group for row in cell.rows} == {"hop1"} and {row.rule for row in cell.rows} == {"mean"}
    assert rows.base("hop1").share <= 0.1 < cell.share
