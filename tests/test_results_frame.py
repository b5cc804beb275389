"""The frame of measured rows and its cells: what is joined, grouped, counted and refused."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import pytest
from measured_cells import cells, measured, together

from results import files, frame
from results.frame import predicted, select
from results.rows import RowsError, items_hash
from results.statistics import StatisticsError, wilson

DATA = Path(__file__).parents[1] / "llm_experiments" / "data"


def test_a_cell_counts_items_seeds_outcomes_and_marks():
    (cell,) = cells(measured("1111b"), measured("11boe", seed=1))
    assert (cell.items, cell.clusters, dict(cell.seeds)) == (5, 5, {0: 0.8, 1: 0.4})
    assert cell.share == pytest.approx(0.6)
    assert (cell.low, cell.high) == pytest.approx(wilson(3, 5))  # of five items, not of ten
    assert dict(cell.outcomes) == pytest.approx(
        {"correct": 0.6, "bridge": 0.2, "old": 0.1, "edited": 0.1, "other": 0}
    )
    assert (cell.mark("exact"), cell.mark("contains")) == pytest.approx((0.6, 0.8))
    low, high = cell.cluster_interval()
    assert low <= cell.share <= high
    assert cell.interval("bridge") == pytest.approx(wilson(1, 5))


def test_marks_that_cannot_be_said_are_left_out_of_their_mean_and_none_of_all_rows():
    (cell,) = cells(measured("11..", marks={"hop1_right": [True, None, False, None]}))
    assert cell.mark("hop1_right") == 0.5 and cell.flag("hop1_right") == 0.25
    assert cell.values("hop1_right") == {0: {"x1 R1 R2/steps/48": 1.0, "x3 R1 R2/steps/48": 0.0}}
    with pytest.raises(StatisticsError, match="hop1_right"):
        cell.values("nothing")


def test_collapse_shows_in_the_entropy_of_answers_and_garbled_names_in_a_share():
    """By training seed: two that each say one thing only, of two different ones, have no entropy."""
    (even,) = cells(measured("1111"))
    assert even.entropy == pytest.approx(math.log(4)) and even.garbled is None
    (mixed,) = cells(measured("1111"), measured("....", seed=1))
    assert mixed.entropy == pytest.approx(math.log(4))  # answers that name nobody count nowhere
    (none,) = cells(measured("...."))
    assert none.entropy is None
    (wrong,) = cells(measured("1...", marks={"edit_distance": [None, 0, 2, 3]}))
    assert wrong.garbled == 0.25


def test_draws_of_names_are_one_cell_whose_chains_are_all_of_theirs():
    """Chain 1 of another draw is another chain: twice as many, in a count, an interval and a test."""
    (cell,) = cells(measured("11.."), measured("1...", names=1), measured("11..", seed=1))
    assert (cell.names, cell.items, cell.clusters) == ((0, 1), 8, 8)
    assert dict(cell.seeds) == {0: 3 / 8, 1: 1 / 2} and len(cell.infos) == 3
    assert (cell.low, cell.high) == pytest.approx(wilson(8 * cell.share, 8))
    worse, better = cells(
        *(measured("....", names=names) for names in range(3)),
        *(measured("11..", names=names, rule="sum") for names in range(3)),
    )
    test = better.against(worse)
    assert (test.clusters, test.first, test.p) == (12, 6, pytest.approx(2 * 0.5**6))
    (first,), (other,) = cells(measured("11..")), cells(measured("11..", names=1))
    with pytest.raises(StatisticsError, match="compare the same questions"):
        first.against(other)
    apart = cells(measured("11.."), measured("1...", names=1), pooled=False)
    assert [cell.names for cell in apart] == [(0,), (1,)]


def test_of_one_draw_other_texts_under_the_same_ids_are_another_cell():
    first, second = measured("11.."), measured("1...", seed=1)
    (asked,) = second.items.values()
    reworded = tuple(replace(item, question=item.question + "?") for item in asked)
    (info,) = second.cells.values()
    other = replace(info, items=items_hash(reworded))
    rows = [replace(row, cell=other.key) for row in second.rows]
    changed = files.Measurements({other.key: other}, {other.items: reworded}, rows)
    assert [len(cell.infos) for cell in cells(first, changed)] == [1, 1]


def test_seeds_are_pooled_or_not_and_nothing_else_is():
    given = [measured("1b"), measured("1b", seed=1), measured("1b", rule="sum"), measured("1b", ask="direct")]
    assert [len(cell.infos) for cell in cells(*given)] == [2, 1, 1]
    assert [cell.info.seed for cell in cells(*given, pooled=False)] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"task": "setup-0"},
        {"library": ("hop1", "hop2", "oracle")},
        {"weights": (0.3, 0.7)},
        {"options": {"density": 0.2}},
        {"variant": {"gauge": "flipped"}},
        {"control": "random"},
        {"split": "dev"},
        {"dtype": "bfloat16"},
        {"digest": "4567"},
        {"setting": {"facts": 9}},
        {"spec_hash": "other"},
        {"dataset": "F"},
        {"layers": "both"},
        {"base": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_tells_cells_apart_keeps_their_rows_apart(change):
    plain, other = cells(measured("11"), measured("..", **change))
    assert (plain.share, other.share) == (1, 0) and plain.key() != other.key()
    assert plain.key(*change) == other.key(*change)


def test_what_comes_out_of_a_measurement_does_not():
    given = (measured("11"), measured("..", seed=1, chosen={"temperature": 0.1}, spectral_gap=0.5))
    (cell,) = cells(*given)
    assert cell.chosen == {"temperature": (0.1,)}


def test_cells_are_chosen_by_their_fields_as_a_whole():
    several = cells(measured("1b"), measured("1b", variant={"steps": 3}), measured("1b", ask="direct"))
    assert len(select(several, variant={})) == 2 and len(select(several, variant={"steps": 3})) == 1
    assert len(select(several, ask="steps", variant={}, library=["hop1", "hop2"])) == 1
    with pytest.raises(AttributeError):
        select(several, nothing=1)


def test_adapters_that_did_not_learn_are_known_to_their_cells():
    good, bad, none = cells(
        measured("1b", own_task=0.99),
        measured("1b", task="setup-3", own_task=0.49),
        measured("1b", rule="sum"),
    )
    assert (good.own_task, good.undertrained) == (0.99, False)
    assert (bad.own_task, bad.undertrained) == (0.49, True)
    assert (none.own_task, none.undertrained) == (None, False)


def test_predictions_are_joined_by_spec_and_question():
    told = {"h": {"two-hop/steps": {"shares": {"correct": 1.0}}}}
    given = [measured("1b"), measured("1b", ask="direct"), measured("1b", control="random")]
    found = [cell.prediction for cell in predicted(cells(*given), told)]
    assert found == [{"shares": {"correct": 1.0}}, None, None]


def test_log_probabilities_are_means_over_wordings_then_seeds():
    first = measured(
        "1b", wordings=(48, 49), ask="direct", logprobs=[{"correct:z1": -1.0}, {"correct:z1": -3.0}]
    )
    second = measured("1b", wordings=(48, 49), ask="direct", seed=1, logprobs=[{"correct:z1": -4.0}, None])
    (cell,) = cells(first, second)
    assert cell.scored == {"correct": {"1": -3.0}}


def test_wins_are_counted_over_the_seeds_that_both_have():
    first, second = cells(
        *(measured(text, seed=seed) for seed, text in enumerate(("11.", "1..", "..."))),
        *(measured(text, seed=seed, rule="sum") for seed, text in enumerate(("1..", "11."))),
    )
    assert (first.wins(second), second.wins(first)) == ("1 of 2", "1 of 2")


def test_a_wide_frame_has_the_fields_of_the_cells():
    wide = frame.of(together([measured("1b", variant={"steps": 3}), measured("11", seed=1)])).wide()
    assert len(wide) == 4 and set(wide["rule"]) == {"mean"} and set(wide["seed"]) == {0, 1}
    assert wide["variant"][0] == '{"steps": 3}'


def test_folders_are_joined_and_what_both_have_counts_once(tmp_path):
    files.write(tmp_path / "a", together([measured("1b"), measured("1b", seed=1)]))
    files.write(tmp_path / "b", together([measured("1b", seed=1), measured("11", rule="sum")]))
    joined = frame.read(tmp_path / "a", tmp_path / "b")
    assert len(joined.rows) == 6 and [len(cell.infos) for cell in joined.groups()] == [2, 1]
    files.write(tmp_path / "c", together([measured("11", seed=1)]))
    with pytest.raises(RowsError, match="two answers"):
        frame.read(tmp_path / "a", tmp_path / "c")


def test_lines_that_are_wrong_are_named(tmp_path):
    files.write(tmp_path, measured("1b.."))
    path = tmp_path / "rows.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    for wrong, message in (
        ([lines[0], b"nothing\n"], "line 2"),
        ([lines[0], b'{"version": 1}\n'], "line 2"),
        ([lines[0], lines[1].replace(b'"bridge": 1.0', b'"bridge": 0.5')], "line 2.*sum to 1"),
        ([lines[0].replace(b'"version": 1', b'"version": 2')], "version 2"),
        ([lines[0].replace(b"x1 R1", b"x9 R1")], "none of its items"),
        ([lines[0], lines[0]], "two answers"),
        ([lines[0].replace(b'"cell": "', b'"cell": "0')], "missing"),
    ):
        path.write_bytes(gzip.compress(b"".join(wrong)))
        with pytest.raises(RowsError, match=message):
            frame.read(tmp_path)


def test_a_frame_is_equal_however_it_is_read(tmp_path):
    found = together([measured("1b.."), measured("11oe", rule="sum", ask="direct")])
    files.write(tmp_path, found)
    assert frame.read(tmp_path).rows.equals(frame.of(found).rows)
    given = {file: "".join(found.lines(file)).encode() for file in files.FILES}
    assert frame.read(given.__getitem__).rows.equals(frame.of(found).rows)


def test_a_folder_without_measurements_is_refused(tmp_path):
    with pytest.raises(RowsError, match="holds no measurements"):
        frame.read(tmp_path)
    with pytest.raises(RowsError, match="no folder"):
        frame.read()


@pytest.mark.parametrize("name", ["no-chains", "smollm2-135m"])
def test_kept_rows_are_counted_as_they_are_written(name):
    found = files.read(DATA / name)
    several = frame.read(DATA / name).groups()
    by_cell: dict[str, list[float]] = {}
    for row in found.rows:
        by_cell.setdefault(row.cell, []).append(row.shares["correct"])
    for info in found.cells.values():
        own = [c for c in several if info.key in {i.key for i in c.infos}]
        counted = sum(len([s for s in c.column("cell") if s == info.key]) for c in own)
        right = sum(sum(c.values()[info.seed].values()) for c in own)
        assert (counted, right) == (len(by_cell[info.key]), sum(by_cell[info.key]))


def test_a_frame_of_cells_without_rows_is_empty():
    found = measured("1b")
    assert frame.of(replace(found, rows=[])).groups() == []


def test_gates_are_read_where_they_are_and_averaged_over_rows_and_blocks():
    routed = measured("11")
    gates = [{"answer": {"hop1": (0.2, 0.4)}}, {"answer": {"hop1": (0.6, 0.8)}, "prompt": {"hop1": (1, 1)}}]
    routed.rows = [replace(row, gates=given) for row, given in zip(routed.rows, gates, strict=True)]
    plain, weighted = cells(measured("1.", rule="sum"), routed)
    assert plain.gates == [None, None] and plain.gate("answer") == {}
    assert weighted.gate("answer") == pytest.approx({"hop1": 0.5}) and weighted.gate("prompt") == {"hop1": 1}
    assert weighted.gate("hop2") == {}
