"""Answers with kinds: from which t on a direct question is answered by a place, and how t*(n) moves."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.bars import OUTCOME, bar
from figures.registry import THEORY
from figures.store import Row
from figures.style import BLACK, BLUE, GREEN, SKY, VERMILION, Dashes

#: Lines of the first panel by number of facts, smallest first.
LINES: tuple[tuple[str, Dashes], ...] = ((SKY, "-"), (BLUE, (0, (5, 1.5))), (BLACK, (0, (1, 1.2))))
CURVES: dict[tuple[str, float], tuple[str, Dashes, str]] = {
    ("exact", 1.0): (VERMILION, "-", "fresh facts, exact base"),
    ("exact", 2.0): (VERMILION, (0, (5, 1.5)), "the same, relations twice as long"),
    ("trained", 1.0): (GREEN, "-", "known facts, trained base"),
    ("trained", 2.0): (GREEN, (0, (5, 1.5)), "the same, relations twice as long"),
}


@registry.figure(
    "kinds",
    "Answers that have kinds",
    "Output vectors of one kind have a share t in common. From a threshold on, a two-hop question asked "
    "directly is answered by a place, any of those that adapters write, and not by the bridge entity.",
    place=17,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """Lead of the best place over the bridge entity against t, who answers, and t* against n."""
    figure = style.blank(style.PAGE, 4.5)
    panels = figure.subplot_mosaic(
        [["lead", "star"], ["strips", "star"]], height_ratios=(3, 1.8), width_ratios=(1.15, 1)
    )
    leads = sorted((row for row in rows if row["kind"] == "lead"), key=lambda row: row["facts"])
    _leads(panels["lead"], leads)
    _strips(panels["strips"], leads)
    _stars(panels["star"], [row for row in rows if row["kind"] == "threshold"])
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "Asked x R1 R2 under the sum of x R1 → y and y R2 → z, n facts in each; full limit, strict mask",
            "Left: fresh facts and an exact base; lines from predictions, marks the closed form of t*(n)",
            "Where a place answers, all n tie: the right one, drawn below, has a share of one in n",
        ),
    )
    return figure


def _leads(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axhline(0, color=BLACK, linewidth=0.7)
    for row, (colour, dashes) in zip(rows, LINES, strict=True):
        label = f"n = {row['facts']}: t* = {row['threshold']:.2f}"
        axes.plot(row["ts"], row["leads"], color=colour, linestyle=dashes, label=label)
        axes.plot([row["threshold"]], [0], "o", color=colour, markersize=5, markeredgecolor="white", zorder=5)
    axes.set(xlim=(0, 1), ylabel="best place's score\nminus the bridge entity's")
    axes.set_title("A place overtakes the bridge entity")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="upper left")


def _strips(axes: Axes, rows: Sequence[Row]) -> None:
    """One strip of outcomes a number of facts; where places tie each has its share of the height."""
    for height, row in enumerate(reversed(rows)):
        border, right = row["threshold"], 0.84 * row["correct"][-1]
        bar(axes, 0, height - 0.42, border, 0.84, "bridge", inches=3)
        axes.barh(height - 0.42 + right / 2, 1 - border, right, left=border, color=OUTCOME["correct"].fill)
        bar(axes, border, height - 0.42 + right, 1 - border, 0.84 - right, "edited", inches=3)
    axes.set(xlim=(0, 1), ylim=(-0.55, len(rows) - 0.45), yticks=range(len(rows)))
    axes.set_yticklabels([f"n = {row['facts']}" for row in reversed(rows)])
    axes.set_xlabel("t, what answers of one kind have in common")
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)


def _stars(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        colour, dashes, label = CURVES[row["base"], row["relation_length"]]
        axes.plot(row["sizes"], row["thresholds"], color=colour, linestyle=dashes, label=label)
    axes.set_xscale("log")
    axes.set_xticks([2, 10, 100, 1000], ["2", "10", "100", "1,000"])
    axes.set(xlabel="n, facts in each adapter", ylabel="t*(n)", ylim=(0, 0.7))
    axes.minorticks_off()
    axes.set_title("Where it does")
    axes.legend(loc="upper right")
