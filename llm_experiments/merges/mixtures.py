"""Adapters side by side under weights that change between passes, and nothing else does.

What the mixture law starts from, the base and each adapter alone, and scale curves: one model and its hooks
serve all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from llm_experiments.adapters.peft_files import AdapterWeights
from llm_experiments.merges.routed import routed
from llm_experiments.models.handle import LoadedModel
from toytransformer.merging import RoutedMerge, RuleError


@dataclass
class Weights:
    """The weights in force, one for each adapter; all zero is the base."""

    values: tuple[float, ...]

    def set(self, values: Sequence[float]) -> None:
        """Errors: RuleError on another number of weights, and on NaN or infinity."""
        if len(values) != len(self.values) or not np.all(np.isfinite(values)):
            raise RuleError(f"weights {tuple(values)}: give {len(self.values)} finite numbers")
        self.values = tuple(map(float, values))


@dataclass(frozen=True)
class Weighted(RoutedMerge):
    """sum_i w_i Delta_i, with the weights in force on every prompt alike."""

    weights: Weights = field(default_factory=lambda: Weights(()))

    def routing(self, features: torch.Tensor) -> torch.Tensor:
        return features.new_tensor(self.weights.values).expand(len(features), -1)


@contextmanager
def weighted(
    loaded: LoadedModel, library: Sequence[AdapterWeights], *, dtype: torch.dtype = torch.float32
) -> Iterator[Weights]:
    """The library in the model, at weights 0 first; what is yielded sets them.

    Errors: RuleError on no adapters, and as merging.target_layers.
    """
    if not library:
        raise RuleError("there are no adapters to weigh: give one at least")
    weights = Weights((0.0,) * len(library))
    with routed(loaded, library, lambda factors: Weighted(factors, weights=weights), dtype):
        yield weights
