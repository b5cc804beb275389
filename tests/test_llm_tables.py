"""Tables: what they count and compare, where the paper's numbers stand, how they are printed."""

import csv
import gzip
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from results import forms, tables
from results.statistics import mcnemar_exact, wilson
from results.tables import TableError, comparisons, entries, paper
from toytransformer.compositions import Record, write_jsonl

HERE = Path(__file__).parent
PAIR = ("hop1", "hop2")
OTHERS = ("bridge", "old", "edited", "other")


def rows(
    right: str,
    *,
    composition: str = "setup-2",
    adapters: tuple[str, ...] = PAIR,
    rule: str = "mean",
    source: str = "some/model",
    seed: int | None = 0,
    group: str = "two-hop",
    decode: str = "steps",
    weights: tuple[float, ...] | None = None,
    options: dict | None = None,
    setting: dict | None = None,
    **regime,
) -> list[Record]:
    """One row for each character of `right`: "1" is right, "b", "o", "e", "." one of the other outcomes."""
    names = dict(zip("1boe.", ("correct", *OTHERS), strict=True))
    common = {"model": "0123", "dataset": "R", "layers": "mlp", "seed": seed, **regime}
    return [
        Record(
            composition=composition,
            setting=setting or {"facts": len(right)},
            spec_hash="h",
            source=source,
            adapters=adapters,
            rule=rule,
            weights=weights,
            options=options or {},
            regime={k: v for k, v in {**common, "template": 48}.items() if v is not None},
            group=group,
            prompt=f"x{i} R1 R2" if group == "two-hop" else f"x{i} R1",
            decode=decode,
            correct="z",
            bridge="y",
            old="a",
            answer=None,
            shares={names[mark]: 1.0},
            exact=mark == "1",
            contains=mark in "1b",
        )
        for i, mark in enumerate(right, start=1)
    ]


# ---- entries ----


def test_an_entry_counts_items_seeds_and_outcomes():
    (entry,) = entries(rows("1111b") + rows("11boe", seed=1))
    assert (entry.items, entry.triplets, entry.seeds) == (5, 5, {"0": 0.8, "1": 0.4})
    assert entry.share == pytest.approx(0.6)
    assert (entry.low, entry.high) == pytest.approx(wilson(3, 5))  # of five items, not of ten
    assert entry.outcomes == pytest.approx(
        {"correct": 0.6, "bridge": 0.2, "old": 0.1, "edited": 0.1, "other": 0}
    )
    assert (entry.exact, entry.contains) == pytest.approx((0.6, 0.8))
    assert entry.line == "setup-2: hop1+hop2 mean" and entry.kind == "two hops, step by step"
    assert entry.cluster_low <= entry.share <= entry.cluster_high


def test_whatever_tells_groups_apart_makes_its_own_line():
    """Rows that differ in anything but seed and template are never averaged, and never called the same."""
    variants = [
        {},
        {"composition": "setup-0"},
        {"adapters": (*PAIR, "oracle")},
        {"adapters": ("oracle",), "rule": "sum"},
        {"rule": "sum"},
        {"rule": "sum", "weights": (0.3, 0.7)},
        {"rule": "ties", "options": {"density": 0.2}},
        {"rule": "ties", "options": {"density": 0.5}},
        {"control": "random"},
        {"control": "base", "adapters": (), "seed": None},
        {"gauge": "flipped"},
        {"relabelling": 1},
        {"split": "dev"},
        {"dtype": "bfloat16"},
        {"model": "4567"},
        {"setting": {"facts": 9}},
    ]
    found = entries([row for variant in variants for row in rows("1b", **variant)])
    assert len(found) == len(variants)
    assert len({entry.line for entry in found}) == len(variants)
    assert "setup-2: hop1+hop2 sum (0.3, 0.7)" in {entry.line for entry in found}
    assert {"setup-2: oracle alone", "setup-2: base model"} <= {entry.line for entry in found}


def test_datasets_and_layers_are_columns_and_questions_are_kinds():
    given = [
        {"dataset": "F"},
        {"layers": "both"},
        {"decode": "direct"},
        {"group": "hop1", "decode": "direct"},
    ]
    found = entries([row for variant in given for row in rows("1b", **variant)])
    assert [(e.column, e.kind) for e in found] == [
        ("F", "two hops, step by step"),
        ("R, both", "two hops, step by step"),
        ("R", "two hops, directly"),
        ("R", "hop1"),
    ]
    assert len({entry.line for entry in found}) == 1


