"""Theory beside measurement: cells meet their predictions, and drawings say what they show."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from predicted_cells import FACTS, PAIR, answered, experiments, overlaps, together

from figures import predictions, reading, registry, store, style
from figures.__main__ import main
from figures.drawings.two_hop import agreement, tables, weights
from figures.registry import Data, NothingToDrawError
from predictors.agreement import plain
from results import files, paper
from results import frame as frames
from results.rows import RowsError
from toytransformer.compositions import Composition, Merge, catalogue
from toytransformer.compositions.setups import setup

MEASURED = {name: figure for name, figure in registry.figures().items() if figure.measured}
#: Drawn from what these rows have not: merges beside each of their adapters alone (test_domain_rows), pools
#: of adapters (test_results_recycled).
OTHERWISE = ("transfer", "recycle")


@pytest.fixture(scope="module")
def measurements():
    return together(experiments())


@pytest.fixture(scope="module")
def joined(measurements):
    return cells(measurements)


def cells(measurements, kept=()):
    """The cells with their predictions."""
    frame = frames.of(measurements)
    return reading.measured(frame, reading.predict([frame], kept)).cells


def of(found, **wanted):
    (cell,) = frames.select(found, **wanted)
    return cell


# --- joining ------------------------------------------------------------------------------------------------


def test_a_spec_under_another_hash_is_refused(measurements):
    specs = {"0" * 16: next(iter(measurements.specs.values()))}
    with pytest.raises(RowsError, match="kept as 0000"):
        predictions.complete(specs)


def test_relabelled_rows_meet_the_prediction_of_their_own_relabelling():
    sigma = list(range(3))
    random.Random(2).shuffle(sigma)
    assert sigma != [0, 1, 2]
    relabelled = answered(setup(0, facts=3, sigma=tuple(sigma)), relabelling=2)
    found = cells(relabelled)
    assert all(cell.prediction for cell in found)
    for cell in frames.select(found, group="hop1"):
        assert cell.prediction["shares"] == pytest.approx({k: v for k, v in cell.outcomes.items() if v})


def test_cells_without_a_spec_have_no_prediction_and_are_drawn(measurements):
    bare = replace(measurements, specs={})
    found = cells(bare)
    assert found and all(cell.prediction is None for cell in found)
    drawn = 0
    for figure in MEASURED.values():
        try:
            with style.look():
                figure.from_data(Data(cells=found, edits=list(overlaps())))
            drawn += 1
        except NothingToDrawError as error:
            assert figure.name in ("agreement", *OTHERWISE), error
    assert drawn == len(MEASURED) - 1 - len(OTHERWISE)


def test_a_model_that_answers_as_the_toy_does_agrees_with_it_everywhere(joined):
    assert {cell.info.control for cell in joined if cell.prediction is None} == {"base", "random"}
    for cell in joined:
        if cell.prediction and not cell.prediction["tied"]:
            for outcome, share in cell.outcomes.items():
                assert cell.prediction["shares"].get(outcome, 0.0) == pytest.approx(share, abs=1e-6)


def test_margins_are_those_of_the_outputs(joined):
    plain = {
        "task": "setup-0",
        "rule": "mean",
        "library": PAIR,
        "dataset": "R",
        "variant": {},
        "control": None,
    }
    pair = frames.select(joined, **plain)
    direct = of(pair, group="two-hop", ask="direct").prediction
    outputs = direct["outputs"]
    assert direct["margin"] == pytest.approx(outputs["correct"] - outputs["old"], abs=1e-5)
    hops = [of(pair, group=group, ask="direct").prediction["margin"] for group in ("hop1", "hop2")]
    assert of(pair, group="two-hop", ask="steps").prediction["margin"] == min(hops)


def test_kept_predictions_are_used_and_only_missing_ones_computed():
    some = frames.of(answered(setup(0, facts=FACTS, known=True)))
    rows = reading.predict([some])
    doubtful = [{**row, "asked": {k: {**v, "margin": 7.0} for k, v in row["asked"].items()}} for row in rows]
    counted = []
    again = reading.predict([some], doubtful, tick=lambda *done: counted.append(done))
    joined_again = reading.measured(some, again).cells
    assert {cell.prediction["margin"] for cell in joined_again} == {7.0} and not counted
    assert predictions.lacking(rows, []) == 1 and predictions.lacking(rows, rows) == 0


def test_what_the_toy_cannot_merge_has_no_prediction_and_the_reason_is_kept():
    graph = catalogue.build("library-disjoint", facts=3, merge=Merge("linear"))
    steps = tuple(replace(asked, decode="steps") for asked in graph.questions)
    spec = replace(graph, questions=(*graph.questions, *steps))
    (rank, *others) = {len(adapter.facts) for adapter in spec.adapters}
    assert others, f"all adapters hold {rank} facts"
    refused = predictions.predicted(spec)
    assert "needs equal ranks" in refused["refused"] and "asked" not in refused
    assert predictions.by_hash([refused]) == {}
    specs = {spec.spec_hash: json.loads(spec.to_json())}
    assert predictions.complete(specs, [refused]) == [refused]  # not computed anew


def test_a_run_adds_the_cells_that_are_not_there_yet_whatever_its_model_is_called():
    kept = frames.of(answered(setup(0, facts=FACTS), seeds=(0,)))
    again = answered(setup(0, facts=FACTS), seeds=(0, 1))
    for key, info in list(again.cells.items()):
        renamed = replace(info, base="elsewhere")
        del again.cells[key]
        again.cells[renamed.key] = renamed
        again.rows = [replace(r, cell=renamed.key) if r.cell == key else r for r in again.rows]
    both = reading.with_runs(kept, [frames.of(again)])
    assert sorted((info.base, info.seed) for info in both.cells.values()) == [("elsewhere", 1), ("tiny", 0)]
    assert len(both.rows) == 2 * len(kept.rows)


def test_several_draws_of_names_are_one_drawn_cell_and_the_note_says_so(joined):
    both = cells(together([*experiments(), *experiments(names=1)]))
    assert len(both) == len(joined) and {cell.names for cell in both} == {(0, 1)}
    assert registry.one_draw(both) == both
    with style.look():
        assert "2 draws of names" in written(drawn("first-look", both))


# --- what is committed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    """The committed measurements with the committed predictions."""
    return main_read()


def main_read():
    frame = frames.read(*reading.committed())
    return frame, reading.measured(frame, reading.predict([frame], predictions.read()))


def test_committed_predictions_are_those_of_the_committed_rows(committed):
    """Else: python -m figures all --fresh --toy predictors/data/toy_rows.json"""
    kept, (_, joined) = predictions.read(), committed
    assert predictions.lacking(joined.predictions, kept) == 0
    refused = {row["spec_hash"] for row in joined.predictions if "refused" in row}
    for cell in joined.cells:
        assert (cell.prediction is not None) == (cell.trained and cell.info.spec_hash not in {None, *refused})
    assert {row["provenance"]["modified"] for row in kept} == {False}


def test_committed_predictions_are_what_is_computed_now(committed):
    frame, _ = committed
    cheap = [row for row in predictions.read() if row.get("tied") is False][:3]
    assert cheap
    for old in cheap:
        spec = Composition.from_json(json.dumps(frame.specs[old["spec_hash"]]))
        fresh = json.loads(json.dumps(predictions.predicted(spec)))
        for asked, values in fresh["asked"].items():
            for key in ("shares", "outputs"):
                assert values[key] == pytest.approx(old["asked"][asked][key], abs=1e-6)
            assert values["margin"] == pytest.approx(old["asked"][asked]["margin"], abs=1e-6)


# --- drawings -----------------------------------------------------------------------------------------------


def texts(figure):
    """What is written in a figure and where, in pixels."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    unseen = {id(text) for axes in figure.axes for text in _unseen(axes)}
    return [(text, text.get_window_extent(renderer)) for text in found if id(text) not in unseen]


