"""A language model's own coefficients, layer by layer, beside the toy's constants: c1, c2 and the leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import notes, registry, style
from figures.registry import EDITS, NothingToDrawError
from figures.store import Row
from figures.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION, Dashes

#: What is drawn of each coefficient: key, colour, marker, dashes, label.
CURVES: dict[str, tuple[str, str, Dashes, str]] = {
    "own": (BLUE, "o", "-", "edit of the question's own chain"),
    "other": (VERMILION, "^", (0, (4, 1.5)), "edit of another chain"),
}
LEAKS: dict[str, tuple[str, str, Dashes, str]] = {
    "leak1": (GREEN, "s", "-", "edits of hop 1"),
    "leak2": (PURPLE, "D", (0, (4, 1.5)), "edits of hop 2"),
}
PANELS = {
    "c1": "c₁: edit of x R1 on x R1 R2",
    "c2": "c₂: edit of y R2 on x R1 R2",
    "leak": "Leak on unrelated prompts",
}


@registry.figure(
    "layers",
    "The theory's coefficients inside a language model",
    "How much of an edit at one question shows at another, in the features of each MLP. If nothing "
    "singles out the right second hop, both curves of the middle panel are one.",
    place=8,
    needs=EDITS,
)
def draw(edits: Sequence[Row]) -> Figure:
    """A line of panels for each model: raw features, one edit at a time, as in the theory's n = 1."""
    rows = [r for r in edits if r["kind"] == "overlap" and r["metric"] == "raw" and r["facts"] == "alone"]
    if not rows:
        raise NothingToDrawError('needs rows of experiment edits (kind "overlap")')
    places = sorted({(row["source"], row["dataset"]) for row in rows})
    figure = style.blank(style.PAGE, 1.6 + 1.75 * len(places))
    panels = figure.subplots(len(places), 3, sharey=True, squeeze=False)
    for line, (model, dataset) in zip(panels, places, strict=True):
        own = sorted(
            (r for r in rows if (r["source"], r["dataset"]) == (model, dataset)), key=lambda r: r["layer"]
        )
        if twice := [layer for layer, count in Counter(r["layer"] for r in own).items() if count > 1]:
            raise ValueError(f"layer {twice[0]} of {model} on {dataset} is there twice: give each run once")
        for axes, name in zip(line, PANELS, strict=True):
            _panel(axes, own, name)
        line[0].set_ylabel(f"{model}, {dataset}")
    for axes, title in zip(panels[0], PANELS.values(), strict=True):
        axes.set_title(title, fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    marks = [
        Line2D([], [], color=c, marker=m, linestyle=s, label=label) for c, m, s, label in CURVES.values()
    ]
    marks += [
        Line2D([], [], color=BLACK, linewidth=1.2, label="toy, own chain"),
        Line2D([], [], color=BLACK, linewidth=1.2, linestyle=(0, (1, 1.2)), label="toy, another chain"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, columnspacing=1.1, handletextpad=0.5)
    style.note(figure, notes.wrapped(style.PAGE, *_note(rows, edits)))
    return figure


def _panel(axes: Axes, rows: Sequence[Row], name: str) -> None:
    layers = np.array([row["layer"] for row in rows])
    axes.axhline(0, color=GREY, linewidth=0.6)
    if name == "leak":
        axes.axhline(rows[0]["toy_leak1"], color=BLACK, linewidth=1.2)
        for key, (colour, marker, dashes, label) in LEAKS.items():
            values = [row[key] for row in rows]
            axes.plot(layers, values, color=colour, marker=marker, linestyle=dashes, label=label)
        axes.legend(loc="upper right", handlelength=1.8, borderpad=0.1, labelspacing=0.2)
    else:
        axes.axhline(rows[0][f"toy_{name}_own"], color=BLACK, linewidth=1.2)
        axes.axhline(rows[0][f"toy_{name}_other"], color=BLACK, linewidth=1.2, linestyle=(0, (1, 1.2)))
        for kind, (colour, marker, dashes, _) in CURVES.items():
            values = [row[f"{name}_{kind}"] for row in rows]
            axes.plot(layers, values, color=colour, marker=marker, linestyle=dashes)
        low, high = (
            [row[f"{name}_other"] + row[f"{name}_{side}"] for row in rows] for side in ("low", "high")
        )
        axes.vlines(layers, low, high, color=CURVES["own"][0], linewidth=0.8)
    axes.set_xticks(layers[:: max(1, len(layers) // 6)])


def _note(rows: Sequence[Row], edits: Sequence[Row]) -> list[str]:
    sizes = sorted({(row["chains"], row["unrelated"]) for row in rows})
    counts = " or ".join(f"{chains} chains, {far} unrelated prompts" for chains, far in sizes)
    tests = [
        f"{row['source']}, {row['dataset']}: own against other over all {row['layers']} layers, relabelling "
        f"test, p = {row['c1_p']:.2g} for c₁ and {row['c2_p']:.2g} for c₂"
        for row in edits
        if row["kind"] == "over layers" and row["metric"] == "raw" and row["facts"] == "alone"
    ]
    return [
        "An edit of one MLP at one prompt adds c times its change at another; raw features at the last "
        "token, one edit at a time (n = 1)",
        f"Means over {counts}; no seeds; bars: 95% interval of own minus other, drawn from other on",
        *tests,
    ]