def test_a_temperature_chosen_by_seed_does_not_split_the_line():
    given = [
        rows("1b", rule="arrow-products", seed=seed, temperature=t, options={"temperature": t})
        for seed, t in ((0, 0.1), (1, 1.0))
    ]
    (entry,) = entries([row for each in given for row in each])
    assert entry.temperatures == (0.1, 1.0) and len(entry.seeds) == 2


# ---- comparisons ----


def test_rules_and_setups_are_compared_on_the_same_items():
    first, second, plain = "11110000..", "1110111...", "0000000000"
    first, second, plain = (text.replace("0", ".") for text in (first, second, plain))
    found = comparisons(
        rows(plain, composition="setup-0")
        + rows(first)
        + rows(second, rule="arrow-products")
        + rows(first, rule="ties", seed=1)  # another seed: left out
        + rows(first[:5], rule="knots")  # other items: left out
        + rows(second, rule="sum", control="random")
    )
    told = {(c.first, c.second): c.seeds["0"] for c in found}
    assert told.keys() == {
        ("setup-2: hop1+hop2 mean", "setup-2: hop1+hop2 arrow-products"),
        ("setup-0: hop1+hop2 mean", "setup-2: hop1+hop2 mean"),
    }
    marks = [[mark == "1" for mark in text] for text in (first, second)]
    test = mcnemar_exact(*marks)
    assert told["setup-2: hop1+hop2 mean", "setup-2: hop1+hop2 arrow-products"] == (
        test.first,
        test.second,
        test.p,
    )
    assert told["setup-0: hop1+hop2 mean", "setup-2: hop1+hop2 mean"] == (0, 4, pytest.approx(2 * 0.5**4))


def test_p_values_are_adjusted_within_a_model_and_kind():
    """Two tests of one kind: the smaller p counts twice (Holm), another kind's is left alone."""
    plain, better, best = "..........", "1111......", "11111111.."
    found = comparisons(
        rows(plain) + rows(better, rule="ties") + rows(best, rule="knots")
        + rows(plain, decode="direct") + rows(best, decode="direct", rule="knots")
    )  # fmt: skip
    adjusted = {(c.kind, c.second): c.holm["0"] for c in found}
    steps, direct = "two hops, step by step", "two hops, directly"
    assert adjusted == {
        (steps, "setup-2: hop1+hop2 ties"): pytest.approx(2 * 0.5**4),
        (steps, "setup-2: hop1+hop2 knots"): pytest.approx(2 * 2 * 0.5**8),
        (direct, "setup-2: hop1+hop2 knots"): pytest.approx(2 * 0.5**8),
    }


def test_right_answers_are_set_against_the_same_answers_shuffled():
    def scored(own: float) -> list[Record]:
        """Question i gives its own answer log p = `own` and the others' -1; the text is wrong throughout."""
        labels = [
            {f"{'correct' if j == i else 'shuffled'}:z{j}": own if j == i else -1.0 for j in range(4)}
            for i in range(4)
        ]
        return [
            replace(row, logprobs=p) for row, p in zip(rows("....", decode="direct"), labels, strict=True)
        ]

    (nothing,), (effect,) = entries(scored(-1.0)), entries(scored(-0.5))
    assert nothing.shuffled.difference == pytest.approx(0) and nothing.shuffled.p == 1
    assert effect.shuffled.difference == pytest.approx(0.5) and effect.share == 0
    # of 24 dealings one is the true one
    assert effect.shuffled.p == pytest.approx(1 / 24, abs=5 * math.sqrt(1 / 24 / 999))
    grid = next(g for g in forms.grids([effect]) if "log p" in g.title)
    assert "+0.50" in grid.rows[0]
    (line,) = csv.DictReader(io.StringIO(forms.as_csv([effect])))
    assert float(line["shuffled_difference"]) == pytest.approx(0.5)
    assert entries(rows("11"))[0].shuffled is None


# ---- the paper ----


def printed(experiment: str | None = None, **variant):
    (entry,) = entries(rows("1b", **variant), experiment=experiment)
    return entry.paper


