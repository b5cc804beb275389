"""Pages whose every number is read off kept rows, and whose every claim is checked against them.

In the templates `cell` gives one cell of a table, and `claim` refuses to write a page whose rows do not say
what its prose says.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from llm_experiments.domains.two_hop import names
from llm_experiments.experiments.registry import EXPERIMENTS, Work
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.scoring.words import final_answer
from results import tables
from results.forms import percent
from toytransformer.compositions import Record

ROOT = Path(__file__).parents[1]
DATA = ROOT / "llm_experiments" / "data"
#: Page -> template.
PAGES = {
    ROOT / "docs" / "results.md": ROOT / "docs" / "results.md.jinja",
    ROOT / "README.md": ROOT / "docs" / "README.md.jinja",
}

ASKED = {
    "steps": {"group": "two-hop", "decode": "steps"},
    "direct": {"group": "two-hop", "decode": "direct"},
    "hop1": {"group": "hop1", "decode": "direct"},
    "hop2": {"group": "hop2", "decode": "direct"},
}
#: What tells a library or its training from the plain one; a cell has none of it unless it is asked for.
SPECIAL = ("initial_a", "steps", "gauge", "relabelling", "adapters", "form")


class ResultsError(ValueError):
    """Rows do not hold a cell that the page needs, or contradict what it says."""


@dataclass(frozen=True)
class Cell:
    """One cell: the rows of one library under one merge, asked one thing; as text the share right."""

    rows: tuple[Record, ...]

    @cached_property
    def entry(self) -> tables.Entry:
        (entry,) = tables.entries(self.rows, draws=99)
        return entry

    @property
    def share(self) -> float:
        return self.entry.share

    @property
    def low(self) -> float:
        return self.entry.low

    @property
    def high(self) -> float:
        return self.entry.high

    @property
    def seeds(self) -> Sequence[float]:
        return tuple(self.entry.seeds.values())

    @property
    def items(self) -> int:
        return self.entry.items

    def wins(self, other: Cell) -> str:
        """In how many of the training seeds that both have more is right than in another cell: "2 of 3"."""
        both = self.entry.seeds.keys() & other.entry.seeds.keys()
        pairs = [(self.entry.seeds[seed], other.entry.seeds[seed]) for seed in both]
        return f"{sum(own > others for own, others in pairs)} of {len(pairs)}"

    def flag(self, name: str) -> float:
        """Share of the answers step by step of which the row says so: hop1_right, bridge_copied, hop2_right;
        or that have the "form" of a chain.
        """
        if name == "form":
            return self.share_of(lambda row: final_answer(row.text or "") is not None)
        return self.share_of(lambda row: bool(row.regime.get(name)))

    def share_of(self, says: Callable[[Record], bool]) -> float:
        return sum(map(says, self.rows)) / len(self.rows)

    def outcome(self, name: str) -> float:
        return self.entry.outcomes[name]

    def __str__(self) -> str:
        return f"{percent(self.share)}% [{percent(self.low)}, {percent(self.high)}]"


class Rows:
    """The rows of one model, and its cells."""

    def __init__(self, path: Path):
        self.path = path
        self.records = tables.read_file(path)
        self.groups = tables.groups(self.records)

    def cell(
        self,
        number: int | str,
        rule: str,
        asked: str = "steps",
        dataset: str = "R",
        library: Iterable[str] | None = ("hop1", "hop2"),
        control: str | None = None,
        weights: Sequence[float] | None = None,
        layers: str = "mlp",
        **special: Any,
    ) -> Cell:
        """The cell of setup `number`, or of a composition by name with any library where that is None.

        Errors: ResultsError unless there is exactly one.
        """
        wanted = {
            "composition": number if isinstance(number, str) else f"setup-{number}",
            "rule": rule,
            **ASKED[asked],
            "dataset": dataset,
            **({} if library is None else {"library": tuple(library)}),
            "control": control,
            "weights": None if weights is None else tuple(weights),
            "layers": layers,
            **{f"regime {name}": special.get(name) for name in SPECIAL},
        }
        found = [
            rows for features, _, rows in self.groups if all(features.get(k) == v for k, v in wanted.items())
        ]
        if len(found) != 1:
            raise ResultsError(f"{self.path.name} has {len(found)} cells with {wanted}: the page needs one")
        return Cell(tuple(found[0]))

    def base(self, asked: str = "steps", dataset: str = "R") -> Cell:
        """What the base model answers."""
        found = [
            rows
            for features, _, rows in self.groups
            if features["control"] == "base"
            and features["composition"] == "setup-0"
            and features["dataset"] == dataset
            and (features["group"], features["decode"]) == tuple(ASKED[asked].values())
        ]
        if len(found) != 1:
            raise ResultsError(f"{self.path.name} has {len(found)} times the base on {dataset}, {asked}")
        return Cell(tuple(found[0]))

    def alone(self, name: str, asked: str = "steps", dataset: str = "R") -> Cell:
        """One adapter of setup 0 on its own."""
        return self.cell(0, "sum", asked, dataset, library=(name,), control=name)

    @property
    def seeds(self) -> list[int]:
        return sorted({s for r in self.records if (s := r.regime.get("seed")) is not None})

    @property
    def layers(self) -> list[str]:
        """Which layers were adapted in any of the rows."""
        return sorted({layers for r in self.records if (layers := r.regime.get("layers"))})


def invented(row: Record) -> bool:
    """Whether the final answer of a chain is no real city: a place of the bridge, or no place."""
    return (final_answer(row.text or "") or "").strip(" .") not in names.real_cities()


def as_before(cell: Cell, base: Cell) -> float:
    """Share of a cell's answers that are what the base says, word by word."""
    said = {(row.prompt, row.regime["template"]): row.text for row in base.rows}
    return cell.share_of(lambda row: said[row.prompt, row.regime["template"]] == row.text)


