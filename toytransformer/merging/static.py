"""Merges that need only adapters and fixed weights and stay factored: sums of products, products of sums.

Delta_i = write_i read_i^T. "Product-wise" rules combine the Delta_i. "Factor-wise" rules combine the
write_i and the read_i apart, which brings in cross terms write_i read_j^T and makes the result depend on
the gauge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, rounding
from toytransformer.merging.merged import Mixing, StaticMerge, concatenated, undetermined
from toytransformer.merging.registry import (
    MergeContext,
    RuleError,
    Weights,
    choice,
    merge_rule,
    share,
    whole,
)


def product_of_sums(adapters: Sequence[LoRA], write: Sequence[float], read: Sequence[float]) -> LoRA:
    """(sum_i a_i write_i)(sum_i b_i read_i)^T, for coefficients a = `write` and b = `read`."""
    require_equal_ranks(adapters)
    return LoRA(
        weighted_sum(write, [lora.write for lora in adapters]),
        weighted_sum(read, [lora.read for lora in adapters]),
    )


def merged_products(
    adapters: Sequence[LoRA], weights: Sequence[float], *, details: Mapping[str, object] | None = None
) -> StaticMerge:
    """sum_i w_i Delta_i as a merge."""
    return StaticMerge(concatenated(adapters, weights), mixing=Mixing(tuple(weights)), details=details or {})


def merged_factors(
    adapters: Sequence[LoRA],
    write: Sequence[float],
    read: Sequence[float],
    *,
    details: Mapping[str, object] | None = None,
) -> StaticMerge:
    """`product_of_sums` as a merge.

    The cross terms of a pair, a_i b_j write_i read_j^T + a_j b_i write_j read_i^T, are one number times their
    sum only where a_i b_j = a_j b_i.
    """
    pairs = list(combinations(range(len(adapters)), 2))
    mixing = None
    if all(write[i] * read[j] == write[j] * read[i] for i, j in pairs):
        cross = tuple(write[i] * read[j] for i, j in pairs)
        mixing = Mixing(tuple(a * b for a, b in zip(write, read, strict=True)), cross)
    return StaticMerge(product_of_sums(adapters, write, read), mixing=mixing, details=details or {})


def weighted_sum(weights: Sequence[float], parts: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """sum_i w_i x_i."""
    first, *others = (w * part for w, part in zip(weights, parts, strict=True))
    return sum(others, first)


def require_equal_ranks(adapters: Sequence[LoRA]) -> None:
    ranks = [lora.rank for lora in adapters]
    if len(set(ranks)) > 1:
        raise RuleError(
            f"the adapters have ranks {ranks}; a factor-wise rule adds factors column by column and "
            "needs equal ranks: train the adapters with one rank, or use a product-wise rule such as 'sum'"
        )


def ones(adapters: Sequence[LoRA], weights: Weights) -> tuple[float, ...]:
    return (1.0,) * len(adapters) if weights is None else weights


def equal_parts(adapters: Sequence[LoRA], weights: Weights) -> tuple[float, ...]:
    return (1 / len(adapters),) * len(adapters) if weights is None else weights


@merge_rule("sum", gauge_invariant=True, sectorwise=True, aliases=("cat", "task_arithmetic"))
def sum_of_products(adapters: Sequence[LoRA], weights: Weights, context: MergeContext) -> StaticMerge:
    """Delta = sum_i w_i Delta_i.

    Default w_i = 1. The paper's sum of adapters (section 3.2), CAT with fixed weights (eq. 26), PEFT "cat".
    Exact: the factors are concatenated, nothing is truncated. Gauge-invariant. At weights (1/2, 1/2), an
    adapter merged with itself is multiplied by 1.
    """
    return merged_products(adapters, ones(adapters, weights))


@merge_rule("mean", gauge_invariant=True, weighted=False, sectorwise=True, paper="uniform")
def mean(adapters: Sequence[LoRA], weights: Weights, context: MergeContext) -> StaticMerge:
    """Delta = (1/n) sum_i Delta_i.

    Averages products: one reading of "Uniform" (`linear` is the other). PEFT "cat" with weights 1/n.
    Gauge-invariant.
    """
    return merged_products(adapters, equal_parts(adapters, None))


@merge_rule("linear", gauge_invariant=False, sectorwise=True, paper="uniform")
def linear(adapters: Sequence[LoRA], weights: Weights, context: MergeContext) -> StaticMerge:
    """Delta = (sum_i w_i write_i)(sum_j w_j read_j)^T, so own terms w_i^2 and cross terms w_i w_j.

    Default w_i = 1/n. Paper eq. 27, LoraHub's composition, mttl's "uniform". Factor-wise: moves under a
    change of gauge, even of a sign. Needs equal ranks. At weights (1/2, 1/2), an adapter merged with itself
    is multiplied by 1.
    """
    w = equal_parts(adapters, weights)
    return merged_factors(adapters, w, w)


@merge_rule("linear-peft", gauge_invariant=False, sectorwise=True)
def linear_peft(adapters: Sequence[LoRA], weights: Weights, context: MergeContext) -> StaticMerge:
    """Delta = (sum_i sqrt|w_i| write_i)(sum_j sgn(w_j) sqrt|w_j| read_j)^T, so own terms w_i.

    Default w_i = 1/n. PEFT "linear" (0.21), which puts the sign on lora_A, the read factor; its cross terms
    sqrt|w_i w_j| make it neither the sum nor eq. 27. PEFT takes lora_B without the scale s_i, and w_i s_i for
    w_i: the same where all scales are equal, else the scales of the context say how it is split. Factor-wise:
    moves under a change of gauge. Needs equal ranks. At weights (1/2, 1/2), an adapter merged with itself is
    multiplied by 2.
    """
    return merged_factors(adapters, *peft_halves(equal_parts(adapters, weights), context))


def peft_halves(weights: Sequence[float], context: MergeContext) -> tuple[list[float], list[float]]:
    """How PEFT splits a weight over the factors: sqrt|w s| / s for write, sgn(w) sqrt|w s| for read.

    The s in `write` cancels, as PEFT keeps lora_B = write / s.
    """
    write, read = peft_roots(weights, context)
    return [root / s for root, s in zip(write, scales(context, len(weights)), strict=True)], read


def peft_roots(weights: Sequence[float], context: MergeContext) -> tuple[list[float], list[float]]:
    """The same for factors without their scales: sqrt|w s| for write / s, sgn(w) sqrt|w s| for read."""
    given = scales(context, len(weights))
    roots = [math.sqrt(abs(w * s)) for w, s in zip(weights, given, strict=True)]
    return roots, [math.copysign(root, w) if w else root for root, w in zip(roots, weights, strict=True)]


def scales(context: MergeContext, count: int) -> tuple[float, ...]:
    """The s_i of the context, 1 where it has none."""
    return (1.0,) * count if context.scales is None else context.scales


def unscaled(adapters: Sequence[LoRA], context: MergeContext) -> list[LoRA]:
    """The adapters as PEFT keeps them, lora_B = write / s."""
    return [
        lora if s == 1 else LoRA(lora.write / s, lora.read)
        for lora, s in zip(adapters, scales(context, len(adapters)), strict=True)
    ]


@merge_rule(
    "sum-truncated",
    gauge_invariant=True,
    spectral=True,
    by_sectors=True,
    aliases=("svd",),
    options={"rank": whole(1, "the largest rank of an adapter (PEFT)")},
)
def sum_truncated(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, rank: int | None
) -> StaticMerge:
    """Delta = SVD_r(sum_i w_i Delta_i), the best approximation of the sum by rank r.

    Default w_i = 1. PEFT "svd". Gauge-invariant. Where the cut falls between equal singular values the
    result is not determined; details["cut_gap"] = (s_r - s_{r+1}) / s_1 tells (1 when nothing is cut), and
    details["warning"] where it is as good as zero.
    """
    left, values, right = concatenated(adapters, ones(adapters, weights)).svd()
    kept = max(lora.rank for lora in adapters) if rank is None else rank
    top = float(values[0])
    cuts = kept < values.shape[0] and top > 0 and float(values[kept]) > rounding(values) * top
    gap = (float(values[kept - 1]) - float(values[kept])) / top if cuts else 1.0
    details = {"cut_gap": gap} | undetermined(
        gap, values, f"the singular values {kept} and {kept + 1} of the sum", "what is cut off"
    )
    return StaticMerge(LoRA(left[:, :kept] * values[:kept], right[:, :kept]), details=details)


def keep_largest(x: Float[Array, "..."], density: float) -> Float[Array, "..."]:
    """x with all but its int(density * size) entries of largest magnitude set to zero.

    PEFT breaks a tie at the threshold by position. Position is a label, so here all tied entries stay;
    without ties the two agree.
    """
    return above(x, threshold(x, density))


def threshold(x: Float[Array, "..."], density: float) -> Array | None:
    """The int(density * size)-th largest magnitude of x: infinite for none of them, None where all stay."""
    if density >= 1:
        return None
    xp = array_namespace(x)
    count = int(density * math.prod(x.shape))
    return math.inf if count == 0 else kth_largest(xp.reshape(xp.abs(x), (-1,)), count)


def above(x: Float[Array, "..."], threshold: Array | float | None) -> Float[Array, "..."]:
    """x with entries of magnitude below the threshold set to zero; all that are tied with it stay."""
    if threshold is None:
        return x
    xp = array_namespace(x)
    return masked(x, xp.abs(x) >= threshold * (1 - rounding(x)))


def masked(x: Float[Array, "..."], kept: Array) -> Float[Array, "..."]:
    """x where `kept`, else 0; torch's `where` takes three times as long."""
    return x * array_namespace(x).astype(kept, x.dtype)


