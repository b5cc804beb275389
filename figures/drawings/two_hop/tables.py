"""The paper's tables beside the toy's prediction and our measurement, line by line.

Our rules have the paper's names as in `results.paper`: Uniform and Arrow are families, whose
form of products and form of factors both stand beside the paper's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLACK, BLUE, GREEN, GREY, PALE, VERMILION
from results import paper
from results.cells import Cell

#: Tables in each column of the drawing.
COLUMNS = (("table1", "table10", "table9", "table12"), ("table7", "table8", "table2"))
MODELS = ((BLUE, "o"), (VERMILION, "^"), (GREEN, "s"), (style.PURPLE, "v"))
#: Inches: a line, a table's heading, and what legend and axis take.
LINE, HEADING, TOP, AXIS = 0.152, 0.29, 0.3, 0.42
LABELS = 1.3


@registry.figure(
    "tables",
    "The paper's tables, predicted and measured",
    "The paper's range over its models, the toy's prediction and our small models, line by line.",
    place=12,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """Every table in two columns; a band is the range over the paper's models, a tick one of them."""
    cells = [cell for cell in given if printed(cell)]
    if not cells:
        raise NothingToDrawError("needs rows of an experiment that the paper has a table of")
    models = notes.models(cells)[: len(MODELS)]
    note = notes.wrapped(
        style.PAGE - 0.1,
        "Accuracy on two-hop questions; libraries are asked step by step, single adapters directly; the "
        "toy's direct answer is what a model gives that does not follow the steps; a tick is one model",
        "Above, open: factors are merged; below, filled: products, or one adapter",
        "2 is the library of both hops, 3 that with the oracle, a number in front the bridge setup",
        notes.measured(cells),
        notes.INTERVALS,
        notes.regime(cells) + f"; of the facts as {models[0]} knows them",
        *notes.undertrained(cells),
    )
    marks: list[Artist] = [Patch(color="#BBBBBB", label="paper's models")]
    marks += [
        _labelled(_mark(BLACK, m, True), f"toy, {how}") for m, how in (("D", "in steps"), ("x", "directly"))
    ]
    marks += [_labelled(_mark(*look, True), model) for model, look in zip(models, MODELS, strict=False)]
    top_edge = TOP if len(marks) <= 5 else TOP + 0.18
    below = AXIS + 0.165 * (note.count("\n") + 1)
    tall = max(sum(HEADING + LINE * len(paper.tables()[name]["rows"]) for name in names) for names in COLUMNS)
    height = top_edge + tall + below
    figure = style.blank(style.PAGE, height)
    figure.set_layout_engine("none")
    for column, names in enumerate(COLUMNS):
        top = top_edge
        for name in names:
            inches = LINE * len(paper.tables()[name]["rows"])
            left = column * style.PAGE / 2 + LABELS
            low, wide = height - top - HEADING - inches, style.PAGE / 2 - LABELS - 0.12
            axes = figure.add_axes((left / style.PAGE, low / height, wide / style.PAGE, inches / height))
            _table(axes, name, cells, models, last=name == names[-1])
            top += HEADING + inches
    figure.legend(
        handles=marks,
        loc="upper center",
        ncols=5 if len(marks) <= 5 else 3,
        columnspacing=1.1,
        handletextpad=0.4,
    )
    figure.text(0.06 / style.PAGE, 0.06 / height, note, color="#333333", va="bottom", linespacing=1.25)
    return figure


def printed(cell: Cell) -> paper.Entry | None:
    """The cell in the paper's words, None where it has no number of it.

    Libraries were asked step by step; of single adapters it does not say, and they are taken directly. What
    libraries answer directly is kept for the toy alone.
    """
    plain = cell.info.variant.keys() <= {"adapters", "form"}
    alone = len(cell.info.library) == 1
    return paper.as_printed(cell) if plain and not (alone and cell.ask != "direct") else None


def factor_wise(rule: str) -> bool:
    """Whether a rule merges factors; the others merge products, or there is one adapter only."""
    from toytransformer.merging import resolve

    return resolve(rule).factor_wise


