"""Rows of earlier code, each of which said everything anew, as cells, items and rows.

An old row is one flat object; what its cell is was rebuilt by whoever read it. Here that is done once more:
the composition is built from what the rows say and refused if it has another hash, and the questions are
asked anew in words and refused if they are others than those in the rows.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from llm_experiments.domains.two_hop.known import KnownFacts
from llm_experiments.domains.two_hop.lexicon import Lexicon, lexicon
from llm_experiments.domains.two_hop.rendering import question_text, render
from llm_experiments.scoring.words import final_answer
from results.files import Measurements
from results.rows import CellInfo, Item, Row, RowsError, canonical, items_hash
from toytransformer.compositions import Composition, Merge, Question, SpecError, catalogue
from toytransformer.compositions.io import read_json, read_plain
from toytransformer.compositions.setups import setup

OldRow = dict[str, Any]

#: Where an old row says what; together they are every key there was.
OF_A_CELL = (
    *("composition", "setting", "spec_hash", "source", "adapters", "rule", "weights", "options", "regime"),
    *("spectral_gap", "provenance"),
)
OF_AN_ITEM = ("group", "prompt", "decode", "question", "correct", "bridge", "old")
OF_A_ROW = ("answer", "shares", "text", "exact", "contains", "logprobs")
#: Always empty in measured rows.
OF_A_PREDICTION = ("mixture",)
#: Parts of a regime that differ between the rows of a cell: marks, and which wording was asked.
STEPS = ("hop1_right", "bridge_copied", "hop2_right")
WORDING = "template"
#: Parts of a regime that are fields of a cell; what is left is its variant.
FIELDS = {
    "model": "digest",
    "names_seed": "names",
    **{name: name for name in ("dataset", "split", "dtype", "layers", "seed", "control")},
}
CHOSEN = ("temperature",)
#: Of the row on an adapter or a sweep; "cell" becomes its address.
PAIR = ("hop1", "hop2")

Links = Mapping[str, tuple[str, ...]]


def carried_over(
    rows: Iterable[OldRow],
    beside: Iterable[OldRow] = (),
    edits: Iterable[OldRow] = (),
    *,
    links: Links | None = None,
    world: KnownFacts | None = None,
) -> Measurements:
    """Old rows, rows on adapters and sweeps, and rows on edits as measurements.

    links: the addresses of a cell's adapters by `identity` of its rows. world: what the base knows, None
    where nobody knows. Errors: RowsError on a row that is none, on one whose composition or question cannot
    be built again, and where rows contradict each other.
    """
    measurements, names = Measurements(), _Names(world)
    for identity_, several in _cells(rows):
        _add_cell(measurements, several, (links or {}).get(identity_, ()), names)
    for line in beside:
        line = dict(line)
        kind, address = line.pop("kind"), line.pop("cell")
        kept = measurements.adapters if kind == "adapter" else measurements.sweeps
        kept[address] = {"address": address, **line}
    measurements.edits = list(edits)
    measurements.check()
    return measurements


def identity(row: OldRow) -> str:
    """What the old rows of one cell have in common, as JSON."""
    regime = {k: v for k, v in row["regime"].items() if k not in (*STEPS, WORDING)}
    return canonical({**{name: row[name] for name in OF_A_CELL}, "regime": regime})


def _cells(rows: Iterable[OldRow]) -> Iterator[tuple[str, list[OldRow]]]:
    cells: dict[str, list[OldRow]] = {}
    known = {*OF_A_CELL, *OF_AN_ITEM, *OF_A_ROW, *OF_A_PREDICTION}
    for number, row in enumerate(rows, start=1):
        if (wrong := set(row) ^ known) or row["mixture"]:
            raise RowsError(
                f"row {number} is no measured row of earlier code: {min(wrong, default='mixture')!r}"
            )
        cells.setdefault(identity(row), []).append(row)
    yield from cells.items()


def _add_cell(
    measurements: Measurements, rows: list[OldRow], adapters: tuple[str, ...], names: _Names
) -> None:
    first = rows[0]
    spec = composition(first)
    words = names.of(spec, first["regime"]["dataset"], first["regime"]["names_seed"])
    items = tuple(_item(row, spec, words) for row in rows)
    task = items_hash(items)
    info = _info(first, task, adapters)
    if info.key in measurements.cells:
        raise RowsError(
            f"a cell of {info.task} by {info.rule} is there twice ({info.key}), made by other code"
        )
    measurements.cells[info.key] = info
    measurements.items[task] = items
    measurements.specs[spec.spec_hash] = json.loads(spec.to_json())
    measurements.rows += (_row(row, item, info) for row, item in zip(rows, items, strict=True))


def _info(row: OldRow, items: str, adapters: tuple[str, ...]) -> CellInfo:
    regime = {k: v for k, v in row["regime"].items() if k not in (*STEPS, WORDING)}
    fields = {name: regime.pop(old, None) for old, name in FIELDS.items()}
    chosen = {name: regime.pop(name) for name in CHOSEN if name in regime}
    if chosen:  # on the chains that are asked, in other wordings, by their composed answers
        chosen |= {"chosen_by": "steps", "chosen_names": row["regime"]["names_seed"]}
    return CellInfo(
        domain="two-hop",
        task=row["composition"],
        setting=row["setting"],
        spec_hash=row["spec_hash"],
        items=items,
        base=row["source"],
        library=tuple(row["adapters"]),
        rule=row["rule"],
        weights=row["weights"] and tuple(row["weights"]),
        options=row["options"],
        chosen=chosen,
        variant=regime,
        adapters=adapters,
        spectral_gap=row["spectral_gap"],
        provenance=row["provenance"],
        **fields,
    )


def _item(row: OldRow, spec: Composition, words: Lexicon) -> Item:
    template = row["regime"][WORDING]
    question = _question(row, spec)
    text = question_text(question, words, template)
    if text != row["question"]:
        raise RowsError(
            f"'{row['prompt']}' of {row['composition']} was asked as {row['question']!r}, and would be as "
            f"{text!r}: the rows were measured with other names or templates"
        )
    target = None
    if question.correct in words.names:
        prompt, chain = question.prompt, question.decode == "steps"
        target = render(
            prompt, question.correct, words, template, "chain" if chain else "direct", spec.world
        ).answer
    # Where the composition has no old answer, the row's is what the base said.
    old = {"world_old": question.old, "old": row["old"] if question.old is None else None}
    roles = {"correct": row["correct"], "bridge": row["bridge"], **old}
    return Item(
        id=f"{row['prompt']}/{row['decode']}/{template}",
        cluster=cluster(row["prompt"].split()[0]),
        group=row["group"],
        ask=row["decode"],
        question=text,
        target=target,
        roles={role: entity for role, entity in roles.items() if entity is not None},
        extra={"prompt": row["prompt"], "template": template},
    )


def _question(row: OldRow, spec: Composition) -> Question:
    for question in spec.questions:
        if (str(question.prompt), question.decode) == (row["prompt"], row["decode"]):
            same = (question.group, question.correct, question.bridge) == (
                row["group"],
                row["correct"],
                row["bridge"],
            )
            if same and question.old in (None, row["old"]):
                return question
    raise RowsError(
        f"'{row['prompt']}' ({row['decode']}) is not asked in {row['composition']} as the row has it"
    )


def cluster(entity: str) -> str:
    """The chain an entity belongs to, so that x3 and y3 are one, as are x3_14 and z3_14."""
    number = re.sub(r"^[A-Za-z]+(?=\d)", "", entity.removeprefix("bridge_"))
    return f"bridge {number}" if entity.startswith("bridge_") else number


def _row(row: OldRow, item: Item, info: CellInfo) -> Row:
    steps = {name: row["regime"][name] for name in STEPS if name in row["regime"]}
    form = {"has_form": final_answer(row["text"] or "") is not None} if row["decode"] == "steps" else {}
    return Row(
        cell=info.key,
        item=item.id,
        answer=row["answer"],
        shares=row["shares"],
        text=row["text"],
        marks={"exact": row["exact"], "contains": row["contains"], **form, **steps},
        logprobs=row["logprobs"],
    )


# --- what the rows are about --------------------------------------------------------------------------------


def composition(row: OldRow) -> Composition:
    """What was measured in an old row. Errors: RowsError where it has another hash than the row."""
    built = _built(
        canonical(
            {k: row[k] for k in ("composition", "setting", "adapters", "rule", "weights", "options")}
            | {"relabelling": row["regime"].get("relabelling")}
        )
    )
    if built.spec_hash != row["spec_hash"]:
        raise RowsError(
            f"rows of {row['composition']} ({'+'.join(row['adapters'])} by {row['rule']}, {row['source']}) "
            f"have spec hash {row['spec_hash']}, what they describe has {built.spec_hash}: measured "
            "with other code"
        )
    return built


@cache
def _built(description: str) -> Composition:
    row = json.loads(description)
    kept = {key: row["setting"][key] for key in ("facts", "known", "examples", "seed")}
    merge = Merge(row["rule"], row["weights"] and tuple(row["weights"]), row["options"])
    library = tuple(row["adapters"])
    if row["composition"].startswith("setup-"):
        bridge = {
            key: row["setting"][key] for key in ("bridge_facts", "bridge_known") if key in row["setting"]
        }
        sigma = list(range(row["setting"]["facts"]))
        if draw := row["relabelling"]:
            random.Random(draw).shuffle(sigma)
        number = int(row["composition"].removeprefix("setup-"))
        return setup(
            number,
            library=library or PAIR,
            merge=merge,
            sigma=tuple(sigma) if draw else None,
            **kept,
            **bridge,
        )
    plain = catalogue.build(row["composition"], library=library or None, merge=merge, **kept)
    steps = tuple(replace(question, decode="steps") for question in plain.questions)
    return replace(plain, questions=(*plain.questions, *steps))


class _Names:
    """The names of compositions, each drawn once. world: what the base knows, None where nobody knows."""

    def __init__(self, world: KnownFacts | None):
        self.world = world
        self._drawn: dict[tuple[object, ...], Lexicon] = {}

    def of(self, spec: Composition, dataset: str, seed: int) -> Lexicon:
        key = (spec.with_merge(Merge("sum")).spec_hash, dataset, seed)
        if key not in self._drawn:
            bridge = ("F" if dataset == "R" else "R") if spec.name.startswith("setup-") else None
            self._drawn[key] = lexicon(
                spec, dataset=dataset, seed=seed, bridge_dataset=bridge, base_world=self.world
            )
        return self._drawn[key]


# --- files --------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[OldRow]:
    """The rows of a .jsonl.gz file, none where it is not there. Errors: RowsError on anything else."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in gzip.decompress(read_plain(path)).splitlines()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RowsError(
            f"'{path}' cannot be read ({error}): give rows.jsonl.gz of a run, or kept rows"
        ) from error


