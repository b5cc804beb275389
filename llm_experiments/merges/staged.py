"""Adapters that take turns: one alone with weight 1, another from where a later stage of the answer begins.

What a router would do that knew which step is being written; through the hooks of every other routed merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges.routed import routed
from llm_experiments.models.handle import LoadedModel
from toytransformer.merging import RoutedMerge, RuleError


@dataclass
class Stage:
    """Whose turn it is: the number of an adapter of the library. Positions that are cached keep theirs."""

    number: int = 0

    def turn(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class InTurn(RoutedMerge):
    """All weight on the adapter whose turn it is."""

    stage: Stage = field(default_factory=Stage)

    def routing(self, features: torch.Tensor) -> torch.Tensor:
        weights = features.new_zeros(len(features), len(self.adapters))
        weights[:, self.stage.number] = 1
        return weights


@contextmanager
def apply(
    loaded: LoadedModel, library: Sequence[AdapterWeights], *, dtype: torch.dtype = torch.float32
) -> Iterator[Stage]:
    """The library in turn, the first adapter first; what is yielded says whose turn it is.

    Errors: RuleError on fewer than two adapters, and as merging.target_layers.
    """
    if len(library) < 2:
        raise RuleError(f"{len(library)} adapters cannot take turns: give two at least")
    stage = Stage()
    with routed(loaded, library, lambda factors: InTurn(factors, stage=stage), dtype):
        yield stage
