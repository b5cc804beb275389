"""Survival of one hop in the theory: its margin against its adapter's weight, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import registry, style
from figures.bars import bar
from figures.registry import THEORY
from figures.store import Row, one
from figures.style import BLACK, BLUE, GREY, VERMILION, Dashes

CURVES: dict[tuple[str, int], tuple[str, Dashes, str]] = {
    ("sum", 1): (BLUE, "-", "sum of products, n = 1"),
    ("sum", 10): (BLUE, (0, (1, 1.2)), "sum of products, n = 10"),
    ("linear", 1): (VERMILION, (0, (5, 1.5)), "linear (factor-wise, SVD gauge), n = 1"),
}


@registry.figure(
    "survival",
    "Whether a single hop survives the merge",
    "Above zero, the edited one-hop answer still wins. Answering in two steps needs this of both hops.",
    place=5,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """Margin of the edited one-hop answer against its adapter's weight, and what is answered."""
    figure = style.blank(style.PAGE, 4.1)
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(4, 1.15))
    for column, known in enumerate((True, False)):
        curves = [one(rows, rule=rule, facts=facts, known=known) for rule, facts in CURVES]
        _margin_panel(panels[0, column], curves, known)
        _strips(panels[1, column], curves)
        panels[1, column].set_xlabel("merge weight α of the right adapter")
    for axes in panels[1]:
        axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
    panels[0, 0].set_ylabel("right answer's output\nminus the largest other")
    handles = [Line2D([], [], color=c, linestyle=s, label=label) for c, s, label in CURVES.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)
    style.note(
        figure,
        "Asked x R1 after merging the adapters x R1 → y (the right one) and y R2 → z, weights (α, 1 − α), "
        "n facts in each.\nFull limit, strict mask, no randomness; the worst of the n questions. "
        "Known facts: the two sums coincide.",
    )
    return figure


def _margin_panel(axes: Axes, curves: Sequence[Row], known: bool) -> None:
    axes.axhline(0, color=BLACK, linewidth=0.7)
    for curve, (colour, dashes, _) in zip(curves, CURVES.values(), strict=True):
        axes.plot(curve["alphas"], curve["margins"], color=colour, linestyle=dashes)
    axes.set_title("Known facts: the base has an old answer" if known else "Fresh facts: the base has none")
    axes.set(xlim=(0, 1), ylim=(-1.1, 1.1))
    for curve, name, marker, place in (
        (curves[0], "Uniform, products", "o", (0.05, 0.66)),
        (curves[2], "Uniform, factors", "s", (0.42, -0.93)),
    ):
        height = curve["margins"][curve["alphas"].index(0.5)]
        colour = CURVES[curve["rule"], curve["facts"]][0]
        axes.plot([0.5], [height], marker, color=colour, markersize=6, markeredgecolor="white", zorder=5)
        edge = "exactly on the edge" if height == 0 else f"margin {height:.2f}".replace("-", "−")
        text = f"{name}:\nα = ½, {edge}"
        axes.annotate(
            text,
            (0.5, height),
            place,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 4},
        )


def _strips(axes: Axes, curves: Sequence[Row]) -> None:
    """One strip of outcomes a curve, over the weights."""
    for height, curve in enumerate(reversed(curves)):
        answers = curve["outcomes"]
        starts = [0, *(i for i in range(1, len(answers)) if answers[i] != answers[i - 1])]
        for start, end in zip(starts, [*starts[1:], len(answers)], strict=True):
            if answers[start] == "tie":
                continue
            left = _border(curve, start, max(start - 1, 0))
            right = _border(curve, end - 1, min(end, len(answers) - 1))
            bar(axes, left, height - 0.42, right - left, 0.84, answers[start], inches=2.6)
    axes.set(ylim=(-0.55, 2.55), yticks=range(3))
    axes.set_yticklabels([f"{curve['rule']}, n = {curve['facts']}" for curve in reversed(curves)])
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)


def _border(curve: Row, last: int, following: int) -> float:
    """Where a strip ends: halfway to the next weight, or at that weight if it is an exact tie."""
    weights = [curve["alphas"][i] for i in (last, following)]
    return weights[1] if curve["outcomes"][following] == "tie" else sum(weights) / 2
