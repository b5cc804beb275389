"""The toy model as a whole: in which regime features are taken, what the base says, how answers are read off.

    predict(composition, Toy(FullLimit(relation_length=2), TrainedBase(), Typed(0.5)))

A regime alone stands for the model of the paper: an exact base and one-hot answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from toytransformer.bases import Base, ExactBase
from toytransformer.readout import OneHot, Readout
from toytransformer.regimes import Regime


@dataclass(frozen=True)
class Toy:
    """A regime, a base (toytransformer.bases) and a readout (toytransformer.readout)."""

    regime: Regime
    base: Base = field(default_factory=ExactBase)
    readout: Readout = field(default_factory=OneHot)

    def describe(self) -> dict[str, object]:
        """The model as plain data, for records: the regime, and what is not the paper's model."""
        return {**self.regime.describe(), **self.base.describe(), **self.readout.describe()}

    @property
    def plain(self) -> bool:
        """Whether it is the paper's model in its regime."""
        return not (self.base.describe() or self.readout.describe())


def as_toy(model: Regime | Toy) -> Toy:
    """The toy itself, or the paper's model in a regime."""
    return model if isinstance(model, Toy) else Toy(model)
