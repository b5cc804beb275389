"""Theory beside measurement: measured rows are read, joined with predictions by spec hash, and drawn.

A drawing is a module with a function `draw(cells, edits)`: joined cells, and the rows on closed-form edits.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures.measured.cells import Cell, NothingToDrawError, RowsError

__all__ = ["Cell", "NothingToDrawError", "RowsError", "save"]


def save(
    name: str,
    cells: Sequence[Cell],
    edits: Sequence[dict[str, Any]],
    folder: Path,
    formats: tuple[str, ...] = ("png", "svg"),
) -> list[Path]:
    """Write one drawing in every format. Errors: NothingToDrawError naming what the rows lack."""
    from figures import style

    try:
        with style.look():
            figure = importlib.import_module(f"figures.measured.{name}").draw(cells, edits)
            folder.mkdir(parents=True, exist_ok=True)
            return style.save(figure, folder / name, formats)
    except NothingToDrawError as error:
        raise NothingToDrawError(f"{name} {error}") from error
