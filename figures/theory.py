"""The five drawings of the theory, made from rows only (see `figures.rows`), never from a prediction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import outcomes, style
from figures.style import BLACK, BLUE, GREEN, GREY, PALE, VERMILION

Row = dict[str, Any]


def draw_all(
    rows: Sequence[Row],
    folder: Path,
    formats: tuple[str, ...] = ("png", "svg"),
    names: Sequence[str] | None = None,
) -> list[Path]:
    """The drawings of these names, or all, in every format; errors: ValueError naming one without rows."""
    by_figure = defaultdict(list)
    for row in rows:
        by_figure[row["figure"]].append(row)
    names = list(DRAWINGS) if names is None else names
    if missing := [name for name in names if not by_figure[name]]:
        raise ValueError(f"no rows for {', '.join(missing)}; compute them with --fresh")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        with style.look():
            paths += style.save(DRAWINGS[name](by_figure[name]), folder / name, formats)
    return paths


def one(rows: Iterable[Row], **wanted: Any) -> Row:
    """The only row with these values; errors: ValueError when there is none, or more than one."""
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows with {wanted}, need one; compute them anew with --fresh")
    return found[0]


# --- convergence ---------------------------------------------------------------------------------------

#: |N(0, s^2)| lies between these multiples of s with probability 90%; its median is the third.
LOW, HIGH, MEDIAN = 0.0627, 1.960, 0.6745
SIZES = {"width": ("m", "width m  (d → ∞)"), "dimension": ("d", "embedding dimension d  (m → ∞)")}
COEFFICIENTS = {"c1": (BLUE, "o", "c₁"), "c2": (VERMILION, "^", "c₂")}


def convergence(rows: Sequence[Row]) -> Figure:
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
        f"n = 1 fact, strict mask, uniform attention; {draws} draws a size (seeds {_list(seeds)}). "
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


# --- survival of one hop -------------------------------------------------------------------------------

CURVES = {
    ("sum", 1): (BLUE, "-", "sum of products, n = 1"),
    ("sum", 10): (BLUE, (0, (1, 1.2)), "sum of products, n = 10"),
    ("linear", 1): (VERMILION, (0, (5, 1.5)), "linear (factor-wise, SVD gauge), n = 1"),
}


def survival(rows: Sequence[Row]) -> Figure:
    """Margin of the edited one-hop answer against its adapter's weight, and what is answered."""
    figure = style.blank(style.PAGE, 4.1)
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(4, 1.15))
    for column, known in enumerate((True, False)):
        curves = [one(rows, rule=rule, facts=facts, known=known) for rule, facts in CURVES]
        _margin_panel(panels[0, column], curves, known)
        _strips(panels[1, column], curves)
        panels[1, column].set_xlabel("merge weight α of the right adapter")
    for axes in panels[1]:
        axes.set_xticks(np.linspace(0, 1, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
    panels[0, 0].set_ylabel("right answer's output\nminus the largest other")
    handles = [Line2D([], [], color=c, linestyle=s, label=label) for c, s, label in CURVES.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)
    style.note(
        figure,
        "Asked x R1 after merging the adapters x R1 → y (the right one) and y R2 → z, weights (α, 1 − α), "
        "n facts in each.\nFull limit, strict mask, no randomness; the worst of the n questions. "
        "Known facts: the two sums coincide.",
    )
    return figure


def _margin_panel(axes: Axes, curves: Sequence[Row], known: bool) -> None:
    axes.axhline(0, color=BLACK, linewidth=0.7)
    for curve, (colour, dashes, _) in zip(curves, CURVES.values(), strict=True):
        axes.plot(curve["alphas"], curve["margins"], color=colour, linestyle=dashes)
    axes.set_title("Known facts: the base has an old answer" if known else "Fresh facts: the base has none")
    axes.set(xlim=(0, 1), ylim=(-1.1, 1.1))
    for curve, name, marker, place in (
        (curves[0], "Uniform, products", "o", (0.05, 0.66)),
        (curves[2], "Uniform, factors", "s", (0.42, -0.93)),
    ):
        height = curve["margins"][curve["alphas"].index(0.5)]
        colour = CURVES[curve["rule"], curve["facts"]][0]
        axes.plot([0.5], [height], marker, color=colour, markersize=6, markeredgecolor="white", zorder=5)
        edge = "exactly on the edge" if height == 0 else f"margin {height:.2f}".replace("-", "−")
        text = f"{name}:\nα = ½, {edge}"
        axes.annotate(
            text,
            (0.5, height),
            place,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 4},
        )


def _strips(axes: Axes, curves: Sequence[Row]) -> None:
    """One strip of outcomes a curve, over the weights."""
    for height, curve in enumerate(reversed(curves)):
        answers = curve["outcomes"]
        starts = [0, *(i for i in range(1, len(answers)) if answers[i] != answers[i - 1])]
        for start, end in zip(starts, [*starts[1:], len(answers)], strict=True):
            if answers[start] == "tie":
                continue
            left = _border(curve, start, max(start - 1, 0))
            right = _border(curve, end - 1, min(end, len(answers) - 1))
            outcomes.bar(axes, left, height - 0.42, right - left, 0.84, answers[start], inches=2.6)
    axes.set(ylim=(-0.55, 2.55), yticks=range(3))
    axes.set_yticklabels([f"{curve['rule']}, n = {curve['facts']}" for curve in reversed(curves)])
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)


