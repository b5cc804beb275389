"""Bars of the outcomes of two-hop questions, alike in every drawing, and what their words mean."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from figures import style
from figures.style import GREEN, ORANGE


@dataclass(frozen=True)
class Look:
    """How an outcome is drawn: its names, longest first; fill, colour of text, hatch and its colour."""

    words: tuple[str, ...]
    fill: str
    ink: str
    hatch: str | None = None
    lines: str = "white"


OUTCOME = {
    "correct": Look(("right answer", "right", "R"), GREEN, "white"),
    "bridge": Look(("bridge entity", "bridge", "B"), ORANGE, "black"),
    "old": Look(("old answer", "old", "O"), "#00508A", "white", "////", "#6FA5CC"),
    "edited": Look(("another edit", "edit", "E"), "#EFC9DF", "black", "\\\\\\\\", "#A8698B"),
    "other": Look(("another answer", "other", "X"), "white", "black"),
}

#: What the legend of a drawing says of each outcome.
LEGEND = {
    "correct": "the right two-hop answer",
    "bridge": "the first hop's answer",
    "old": "what the base model said",
    "edited": "answer to another edited fact",
    "other": "anything else",
}
#: Inches: a line of text of 8 pt, and what a character of it takes at most.
LINE, CHARACTER = 0.17, 0.07


def bar(
    axes: Axes, left: float, bottom: float, width: float, height: float, outcome: str, *, inches: float = 1.0
) -> None:
    """A bar for an outcome, with the longest of its names that fits; `inches` to a unit of width."""
    look = OUTCOME[outcome]
    place = ((left, bottom), width, height)
    axes.add_patch(
        Rectangle(*place, facecolor=look.fill, hatch=look.hatch, edgecolor=look.lines, linewidth=0)
    )
    border = (style.GREY, 0.6) if look.fill == "white" else ("white", 1.2)
    axes.add_patch(Rectangle(*place, fill=False, edgecolor=border[0], linewidth=border[1]))
    fitting = [word for word in look.words if (len(word) + 0.4) * CHARACTER <= width * inches]
    if fitting:
        axes.text(
            left + width / 2,
            bottom + height / 2,
            fitting[0],
            color=look.ink,
            ha="center",
            va="center_baseline",
            fontweight="bold" if outcome == "correct" else "normal",
            bbox={"facecolor": look.fill, "edgecolor": "none", "pad": 1} if look.hatch else None,
        )
