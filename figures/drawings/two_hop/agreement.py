"""Predicted against measured shares of right answers, tier by tier and kind of question by kind of question.

Merged cells alone: that an adapter on its own says what it learned is easily predicted. T0 is what the toy
says of the very rows that are drawn; the others are read from the kept predictions (predictors/data), which
know the base models they were made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import CELLS, NothingToDrawError
from figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from predictors import parts, registered, tiers
from predictors.agreement import COMMONEST, Agreement, compared, guesses, plain
from predictors.forms import with_interval
from predictors.registry import PREDICTORS
from predictors.tiers import Line
from results.cells import RIGHT, Cell

PANELS = {
    "Single hops": (("hop1", "direct"), ("hop2", "direct")),
    "Two hops, directly": (("two-hop", "direct"),),
    "Two hops, step by step": (("two-hop", "steps"),),
}
MODELS = ((BLUE, "o"), (VERMILION, "^"), (GREEN, "s"), (PURPLE, "D"), (ORANGE, "v"))
#: Merges without a composition, of which T3 alone speaks; a column where there are any.
OTHERS = "Other domains"
#: Bootstrap draws of whole libraries behind each interval.
DRAWS = 999


@registry.figure(
    "agreement",
    "Predicted against measured",
    "A dot is one merged library, merge rule and way of asking; on the diagonal the prediction is right. "
    "Each line of panels is one predictor, from the paper's model in its limit to what is measured of "
    "the base and of single adapters; none sees an answer of a merged model. Filled dots were predicted "
    "before they were measured.",
    place=2,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """One dot a cell, its training seeds and draws of names pooled; no sweeps of weights, no controls."""
    said_apart = [one for one in parts.predicted(given) if one.shares is not None]
    given = [cell for cell in given if cell.info.spec_hash is not None]
    bases = {cell.info.digest for cell in given}
    measured = [cell for several in registered.measured().values() for cell in several]
    later = [cell for cell in measured if cell.info.digest in bases]
    cells = [cell for cell in (*given, *later) if plain(cell) and cell.info.control is None]
    before = tiers.read(registered.REGISTERED)
    lines = {tiers.key(line): line for line in (*tiers.read(), *before)}
    limits = tiers.limits()
    panels: dict[str, dict[str, list[tuple[Cell, Line]]]] = {}
    for tier in PREDICTORS:
        told = [(cell, said) for cell in cells if (said := of_cell(cell, tier, lines, limits)) is not None]
        if told:
            panels[tier] = {
                title: [one for one in told if (one[0].group, one[0].ask) in several]
                for title, several in PANELS.items()
            }
    if not panels or not all(panels[next(iter(panels))].values()):
        raise NothingToDrawError("needs predicted rows of merged libraries in each way of asking")
    titles = list(PANELS)
    if said_apart:
        titles.append(OTHERS)
        for tier, columns in panels.items():
            of_tier = said_apart if tier == parts.TIER else []
            columns[OTHERS] = [(one.cell, {**(one.shares or {})}) for one in of_tier]
    shown = [cell for columns in panels.values() for told in columns.values() for cell, _ in told]
    models = notes.models(shown)
    looks = {model: MODELS[number % len(MODELS)] for number, model in enumerate(models)}
    known = registered.Known.of(before)

    figure = style.blank(style.PAGE, 1.2 + 1.75 * len(panels))
    grid = figure.subplots(len(panels), len(titles), sharex=True, sharey=True, squeeze=False)
    for row, (tier, columns) in zip(grid, panels.items(), strict=True):
        for axes, told in zip(row, columns.values(), strict=True):
            _panel(axes, tier, told, looks, known)
        row[0].set_ylabel(f"{tier}:\nmeasured")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for axes in grid[-1]:
        axes.set_xlabel("predicted")
    marks = [
        Line2D([], [], color=colour, marker=marker, fillstyle="none", linestyle="", label=model)
        for model, (colour, marker) in looks.items()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, columnspacing=1.4, handletextpad=0.3)
    abouts = [f"{name}: {predictor.about}" for name, predictor in PREDICTORS.items() if name in panels]
    style.note(
        figure,
        notes.wrapped(
            style.PAGE,
            *abouts,
            f"ρ: Spearman's rank correlation, its 95% interval of {DRAWS:,} bootstraps over libraries",
            "Predicted and measured are shares of right answers. "
            "Kind: share of cells whose most frequent outcome is the predicted one; error: mean difference "
            "of the share right; in round brackets those of one guess for all cells",
            "Filled: predicted before it was measured",
            notes.measured(shown),
            notes.regime(shown),
            *notes.undertrained(shown),
        ),
    )
    return figure


def of_cell(
    cell: Cell, tier: str, lines: Mapping[tiers.Key, Line], limits: Mapping[str, Line]
) -> Line | None:
    """The shares that a tier predicts for a cell, T0's from the prediction that the rows came with."""
    if tier == "T0" and cell.prediction is not None:
        return cell.prediction.get("shares")
    return tiers.of_cell(cell, tier, lines, limits)


def agreement(
    tier: str, told: Sequence[tuple[Cell, Line]], draws: int = DRAWS
) -> tuple[Agreement, Agreement]:
    """How well the predictions of these cells agree, and how well one guess for all of them would."""
    cells = [cell for cell, _ in told]
    ours = compared("", "", tier, cells, [said for _, said in told], draws)
    return ours, compared("", "", COMMONEST, cells, guesses(cells)[COMMONEST], draws=1)


def _panel(
    axes: Axes,
    tier: str,
    told: Sequence[tuple[Cell, Line]],
    looks: Mapping[str, tuple[str, str]],
    known: registered.Known,
) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for cell, said in told:
        colour, marker = looks[cell.info.base]
        fill = "none" if known.looked_at(cell, tier) else colour
        place = (float(said.get(RIGHT, 0.0)), cell.share)
        axes.plot(*place, marker, color=colour, markerfacecolor=fill, alpha=0.6)
        if cell.undertrained:
            style.ring(axes, *place)
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 2.0))
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    text = "not predicted"
    if told:
        ours, guess = agreement(tier, told)
        text = (
            f"{ours.cells} cells\nρ {with_interval(ours.rank)}\nkind {ours.majority.value:.2f} "
            f"({guess.majority.value:.2f})\nerror {ours.error.value:.2f} ({guess.error.value:.2f})"
        )
    axes.text(-0.02, 1.52, text.replace("-", "−"), va="center", fontsize=8, color=BLACK)
