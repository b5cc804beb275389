"""Folders of measurements on the page: their cells, and what they say of where they come from."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llm_experiments.engine.store import Store
from results import frame as frames
from results.cells import Cell, percent
from results.files import ENDING, FILES, Measurements, is_folder_of_rows
from results.frame import Frame
from toytransformer.compositions.io import read_plain

ROOT = Path(__file__).parents[2]
#: In a run's folder, what was run.
RUN = "run.json"


@dataclass(frozen=True)
class Source:
    """One folder of kept measurements or one run.

    cells: training seeds pooled. frame: its rows. origin: where all of it comes from, name by name.
    """

    name: str
    cells: tuple[Cell, ...]
    frame: Frame
    origin: Mapping[str, str]

    @property
    def commits(self) -> set[str]:
        """The commits of the code that measured."""
        return {str(info.provenance.get("git", "unknown")) for info in self.frame.cells.values()}


def read(folder: Path) -> Source:
    """A folder of kept measurements or a run's. Errors: RowsError naming what cannot be read."""
    is_run = (folder / RUN).exists()
    nothing_yet = is_run and not is_folder_of_rows(folder)
    frame = frames.of(Measurements()) if nothing_yet else frames.read(folder)
    cells = tuple(frame.groups())
    about = {"rows": f"{len(frame.rows):,} answers in {len(cells):,} cells"}
    if frame.edits:
        about["closed-form edits"] = f"{len(frame.edits):,} rows"
    origin = {"path": relative(folder), **_files(folder), **(_runs(folder) if is_run else {})}
    return Source(
        relative(folder) if is_run else folder.name,
        cells,
        frame,
        {**origin, **about, **_trained(frame.adapters.values()), **_said(frame)},
    )


def _said(frame: Frame) -> dict[str, str]:
    """What the cells say of themselves; where they differ in their commit, with how many rows say so."""
    several: dict[str, set[str]] = defaultdict(set)
    versions: dict[str, set[str]] = defaultdict(set)
    commits: Counter[str] = Counter()
    rows = Counter(frame.rows["cell"].to_list())
    for key, info in frame.cells.items():
        for name, value in (
            ("model", f"{info.base}, digest {info.digest}"),
            ("data sets", info.dataset),
            ("training seeds", info.seed),
            ("answers computed in", info.dtype),
        ):
            if value is not None:
                several[name].add(str(value))
        stated = info.provenance
        commits[f"{stated.get('git', 'unknown')}{', with changes' * bool(stated.get('modified'))}"] += rows[
            key
        ]
        for package, version in {"Python": stated.get("python"), **stated.get("packages", {})}.items():
            versions[package].add(str(version))
    said = {name: ", ".join(sorted(values)) for name, values in several.items()}
    said["commit"] = ", ".join(
        commit + (f" ({count:,} rows)" if len(commits) > 1 else "") for commit, count in commits.most_common()
    )
    said["versions"] = ", ".join(f"{name} {' or '.join(sorted(v))}" for name, v in sorted(versions.items()))
    return said


# --- files and folders ------------------------------------------------------------------------------------


def relative(path: Path) -> str:
    """The path from the project's or the current folder, where it lies below it."""
    for above in (ROOT, Path.cwd()):
        if path.resolve().is_relative_to(above):
            return str(path.resolve().relative_to(above))
    return os.fspath(path)


def identity(path: Path) -> dict[str, str]:
    """Which file it is, and its bytes."""
    return {"path": relative(path), "SHA-256": hashlib.sha256(read_plain(path)).hexdigest()}


def _files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of measurements."""
    paths = [folder / f"{file}{ENDING}" for file in FILES]
    return {
        f"SHA-256 of {path.name}": hashlib.sha256(read_plain(path)).hexdigest()
        for path in paths
        if path.exists()
    }


def _runs(folder: Path) -> dict[str, str]:
    """What a run's folder says of itself: experiments, how far they are, when."""
    store = Store(folder, write=False)
    runs, times = [], []
    for run in store.runs():
        steps = [step["address"] for step in run["steps"]]
        finished = [address for address in steps if store.finished(address)]
        times += [meta["finished"] for a in finished if "finished" in (meta := store.seal(a)["meta"])]
        where = f"{run['experiment']} on {run.get('model', 'an unnamed model')}, profile {run.get('profile')}"
        draws = "".join(
            f", {name} {', '.join(map(str, numbers))}"
            for name, numbers in (("seeds", run.get("seeds")), ("names", run.get("names")))
            if numbers
        )
        runs.append(f"{where}{draws}: {len(finished)} of {len(steps)} steps finished")
    about = {"experiments": "; ".join(runs)}
    return about | ({"finished": f"{min(times)} to {max(times)}"} if times else {})


def _trained(adapters: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """How the adapters were trained, and came out on the task they were trained on."""
    adapters = list(adapters)
    own = [line["own_task"]["share"] for line in adapters if line.get("own_task")]
    if not own:
        return {}
    bases = {line["training"].get("base_dtype") or "the precision of the answers" for line in adapters}
    return {
        "adapters": f"{len(own)}, right on their own task in {percent(min(own))}% at least, "
        f"{percent(median(own))}% in the middle",
        "adapters trained on a base in": " or ".join(sorted(bases)),
    }


def all_cells(sources: Sequence[Source]) -> list[Cell]:
    """The cells of all sources, in their order."""
    return [cell for source in sources for cell in source.cells]
