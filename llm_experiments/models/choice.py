"""The words in which the layers that an adapter changes are chosen, such as "mlp" or "attention@lower half".

    layers = KIND | KIND "@" DEPTH
    KIND   = "mlp" | "attention" | "both" | "all"
    DEPTH  = "lower half" | "upper half" | FIRST "-" LAST

A model is a stack of blocks, counted from 0 at the input. KIND says which linear layers of a block, DEPTH
which blocks; without a depth, all of them. "both" are those of MLP and attention; "all" are all linear
layers of a block, also such as belong to neither (the mixers of Mamba). FIRST and LAST are both included. Of
an odd number of blocks the middle one belongs to the upper half. A choice has one spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = ("mlp", "attention", "both", "all")
HALVES = ("lower half", "upper half")
_RANGE = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})")


class ChoiceError(ValueError):
    """A choice of layers that says nothing, or that the model at hand does not have."""


@dataclass(frozen=True)
class LayerChoice:
    """What the text of a choice says: its kind, and its depth ("" for every block)."""

    kind: str
    depth: str = ""

    @classmethod
    def parse(cls, text: str) -> LayerChoice:
        """Errors: ChoiceError for anything that is not in the grammar above."""
        kind, at, depth = text.partition("@") if isinstance(text, str) else ("", "", "")
        pair = _RANGE.fullmatch(depth)
        ordered = pair is not None and int(pair[1]) <= int(pair[2])
        if kind not in KINDS or not (ordered or depth in HALVES or not at):
            raise ChoiceError(
                f"layers is {text!r}; use one of {', '.join(map(repr, KINDS))}, for a part of the model's "
                "blocks followed by '@lower half', '@upper half' or the first and last, such as 'mlp@0-11'"
            )
        return cls(kind, depth)

    def __str__(self) -> str:
        return f"{self.kind}@{self.depth}" if self.depth else self.kind

    def blocks(self, count: int) -> range:
        """The blocks meant of a model that has `count`; ChoiceError where it has not so many."""
        if not self.depth:
            return range(count)
        if self.depth in HALVES:
            return range(count // 2) if self.depth == "lower half" else range(count // 2, count)
        first, last = map(int, self.depth.split("-"))
        if last >= count:
            raise ChoiceError(f"layers is {str(self)!r}; the model has blocks 0 to {count - 1}")
        return range(first, last + 1)
