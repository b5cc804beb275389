"""What the doctor says as one self-contained HTML page: tables, pictures in SVG, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llm_experiments.diagnose import asked_tables
from llm_experiments.diagnose.answers import READINGS
from llm_experiments.diagnose.combining import SCALES, Combinations
from llm_experiments.diagnose.findings import Finding
from llm_experiments.diagnose.leaks import Leaks
from llm_experiments.diagnose.library import LibraryGeometry
from llm_experiments.diagnose.verdict import Verdict
from llm_experiments.models.files import printable

#: Most modules, one a line, of the heat map: with more, the modules of a block are one line.
LINES = 64
#: Colours of the adapters' curves, one after another and again.
COLOURS = ("#0b5394", "#a33c00", "#3d7a1f", "#7b1fa2", "#8a6d00", "#00707a")
#: Size of a drawing, and of its margin.
WIDTH, HEIGHT, MARGIN = 420, 260, 36


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of a library: from its weights alone, with a model, with questions."""

    library: LibraryGeometry
    findings: Sequence[Finding]
    leaks: Leaks | None = None
    asked: Combinations | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Curve:
    """A line of a drawing: its points as SVG has them, a name and a colour."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


def render(diagnosis: Diagnosis) -> str:
    """The page. Names and texts of others stand in it as text, whatever they hold."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": printable, "number": number, "share": asked_tables.share}
    library, asked, said = diagnosis.library, diagnosis.asked, diagnosis.verdict
    measures = [library.cosines, library.cosine_errors, library.overlap("read"), library.overlap("write")]
    pairs = [
        (library.names[i], library.names[j], *(of[i, j] for of in measures))
        for i, j in combinations(range(len(library.names)), 2)
    ]
    return environment.get_template("page.html").render(
        diagnosis=diagnosis,
        library=library,
        pairs=pairs,
        heat=heat(library),
        curves=curves(asked) if asked else (),
        dots=dots(asked) if asked else (),
        merges=asked_tables.shown(asked) if asked else (),
        groups=asked_tables.groups(asked) if asked else (),
        reading=READINGS[asked.reading] if asked else "",
        staged=asked_tables.in_stages(said.staged) if said and said.staged else (),
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
        scales=[(f"{scale:g}", _across(scale)) for scale in SCALES],
    )


def heat(library: LibraryGeometry) -> list[tuple[str, list[tuple[float, str]]]]:
    """Line by line the share of each adapter's energy in a module, or in a block, with its colour."""
    if len(library.modules) <= LINES:
        total = np.diag(library.gram)
        shares = {
            name: np.divide(np.diag(module.gram), total, out=np.zeros(len(total)), where=total > 0)
            for name, module in library.modules.items()
        }
    else:
        shares = {
            "outside the blocks" if block is None else f"block {block}": np.nan_to_num(share)
            for block, share in library.blocks.items()
        }
    most = max((float(share.max()) for share in shares.values()), default=0.0) or 1.0
    return [
        (name, [(float(value), f"rgba(11, 83, 148, {value / most:.3f})") for value in share])
        for name, share in shares.items()
    ]


def curves(asked: Combinations) -> list[Curve]:
    """Each adapter's share right on its own questions, by its weight."""
    found = []
    for index, (name, curve) in enumerate(asked.curves.items()):
        own = asked.owned(index)
        if own.any():
            points = [(s, float(curve[s].right.numpy()[own].mean())) for s in SCALES]
            colour = COLOURS[index % len(COLOURS)]
            found.append(Curve(name, colour, tuple((_across(x), _up(y)) for x, y in points)))
    return found


def dots(asked: Combinations) -> list[tuple[str, float, float]]:
    """Predicted against measured share right of every merge that was measured."""
    across = WIDTH - 2 * MARGIN
    return [
        (one.name, MARGIN + across * one.predicted.share, _up(one.measured.share))
        for one in asked.merges
        if one.measured is not None
    ]


def _across(scale: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * scale / SCALES[-1]


def _up(share: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share


def number(value: float, digits: int = 3) -> str:
    """A number for a table; nothing for what is not defined."""
    return "" if math.isnan(value) else f"{value:.{digits}g}"
