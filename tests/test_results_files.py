"""Items, cells and rows: what they refuse, and folders of them that are written and read."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import files
from results.files import Measurements
from results.rows import CellInfo, Item, Row, RowsError, items_hash
from toytransformer.compositions import replace_file

ITEMS = tuple(
    Item(
        f"x{chain} R1 R2/steps/{template}",
        f"{chain}",
        "two-hop",
        "steps",
        f"Where does {chain} live?",
        target=f"In z{chain}.",
        roles={"correct": f"z{chain}", "bridge": f"y{chain}"},
        extra={"template": template},
    )
    for chain in range(3)
    for template in (48, 49)
)
INFO = CellInfo(
    domain="two-hop",
    task="setup-0",
    setting={"facts": 3, "known": True},
    spec_hash="abc",
    items=items_hash(ITEMS),
    dataset="R",
    names=0,
    base="embedded",
    digest="d",
    dtype="float32",
    library=("hop1", "hop2"),
    rule="arrow-products",
    chosen={"temperature": 0.3},
    layers="mlp",
    seed=0,
    adapters=("adapter-1", "adapter-2"),
    spectral_gap=0.2,
    provenance={"git": "1"},
)


def rows(info: CellInfo = INFO) -> list[Row]:
    return [
        Row(
            info.key,
            item.id,
            item.roles["correct"],
            {"correct": 1.0, "other": 0.0},
            text="z",
            marks={"exact": True},
        )
        for item in ITEMS
    ]


def measured(info: CellInfo = INFO) -> Measurements:
    return Measurements({info.key: info}, {info.items: ITEMS}, rows(info), {"abc": {"name": "setup-0"}})


@pytest.mark.parametrize("line", [ITEMS[0], INFO, rows()[0]], ids=["item", "cell", "row"])
def test_a_line_restores_what_it_was_made_of(line):
    assert type(line).from_json(line.to_json()) == line


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.text())
def test_what_is_no_line_is_refused_in_words(value):
    for kind in (Item, CellInfo, Row):
        with pytest.raises(RowsError):
            kind.from_json(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("kind", [Item, CellInfo, Row])
def test_lines_of_another_version_are_refused(kind):
    line = {Item: ITEMS[0], CellInfo: INFO, Row: rows()[0]}[kind]
    with pytest.raises(RowsError, match=r"version 0.*migrate"):
        kind.from_json(line.to_json().replace('"version": 1', '"version": 0'))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"task": ""}, "task"),
        ({"weights": (1.0,)}, "2 finite numbers"),
        ({"weights": (1.0, math.nan)}, "2 finite numbers"),
        ({"adapters": ("a",)}, "address"),
        ({"library": "hop1"}, "merge order"),
        ({"variant": {"steps": [1]}}, "variant"),
        ({"setting": {"facts": math.inf}}, "setting"),
        ({"spectral_gap": math.nan}, "spectral_gap"),
    ],
)
def test_a_cell_refuses(change, names):
    with pytest.raises(RowsError, match=names):
        replace(INFO, **change)


@pytest.mark.parametrize(
    "shares", [{"correct": 0.5}, {"correct": 1.5, "other": -0.5}, {"correct": math.nan}, {}]
)
def test_shares_are_a_distribution(shares):
    with pytest.raises(RowsError, match="shares"):
        Row("c", "i", None, shares)


def test_a_question_is_asked_in_a_known_way():
    with pytest.raises(RowsError, match="direct or steps"):
        replace(ITEMS[0], ask="loudly")


def test_the_key_is_of_what_tells_cells_apart():
    same = replace(INFO, chosen={}, spectral_gap=None, provenance={}, adapters=())
    assert same.key == INFO.key
    others = [replace(INFO, seed=1), replace(INFO, variant={"steps": 3}), replace(INFO, weights=(0.5, 0.5))]
    assert len({INFO.key, *(other.key for other in others)}) == 4


def test_a_changed_cell_is_not_read():
    with pytest.raises(RowsError, match="changed after"):
        CellInfo.from_json(INFO.to_json().replace("mlp", "attention"))


def test_a_folder_restores_what_was_written(tmp_path):
    found = replace(
        measured(), adapters={"adapter-1": {"address": "adapter-1", "loss": 0.5}}, edits=[{"kind": "e"}]
    )
    files.write(tmp_path, found)
    assert files.read(tmp_path) == found
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    files.write(tmp_path, files.read(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_later_folder_adds_cells_and_replaces_its_own():
    found, again, other = measured(), measured(), measured(replace(INFO, seed=1))
    again.rows = [replace(row, text="anew") for row in again.rows]
    found.add(other)
    found.add(again)
    assert len(found.cells) == 2 and {row.text for row in found.rows if row.cell == INFO.key} == {"anew"}
    found.check()


def test_rows_without_cell_or_item_and_two_answers_are_refused():
    for row, message in (
        (replace(rows()[0], cell="lost"), "missing"),
        (replace(rows()[0], item="lost"), "none of its items"),
        (rows()[0], "two answers"),
    ):
        found = measured()
        found.rows.append(row)
        with pytest.raises(RowsError, match=message):
            found.check()


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RowsError, match="migrate"):
        files.read(tmp_path)
    files.write(tmp_path, measured())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"{}\n"))
    with pytest.raises(RowsError, match="line 7"):
        files.read(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(RowsError, match="cannot be read"):
        files.read(tmp_path)


def test_changed_items_are_not_read(tmp_path):
    files.write(tmp_path, measured())
    path = tmp_path / "items.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"live", b"work")))
    with pytest.raises(RowsError, match="another hash"):
        files.read(tmp_path)


def test_links_lead_on_and_pipes_stay(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    replace_file(tmp_path / "link", ["a\n"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "a\n"
    replace_file("/dev/null", ["a\n"])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_nobody_waits_at_a_pipe_in_a_files_place(tmp_path):
    files.write(tmp_path, measured())
    (tmp_path / "rows.jsonl.gz").unlink()
    os.mkfifo(tmp_path / "rows.jsonl.gz")
    with pytest.raises(RowsError, match="no regular file"):
        files.read(tmp_path)
