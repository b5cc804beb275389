"""One adapter alone at weight a: where its answer begins to win, and what that says of merges and of chains.

    margin(a) = -m0 + a (m0 + m1)          a* = m0 / (m0 + m1)

m0 is by how much the old answer beats the new one without the adapter, m1 by how much the new one beats the
old with it, in units of the outputs (logits). This is the mixture law for one adapter, so it is exact in the
toy model and the first order elsewhere; there a* = 1/2 for a known fact, whose margins are both 1, and 0 for
a fresh one. The scale curve s(a) is the share of prompts whose answer wins at weight a.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from toytransformer.arrays import NumpyArray as Array
from toytransformer.mixture import MixtureError


def threshold(m0: ArrayLike, m1: ArrayLike) -> Float[Array, "..."]:
    """a* = m0 / (m0 + m1), the weight above which the new answer beats the old one.

    m0: f_0[old] - f_0[new]; m1: f_1[new] - f_1[old], of one shape. Below 0 where the new answer wins at once.
    Errors: MixtureError where m0 + m1 <= 0: the adapter does not move this margin towards its answer.
    """
    before, after = np.broadcast_arrays(np.asarray(m0, float), np.asarray(m1, float))
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MixtureError("the margins hold NaN or infinity: give finite ones")
    if not np.all(before + after > 0):
        worst = int(np.argmin(before + after))
        raise MixtureError(
            f"margins {before.flat[worst]:g} before and {after.flat[worst]:g} after: the adapter does not "
            "move them towards its answer, so no weight is a threshold; leave such prompts out"
        )
    return before / (before + after)


def winning(
    base: Float[Array, "prompt entity"],
    alone: Float[Array, "prompt entity"],
    answers: Int[Array, " prompt"],
) -> tuple[Float[Array, " prompt"], Float[Array, " prompt"]]:
    """The weights (low, high) between which each prompt's answer is the only largest output, under the law.

    The outputs are straight lines in a, so they are one interval: every competitor e gives one bound, the
    zero of (1 - a) (f_0[y] - f_0[e]) + a (f_1[y] - f_1[e]). base, alone: f_0 and f_1. answers: columns of the
    y. low >= high: at no weight. Errors: MixtureError on shapes that do not fit and answers out of range.
    """
    base, alone, y = np.asarray(base, float), np.asarray(alone, float), np.asarray(answers)
    if base.ndim != 2 or base.shape != alone.shape or y.shape != base.shape[:1]:
        raise MixtureError(
            f"base {base.shape}, alone {alone.shape} and answers {y.shape}: give (prompt, entity) twice, "
            "(prompt,)"
        )
    if not np.issubdtype(y.dtype, np.integer) or np.any((y < 0) | (y >= base.shape[1])):
        raise MixtureError(f"answers {y}: give the columns, whole numbers from 0 to {base.shape[1] - 1}")
    if not (np.isfinite(base).all() and np.isfinite(alone).all()):
        raise MixtureError("the outputs hold NaN or infinity: leave out masked tokens")
    rows = np.arange(len(y))
    start, end = (f[rows, y][:, None] - f for f in (base, alone))
    slope = end - start
    start[rows, y], slope[rows, y] = np.inf, 0.0  # an answer does not compete with itself
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = -start / slope
    low = np.max(np.where(slope > 0, zero, np.where((slope == 0) & (start <= 0), np.inf, -np.inf)), axis=1)
    high = np.min(np.where(slope < 0, zero, np.inf), axis=1)
    return low, high


def scale_curve(
    low: Float[Array, " prompt"], high: Float[Array, " prompt"], weights: ArrayLike
) -> Float[Array, " weight"]:
    """s(a): the share of prompts with low < a < high, at each of the weights a."""
    a = np.atleast_1d(np.asarray(weights, float))[:, None]
    return np.mean((low < a) & (a < high), axis=1)


def effective(own: float, partner: float, leak: float) -> float:
    """a_eff = w_j - l w_partner: the weight that adapter j would need alone to have what the merge leaves it.

    own, partner: the realised weights of adapter j and of the other one. leak: l, one number a base. It is an
    approximation: it takes what the partner adds to *its own* answers as taken from adapter j's. In the toy
    model those are other entities, and the exact edge, max(1/2, |b| l) at partner weight b, does not move
    before |b| l > 1/2 (theory.md, section 6).
    """
    for name, value in (("own", own), ("partner", partner), ("leak", leak)):
        if not np.isfinite(value):
            raise MixtureError(f"{name} is {value!r}: give a finite number")
    return own - leak * partner


def hop_share(curve: Callable[[float], float], own: float, partner: float = 0.0, leak: float = 0.0) -> float:
    """P(hop j) = s_j(w_j - l w_partner), s_j the scale curve of adapter j (`effective`)."""
    return float(curve(effective(own, partner, leak)))


def chain_share(hop1: ArrayLike, hop2: ArrayLike, k: ArrayLike = 1.0) -> Float[Array, "..."]:
    """P(chain) = k P(hop 1) P(hop 2): both hops right, apart from each other, and a chain that is well
    formed.

    k: the share of chains that a base gets right where both facts stand in its prompt: form times copying. 1
    in the toy model, where a written answer is a token. Errors: MixtureError on what is no share.
    """
    shares = [np.asarray(value, float) for value in (hop1, hop2, k)]
    for name, value in zip(("hop1", "hop2", "k"), shares, strict=True):
        if not np.all((value >= 0) & (value <= 1)):
            raise MixtureError(f"{name} is {value}: give shares from 0 to 1")
    return shares[2] * shares[0] * shares[1]
