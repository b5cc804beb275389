"""Arrow: adapters weighted prompt by prompt, by how much of the prompt their strongest input direction sees.

    p_i = top right singular vector of Delta_i,   logit_i = |p_i . phi|,   w = softmax(logit / T)

The two forms differ in what w multiplies: the products (PEFT) or the factors (paper eq. 28, mttl).

|p_i . phi| grows like sqrt(m) with the width (theory.md, R4). At a fixed T the softmax therefore ends as a
hard choice; `temperature_scaling="sqrt-width"` lets T grow as sqrt(m) too (mttl does so when given a
negative temperature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.merging.registry import (
    Array,
    MergeContext,
    RuleError,
    Weights,
    choice,
    merge_rule,
    positive,
    whole,
)
from toytransformer.merging.static import concatenated, require_equal_ranks, rounding

ARROW = {
    "routed": True,
    "weighted": False,
    "options": {
        "temperature": positive(1.0),
        "temperature_scaling": choice("fixed", "sqrt-width"),
        "top_k": whole(1, "all adapters (soft routing)"),
    },
}


@dataclass(frozen=True)
class RoutedMerge:
    """Adapters weighted by prompt.

    inverse_temperature multiplies |p_i . phi|; infinite makes the choice hard.
    spectral_gap is the smallest (s_1 - s_2) / s_1 of the adapters: at 0 the prototypes, and so the result,
    are arbitrary. slack: similarities that differ by less than this times |phi| are tied; None for what may
    be rounding in their precision.
    """

    adapters: tuple[LoRA, ...]
    prototypes: Float[Array, "adapter feature"]
    spectral_gap: float
    inverse_temperature: float
    top_k: int
    factor_wise: bool
    details: Mapping[str, Any] = field(default_factory=dict)
    slack: float | None = None

    def routing(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt adapter"]:
        """The weights of the adapters on each prompt: not negative, of sum 1.

        Adapters tied with the k-th largest logit all take part, and a hard choice is shared equally among
        the tied.
        """
        xp = array_namespace(features, self.prototypes)
        similarity = xp.abs(features @ self.prototypes.T)
        slack = rounding(similarity) if self.slack is None else self.slack
        slack = slack * xp.linalg.vector_norm(features, axis=1, keepdims=True)
        hard = math.isinf(self.inverse_temperature)
        ranked = xp.sort(similarity, axis=1, descending=True)
        last = ranked[:, 0 if hard else self.top_k - 1][:, None]
        logits = similarity - ranked[:, :1]
        scores = xp.ones_like(logits) if hard else xp.exp(logits * self.inverse_temperature)
        chosen = xp.where(similarity >= last - slack, scores, xp.zeros_like(scores))
        return chosen / xp.sum(chosen, axis=1, keepdims=True)

    def shift(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt entity"]:
        """sum_i w_i Delta_i phi, or factor-wise (sum_i w_i write_i)(sum_j w_j read_j)^T phi."""
        return self.mixed(features, self.routing(features))

    def mixed(
        self, features: Float[Array, "prompt feature"], routing: Float[Array, "prompt adapter"]
    ) -> Float[Array, "prompt entity"]:
        """The shift under given weights of the adapters: two products with all factors side by side."""
        xp = array_namespace(features, routing)
        together, owner = self._together
        weights = xp.take(routing, owner, axis=1)
        seen = weights * (features @ together.read)
        if self.factor_wise:
            count, rank = len(self.adapters), self.adapters[0].rank
            mean = xp.sum(xp.reshape(seen, (-1, count, rank)), axis=1)
            seen = weights * xp.concat([mean] * count, axis=1)
        return together.written(seen)

    @cached_property
    def _together(self) -> tuple[LoRA, Array]:
        """All factors side by side, and the adapter to which each column belongs."""
        together = concatenated(self.adapters, (1,) * len(self.adapters))
        xp = array_namespace(together.read)
        owner = [index for index, lora in enumerate(self.adapters) for _ in range(lora.rank)]
        return together, xp.asarray(owner, device=device(together.read))


def prototype(lora: LoRA) -> tuple[Float[Array, "feature"], float]:
    """The top right singular vector of Delta, up to its sign, and the gap (s_1 - s_2) / s_1.

    The gap is 1 for rank one. Exact, through thin QRs; PEFT's fifteen power iterations are not converged on
    adapters of LLM size.
    """
    xp = array_namespace(lora.write, lora.read)
    _, values, right = lora.svd()
    scale = float(xp.linalg.vector_norm(lora.write)) * float(xp.linalg.vector_norm(lora.read))
    top = float(values[0])
    if top <= rounding(values) * scale:
        raise RuleError(
            "an adapter with Delta W = 0 has no top singular vector, so no Arrow prototype; "
            "train it, leave it out, or use a rule without routing"
        )
    second = float(values[1]) if values.shape[0] > 1 else 0.0
    return right[:, 0], (top - second) / top


def _arrow(
    adapters: Sequence[LoRA],
    context: MergeContext,
    factor_wise: bool,
    temperature: float,
    temperature_scaling: str,
    top_k: int | None,
) -> RoutedMerge:
    if top_k is not None and top_k > len(adapters):
        raise RuleError(
            f"top_k is {top_k} but there are {len(adapters)} adapters; give at most that, or None for all"
        )
    if temperature_scaling == "fixed" and not context.logit_scale > 0:
        raise RuleError(
            f"logit_scale is {context.logit_scale}: a fixed temperature needs the scale of the activations, "
            'which exists for finite d or infinite m; use temperature_scaling "sqrt-width"'
        )
    xp = array_namespace(adapters[0].read)
    prototypes, gaps = zip(*(prototype(lora) for lora in adapters), strict=True)
    gap = min(gaps)
    details: dict[str, Any] = {"spectral_gaps": gaps}
    # Rounding moves p by about eps / gap: below sqrt(eps) less than half the digits are left.
    if gap < math.sqrt(float(xp.finfo(prototypes[0].dtype).eps)):
        details["warning"] = (
            f"the two largest singular values of an adapter agree up to a relative gap of {gap:.1e}, "
            "so its Arrow prototype is arbitrary; do not rely on this result"
        )
    scale = context.logit_scale
    if temperature_scaling == "sqrt-width":
        scale = 1.0 if context.width_scale is None else scale / context.width_scale
    return RoutedMerge(
        tuple(adapters),
        xp.stack(prototypes),
        gap,
        scale / temperature,
        len(adapters) if top_k is None else top_k,
        factor_wise,
        details,
    )


@merge_rule("arrow-products", gauge_invariant=True, **ARROW)
def arrow_products(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, **options: Any
) -> RoutedMerge:
    """shift(phi) = sum_i w_i(phi) Delta_i phi, with w = softmax over the top_k of |p_i . phi| / T.

    Output mixing as in PEFT (tuners/lora/arrow.py; its defaults: T = 1, top_k = 3). Gauge-invariant as long
    as the spectral gap is not zero. An infinite logit (fixed T in a limit) is a hard choice.
    """
    return _arrow(adapters, context, False, **options)


@merge_rule("arrow-factors", gauge_invariant=False, **ARROW)
def arrow_factors(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, **options: Any
) -> RoutedMerge:
    """shift(phi) = (sum_i w_i write_i)(sum_j w_j read_j)^T phi, with w(phi) as in arrow-products.

    Paper eq. 28; mttl's default (T = 1, no top_k). The weights are gauge-invariant, the cross terms write_i
    read_j^T are not. Needs equal ranks.
    """
    require_equal_ranks(adapters)
    return _arrow(adapters, context, True, **options)
