"""Recycled updates against random ones: what a span captures on average, and what one more update gains."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.registry import THEORY
from figures.store import Row, one
from figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION

#: By kind of updates: how a mean is marked, how far it stands aside, and what it is called.
SHARES = {
    "random": ("s", BLUE, -0.16, "random"),
    "recycled": ("o", VERMILION, 0.0, "recycled, centred"),
    "recycled, as they are": ("^", ORANGE, 0.16, "recycled, as they are"),
}
GAINS = {
    "random": ("s", BLUE, "random"),
    "relevant": ("D", ORANGE, "trained on all examples but one"),
    "new": ("*", GREEN, "trained on all"),
}


@registry.figure(
    "recycled",
    "Recycled updates and random ones",
    "Fitting weights of updates that know nothing of the answers explains as much of them as the number of "
    "updates says, whatever they were trained on. One more update gains its overlap with what is left.",
    place=18,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """Share of the target captured against the number of updates, and gains against overlaps."""
    figure = style.blank(style.PAGE, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _shares(left, rows)
    _gains(right, rows)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.5)
    share, gain = one(rows, kind="share", updates="random"), one(rows, kind="gain", updates="random")
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            f"n = {share['facts']} examples. Left: marks are means over all {share['relabellings']} "
            "relabellings, bars hold nine in ten of them; one draw of updates a kind",
            f"Right: beside {gain['spanned']} random updates, {gain['relabellings']} relabellings a kind",
        ),
    )
    return figure


def _shares(axes: Axes, rows: Sequence[Row]) -> None:
    formula = one(rows, kind="share", updates="random")
    axes.plot(formula["counts"], formula["formula"], color=BLACK, linewidth=1, label="K / (n − 1)²")
    for updates, (marker, colour, aside, label) in SHARES.items():
        row = one(rows, kind="share", updates=updates)
        places = [count + aside for count in row["counts"]]
        axes.vlines(places, row["low"], row["high"], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(places, row["mean"], marker, color=colour, markersize=3.5, label=label)
    axes.set(xlabel="K, updates whose weights are fitted", ylabel="share of the target explained")
    axes.set(xlim=(0.5, formula["counts"][-1] + 0.5), ylim=(0, 1.03))
    axes.set_title("What K updates explain")


def _gains(axes: Axes, rows: Sequence[Row]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for updates, (marker, colour, label) in GAINS.items():
        row = one(rows, kind="gain", updates=updates)
        size = 8 if marker == "*" else 3.5
        axes.plot(row["overlaps"], row["gains"], marker, color=colour, markersize=size, label=label)
    axes.set(xlabel="overlap with what is left", ylabel="gain", xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    axes.set_title("What one more gains, as a share")
    axes.legend(loc="upper left", handletextpad=0.2)
