"""Tables: what they count and compare, where the paper's numbers stand, how they are printed."""

import csv
import io
import json
import math

import pytest
from measured_cells import PAIR, cells, measured
from rich.console import Console

from results import forms
from results.cells import Cell, percent
from results.paper import Printed, beside, paper
from results.statistics import wilson
from results.tables import comparisons, entries

# ---- entries ----


def test_an_entry_says_what_its_cell_says():
    (entry,) = entries(cells(measured("1111b"), measured("11boe", seed=1)))
    told = entry.to_dict()
    assert (told["items"], told["clusters"], told["seeds"]) == (5, 5, {"0": 0.8, "1": 0.4})
    assert told["share"] == pytest.approx(0.6)
    assert (told["low"], told["high"]) == pytest.approx(wilson(3, 5))  # of five items, not of ten
    assert told["outcomes"] == pytest.approx(
        {"correct": 0.6, "bridge": 0.2, "old": 0.1, "edited": 0.1, "other": 0}
    )
    assert (told["exact"], told["contains"]) == pytest.approx((0.6, 0.8))
    assert entry.line == "setup-2: hop1+hop2 mean" and entry.kind == "two-hop, step by step"
    assert told["cluster_low"] <= told["share"] <= told["cluster_high"]


def test_cells_that_differ_are_never_called_the_same():
    variants = [
        {},
        {"task": "setup-0"},
        {"library": (*PAIR, "oracle")},
        {"library": ("oracle",), "rule": "sum"},
        {"rule": "sum"},
        {"rule": "sum", "weights": (0.3, 0.7)},
        {"rule": "ties", "options": {"density": 0.2}},
        {"rule": "ties", "options": {"density": 0.5}},
        {"control": "random"},
        {"control": "base", "library": (), "seed": None},
        {"variant": {"gauge": "flipped"}},
        {"variant": {"relabelling": 1}},
        {"split": "dev"},
        {"dtype": "bfloat16"},
        {"digest": "4567"},
        {"setting": {"facts": 9}},
        {"spec_hash": "another"},
    ]
    listed = entries(cells(*(measured("1b", **variant) for variant in variants)))
    assert len({entry.line for entry in listed}) == len(listed) == len(variants)
    assert "setup-2: hop1+hop2 sum (0.3, 0.7)" in {entry.line for entry in listed}
    assert {"setup-2: oracle alone", "setup-2: base model"} <= {entry.line for entry in listed}


def test_datasets_and_layers_are_columns_and_questions_are_kinds():
    given = [{"dataset": "F"}, {"layers": "both"}, {"ask": "direct"}, {"group": "hop1", "ask": "direct"}]
    listed = entries(cells(*(measured("1b", **variant) for variant in given)))
    assert [(e.column, e.kind) for e in listed] == [
        ("F", "two-hop, step by step"),
        ("R, both", "two-hop, step by step"),
        ("R", "two-hop"),
        ("R", "hop1"),
    ]
    assert len({entry.line for entry in listed}) == 1


def test_a_temperature_chosen_by_seed_does_not_split_the_line():
    given = (
        measured("1b", rule="arrow-products", seed=seed, chosen={"temperature": t})
        for seed, t in ((0, 0.1), (1, 1.0))
    )
    (entry,) = entries(cells(*given))
    assert entry.to_dict()["temperatures"] == [0.1, 1.0] and len(entry.cell.seeds) == 2


# ---- comparisons ----


def test_rules_and_setups_are_compared_on_the_same_items():
    first, second, plain = "11110000..", "1110111...", "0000000000"
    first, second, plain = (text.replace("0", ".") for text in (first, second, plain))
    listed = comparisons(
        cells(
            measured(plain, task="setup-0"),
            measured(first),
            measured(second, rule="arrow-products"),
            measured(first, rule="ties", seed=1),  # another seed: left out
            measured(first[:5], rule="knots"),  # other items: left out
            measured(second, rule="sum", control="random"),
        )
    )
    told = {(c.first, c.second): (c.better, c.worse, c.p) for c in listed}
    assert told == {
        ("setup-2: hop1+hop2 mean", "setup-2: hop1+hop2 arrow-products"): (3, 1, pytest.approx(10 / 16)),
        ("setup-0: hop1+hop2 mean", "setup-2: hop1+hop2 mean"): (4, 0, pytest.approx(2 * 0.5**4)),
    }
    (rules, _) = sorted(listed, key=lambda c: c.second)
    assert rules.difference == pytest.approx(0.2) and rules.low <= 0.2 <= rules.high


