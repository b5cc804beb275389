"""Gauge dependence: one pair of adapters in many factors under `linear`, which merges factors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import THEORY
from figures.store import Row, one
from figures.style import BLACK, BLUE, GREEN, VERMILION


@registry.figure(
    "gauge",
    "The same updates, written in other factors",
    "Rules that merge factors (here linear) answer differently when an adapter's factors are turned, "
    "though its update stays the same. Rules that merge updates (here sum) do not.",
    place=10,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """Margin of the right answer over the orbit of gauges of one pair of adapters, under `linear`."""
    figure = style.blank(style.PAGE, 4.7)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, reflection in zip(panels, (False, True), strict=True):
        for axes, known in zip(line, (True, False), strict=True):
            _orbit_panel(axes, [row for row in rows if row["known"] == known], reflection)
            kind = "columns reflected, then turned" if reflection else "columns turned"
            axes.set_title(f"{'Known' if known else 'Fresh'} facts, {kind}")
        line[0].set_ylabel("right answer's output\nminus the largest other")
    for axes in panels[1]:
        axes.set_xlabel("angle between the two adapters' columns")
        ticks = range(-180, 91, 90)
        axes.set(xlim=(-180, 180), ylim=(-1.85, 1.35))
        axes.set_xticks(ticks, [f"{degrees}°".replace("-180", "±180").replace("-", "−") for degrees in ticks])
    marks = [
        Line2D([], [], color=BLUE, marker="o", linestyle="", label="linear, question x₁ R1 R2"),
        Line2D([], [], color=VERMILION, marker="^", linestyle="", label="linear, question x₂ R1 R2"),
        Line2D([], [], color=BLACK, linestyle=(0, (5, 1.5)), label="sum (the same in every gauge)"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)
    orbit = one(rows, kind="orbit", known=True)
    weights = ", ".join(map(str, orbit["weights"]))
    style.note(
        figure,
        f"n = 2 facts, merge weights ({weights}), full limit, strict mask. "
        f"The two ΔW are the same throughout. Points: {len(orbit['seeds'])}\n"
        f"random orthogonal gauges of the second adapter (seeds {notes.numbers(orbit['seeds'])}). "
        "Shaded: both questions answered rightly.",
    )
    return figure


def _orbit_panel(axes: Axes, rows: Sequence[Row], reflection: bool) -> None:
    orbit, named, plain = (one(rows, kind=kind) for kind in ("orbit", "named", "sum"))
    chosen = [i for i, mirrored in enumerate(orbit["reflection"]) if mirrored == reflection]
    order = sorted(chosen, key=lambda i: orbit["angle"][i])
    angles = np.array([orbit["angle"][i] for i in order])
    margins = np.array([orbit["margins"][i] for i in order])
    worst = margins.min(axis=1)
    _shade_where_all_right(axes, angles, worst)
    axes.axhline(0, color=BLACK, linewidth=0.7)
    axes.axhline(min(plain["margins"][0]), color=BLACK, linewidth=1.2, linestyle=(0, (5, 1.5)))
    axes.plot(angles, margins[:, 0], "o", color=BLUE, markersize=3)
    axes.plot(angles, margins[:, 1], "^", color=VERMILION, markersize=3)
    places: dict[float, list[int]] = defaultdict(list)
    for i, mirrored in enumerate(named["reflection"]):
        if mirrored == reflection:
            places[named["angle"][i]].append(i)
    for angle, several in places.items():
        height, edge = min(named["margins"][several[0]]), abs(angle) > 150
        axes.plot([angle] * 2, [height, 1.05], color=BLACK, linewidth=0.6, clip_on=False)
        (mark,) = axes.plot([angle], [height], "D", color="white", markeredgecolor=BLACK, markersize=6)
        mark.set(zorder=5, clip_on=False)
        side = "center" if not edge else ("right" if angle > 0 else "left")
        axes.text(angle, 1.08, " = ".join(named["gauges"][i] for i in several), ha=side, va="bottom")
    if reflection:  # the permutation that exchanges two columns, as when the facts are numbered the other way
        axes.plot([90, 90], [worst[np.argmin(np.abs(angles - 90))], 1.05], color=BLACK, linewidth=0.6)
        axes.text(90, 1.08, "columns swapped", ha="center", va="bottom")
    text = f"both right in {np.mean(worst > 0):.0%} of {len(angles)} gauges"
    axes.text(0.02, 0.03, text, transform=axes.transAxes)


def _shade_where_all_right(axes: Axes, angles: np.ndarray, worst: np.ndarray) -> None:
    right = worst > 0
    edges = np.concatenate([[-180.0], (angles[1:] + angles[:-1]) / 2, [180.0]])
    for left, end, good in zip(edges[:-1], edges[1:], right, strict=True):
        if good:
            axes.axvspan(left, end, color=GREEN, alpha=0.25, linewidth=0)
