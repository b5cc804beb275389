"""Pages whose every number is read off kept rows, and whose every claim is checked against them.

In the templates `rows(NAME)` gives the cells of one model, and `claim` refuses to write a page whose rows do
not say what its prose says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from results import frame, paper
from results.cells import Cell, percent
from results.contrasts import contrast
from results.frame import Frame, select
from results.rows import BASE

#: What a page calls a group of questions and the way they are asked.
ASKED = {
    "steps": {"group": "two-hop", "ask": "steps"},
    "direct": {"group": "two-hop", "ask": "direct"},
    "hop1": {"group": "hop1", "ask": "direct"},
    "hop2": {"group": "hop2", "ask": "direct"},
}


class ResultsError(ValueError):
    """Rows do not hold a cell that the page needs, or contradict what it says."""


class Rows:
    """The measurements of one model, and its cells."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def frame(self) -> Frame:
        return frame.read(self.folder)

    @cached_property
    def cells(self) -> list[Cell]:
        """All of them, over training seeds."""
        return self.frame.groups()

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
        **variant: Any,
    ) -> Cell:
        """The cell of setup `number`, or of a task by name with any library where that is None.

        variant: what tells the library or its training from the plain one; a cell has none of it unless it is
        asked for. Errors: ResultsError unless there is exactly one.
        """
        wanted = {
            "task": number if isinstance(number, str) else f"setup-{number}",
            "rule": rule,
            "dataset": dataset,
            **({} if library is None else {"library": tuple(library)}),
            "control": control,
            "weights": None if weights is None else tuple(weights),
            "layers": layers,
            "variant": variant,
        }
        return self._one(asked, **wanted)

    def base(self, asked: str = "steps", dataset: str = "R") -> Cell:
        """What the base model answers."""
        return self._one(asked, control=BASE, task="setup-0", dataset=dataset)

    def alone(self, name: str, asked: str = "steps", dataset: str = "R") -> Cell:
        """One adapter of setup 0 on its own."""
        return self.cell(0, "sum", asked, dataset, library=(name,), control=name)

    def merged(self, asked: str, dataset: str, library: Iterable[str]) -> list[Cell]:
        """Every cell in which this library is merged, by any rule, setup, training, and weights but zero."""
        about = {"dataset": dataset, "library": tuple(library), "control": None}
        cells = select(self.cells, **ASKED[asked], **about)
        return [cell for cell in cells if all(cell.info.weights or (1,))]

    def _one(self, asked: str, **wanted: Any) -> Cell:
        several = select(self.cells, **ASKED[asked], **wanted)
        if len(several) != 1:
            raise ResultsError(
                f"{self.folder.name} has {len(several)} cells with {wanted}: the page needs one"
            )
        return several[0]

    @property
    def seeds(self) -> list[int]:
        """The training seeds."""
        return sorted({info.seed for info in self.frame.cells.values() if info.seed is not None})

    @property
    def layers(self) -> list[str]:
        """Which layers were adapted in any of the rows."""
        return sorted({info.layers for info in self.frame.cells.values() if info.layers})

    def adapters(self, steps: int) -> list[dict[str, Any]]:
        """The adapters that were trained for that many steps: their seconds, training and own task."""
        return [line for line in self.frame.adapters.values() if line["steps"] == steps]


def as_before(cell: Cell, base: Cell) -> float:
    """Share of a cell's answers that are what the base says, word by word."""
    said = {item: text for (_, item), text in base.texts().items()}
    return cell.share_of(lambda row: said[row["item"]] == row["text"])


def span(values: Sequence[float]) -> str:
    """Percentages from least to most: "3.9–8.8%"."""
    return "–".join(f"{value:g}" for value in sorted({min(values), max(values)})) + "%"


def claim(holds: object) -> str:
    """Nothing, if what the prose says holds. Errors: ResultsError if not."""
    if not holds:
        raise ResultsError("a claim of the page does not hold on the rows; reword it")
    return ""


def render(template: Path, data: Path, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """The page as Markdown.

    data: the folder of kept folders. functions: what the template may call beside rows, printed, claim and
    as_before. Errors: ResultsError naming the template's line.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"median": median, "span": span}
    environment.filters["percent"] = lambda share: f"{percent(share)}%"
    known: dict[str, Callable[..., Any]] = {
        "rows": lambda name: Rows(data / name),
        "printed": paper.printed,
        "claim": claim,
        "as_before": as_before,
        "contrast": contrast,
        **(functions or {}),
    }
    try:
        return environment.get_template(template.name).render(**known)
    except TemplateError as error:
        raise ResultsError(f"{template}: {error}") from error