def test_wordings_and_seeds_of_a_chain_are_one():
    """Three chains, two wordings, two seeds: all twelve answers differ, and there are three signs."""
    nothing, all_right = "......", "111111"
    (test,) = comparisons(
        cells(
            *(measured(nothing, wordings=(48, 49), seed=seed) for seed in (0, 1)),
            *(measured(all_right, wordings=(48, 49), seed=seed, rule="ties") for seed in (0, 1)),
        )
    )
    assert (test.clusters, test.better, test.worse, test.p) == (3, 3, 0, 0.25)
    assert test.difference == 1


def test_p_values_are_adjusted_within_a_model_and_kind():
    """Two tests of one kind: the smaller p counts twice (Holm), another kind's is left alone."""
    plain, better, best = "..........", "1111......", "11111111.."
    listed = comparisons(
        cells(
            measured(plain),
            measured(better, rule="ties"),
            measured(best, rule="knots"),
            measured(plain, ask="direct"),
            measured(best, ask="direct", rule="knots"),
        )
    )
    adjusted = {(c.kind, c.second): c.holm for c in listed}
    steps, direct = "two-hop, step by step", "two-hop"
    assert adjusted == {
        (steps, "setup-2: hop1+hop2 ties"): pytest.approx(2 * 0.5**4),
        (steps, "setup-2: hop1+hop2 knots"): pytest.approx(2 * 2 * 0.5**8),
        (direct, "setup-2: hop1+hop2 knots"): pytest.approx(2 * 0.5**8),
    }


def test_right_answers_are_set_against_the_same_answers_shuffled():
    def scored(own: float) -> list[Cell]:
        """Question i gives its own answer log p = `own` and the others' -1; the text is wrong throughout."""
        labels = [
            {f"{'correct' if j == i else 'shuffled'}:z{j}": own if j == i else -1.0 for j in range(4)}
            for i in range(4)
        ]
        return cells(measured("....", ask="direct", logprobs=labels))

    (nothing,), (effect,) = entries(scored(-1.0)), entries(scored(-0.5))
    assert nothing.shuffled.difference == pytest.approx(0) and nothing.shuffled.p == 1
    assert effect.shuffled.difference == pytest.approx(0.5) and effect.cell.share == 0
    # of 24 dealings one is the true one
    assert effect.shuffled.p == pytest.approx(1 / 24, abs=5 * math.sqrt(1 / 24 / 999))
    grid = next(g for g in forms.grids([effect]) if "log p" in g.title)
    assert "+0.50" in grid.rows[0]
    (line,) = csv.DictReader(io.StringIO(forms.as_csv([effect])))
    assert float(line["shuffled_difference"]) == pytest.approx(0.5)
    assert entries(cells(measured("11")))[0].shuffled is None


# ---- the paper ----


def printed(experiment: str | None = None, **variant) -> Printed | None:
    (cell,) = cells(measured("1b", **variant))
    return beside(cell, experiment)


def test_the_papers_number_stands_beside_the_same_measurement():
    own = printed(rule="arrow-factors", base="Qwen/Qwen2.5-7B-Instruct")
    assert (own.low, own.high, own.models) == (85.3, 85.3, ("Qwen2.5-7B-Instruct",))
    any_model = printed(rule="arrow-products")
    assert (any_model.low, any_model.high, len(any_model.models)) == (73.5, 95.1, 6)
    assert printed(rule="linear", task="setup-0", dataset="H").high == 7.8
    assert printed("table8", rule="mean", task="setup-0", dataset="F", layers="attention").low == 0
    three = printed(rule="mean", task="setup-0", library=(*PAIR, "oracle"), dataset="F")
    assert (three.low, three.high) == (2, 41)
    alone = {"task": "setup-0", "rule": "sum", "ask": "direct"}
    assert printed(**alone, library=("oracle",), control="oracle").low == 100
    assert printed(**alone, library=("mixed",), control="mixed", dataset="F").high == 3
    assert printed(task="library-shared", rule="arrow-products", library=tuple("abcdefghij")).high == 21.1
    assert printed("table2", task="setup-0", rule="ties").low == 3.8
    assert printed("table2", task="setup-0", rule="cat-fitted").low == 21
    assert printed("table2", task="setup-0", rule="mean").low == 3
    assert printed("table7", task="setup-0", rule="mean", base="Qwen/Qwen2.5-7B-Instruct").low == 6.8


