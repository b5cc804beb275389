"""Merges that look at single entries: TIES, DARE, magnitude pruning, KnOTS.

They follow PEFT 0.21 (utils/merge_utils.py). Entries only have a meaning in the basis of the neurons, so
all rules here need them. Large matrices are merged some rows at a time (`by_rows`): only thresholds see all
entries of an update, one update after the other. Where PEFT leaves a tie to the position of an entry, or
rounding noise in an entry that is zero, these rules do not: names of answers and gauges must not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, like, rounding
from toytransformer.merging.merged import Mixing, StaticMerge, concatenated, undetermined
from toytransformer.merging.registry import (
    MergeContext,
    Weights,
    choice,
    merge_rule,
    share,
    whole,
)
from toytransformer.merging.static import (
    above,
    keep_largest,
    masked,
    ones,
    threshold,
    weighted_sum,
)

#: Entries of the updates that are merged at a time, so that they stay in a processor's cache.
ENTRIES = 2**18
SIGN = choice("total", "frequency")
SEED = whole(0, "the seed of the context")


def without_noise(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Array]:
    """x without entries that are zero up to rounding, as TIES counts signs; and its largest magnitude."""
    xp = array_namespace(x)
    magnitude = xp.abs(x)
    largest = xp.max(magnitude)
    return masked(x, magnitude > rounding(x) * largest), largest


def mean_of_agreeing(
    parts: Sequence[Float[Array, "..."]], weights: Sequence[float], sign: str
) -> Float[Array, "..."]:
    """Entry by entry, the sum of w_i x_i over the i of the elected sign, divided by the number of those i.

    sign: elect by the sum of the x_i ("total") or of their signs ("frequency"); zero elects +. As in PEFT the
    election does not see the weights, and neither does the count.
    """
    xp = array_namespace(*parts)
    several, largest = zip(*(without_noise(part) for part in parts), strict=True)
    votes = several if sign == "total" else [xp.sign(x) for x in several]
    voted = sum(votes[1:], votes[0])
    noise = rounding(voted) * (xp.max(xp.stack(largest)) if sign == "total" else 1.0)
    elected = 2 * xp.astype(voted >= -noise, voted.dtype) - 1
    total = count = 0.0
    for weight, x in zip(weights, several, strict=True):
        towards = elected * x  # positive where x agrees
        total = total + weight * xp.clip(towards, 0.0, None)
        count = count + xp.astype(towards > 0, x.dtype)
    return elected * total / xp.clip(count, 1.0, None)


def by_rows(
    adapters: Sequence[LoRA], merged: Callable[[Sequence[LoRA], int], Float[Array, "row feature"]]
) -> Float[Array, "entity feature"]:
    """The dense `merged(part, first)` of the adapters' rows from `first` on, for so many rows at a time that
    the part's updates have ENTRIES entries together, one row at least."""
    xp = array_namespace(adapters[0].write)
    count, inside = len(adapters[0].write), len(adapters[0].read)
    step = max(1, ENTRIES // (inside * len(adapters)))
    parts = [
        merged([LoRA(lora.write[first : first + step], lora.read) for lora in adapters], first)
        for first in range(0, count, step)
    ]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


def dropped(
    part: Sequence[LoRA], first: int, count: int, density: float, seed: int
) -> list[Float[Array, "row feature"]]:
    """DARE: each Delta * mask / density with mask entries Bernoulli(density), for rows from `first` on.

    count: rows of the whole matrices. The masks come from NumPy, so every array library draws the same ones:
    those of one stream, adapter after adapter and row after row.
    """
    several = []
    for index, lora in enumerate(part):
        rows, inside = len(lora.write), len(lora.read)
        rng = np.random.Generator(np.random.PCG64(seed).advance((index * count + first) * inside))
        mask = like(lora.write, rng.random((rows, inside)) < density)
        several.append(lora.delta() * mask / density)
    return several


@merge_rule(
    "ties",
    gauge_invariant=True,
    needs_neurons=True,
    dense=True,
    paper="ties",
    aliases=("ties_svd",),
    options={"density": share(0.2), "sign": SIGN},
)
def ties(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float, sign: str
) -> StaticMerge:
    """Delta = entrywise mean of w_i trim(Delta_i) over the i that agree with the elected sign.

    trim keeps the share `density` of entries of largest magnitude. Default w_i = 1. TIES (arXiv
    2306.01708); PEFT "ties_svd" before its final truncation. Gauge-invariant. The mean divides by the
    number of agreeing adapters and not by their weight: at weights (1/2, 1/2) and density 1, an adapter
    merged with itself is multiplied by 1/2.
    """
    w, least = ones(adapters, weights), [threshold(lora.delta(), density) for lora in adapters]

    def merged(part: Sequence[LoRA], first: int) -> Array:
        return mean_of_agreeing(
            [above(lora.delta(), low) for lora, low in zip(part, least, strict=True)], w, sign
        )

    return StaticMerge(by_rows(adapters, merged))


@merge_rule(
    "dare",
    gauge_invariant=True,
    needs_neurons=True,
    dense=True,
    aliases=("dare_linear_svd",),
    options={"density": share(0.5), "seed": SEED},
)
def dare(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float, seed: int | None
) -> StaticMerge:
    """Delta = sum_i w_i mask_i * Delta_i / density, mask entries independent Bernoulli(density).

    Default w_i = 1. DARE (arXiv 2311.03099; its drop rate is 1 - density), PEFT "dare_linear_svd" before
    truncation. The mean over seeds is the sum. Gauge-invariant for one seed, and label-blind for one seed.
    """
    seed = context.rng_seed if seed is None else seed
    w, count, drawn = ones(adapters, weights), len(adapters[0].write), seed

    def merged(part: Sequence[LoRA], first: int) -> Array:
        return weighted_sum(w, dropped(part, first, count, density, drawn))

    return StaticMerge(by_rows(adapters, merged), details={"seed": seed})


@merge_rule(
    "dare-ties",
    gauge_invariant=True,
    needs_neurons=True,
    dense=True,
    aliases=("dare_ties_svd",),
    options={"density": share(0.5), "sign": SIGN, "seed": SEED},
)
def dare_ties(
    adapters: Sequence[LoRA],
    weights: Weights,
    context: MergeContext,
    *,
    density: float,
    sign: str,
    seed: int | None,
) -> StaticMerge:
    """Delta = entrywise mean of w_i mask_i * Delta_i / density over the i that agree with the elected sign.

    DARE's random mask in place of TIES's trimming. Default w_i = 1. PEFT "dare_ties_svd" before truncation.
    Gauge-invariant for one seed.
    """
    seed = context.rng_seed if seed is None else seed
    w, count, drawn = ones(adapters, weights), len(adapters[0].write), seed

    def merged(part: Sequence[LoRA], first: int) -> Array:
        return mean_of_agreeing(dropped(part, first, count, density, drawn), w, sign)

    return StaticMerge(by_rows(adapters, merged), details={"seed": seed})


@merge_rule(
    "magnitude-prune",
    gauge_invariant=True,
    needs_neurons=True,
    dense=True,
    aliases=("magnitude_prune_svd",),
    options={"density": share(0.2)},
)
def magnitude_prune(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float
) -> StaticMerge:
    """Delta = sum_i w_i trim(Delta_i), trim keeping the share `density` of entries of largest magnitude.

    Default w_i = 1, no rescaling. PEFT "magnitude_prune_svd" before truncation. Gauge-invariant.
    """
    w, least = ones(adapters, weights), [threshold(lora.delta(), density) for lora in adapters]

    def merged(part: Sequence[LoRA], first: int) -> Array:
        return weighted_sum(w, [above(lora.delta(), low) for lora, low in zip(part, least, strict=True)])

    return StaticMerge(by_rows(adapters, merged), mixing=Mixing(tuple(w), pruned=True))


@merge_rule(
    "knots",
    gauge_invariant=True,
    spectral=True,
    needs_neurons=True,
    options={"density": share(0.2), "sign": SIGN, "inner": choice("ties", "sum")},
)
def knots(
    adapters: Sequence[LoRA],
    weights: Weights,
    context: MergeContext,
    *,
    density: float,
    sign: str,
    inner: str,
) -> StaticMerge:
    """Delta = U merge(S V_1^T, ..., S V_n^T), where [Delta_1, ..., Delta_n] = U S [V_1^T, ..., V_n^T].

    The adapters are stacked along the input axis, so U is a basis of output directions they share; `inner`
    merges their coordinates in it, by TIES, or by the sum, which gives the rule `sum` again. Default w_i =
    1. KnOTS (arXiv 2410.19735); as in its code TIES acts on S V_i^T and not on V_i^T;
    there it keeps int(density K) + 1 of K entries, here int(density K). Gauge-invariant.
    Equal singular values leave U undetermined: details["spectrum_gap"] is the smallest (s_k - s_{k+1}) /
    s_1, the last one down to zero, and details["warning"] says where TIES then acts in an arbitrary basis.
    """
    w = ones(adapters, weights)
    basis, values, blocks = _shared_basis(adapters)
    if inner == "sum":
        merged = sum(weight * block for weight, block in zip(w, blocks, strict=True))
    else:
        merged = mean_of_agreeing([keep_largest(block, density) for block in blocks], w, sign)
    ladder = [*(float(value) for value in values), 0.0]
    gap = min((high - low) / (ladder[0] or 1.0) for high, low in pairwise(ladder))
    details: dict[str, object] = {"spectrum_gap": gap}
    if inner == "ties" and ladder[0] > 0:
        details |= undetermined(gap, values, "two singular values of the stack", "the basis of TIES")
    mixing = Mixing(tuple(w)) if inner == "sum" else None
    return StaticMerge(LoRA(basis, merged.T), details=details, mixing=mixing)


def _shared_basis(adapters: Sequence[LoRA]) -> tuple[Array, Array, list[Array]]:
    """U (entity, k), s (k,) and the blocks S V_i^T = U^T Delta_i (k, feature), without the null directions.

    [Delta_1, ..., Delta_n] = [write_1, ..., write_n] blockdiag(read_i)^T; with read_i = Q_i R_i the blocks
    Q_i drop out of the left side, so U and s are those of the small [write_1 R_1^T, ..., write_n R_n^T].
    Each column of U has the sign that makes the first of its largest coordinates positive, counted over
    inputs, which carry no labels.
    """
    xp = array_namespace(adapters[0].write)
    small = concatenated(
        [LoRA(lora.write @ xp.linalg.qr(lora.read)[1].T, lora.read) for lora in adapters],
        (1.0,) * len(adapters),
    ).write
    left, values, _ = xp.linalg.svd(small, full_matrices=False)
    kept = max(1, int(xp.sum(xp.astype(values > rounding(values) * values[0], xp.int64))))
    left, values = left[:, :kept], values[:kept]
    blocks = [(left.T @ lora.write) @ lora.read.T for lora in adapters]
    flat = xp.concat(blocks, axis=1)
    largest = xp.max(xp.abs(flat), axis=1, keepdims=True)
    first = xp.argmax(xp.astype(xp.abs(flat) >= (1 - rounding(flat)) * largest, xp.int64), axis=1)
    sign = xp.stack([xp.sign(flat[row, first[row]]) for row in range(kept)])
    left, blocks = left * sign, [block * sign[:, None] for block in blocks]
    return left, values, blocks
