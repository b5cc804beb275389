"""What is answered, toy against language model: shares of the five outcomes by library, rule, knowledge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import notes, registry, style
from figures.bars import LEGEND, LINE, OUTCOME, bar
from figures.drawings.two_hop import ALONE, CELLS, LIBRARIES
from figures.registry import NothingToDrawError
from results.cells import DAGGER, Cell
from results.statistics import wilson
from toytransformer.merging import RULES

#: Inches: the labels' column; a bar of the toy and of the model; between blocks; a line and a bar in it.
LABEL, TOY, MODEL, GAP, HEIGHT, BAR = 1.62, 0.46, 0.76, 0.1, 0.205, 0.165
BLOCKS = [(known, decode) for known in (True, False) for decode in ("direct", "steps")]

Line = tuple[str, str]
"""Heading of a group of lines, and the line's own label."""


@registry.figure(
    "answers",
    "What is answered, toy against language model",
    "The same libraries and merge rules, predicted and measured. The old answer is what the base model "
    "itself says to that very question; controls are the base alone and random adapters.",
    place=4,
    needs=CELLS,
)
def draw(given: Sequence[Cell]) -> Figure:
    """The map of one model, that with most cells; plain adapters on MLP layers, as the paper's."""
    drawn = [cell for cell in given if _drawn(cell)]
    if not drawn:
        raise NothingToDrawError("needs rows of setup 0 on two-hop questions")
    model = notes.models(drawn)[0]
    drawn = [cell for cell in drawn if cell.info.base == model]
    data = {known: _dataset(drawn, known) for known in (True, False)}
    cells = {
        (*_line(cell), notes.known(cell), cell.ask): cell
        for cell in drawn
        if cell.info.dataset == data[notes.known(cell)]
    }
    lines = _ordered(dict.fromkeys((heading, label) for heading, label, *_ in cells))
    headings = list(dict.fromkeys(heading for heading, _ in lines))
    note = notes.wrapped(
        style.PAGE - 0.1,
        "Asked two-hop questions x R1 R2, directly (left) or step by step, the first answer fed back (right)",
        notes.measured(list(cells.values())),
        notes.regime(cells.values()),
        _width(cells),
        *notes.undertrained(cells.values(), DAGGER),
        "– not measured",
    )
    top, bottom = 0.72, 0.62 + 0.165 * (note.count("\n") + 1)
    height = top + HEIGHT * len(lines) + (LINE + 0.09) * len(headings) + bottom
    figure = style.blank(style.PAGE, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, style.PAGE), ylim=(height, 0))
    axes.axis("off")
    _head(axes, model, data)
    y = top
    for heading in headings:
        y += LINE + 0.09
        axes.text(0.06, y - 0.06, heading, fontweight="bold", va="baseline")
        for label in (label for h, label in lines if h == heading):
            axes.text(0.14, y + BAR / 2, label, va="center_baseline")
            for number, (known, decode) in enumerate(BLOCKS):
                _block(axes, cells.get((heading, label, known, decode)), _left(number), y)
            y += HEIGHT
    _legend(axes, y + 0.1)
    axes.text(0.06, height - 0.06, note, va="bottom", color="#333333", linespacing=1.25)
    return figure


def _drawn(cell: Cell) -> bool:
    plain = not cell.info.variant and cell.info.weights is None and cell.info.layers in (None, "mlp")
    return plain and cell.info.task == "setup-0" and cell.group == "two-hop"


def _dataset(given: Sequence[Cell], known: bool) -> str | None:
    names = [cell.info.dataset or "" for cell in given if notes.known(cell) == known]
    return max(sorted(set(names)), key=names.count) if names else None


def _line(cell: Cell) -> Line:
    if cell.info.control == "base":
        return "Controls", "no adapter"
    if cell.info.control == "random":
        return "Controls", f"random ones, {cell.info.rule}"
    if len(cell.info.library) == 1:
        return "One adapter alone, trained on", ALONE[cell.info.library[0]]
    return LIBRARIES[cell.info.library] + ", merged by", cell.info.rule


def _ordered(lines: Iterable[Line]) -> list[Line]:
    """Groups as in `notes`, controls last; rules in the order of their registry, fitted ones last."""
    first = [f"{library}, merged by" for library in LIBRARIES.values()] + ["One adapter alone, trained on"]

    rules = sorted(RULES, key=lambda name: RULES[name].needs_data)

    def place(line: Line) -> tuple[int, int]:
        group = first.index(line[0]) if line[0] in first else len(first)
        return group, rules.index(line[1]) if line[1] in rules else len(rules)

    return sorted(lines, key=place)


def _left(number: int) -> float:
    return LABEL + number * (TOY + 0.03 + MODEL + GAP)


def _block(axes: Axes, cell: Cell | None, left: float, top: float) -> None:
    if cell is None:
        middle = left + (TOY + 0.03 + MODEL) / 2
        axes.text(middle, top + BAR / 2, "–", ha="center", va="center", color=style.GREY)
        return
    if cell.prediction:
        _bars(axes, cell.prediction["shares"], left, TOY, top)
    _bars(axes, cell.outcomes, left + TOY + 0.03, MODEL, top)
    if cell.undertrained:
        axes.text(left + TOY + 0.03 + MODEL + 0.01, top + BAR / 2, DAGGER, va="center")


def _bars(axes: Axes, shares: Mapping[str, float], left: float, width: float, top: float) -> None:
    for outcome in (outcome for outcome in OUTCOME if shares.get(outcome)):
        bar(axes, left, top, shares[outcome] * width, BAR, outcome)
        left += shares[outcome] * width


def _head(axes: Axes, model: str, data: Mapping[bool, str | None]) -> None:
    for known in (True, False):
        first, last = (_left(number) for number, (k, _) in enumerate(BLOCKS) if k == known)
        right = last + TOY + 0.03 + MODEL
        kind = notes.FACTS[known]
        text = f"{kind} ({data[known]})" if data[known] else f"{kind}\n(not measured)"
        axes.text((first + right) / 2, 0.16, text, ha="center", va="center", fontweight="bold")
        axes.plot([first, right], [0.29] * 2, color="black", linewidth=0.8)
    for number, (_, decode) in enumerate(BLOCKS):
        left = _left(number)
        text = "asked directly" if decode == "direct" else "step by step"
        axes.text(left + (TOY + MODEL) / 2, 0.43, text, ha="center", va="center")
        axes.text(left + TOY / 2, 0.63, "toy", ha="center", va="center")
        axes.text(left + TOY + 0.03 + MODEL / 2, 0.63, model, ha="center", va="center")
    axes.plot([0.06, style.PAGE - 0.06], [0.76] * 2, color=style.GREY, linewidth=0.5)


def _legend(axes: Axes, top: float) -> None:
    for number, (outcome, meaning) in enumerate(LEGEND.items()):
        x, y = 0.06 + (number % 3) * 2.35, top + (number // 3) * (LINE + 0.05)
        bar(axes, x, y, 0.52, LINE, outcome)
        axes.text(x + 0.58, y + LINE / 2, meaning, va="center")


def _width(cells: Mapping) -> str:
    """How wide an interval is, since bars of shares carry none: the widest, that of a share of one half."""
    items = min(cell.items for cell in cells.values())
    low, high = wilson(items / 2, items)
    return f"95% Wilson interval of a measured share: at most ± {(high - low) / 2:.0%}"