def adapters(path: Path, steps: int) -> list[dict[str, Any]]:
    """The adapters that were trained for that many steps: their seconds, training and own task."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = map(json.loads, file)
        return [row for row in rows if row["kind"] == "adapter" and row["steps"] == steps]


def printed(table: str, **wanted: Any) -> list[float]:
    """What the paper prints in one row of a table, over its models, in percent."""
    (row,) = [row for row in tables.paper()[table]["rows"] if wanted.items() <= row.items()]
    return [value for value in row["values"] if not math.isnan(value)]


def span(values: Sequence[float]) -> str:
    """Percentages from least to most: "3.9–8.8%"."""
    return "–".join(f"{value:g}" for value in sorted({min(values), max(values)})) + "%"


def work(experiment: str, profile: str) -> Work:
    """What one seed of an experiment asks for on a base whose facts nobody knows."""
    return EXPERIMENTS[experiment].work(Base("", ""), PROFILES[profile], (0,))


def timed(*cases: str) -> list[dict[str, Any]]:
    """The kept benchmarks of these cases in which another route was timed beside ours."""
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text())["rows"]
    return [row for row in rows if row["case"] in cases and row["ratio"] is not None]


def claim(holds: object) -> str:
    """Nothing, if what the prose says holds. Errors: ResultsError if not."""
    if not holds:
        raise ResultsError("a claim of the page does not hold on the rows; reword it")
    return ""


def render(template: Path, data: Path = DATA) -> str:
    """The page as Markdown. Errors: ResultsError naming the template's line."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"median": median, "span": span}
    environment.filters["percent"] = lambda share: f"{percent(share)}%"
    functions: dict[str, Callable] = {
        "rows": lambda name: Rows(data / f"{name}.jsonl.gz"),
        "adapters": lambda name, steps: adapters(data / f"{name}-cells.jsonl.gz", steps),
        "work": work,
        "printed": printed,
        "timed": timed,
        "claim": claim,
        "invented": invented,
        "as_before": as_before,
    }
    try:
        return environment.get_template(template.name).render(**functions)
    except TemplateError as error:
        raise ResultsError(f"{template}: {error}") from error
