"""Merges of the adapters' own singular triples."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace
from jaxtyping import Float

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, rounding
from toytransformer.merging.merged import StaticMerge, undetermined
from toytransformer.merging.registry import MergeContext, Weights, merge_rule, whole
from toytransformer.merging.static import ones


@merge_rule(
    "tsv",
    gauge_invariant=True,
    spectral=True,
    options={"rank": whole(1, "the largest rank divided by the number of adapters, 1 at least")},
)
def tsv(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, rank: int | None
) -> StaticMerge:
    """Delta = P(U) diag(w_i s_i) P(V)^T, U = [U_1 .. U_n], V = [V_1 .. V_n], P(X) the nearest orthonormal.

    U_i, s_i, V_i: the `rank` largest singular triples of Delta_i. P(X) = X (X^T X)^(-1/2), on what X spans:
    what adapters write and read alike does not add up. Default w_i = 1. TSV-Merge (arXiv 2412.00081),
    which keeps the share 1/n of each matrix's triples; arXiv 2602.12323 keeps 8 or 16 of a LoRA.
    Gauge-invariant. Where a cut falls between equal singular values the result is not determined:
    details["cut_gap"] is the least (s_k - s_{k+1}) / s_1, 1 where nothing is cut; details["warning"]
    says where it is as good as zero.
    """
    xp = array_namespace(adapters[0].write)
    most = max(1, max(lora.rank for lora in adapters) // len(adapters)) if rank is None else rank
    lefts, scales, rights, gap = [], [], [], 1.0
    for lora, weight in zip(adapters, ones(adapters, weights), strict=True):
        left, values, right = lora.svd()
        top = float(values[0])
        there = int(xp.sum(xp.astype(values > rounding(values) * top, xp.int64))) if top > 0 else 0
        kept = min(most, there)
        if kept < there:
            gap = min(gap, (float(values[kept - 1]) - float(values[kept])) / top)
        lefts.append(left[:, :kept])
        rights.append(right[:, :kept])
        scales.append(weight * values[:kept])
    u, s, v = xp.concat(lefts, axis=1), xp.concat(scales), xp.concat(rights, axis=1)
    details = {"cut_gap": gap} | undetermined(gap, s, "two singular values of an adapter", "what is cut off")
    if s.shape[0] == 0:
        return StaticMerge(LoRA(0 * adapters[0].write, adapters[0].read), details=details)
    return StaticMerge(LoRA(_nearest_orthonormal(u) * s, _nearest_orthonormal(v)), details=details)


def _nearest_orthonormal(x: Float[Array, "row k"]) -> Float[Array, "row k"]:
    """The polar factor of x; where columns depend on one another, of what they span."""
    xp = array_namespace(x)
    left, values, right_t = xp.linalg.svd(x, full_matrices=False)
    kept = int(xp.sum(xp.astype(values > rounding(values) * values[0], xp.int64)))
    return left[:, :kept] @ right_t[:kept]