def migrate(source: Path, *, links: Links | None = None, world: KnownFacts | None = None) -> Measurements:
    """What earlier code kept in DIR/NAME.jsonl.gz and beside it, or what it wrote into a run's folder.

    A run's folder says itself which adapters its cells merged. Errors: as `carried_over`.
    """
    try:
        if source.is_dir():
            return carried_over(
                read_lines(source / "rows.jsonl.gz"),
                _beside(source),
                read_lines(source / "edits.jsonl.gz"),
                links=_linked(source),
                world=world,
            )
        name = source.name.removesuffix(".jsonl.gz")
        return carried_over(
            read_lines(source),
            read_lines(source.with_name(f"{name}-cells.jsonl.gz")),
            read_lines(source.with_name(f"{name}-edits.jsonl.gz")),
            links=links,
            world=world,
        )
    except SpecError as error:
        raise RowsError(f"'{source}': {error}") from error
    except (LookupError, TypeError, AttributeError, RecursionError) as error:  # JSON of another shape
        raise RowsError(
            f"'{source}' holds no rows of earlier code ({type(error).__name__}: {error}); give a run's "
            "folder, or a NAME.jsonl.gz that `keep` wrote"
        ) from error


def _linked(folder: Path) -> dict[str, tuple[str, ...]]:
    """By identity of their rows, the adapters that the cells of a run's folder needed."""
    links = {}
    for cell in sorted((folder / "cells").glob("answers-*")):
        needs = read_json(cell / "spec.json")["needs"]
        first = json.loads(read_plain(cell / "rows.jsonl").splitlines()[0])
        links[identity(first)] = tuple(need for need in needs if "adapter-" in need)
    return links


def _beside(folder: Path) -> Iterator[OldRow]:
    """One row for each adapter of a run's folder, and each sweep, as they were kept."""
    run = read_json(folder / "run.json")
    names = dict.fromkeys(cell["name"] for one in run["runs"] for cell in one["cells"])
    for name in names:
        cell, kind = folder / "cells" / name, name.rpartition("-")[0]
        if kind not in ("adapter", "temperature") or not (cell / "seal.json").exists():
            continue
        meta = read_json(cell / "seal.json")["meta"]
        row = {"kind": kind, "cell": name, "label": meta["label"], "seconds": meta["seconds"]}
        if kind == "temperature":
            yield {**row, **read_json(cell / "sweep.json")}
            continue
        spec = read_json(cell / "spec.json")["spec"]
        metrics = read_json(cell / "metrics.json")
        about = {key: spec[key] for key in ("training", "seed")}
        yield {**row, **about, **{key: metrics[key] for key in ("steps", "examples", "loss", "own_task")}}