def _unseen(axes):
    """Tick labels beyond the limits, and all those of axes that are switched off."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        drawn = axis.get_major_ticks() if axes.axison else []
        for tick in axis.majorTicks:
            if tick not in drawn or not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def check(figure, name):
    """Text of 8 pt or more, inside the page, and no two texts on each other."""
    found = texts(figure)
    width, height = figure.canvas.get_width_height()
    for text, box in found:
        assert text.get_fontsize() >= 8, (name, text.get_text())
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (
            name,
            text.get_text(),
        )
    for (one, first), (other, second) in itertools.combinations(found, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across < 1 or down < 2, (name, one.get_text(), other.get_text())


def drawn(name, found, edits=(), pools=()):
    figure = MEASURED[name].from_data(Data(cells=found, edits=edits, pools=pools))
    assert figure.get_figwidth() in (style.COLUMN, style.PAGE)
    return figure


def written(figure) -> str:
    return " ".join(text.get_text() for text, _ in texts(figure)).replace("\n", " ").replace("\xa0", " ")


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in OTHERWISE])
def test_drawings_are_legible_and_say_model_n_and_seeds(name, joined):
    with style.look():
        figure = drawn(name, joined, list(overlaps()))
        check(figure, name)
        said = written(figure)
    assert "tiny" in said
    if name == "layers":
        assert "20 chains" in said and "no seeds" in said
    else:
        assert "n = 4 (2 chains)" in said and "seeds 0, 1" in said
        assert "interval" in said


@pytest.mark.parametrize("name", ["tables", "bridges", "mixture", "agreement", "first-look"])
def test_several_models_leave_the_drawings_legible(name, joined):
    others = ("smollm2-135m", "without-chains")
    more = [
        replace(cell, infos=tuple(replace(info, base=model) for info in cell.infos))
        for model in others
        for cell in joined
    ]
    with style.look():
        check(drawn(name, [*joined, *more]), name)


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in ("layers", "factors")])
def test_drawings_of_the_committed_rows_are_legible(name, committed):
    with style.look():
        try:
            check(drawn(name, committed[1].cells, committed[1].edits, reading.pools()), name)
        except NothingToDrawError:
            pytest.skip(f"no committed rows for {name}")


@pytest.fixture(scope="module")
def undertrained(joined):
    """The same cells of adapters that are right in 90% of their own task."""
    found = cells(together(experiments(own_task=0.9)))
    assert len(found) == len(joined)
    return found


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in ("layers", *OTHERWISE)])
def test_cells_of_undertrained_adapters_are_marked_and_the_note_says_so(name, joined, undertrained):
    marks = []
    for found in (joined, undertrained):
        with style.look():
            figure = drawn(name, found)
            said = written(figure)
        hatched = sum(bool(patch.get_hatch()) for patch in figure.findobj(Rectangle))
        marks.append(len(figure.findobj(Line2D)) + said.count("†") + hatched)
        assert ("an adapter is under 95% right on its own task" in said) == (found is undertrained)
    assert marks[1] > marks[0] + 1


@pytest.mark.parametrize("name", ["first-look", "agreement", "answers", "layers-order", "recycle"])
def test_the_drawings_of_the_pages_are_up_to_date(name, committed, tmp_path):
    """Compared by what is drawn and not by bytes, which may depend on the version of matplotlib."""
    (fresh,) = MEASURED[name].save(Data(cells=committed[1].cells, pools=reading.pools()), tmp_path, ("svg",))
    docs = reading.COMMITTED.parents[1] / "docs"
    for element in ("<path", "<use"):
        assert (docs / f"{name}.svg").read_text().count(element) == fresh.read_text().count(element)
    assert (docs / f"{name}.png").stat().st_size > 50_000


def test_the_same_rows_give_the_same_bytes(joined, tmp_path):
    kinds = ("png", "svg", "pdf")
    once, again = (MEASURED["weights"].save(Data(cells=joined), tmp_path / folder, kinds) for folder in "ab")
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


@pytest.mark.parametrize("name", MEASURED)
def test_a_drawing_without_rows_says_by_name_what_it_needs(name, tmp_path):
    with pytest.raises(NothingToDrawError, match=f"^{name} needs .*rows"):
        MEASURED[name].save(Data(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_rank_correlation_is_one_for_equal_orders_and_resamples_libraries(joined):
    hops = [c for c in joined if c.prediction and c.group == "hop1" and plain(c)]
    assert len({c.share for c in hops}) > 1
    for sign in (1, -1):
        told = [(c, {"correct": (1 + sign * (2 * c.share - 1)) / 2}) for c in hops]
        ours, guess = agreement.agreement("T0", told)
        assert ours.rank.value == pytest.approx(sign) and ours.rank.low <= ours.rank.value <= ours.rank.high
        assert ours.error.value == pytest.approx(0) if sign == 1 else ours.error.value > 0
        assert guess.rank.value != guess.rank.value  # one guess orders nothing


def test_the_toys_edge_is_where_its_margin_is_zero():
    assert weights.turning([0.0, 0.4, 0.6, 1.0], [-1.0, -0.2, 0.2, 1.0]) == pytest.approx(0.5)


def test_every_row_of_the_papers_tables_is_met_by_its_own_cells(joined):
    of_setup = {"setup": 0, "rule": "uniform", "values": []}
    met = tables.matching(joined, paper.tables()["table10"], of_setup)
    assert {(cell.info.rule, cell.ask) for cell in met} == {
        (rule, ask) for rule in ("mean", "linear") for ask in ("direct", "steps")
    }
    alone = {"dataset": "R", "library": "oracle-only", "rule": "alone", "values": []}
    (oracle,) = tables.matching(joined, paper.tables()["table7"], alone)
    assert oracle.ask == "direct" and oracle.info.library == ("oracle",)


# --- the command line ---------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_name_draws_it_and_says_what_it_was_drawn_from(tmp_path):
    merges = [Merge("sum", (tenths / 10, 1 - tenths / 10)) for tenths in (2, 5, 8)]
    swept = together(answered(setup(0, facts=FACTS, known=True, merge=merge)) for merge in merges)
    rows, kept = tmp_path / "rows", tmp_path / "toy.json"
    files.write(rows, swept)
    arguments = ("weights", "--from", rows, "--out", tmp_path / "out", "--format", "svg", "--toy", kept)
    done = run(*arguments, "--fresh")
    assert done.exit_code == 0, done.output
    assert "3 predictions, 3 of them computed now" in done.output
    assert len(store.read(kept)) == 3
    again = run(*arguments)
    assert "0 of them computed now" in again.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.svg"]


def test_a_name_without_rows_is_an_error_and_a_wrong_format_too(tmp_path):
    files.write(tmp_path / "rows", answered(setup(0, facts=FACTS, known=True)))
    done = run("layers", "--from", tmp_path / "rows", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "layers needs" in done.output
    for arguments in (("weights", "--from", tmp_path / "rows"), ("leak",)):
        assert run(*arguments, "--format", "gif").exit_code == 2
    assert run("weights", "--from", tmp_path).exit_code == 2
    assert run("nothing").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_drawing_of_the_theory_is_a_name_too(tmp_path):
    assert run("leak", "--out", tmp_path, "--format", "svg").exit_code == 0
    assert [path.name for path in Path(tmp_path).iterdir()] == ["leak.svg"]
