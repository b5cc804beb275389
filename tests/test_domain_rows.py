"""What rows of the other domains say: beside the paper, T3 of merges, negative transfer, and what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from measured_cells import cells, measured

from figures import predictions, reading, registry, report, style
from figures.drawings.two_hop.agreement import OTHERS, PANELS
from figures.report import sources
from figures.report.ledger import COLUMNS
from llm_experiments import keep, pages
from llm_experiments.domains.measured import names, section
from llm_experiments.domains.task import DOMAINS
from predictors import agreement, parts, tiers
from results import claims, frame, paper, transfer
from results.rows import BASE
from results.statistics import sign_flip
from tests import domain_rows, math_data, other_sets

ROW = {name: "" for name in COLUMNS} | {"claim": "c", "verdict": "holds", "provenance": {}}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Rows of every such domain, of a tiny model by the real code path."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patched:
        for variable, path in (math_data.write(folder) | other_sets.write(folder)).items():
            patched.setenv(variable, path)
        return domain_rows.measure(folder)


@pytest.fixture(scope="module")
def rows(run_folder):
    return frame.read(keep.lines(run_folder))


@pytest.fixture(scope="module")
def measured_cells(rows):
    return rows.groups()


# ---- the paper's numbers ----


def test_every_number_of_the_paper_that_a_cell_stands_for_says_in_what_they_differ(measured_cells):
    found = {}
    for cell in measured_cells:
        if like := paper.likened(cell):
            place = (cell.info.domain, cell.group, cell.info.dataset, cell.info.control, cell.info.rule)
            found[place] = (like.printed.table, like.printed.low, like.printed.high, like.differs)
            assert like.differs[0].startswith("model: model for ")
    table, low, high, differs = found["math", "problems", "gsm-symbolic", None, "mean"]
    assert (table, low, high) == ("table3", 10, 34)
    assert differs[1:] == ("questions: 2 for a number not stated",)
    table, low, high, differs = found["code", "spanish", "own", "translation", "sum"]
    assert (table, low, high) == ("table16", 36, 44) and differs[1] == "benchmark: own for MBPP"
    assert found["code", "english", "own", "coding", "sum"][0] == "table17"
    table, low, _, differs = found["geography", "fact", "hotpotqa", None, "mean"]
    assert (table, low) == ("table20", 46.3)
    assert differs[1:] == ("library: taught here for four of HotpotQA", "questions: 2 for 97")
    assert found["geography", "continent", "own", "base", "sum"][1] == 1.03
    assert not [place for place in found if place[3] in ("joint", "random", "shuffled", "main")]


def test_rows_that_count_something_else_than_right_answers_are_found(measured_cells):
    (base,) = [c for c in measured_cells if c.info.task == "GSM-P2, 0-shot cot" and c.info.control == BASE]
    for of, printed in (("code", 12), ("calculation", 29), ("step-missing", 6), ("correct", 5)):
        assert paper.likened(base, of).printed.low == printed  # right answers stand in Table 3, too
    assert paper.likened(base, "no-answer") is None
    for of in ("code", "calculation"):
        low, high = base.interval(of)
        assert low <= base.share_counted(of) <= high
        assert base.share_counted(of) == pytest.approx(np.mean(list(base.values(of)[None].values())))


def test_the_claim_on_code_counts_code():
    """The base writes code in every answer, the merge in none: right answers alone would say the reverse."""
    p2 = {"domain": "math", "task": "GSM-P2, 0-shot cot", "dataset": "gsm-symbolic", "layers": "attention"}
    p2 |= {"setting": {"form": "cot", "shots": 0}, "group": "problems", "spec_hash": None}
    writes, stopped = ({"code": [value] * 8} for value in (True, False))
    some = cells(
        measured(
            "........",
            marks=writes,
            control=BASE,
            library=(),
            rule="sum",
            seed=None,
            **{**p2, "layers": None},
        ),
        measured("11111111", marks=stopped, library=("main", "p1"), rule="arrow-products", **p2),
    )
    (claim,) = [
        c for c in claims.judged({"m": some}, ["math"]) if c.says == "Merged models stop writing code."
    ]
    (finding,) = claim.findings
    assert finding.verdict == claims.REPRODUCES and "100% [" in finding.ours and " code" in finding.ours
    (base_first,) = [
        b for b in claims.row_by_row("table15", {"m": some}) if b.row == "rule base, counted code"
    ]
    assert base_first.each["m"][0][1] == "above"


# ---- what is predicted ----


def test_every_merge_that_has_weights_is_predicted_and_every_other_says_why(measured_cells):
    said = parts.predicted(measured_cells)
    assert len(said) == len(transfer.merges(measured_cells)) > 0
    assert {one.cell.info.domain for one in said} == {"math", "code", "geography"}
    for one in said:
        products = one.cell.info.rule in ("mean", "arrow-products")
        assert (one.shares is not None) == products, one.refused
        if products:
            assert math.fsum(one.shares.values()) == pytest.approx(1)
            assert one.shares.keys() == one.cell.outcomes.keys() and min(one.shares.values()) >= 0
        else:
            assert "no weights of their own" in one.refused
    lines = {tiers.key(line): line for line in parts.lines(said)}
    table = agreement.table(measured_cells, ("T0", "T1", "T2"), lines, {})
    assert {one.predictor for one in table} == {"T3", agreement.COMMONEST, agreement.BASE_SAYS}
    assert {one.kind for one in table} >= {"math: all", "code: all", "geography: continent/steps"}


PARTS = {"domain": "sums", "task": "parts", "spec_hash": None, "group": "sums", "ask": "direct"}


def alone(marks, name, weight=None, **more):
    weights = {"weights": (weight,)} if weight is not None else {}
    return measured(marks, library=(name,), control=name, rule="sum", **weights, **{**PARTS, **more})


def of_parts(base, one, other, merged="....", rule="mean"):
    """one, other: marks at weight .5 and 1."""
    return cells(
        measured(base, library=(), control=BASE, rule="sum", seed=None, **{**PARTS, "layers": None}),
        *(
            alone(marks, name, w)
            for name, told in (("a", one), ("b", other))
            for w, marks in zip((0.5, None), told, strict=True)
        ),
        measured(merged, library=("a", "b"), rule=rule, **PARTS),
    )


def test_a_merge_is_the_base_and_what_each_adapter_changes_at_its_weight():
    (said,) = parts.predicted(of_parts("1...", ("11..", "1111"), ("111.", "1111")))
    assert said.shares["correct"] == pytest.approx(0.25 + 0.25 + 0.5)
    (said,) = parts.predicted(of_parts("1111", ("11..", "...."), ("....", "....")))
    assert said.shares["correct"] == 0  # 1 - .5 - 1, held at nothing
    (said,) = parts.predicted(of_parts("1...", ("1...", "1111"), ("1...", "1111"), rule="sum"))
    assert said.shares["correct"] == 1 and said.base["correct"] == 0.25


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (of_parts("1...", ("11..", "1111"), ("111.", "1111"))[1:], "the base was not asked"),
        (
            of_parts("1...", ("11..", "1111"), ("111.", "1111"))[:-2]
            + of_parts("1...", ("", ""), ("", ""))[-1:],
            "'b'",
        ),
        (of_parts("1...", ("11..", "1111"), ("111.", "1111"), rule="ties"), "'ties'"),
    ],
)
def test_what_is_not_predicted_says_why(given, reason):
    (said,) = parts.predicted(given)
    assert said.shares is None and reason in said.refused


# ---- negative transfer ----


def test_a_merge_is_below_only_by_a_test_over_clusters_that_allows_for_the_choice_of_the_better():
    some = of_parts("." * 12, ("." * 12, "1" * 12), ("." * 12, "." * 12), merged="." * 12)
    (one,) = transfer.transfers(some)
    assert one.better == "a" and one.verdict == transfer.BELOW
    assert one.difference.difference == -1 and one.difference.clusters == 12
    assert one.p == one.holm == pytest.approx(2 * sign_flip([-1.0] * 12).p)
    (few,) = transfer.transfers(of_parts("." * 5, ("." * 5, "1" * 5), ("." * 5, "." * 5), merged="." * 5))
    assert few.verdict == transfer.UNDECIDED and few.difference.difference == -1


def test_a_merge_is_above_only_if_it_is_above_every_adapter():
    none, half, all_ = "." * 12, "1" * 6 + "." * 6, "1" * 12
    (one,) = transfer.transfers(of_parts(none, (none, none), (none, none), merged=all_))
    assert one.verdict == transfer.ABOVE
    (one,) = transfer.transfers(of_parts(none, (none, none), (none, "1" * 11 + "."), merged=all_))
    assert one.better == "b" and one.verdict == transfer.UNDECIDED
    assert one.p == max(contrast.p for contrast in one.against.values()) == 1
    (one,) = transfer.transfers(of_parts(half, (none, half), (none, none), merged=half))
    assert one.difference.difference == 0 and one.base.share == 0.5 and one.verdict == transfer.UNDECIDED


def test_many_merges_of_a_domain_are_adjusted_together_and_others_apart():
    def lower(task, domain="sums"):
        about = {**PARTS, "task": task, "domain": domain}
        merged = measured("." * 7, library=("a", "b"), rule="mean", **about)
        singles = [measured("1" * 7, library=(n,), control=n, rule="sum", **about) for n in "ab"]
        return [merged, *singles]

    several = [one for task in ("t1", "t2", "t3") for one in lower(task)]
    found = transfer.transfers(cells(*several, *lower("t1", "others")))
    assert [one.holm for one in found] == pytest.approx([3 * one.p for one in found[:3]] + [found[3].p])
    assert (found[3].verdict, found[0].verdict) == (transfer.BELOW, transfer.UNDECIDED)


def test_merges_without_their_adapters_or_of_other_seeds_are_left_out(measured_cells):
    some = of_parts("1...", ("11..", "1111"), ("111.", "1111"))
    assert not transfer.transfers([cell for cell in some if cell.info.control != "a"])
    shifted = [
        replace(c, infos=tuple(replace(i, seed=7) for i in c.infos)) if c.info.control == "a" else c
        for c in some
    ]
    assert not transfer.transfers(shifted)
    assert {one.merged.info.domain for one in transfer.transfers(measured_cells)} == {
        "math",
        "code",
        "geography",
    }


# ---- pages, drawings, report ----

NOTHING = "Nothing of this domain is measured yet."


def test_every_domain_says_what_is_there_and_what_is_not(measured_cells):
    assert set(names()) == {"math", "code", "geography"}
    for name in names():
        empty, full = section(name, []), section(name, measured_cells)
        assert not empty.lines and not empty.transfers and empty.sources == list(DOMAINS[name].sources)
        assert set(full.rows) <= {
            *empty.rows,
            *(row + "; above, something else beside it" for row in empty.rows),
        }
        assert len(full.rows) < len(empty.rows) or name == "code"  # MBPP in Spanish is nowhere
        assert full.lines and full.errors and full.transfers and full.agreement and sum(full.refused.values())
    math_, code_ = section("math", measured_cells), section("code", measured_cells)
    assert math_.sources == ["ladder"] and code_.sources == ["published"]
    assert "Table 4: mlp, uniform (20–39%)" in math_.rows and not [
        row for row in math_.rows if "Table 13" in row
    ]
    assert "Table 16: uniform (27.9–39.1%); above, something else beside it" in code_.rows
    (line,) = [one for one in math_.lines if one.merge == "mean" and one.adapters == "main + p1"]
    assert line.paper == "10–34% (Table 3)" and "questions: 2 for a number not stated" in line.differs
    (base,) = [
        one for one in math_.errors if one.line.paper == "5–68% (Table 3)" and one.line.adapters == "none"
    ]
    told = dict(zip(math_.counted, base.shares, strict=True))
    assert told["calculation"].endswith("% (paper 29%)") and told["code"].endswith("% (paper 12%)")


def test_the_report_has_a_section_each_with_rows_and_without(measured_cells, rows):
    empty = report.render(report.Content((ROW,)))
    source = sources.Source("tiny", tuple(measured_cells), rows, {"rows": "some"})
    full = report.render(report.Content((ROW,), committed=(source,)))
    for name in names():
        for page, there in ((empty, False), (full, True)):
            own = page.partition(f'id="domain-{name}"')[2].partition("<h2")[0]
            assert (NOTHING in own) != there and "Not measured" in own
            assert ("Table 3" in own or name != "math") and ("merge minus better" in own) == there


@pytest.mark.parametrize("name", ["libraries", "transfer"])
def test_drawings_have_a_panel_for_every_domain(measured_cells, name, tmp_path):
    drawing = registry.figures()[name]
    with style.look():
        drawn = drawing.from_data(registry.Data(cells=measured_cells))
        titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert {title.partition(":")[0] for title in titles} == {"math", "code", "geography"}
    assert all(path.stat().st_size for path in drawing.save(registry.Data(cells=measured_cells), tmp_path))


def test_merges_of_parts_stand_in_the_drawing_of_agreement(measured_cells):
    committed = reading.measured(frame.read(*reading.committed()), predictions.read()).cells
    with style.look():
        figure = registry.figures()["agreement"].from_data(registry.Data(cells=[*committed, *measured_cells]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [*PANELS, OTHERS]
    last = [axes for axes in figure.axes if axes.get_subplotspec().colspan.start == len(PANELS)]
    texts = ["".join(text.get_text() for text in axes.texts) for axes in last]
    predicted = [one for one in parts.predicted([*committed, *measured_cells]) if one.shares]
    assert [f"{len(predicted)} cells" in text for text in texts].count(True) == 1
    assert texts.count("not predicted") == len(texts) - 1


def test_the_page_is_written_from_kept_rows_and_from_none(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DATA", tmp_path)
    template = pages.ROOT / "docs" / "domains-measured.md.jinja"
    for rows_kept in (False, True):
        if rows_kept:
            keep.keep(run_folder, "some-model", tmp_path)
        pages.kept_cells.cache_clear()
        page = pages.render(template)
        assert page.count(NOTHING) == (0 if rows_kept else 3)
        assert ("| main + p1 | mean | 2 |" in page) == rows_kept
    pages.kept_cells.cache_clear()
