"""The first look: two adapters of one hop each, merged, on the two-hop question; four bars a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.drawings.two_hop import CELLS
from figures.registry import NothingToDrawError
from figures.style import BLUE, GREEN, GREY, VERMILION
from results.cells import DAGGER, Cell, percent

#: What is asked, and what the two adapters were trained on; relations spouse_of and live_in of real names.
QUESTION = "“Where does the spouse of x live?”"
KNOWN = "One adapter knows who is whose spouse, another one knows who lives where."
DATASET = "R"
#: The two libraries that are compared, and the rule by which the first one is merged.
PAIR, QUESTIONS, RULE = ("hop1", "hop2"), ("oracle",), "sum"
#: How many models fit.
MODELS = 2


@dataclass(frozen=True)
class Bar:
    """One bar: its label, in two lines at most, its colour, and which cell it shows."""

    label: str
    colour: str
    of: Callable[[Cell], bool]


BARS = (
    Bar("no adapter", GREY, lambda cell: cell.info.control == "base" and cell.ask == "direct"),
    Bar(
        "two adapters, one hop each, merged:\nasked directly",
        VERMILION,
        lambda cell: _merged(cell) and cell.ask == "direct",
    ),
    Bar(
        "the same, asked to answer\nstep by step",
        BLUE,
        lambda cell: _merged(cell) and cell.ask == "steps",
    ),
    Bar(
        "one adapter trained on the\ntwo-hop questions, asked directly",
        GREEN,
        lambda cell: cell.info.library == QUESTIONS and cell.ask == "direct",
    ),
)


def _merged(cell: Cell) -> bool:
    return cell.info.library == PAIR and cell.info.rule == RULE and cell.info.control is None


@registry.figure(
    "first-look",
    "Two one-hop adapters do not answer the two-hop question at once",
    "One adapter was trained on who the spouse of each person is, another on where each of these lives. "
    "Merged, the model is asked where the spouse lives. A model that follows chains of thought gets there in "
    "two steps.",
    place=1,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A panel a model, those with most cells; what a bar shows, its share right with Wilson's interval."""
    cells = [cell for cell in given if _plain(cell)]
    models = [
        model
        for model in notes.models(given)
        if all(any(bar.of(cell) for cell in cells if cell.info.base == model) for bar in BARS)
    ][:MODELS]
    if not models:
        raise NothingToDrawError("needs rows of setup 0 on R: the base, hop1 and hop2 by sum, and the oracle")
    cells = [cell for cell in cells if cell.info.base in models]
    figure = style.blank(style.PAGE, 3.55)
    figure.suptitle(f"{KNOWN}\nAsked: {QUESTION}", x=0.01, ha="left", fontsize=10)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        _panel(axes, [cell for cell in cells if cell.info.base == model])
        axes.set_title(model, fontsize=11)
        axes.set_xlabel("right answers, %", fontsize=10)
    panels[0].set_yticks(range(len(BARS)), [bar.label for bar in BARS], fontsize=10)
    shown = [cell for cell in cells if any(bar.of(cell) for bar in BARS)]
    sentences = (
        f"Real names. Merged: both updates are added, rule {RULE}",
        *(_others(model, cells) for model in models),
        notes.measured(shown),
        notes.INTERVALS,
        *notes.undertrained(shown, f"Hatched, {DAGGER}"),
    )
    style.note(figure, notes.wrapped(style.PAGE, *sentences))
    return figure


def _plain(cell: Cell) -> bool:
    plain = not cell.info.variant and cell.info.weights is None and cell.info.layers in (None, "mlp")
    return plain and cell.info.task == "setup-0" and cell.group == "two-hop" and cell.info.dataset == DATASET


def _panel(axes: Axes, cells: Sequence[Cell]) -> None:
    for height, bar in enumerate(BARS):
        (cell,) = (cell for cell in cells if bar.of(cell))
        share, (low, high) = cell.share, cell.interval()
        hatch = "////" if cell.undertrained else None
        axes.barh([height], [share], 0.62, color=bar.colour, hatch=hatch, edgecolor="white", linewidth=0)
        axes.plot([low, high], [height] * 2, color=style.BLACK, linewidth=1.2)
        axes.text(
            high + 0.03,
            height,
            f"{100 * share:.0f}%{cell.dagger}",
            va="center",
            fontsize=11,
            fontweight="bold",
        )
    axes.set(xlim=(0, 1.3), ylim=(len(BARS) - 0.5, -0.5))
    axes.set_xticks(np.linspace(0, 1, 3), ["0", "50", "100"], fontsize=10)
    axes.tick_params(axis="y", length=0)


def _others(model: str, cells: Sequence[Cell]) -> str:
    """What the other rules make of the same two adapters, those that need no data."""
    others = [
        cell
        for cell in cells
        if cell.info.base == model
        and cell.info.library == PAIR
        and cell.info.control is None
        and not cell.info.setting.get("examples")
    ]
    text = []
    for decode, word in (("direct", "directly"), ("steps", "step by step")):
        shares = [cell.share for cell in others if cell.ask == decode]
        text.append(f"{word} {percent(min(shares))} to {percent(max(shares))}%")
    rules = {cell.info.rule for cell in others}
    return f"{model} over all {len(rules)} merge rules without data: {', '.join(text)}"
