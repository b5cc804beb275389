"""What lines on recycled adapters say: cells over targets, paired differences, claims, and predictions."""

import math

import numpy as np
import pytest

from figures import registry, style
from figures.registry import Data, NothingToDrawError
from results import files
from results.recycled import ABOVE, CLAIMS, LAW, UNDECIDED, UNSEEN, Pool, difference, read
from results.rows import RowsError

FACTS = 8
#: By pool the facts that its merges answer rightly, of FACTS; the overlap that the toy says.
RIGHT = {"target": 8, "kin": 5, "strangers": 1}
OVERLAP = {"target": 1.0, "kin": 0.5, "strangers": 0.1}
CONTROLS = {"target": ("drawn", "norms"), "kin": (), "strangers": ("drawn-alone", "norms-alone")}


def measured(selected, right, loss, **about):
    """Two wordings a fact, both right for the first so many facts."""
    good = [int(fact < right) for fact in range(FACTS) for _ in range(2)]
    return {
        "kind": "measured",
        "selected": selected,
        **about,
        "right": good,
        "logprob": [-0.1 if one else -4.0 for one in good],
        "examples_loss": loss,
        "examples_right": right / FACTS,
    }


def lines(targets=3, examples=(4, 16)):
    for names in range(targets):
        for count in examples:
            selected = f"selected-{names}-{count}"
            yield {
                "kind": "task",
                "selected": selected,
                "base": "toy",
                "names": names,
                "seed": 0,
                "examples": count,
                "pool": list("abcdefg"),
                "clusters": [f"y{fact}" for fact in range(FACTS) for _ in range(2)],
                "shown": [fact < 3 for fact in range(FACTS) for _ in range(2)],
            }
            for control, right in (("base", 0), ("target", 8), ("kin", 4), ("new", 6)):
                method = "trained" if control == "new" else "alone"
                yield measured(selected, right, 10.0 if right == 0 else 1.0, method=method, control=control)
            for pool, right in RIGHT.items():
                for rule, number in (("random", 5), ("loss", 5), ("random", 6)):
                    choice = {"pool": pool, "rule": rule, "count": number}
                    overlap = {"overlap": OVERLAP[pool] + 0.01 * names, "by_chance": number / 49}
                    yield {"kind": "selected", "selected": selected, **choice, **overlap, "adapters": []}
                    for method in ("adaptive", LAW):
                        for control in ("recycled", *(CONTROLS[pool] if rule == "random" else ())):
                            own = right if control == "recycled" else 8 if pool == "target" else 0
                            line = measured(selected, own, 10 - own, **choice, method=method, control=control)
                            if method == LAW:
                                line |= {"foretold_right": line["right"], "foretold_logprob": line["logprob"]}
                            yield line


@pytest.fixture(scope="module")
def pool():
    return Pool(lines())


def test_a_cell_is_over_all_targets(pool):
    cell = pool.cell(4, "adaptive", pool="kin", rule="random", count=6)
    assert len(cell.answers) == 3 and pool.targets == [f"names {k}, seed 0" for k in range(3)]
    assert cell.mean() == pytest.approx(5 / 8)
    assert cell.mean("loss") == pytest.approx((5 * 0.1 + 3 * 4) / 8)
    assert cell.mean(where=UNSEEN) == pytest.approx(2 / 5)
    low, high = cell.interval()
    assert low < 5 / 8 < high
    assert cell.explained(pool.single(4, "base")) == pytest.approx([0.5] * 3)


def test_differences_are_paired_and_tested_over_facts(pool):
    first, second = (
        pool.cell(4, "adaptive", pool=name, rule="random", count=6) for name in ("kin", "strangers")
    )
    found = difference(first, second)
    assert found.difference == pytest.approx(0.5) and found.targets == pytest.approx((0.5,) * 3)
    # 24 facts, of which 12 differ, all the same way: 2 of 2^12 signs are as far out
    assert found.p == pytest.approx(2 / 2**12)
    assert found.verdict == ABOVE and found.points.startswith("+50 [")
    assert difference(second, second).verdict == UNDECIDED
    assert difference(second, first).difference == pytest.approx(-0.5)


def test_cells_of_other_targets_are_not_compared(pool):
    fewer = Pool(lines(targets=2))
    with pytest.raises(RowsError, match="same targets"):
        difference(pool.single(4, "new"), fewer.single(4, "new"))


