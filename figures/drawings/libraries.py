"""Right answers of any domain: a line for each library and merge rule, a mark for each group of questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import CELLS, NothingToDrawError
from figures.style import BLUE, GREEN, GREY, PALE, PURPLE, SKY, VERMILION
from results.cells import Cell
from results.rows import BASE, RANDOM

#: Colours and markers of the groups, in the order of the rows; how many groups and lines fit.
LOOKS = ((SKY, "<"), (BLUE, ">"), (GREY, "x"), (VERMILION, "o"), (GREEN, "s"), (PURPLE, "v"))
LINES = 48
#: Inches: a line, and the heading above a panel.
LINE, HEADING = 0.17, 0.3


@registry.figure(
    "libraries",
    "Right answers by library and merge rule",
    "How often the base model, each adapter alone and each merge answers rightly, by group of questions; "
    "of each domain the model and task with most cells.",
    place=13,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A panel for each domain: plain adapters, each under its rule, without sweeps of weights."""
    plain = [cell for cell in given if not cell.info.variant and cell.info.weights is None]
    domains = dict.fromkeys(cell.info.domain for cell in plain)
    panels = {name: _largest(cell for cell in plain if cell.info.domain == name) for name in domains}
    if not panels:
        raise NothingToDrawError("needs rows of any experiment, of adapters merged without weights")
    shown = [cell for cells in panels.values() for cell in cells]
    kinds = list(dict.fromkeys(cell.question_kind for cell in shown))[: len(LOOKS)]
    lines = {
        name: list(dict.fromkeys(map(line, sorted(cells, key=_kind))))[:LINES]
        for name, cells in panels.items()
    }
    heights = [HEADING + LINE * len(several) for several in lines.values()]
    figure = style.blank(style.PAGE, 1.35 + sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (name, cells) in zip(grid[:, 0], panels.items(), strict=True):
        _panel(axes, cells, lines[name], kinds)
        info = cells[0].info
        data = f" on {info.dataset}" if info.dataset else ""
        axes.set_title(f"{name}: {info.task}{data}, {info.base}")
    grid[-1, 0].set_xlabel("share of right answers")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=notes.question_label(name))
        for name, (colour, marker) in zip(kinds, LOOKS, strict=False)
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.2)
    sentences = (notes.measured(shown), notes.INTERVALS, *notes.undertrained(shown))
    style.note(figure, notes.wrapped(style.PAGE - 0.1, *sentences))
    return figure


def line(cell: Cell) -> str:
    """What the line of a cell is called."""
    info = cell.info
    library = f"{len(info.library)} adapters" if len(info.library) > 3 else " + ".join(info.library)
    if info.control == BASE:
        return "no adapter"
    if info.control == RANDOM:
        return f"random for {library}, {info.rule}"
    return f"{library} alone" if len(info.library) == 1 else f"{library}, {info.rule}"


def _kind(cell: Cell) -> tuple[int, int]:
    """Without training first, then single adapters, then merges by their number of adapters."""
    return int(cell.trained), len(cell.info.library)


def _largest(cells: Iterable[Cell]) -> list[Cell]:
    """Of one domain the cells of the base, task, data set and layers with most, and of that base alone."""
    cells = list(cells)
    counts = Counter(_place(cell) for cell in cells if cell.info.layers)
    (place, _), *_ = counts.most_common(1) or [((cells[0].info.base, "", None, None), 0)]
    return [cell for cell in cells if _place(cell) in (place, (*place[:-1], None))]


def _place(cell: Cell) -> tuple[str, str, str | None, str | None]:
    return cell.info.base, cell.info.task, cell.info.dataset, cell.info.layers


def _panel(axes: Axes, cells: Sequence[Cell], lines: Sequence[str], kinds: Sequence[str]) -> None:
    for top in range(0, len(lines), 2):
        axes.axhspan(top - 0.5, top + 0.5, color=PALE, alpha=0.5, linewidth=0)
    for cell in cells:
        if cell.question_kind not in kinds or (name := line(cell)) not in lines:
            continue
        number = kinds.index(cell.question_kind)
        colour, marker = LOOKS[number]
        height = lines.index(name) + 0.6 * ((number + 0.5) / len(kinds) - 0.5)
        axes.plot(cell.interval(), [height] * 2, color=colour, linewidth=0.8, clip_on=False)
        axes.plot([cell.share], [height], marker, color=colour, markersize=3.5, clip_on=False)
        if cell.undertrained:
            style.ring(axes, cell.share, height)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticks(range(len(lines)), lines)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
