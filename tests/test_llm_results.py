"""The pages that are written from kept rows: they say what the rows say, and refuse what rows contradict."""

import pytest

from llm_experiments.adapters.recipe import Training
from llm_experiments.domains.two_hop.pages import TwoHopRows as Rows
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.pages import DATA, PAGES, render
from results import files, pages
from results.pages import ResultsError, as_before, claim, span
from results.paper import printed

KEPT = files.folders_of_rows(DATA)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_what_its_template_and_the_kept_rows_give(page):
    assert page.read_text(encoding="utf-8") == render(PAGES[page]), "python -m llm_experiments results"


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.relative_to(DATA).as_posix())
def test_kept_rows_were_measured_at_a_commit(folder):
    found = files.read(folder, ["cells", "edits"])
    origins = [info.provenance for info in found.cells.values()]
    origins += [line for line in found.edits if line["kind"] == "provenance"]
    assert origins
    assert all(len(origin["git"]) == 40 and origin["modified"] is False for origin in origins)


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
    page.write_text("{{ more() }}")
    assert pages.render(page, DATA, {"more": lambda: "said"}) == "said"


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.relative_to(DATA).as_posix())
def test_examples_seen_are_foretold_by_the_recipe(folder):
    trained = files.read(folder, ["adapters"]).adapters.values()
    assert trained
    for line in trained:
        training, examples = Training(**line["training"]), line["examples"]
        whole = 0 if training.steps else examples // training.epochs  # of epochs, each example as often
        # one batch of an epoch lacks less than its size, and an epoch has more steps than that
        assert 0 <= training.seen(whole) - examples <= (line["steps"] if training.steps else 0)
    assert Training(epochs=3).seen(7) == 21 and Training(epochs=3, variant="sparse-b").seen(7) == 42


def test_the_work_of_seeds_adds_up():
    work, small = EXPERIMENTS["bridge"].work, PROFILES["small"]
    one, two = (work(Base("", ""), small, seeds) for seeds in ((0,), (0, 1)))
    # trained once, whatever the seeds: the one library on which Arrow's temperature is chosen
    assert 2 * one.adapters - two.adapters == 2
    base = one.questions - (two.questions - one.questions)  # asked once, whatever the seeds
    size = small.size("two-hop")
    assert base == 4 * size.facts * len(size.test)  # both hops; two hops directly and step by step


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.relative_to(DATA).as_posix())
def test_every_cell_says_how_its_adapters_came_out(folder):
    """Of all that were trained: the base has none, and random ones have no task."""
    for cell in Rows(folder).cells:
        assert (cell.own_task is not None) == cell.trained
        assert all(len(info.adapters) == len(info.library) for info in cell.infos)


def test_answers_that_are_word_by_word_the_bases_are_counted():
    rows = Rows(DATA / "smollm2-135m")
    assert as_before(rows.base("hop1"), rows.base("hop1")) == 1
    assert as_before(rows.cell(0, "mean", "hop1"), rows.base("hop1")) < 0.5


def test_what_the_paper_prints_is_one_row_of_its_table():
    assert span(printed("table1", setup=0)) == "1–8.8%" and span([3.0, 3.0]) == "3%"
    with pytest.raises(ValueError):
        printed("table1", setup=99)


def test_a_cell_of_a_page_is_counted_from_its_rows():
    rows = Rows(DATA / "smollm2-135m")
    cell = rows.cell(0, "mean", "hop1")
    assert len(cell.rows) == cell.items * len(cell.seeds)
    assert (
        cell.share == pytest.approx(cell.rows["shares.correct"].mean()) and cell.low < cell.share < cell.high
    )
    assert set(cell.rows["group"]) == {"hop1"} and {info.rule for info in cell.infos} == {"mean"}
    assert rows.base("hop1").share <= 0.1 < cell.share
    assert str(cell) == f"{100 * cell.share:.3g}% [{100 * cell.low:.3g}, {100 * cell.high:.3g}]"
