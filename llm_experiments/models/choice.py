"""The words in which the layers that an adapter changes are chosen, such as "mlp" or "attention@lower half".

    layers = KIND | KIND "@" DEPTH
    KIND   = "mlp" | "attention" | "both" | "all"
    DEPTH  = "lower " PART | "upper " PART | "even blocks" | "odd blocks" | FIRST "-" LAST
    PART   = "quarter" | "half" | "three quarters"

A model is a stack of blocks, counted from 0 at the input. KIND says which linear layers of a block, DEPTH
which blocks; without a depth, all of them. "both" are those of MLP and attention; "all" are all linear
layers of a block, also such as belong to neither (the mixers of Mamba). FIRST and LAST are both included. A
lower part is rounded down, and the upper part beside it has the rest: of an odd number of blocks the middle
one belongs to the upper half. A choice has one spelling.

An arrangement gives each adapter of a library layers of its own: "first=mlp@0-1, second=mlp@2-3".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("mlp", "attention", "both", "all")
#: Depths by name: from the number of blocks to the blocks meant.
DEPTHS = {
    "lower quarter": lambda count: range(count // 4),
    "lower half": lambda count: range(count // 2),
    "lower three quarters": lambda count: range(3 * count // 4),
    "upper quarter": lambda count: range(3 * count // 4, count),
    "upper half": lambda count: range(count // 2, count),
    "upper three quarters": lambda count: range(count // 4, count),
    "even blocks": lambda count: range(0, count, 2),
    "odd blocks": lambda count: range(1, count, 2),
}
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
        if kind not in KINDS or not (ordered or depth in DEPTHS or not at):
            raise ChoiceError(
                f"layers is {text!r}; use one of {', '.join(map(repr, KINDS))}, for a part of the model's "
                f"blocks followed by {', '.join(repr(f'@{name}') for name in DEPTHS)} or the first and last, "
                "such as 'mlp@0-11'"
            )
        return cls(kind, depth)

    def __str__(self) -> str:
        return f"{self.kind}@{self.depth}" if self.depth else self.kind

    def blocks(self, count: int) -> range:
        """The blocks meant of a model that has `count`; ChoiceError where it has not so many."""
        if not self.depth:
            return range(count)
        if self.depth in DEPTHS:
            return DEPTHS[self.depth](count)
        first, last = map(int, self.depth.split("-"))
        if last >= count:
            raise ChoiceError(f"layers is {str(self)!r}; the model has blocks 0 to {count - 1}")
        return range(first, last + 1)


@dataclass(frozen=True)
class Arrangement:
    """Layers by the adapter that changes them, in merge order."""

    choices: Mapping[str, LayerChoice]

    @classmethod
    def parse(cls, text: str) -> Arrangement:
        """From its text. Errors: ChoiceError for anything else, such as a name given twice."""
        choices: dict[str, LayerChoice] = {}
        for part in text.split(", "):
            name, equals, layers = part.partition("=")
            if not name or not equals or "," in name or name != name.strip() or name in choices:
                raise ChoiceError(
                    f"arrangement {text!r} has the part {part!r}; name each adapter once with its layers, "
                    "such as 'first=mlp@0-1, second=mlp@2-3'"
                )
            choices[name] = LayerChoice.parse(layers)
        return cls(choices)

    def __str__(self) -> str:
        return ", ".join(f"{name}={choice}" for name, choice in self.choices.items())
