"""Files of measured rows, and runs: their cells, single answers where they are wanted, their provenance."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from figures.measured import cells as measured
from figures.measured.cells import Cell, Place, nameless
from llm_experiments.engine.store import Store
from llm_experiments.keep import cells as by_products
from llm_experiments.scoring.words import final_answer
from results.forms import percent
from toytransformer.compositions import OUTCOMES, Record

ROOT = Path(__file__).parents[2]
#: What is kept beside a file of rows, by the ending of its name.
BESIDE = ("-cells.jsonl.gz", "-edits.jsonl.gz")

#: A cell of one training seed whatever its model is called: the digest says which model it is.
Key = tuple[Place, int | None]
#: A question in one of its wordings, and the text and outcome it got.
Answers = dict[tuple[str, Any], tuple[str | None, str]]


@dataclass(frozen=True)
class Source:
    """One file of rows or one run.

    cells: training seeds pooled. edits: how many rows on closed-form edits. answers: by cell and question.
    formed: share of a cell's answers step by step that have the form of a chain. commits: of the code that
    measured. origin: where all of it comes from, name by name.
    """

    name: str
    cells: tuple[Cell, ...]
    edits: int
    answers: Mapping[Key, Answers]
    formed: Mapping[Place, float]
    commits: Collection[str]
    origin: Mapping[str, str]


def committed() -> list[Path]:
    """The files of records that come with the project."""
    return [path for path in measured.committed() if not path.name.endswith(BESIDE)]


def read(path: Path, wanted: Collection[Key] | None = None) -> Source:
    """A file of rows or a run's folder. wanted: keep the answers of these cells only.

    Errors: RowsError naming what cannot be read.
    """
    watch = _Watch(wanted)
    found, edits = measured.read([path], watch)
    rows = sum(cell.items for cell in found)
    pooled = tuple(measured.pooled(found))
    about = {"rows": f"{rows:,} answers in {len(pooled):,} cells"}
    if edits:
        about["closed-form edits"] = f"{len(edits):,} rows"
    name = shown(path) if path.is_dir() else path.name.partition(".")[0]
    files = _of_run(path) if path.is_dir() else _of_file(path)
    formed = {place: right / asked for place, (right, asked) in watch.formed.items()}
    commits = {json.loads(text).get("git", "unknown") for text in watch.said[""]}
    origin = {**files, **about, **watch.origin()}
    return Source(name, pooled, len(edits), dict(watch.answers), formed, commits, origin)


class _Watch:
    """What is gathered of the records as they pass, beside their cells."""

    def __init__(self, wanted: Collection[Key] | None):
        self.wanted = wanted
        self.answers: dict[Key, Answers] = defaultdict(dict)
        self.formed: dict[Place, tuple[int, int]] = {}
        self.said: dict[str, Counter[str]] = defaultdict(Counter)

    def __call__(self, place: Place, record: Record) -> None:
        seed = record.regime.get("seed")
        key = (nameless(place), seed)
        if self.wanted is None or key in self.wanted:
            outcome = max(OUTCOMES, key=lambda name: record.shares.get(name, 0.0))
            self.answers[key][record.prompt, record.regime.get("template")] = (record.text, outcome)
        if place.decode == "steps":
            formed, asked = self.formed.get(place, (0, 0))
            self.formed[place] = formed + (final_answer(record.text or "") is not None), asked + 1
        for name, text in (
            ("model", f"{place.model}, digest {place.digest}"),
            ("data sets", place.dataset),
            ("training seeds", seed),
            ("answers computed in", record.regime.get("dtype")),
        ):
            if text is not None:
                self.said[name][str(text)] += 1
        self.said[""][json.dumps(record.provenance, sort_keys=True)] += 1

    def origin(self) -> dict[str, str]:
        """What the rows say of themselves; where they differ, with how many say so."""
        code, versions = Counter(), defaultdict(set)
        for text, rows in self.said.pop("", Counter()).items():
            stated = json.loads(text)
            changed = ", with changes" if stated.get("modified") else ""
            code[f"{stated.get('git', 'unknown')}{changed}"] += rows
            for package, version in {
                "Python": stated.get("python"),
                **stated.get("packages", {}),
            }.items():
                versions[package].add(str(version))
        told = {name: ", ".join(sorted(counts)) for name, counts in self.said.items()}
        told["commit"] = ", ".join(
            commit + (f" ({rows:,} rows)" if len(code) > 1 else "") for commit, rows in code.most_common()
        )
        told["versions"] = ", ".join(f"{name} {' or '.join(sorted(v))}" for name, v in versions.items())
        return told


# --- files and folders ------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    """The path from the project's or the current folder, where it lies below it."""
    for above in (ROOT, Path.cwd()):
        if path.resolve().is_relative_to(above):
            return str(path.resolve().relative_to(above))
    return os.fspath(path)


def identity(path: Path) -> dict[str, str]:
    """Which file it is, and its bytes."""
    return {"path": shown(path), "SHA-256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _of_file(path: Path) -> dict[str, str]:
    """Path and SHA-256 of a file of rows and of what is kept beside it."""
    told = identity(path)
    for ending in BESIDE:
        beside = path.with_name(path.name.partition(".")[0] + ending)
        if beside.exists():
            content = beside.read_bytes()
            told["file beside it" if ending == BESIDE[0] else "its closed-form edits"] = (
                f"{shown(beside)}, SHA-256 {hashlib.sha256(content).hexdigest()}"
            )
            if ending == BESIDE[0]:
                told |= _trained(map(json.loads, gzip.decompress(content).splitlines()))
    return told


def _of_run(folder: Path) -> dict[str, str]:
    """What a run's folder says of itself: experiments, how far they are, when, the rows' SHA-256."""
    store = Store(folder, write=False)
    digest = hashlib.sha256()
    for line in store.rows():
        digest.update(line)
    runs, times = [], []
    for run in store.runs():
        finished = [s["address"] for s in run["steps"] if store.finished(s["address"])]
        times += [seal["finished"] for name in finished if "finished" in (seal := store.seal(name)["meta"])]
        seeds = ", ".join(map(str, run.get("seeds", ())))
        runs.append(
            f"{run['experiment']} on {run['model']}, profile {run.get('profile')}, seeds {seeds}: "
            f"{len(finished)} of {len(run['steps'])} steps finished"
        )
    told = {
        "path": shown(folder),
        "SHA-256 of its rows": digest.hexdigest(),
        "experiments": "; ".join(runs),
    }
    if times:
        told["finished"] = f"{min(times)} to {max(times)}"
    return told | _trained(by_products(store))


def _trained(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """How the adapters were trained, and came out on the task they were trained on."""
    trained = [row for row in rows if row["kind"] == "adapter"]
    if not trained:
        return {}
    own = [row["own_task"]["share"] for row in trained]
    least, middle = percent(min(own)), percent(median(own))
    bases = {row["training"].get("base_dtype") or "the precision of the answers" for row in trained}
    return {
        "adapters": f"{len(own)}, right on their own task in {least}% at least, {middle}% in the middle",
        "adapters trained on a base in": " or ".join(sorted(bases)),
    }
