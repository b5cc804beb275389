"""Adapters of a pool fitted on examples: what they answer, beside controls and what the theory says."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import POOLS, NothingToDrawError
from figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from results.recycled import LAW, Cell, Pool

#: The method drawn on the left: by pool its recycled adapters, then controls. Colour, marker, label.
METHOD = "adaptive"
RECYCLED = {
    "target": (BLUE, "o", "recycled, the target’s own among them"),
    "kin": (ORANGE, "D", "recycled, without it"),
    "strangers": (VERMILION, "s", "recycled strangers"),
}
CONTROLS = {
    ("target", "drawn"): (SKY, "^", "drawn at random, and the target’s own"),
    ("strangers", "drawn-alone"): (GREY, "v", "drawn at random, alone"),
    ("strangers", "norms-alone"): (PURPLE, "<", "random of the same norms, alone"),
}
SINGLE = {"new": (GREEN, "*", "a new adapter")}
#: Inches of a row of panels.
HEIGHT = 2.6


@registry.figure(
    "recycle",
    "Recycled adapters under tuned weights",
    "How often adapters of a pool, merged by weights tuned on a few examples, answer the target’s questions, "
    "beside random adapters and a new one; and how much of the examples they explain, against the theory.",
    place=20,
    needs=POOLS,
)
def draw(pools: Sequence[Pool]) -> Figure:
    """A row of two panels for each base model."""
    drawn = [pool for pool in pools if pool.select(method=METHOD, control="recycled")]
    if not drawn:
        raise NothingToDrawError("needs rows of recycled adapters: run recycle")
    figure = style.blank(style.PAGE, 1.5 + HEIGHT * len(drawn))
    grid = figure.subplots(len(drawn), 2, squeeze=False, width_ratios=(1.2, 1))
    for (left, right), pool in zip(grid, drawn, strict=True):
        _right(left, pool)
        _explained(right, pool)
        left.set_title(f"{pool.base}: {_count(pool)} of the pool by chance")
    marks = [
        Line2D([], [], color=colour, marker=marker, ls=dashes, label=label)
        for dashes, looks in (("-", RECYCLED), (":", CONTROLS), (":", SINGLE))
        for colour, marker, label in looks.values()
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=2, columnspacing=1.2, handletextpad=0.4)
    targets = ", ".join(f"{len(pool.targets)} ({pool.base})" for pool in drawn)
    sizes = ", ".join(f"{pool.size} ({pool.base})" for pool in drawn)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            f"Targets (draws of names): {targets}; adapters in a pool: {sizes}",
            "Left: bars are 95% bootstrap intervals over facts. Right: a mark for each choice and target; "
            "weights by the mixture law",
        ),
    )
    return figure


def _count(pool: Pool) -> int:
    return pool.counts(METHOD)[-1]


def _right(axes: Axes, pool: Pool) -> None:
    """Shares right against the number of examples."""
    lines: list[tuple[list[Cell], tuple[str, str, str], str]] = []
    common = {"method": METHOD, "rule": "random", "count": _count(pool)}
    for name, looks in RECYCLED.items():
        lines.append((pool.select(**common, control="recycled", pool=name), looks, "-"))
    for (name, control), looks in CONTROLS.items():
        lines.append((pool.select(**common, control=control, pool=name), looks, ":"))
    for name, looks in SINGLE.items():
        lines.append(([pool.single(examples, name) for examples in pool.examples], looks, ":"))
    places = {examples: place for place, examples in enumerate(pool.examples)}
    for number, (cells, (colour, marker, _), dashes) in enumerate(lines):
        aside = 0.05 * (number - (len(lines) - 1) / 2)
        x = [places[cell.key.examples] + aside for cell in cells]
        axes.plot(x, [cell.mean() for cell in cells], dashes, color=colour, marker=marker, markersize=4)
        for place, cell in zip(x, cells, strict=True):
            axes.plot([place] * 2, cell.interval(), color=colour, linewidth=0.7)
    axes.set_xticks(list(places.values()), list(map(str, places)))
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.4, len(places) - 0.6))
    axes.set_xlabel("examples")
    axes.set_ylabel("share right")


def _explained(axes: Axes, pool: Pool) -> None:
    """Of the loss on the examples the share that is gone, against what the toy says."""
    axes.plot((0, 1), (0, 1), color=BLACK, linewidth=0.8)
    for name, (colour, marker, _) in RECYCLED.items():
        for cell in pool.select(method=LAW, control="recycled", pool=name):
            said = [one.selected["overlap"] for one in cell.answers if one.selected is not None]
            found = cell.explained(pool.single(cell.key.examples, "base"))
            axes.plot(said, found, marker, color=colour, markersize=3, linestyle="", alpha=0.6, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("explained of the target, toy")
    axes.set_ylabel("explained of the loss on the examples")
    axes.set_title("the theory beside it")
