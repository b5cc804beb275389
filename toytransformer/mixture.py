"""The mixture law: what every weighting of K adapters answers, from K + 1 forward passes.

For a model that is linear in its updates, under any rule that adds products of factors, prompt by prompt

    f_w = f_0 + sum_i w_i (f_i - f_0)

where f_0 is the base and f_i the model with adapter i alone. It is Theorem 2 without its constants. In the
toy model it holds at every width, up to rounding. In a language model it is the first order in the updates;
what it leaves out is

    sum_i w_i (w_i - 1) d_ii / 2 + sum_{i<j} w_i w_j d_ij + third order,

d_ij the second derivatives. One more pass for each pair gives the d_ij (`second_order`), one for each adapter
at its weight the d_ii. A factor-wise rule is quadratic in the factors, so with its pairs it is exact.

The law fails where adapters decide together what is kept: TIES elects signs between them, DARE draws masks by
their order, a truncation cuts their sum. `mixing` refuses those.

Outputs are logits, (prompt, entity), or with more axes behind, (prompt, position, token). Functions take
arrays of NumPy, JAX or torch, and return what they are given. On log-probabilities the law holds up to one
number for each prompt, so differences and the largest one are right.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float
from numpy.typing import ArrayLike

from toytransformer.arrays import Array, all_finite, like
from toytransformer.merging import Merged, Mixing, Routed, RoutedMerge, StaticMerge


class MixtureError(ValueError):
    """Outputs or weights that the mixture law cannot use; the message says which and what to do."""


def mixture(
    base: Float[Array, "prompt *output"],
    alone: Float[Array, "adapter prompt *output"],
    weights: ArrayLike | Array,
) -> Float[Array, "prompt *output"]:
    """f_w = f_0 + sum_i w_i (f_i - f_0), Theorem 2 for any coefficients.

    base: f_0, logits without adapters. alone: f_i, those with adapter i alone at weight 1. weights:
    (adapter,), or (prompt, adapter), such as the realised weights of a router.
    Errors: MixtureError on shapes that do not fit, and on NaN or infinity, such as the logits of masked
    tokens.
    """
    _check_outputs(base, alone, "alone")
    own = _checked_weights(base, len(alone), "adapter", weights)
    return _first_order(base, alone, own)


def second_order(
    base: Float[Array, "prompt *output"],
    alone: Float[Array, "adapter prompt *output"],
    pairs: Float[Array, "pair prompt *output"],
    weights: ArrayLike | Array,
    *,
    scaled: Float[Array, "adapter prompt *output"] | None = None,
    cross: ArrayLike | Array | None = None,
) -> Float[Array, "prompt *output"]:
    """f_w = f_0 + sum_i w_i (f_i - f_0) + sum_{i<j} w_i w_j (f_ij - f_i - f_j + f_0).

    pairs: f_ij, logits with the adapters i < j both at weight 1, in the order of itertools.combinations.
    scaled: logits with adapter i alone at its weight w_i; they replace f_0 + w_i (f_i - f_0), and then all of
    the second order is there. Without them the error of the second order is sum_i w_i (w_i - 1) d_ii / 2,
    which vanishes at weights 0 and 1. cross: (pair,) or (prompt, pair), what stands for w_i w_j (see Mixing).
    Errors: MixtureError, as `mixture`.
    """
    count = len(alone)
    order = list(combinations(range(count), 2))
    _check_outputs(base, alone, "alone")
    _check_outputs(base, pairs, "pairs")
    if len(pairs) != len(order):
        raise MixtureError(f"{len(pairs)} pairs for {count} adapters: give {len(order)}, every i < j")
    own = _checked_weights(base, count, "adapter", weights)
    first = _first_order(base, alone, own)
    if scaled is not None:
        _check_outputs(base, scaled, "scaled")
        if len(scaled) != count:
            raise MixtureError(f"{len(scaled)} scaled outputs for {count} adapters: give one for each")
        first = base + array_namespace(base).sum(scaled - base[None], axis=0)
    if not order:
        return first
    i, j = ([pair[side] for pair in order] for side in (0, 1))
    xp = array_namespace(base)
    if cross is None:
        cross = own[..., i] * own[..., j]
    both = _checked_weights(base, len(order), "pair", cross)
    return first + _weighted(both, pairs - xp.stack([alone[a] + alone[b] for a, b in order]) + base[None])


def mixing(merged: Merged, features: Float[Array, "prompt feature"] | None = None) -> Mixing:
    """The weights that a merge amounts to: what `mixture` takes, by (adapter,) or (prompt, adapter).

    features: of the prompts that are asked, which a rule that routes needs. Of a factor-wise rule the weights
    of the products are w_i^2, and `cross` has those of the pairs, for `second_order`.
    Errors: MixtureError for a merge that is no sum of updates with weights, and for a router without
    features.
    """
    if isinstance(merged, StaticMerge):
        if merged.mixing is None:
            raise MixtureError(
                "this merge is no sum of its adapters' updates with weights: its rule elects signs between "
                "them, draws masks, truncates their sum, or does not use them; ask the merged model itself"
            )
        return merged.mixing
    if not isinstance(merged, Routed):
        raise MixtureError(f"a {type(merged).__name__} does not say how it weights its adapters")
    if features is None:
        raise MixtureError("this merge weights its adapters prompt by prompt: give the prompts' features")
    own = merged.routing(features)
    if not (isinstance(merged, RoutedMerge) and merged.factor_wise):
        return Mixing(own)
    order = list(combinations(range(own.shape[-1]), 2))
    i, j = ([pair[side] for pair in order] for side in (0, 1))
    return Mixing(own * own, own[:, i] * own[:, j])


def _first_order(base: Array, alone: Array, weights: Array) -> Float[Array, "prompt *output"]:
    """(1 - sum_i w_i) f_0 + sum_i w_i f_i, which needs no f_i - f_0."""
    xp = array_namespace(base)
    left = xp.reshape(1 - xp.sum(weights, axis=-1), (-1,) + (1,) * (base.ndim - 1))
    return left * base + _weighted(weights, alone)


def _weighted(weights: Array, parts: Float[Array, "part prompt *output"]) -> Float[Array, "prompt *output"]:
    """sum_k w_k x_k, the weights by (part,) or (prompt, part)."""
    xp = array_namespace(parts)
    if weights.ndim == 1:
        return xp.tensordot(weights, parts, axes=1)
    return xp.sum(xp.reshape(weights.T, (*weights.T.shape, *(1,) * (parts.ndim - 2))) * parts, axis=0)


def _checked_weights(base: Array, count: int, of: str, weights: ArrayLike | Array) -> Array:
    """The weights in the library and precision of the outputs."""
    shape = getattr(weights, "shape", None)
    given = tuple(np.shape(weights) if shape is None else shape)
    if given not in ((count,), (len(base), count)):
        raise MixtureError(
            f"weights of shape {given} for {len(base)} prompts: give ({count},) or ({len(base)}, {count}), "
            f"one for each {of}"
        )
    w = like(base, weights)
    if not all_finite(w):
        raise MixtureError(f"the weights of the {of}s hold NaN or infinity: give finite numbers")
    return w


def _check_outputs(base: Array, parts: Array, what: str) -> None:
    try:
        xp = array_namespace(base, parts)
    except TypeError as error:
        raise MixtureError(
            f"base and {what} are arrays of different libraries ({error}): convert one"
        ) from error
    if base.ndim < 2 or parts.shape[1:] != base.shape:
        raise MixtureError(
            f"base has shape {tuple(base.shape)} and {what} {tuple(parts.shape)}: give (prompt, .., output) "
            "and the same with one more axis in front"
        )
    for name, values in (("base", base), (what, parts)):
        if not xp.isdtype(values.dtype, "real floating"):
            raise MixtureError(f"{name} holds numbers of type {values.dtype}: convert them to floating point")
        if not all_finite(values):
            raise MixtureError(
                f"{name} holds NaN or infinity: leave out masked tokens, whose logits are minus infinity"
            )
