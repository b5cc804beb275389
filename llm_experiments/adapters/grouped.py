"""LoRA layers of one or several adapters on one frozen model, in one pass over rows of all of them.

Adapter k adds s B_k A_k d(x) to y = W x + b on its own rows, d = dropout. Written as one autograd function:
W gets no gradient, nothing but x and A_k d(x) is kept for the way back, and the small products are added into
the large ones in place. Everything is computed in the base's dtype (products of bfloat16 numbers are summed
in float32); the factors and their gradients are float32, or float64 where the base is.

Random masks of an adapter come from a generator of its own and do not depend on the others' rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from llm_experiments.adapters.batches import IGNORED, TrainingBatch

#: A dropout mask is drawn from 16 bits of a random number for each entry.
BITS = 1 << 16


@dataclass
class Factors:
    """The factors of one layer, for each adapter. a: (rank, in), b: (out, rank); scale: s."""

    a: Sequence[Tensor]
    b: Sequence[Tensor]
    scale: float


#: A module whose forward is called, the frozen linear layer in it, and what is added there; by name.
Layers = Mapping[str, tuple[nn.Module, nn.Module, Factors]]


@dataclass
class Pass:
    """What the layers need to know about the rows of the pass under way.

    generators: of random masks, one for each adapter. dropout: 0 switches it off. active: numbers of the
    adapters in the batch. lengths: tokens of the longest row of each of these, rows: how many it has; the
    tensors have as many as the largest.
    """

    generators: Sequence[torch.Generator]
    dropout: float = 0.0
    active: Sequence[int] = (0,)
    lengths: Sequence[int] = (1,)
    rows: Sequence[int] = (1,)

    @property
    def kept(self) -> float:
        """Share of entries that dropout keeps, as it can be drawn."""
        return 1.0 - round(self.dropout * BITS) / BITS

    def masks(self, x: Tensor) -> Tensor | None:
        """1 where an entry of x (adapter, row, token, in) is kept, else 0."""
        if self.dropout == 0:
            return None
        groups, _, length, width = x.shape
        drawn = [
            self._draw((rows, tokens, width), self.generators[adapter]).to(x)
            for adapter, rows, tokens in zip(self.active, self.rows, self.lengths, strict=True)
        ]
        if groups == 1 and drawn[0].shape == x.shape[1:]:
            return drawn[0][None]
        padded = x.new_zeros(x.shape)
        for group, mask in enumerate(drawn):
            padded[group, : len(mask), length - mask.shape[1] :] = mask
        return padded

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        count = shape[0] * shape[1] * shape[2]
        bits = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
        bits.random_(-(2**63), None, generator=generator)
        threshold = round(self.dropout * BITS) - BITS // 2
        return bits.view(torch.int16)[:count].view(shape) >= threshold


@contextmanager
def adapted(layers: Layers, rows: Pass) -> Iterator[None]:
    """Let each layer add its adapters."""
    before = [(called, vars(called).get("forward")) for called, _, _ in layers.values()]
    try:
        for called, linear, factors in layers.values():
            called.forward = _Forward(linear, factors, rows)
        yield
    finally:
        for called, forward in before:
            vars(called).pop("forward", None)
            if forward is not None:  # accelerate's, on models spread over devices
                called.forward = forward


class _Forward:
    def __init__(self, linear: nn.Module, factors: Factors, rows: Pass):
        self.linear, self.factors, self.rows = linear, factors, rows
        self.frozen = linear.forward
        weight = getattr(linear, "weight", None)
        self.plain = type(linear) is nn.Linear and weight is not None and weight.is_floating_point()

    def __call__(self, x: Tensor, *_: object, **__: object) -> Tensor:
        groups = len(self.rows.active)
        # some architectures (OPT) flatten rows and tokens before the MLP
        split = x.reshape(groups, max(self.rows.rows), -1, x.shape[-1])
        masks = self.rows.masks(split)
        scale = self.factors.scale / (1.0 if masks is None else self.rows.kept)
        inputs = split.reshape(groups, -1, x.shape[-1])
        masks = None if masks is None else masks.reshape(inputs.shape)
        weight, bias = (self.linear.weight, self.linear.bias) if self.plain else (None, None)
        factors = [
            every[adapter] for every in (self.factors.a, self.factors.b) for adapter in self.rows.active
        ]
        y = _Lora.apply(inputs, scale, masks, weight, bias, *factors)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.plain else self.frozen(x) + y


class _Lora(torch.autograd.Function):
    """x (adapter, row, in) -> W x + bias + scale B A (mask x), without W where it is None.

    factors: A of every adapter, then B of every adapter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: float,
        mask: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        a, b = torch.stack(factors[: len(x)]), torch.stack(factors[len(x) :])
        a, b = a.to(x.dtype), (scale * b).to(x.dtype)
        dropped = x if mask is None else x * mask
        inner = _times(dropped, a.mT)
        if weight is None:
            y = _times(inner, b.mT)
        else:
            y = nn.functional.linear(x, weight, bias)
            _add_times(y, inner, b.mT)
        ctx.save_for_backward(dropped, a, b, inner, mask, weight)
        ctx.scale, ctx.dtype = scale, factors[0].dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dropped, a, b, inner, mask, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_inner = _times(grad, b)
        grads_a: tuple[Tensor | None, ...] = (None,) * len(a)
        grads_b: tuple[Tensor | None, ...] = (None,) * len(a)
        if any(ctx.needs_input_grad[5 : 5 + len(a)]):
            grads_a = _times(grad_inner.mT, dropped).to(ctx.dtype).unbind()
        if any(ctx.needs_input_grad[5 + len(a) :]):
            grads_b = _times(grad.mT, inner).to(ctx.dtype).mul_(ctx.scale).unbind()
        grad_x = None
        if ctx.needs_input_grad[0]:
            if weight is not None and mask is None:
                grad_x = grad @ weight
                _add_times(grad_x, grad_inner, a)
            else:
                grad_x = _times(grad_inner, a)
                grad_x = grad_x if mask is None else grad_x.mul_(mask)
                grad_x = grad_x if weight is None else grad_x.add_(grad @ weight)
        return grad_x, None, None, None, None, *grads_a, *grads_b