def test_the_papers_number_stands_beside_nothing_else():
    for variant in (
        {"ask": "direct"},
        {"group": "hop1", "ask": "direct"},
        {"rule": "sum"},
        {"rule": "knots"},
        {"weights": (0.5, 0.5), "rule": "linear"},
        {"control": "random"},
        {"control": "base", "library": ()},
        {"variant": {"gauge": "flipped"}},
        {"variant": {"initial_a": "shared"}},
        {"variant": {"relabelling": 0}},
        {"library": ("hop2",)},
        {"dataset": "H"},
        {"layers": "attention", "task": "setup-5"},
        {"task": "two-hop"},
        {"task": "library-shared", "rule": "sum"},
    ):
        assert printed(**variant) is None, variant


def test_lori_is_found_by_its_form():
    def lori(label, form, rule):
        variant = {"adapters": label, "form": form}
        number = printed("table2", task="setup-0", rule=rule, variant=variant)
        return number and number.low

    assert [lori("LoRI-D", "cat", "sum"), lori("LoRI-D", "linear", "linear")] == [13, 1]
    assert [lori("LoRI-S", "cat", "sum"), lori("LoRI-S", "linear", "linear")] == [7, 3]
    assert lori("LoRI-D", "mean", "mean") is None


def test_unreadable_cells_are_left_out():
    three = {"task": "setup-0", "library": (*PAIR, "oracle"), "dataset": "H"}
    assert printed(**three, base="x/DeepSeek-R1-Distill-Qwen-14B") is None
    everyone = printed(**three)
    assert (everyone.low, everyone.high) == (9.8, 42.2)
    unread = [
        v for t in paper() if t != "models" for r in paper()[t]["rows"] for v in r["values"] if math.isnan(v)
    ]
    assert len(unread) == 1


def test_printed_tables_agree_where_the_paper_prints_a_number_twice():
    printed_tables = paper()

    def values(table: str, **where):
        rows = ({**printed_tables[table].get("fixed", {}), **row} for row in printed_tables[table]["rows"])
        found = [row["values"] for row in rows if where.items() <= row.items()]
        assert len(found) == 1, (table, where)
        return found[0]

    for table in printed_tables.keys() - {"models"}:
        models = printed_tables[table].get("models", printed_tables["models"])
        assert all(len(row["values"]) == len(models) for row in printed_tables[table]["rows"])
    for setup in (0, 2, 3, 4, 5, 6, 7, 8):
        assert values("table1", setup=setup) == values("table10", setup=setup, rule="arrow")
    for rule in ("uniform", "arrow"):
        two = values("table10", setup=2, rule=rule)
        assert values("table9", setup=2, layers="mlp", rule=rule) == two
        plain = values("table7", dataset="R", library="two-hop", rule=rule)
        assert values("table10", setup=0, rule=rule) == plain
        for library in ("two-hop", "with-oracle"):
            large = values("table7", dataset="F", library=library, rule=rule)[2]
            assert values("table8", layers="mlp", library=library, rule=rule) == [large]
    assert values("table2", adapters="LoRA", rule="arrow") == [values("table1", setup=0)[1]]


# ---- forms ----


