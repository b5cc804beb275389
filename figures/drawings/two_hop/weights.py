"""Survival of one hop: how often the edited one-hop answer is given, against its adapter's merge weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLACK, BLUE, VERMILION
from results.cells import Cell

#: The adapter of each hop in a pair: place, colour, marker, label.
HOPS = {
    "hop1": (0, BLUE, "o", "hop 1 (x R1)"),
    "hop2": (1, VERMILION, "^", "hop 2 (y R2)"),
}


def swept(cell: Cell) -> bool:
    """Whether a cell belongs to the sweep of two weights that add up to one."""
    return (
        cell.info.rule == "sum" and cell.info.weights is not None and len(cell.info.weights) == 2
        and abs(sum(cell.info.weights) - 1) < 1e-9 and not cell.info.variant and cell.info.control is None
    )  # fmt: skip


def curves(cells: Iterable[Cell]) -> list[Cell]:
    """Those of the cells that differ from another one in nothing but the weights: one point is no curve."""
    sweeps: dict[str, list[Cell]] = {}
    for cell in cells:
        sweeps.setdefault(cell.key("weights", "spec_hash"), []).append(cell)
    return [cell for sweep in sweeps.values() if len(sweep) > 1 for cell in sweep]


@registry.figure(
    "weights",
    "Survival of a single hop, toy against language model",
    "How often the edited answer is given as its adapter's share of the merge grows. The dashed step "
    "is the toy's edge.",
    place=6,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A column for known facts and one for fresh ones, a line of panels for each model."""
    cells = curves(cell for cell in given if swept(cell) and cell.group in HOPS)
    if not cells:
        raise NothingToDrawError(
            "needs rows of experiment survival (two pairs of weights a and 1 - a at least)"
        )
    models = notes.models(cells)
    kinds = [known for known in (True, False) if any(notes.known(cell) == known for cell in cells)]
    figure = style.blank(style.PAGE, 1.35 + 1.9 * len(models))
    panels = figure.subplots(len(models), len(kinds), sharex=True, sharey=True, squeeze=False)
    for line, model in zip(panels, models, strict=True):
        for axes, known in zip(line, kinds, strict=True):
            own = [c for c in cells if c.info.base == model and notes.known(c) == known]
            _panel(axes, own)
            data = ", ".join(sorted({cell.info.dataset or "" for cell in own}))
            kind = notes.FACTS[known]
            axes.set_title(f"{kind} ({data})" if own else f"{kind} (not measured)")
        line[0].set_ylabel(f"{model}:\nshare answered rightly")
    for axes in panels[-1]:
        axes.set_xlabel("merge weight of the hop's own adapter")
        axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
    marks = [
        Line2D([], [], color=colour, marker=marker, label=f"measured, {label}")
        for _, colour, marker, label in HOPS.values()
    ]
    marks.append(Line2D([], [], color=BLACK, linestyle=(0, (4, 1.5)), linewidth=1.1, label="toy, either hop"))
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.4)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "The two adapters' products are added with weights that sum to one; each hop is asked on its own",
            notes.measured(cells),
            notes.INTERVALS,
            notes.regime(cells)
            + "; it turns right where its margin, a straight line between weights, is zero",
            *notes.undertrained(cells),
        ),
    )
    return figure


def _panel(axes: Axes, cells: Sequence[Cell]) -> None:
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.04, 1.06))
    for number, (group, (place, colour, marker, _)) in enumerate(HOPS.items()):
        own = sorted((c for c in cells if c.group == group), key=partial(weight, place=place))
        if not own:
            continue
        weights = np.array([weight(cell, place) for cell in own])
        shares = np.array([cell.share for cell in own])
        spread = np.abs(np.array([cell.interval() for cell in own]).T - shares)
        margins = [cell.prediction["margin"] for cell in own if cell.prediction]
        if number == 0 and len(margins) == len(own):
            edge = turning(weights, margins)
            steps = ([0, edge, edge, 1], [0, 0, 1, 1])
            axes.plot(*steps, color=BLACK, linestyle=(0, (4, 1.5)), linewidth=1.1)
        axes.errorbar(
            weights + (number - 0.5) * 0.012, shares, spread, color=colour, marker=marker, elinewidth=0.8
        )
        for cell, x in zip(own, weights, strict=True):
            if cell.undertrained:
                style.ring(axes, x + (number - 0.5) * 0.012, cell.share)


def weight(cell: Cell, place: int) -> float:
    """The weight of the adapter at this place of the library."""
    return (cell.info.weights or (1.0,) * len(cell.info.library))[place]


def turning(weights: Sequence[float] | np.ndarray, margins: Sequence[float]) -> float:
    """The weight at which a margin that grows with it is zero; between the weights it is straight."""
    return float(np.interp(0.0, margins, weights))
