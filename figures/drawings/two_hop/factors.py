"""Gauge and initial factors: rules that merge factors or products, from one initial A or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLUE, PALE, VERMILION
from results.cells import Cell
from toytransformer.merging import RULES

GAUGES = {
    "as trained": "as trained",
    "flipped": "one flipped",
    "random:0": "turned",
    "svd": "SVD",
}
STARTS = {
    "independent": (BLUE, "o", "an initial A for each adapter"),
    "shared": (VERMILION, "^", "one initial A for both"),
}
QUESTIONS = {
    "hop1/direct": "Hop 1",
    "hop2/direct": "Hop 2",
    "two-hop/steps": "Two hops,\nstep by step",
    "two-hop/direct": "Two hops,\ndirectly",
}


@registry.figure(
    "factors",
    "The same updates in other factors, measured",
    "Each rule on the very same updates of a language model, written in several gauges and trained "
    "from one or from several initial factors.",
    place=11,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A panel for each way of asking; a line for each rule and form of the same updates."""
    cells = [cell for cell in given if {"initial_a", "gauge"} <= cell.info.variant.keys()]
    cells = [cell for cell in cells if cell.question_kind in QUESTIONS]
    if not cells:
        raise NothingToDrawError("needs rows of experiment gauge")
    model = notes.models(cells)[0]
    cells = [cell for cell in cells if cell.info.base == model]
    merged = {cell.info.rule for cell in cells}
    rules = sorted((rule for rule in RULES.values() if rule.name in merged), key=lambda rule: rule.routed)
    lines = [(rule.name, gauge) for rule in rules for gauge in GAUGES]
    figure = style.blank(style.PAGE, 5.3)
    panels = figure.subplots(1, len(QUESTIONS), sharex=True, sharey=True)
    for axes, (kind, title) in zip(panels, QUESTIONS.items(), strict=True):
        _panel(axes, [cell for cell in cells if cell.question_kind == kind], lines)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("share right")
    panels[0].set_yticks(range(len(lines)), [_label(*line) for line in lines])
    for text, (_, gauge) in zip(panels[0].get_yticklabels(), lines, strict=True):
        text.set_fontweight("normal" if gauge != "as trained" else "bold")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for colour, marker, label in STARTS.values()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=2)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "The same updates ΔW in other factors: one adapter's signs flipped, each turned by a random "
            "orthogonal matrix of its own, or balanced factors of its SVD; a rule of products cannot see it",
            notes.measured(cells) + f", data set {cells[0].info.dataset}",
            notes.INTERVALS,
            *notes.undertrained(cells),
        ),
    )
    return figure


def _label(rule: str, gauge: str) -> str:
    if gauge != "as trained":
        return GAUGES[gauge]
    return f"{rule} ({'factors' if RULES[rule].factor_wise else 'products'}): {GAUGES[gauge]}"


def _panel(axes: Axes, cells: Sequence[Cell], lines: Sequence[tuple[str, str]]) -> None:
    for top in range(0, len(lines), 2 * len(GAUGES)):
        axes.axhspan(top - 0.5, top + len(GAUGES) - 0.5, color=PALE, alpha=0.5, linewidth=0)
    for cell in cells:
        variant = cell.info.variant
        colour, marker, _ = STARTS[str(variant["initial_a"])]
        shift = 0.15 if variant["initial_a"] == "shared" else -0.15
        height = lines.index((cell.info.rule, str(variant["gauge"]))) + shift
        share = cell.share
        axes.plot(cell.interval(), [height] * 2, color=colour, linewidth=0.8, clip_on=False)
        axes.plot([share], [height], marker, color=colour, clip_on=False)
        if cell.undertrained:
            style.ring(axes, share, height)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.linspace(0, 1, 3), ["0", "½", "1"])
