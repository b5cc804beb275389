"""Predicted against measured: the right answer's predicted margin, and how often it was given, cell by cell.

A margin is what the theory computes: the right answer's output minus the largest other one; above zero, the
toy answers rightly. Single hops, two-hop questions asked directly and those step by step are three panels,
for merged libraries and for single adapters. Directly, the margin is that of x R1 R2; step by step, the
smaller one of the two hops it goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLACK, BLUE, GREY, VERMILION
from predictors.agreement import library, spearman
from results.cells import Cell
from results.statistics import group_bootstrap

PANELS = {
    "Single hops": (("hop1", "direct"), ("hop2", "direct")),
    "Two hops, directly": (("two-hop", "direct"),),
    "Two hops, step by step": (("two-hop", "steps"),),
}
KINDS = {True: (BLUE, "o", "known facts"), False: (VERMILION, "^", "fresh facts")}
#: Bootstrap draws of whole libraries behind the interval of the rank correlation.
DRAWS = 999
#: Lines of panels: their title, and whether a library is of them.
LIBRARIES: dict[str, Callable[[Cell], bool]] = {
    "merged": lambda cell: len(cell.info.library) > 1,
    "one adapter": lambda cell: len(cell.info.library) == 1,
}


@registry.figure(
    "agreement",
    "Predicted against measured",
    "A dot is one library, merge and way of asking. To the right of the line the toy answers rightly; "
    "a rank correlation of one would mean that it orders all of them as measured. Merged libraries and "
    "single adapters stand apart: that an adapter alone says what it learned is easily predicted.",
    place=4,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """One dot a cell, its training seeds pooled; adapters as trained, without controls that the toy lacks.

    Sweeps of merge weights are left out: dozens of points of one library would outweigh all others.
    """
    cells = [cell for cell in given if predicted(cell) and not cell.info.variant and not cell.info.weights]
    panels = {
        (kind, title): [c for c in cells if of(c) and (c.group, c.ask) in several]
        for kind, of in LIBRARIES.items()
        for title, several in PANELS.items()
    }
    if lacking := [title for (kind, title), members in panels.items() if kind == "merged" and not members]:
        raise NothingToDrawError(
            f"needs predicted rows of merged libraries in each way of asking, there are none of: {lacking[0]}"
        )
    figure = style.blank(style.PAGE, 5.4)
    grid = figure.subplots(len(LIBRARIES), len(PANELS), sharex=True, sharey=True)
    models = notes.models(cells)
    for axes, members in zip(grid.flat, panels.values(), strict=True):
        _panel(axes, members, models[0])
    for axes, title in zip(grid[0], PANELS, strict=True):
        axes.set_title(title)
    for axes, title in zip(grid[-1], PANELS, strict=True):
        axes.set_xlabel("smaller margin of its two hops" if "step" in title else "predicted margin")
    for axes, kind in zip(grid[:, 0], LIBRARIES, strict=True):
        axes.set_ylabel(f"{kind}:\nmeasured share right")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for colour, marker, label in KINDS.values()
    ]
    if len(models) > 1:
        label = f"open: {', '.join(models[1:])}"
        marks.append(Line2D([], [], color=BLACK, marker="o", fillstyle="none", linestyle="", label=label))
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.4, handletextpad=0.3)
    sizes = ", ".join(f"{len(members)}" for members in panels.values())
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "Margin: the right answer's output minus the largest other; at the line the toy turns right",
            f"A dot is a library, merge rule, data set and way of asking ({sizes} in the panels), seeds "
            "pooled; without sweeps of weights",
            notes.measured(cells),
            notes.regime(cells),
            *notes.undertrained(cells),
            f"ρ: Spearman's rank correlation with its 95% interval, {DRAWS:,} bootstraps over libraries",
        ),
    )
    return figure


def _panel(axes: Axes, cells: Sequence[Cell], first: str) -> None:
    axes.axvline(0, color=GREY, linewidth=0.8)
    for cell in cells:
        colour, marker, _ = KINDS[notes.known(cell)]
        fill = colour if cell.info.base == first else "none"
        place = (margin(cell), cell.share)
        axes.plot(*place, marker, color=colour, markerfacecolor=fill, alpha=0.6)
        if cell.undertrained:
            style.ring(axes, *place)
    axes.set(xlim=(-1.35, 1.15), ylim=(-0.04, 1.2))
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−½", "0", "½", "1"])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    rho, low, high = correlation(cells) if cells else (np.nan,) * 3
    text = f"ρ = {rho:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
    text = ("ρ: all alike" if cells else "not measured") if np.isnan(rho) else text
    axes.text(-1.28, 1.12, text, va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def predicted(cell: Cell) -> bool:
    """Whether the toy has a margin for the cell."""
    return cell.prediction is not None and cell.prediction.get("margin") is not None


def margin(cell: Cell) -> float:
    """The predicted margin. Errors: ValueError where there is none."""
    if cell.prediction is None:
        raise ValueError(f"{cell.info.task} by {cell.info.rule} has no prediction")
    return float(cell.prediction["margin"])


def correlation(cells: Sequence[Cell]) -> tuple[float, float, float]:
    """Spearman's rank correlation of margin and measured share; 95% percentile interval over libraries.

    Cells of one library of adapters are not independent, so whole libraries are drawn.
    """
    margins = np.array([margin(cell) for cell in cells])
    shares = np.array([cell.share for cell in cells])

    def statistic(rows: np.ndarray) -> list[float]:
        return [spearman(margins[rows], shares[rows])]

    ((low, high),) = group_bootstrap(statistic, [library(cell) for cell in cells], seed=0, draws=DRAWS)
    return spearman(margins, shares), low, high
