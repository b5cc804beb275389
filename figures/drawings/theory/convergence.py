"""How c1 and c2 of sampled networks approach their limits, over the band that the standard errors derive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.registry import THEORY
from figures.store import Row
from figures.style import BLACK, BLUE, PALE, VERMILION

#: |N(0, s^2)| lies between these multiples of s with probability 90%; its median is the third.
LOW, HIGH, MEDIAN = 0.0627, 1.960, 0.6745
SIZES = {"width": ("m", "width m  (d → ∞)"), "dimension": ("d", "embedding dimension d  (m → ∞)")}
COEFFICIENTS = {"c1": (BLUE, "o", "c₁"), "c2": (VERMILION, "^", "c₂")}


@registry.figure(
    "convergence",
    "Finite networks approach the limit",
    "How far the coefficients of single sampled networks are from the limit, by width and by "
    "dimension, over the spread that the theory derives.",
    place=15,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """|c - limit| of single draws against m and d, over the band that the standard errors derive."""
    figure = style.blank(style.PAGE, 3.5)
    panels = figure.subplots(2, 2, sharex="col", sharey=True)
    for column, varies in enumerate(SIZES):
        for axes, name in zip(panels[:, column], COEFFICIENTS, strict=True):
            _convergence_panel(axes, [r for r in rows if r["varies"] == varies and r["coefficient"] == name])
        panels[1, column].set_xlabel(SIZES[varies][1])
    for axes, (_, _, symbol) in zip(panels[:, 0], COEFFICIENTS.values(), strict=True):
        axes.set_ylabel(f"|{symbol} − limit|")
    draws, seeds = rows[0]["draws"], sorted({seed for row in rows for seed in row["seeds"]})
    style.note(
        figure,
        f"n = 1 fact, strict mask, uniform attention; {draws} draws a size (seeds {notes.numbers(seeds)}). "
        "Shaded: where 90% of draws\nshould lie by the derived standard error; line: their derived median. "
        "Nothing is fitted.",
    )
    return figure


def _convergence_panel(axes: Axes, rows: Sequence[Row]) -> None:
    rows = sorted(rows, key=lambda row: row["size"])
    colour, marker, symbol = COEFFICIENTS[rows[0]["coefficient"]]
    sizes = np.array([row["size"] for row in rows], float)
    errors = np.array([row["standard_error"] for row in rows])
    wide = np.array([sizes[0] / 1.7, *sizes, sizes[-1] * 1.7])
    spread = np.exp(np.interp(np.log(wide), np.log(sizes), np.log(errors)))
    spread[[0, -1]] = errors[[0, -1]] * np.sqrt([1.7, 1 / 1.7])
    axes.fill_between(wide, LOW * spread, HIGH * spread, color=PALE, linewidth=0)
    axes.plot(wide, MEDIAN * spread, color=BLACK, linewidth=1)
    inside = total = 0
    for row, size, error in zip(rows, sizes, errors, strict=True):
        gaps = np.abs(row["deviations"])
        shifts = np.exp(np.linspace(-0.35, 0.35, len(gaps)))
        axes.plot(size * shifts, gaps, marker, color=colour, markersize=2, markeredgewidth=0, alpha=0.75)
        inside += int(np.sum((gaps > LOW * error) & (gaps < HIGH * error)))
        total += len(gaps)
    axes.set(xscale="log", yscale="log", ylim=(3e-6, 1))
    axes.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
    axes.minorticks_off()
    constant = f"limit {rows[0]['limit']:.4f},  standard error {errors[0] * np.sqrt(sizes[0]):.3f}/√"
    letter = SIZES[rows[0]["varies"]][0]
    axes.set_title(f"{symbol}:  {constant}{letter}", fontweight="normal")
    text = f"{inside / total:.0%} of {total} draws in the band"
    axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top")
