"""Kept answers read anew: the base's own answer to an item is the old one, for every model alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_experiments.__main__ import cli
from llm_experiments.domains.two_hop.migrate import carried_over, read_lines
from llm_experiments.domains.two_hop.rescore import rescored
from llm_experiments.embedded.corpus import BaseWorld
from results import files, frame
from results.files import Measurements
from results.frame import select
from results.rows import RowsError

EARLIER = Path(__file__).parent / "data" / "earlier-rows.jsonl.gz"
DATA = Path(__file__).parents[1] / "llm_experiments" / "data"
WORLD = BaseWorld.read(Path(__file__).parents[1] / "llm_experiments" / "embedded" / "weights" / "world.json")


def earlier(known: bool) -> Measurements:
    """Base and merged cells of earlier code on real names; the base was not asked the others."""
    old = [row for row in read_lines(EARLIER) if (row["source"] == "embedded") == known]
    old = [row for row in old if row["regime"]["dataset"] == "R"]
    return carried_over(old, world=WORLD if known else None)


def right(found: Measurements) -> list[tuple[str, float, float]]:
    return [(row.item, row.shares["correct"], row.shares["bridge"]) for row in found.rows]


@pytest.mark.parametrize("known", [True, False])
def test_texts_right_answers_and_bridges_stay(known):
    old = earlier(known)
    new = rescored(old, WORLD)
    assert [row.text for row in new.rows] == [row.text for row in old.rows]
    assert right(new) == right(old)
    numbers = [set((row.logprobs or {}).values()) for row in old.rows]
    assert [set((row.logprobs or {}).values()) for row in new.rows] == numbers


@pytest.mark.parametrize("known", [True, False])
def test_what_the_base_names_is_old_to_itself_and_to_merges_that_name_it(known):
    new = rescored(earlier(known), WORLD)
    cells = frame.of(new).groups()
    for asked in ("two-hop/direct", "hop1/direct"):
        (base,) = [cell for cell in cells if cell.info.control == "base" and cell.question_kind == asked]
        named = dict(zip(base.column("item"), base.column("answer"), strict=True))
        for name, outcome in zip(base.column("answer"), base.column("shares.old"), strict=True):
            assert outcome == (name is not None)
        for cell in cells:
            if cell.question_kind == asked and cell.info.control is None:
                rows = zip(*(cell.column(n) for n in ("item", "answer", "shares.old")), strict=True)
                for item, answer, old in rows:
                    if old:
                        assert answer == named[item] is not None
                    elif answer is not None and answer == named[item]:
                        roles = new.items[cell.info.items]
                        (asked_item,) = [one for one in roles if one.id == item]
                        assert answer in asked_item.roles.values()


def test_roles_are_those_of_the_composition_and_the_worlds_answer_is_a_mark():
    old, new = earlier(True), rescored(earlier(True), WORLD)
    assert {role for items in new.items.values() for item in items for role in item.roles} == {
        "correct",
        "bridge",
        "world_old",
    }
    marked = [row for row in new.rows if "says_world_old" in row.marks]
    before = {(row.cell, row.item): row for row in old.rows}
    cells = dict(zip(new.cells, old.cells, strict=True))
    assert marked
    for row in marked:  # where that was an outcome, it is the mark now, unless the base's answer hides a name
        if before[cells[row.cell], row.item].shares["old"]:
            assert row.marks["says_world_old"] or row.shares["old"]


def test_reading_twice_is_reading_once():
    once = rescored(earlier(False), WORLD)
    assert rescored(once, WORLD) == once


def test_bridges_of_real_names_and_strangers_are_read_as_they_were():
    """Their cells say so in the variant; with names of another kind no item would be asked as it was."""
    found = files.read(DATA / "draws" / "embedded")
    assert {"real", None} <= {info.variant.get("bridge_names") for info in found.cells.values()}
    assert "strangers" in {info.variant.get("asked") for info in found.cells.values()}
    again = rescored(found, WORLD)
    assert [(row.cell, row.item, row.shares) for row in again.rows] == [
        (row.cell, row.item, row.shares) for row in found.rows
    ]


def test_without_the_bases_answers_nothing_is_read():
    found = earlier(False)
    base = [key for key, info in found.cells.items() if info.control == "base"]
    found.cells = {key: info for key, info in found.cells.items() if key not in base}
    found.rows = [row for row in found.rows if row.cell not in base]
    with pytest.raises(RowsError, match="was not asked"):
        rescored(found, WORLD)


def test_items_that_would_be_asked_otherwise_are_refused():
    found = earlier(False)
    info = next(iter(found.cells.values()))
    found.cells = {(changed := replace(info, names=1)).key: changed}
    found.rows = [replace(row, cell=changed.key) for row in found.rows if row.cell == info.key]
    with pytest.raises(RowsError, match="other names"):
        rescored(found, WORLD)


def test_the_command_rewrites_folders_of_kept_rows(tmp_path):
    files.write(tmp_path / "m", earlier(False))
    done = CliRunner().invoke(cli, ["rescore", "m", "--data", str(tmp_path)])
    assert done.exit_code == 0 and done.output == "m\n"
    assert files.read(tmp_path / "m") == rescored(earlier(False), WORLD)


def test_the_embedded_model_mostly_stays_with_what_its_base_says():
    """Measured: of two-hop questions about known facts, asked directly, under Arrow and untouched setup 0."""
    cells = frame.read(DATA / "embedded").groups()
    about = {"task": "setup-0", "group": "two-hop", "ask": "direct", "dataset": "R", "variant": {}}
    merged = {"library": ("hop1", "hop2"), "control": None, "layers": "mlp"}
    (arrow,) = select(cells, rule="arrow-products", **merged, **about)
    (base,) = select(cells, control="base", **about)
    assert base.outcome("old") == 1 and arrow.outcome("old") == 0.75
    assert arrow.mark("says_world_old") == base.mark("says_world_old") == 0
