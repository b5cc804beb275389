"""One look for every drawing: column widths, fonts of 8 pt and more, Okabe-Ito colours, and no colour alone.

Whatever a colour says, a hatch, a marker, a line style or a word says too, so that the drawings read in grey
print. Text is drawn as paths in the one font matplotlib brings along, and nothing in a file depends on the
time or the machine: the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Widths in inches of one and of two columns of print.
COLUMN, PAGE = 3.4, 7.0

BLACK, ORANGE, SKY, GREEN, YELLOW = "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, GREY, PALE = "#0072B2", "#D55E00", "#CC79A7", "#777777", "#E4E4E4"


#: How a line is drawn: whole, or an offset and lengths of dashes and gaps in points.
Dashes = Literal["-"] | tuple[float, tuple[float, ...]]


_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "lora-limits",
    "path.simplify": True,
}


@contextmanager
def look() -> Iterator[None]:
    """matplotlib's defaults overridden by this style, and by nothing from the reader's own settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, apart from pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write stem.png (300 dots an inch), stem.svg or stem.pdf, without date or version in them.

    The layout is settled once, so that no format depends on which others are written.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
    for path, kind in zip(paths, formats, strict=True):
        figure.savefig(path, format=kind, dpi=300, metadata=metadata[kind])
    return paths


def ring(axes: Axes, x: float, y: float) -> None:
    """A ring around a point whose numbers want a caution; the note under the drawing says which."""
    (mark,) = axes.plot([x], [y], "o", color=BLACK, fillstyle="none", markersize=7, markeredgewidth=0.5)
    mark.set(clip_on=False, zorder=4)


def note(figure: Figure, text: str) -> None:
    """The line under a drawing that says what it was computed from."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#333333")