def test_the_papers_number_stands_beside_the_same_measurement():
    own = printed(rule="arrow-factors", source="Qwen/Qwen2.5-7B-Instruct")
    assert (own["low"], own["high"], own["models"]) == (85.3, 85.3, ["Qwen2.5-7B-Instruct"])
    any_model = printed(rule="arrow-products")
    assert (any_model["low"], any_model["high"], len(any_model["models"])) == (73.5, 95.1, 6)
    assert printed(rule="linear", composition="setup-0", dataset="H")["high"] == 7.8
    assert printed("table8", rule="mean", composition="setup-0", dataset="F", layers="attention")["low"] == 0
    three = printed(rule="mean", composition="setup-0", adapters=(*PAIR, "oracle"), dataset="F")
    assert (three["low"], three["high"]) == (2, 41)
    alone = {"composition": "setup-0", "rule": "sum", "decode": "direct"}
    assert printed(**alone, adapters=("oracle",), control="oracle")["low"] == 100
    assert printed(**alone, adapters=("mixed",), dataset="F")["high"] == 3
    assert (
        printed(composition="library-shared", rule="arrow-products", adapters=tuple("abcdefghij"))["high"]
        == 21.1
    )
    lori = {"composition": "setup-0", "adapters_": None}
    lori.pop("adapters_")
    assert printed("table2", composition="setup-0", rule="ties")["low"] == 3.8
    assert printed("table2", composition="setup-0", rule="cat-fitted")["low"] == 21
    assert printed("table2", composition="setup-0", rule="mean")["low"] == 3
    assert (
        printed("table7", composition="setup-0", rule="mean", source="Qwen/Qwen2.5-7B-Instruct")["low"] == 6.8
    )


def test_the_papers_number_stands_beside_nothing_else():
    for variant in (
        {"decode": "direct"},
        {"group": "hop1", "decode": "direct"},
        {"rule": "sum"},
        {"rule": "knots"},
        {"weights": (0.5, 0.5), "rule": "linear"},
        {"control": "random"},
        {"control": "base", "adapters": ()},
        {"gauge": "flipped"},
        {"initial_a": "shared"},
        {"relabelling": 0},
        {"adapters": ("hop2",)},
        {"dataset": "H"},
        {"layers": "attention", "composition": "setup-5"},
        {"composition": "two-hop"},
        {"composition": "library-shared", "rule": "sum"},
    ):
        assert printed(**variant) is None, variant


def test_lori_is_found_by_its_form():
    def lori(label, form, rule):
        records = rows("1b", composition="setup-0", rule=rule, form=form)
        changed = [
            Record(**{**record.__dict__, "regime": {**record.regime, "adapters": label}})
            for record in records
        ]
        (entry,) = entries(changed, experiment="table2")
        return entry.paper and entry.paper["low"]

    assert [lori("LoRI-D", "cat", "sum"), lori("LoRI-D", "linear", "linear")] == [13, 1]
    assert [lori("LoRI-S", "cat", "sum"), lori("LoRI-S", "linear", "linear")] == [7, 3]
    assert lori("LoRI-D", "mean", "mean") is None


def test_unreadable_cells_are_left_out():
    cell = printed(
        composition="setup-0",
        adapters=(*PAIR, "oracle"),
        dataset="H",
        source="x/DeepSeek-R1-Distill-Qwen-14B",
    )
    assert cell is None
    everyone = printed(composition="setup-0", adapters=(*PAIR, "oracle"), dataset="H")
    assert (everyone["low"], everyone["high"]) == (9.8, 42.2)
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


@pytest.fixture
def everything():
    given = rows("111b", composition="setup-0") + rows("111b", composition="setup-0", seed=1)
    given += rows("11bo", rule="arrow-products") + rows("11b.")
    given += rows("1111", adapters=("oracle",), rule="sum", dataset="F")
    given += rows("1b1b", group="hop1", decode="direct")
    return entries(given), comparisons(given)


def test_a_terminal_gets_intervals_seeds_and_the_papers_range(everything):
    console = Console(width=200, record=True, file=io.StringIO())
    forms.print_rich(forms.grids(*everything), console)
    shown = console.export_text()
    low, high = (forms.percent(bound) for bound in wilson(3, 4))
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
    assert float(lines[0]["share"]) == found[0].share and json.loads(lines[0]["seeds"]) == found[0].seeds
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


# ---- files ----


def test_files_of_rows_are_read_or_named(tmp_path):
    given = rows("1b")
    write_jsonl(tmp_path / "rows.jsonl", given)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    assert tables.read_file(packed) == tables.read_file(tmp_path / "rows.jsonl") == given
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(TableError, match=r"rows.jsonl.gz' cannot be read"):
        tables.read_file(packed)
    packed.write_bytes(gzip.compress(b'{"n": 1}\n'))
    with pytest.raises(TableError, match=r"row 1: not a record"):
        tables.read_file(packed)
    with pytest.raises(TableError, match="cannot be read"):
        tables.read_file(tmp_path / "missing.gz")
