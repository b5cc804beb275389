"""Theory beside measurement: rows become cells, meet their predictions, and drawings say what they show."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.text import Text

from figures import registry, store, style
from figures.__main__ import main
from figures.drawings import agreement, tables, weights
from figures.measured import cells, toy
from figures.measured.cells import RowsError
from figures.registry import Data, NothingToDrawError
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from results.statistics import wilson
from results.tables import paper
from toytransformer.compositions import Merge, Record, catalogue, write_jsonl
from toytransformer.compositions.setups import setup
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

MEASURED = {name: figure for name, figure in registry.figures().items() if figure.measured}
FACTS = 2
PAIR, TRIPLE = ("hop1", "hop2"), ("hop1", "hop2", "oracle")


def answered(composition, known, *, model="tiny", seeds=(0, 1), library=None, **regime):
    """Rows as a model would leave them that answers as the toy does, two wordings a question, two seeds."""
    data = "R" if known else "F"
    found = []
    for record, seed, template in itertools.product(
        predict(composition, FullLimit()).records(), seeds, (48, 49)
    ):
        scored = None
        if record.group == "two-hop" and record.decode == "direct":
            roles = {role: getattr(record, role) for role in ("correct", "bridge", "old")}
            scored = {f"{r}:{name}": -record.mixture.get(name, 0.0) - 1 for r, name in roles.items() if name}
        found.append(
            replace(
                record,
                source=model,
                adapters=record.adapters if library is None else library,
                regime={"dataset": data, "layers": "mlp", "seed": seed, "template": template, **regime},
                text=f"{record.answer}",
                logprobs=scored,
            )
        )
    return found


def experiments():
    """Small rows of every experiment that a drawing needs."""
    for known in (True, False):
        for rule in ("mean", "linear", "sum"):
            yield from answered(setup(0, facts=FACTS, known=known, merge=Merge(rule)), known)
        for name in ("hop1", "oracle", "mixed"):
            yield from answered(setup(0, facts=FACTS, known=known, library=(name,)), known, control=name)
        triple = setup(0, facts=FACTS, known=known, library=TRIPLE, merge=Merge("mean"))
        yield from answered(triple, known)
        for tenths in range(0, 11, 2):
            for pair in {(tenths / 10, 1 - tenths / 10), (1.0, tenths / 5)}:  # (1, 0) is in both
                merge = Merge("sum", pair)
                yield from answered(setup(0, facts=FACTS, known=known, merge=merge), known)
    plain = setup(0, facts=FACTS, known=True)
    yield from answered(plain, True, seeds=(None,), library=(), control="base")
    yield from answered(plain, True, control="random")
    yield from answered(setup(2, facts=FACTS, known=True, merge=Merge("mean")), True)
    yield from answered(setup(2, facts=FACTS, known=True, merge=Merge("mean")), True, steps=1200)
    fresh = setup(0, facts=FACTS, known=False, merge=Merge("linear"))
    for start, form in itertools.product(("shared", "independent"), ("as trained", "svd")):
        yield from answered(fresh, False, initial_a=start, gauge=form)


def overlaps():
    """Rows of closed-form edits."""
    for layer, name in itertools.product(range(3), ("F", "R")):
        row = {"kind": "overlap", "source": "tiny", "dataset": name, "layer": layer, "metric": "raw"}
        row |= {"facts": "alone", "chains": 20, "unrelated": 32, "leak1": 0.2, "leak2": 0.3}
        for c in ("c1", "c2"):
            row |= {f"{c}_own": 0.3, f"{c}_other": 0.25, f"{c}_low": 0.01, f"{c}_high": 0.09}
            row |= {f"toy_{c}_own": 0.4, f"toy_{c}_other": 0.3}
        yield row | {"toy_leak1": 1 / math.pi}
    yield {
        "kind": "over layers", "source": "tiny", "dataset": "F", "layers": 3, "metric": "raw",
        "facts": "alone", "c1_p": 0.01, "c2_p": 0.5,
    }  # fmt: skip


@pytest.fixture(scope="module")
def records():
    return list(experiments())


@pytest.fixture(scope="module")
def joined(records):
    return toy.join(cells.cells(records), [])[0]


def of(found, **wanted):
    (cell,) = [c for c in found if all(getattr(c.place, key) == value for key, value in wanted.items())]
    return cell


# --- rows to cells ------------------------------------------------------------------------------------------


def test_a_cell_counts_its_rows_and_pooling_keeps_the_items_of_one_seed(records):
    wanted = {"rule": "mean", "library": PAIR, "composition": "setup-0", "dataset": "R", "decode": "steps"}
    both = [c for c in cells.cells(records) if all(getattr(c.place, k) == v for k, v in wanted.items())]
    assert [(cell.seeds, cell.items, cell.chains) for cell in both] == [((0,), 4, 2), ((1,), 4, 2)]
    (pooled,) = cells.pooled(both)
    assert pooled.seeds == (0, 1) and pooled.items == 4 and pooled.shares == both[0].shares
    low, high = wilson(4 * pooled.shares["correct"], 4)
    assert pooled.interval() == (low, high)


def test_shares_are_means_over_seeds(records):
    rows = [r for r in records if r.rule == "mean" and r.composition == "setup-2" and "steps" not in r.regime]
    rows = [replace(r, shares={"other": 1.0}) if r.regime["seed"] else r for r in rows]
    hop = of(cells.pooled(cells.cells(rows)), group="hop1")
    assert hop.shares["other"] == 0.5 and math.fsum(hop.shares.values()) == pytest.approx(1)


def test_rows_that_two_runs_share_count_once_and_must_agree(records):
    once = cells.cells(records[:8])
    assert cells.cells([*records[:8], *records[:8]]) == once
    with pytest.raises(RowsError, match="two answers"):
        cells.cells([*records[:8], replace(records[0], text="something else")])


def test_seeds_of_unequal_size_are_refused(records):
    rows = [r for r in records if r.regime["seed"] == 0 or r.regime.get("template") == 48]
    with pytest.raises(RowsError, match="finish the run"):
        cells.pooled(cells.cells(rows))


def test_files_are_read_line_by_line_and_what_is_no_record_is_named(records, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", records[:40])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(next(overlaps())) + "\n")
    found, edits = cells.read([tmp_path / "rows.jsonl"])
    assert found == cells.cells(records[:40]) and edits == [next(overlaps())]
    (tmp_path / "broken.jsonl").write_text('{"rule": "sum"}\n')
    with pytest.raises(RowsError, match=r"broken\.jsonl', row 1"):
        cells.read([tmp_path / "broken.jsonl"])
    (tmp_path / "no.jsonl.gz").write_text("no gzip")
    with pytest.raises(RowsError, match="cannot be read"):
        cells.read([tmp_path / "no.jsonl.gz"])


# --- joining ------------------------------------------------------------------------------------------------


def test_the_join_refuses_rows_of_another_composition(records):
    for changed in (
        {"spec_hash": "0" * 16},
        {"setting": {**records[0].setting, "known": False}},
        {"rule": "sum", "options": {}},
    ):
        with pytest.raises(RowsError, match="spec hash"):
            toy.join(cells.cells([replace(records[0], **changed)]), [])


def test_relabelled_rows_meet_the_prediction_of_their_own_relabelling():
    sigma = list(range(3))
    random.Random(2).shuffle(sigma)
    assert sigma != [0, 1, 2]
    rows = answered(setup(0, facts=3, sigma=tuple(sigma)), True, relabelling=2)
    found, (row,) = toy.join(cells.cells(rows), [])
    assert row["spec_hash"] == rows[0].spec_hash and all(cell.toy for cell in found)


@pytest.mark.parametrize("name", ["table1", "contrast", "table2", "table12", "relabel", "gauge"])
def test_whatever_is_planned_to_be_measured_can_be_joined(name):
    small = replace(PROFILES["small"], facts=3, bridge_facts=2, library_facts=2, train=(0,), fit_facts=1)
    plan = EXPERIMENTS[name].plan(Base("tiny", "0" * 16), small, (0,))
    for step in (plan.steps[address] for address in plan.wanted):
        scene = step.scene.read(plan)
        spec = scene.composition
        asked = spec.questions[0]
        record = Record(
            spec_hash=spec.spec_hash,
            setting=dict(spec.setting),
            **{key: getattr(spec.merge, key) for key in ("rule", "weights")},
            **{key: getattr(asked, key) for key in ("group", "decode", "correct", "bridge", "old")},
            composition=spec.name,
            source="tiny",
            adapters=tuple(adapter.name for adapter in spec.adapters) if step.library else (),
            options=spec.merge.option_dict,
            regime={**scene.regime, "dataset": scene.lexicon.dataset},
            prompt=str(asked.prompt),
            answer=None,
            shares={"other": 1.0},
        )
        (found,) = cells.cells([record])
        assert toy.composition(found.place) == spec


def test_a_model_that_answers_as_the_toy_does_agrees_with_it_everywhere(joined):
    assert {cell.place.control for cell in joined if cell.toy is None} == {"base", "random"}
    for cell in joined:
        if cell.toy and not cell.toy["tied"]:
            for outcome, share in cell.shares.items():
                assert cell.toy["shares"].get(outcome, 0.0) == pytest.approx(share, abs=1e-6)


def test_margins_are_those_of_the_outputs(joined):
    wanted = {"composition": "setup-0", "rule": "mean", "library": PAIR, "dataset": "R", "variant": ()}
    pooled = [c for c in cells.pooled(joined) if c.place.weights is None]
    direct = of(pooled, group="two-hop", decode="direct", **wanted).toy
    outputs = direct["outputs"]
    assert direct["margin"] == pytest.approx(outputs["correct"] - outputs["old"], abs=1e-5)
    hops = [of(pooled, group=g, decode="direct", **wanted).toy["margin"] for g in ("hop1", "hop2")]
    assert of(pooled, group="two-hop", decode="steps", **wanted).toy["margin"] == min(hops)


def test_kept_predictions_are_used_and_only_missing_ones_computed(records):
    some = cells.cells(records[:8])
    _, rows = toy.join(some, [])
    doubtful = [{**row, "asked": {k: {**v, "margin": 7.0} for k, v in row["asked"].items()}} for row in rows]
    counted = []
    again, _ = toy.join(some, doubtful, tick=lambda *done: counted.append(done))
    assert {cell.toy["margin"] for cell in again} == {7.0} and not counted
    assert toy.lacking(rows, []) == 1 and toy.lacking(rows, rows) == 0


def test_what_the_toy_cannot_merge_has_no_prediction_and_the_reason_is_kept():
    graph = catalogue.build("library-disjoint", facts=3, merge=Merge("linear"))
    steps = tuple(replace(asked, decode="steps") for asked in graph.questions)
    spec = replace(graph, questions=(*graph.questions, *steps))
    (rank, *others) = {len(adapter.facts) for adapter in spec.adapters}
    assert others, f"all adapters hold {rank} facts"
    refused = toy.predicted(spec)
    assert "needs equal ranks" in refused["refused"] and "asked" not in refused
    rows = [
        Record(
            spec_hash=spec.spec_hash,
            setting=dict(spec.setting),
            rule="linear",
            weights=None,
            **{key: getattr(asked, key) for key in ("group", "decode", "correct", "bridge", "old")},
            composition=spec.name,
            source="tiny",
            adapters=tuple(adapter.name for adapter in spec.adapters),
            options={},
            regime={"dataset": "F", "seed": 0},
            prompt=str(asked.prompt),
            answer=None,
            shares={"other": 1.0},
        )
        for asked in spec.questions
    ]
    found, kept = toy.join(cells.cells(rows), [])
    assert kept == [refused] and all(cell.toy is None for cell in found)
    assert toy.join(cells.cells(rows), kept)[1] == [refused]  # not computed anew


# --- what is committed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    return cells.read(cells.committed())


def test_committed_predictions_are_those_of_the_committed_rows(committed):
    """Else: python -m figures all --fresh --toy figures/data/toy_rows.json"""
    kept = toy.read()
    found, rows = toy.join(committed[0], kept)
    assert toy.lacking(rows, kept) == 0
    refused = {row["spec_hash"] for row in rows if "refused" in row}
    for cell in found:
        predicted = toy.predictable(cell.place) and cell.place.spec_hash not in refused
        assert (cell.toy is not None) == predicted
    assert {row["provenance"]["modified"] for row in kept} == {False}


def test_committed_predictions_are_what_is_computed_now(committed):
    kept = {row["spec_hash"]: row for row in toy.read()}
    places = {c.place.spec_hash: c.place for c in committed[0] if toy.predictable(c.place)}
    cheap = [place for hash_, place in places.items() if kept[hash_].get("tied") is False][:3]
    assert cheap
    for place in cheap:
        old = kept[place.spec_hash]
        fresh = json.loads(json.dumps(toy.predicted(toy.composition(place))))
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


def drawn(name, found, edits=()):
    figure = MEASURED[name].from_data(Data(cells=found, edits=edits))
    assert figure.get_figwidth() in (style.COLUMN, style.PAGE)
    return figure


def written(figure) -> str:
    return " ".join(text.get_text() for text, _ in texts(figure)).replace("\n", " ").replace("\xa0", " ")


@pytest.mark.parametrize("name", MEASURED)
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


@pytest.mark.parametrize("name", ["tables", "bridges", "mixture", "agreement"])
def test_several_models_leave_the_drawings_legible(name, joined):
    others = ("smollm2-135m", "without-chains")
    more = [replace(c, place=replace(c.place, model=model)) for model in others for c in joined]
    with style.look():
        check(drawn(name, [*joined, *more]), name)


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in ("layers", "factors")])
def test_drawings_of_the_committed_rows_are_legible(name, committed):
    found, _ = toy.join(committed[0], toy.read())
    with style.look():
        try:
            check(drawn(name, found, committed[1]), name)
        except NothingToDrawError:
            pytest.skip(f"no committed rows for {name}")


@pytest.mark.parametrize("name", ["first-look", "answers"])
def test_the_drawings_of_the_pages_are_up_to_date(name, committed, tmp_path):
    """Compared by what is drawn and not by bytes, which may depend on the version of matplotlib."""
    found, _ = toy.join(committed[0], toy.read())
    (fresh,) = MEASURED[name].save(Data(cells=found), tmp_path, ("svg",))
    docs = cells.COMMITTED.parents[1] / "docs"
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
    hops = [c for c in cells.pooled(joined) if c.toy and c.place.group == "hop1" and not c.toy["tied"]]
    as_predicted = [replace(c, shares={**c.shares, "correct": (c.toy["margin"] + 2) / 4}) for c in hops]
    rho, low, high = agreement.correlation(as_predicted)
    assert rho == pytest.approx(1) and low <= high == pytest.approx(1)
    opposite = [replace(c, shares={**c.shares, "correct": -c.toy["margin"]}) for c in hops]
    assert agreement.correlation(opposite)[0] == pytest.approx(-1)


def test_the_toys_edge_is_where_its_margin_is_zero():
    assert weights.turning([0.0, 0.4, 0.6, 1.0], [-1.0, -0.2, 0.2, 1.0]) == pytest.approx(0.5)


def test_every_row_of_the_papers_tables_is_met_by_its_own_cells(joined):
    found = [c for c in cells.pooled(joined) if tables.as_printed(c.place)]
    met = tables.matching(found, paper()["table10"], {"setup": 0, "rule": "uniform", "values": []})
    assert {(c.place.rule, c.place.decode) for c in met} == {
        (rule, decode) for rule in ("mean", "linear") for decode in ("direct", "steps")
    }
    (oracle,) = tables.matching(
        found, paper()["table7"], {"dataset": "R", "library": "oracle-only", "rule": "alone", "values": []}
    )
    assert oracle.place.decode == "direct" and oracle.place.library == ("oracle",)


# --- the command line ---------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_name_draws_it_and_says_what_it_was_drawn_from(records, tmp_path):
    rows, kept = tmp_path / "rows.jsonl", tmp_path / "toy.json"
    given = [record for record in records if record.weights]
    count = len({record.spec_hash for record in given})
    write_jsonl(rows, given)
    arguments = ("weights", "--from", rows, "--out", tmp_path / "out", "--format", "svg", "--toy", kept)
    done = run(*arguments, "--fresh")
    assert done.exit_code == 0, done.output
    assert f"{count} predictions, {count} of them computed now" in done.output
    assert len(store.read(kept)) == count
    again = run(*arguments)
    assert "0 of them computed now" in again.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.svg"]


def test_a_name_without_rows_is_an_error_and_a_wrong_format_too(records, tmp_path):
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, records[:8])
    done = run("layers", "--from", rows, "--out", tmp_path / "out")
    assert done.exit_code != 0 and "layers needs" in str(done.exception)
    assert run("weights", "--from", rows, "--format", "gif").exit_code == 2
    assert run("leak", "--format", "gif").exit_code == 2
    assert run("nothing").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_drawing_of_the_theory_is_a_name_too(tmp_path):
    assert run("leak", "--out", tmp_path, "--format", "svg").exit_code == 0
    assert [path.name for path in Path(tmp_path).iterdir()] == ["leak.svg"]
