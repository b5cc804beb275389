"""Bridge setups 0 to 8: single hops and two-hop questions under Uniform and Arrow, models side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.measured.cells import Cell, Place, pooled
from figures.registry import CELLS, NothingToDrawError
from figures.style import BLACK, BLUE, GREY, PALE, SKY, VERMILION
from toytransformer.compositions.setups import SETUPS

RULES = {"mean": "Uniform", "arrow-products": "Arrow"}
#: What was asked: colour, marker, shift from the line in lines, label.
ASKED = {
    "hop1/direct": (SKY, "<", -0.25, "hop 1 alone"),
    "hop2/direct": (BLUE, ">", -0.08, "hop 2 alone"),
    "two-hop/direct": (GREY, "x", 0.09, "two hops, directly"),
    "two-hop/steps": (VERMILION, "o", 0.26, "two hops, step by step"),
}
STEPS = "two-hop/steps"


@registry.figure(
    "bridges",
    "Bridge training, setup by setup",
    "A two-hop question is answered step by step only where both of its hops survive the merge.",
    place=9,
    needs=CELLS,
)
def draw(found: Sequence[Cell]) -> Figure:
    """A panel for each rule and model; a line for each setup, and for each way it was trained."""
    cells = pooled(cell for cell in found if _drawn(cell.place))
    if len({cell.place.composition for cell in cells}) < 2:
        raise NothingToDrawError(
            "needs rows of two bridge setups at least (experiments table1, bridge, contrast)"
        )
    models = notes.models(cells)
    lines = sorted({_line(cell.place) for cell in cells})
    figure = style.blank(style.PAGE, 1.75 + len(RULES) * (0.32 + 0.31 * len(lines)))
    panels = figure.subplots(len(RULES), len(models), sharex=True, sharey=True, squeeze=False)
    for row, (rule, title) in zip(panels, RULES.items(), strict=True):
        for axes, model in zip(row, models, strict=True):
            own = [cell for cell in cells if cell.place.rule == rule and cell.place.model == model]
            _panel(axes, own, lines)
            axes.set_title(f"{title}, {model}")
    for axes in panels[-1]:
        axes.set_xlabel("share of right answers")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for colour, marker, _, label in ASKED.values()
    ]
    marks.append(_toy_mark(linestyle="", label="toy, step by step"))
    figure.legend(handles=marks, loc="outside upper center", ncols=5, columnspacing=1.0, handletextpad=0.2)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "Numbers: relations of the bridge's facts, two digits for two hops, answered at once or (c) in "
            "steps; left of the bar what hop 1's adapter is trained on besides its own, right of it hop 2's",
            "Uniform is the rule mean, Arrow is arrow-products; setup 1 is asked on F, the others on R",
            notes.measured(cells),
            notes.INTERVALS,
            notes.regime(cells),
        ),
    )
    return figure


def _drawn(place: Place) -> bool:
    return (
        place.composition.startswith("setup-")
        and place.library == ("hop1", "hop2")
        and place.rule in RULES
        and place.weights is None
        and place.control is None
        and place.layers in (None, "mlp")
        and {name for name, _ in place.variant} <= {"steps", "initial_a"}
        and (place.composition != "setup-0" or place.dataset == "R")
    )


def _line(place: Place) -> tuple[int, str]:
    """The setup's number, and how it was trained where that is not as usual."""
    number = int(place.composition.removeprefix("setup-"))
    variant = dict(place.variant)
    more = [f"{variant['steps']} steps"] if "steps" in variant else []
    more += ["shared A"] if variant.get("initial_a") == "shared" else []
    return number, ", ".join(more)


def _label(line: tuple[int, str]) -> str:
    number, more = line
    if more:
        return f"{number}, {more}"
    parts = (" ".join(part.replace("-chain", "c") for part in side) or "–" for side in SETUPS[number])
    return f"{number}:  " + " | ".join(parts)


def _toy_mark(**options) -> Line2D:
    xy = options.pop("xy", ((), ()))
    return Line2D(*xy, color=BLACK, marker="D", fillstyle="none", markersize=5.5, **options)


def _panel(axes: Axes, cells: Sequence[Cell], lines: Sequence[tuple[int, str]]) -> None:
    for height in range(0, len(lines), 2):
        axes.axhspan(height - 0.5, height + 0.5, color=PALE, alpha=0.5, linewidth=0)
    for cell in cells:
        colour, marker, shift, _ = ASKED[cell.place.asked]
        height = lines.index(_line(cell.place)) + shift
        share = cell.shares["correct"]
        if cell.place.asked == STEPS:
            axes.add_line(_toy_mark(xy=([cell.toy["shares"].get("correct", 0.0)], [height]), clip_on=False))
        spread = np.abs(np.array([cell.interval()]).T - share)
        axes.errorbar(
            [share], [height], xerr=spread, color=colour, marker=marker, elinewidth=0.8, clip_on=False
        )
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticks(range(len(lines)), [_label(line) for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