def test_every_claim_is_judged_as_these_lines_were_made():
    judged = {(one.says, one.examples): one.judged for one in Pool(lines(targets=5)).claims("adaptive")}
    assert len(judged) == 2 * len(CLAIMS)
    for (says, first, second, _), examples in ((c, e) for c in CLAIMS for e in (4, 16)):
        said = judged[says, examples]
        if {first.get("control"), second.get("control")} & {"drawn-alone", "norms-alone"} and second.get(
            "control"
        ) is None:
            assert said == "not refuted"  # 0 against 1 of 8 facts: 5 that differ are too few
        elif "matters little" in says or says.startswith("The same"):
            assert said == "not refuted"
        elif "not above a new adapter" in says:
            assert said == "not refuted"  # 5 of 8 facts against 6
        elif says.startswith("They are with strangers"):
            assert said == "not shown"  # 1 of 8 facts against none
        elif "beside the target's own" in says:
            assert said == "not refuted"
        else:
            assert said == "as claimed", says


def test_a_difference_the_other_way_refutes():
    def turned():
        for line in lines():
            if line["kind"] == "measured" and line.get("pool") == "kin":
                line = {**line, "right": [1] * 2 * FACTS}
            elif line["kind"] == "measured" and line["control"] == "new":
                line = {**line, "right": [0] * 2 * FACTS}
            yield line

    found = {one.says: one.judged for one in Pool(turned()).claims("adaptive")}
    assert (
        found["Without the target's own adapter they are not above a new adapter on the same examples."]
        == "refuted"
    )


def test_holms_correction_is_over_all_claims(pool):
    found = pool.claims("adaptive")
    least = min(found, key=lambda one: one.found.p).found
    assert least.adjusted == pytest.approx(min(1.0, least.p * len(found)))


def test_predictions_are_ranked_against_what_is_explained(pool):
    every = pool.theory(LAW, tuple(RIGHT))
    assert every.cells == 3 * 3 * 3 * 2 and every.rank > 0.9 and every.low > 0.9
    expected = np.mean([abs(OVERLAP[p] + 0.01 * k - RIGHT[p] / 10) for p in RIGHT for k in range(3)])
    assert every.apart == pytest.approx(expected)
    assert math.isnan(pool.theory(LAW, ("kin",), "overlap").rank)  # all are explained alike
    law = pool.law("right", tuple(RIGHT))
    assert law.rank == pytest.approx(1) and law.apart == 0
    assert math.isnan(Pool(lines(targets=1)).law("right", tuple(RIGHT)).low)


def test_what_was_not_measured_is_left_out_or_named(pool):
    partly = Pool(line for line in lines() if line.get("pool") != "strangers")
    assert 0 < len(partly.claims("adaptive")) < len(pool.claims("adaptive"))
    with pytest.raises(RowsError, match="was not measured with 9 examples"):
        pool.single(9, "base")
    with pytest.raises(RowsError, match="0 cells of ties"):
        pool.cell(4, "ties")


def test_kept_lines_come_back(tmp_path, pool):
    kept = files.Measurements(recycled=list(lines()))
    files.write(tmp_path, kept)
    assert list(read(tmp_path).cells) == list(pool.cells)
    edits = [{"kind": "overlap", "model": "toy", "dataset": "R"}]
    files.write(tmp_path / "none", files.Measurements(edits=edits))
    with pytest.raises(RowsError, match="no line on recycled"):
        read(tmp_path / "none")


def test_the_drawing_shows_every_share(pool):
    figure = registry.figures()["recycle"]
    with style.look():
        left, right = figure.from_data(Data(pools=[pool])).axes
    drawn = {line.get_color(): list(line.get_ydata()) for line in left.lines if line.get_marker() != "None"}
    for name, colour in (("target", style.BLUE), ("kin", style.ORANGE), ("strangers", style.VERMILION)):
        assert drawn[colour] == pytest.approx([RIGHT[name] / FACTS] * 2)
    marks = [y for line in right.lines[1:] for y in line.get_ydata()]
    assert len(marks) == 3 * 3 * 3 * 2 and set(np.round(marks, 6)) == {0.8, 0.5, 0.1}
    with pytest.raises(NothingToDrawError, match="run recycle"):
        figure.from_data(Data())
