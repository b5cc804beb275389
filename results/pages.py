"""Pages whose every number is read off kept rows, and whose every claim is checked against them.

In the templates `rows(NAME)` gives the cells of one model, and `claim` refuses to write a page whose rows do
not say what its prose says. What a domain's pages call its cells, a subclass of Rows says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from results import frame, paper
from results.cells import Cell, percent
from results.contrasts import contrast
from results.frame import Frame, select


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

    def one(self, **wanted: object) -> Cell:
        """The cell whose fields are these. Errors: ResultsError unless there is exactly one."""
        several = select(self.cells, **wanted)
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
    def draws(self) -> list[int]:
        """The draws of names."""
        return sorted({info.names for info in self.frame.cells.values() if info.names is not None})

    @property
    def layers(self) -> list[str]:
        """Which layers were adapted in any of the rows."""
        return sorted({info.layers for info in self.frame.cells.values() if info.layers})

    def adapters(self, steps: int) -> list[dict[str, object]]:
        """The adapters that were trained for that many steps: their seconds, training and own task."""
        return [line for line in self.frame.adapters.values() if line["steps"] == steps]


def as_before(cell: Cell, base: Cell) -> float:
    """Share of a cell's answers that are what the base says, word by word."""
    said = {item: text for (_, item), text in base.texts().items()}
    texts = cell.texts()
    return sum(said[item] == text for (_, item), text in texts.items()) / len(texts)


def span(values: Sequence[float]) -> str:
    """Percentages from least to most: "3.9–8.8%"."""
    return "–".join(f"{value:g}" for value in sorted({min(values), max(values)})) + "%"


def claim(holds: object) -> str:
    """Nothing, if what the prose says holds. Errors: ResultsError if not."""
    if not holds:
        raise ResultsError("a claim of the page does not hold on the rows; reword it")
    return ""


def render(
    template: Path,
    data: Path,
    functions: Mapping[str, Callable[..., object]] | None = None,
    rows: type[Rows] = Rows,
) -> str:
    """The page as Markdown.

    data: the folder of kept folders. functions: what the template may call beside rows, printed, claim and
    as_before. rows: what rows(NAME) gives. Errors: ResultsError naming the template's line.
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
    known: dict[str, Callable[..., object]] = {
        "rows": lambda name: rows(data / name),
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
