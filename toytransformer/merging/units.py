"""Merges of single ranks: what a column of each factor writes and reads is a unit, and like units are one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from jaxtyping import Float, Int

from toytransformer.adapters import LoRA
from toytransformer.arrays import Array, like
from toytransformer.arrays import NumpyArray as NumPy
from toytransformer.merging.merged import StaticMerge, undetermined
from toytransformer.merging.registry import MergeContext, Weights, merge_rule, whole


@merge_rule(
    "lora-lego",
    gauge_invariant=False,
    weighted=False,
    options={"clusters": whole(1, "the largest rank")},
)
def lora_lego(
    adapters: Sequence[LoRA], weights: Weights, context: MergeContext, *, clusters: int | None
) -> StaticMerge:
    """Delta = sqrt(r/k) sum_j c_j^2 b_j a_j^T, (b_j, a_j) the mean of cluster j of the units (b, a).

    A unit is a column b of a write factor with the same column a of the read factor, as one vector; those of
    all adapters are put into k clusters. c_j brings a mean to the mean norm of its cluster's units, sqrt(r/k)
    undoes that k units write more than r; r: the largest rank, k: `clusters`. LoRA-LEGO (arXiv 2409.16167),
    whose k-means starts at random; here Ward's clusters, merged one by one so that the same sum of squares
    grows least: the same for every order of adapters and ranks. Units that are zero do not count.
    Depends on the gauge: other factors of the same Delta are other units. details: clusters, sizes; cut_gap,
    the relative gap between the last two units that were joined and the first two that were not; where it is
    as good as zero details["warning"] says that the clusters are arbitrary.
    """
    xp = array_namespace(adapters[0].write)
    both = LoRA(
        xp.concat([lora.write for lora in adapters], axis=1),
        xp.concat([lora.read for lora in adapters], axis=1),
    )
    units = np.concatenate([_plain(both.write), _plain(both.read)]).T.astype(np.float64)
    norms = np.linalg.norm(units, axis=1)
    there = np.flatnonzero(norms > 0)
    ranks = np.split(norms > 0, np.cumsum([lora.rank for lora in adapters])[:-1])
    rank = max(int(own.sum()) for own in ranks)
    if not len(there):
        return StaticMerge(LoRA(0 * adapters[0].write, adapters[0].read), details={"clusters": 0})
    count = min(rank if clusters is None else clusters, len(there))
    labels, gap = _clusters(units[there], count)
    mean = np.zeros((count, len(units)))
    mean[labels, there] = 1 / np.bincount(labels)[labels]
    lengths = np.linalg.norm(mean @ units, axis=1)
    scale = np.divide(mean @ norms, lengths, out=np.zeros(count), where=lengths > 0)
    write = like(both.write, (math.sqrt(rank / count) * scale)[:, None] * mean)
    read = like(both.read, scale[:, None] * mean)
    details = {
        "clusters": count,
        "sizes": tuple(sorted(np.bincount(labels).tolist(), reverse=True)),
        "cut_gap": gap,
    }
    details |= undetermined(gap, both.write, "two distances between clusters", "which units are one")
    return StaticMerge(LoRA(both.write @ write.T, both.read @ read.T), details=details)


def _clusters(units: Float[NumPy, "unit entry"], count: int) -> tuple[Int[NumPy, "unit"], float]:
    """Ward's clusters from 0, and the relative gap of heights at which they were cut."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if count == len(units):
        return np.arange(count), 1.0
    steps = linkage(units, method="ward")
    heights = np.concatenate([steps[:, 2], [math.inf]])  # of all that are joined, none is left
    last = len(units) - count
    below, above = float(heights[last - 1]), float(heights[last])
    gap = 1.0 if count == 1 else (above - below) / above if above > 0 else 0.0
    # by number and not by height: joined are the first len(units) - count pairs, equal heights or not
    order = np.arange(len(units) - 1, dtype=float)
    joined = fcluster(np.column_stack([steps[:, :2], order, steps[:, 3]]), last - 0.5, criterion="distance")
    return joined - 1, gap


def _plain(values: Array) -> NumPy:
    return np.asarray(values.detach().cpu() if is_torch_array(values) else values)
