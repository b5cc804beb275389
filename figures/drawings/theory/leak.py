"""The leak of one edit: what it adds on prompts that share tokens with it, in closed form and in samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import THEORY
from figures.store import Row
from figures.style import BLACK, GREY, PALE, VERMILION

MASKS = {"strict": "Strict mask", "causal": "Causal mask"}


@registry.figure(
    "leak",
    "Where else an edit shows",
    "How much of an edit's change of output appears on prompts that share its entity, its relation or "
    "nothing.",
    place=14,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """What an edit of x R1 adds on prompts that share tokens with it: closed form and samples."""
    figure = style.blank(style.PAGE, 4.3)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (mask, title) in zip(panels, MASKS.items(), strict=True):
        chosen = [row for row in rows if row["mask"] == mask]
        heights = [-number - (row["hops"] - 1) for number, row in enumerate(chosen)]
        for row, height in zip(chosen, heights, strict=True):
            _leak_line(axes, row, height)
        axes.set_title(title)
        axes.set(xlim=(0, 1.2), ylim=(min(heights) - 0.6, 1.3), yticks=heights)
        axes.set_yticklabels([f"{row['shares']}:  {row['prompt']}" for row in chosen])
        axes.set_xlabel("share of the edit's change that leaks")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="x", color=PALE, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", left=False)
        for hops, text in (
            (1, "one hop; shared with the edit x R1:"),
            (2, "two hops; shared with the edit x R1:"),
        ):
            first = max(height for row, height in zip(chosen, heights, strict=True) if row["hops"] == hops)
            axes.text(0.0, first + 0.72, text, va="center", fontstyle="italic")
    row = rows[0]
    marks = [
        Line2D([], [], color=BLACK, marker="|", markersize=9, mew=1.6, linestyle="", label="limit"),
        Line2D([], [], color=GREY, linewidth=5, alpha=0.5, label="± 2 derived standard errors of one sample"),
        Line2D([], [], color=VERMILION, marker="o", markersize=3, linestyle="", label="sampled network"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.4, handletextpad=0.5)
    sizes = row["regime"]
    style.note(
        figure,
        f"n = 1 fact, uniform attention; {row['draws']} sampled networks a mask, d = {sizes['dimension']:,}, "
        f"m = {sizes['width']:,} (seed {notes.numbers(row['seeds'])}). Numbers: the limit.",
    )
    return figure


def _leak_line(axes: Axes, row: Row, height: float) -> None:
    spread = 2 * row["standard_error"]
    axes.plot(
        [row["limit"] - spread, row["limit"] + spread],
        [height] * 2,
        color=GREY,
        alpha=0.5,
        linewidth=5,
        solid_capstyle="butt",
    )
    lift = np.linspace(-0.26, 0.26, len(row["samples"]))
    axes.plot(row["samples"], height + lift, "o", color=VERMILION, markersize=2, markeredgewidth=0)
    axes.plot([row["limit"]], [height], "|", color=BLACK, markersize=11, markeredgewidth=1.6)
    right = max(row["limit"] + spread, *row["samples"]) + 0.015
    axes.text(right, height, f"{row['limit']:.3f}", va="center")