def matching(cells: Sequence[Cell], table: paper.Entry, row: paper.Entry) -> list[Cell]:
    """The cells that are a row of a table."""
    return [cell for cell in cells if (said := printed(cell)) and paper.is_row(said, table, row)]


def _mark(colour: str, marker: str, filled: bool, x: Sequence[float] = (), y: Sequence[float] = ()) -> Line2D:
    fill = (GREY if marker == "D" else colour) if filled else "white"
    mark = Line2D(x, y, linestyle="", clip_on=False, color=colour, marker=marker, markerfacecolor=fill)
    mark.set_markersize(5.5 if marker == "D" else 4)
    return mark


def _labelled(mark: Artist, label: str) -> Artist:
    mark.set_label(label)
    return mark


def _table(axes: Axes, name: str, cells: Sequence[Cell], models: Sequence[str], *, last: bool) -> None:
    table = paper.tables()[name]
    for height, row in enumerate(table["rows"]):
        if height % 2 == 0:
            axes.axhspan(height - 0.5, height + 0.5, color=PALE, alpha=0.45, linewidth=0)
        known = [value / 100 for value in row["values"] if not math.isnan(value)]
        axes.plot([min(known), max(known)], [height] * 2, color="#BBBBBB", linewidth=7, solid_capstyle="butt")
        axes.plot(known, [height] * len(known), "|", color="#555555", markersize=6, markeredgewidth=0.8)
        for cell in matching(cells, table, row):
            _cell(axes, cell, height, models)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(table["rows"]) - 0.5, -0.5))
    axes.set_yticks(range(len(table["rows"])), [_label(row) for row in table["rows"]])
    axes.tick_params(axis="y", length=0, pad=3)
    axes.set_xticks(np.linspace(0, 1, 6), ["0", "20", "40", "60", "80", "100"])
    axes.tick_params(axis="x", bottom=last, labelbottom=last)
    if last:
        axes.set_xlabel("accuracy, %", labelpad=2)
    axes.spines["bottom"].set_visible(last)
    title = f"Table {name.removeprefix('table')}: {SHORT[name]}"
    axes.text(-LABELS / (style.PAGE / 2 - LABELS - 0.12) * 0.97, -0.62, title, fontweight="bold", va="bottom")


SHORT = {
    "table1": "bridge setups, Arrow",
    "table2": "merge methods, R",
    "table7": "libraries of 2 and 3, single adapters",
    "table8": "layers that are adapted, F",
    "table9": "layers, setups 1 and 2",
    "table10": "bridge setups, both routings",
    "table12": "ten adapters, five relations",
}
_WORDS = {
    "two-hop": "2",
    "with-oracle": "3",
    "oracle-only": "oracle",
    "library-disjoint": "disjoint",
    "library-shared": "shared",
}


def _label(row: Mapping[str, Any]) -> str:
    """What the row's own keys say, in few notes."""
    parts = [str(_WORDS.get(v, v)) for k, v in row.items() if k not in ("values", "setup") and v != "alone"]
    return " ".join(([f"{row['setup']}"] if "setup" in row else []) + parts)


def _cell(axes: Axes, cell: Cell, height: float, models: Sequence[str]) -> None:
    filled, alone = not factor_wise(cell.info.rule), len(cell.info.library) == 1
    directly = cell.ask == "direct" and not alone
    shift = height if alone else height + (0.17 if filled else -0.17)
    if cell.info.base == models[0] and cell.prediction:
        right = cell.prediction["shares"].get("correct", 0.0)
        toy = _mark(BLACK, "x" if directly else "D", filled, [right], [shift])
        toy.set_zorder(2.5)
        axes.add_line(toy)
    if cell.info.base in models and not directly:
        colour, marker = MODELS[models.index(cell.info.base)]
        share = cell.share
        axes.plot(cell.interval(), [shift] * 2, color=colour, linewidth=0.8, clip_on=False)
        if cell.undertrained:
            style.ring(axes, share, shift)
        mark = _mark(colour, marker, filled, [share], [shift])
        mark.set_zorder(3)
        axes.add_line(mark)
