"""Forward hooks that add a merged update to a linear layer, and statistics of how tokens were routed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from toytransformer.adapters import LoRA
from toytransformer.merging import Merged, Routed, Static, StaticMerge

Shifter = Callable[[torch.Tensor], torch.Tensor]


def adding(shift: Shifter) -> Callable[..., torch.Tensor]:
    """A forward hook that adds `shift(input)` to the output, rounded once to the output's precision."""

    def hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return (output + shift(inputs[0]).to(output.device)).to(output.dtype)

    return hook


def shifter(merged: Merged, dtype: torch.dtype, device: torch.device, tally: Tally | None = None) -> Shifter:
    """x (..., in) -> the shift (..., out) in `dtype`, every position on its own.

    `merged` lies on `device`; what routes is computed in `gate_precision(dtype)`.
    """
    gate = gate_precision(dtype)

    def shift(x: torch.Tensor) -> torch.Tensor:
        raw = x.reshape(-1, x.shape[-1]).to(device)
        rows = raw.to(dtype)
        if isinstance(merged, Routed):
            weights = merged.routing(raw.to(gate))
            if tally is not None:
                tally.add(weights, x.shape[:-1])
            out = merged.mixed(rows, weights.to(dtype))
        else:
            out = merged.shift(rows)
        return out.reshape(*x.shape[:-1], -1)

    return shift


def of_tokens(layer: torch.nn.Embedding, merged: Static, device: torch.device) -> Shifter:
    """Numbers of tokens (..) -> the shift (.., out) of an embedding's rows: columns of Delta.

    Scaled as the layer scales its rows (`embed_scale`, Gemma). `merged` lies on `device`.
    """
    update = merged.update if isinstance(merged, StaticMerge) else merged.factored()
    scale = getattr(layer, "embed_scale", 1.0)

    def shift(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.to(device)
        rows = update.read[ids] @ update.write.T if isinstance(update, LoRA) else update.T[ids]
        return rows * (scale.to(rows) if isinstance(scale, torch.Tensor) else scale)

    return shift


def gate_precision(dtype: torch.dtype) -> torch.dtype:
    """What tokens are routed in: float32 at least, as half precision would tie what is apart."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Routing:
    """How one layer's tokens (padding left out) were routed.

    weights: mean weight of each adapter. first: share of the tokens on which it has the largest weight.
    entropy: mean over tokens of -sum w log w, in nats; 0 for hard choices, log n for equal parts.
    """

    tokens: int
    weights: tuple[float, ...]
    first: tuple[float, ...]
    entropy: float


class Padding:
    """Which positions of the current forward pass are tokens, from the model's attention mask."""

    mask: torch.Tensor | None = None

    def remember(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None

    def tokens(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        """True for a token, flat. The mask also covers the cached past; its last columns are the present."""
        mask, (batch, length) = self.mask, (shape if len(shape) == 2 else (0, 0))
        if mask is None or len(mask) != batch or mask.shape[1] < length:
            return torch.ones(math.prod(shape), dtype=torch.bool, device=device)
        return mask[:, -length:].reshape(-1).to(device).bool()


class Tally:
    """Sums of routing statistics: tokens, entropy, weights, first choices; kept on the device, in float64.

    watch: given, takes the weights (row, position, adapter) of every pass in place of the sums.
    places: which adapters of the library the layer routes among, None for all; the others have weight 0.
    """

    def __init__(self, padding: Padding, places: Sequence[bool] | None = None):
        self.padding = padding
        self.places = places
        self.sums: torch.Tensor | None = None
        self.watch: Callable[[torch.Tensor], None] | None = None

    def add(self, weights: torch.Tensor, shape: Sequence[int]) -> None:
        if self.watch is not None:
            self.watch(self._of_library(weights.detach()).reshape(*shape, -1))
            return
        with torch.no_grad():
            weights = weights.double() if weights.device.type != "mps" else weights
            real = self.padding.tokens(shape, weights.device)[:, None].to(weights)
            first = (weights == weights.amax(dim=1, keepdim=True)).to(weights)
            first = first / first.sum(dim=1, keepdim=True)
            entropy = torch.special.entr(weights).sum(dim=1, keepdim=True)
            row = (torch.cat([torch.ones_like(entropy), entropy, weights, first], dim=1) * real).sum(dim=0)
            self.sums = row if self.sums is None else self.sums + row

    def result(self) -> Routing | None:
        """The statistics, None before the first token."""
        if self.sums is None:
            return None
        tokens, entropy, *rest = self.sums.tolist()
        parts = [value / tokens if tokens else math.nan for value in rest]
        half = len(parts) // 2
        mean_entropy = entropy / tokens if tokens else math.nan
        weights, first = self._spread(parts[:half]), self._spread(parts[half:])
        return Routing(int(tokens), weights, first, mean_entropy)

    def _of_library(self, weights: torch.Tensor) -> torch.Tensor:
        """(token, adapter routed among) as (token, adapter of the library)."""
        if self.places is None:
            return weights
        whole = weights.new_zeros(len(weights), len(self.places))
        whole[:, torch.tensor(self.places, device=weights.device)] = weights
        return whole

    def _spread(self, values: Sequence[float]) -> tuple[float, ...]:
        """One value for each adapter of the library."""
        if self.places is None:
            return tuple(values)
        each = iter(values)
        return tuple(next(each) if here else 0.0 for here in self.places)