def _border(curve: Row, last: int, following: int) -> float:
    """Where a strip ends: halfway to the next weight, or at that weight if it is an exact tie."""
    weights = [curve["alphas"][i] for i in (last, following)]
    return weights[1] if curve["outcomes"][following] == "tie" else sum(weights) / 2


# --- gauge dependence ----------------------------------------------------------------------------------


def gauge(rows: Sequence[Row]) -> Figure:
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
        f"random orthogonal gauges of the second adapter (seeds {_list(orbit['seeds'])}). "
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
        mark = {"color": "white", "markeredgecolor": BLACK, "markersize": 6, "zorder": 5, "clip_on": False}
        axes.plot([angle], [height], "D", **mark)
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


# --- leak of one edit ----------------------------------------------------------------------------------

MASKS = {"strict": "Strict mask", "causal": "Causal mask"}


def leak(rows: Sequence[Row]) -> Figure:
    """What an edit of x R1 adds on prompts that share tokens with it: closed form and samples."""
    figure = style.blank(style.PAGE, 4.3)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (mask, title) in zip(panels, MASKS.items(), strict=True):
        chosen = [row for row in rows if row["mask"] == mask]
        heights = [-number - (row["hops"] - 1) for number, row in enumerate(chosen)]
        for row, height in zip(chosen, heights, strict=True):
            _leak_line(axes, row, height)
        axes.set_title(title)
        axes.set(xlim=(0, 1.2), ylim=(min(heights) - 0.6, 1.3), yticks=heights)
        axes.set_yticklabels([f"{row['shares']}:  {row['prompt']}" for row in chosen])
        axes.set_xlabel("share of the edit's change that leaks")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="x", color=PALE, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", left=False)
        for hops, text in (
            (1, "one hop; shared with the edit x R1:"),
            (2, "two hops; shared with the edit x R1:"),
        ):
            first = max(height for row, height in zip(chosen, heights, strict=True) if row["hops"] == hops)
            axes.text(0.0, first + 0.72, text, va="center", fontstyle="italic")
    row = rows[0]
    marks = [
        Line2D([], [], color=BLACK, marker="|", markersize=9, mew=1.6, linestyle="", label="limit"),
        Line2D([], [], color=GREY, linewidth=5, alpha=0.5, label="± 2 derived standard errors of one sample"),
        Line2D([], [], color=VERMILION, marker="o", markersize=3, linestyle="", label="sampled network"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, columnspacing=1.4, handletextpad=0.5)
    sizes = row["regime"]
    style.note(
        figure,
        f"n = 1 fact, uniform attention; {row['draws']} sampled networks a mask, d = {sizes['dimension']:,}, "
        f"m = {sizes['width']:,} (seed {_list(row['seeds'])}). Numbers: the limit.",
    )
    return figure


def _leak_line(axes: Axes, row: Row, height: float) -> None:
    spread = 2 * row["standard_error"]
    axes.plot(
        [row["limit"] - spread, row["limit"] + spread],
        [height] * 2,
        color=GREY,
        alpha=0.5,
        linewidth=5,
        solid_capstyle="butt",
    )
    lift = np.linspace(-0.26, 0.26, len(row["samples"]))
    axes.plot(row["samples"], height + lift, "o", color=VERMILION, markersize=2, markeredgewidth=0)
    axes.plot([row["limit"]], [height], "|", color=BLACK, markersize=11, markeredgewidth=1.6)
    right = max(row["limit"] + spread, *row["samples"]) + 0.015
    axes.text(right, height, f"{row['limit']:.3f}", va="center")


def _list(seeds: Sequence[int]) -> str:
    """0–7 for a run of seeds, else the seeds by comma."""
    run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}–{seeds[-1]}" if run else ", ".join(map(str, seeds))


DRAWINGS: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "convergence": convergence,
    "outcomes": outcomes.draw,
    "survival": survival,
    "gauge": gauge,
    "leak": leak,
}
