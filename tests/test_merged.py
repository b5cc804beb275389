"""Predicted beside measured losses of merges: by hand, and what is kept of them."""

import gzip
import json
import math
from itertools import combinations

import numpy as np
import pytest

from predictors import merged
from predictors.agreement import spearman
from results import files
from results.statistics import StatisticsError, member_bootstrap

KEPT = sorted(path for path in merged.MERGES.iterdir() if path.is_dir())


def lines(pairs, predicted, measured):
    """Of pairs of adapters under one merge; the cosine is the number of the pair."""
    for number, pair in enumerate(pairs):
        about = {"forecast": f"forecast-{number}", "merge": "sum"}
        yield {
            **{"kind": "library", "forecast": about["forecast"], "adapters": pair, "known": 10},
            **{"alone": 0.5, "cosine": number, "read": 0.1, "write": 0.1, "names": 0},
        }
        loss = {"loss": predicted[number], "kept": 8, "keeps": [1.0, 0.5]}
        yield {"kind": "predicted", **about, **loss}
        if measured[number] is not None:
            yield {"kind": "measured", **about, "loss": measured[number], "kept": 6}


@pytest.fixture
def folder(tmp_path):
    def write(*given):
        text = "".join(json.dumps(line) + "\n" for line in lines(*given))
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        (path / "merges.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        return path

    return write


PAIRS = [list(pair) for pair in combinations("abcd", 2)]


def test_what_is_not_measured_yet_is_left_out(folder):
    (one,) = merged.merges(folder(PAIRS[:2], [1.0, 2.0], [1.5, None]))
    assert one.adapters == ("a", "b") and one.merge == "sum"
    assert one.lost(one.predicted) == 0.5 and one.lost(one.measured) == 1.0
    assert one.forgotten(one.predicted) == pytest.approx(0.2)
    assert merged.PREDICTORS["what the rule keeps"](one) == 0.25


def test_the_rank_is_spearmans_with_an_interval_over_adapters(folder):
    predicted, measured = [3.0, 1.0, 2.0, 6.0, 5.0, 4.0], [2.0, 1.0, 3.0, 6.0, 4.0, 5.0]
    entries = merged.merges(folder(PAIRS, predicted, measured))
    found = merged.agreement(entries, "sum")
    assert (found.libraries, found.adapters) == (6, 4) and found.apart == pytest.approx(0.2)
    law = found.rank["mixture law"]
    assert law.value == pytest.approx(spearman(np.array(predicted), np.array(measured)))
    assert law.low <= law.value <= law.high
    assert found.rank["cosine"].value == pytest.approx(spearman(np.arange(6), np.array(measured)))
    assert math.isnan(found.rank["read overlap"].value), "all the same is no order"
    with pytest.raises(StatisticsError):
        merged.agreement(entries, "mean")
    for one in entries:
        one.predicted["keeps"] = None
    assert math.isnan(merged.agreement(entries).rank["what the rule keeps"].value)


def test_a_member_drawn_twice_counts_its_items_twice():
    seen = []
    items = [("a", "b"), ("a", "c"), ("b", "c")]
    member_bootstrap(lambda rows: [seen.append(rows) or 0.0], items, seed=0, draws=200)
    counts = {tuple(np.bincount(rows, minlength=3)) for rows in seen}
    # of three draws from a, b, c: each once, or one twice and another once; thrice the same is no item
    assert counts == {(1, 1, 1), (2, 0, 0), (0, 2, 0), (0, 0, 2)}
    with pytest.raises(StatisticsError, match="one at least"):
        member_bootstrap(lambda rows: [0.0], [], seed=0)


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_kept_lines_were_made_at_a_commit_and_each_prediction_once(folder):
    found = files.read(folder, ["merges"]).merges
    origins = [line["provenance"] for line in found if "provenance" in line]
    assert origins and all(len(o["git"]) == 40 and o["modified"] is False for o in origins)
    keys = [(line["forecast"], line["merge"]) for line in found if line["kind"] == "predicted"]
    assert len(keys) == len(set(keys))
    told = merged.diagnosed(folder)
    assert {one["kind"] for one in told["finding"]} >= {"base", "small", "same", "opposite", "alike"}