def _times(left: Tensor, right: Tensor) -> Tensor:
    """(adapter, i, j) times (adapter, j, k); a product of one is quicker without the first axis."""
    return (left[0] @ right[0])[None] if len(left) == 1 else torch.bmm(left, right)


def _add_times(total: Tensor, left: Tensor, right: Tensor) -> None:
    if len(left) == 1:
        total[0].addmm_(left[0], right[0])
    else:
        total.baddbmm_(left, right)


def losses(model: PreTrainedModel, batch: TrainingBatch, prefix: Sequence[int], rows: Pass) -> Tensor:
    """Mean of -log p over the answer tokens of each adapter's rows, (adapter,), in float32 or better.

    model: a causal language model whose layers are `adapted` with `rows`, which is set to each pass here.
    """
    groups = len(rows.active)
    most, length = len(batch.tokens) // groups, batch.tokens.shape[1]
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    mask, cached = batch.mask, {}
    if prefix:
        rows.rows, rows.lengths = (1,) * groups, (len(prefix),) * groups
        shared = batch.tokens.new_tensor(prefix).expand(groups, -1)
        cache = DynamicCache(config=model.config)
        model.base_model(input_ids=shared, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer)  # as can_share_prefix made sure
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = _repeated(layer.keys, most), _repeated(layer.values, most)
        mask = torch.cat([mask.new_ones(len(mask), len(prefix)), mask], 1)
        positions = positions + len(prefix)
        cached = {"past_key_values": cache, "use_cache": True}
    rows.rows, rows.lengths = batch.rows, batch.lengths
    answers = batch.targets.shape[1]
    positions_kept = torch.arange(length - answers - 1, length - 1, device=batch.tokens.device)
    logits = model(
        input_ids=batch.tokens,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=positions_kept,
        **(cached or {"use_cache": False}),
    ).logits
    wanted = batch.targets != IGNORED
    picked = logits[wanted]
    picked = picked.to(torch.promote_types(picked.dtype, torch.float32))
    each = nn.functional.cross_entropy(picked, batch.targets[wanted], reduction="none")
    if groups == 1:
        return each.mean()[None]
    counts = wanted.view(groups, -1).sum(1)
    owner = torch.arange(groups, device=each.device).repeat_interleave(counts)
    return each.new_zeros(groups).index_add_(0, owner, each) / counts


def _repeated(kept: Tensor, most: int) -> Tensor:
    """(adapter, head, token, .) for every row of each adapter."""
    return kept.expand(most, -1, -1, -1) if len(kept) == 1 else kept.repeat_interleave(most, 0)


def can_share_prefix(model: PreTrainedModel) -> bool:
    """Whether keys and values of a prefix can be computed once: all layers keep them in the common way."""
    return all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=model.config).layers)
