"""Merges that look at single entries of the factors apart, as PEFT has them beside those of the products.

All of them move under a change of gauge, more than `linear-peft` does: what is large, or has the other sign,
in one pair of factors need not be so in another with the same product. See `pruning` for ties and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, like
from toytransformer.merging.merged import StaticMerge
from toytransformer.merging.pruning import SEED, SIGN, mean_of_agreeing
from toytransformer.merging.registry import MergeContext, Weights, merge_rule, share
from toytransformer.merging.static import (
    equal_parts,
    keep_largest,
    merged_factors,
    peft_halves,
    peft_roots,
    require_equal_ranks,
    unscaled,
)


@merge_rule(
    "ties-factors",
    gauge_invariant=False,
    needs_neurons=True,
    options={"density": share(0.2), "sign": SIGN},
)
def ties_factors(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float, sign: str
) -> StaticMerge:
    """Delta = TIES(write_i; sqrt|w_i|) TIES(read_i; sgn(w_i) sqrt|w_i|)^T.

    PEFT "ties", on the factors apart, without their scales s_i and with w_i s_i for w_i (see linear-peft).
    Default w_i = 1/n. Factor-wise: moves under a change of gauge. Needs equal ranks.
    """
    trimmed = _trimmed_factors(unscaled(adapters, context), density)
    return _ties_of_factors(trimmed, equal_parts(adapters, weights), context, sign)


def _ties_of_factors(
    pruned: Sequence[LoRA],
    weights: Sequence[float],
    context: MergeContext,
    sign: str,
    details: Mapping[str, object] | None = None,
) -> StaticMerge:
    """The agreeing entries of each factor, under PEFT's halves of the weights."""
    require_equal_ranks(pruned)
    write, read = peft_roots(weights, context)
    merged = LoRA(
        mean_of_agreeing([lora.write for lora in pruned], write, sign),
        mean_of_agreeing([lora.read for lora in pruned], read, sign),
    )
    return StaticMerge(merged, details=details or {})


def _trimmed_factors(adapters: Sequence[LoRA], density: float) -> list[LoRA]:
    """The share `density` of largest entries of each factor."""
    return [LoRA(keep_largest(lora.write, density), keep_largest(lora.read, density)) for lora in adapters]


def _dropped_factors(adapters: Sequence[LoRA], density: float, seed: int) -> list[LoRA]:
    """Both factors under DARE's masks, drawn in PEFT's order: every lora_A = read^T, then every lora_B."""
    rng = np.random.default_rng(seed)

    def drop(factor: Array) -> Array:
        return factor * like(factor, rng.random(factor.shape) < density) / density

    read = [drop(lora.read.T).T for lora in adapters]
    return [LoRA(drop(lora.write), reading) for lora, reading in zip(adapters, read, strict=True)]


@merge_rule(
    "dare-factors",
    gauge_invariant=False,
    needs_neurons=True,
    aliases=("dare_linear",),
    options={"density": share(0.5), "seed": SEED},
)
def dare_factors(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float, seed: int | None
) -> StaticMerge:
    """Delta = (sum_i sqrt|w_i| drop(write_i))(sum_j sgn(w_j) sqrt|w_j| drop(read_j))^T.

    drop(x) = mask * x / density, mask entries independent Bernoulli(density). PEFT "dare_linear", on factors
    without their scales s_i and with w_i s_i for w_i (see linear-peft). Default w_i = 1/n. The mean over
    seeds is linear-peft. Factor-wise: moves under a change of gauge. Needs equal ranks.
    """
    seed = context.rng_seed if seed is None else seed
    merged = merged_factors(
        _dropped_factors(adapters, density, seed), *peft_halves(equal_parts(adapters, weights), context)
    )
    return StaticMerge(merged.update, details={"seed": seed})


@merge_rule(
    "dare-ties-factors",
    gauge_invariant=False,
    needs_neurons=True,
    aliases=("dare_ties",),
    options={"density": share(0.5), "sign": SIGN, "seed": SEED},
)
def dare_ties_factors(
    adapters: Sequence[LoRA],
    weights: Weights,
    context: MergeContext,
    *,
    density: float,
    sign: str,
    seed: int | None,
) -> StaticMerge:
    """Delta = the entries of drop(write_i) that agree times those of drop(read_i), as in ties-factors.

    DARE's random mask in place of the trimming of TIES. PEFT "dare_ties", on the factors apart, without their
    scales s_i and with w_i s_i for w_i; mergekit's dare_ties is the rule dare-ties. Default w_i = 1/n.
    Factor-wise: moves under a change of gauge. Needs equal ranks.
    """
    seed = context.rng_seed if seed is None else seed
    dropped = _dropped_factors(unscaled(adapters, context), density, seed)
    return _ties_of_factors(dropped, equal_parts(adapters, weights), context, sign, {"seed": seed})


@merge_rule(
    "magnitude-prune-factors",
    gauge_invariant=False,
    needs_neurons=True,
    aliases=("magnitude_prune",),
    options={"density": share(0.2)},
)
def magnitude_prune_factors(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, density: float
) -> StaticMerge:
    """Delta = (sum_i sqrt|w_i| trim(write_i))(sum_j sgn(w_j) sqrt|w_j| trim(read_j))^T.

    trim keeps the share `density` of a factor's entries of largest magnitude. PEFT "magnitude_prune", on
    factors without their scales s_i and with w_i s_i for w_i (see linear-peft). Default w_i = 1/n.
    Factor-wise: moves under a change of gauge. Needs equal ranks.
    """
    merged = merged_factors(
        _trimmed_factors(adapters, density), *peft_halves(equal_parts(adapters, weights), context)
    )
    return replace(merged, mixing=merged.mixing and replace(merged.mixing, pruned=True))