def test_cells_whose_adapters_did_not_learn_are_marked_in_every_form():
    found = cells(
        measured("11bo", own_task=0.5), measured("11bo", own_task=0.99, rule="ties", task="setup-0")
    )
    found += cells(measured("1bbo", rule="knots", own_task=0.5))
    listed, compared = (
        entries(found),
        comparisons(cells(*(measured("11bo", rule=r, own_task=0.5) for r in "ab"))),
    )
    grids = forms.grids(listed, compared)
    for grid in grids:
        marked = [row for row in grid.rows if "†" in "".join(row)]
        assert marked and all("setup-2" in row[0] for row in marked)
        assert any("under 95% right on its own task" in note for note in grid.notes)
    console = Console(width=200, record=True, file=io.StringIO())
    forms.print_rich(grids, console)
    assert "50† [" in console.export_text() and "50† [" in forms.markdown(grids)
    lines = list(csv.DictReader(io.StringIO(forms.as_csv(listed))))
    assert [(line["own_task"], line["undertrained"]) for line in lines] == [
        ("0.5", "True"),
        ("0.99", "False"),
        ("0.5", "True"),
    ]
    assert json.loads(forms.as_json(listed, compared, []))["entries"][0]["undertrained"] is True
    plain = forms.grids(entries(cells(measured("11bo"))))
    assert not any("†" in note for grid in plain for note in grid.notes)


@pytest.fixture
def everything():
    given = cells(
        measured("111b", task="setup-0"),
        measured("111b", task="setup-0", seed=1),
        measured("11bo", rule="arrow-products"),
        measured("11b."),
        measured("1111", library=("oracle",), control="oracle", rule="sum", dataset="F"),
        measured("1b1b", group="hop1", ask="direct"),
    )
    return entries(given), comparisons(given)


def test_a_terminal_gets_intervals_seeds_and_the_papers_range(everything):
    console = Console(width=200, record=True, file=io.StringIO())
    forms.print_rich(forms.grids(*everything), console)
    shown = console.export_text()
    low, high = (percent(bound) for bound in wilson(3, 4))
    assert f"75 [{low}, {high}], seeds 75 to 75" in shown
    assert "n = 4 x 2 seeds" in shown
    assert "paper 2.9 to 7.8" in shown and "paper 73.5 to 95.1" in shown
    assert "outcomes in %" in shown and "Wilson" in shown
    assert "hop1: right answers" in shown and "some/model (0123)" in shown


def test_markdown_has_a_row_for_each_line(everything):
    text = forms.markdown(forms.grids(*everything))
    assert text.count("### ") == len(forms.grids(*everything))
    assert "| setup-0: hop1+hop2 mean |" in text
    for block in text.split("### ")[1:]:
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_csv_and_json_hold_every_entry(everything):
    found, compared = everything
    lines = list(csv.DictReader(io.StringIO(forms.as_csv(found))))
    assert [line["line"] for line in lines] == [entry.line for entry in found]
    first = found[0].cell
    assert float(lines[0]["share"]) == first.share
    assert json.loads(lines[0]["seeds"]) == {str(seed): share for seed, share in first.seeds.items()}
    assert lines[0]["paper_table"] and lines[0]["adapters"] == "hop1+hop2"
    content = json.loads(forms.as_json(found, compared, [{"kind": "edit"}]))
    assert len(content["entries"]) == len(found) and len(content["comparisons"]) == len(compared) == 1
    assert content["rows"] == [{"kind": "edit"}]
    assert forms.as_csv([]) == "\n" and forms.grids([]) == []


def test_other_rows_are_shown_by_kind_without_what_they_share():
    given = [
        {"kind": "provenance", "git": "x"},
        {"kind": "edit", "source": "m", "layer": 1, "whitened": True, "c1_own": 0.123456, "texts": ["a"]},
        {"kind": "edit", "source": "m", "layer": 2, "whitened": True, "c1_own": 1.0, "texts": ["b"]},
        {"kind": "overlap", "source": "m", "layer": 1, "metric": "raw", "extra": 1, "c1_own": 0.5},
    ]
    edit, overlap = forms.other_rows(given)
    assert edit.title == "m edit (whitened = True)" and edit.header == ("layer", "c1_own")
    assert edit.rows == (("1", "0.123"), ("2", "1"))
    assert overlap.header == ("layer", "metric", "c1_own")
