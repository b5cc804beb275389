"""Updates with a bias of their own (PEFT's lora_bias) as linear maps of one more input; merges of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch

from llm_experiments.adapters.weights import ModuleUpdate
from toytransformer.adapters import LoRA
from toytransformer.arrays import Convert
from toytransformer.merging import Merged, StaticMerge


@dataclass(frozen=True)
class AffineMerge(StaticMerge):
    """One update and one bias for all inputs: x -> Delta x + bias."""

    bias: torch.Tensor | None = None

    @classmethod
    def of(cls, merged: Merged) -> AffineMerge:
        """A sum of the maps of `affine`, taken apart again, without the columns that only shift."""
        assert isinstance(merged, StaticMerge) and isinstance(merged.update, LoRA)  # others: `undefined`
        write, read = merged.update.write, merged.update.read
        kept = read[:-1].any(dim=0)
        kept[0] = True
        update = LoRA(write[:, kept], read[:-1, kept])
        return cls(update, merged.details, mixing=merged.mixing, bias=write @ read[-1])

    def shift(self, features: torch.Tensor) -> torch.Tensor:
        return super().shift(features) + self.bias

    def to(self, update: Convert, gate: Convert | None = None) -> AffineMerge:
        merged = cast(AffineMerge, super().to(update))
        return replace(merged, bias=update(cast(torch.Tensor, self.bias)))


def affine(lora: LoRA) -> LoRA:
    """x -> write read^T x + bias as one linear map of (x, 1): a column more, which sees the 1 alone."""
    bias = lora.bias if isinstance(lora, ModuleUpdate) else None
    column = lora.write.new_zeros(len(lora.write)) if bias is None else bias
    write = torch.cat([lora.write, column[:, None]], 1)
    read = torch.block_diag(lora.read, lora.read.new_ones(1, 1))
    return LoRA(write, read)
