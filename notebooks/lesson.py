"""What all lessons share: the look of a drawing, and the moment when a guess meets its answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import pyplot as plt

from figures import style

#: Dots an inch: text of 8 points is then as large as the notebook's own.
DPI = 144


@contextmanager
def drawing(width: float = 6.0, height: float = 3.2, **subplots: Any) -> Iterator[Any]:
    """Axes in the project's look, shown at the end of the block. subplots: as of `plt.subplots`."""
    with style.look():
        plt.rcParams["figure.dpi"] = DPI
        figure, axes = plt.subplots(figsize=(width, height), **subplots)
        try:
            yield axes
            plt.show()
        finally:
            plt.close(figure)


def reveal(question: str, guess: Any, answer: Any) -> None:
    """Print the answer beside the reader's guess, None being none."""
    said = "you wrote no guess" if guess is None else f"your guess: {_short(guess)}"
    print(f"{question}: {_short(answer)}   ({said})")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
