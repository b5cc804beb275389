"""Negative transfer of any domain: merges minus the better of their adapters alone, tested over clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import CELLS, NothingToDrawError
from figures.style import BLACK, BLUE, GREY, PALE, VERMILION
from results.cells import Cell
from results.transfer import ABOVE, BELOW, LEVEL, UNDECIDED, Transfer, merges, transfers

#: By verdict the colour and the marker.
LOOKS = {BELOW: (VERMILION, "v"), UNDECIDED: (GREY, "o"), ABOVE: (BLUE, "^")}
#: Most lines of a panel; inches of a line, and of a heading.
LINES, LINE, HEADING = 40, 0.17, 0.3


@registry.figure(
    "transfer",
    "Merged beside the better adapter alone",
    "By how much more, or less, a merge answers rightly than the better of its adapters alone; of each "
    "domain the model and task with most merges.",
    place=19,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """A panel for each domain, a line for each merge and group of questions."""
    panels: dict[str, list[Transfer]] = {}
    for domain in dict.fromkeys(cell.info.domain for cell in given):
        own = [cell for cell in given if cell.info.domain == domain]
        places = Counter(map(_place, merges(own)))
        place = places.most_common(1)[0][0] if places else None
        found = transfers([cell for cell in own if cell.info.control or _place(cell) == place])
        if found:
            panels[domain] = found[:LINES]
    if not panels:
        raise NothingToDrawError("needs rows of merges whose adapters were each asked alone")
    heights = [HEADING + LINE * len(several) for several in panels.values()]
    figure = style.blank(style.PAGE, 1.2 + sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (domain, several) in zip(grid[:, 0], panels.items(), strict=True):
        for top in range(0, len(several), 2):
            axes.axhspan(top - 0.5, top + 0.5, color=PALE, alpha=0.5, linewidth=0)
        axes.axvline(0, color=BLACK, linewidth=0.8)
        for height, one in enumerate(several):
            colour, marker = LOOKS[one.verdict]
            told = one.difference
            axes.plot((told.low, told.high), [height] * 2, color=colour, linewidth=0.8, clip_on=False)
            axes.plot([told.difference], [height], marker, color=colour, markersize=3.5, clip_on=False)
            if one.merged.undertrained:
                style.ring(axes, told.difference, height)
        axes.set(xlim=(-1, 1), ylim=(len(several) - 0.5, -0.5))
        names = [
            f"{one.merged.info.rule}, {notes.question_label(one.merged.question_kind)}" for one in several
        ]
        axes.set_yticks(range(len(several)), names)
        axes.tick_params(axis="y", length=0)
        info = several[0].merged.info
        data = f" on {info.dataset}" if info.dataset else ""
        axes.set_title(f"{domain}: {info.task}{data}, {info.base}")
    grid[-1, 0].set_xlabel("share right of the merge minus that of its better adapter alone")
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=verdict)
        for verdict, (colour, marker) in LOOKS.items()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.2)
    shown = [one.merged for several in panels.values() for one in several]
    sentences = (
        notes.measured(shown),
        "Bars: 95% bootstrap intervals over clusters",
        f"Verdicts: Holm's p under {LEVEL:g} among the merges of a panel",
        *notes.undertrained(shown),
    )
    style.note(figure, notes.wrapped(style.PAGE - 0.1, *sentences))
    return figure


def _place(cell: Cell) -> tuple[str, str, str | None, str | None]:
    return cell.info.base, cell.info.task, cell.info.dataset, cell.info.layers
