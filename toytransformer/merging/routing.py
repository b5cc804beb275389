"""Arrow: adapters weighted prompt by prompt, by how much of the prompt their strongest input direction sees.

    p_i = top right singular vector of Delta_i,   logit_i = |p_i . phi|,   w = softmax(logit / T)

With `prototypes="mean-features"` p_i is the mean feature of the adapter's own prompts instead, of length 1:
data that Arrow does without. It sees prompts of its own kind that it was not trained on, to which the
singular vectors of facts with different answers are orthogonal (theory.md, section 8).

The two forms differ in what w multiplies: the products (PEFT) or the factors (paper eq. 28, mttl).

|p_i . phi| grows like sqrt(m) with the width (theory.md, R4). At a fixed T the softmax therefore ends as a
hard choice; `temperature_scaling="sqrt-width"` lets T grow too, as the activations do: sqrt(m) times it on
raw ones (as mttl when given a negative temperature), sqrt(m / 2d) times it in the toy model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import ROUNDING, Array, epsilon, rounding
from toytransformer.merging.merged import RoutedMerge, undetermined
from toytransformer.merging.registry import (
    MergeContext,
    RuleError,
    Weights,
    choice,
    merge_rule,
    positive,
    whole,
)
from toytransformer.merging.static import require_equal_ranks

arrow_rule = functools.partial(
    merge_rule,
    routed=True,
    spectral=True,
    by_sectors=True,
    weighted=False,
    paper="arrow",
    options={
        "temperature": positive(1.0),
        "temperature_scaling": choice("fixed", "sqrt-width"),
        "top_k": whole(1, "all adapters (soft routing)"),
        "prototypes": choice("singular-vectors", "mean-features"),
    },
)


@dataclass(frozen=True)
class ArrowMerge(RoutedMerge):
    """Adapters weighted by |p_i . phi|.

    inverse_temperature multiplies |p_i . phi|; infinite makes the choice hard.
    spectral_gap is the smallest (s_1 - s_2) / s_1 of the adapters: at 0 the prototypes, and so the result,
    are arbitrary; None where they are mean features. tied: similarities that differ by less than so many
    units of rounding, times |phi|, are tied.
    """

    prototypes: Float[Array, "adapter feature"]
    inverse_temperature: float
    top_k: int
    tied: float = ROUNDING

    def routing(self, features: Float[Array, "prompt feature"]) -> Float[Array, "prompt adapter"]:
        """The weights of the adapters on each prompt: not negative, of sum 1.

        Adapters tied with the k-th largest logit all take part, and a hard choice is shared equally among
        the tied.
        """
        xp = array_namespace(features, self.prototypes)
        similarity = xp.abs(features @ self.prototypes.T)
        slack = self.tied * epsilon(similarity) * xp.linalg.vector_norm(features, axis=1, keepdims=True)
        hard = math.isinf(self.inverse_temperature)
        ranked = xp.sort(similarity, axis=1, descending=True)
        last = ranked[:, 0 if hard else self.top_k - 1][:, None]
        logits = similarity - ranked[:, :1]
        scores = xp.ones_like(logits) if hard else xp.exp(logits * self.inverse_temperature)
        chosen = xp.where(similarity >= last - slack, scores, xp.zeros_like(scores))
        return chosen / xp.sum(chosen, axis=1, keepdims=True)


def prototype(lora: LoRA) -> tuple[Float[Array, "feature"], float]:
    """The top right singular vector of Delta, up to its sign, and the gap (s_1 - s_2) / s_1.

    The gap is 1 for rank one. Exact: by r x r Gram matrices where that loses at most LOST bits (`by_grams`),
    else through thin QRs; PEFT's fifteen power iterations are not converged on adapters of LLM size.
    """
    if (found := by_grams(lora)) is not None:
        return found
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


#: Bits of the prototype that its quicker route may lose against thin QRs.
LOST = 4


def by_grams(lora: LoRA) -> tuple[Float[Array, "feature"], float] | None:
    """The prototype by the Gram matrices of the factors; None where that is less exact than through QRs.

    With W^T W = L L^T and S = L^T (R^T R) L, Delta^T Delta = (R L)(R L)^T, so s_k^2 are the eigenvalues of S
    and p = R L v / s_1, v the first eigenvector. Rounding S by eps |W|^2 |R|^2 turns p by

        c eps (|W| |R|)^2 / (s_1^2 - s_2^2),      through QRs by      c eps |W| |R| / (s_1 - s_2),

    |W|, |R| spectral norms: |W| |R| / (s_1 + s_2) times as far, at most 2^LOST if |W| |R| <= 2^LOST s_1. That
    is asked for. Where s_2 is so close to s_1 that p is arbitrary, QRs say which one it is; where s_2^2 is
    lost in the rounding of S, they say what s_2 is. Grams are divided by their traces: nothing overflows.
    """
    xp = array_namespace(lora.write, lora.read)
    grams = [factor.T @ factor for factor in (lora.write, lora.read)]
    traces = [float(xp.linalg.trace(gram)) for gram in grams]
    eps = epsilon(grams[0])
    smallest = float(xp.finfo(grams[0].dtype).smallest_normal) / eps
    if not all(smallest < trace < math.inf for trace in traces):
        return None
    write, read = (gram / trace for gram, trace in zip(grams, traces, strict=True))
    sizes, vectors = xp.linalg.eigh(write)
    root = vectors * xp.sqrt(xp.clip(sizes, min=0))
    squares, directions = xp.linalg.eigh(root.T @ read @ root)
    first = float(squares[-1])
    second = max(float(squares[-2]), 0.0) if squares.shape[0] > 1 else None
    scale = float(sizes[-1]) * float(xp.linalg.eigvalsh(read)[-1])
    if not first * 4.0**LOST >= scale > 0:
        return None
    gap = 1.0 if second is None else 1 - math.sqrt(second / first)
    if second is not None and (gap < math.sqrt(eps) or second < math.sqrt(eps) * first):
        return None
    top = lora.read @ (root @ directions[:, -1])
    return top / xp.linalg.vector_norm(top), gap


def _arrow(
    adapters: Sequence[LoRA],
    context: MergeContext,
    factor_wise: bool,
    temperature: float,
    temperature_scaling: str,
    top_k: int | None,
    prototypes: str,
) -> ArrowMerge:
    if top_k is not None and top_k > len(adapters):
        raise RuleError(
            f"top_k is {top_k} but there are {len(adapters)} adapters; give at most that, or None for all"
        )
    if temperature_scaling == "fixed" and not context.logit_scale > 0:
        raise RuleError(
            f"logit_scale is {context.logit_scale}: a fixed temperature needs the scale of the activations, "
            'which exists for finite d or infinite m; use temperature_scaling "sqrt-width"'
        )
    gap: float | None = None
    details: dict[str, Any] = {}
    if prototypes == "mean-features":
        directions = _mean_features(adapters, context)
    else:
        directions, gap, details = _singular_vectors(adapters)
    scale = context.logit_scale
    if temperature_scaling == "sqrt-width":
        scale = 1.0 if context.width_scale is None else scale / context.width_scale
    return ArrowMerge(
        tuple(adapters),
        directions,
        scale / temperature,
        len(adapters) if top_k is None else top_k,
        context.tied,
        factor_wise=factor_wise,
        spectral_gap=gap,
        details=details,
    )


def _singular_vectors(
    adapters: Sequence[LoRA],
) -> tuple[Float[Array, "adapter feature"], float, dict[str, Any]]:
    """The prototypes, the smallest gap, and what is to be said of the gaps."""
    found, gaps = zip(*(prototype(lora) for lora in adapters), strict=True)
    values, result = "the two largest singular values of an adapter", "its Arrow prototype"
    details = {"spectral_gaps": gaps} | undetermined(min(gaps), found[0], values, result)
    return array_namespace(*found).stack(found), min(gaps), details


def _mean_features(adapters: Sequence[LoRA], context: MergeContext) -> Float[Array, "adapter feature"]:
    """The mean features of the adapters' own prompts, each divided by its length."""
    means, wanted = context.own_means, (len(adapters), adapters[0].read.shape[0])
    if means is None:
        raise RuleError(
            'prototypes "mean-features" are made of the prompts that each adapter was trained on, and none '
            'are known here; use "singular-vectors", which need no data'
        )
    if tuple(means.shape) != wanted:
        raise RuleError(f"the mean features have shape {tuple(means.shape)}; it has to be {wanted}")
    xp = array_namespace(means)
    lengths = xp.linalg.vector_norm(means, axis=1, keepdims=True)
    if not bool(xp.all(xp.isfinite(lengths))) or not bool(xp.all(lengths > 0)):
        raise RuleError("the mean feature of an adapter's prompts is zero or not finite: it has no direction")
    return means / lengths


@arrow_rule("arrow-products", gauge_invariant=True)
def arrow_products(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, **options: Any
) -> ArrowMerge:
    """shift(phi) = sum_i w_i(phi) Delta_i phi, with w = softmax over the top_k of |p_i . phi| / T.

    Output mixing as in PEFT (tuners/lora/arrow.py; its defaults: T = 1, top_k = 3). Gauge-invariant as long
    as the spectral gap is not zero. An infinite logit (fixed T in a limit) is a hard choice.
    """
    return _arrow(adapters, context, False, **options)


@arrow_rule("arrow-factors", gauge_invariant=False)
def arrow_factors(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, **options: Any
) -> ArrowMerge:
    """shift(phi) = (sum_i w_i write_i)(sum_j w_j read_j)^T phi, with w(phi) as in arrow-products.

    Paper eq. 28; mttl's default (T = 1, no top_k). The weights are gauge-invariant, the cross terms write_i
    read_j^T are not. Needs equal ranks.
    """
    require_equal_ranks(adapters)
    return _arrow(adapters, context, True, **options)
