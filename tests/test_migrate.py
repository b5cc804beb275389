"""Rows of earlier code carried over: nothing is lost, and what does not fit together is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_experiments.__main__ import cli
from llm_experiments.domains.two_hop.migrate import carried_over, identity, migrate, read_lines
from llm_experiments.embedded.corpus import BaseWorld
from results import files
from results.files import Measurements
from results.rows import RowsError
from toytransformer.compositions import Composition

#: A few cells as earlier code kept them: of a base with a known world, of one without, of ten adapters.
EARLIER = Path(__file__).parent / "data" / "earlier-rows.jsonl.gz"
WORLD = Path(__file__).parents[1] / "llm_experiments" / "embedded" / "weights" / "world.json"
STEPS = ("hop1_right", "bridge_copied", "hop2_right")


def rows(known: bool) -> list[dict]:
    return [row for row in read_lines(EARLIER) if (row["source"] == "embedded") == known]


def carried(old: list[dict], known: bool) -> Measurements:
    return carried_over(old, world=BaseWorld.read(WORLD) if known else None)


def restored(found: Measurements) -> list[dict]:
    """The rows as earlier code had them."""
    old = []
    items = {task: {item.id: item for item in items} for task, items in found.items.items()}
    for row in found.rows:
        info = found.cells[row.cell]
        item = items[info.items][row.item]
        fields = ("dataset", "split", "dtype", "layers", "seed", "control")
        regime = {name: getattr(info, name) for name in fields}
        regime |= {"model": info.digest, "names_seed": info.names}
        regime = {name: value for name, value in regime.items() if value is not None}
        regime |= {name: info.chosen[name] for name in ("temperature",) if name in info.chosen}
        regime |= {**info.variant, "template": item.extra["template"]}
        regime |= {name: row.marks[name] for name in STEPS if name in row.marks}
        old.append(
            {
                "composition": info.task,
                "setting": dict(info.setting),
                "spec_hash": info.spec_hash,
                "source": info.base,
                "adapters": list(info.library),
                "rule": info.rule,
                "weights": None if info.weights is None else list(info.weights),
                "options": dict(info.options),
                "regime": regime,
                "group": item.group,
                "prompt": item.extra["prompt"],
                "decode": item.ask,
                "correct": item.roles.get("correct"),
                "bridge": item.roles.get("bridge"),
                "old": item.roles.get("world_old", item.roles.get("old")),
                "answer": row.answer,
                "shares": row.shares,
                "mixture": {},
                "spectral_gap": info.spectral_gap,
                "question": item.question,
                "text": row.text,
                "exact": row.marks["exact"],
                "contains": row.marks["contains"],
                "logprobs": row.logprobs,
                "provenance": dict(info.provenance),
            }
        )
    return old


@pytest.mark.parametrize("known", [True, False])
def test_every_field_of_every_row_is_there_again(known):
    old = rows(known)
    assert len(old) > 300
    assert restored(carried(old, known)) == old


@pytest.mark.parametrize("known", [True, False])
def test_specs_are_those_that_rows_were_measured_by(known):
    found = carried(rows(known), known)
    for spec_hash, spec in found.specs.items():
        assert Composition.from_json(json.dumps(spec)).spec_hash == spec_hash
    assert {info.spec_hash for info in found.cells.values()} == set(found.specs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec_hash": "0123456789abcdef"}, "other code"),
        ({"question": "Where?"}, "other names or templates"),
        ({"correct": "x9"}, "not asked"),
        ({"mixture": {"x1": 1.0}}, "no measured row"),
        ({"shares": {"correct": 0.5}}, "sum to 1"),
    ],
)
def test_rows_that_contradict_their_composition_are_refused(change, message):
    old = rows(True)
    old[0] = {**old[0], **change}
    with pytest.raises(RowsError, match=message):
        carried(old, True)


def test_a_row_without_a_field_is_refused():
    old = rows(False)
    del old[3]["logprobs"]
    with pytest.raises(RowsError, match=r"row 4 .*logprobs"):
        carried(old, False)


def test_cells_measured_twice_by_different_code_are_refused():
    old = rows(False)
    again = [{**row, "provenance": {"git": "another"}} for row in old]
    with pytest.raises(RowsError, match="there twice"):
        carried(old + again, False)


def test_kept_rows_are_carried_over_with_what_stands_beside_them(tmp_path):
    old = rows(False)
    lines = {
        "m.jsonl.gz": old,
        "m-cells.jsonl.gz": [
            {"kind": "adapter", "cell": "adapter-1", "own_task": {"share": 0.5}},
            {"kind": "temperature", "cell": "temperature-1", "chosen": 0.1, "sweep": []},
        ],
        "m-edits.jsonl.gz": [{"kind": "edit", "layer": 1}],
    }
    for name, several in lines.items():
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in several).encode()))
    links = tmp_path / "links.json"
    merged = next(row for row in old if len(row["adapters"]) == 2)
    links.write_text(json.dumps({identity(merged): ["adapter-1", "adapter-2"]}))
    new = tmp_path / "new"
    done = CliRunner().invoke(cli, ["migrate", f"{tmp_path}/m.jsonl.gz", str(new), "--links", str(links)])
    assert done.exit_code == 0, done.output
    found = files.read(new)
    assert restored(found) == old
    assert [i.adapters for i in found.cells.values() if i.adapters] == [("adapter-1", "adapter-2")]
    assert found.adapters == {"adapter-1": {"address": "adapter-1", "own_task": {"share": 0.5}}}
    assert found.sweeps["temperature-1"]["chosen"] == 0.1 and found.edits == [{"kind": "edit", "layer": 1}]


def test_a_run_says_itself_what_its_cells_merged(tmp_path):
    old = rows(False)
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(r) + "\n" for r in old).encode())
    )
    cell, adapter = tmp_path / "cells" / "answers-1", tmp_path / "cells" / "adapter-1"
    cell.mkdir(parents=True)
    adapter.mkdir()
    needs = ["adapter-1", "random-adapter-2", "temperature-3", "answers-4"]
    merged = next(row for row in old if len(row["adapters"]) == 2)
    (cell / "spec.json").write_text(json.dumps({"needs": needs}))
    (cell / "rows.jsonl").write_text(json.dumps(merged) + "\n")
    names = [{"name": "adapter-1"}, {"name": "adapter-5"}, {"name": "answers-1"}]
    (tmp_path / "run.json").write_text(json.dumps({"runs": [{"cells": names}]}))
    (adapter / "seal.json").write_text(json.dumps({"meta": {"label": "one", "seconds": 2.0}}))
    (adapter / "spec.json").write_text(json.dumps({"spec": {"training": {"rank": 1}, "seed": 0}}))
    metrics = {"steps": 1, "examples": 2, "loss": 0.5, "own_task": {"share": 1.0}, "more": 3}
    (adapter / "metrics.json").write_text(json.dumps(metrics))
    found = migrate(tmp_path)
    assert {i.adapters for i in found.cells.values()} == {(), ("adapter-1", "random-adapter-2")}
    assert list(found.adapters) == ["adapter-1"] and found.adapters["adapter-1"]["loss"] == 0.5
