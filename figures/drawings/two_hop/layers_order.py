"""Where composition begins: two layers in the theory, and the same orders of layers in a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLACK, BLUE, GREY, PALE, VERMILION, Dashes
from results.cells import Cell
from toytransformer.two_layers import two_layers

#: Orders by the layers of hop 1 and of hop 2, from the top; the first is the one that composes.
ORDERS = {
    "hop1=mlp@lower half, hop2=mlp@upper half": "hop 1 lower, hop 2 upper",
    "hop1=mlp@upper half, hop2=mlp@lower half": "hop 1 upper, hop 2 lower",
    "hop1=mlp@lower half, hop2=mlp@lower half": "both lower",
    "hop1=mlp@upper half, hop2=mlp@upper half": "both upper",
}
#: Weights of hop 2's adapter that are drawn.
WEIGHTS = np.linspace(0, 6, 121)
KINDS: dict[bool, tuple[str, Dashes, str]] = {
    True: (BLUE, "-", "known facts"),
    False: (VERMILION, (0, (5, 1.5)), "fresh facts"),
}


@registry.figure(
    "layers-order",
    "Where composition begins",
    "Two tied layers, one for each hop: by how much the right answer to a two-hop question leads under the "
    "plain sum, and what a language model answers under the same orders of layers.",
    place=16,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """Margins of two tied layers against the weight of hop 2, beside measured shares by order of layers."""
    cells = {cell.info.layers: cell for cell in reversed(given) if ordered(cell)}
    if not cells:
        raise NothingToDrawError("needs rows of experiment layer-order on two-hop questions asked directly")
    facts = max(cell.clusters // max(len(cell.names), 1) for cell in cells.values())
    figure = style.blank(style.PAGE, 3.1)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _margins(left, facts)
    _shares(right, cells, facts)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            f"Left: full limit, strict mask, n = {facts}, hop 1 at weight 1, the same for every relabelling",
            "Right: the plain sum, two-hop questions asked directly",
            notes.measured(list(cells.values())),
            notes.INTERVALS,
            *notes.undertrained(cells.values()),
        ),
    )
    return figure


def ordered(cell: Cell) -> bool:
    """Whether a cell is the plain sum of one of the orders, asked both hops directly."""
    info = cell.info
    plain = info.rule == "sum" and info.weights is None and info.control is None and not info.variant
    return plain and cell.question_kind == "two-hop/direct" and info.layers in ORDERS


def _margins(axes: Axes, facts: int) -> None:
    axes.axhline(0, color=BLACK, linewidth=0.7)
    for known, (colour, dashes, label) in KINDS.items():
        one = two_layers(facts, 1.0, known=known)
        rival = np.maximum(max(one.old, one.bridge), WEIGHTS * one.other)
        axes.plot(
            WEIGHTS,
            WEIGHTS * one.own - rival,
            color=colour,
            linestyle=dashes,
            label=f"{label}: right from {one.threshold:.2f} on",
        )
        axes.plot([one.threshold], [0], "o", color=colour, markersize=5, markeredgecolor="white", zorder=5)
    axes.set(xlim=(WEIGHTS[0], WEIGHTS[-1]), xlabel="weight of hop 2's adapter")
    axes.set_ylabel("right answer's output\nminus the largest other")
    axes.set_title("Theory: tied, hop 1 below hop 2")
    axes.legend(loc="upper left")


def _shares(axes: Axes, cells: dict[str | None, Cell], facts: int) -> None:
    axes.axvline(1 / facts, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.text(1 / facts, 0.5, f" 1/n = {1 / facts:.0%}", color=GREY, va="center")
    for row, layers in enumerate(ORDERS):
        if (cell := cells.get(layers)) is None:
            axes.text(0.0, row, "– not measured", va="center", color=GREY)
            continue
        low, high = cell.interval()
        axes.barh(row, cell.share, 0.6, color=BLUE if row == 0 else PALE, edgecolor=BLACK, linewidth=0.5)
        spread = [[max(cell.share - low, 0.0)], [max(high - cell.share, 0.0)]]
        axes.errorbar([cell.share], [row], xerr=spread, fmt="none", ecolor=BLACK, elinewidth=0.8)
        if cell.undertrained:
            style.ring(axes, cell.share, row)
    axes.set_yticks(range(len(ORDERS)), list(ORDERS.values()))
    axes.set(ylim=(len(ORDERS) - 0.4, -0.7), xlabel="share answered rightly")
    axes.set_xlim(left=0)
    axes.set_title("Measured")