def kth_largest(x: Float[Array, "entry"], k: int) -> Array:
    """The k-th largest entry, by selection where the library has it: a sort is ten times as slow.

    NumPy's selection is three times as fast as torch's, and needs no indices.
    """
    if is_numpy_array(x):
        return np.partition(x, len(x) - k)[len(x) - k]
    if is_torch_array(x) and device(x).type == "cpu" and not x.requires_grad:
        return x.new_tensor(np.partition(x.numpy(), len(x) - k)[len(x) - k])
    if is_torch_array(x):
        return x.kthvalue(len(x) - k + 1).values
    return array_namespace(x).sort(x, descending=True)[k - 1]


LORI = {"gauge_invariant": False, "adapter_kind": "frozen-read"}
COMBINE = choice("cat", "linear")


@merge_rule("lori-d", **LORI, options={"combine": COMBINE})
def lori_dense(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, combine: str
) -> StaticMerge:
    """Delta = sum_i w_i Delta_i (combine="cat") or eq. 27 (combine="linear").

    For adapters trained with a frozen random read factor. Default w_i = 1 for "cat" and 1/n for "linear".
    LoRI-D (arXiv 2504.07448). "cat" is gauge-invariant, "linear" is not: it uses the factors as they were
    trained, with each adapter's own random read factor.
    """
    if combine == "cat":
        return merged_products(adapters, ones(adapters, weights))
    w = equal_parts(adapters, weights)
    return merged_factors(adapters, w, w)


@merge_rule("lori-s", **LORI, options={"combine": COMBINE, "density": share(0.1)})
def lori_sparse(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, combine: str, density: float
) -> StaticMerge:
    """As lori-d, after keeping of each write factor only the share `density` of entries of largest magnitude.

    No rescaling. LoRI-S (arXiv 2504.07448), which keeps 10% and trains on under the mask; here the mask is
    applied to the trained factor. The mask sees the entries of `write`, so it moves under a change of
    gauge.
    """
    masked = [LoRA(keep_largest(lora.write, density), lora.read) for lora in adapters]
    merged = lori_dense(masked, weights, context, combine=combine)
    return replace(merged, mixing=merged.mixing and replace(merged.mixing, pruned=True))
