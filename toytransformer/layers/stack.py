"""How many layers there are, how they are joined, and in which of them adapters lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toytransformer.bases import Base, ExactBase, TrainedBase
from toytransformer.regimes import Finite, FullLimit, WidthLimit
from toytransformer.two_layers import LayerError

#: By adapter the layers it lies in, from 1.
Placement = Mapping[str, tuple[int, ...]]
#: Most layers: with attention kept in the stream a position is written in 2^L words.
MOST = 8


@dataclass(frozen=True)
class Stack:
    """How many layers there are and how they are joined.

    regime: its sizes, mask, attention and seed hold for every layer. base_layers: where the base's facts are
    stored, in equal parts; in none, the old answers are added to the scores and no layer reads them.
    Errors: LayerError.
    """

    regime: FullLimit | WidthLimit | Finite
    count: int = 2
    tied: bool = True
    attention_stays: bool = True
    unembedding: bool = False
    base_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or not 1 <= self.count <= MOST:
            raise LayerError(f"count is {self.count!r}; a stack has 1 to {MOST} layers")
        object.__setattr__(self, "base_layers", self.checked(self.base_layers, "the base"))

    def checked(self, layers: Sequence[int], whose: str) -> tuple[int, ...]:
        """The layers in order. Errors: LayerError for one that the stack does not have, or named twice."""
        numbers = range(1, self.count + 1)
        if any(isinstance(n, bool) or n not in numbers for n in layers) or len(set(layers)) < len(layers):
            raise LayerError(
                f"{whose} lies in layers {tuple(layers)!r}; give each once, from 1 to {self.count}"
            )
        return tuple(sorted(layers))

    @property
    def base(self) -> Base:
        """The base as the one-layer model knows it."""
        return TrainedBase() if self.base_layers else ExactBase()

    def describe(self) -> dict[str, object]:
        """The stack as plain data, for records."""
        own = {name: value for name, value in self.__dict__.items() if name != "regime"}
        return {**self.regime.describe(), **own, "base_layers": list(self.base_layers)}
