"""The mixture: how likely z, y and the old answer are on x R1 R2 as the second adapter is scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.drawings.two_hop.weights import curves
from figures.registry import NothingToDrawError
from figures.style import GREEN, ORANGE, Dashes
from results.cells import Cell

ROLES: dict[str, tuple[str, str, Dashes, str]] = {
    "correct": (GREEN, "o", "-", "z, the right answer"),
    "bridge": (ORANGE, "s", (0, (4, 1.5)), "y, the first hop's answer"),
    "old": ("#00508A", "^", (0, (1, 1.2)), "what the base answers"),
}


def scaled(cell: Cell) -> bool:
    """Whether a cell belongs to the sweep of weights (1, s)."""
    return (
        cell.info.rule == "sum" and cell.info.weights is not None and len(cell.info.weights) == 2
        and cell.info.weights[0] == 1 and not cell.info.variant and cell.info.control is None
    )  # fmt: skip


@registry.figure(
    "mixture",
    "The two-hop answer inside the mixture",
    "How the right answer, the bridge entity and the base's answer gain and lose as the second "
    "adapter is scaled.",
    place=7,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """Above the toy's outputs, below log-probabilities of a model; a column for known and for fresh facts.

    Of several models it is the one with most cells.
    """
    cells = curves(c for c in given if scaled(c) and c.question_kind == "two-hop/direct" and c.scored)
    if not cells:
        raise NothingToDrawError(
            "needs log-probabilities in rows of experiment survival (two weights s at least)"
        )
    model = notes.models(cells)[0]
    cells = [cell for cell in cells if cell.info.base == model]
    columns = sorted({not notes.known(cell) for cell in cells})
    figure = style.blank(style.PAGE, 4.6)
    panels = figure.subplots(
        2, len(columns), sharex=True, sharey="row", squeeze=False, height_ratios=(1, 1.3)
    )
    for (above, below), fresh in zip(panels.T, columns, strict=True):
        own = [cell for cell in cells if notes.known(cell) != fresh]
        own.sort(key=weight)
        _toy(above, own)
        _measured(below, own)
        above.set_title(f"{'Fresh' if fresh else 'Known'} facts, toy")
        below.set_title(f"{'Fresh' if fresh else 'Known'} facts, {model} ({own[0].info.dataset})")
        below.set_xlabel("weight s of the second adapter\n(the first has 1)")
    panels[0, 0].set_ylabel("output")
    panels[1, 0].set_ylabel("log-probability (nats)")
    shown = {role for cell in cells for role in (*cell.scored, *_outputs(cell))}
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, label=label)
        for role, (colour, marker, dashes, label) in ROLES.items()
        if role in shown
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.4)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "Asked x R1 R2 directly; the products are added with weights (1, s)",
            notes.measured(cells),
            "Measured: mean log-probability of the whole name after the expected words; bars: 95% "
            "bootstrap intervals over chains",
            notes.regime(cells),
            *notes.undertrained(cells),
        ),
    )
    return figure


def weight(cell: Cell) -> float:
    """The second adapter's weight, s of (1, s)."""
    return (cell.info.weights or (1.0, 1.0))[1]


def _outputs(cell: Cell) -> Mapping[str, float]:
    return cell.prediction["outputs"] if cell.prediction else {}


def _toy(axes: Axes, cells: Sequence[Cell]) -> None:
    for role, (colour, marker, dashes, _) in ROLES.items():
        if all(role in _outputs(cell) for cell in cells):
            heights = [_outputs(cell)[role] for cell in cells]
            axes.plot(list(map(weight, cells)), heights, marker, color=colour, linestyle=dashes)
    axes.margins(y=0.12)


def _measured(axes: Axes, cells: Sequence[Cell]) -> None:
    for role, (colour, marker, dashes, _) in ROLES.items():
        own = [cell for cell in cells if role in cell.scored]
        if own:
            means, low, high = np.array([cell.logprob(role) for cell in own]).T
            spread = (means - low, high - means)
            axes.errorbar(
                list(map(weight, own)),
                means,
                spread,
                color=colour,
                marker=marker,
                linestyle=dashes,
                elinewidth=0.8,
            )
            for cell, height in zip(own, means, strict=True):
                if cell.undertrained:
                    style.ring(axes, weight(cell), height)
