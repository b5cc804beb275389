"""Predictions that are kept before anything is measured: by whom, of what, once."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from llm_experiments.__main__ import cli
from predictors import curves, registered
from predictors.scale_curves import ScaleCurve
from predictors.tiers import read, write
from results.cells import RIGHT
from toytransformer.compositions import Merge
from toytransformer.compositions.setups import setup


@pytest.fixture(scope="module")
def planned():
    specs = [setup(0, facts=3).with_merge(Merge(rule)) for rule in ("sum", "mean")]
    return [registered.Planned(spec, "made", "d", "R", 1, None) for spec in specs]


def cell(*places):
    fields = ("spec_hash", "digest", "dataset", "names")
    infos = tuple(SimpleNamespace(**dict(zip(fields, place, strict=True))) for place in places)
    return SimpleNamespace(infos=infos)


def test_the_first_prediction_stands_and_names_its_commit(tmp_path, planned):
    first = registered.register(planned[:1], [], ["T0", "T2"], "a" * 40)
    assert [line["tier"] for line in first] == ["T0"] and first[0]["git"] == "a" * 40  # T2 lacks its base
    assert sum(first[0]["asked"]["hop1/direct"].values()) == pytest.approx(1)
    again = registered.register(planned, first, ["T0"], "b" * 40)
    assert again[:1] == first and [line["git"][0] for line in again] == ["a", "b"]
    write(tmp_path / "kept.jsonl", again)
    assert read(tmp_path / "kept.jsonl") == json.loads(json.dumps(again))
    with pytest.raises(ValueError, match="there is no predictor 'T9'"):
        registered.register(planned, [], ["T9"], "c")


def test_what_a_tier_lacks_can_be_registered_once_it_is_measured(planned):
    unmeasured = replace(planned[0], base=SimpleNamespace(alone=None))
    assert registered.register([unmeasured], [], ["T3"], "a") == []
    points = {0.5: (1, 0, 0, 0), 1.0: (1, 1, 1, 0)}
    curve = ScaleCurve.by_cluster({weight: {"chain 1": right} for weight, right in points.items()})
    wrong = ScaleCurve.by_cluster(
        {weight: {"chain 1": [1 - r for r in right]} for weight, right in points.items()}
    )
    by_kind = {kind: {RIGHT: curve, "other": wrong} for kind in curves.HOPS}
    alone = curves.Curves(dict.fromkeys(curves.identities(planned[0].spec), by_kind), k=0.5)
    (line,) = registered.register([replace(planned[0], base=SimpleNamespace(alone=alone))], [], ["T3"], "a")
    assert line["asked"][curves.CHAIN][RIGHT] == pytest.approx(0.5 * 0.75**2)


def test_a_cell_is_looked_at_unless_all_of_it_is_registered(planned):
    known = registered.Known.of(registered.register(planned[:1], [], ["T0"], "a"))
    (place,) = known.places
    assert not known.looked_at(cell(place)) and not known.looked_at(cell(place), "T0")
    assert known.looked_at(cell(place, (place[0], "d", "R", 0)))  # another draw was there
    other = cell((planned[1].spec.spec_hash, *place[1:]))
    assert known.looked_at(other) and known.looked_at(other, "T0")


def test_a_tier_that_came_later_did_not_predict_what_others_had(planned):
    """It has seen the draws of names that they were registered for, unless it was for one of them as well."""
    lines = registered.register(planned, [], ["T0"], "a")
    late = {**lines[0], "tier": "T4"}
    first, second = (cell((line["spec_hash"], "d", "R", 1)) for line in lines)
    assert registered.Known.of(lines).tiers([first, second]) == ("T0",)
    assert registered.Known.of([*lines, late]).tiers([first, second]) == ("T0", "T4")  # second is routed, say
    refused = {**{k: v for k, v in late.items() if k != "asked"}, "refused": "why"}
    assert registered.Known.of([*lines, refused]).looked_at(first, "T4")


def test_what_is_committed_was_predicted_by_committed_code():
    lines = read(registered.REGISTERED)
    assert all(len(line["git"]) == 40 for line in lines)
    assert all(("asked" in line) != ("refused" in line) for line in lines)


def test_an_unknown_experiment_is_refused():
    done = CliRunner().invoke(cli, ["register", "nothing", "--model", "embedded"])
    assert done.exit_code != 0
