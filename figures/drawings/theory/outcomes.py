"""The outcome map: what the merged model answers, by facts, knowledge of the base and merge rule."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import registry, style
from figures.bars import LEGEND, LINE, OUTCOME, bar
from figures.registry import THEORY
from figures.store import Row

TITLE = "Merging two one-hop adapters does not answer the two-hop question"
SUBTITLE = (
    "Known facts: the old answer stays. Fresh facts: the bridge entity. Two-hop training: the right one."
)
#: Groups of lines: heading, and how a line is called when not by its merge rule.
GROUPS = {
    "pair": "Two adapters, one for each hop, merged by",
    "fitted": "The same, fitted to {examples} two-hop examples of other entities",
    "one": "One adapter alone, trained on",
    "oracle": "An adapter trained on the very two-hop prompts that are asked",
}
ALONE = {
    "hop1-only": "hop 1",
    "hop2-only": "hop 2",
    "mixed": "both hops, mixed",
    "oracle-only": "that adapter alone",
}
MERGED = "with-oracle"
#: Inches: the labels' column, a cell, the gap between the halves, and the space beside a line's text.
LABEL, CELL, GAP, EDGE = 2.3, 0.455, 0.12, 0.06


@dataclass(frozen=True)
class Line:
    """Merge rules that answer alike: their group and label, and shares of outcomes by (known, facts)."""

    group: str
    label: tuple[str, ...]
    shares: Mapping[tuple[bool, int], Mapping[str, float]]

    @property
    def height(self) -> float:
        return max(len(self.label), 1) * LINE + EDGE


@registry.figure(
    "outcomes",
    "What the merged model answers",
    "A line is a merge rule or a library of adapters, a column the number of facts in each adapter. "
    "Colour and word say which answer the two-hop question gets; a split cell shows shares.",
    place=3,
    needs=THEORY,
)
def draw(rows: Sequence[Row]) -> Figure:
    """The map from the rows of the part "outcomes"; where the symmetry was used, one line of text tells."""
    dense = [row for row in rows if row.get("method") is None]
    facts = sorted({row["facts"] for row in dense})
    lines = _lines(dense)
    notes = _notes(dense, [row for row in rows if row.get("method")])
    shown = [group for group in GROUPS if any(line.group == group for line in lines)]
    top = 1.25
    bottom = top + sum(line.height for line in lines) + len(shown) * (LINE + 0.11)
    height = bottom + 0.26 + 2 * (LINE + 0.05) + len(notes) * LINE + 0.1
    figure = style.blank(style.PAGE, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, style.PAGE), ylim=(height, 0))
    axes.axis("off")
    figure.set_layout_engine("none")
    axes.text(0.08, 0.2, TITLE, fontsize=11, fontweight="bold", va="center")
    axes.text(0.08, 0.43, SUBTITLE, fontsize=8.5, va="center")
    _head(axes, facts, top)
    y = top
    for group in shown:
        examples = max(row["examples"] for row in dense if row["group"] == group)
        y += LINE + 0.11
        axes.text(0.08, y - 0.07, GROUPS[group].format(examples=examples), fontweight="bold", va="baseline")
        for line in (line for line in lines if line.group == group):
            va = "center_baseline" if len(line.label) == 1 else "center"
            axes.text(0.2, y + line.height / 2, "\n".join(line.label), va=va, linespacing=1.15)
            for known in (True, False):
                _cells(axes, [line.shares[known, n] for n in facts], _left(known, len(facts)), y, line.height)
            y += line.height
    _legend(axes, bottom + 0.14)
    for number, text in enumerate(notes):
        axes.text(0.08, height - 0.1 - (len(notes) - number - 0.5) * LINE, text, va="center", color="#333333")
    return figure


def _lines(rows: Sequence[Row]) -> list[Line]:
    """Lines of the map: rules of a group with the same shares everywhere share one."""
    shares: dict[tuple[str, str, str], dict] = defaultdict(dict)
    tied = set()
    for row in rows:
        case = row["group"], row["composition"], row["rule"]
        shares[case][row["known"], row["facts"]] = row["shares"]
        if row["tied"]:
            tied.add(case)
    alike: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for case, cells in shares.items():
        pattern = {key: {k: round(v, 2) for k, v in sorted(cells[key].items())} for key in sorted(cells)}
        alike[f"{case[:2]} {pattern}"].append(case)
    lines = []
    first = next((rule for _, composition, rule in shares if composition == MERGED), None)
    for cases in alike.values():
        names = [_name(*case[1:], first) + "†" * (case in tied) for case in cases]
        label = tuple(textwrap.wrap(", ".join(names), 32, break_on_hyphens=False))
        lines.append(Line(cases[0][0], label, shares[cases[0]]))
    return lines


def _name(composition: str, rule: str, first: str | None) -> str:
    """What a case is called: by its adapter where it is one, else by its rule. first: of those MERGED."""
    if composition == MERGED:
        return f"merged with hop 1, hop 2: {rule}" if rule == first else f"the same: {rule}"
    return ALONE.get(composition, rule)


def _left(known: bool, columns: int) -> float:
    return LABEL if known else LABEL + columns * CELL + GAP


def _head(axes: Axes, facts: Sequence[int], top: float) -> None:
    halves = {True: "known facts:\nthe base has old answers", False: "fresh facts:\nthe base has none"}
    for known, text in halves.items():
        left = _left(known, len(facts))
        middle = left + len(facts) * CELL / 2
        axes.text(middle, top - 0.49, text, ha="center", va="center", fontweight="bold", linespacing=1.2)
        axes.plot(
            [left + 0.03, left + len(facts) * CELL - 0.03], [top - 0.29] * 2, color="black", linewidth=0.8
        )
        for number, n in enumerate(facts):
            axes.text(left + (number + 0.5) * CELL, top - 0.16, f"{n}", ha="center", va="center")
    axes.text(LABEL - 0.08, top - 0.16, "facts in each adapter, n =", ha="right", va="center")


def _cells(axes: Axes, cells: Sequence[Mapping[str, float]], left: float, top: float, height: float) -> None:
    """One line of one half: neighbouring cells with one and the same answer become one bar."""
    start = 0
    while start < len(cells):
        end = start + 1
        while len(cells[start]) == 1 and end < len(cells) and cells[end].keys() == cells[start].keys():
            end += 1
        x = left + start * CELL
        for outcome in (outcome for outcome in OUTCOME if outcome in cells[start]):
            width = cells[start][outcome] * CELL * (end - start)
            bar(axes, x, top, width, height, outcome)
            x += width
        start = end


def _legend(axes: Axes, top: float) -> None:
    columns = (0.08, 2.45, 4.75)
    for number, (outcome, meaning) in enumerate(LEGEND.items()):
        x, y = columns[number % 3], top + (number // 3) * (LINE + 0.05)
        bar(axes, x, y, 0.52, LINE, outcome)
        axes.text(x + 0.58, y + LINE / 2, meaning, va="center")
    axes.text(columns[2], top + LINE + 0.05 + LINE / 2, "split cell: shares of the answers", va="center")


def _notes(dense: Sequence[Row], many: Sequence[Row]) -> list[str]:
    """What the map was computed from, read off the rows."""
    drawn = sorted({(row["regime"]["dimension"], row["draws"]) for row in dense if row["tied"]})
    neurons = sorted({row["neurons"] for row in dense if row["neurons"]})
    notes = [
        "Asked: x R1 R2, all n questions. Full limit m, d → ∞; strict mask. Exact ties count in equal parts.",
        "Fresh, n = 1: right for the wrong reason. Hop 2 alone gives that answer, whatever x is.",
    ]
    if neurons:
        counts = f"{neurons[-1]:,} sampled neurons, down to {neurons[0]:,} for large n, seed 0"
        notes.append(f"Rules that act on single entries of ΔW: {counts}.")
    if drawn:
        draws = " or ".join(f"{count}" for count in sorted({count for _, count in drawn}, reverse=True))
        notes.append(
            "† From some n on, tied singular values leave the limit open: "
            f"mean of {draws} (large n) draws at d = {drawn[0][0]:,}."
        )
    many = [row for row in many if row["group"] == "pair"]
    if many:
        same = all(_same_as_dense(row, dense) for row in many)
        largest = max(row["facts"] for row in many)
        if same:
            notes.append(f"Sum and mean: the same at n = {largest:,}, through the permutation symmetry.")
    return notes


def _same_as_dense(row: Row, dense: Sequence[Row]) -> bool:
    """Whether a row for very many facts answers as the largest dense one of its line does."""
    keys = ("group", "composition", "rule", "known")
    alike = [other for other in dense if all(other[key] == row[key] for key in keys)]
    return max(alike, key=lambda other: other["facts"])["shares"] == row["shares"]
