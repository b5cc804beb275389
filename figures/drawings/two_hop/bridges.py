"""Bridge setups 0 to 8: single hops and two-hop questions under Uniform and Arrow, models side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLACK, BLUE, GREY, PALE, SKY, VERMILION
from results.cells import Cell
from toytransformer.compositions.setups import SETUPS
from toytransformer.merging import RULES

#: The paper's two routings, each by its rule that merges products.
TITLES = {
    rule.name: family.capitalize()
    for family in ("uniform", "arrow")
    for rule in RULES.values()
    if rule.paper == family and not rule.factor_wise
}
#: What was asked: colour, marker, shift from the line in lines, label.
QUESTIONS = {
    "hop1/direct": (SKY, "<", -0.25, "hop 1 alone"),
    "hop2/direct": (BLUE, ">", -0.08, "hop 2 alone"),
    "two-hop/direct": (GREY, "x", 0.09, "two hops, directly"),
    "two-hop/steps": (VERMILION, "o", 0.26, "two hops, step by step"),
}
STEPS = "two-hop/steps"
#: The setups by the name of their task.
NUMBERS = {f"setup-{number}": number for number in SETUPS}


@registry.figure(
    "bridges",
    "Bridge training, setup by setup",
    "A two-hop question is answered step by step only where both of its hops survive the merge.",
    place=9,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A panel for each rule and model; a line for each setup, and for each way it was trained."""
    drawn = [cell for cell in given if _drawn(cell)]
    setups = {
        model: {cell.info.task for cell in drawn if cell.info.base == model} for model in notes.models(drawn)
    }
    cells = [cell for cell in drawn if len(setups[cell.info.base]) > 1]  # one setup alone compares nothing
    if not cells:
        raise NothingToDrawError(
            "needs rows of two bridge setups at least (experiments table1, bridge, contrast)"
        )
    models = notes.models(cells)
    lines = sorted({_line(cell) for cell in cells})
    figure = style.blank(style.PAGE, 1.75 + len(TITLES) * (0.48 + 0.31 * len(lines)))
    panels = figure.subplots(len(TITLES), len(models), sharex=True, sharey=True, squeeze=False)
    for row, (rule, title) in zip(panels, TITLES.items(), strict=True):
        for axes, model in zip(row, models, strict=True):
            own = [cell for cell in cells if cell.info.rule == rule and cell.info.base == model]
            _panel(axes, own, lines)
            axes.set_title(f"{title},\n{model}", fontsize=None if len(models) < 4 else 8)
    for axes in panels[-1]:
        axes.set_xlabel("share of right answers")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for colour, marker, _, label in QUESTIONS.values()
    ]
    predicted = _toy_mark()
    predicted.set_label("toy, step by step")
    marks.append(predicted)
    figure.legend(handles=marks, loc="outside upper center", ncols=5, columnspacing=1.0, handletextpad=0.2)
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            "Numbers: relations of the bridge's facts, two digits for two hops, answered at once or (c) in "
            "steps; left of the bar what hop 1's adapter is trained on besides its own, right of it hop 2's",
            ", ".join(f"{title} is the rule {rule}" for rule, title in TITLES.items())
            + "; setup 1 is asked on F, the others on R",
            notes.measured(cells),
            notes.INTERVALS,
            notes.regime(cells),
            *notes.undertrained(cells),
        ),
    )
    return figure


def _drawn(cell: Cell) -> bool:
    return (
        cell.info.task in NUMBERS
        and cell.info.library == ("hop1", "hop2")
        and cell.info.rule in TITLES
        and cell.info.weights is None
        and cell.info.control is None
        and cell.info.layers in (None, "mlp")
        and cell.info.variant.keys() <= {"steps", "initial_a"}
        and (cell.info.task != "setup-0" or cell.info.dataset == "R")
    )


def _line(cell: Cell) -> tuple[int, str]:
    """The setup's number, and how it was trained where that is not as usual."""
    number = NUMBERS[cell.info.task]
    variant = cell.info.variant
    more = [f"{variant['steps']} steps"] if "steps" in variant else []
    more += ["shared A"] if variant.get("initial_a") == "shared" else []
    return number, ", ".join(more)


def _label(line: tuple[int, str]) -> str:
    number, more = line
    if more:
        return f"{number}, {more}"
    parts = (" ".join(part.replace("-chain", "c") for part in side) or "–" for side in SETUPS[number])
    return f"{number}:  " + " | ".join(parts)


def _toy_mark(x: Sequence[float] = (), y: Sequence[float] = ()) -> Line2D:
    return Line2D(
        x, y, color=BLACK, marker="D", fillstyle="none", markersize=5.5, linestyle="", clip_on=False
    )


def _panel(axes: Axes, cells: Sequence[Cell], lines: Sequence[tuple[int, str]]) -> None:
    for top in range(0, len(lines), 2):
        axes.axhspan(top - 0.5, top + 0.5, color=PALE, alpha=0.5, linewidth=0)
    for cell in cells:
        colour, marker, shift, _ = QUESTIONS[cell.question_kind]
        height = lines.index(_line(cell)) + shift
        share = cell.share
        if cell.question_kind == STEPS and cell.prediction:
            axes.add_line(_toy_mark([cell.prediction["shares"].get("correct", 0.0)], [height]))
        spread = np.abs(np.array([cell.interval()]).T - share)
        axes.errorbar(
            [share], [height], xerr=spread, color=colour, marker=marker, elinewidth=0.8, clip_on=False
        )
        if cell.undertrained:
            style.ring(axes, share, height)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticks(range(len(lines)), [_label(line) for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
