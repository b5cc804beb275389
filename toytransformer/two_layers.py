"""Two tied layers in the limit, in closed form: hop 1 in layer 1, hop 2 in layer 2, under the sum.

With k(a, b, c) = sqrt(a b) kappa(c / sqrt(a b)) and the strict mask, n facts in each and adapter 1 at weight
alpha, layer 1 writes at the three positions of (x, R1, R2)

    alpha u on every y;      alpha on y_sigma;      alpha g on every y and alpha (g + A) on y_sigma,
    u = k(2, 1, 0) / s,  A = (k(2, 3/2, 1/2) - k(2, 3/2, 0)) / (2 - k(2, 2, 1)),
    g = ((k(2, 3/2, 1/2) + (n-1) k(2, 3/2, 0)) / s - A) / n,   s = 2 + (n-1) k(2, 2, 1).

Layer 2 finds the inner product 1 + alpha (u + [j = sigma]) / 2 with the key of (y_j, R2), whose square is 3
(2 where attention does not stay). So the coefficients of adapter 2 differ by

    gap = (k(3, h, 1 + alpha (u + 1) / 2) - k(3, h, 1 + alpha u / 2)) / (3 - k(3, 3, 1)) > 0,

h the square of the hidden state, and the sum is right from alpha_2* = max(old, alpha (g + A)) / c on, c the
coefficient of z_sigma and old the old answer's lead: 1 for known facts, 0 for fresh ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toytransformer.kernel import relu_kernel


class LayerError(ValueError):
    """A stack or a placement that means nothing; the message names the value and what is allowed."""


@dataclass(frozen=True)
class TwoLayers:
    """What decides the answer to (x, R1, R2) in two tied layers in the limit.

    bridge: the score of y_sigma for weights (alpha, any). own, other: the scores of z_sigma and of every
    other z for each unit of weight 2. old: the old answer's score. threshold: alpha_2*.
    """

    bridge: float
    own: float
    other: float
    old: float

    @property
    def threshold(self) -> float:
        """The weight of adapter 2 from which on the right answer wins, whatever sigma is."""
        return max(self.old, self.bridge) / self.own


def two_layers(facts: float, first: float, *, known: bool, attention_stays: bool = True) -> TwoLayers:
    """The scores for n = `facts` (which may be infinite) and adapter 1 at weight alpha = `first` > 0.

    Adapters of known facts write -i_old as often as i_y, which counts twice in the square of the hidden state
    and nowhere else. Errors: LayerError for fewer than one fact, or a weight that is not above 0.
    """
    if not facts >= 1 or not 0 < first < math.inf:
        raise LayerError(f"{facts} facts at weight {first}: give at least one fact and a weight above 0")
    n, shared = float(facts), _k(2, 2, 1)
    gained, every = _coefficients(n, 2, shared, _k(2, 1.5, 0.5), _k(2, 1.5, 0))
    early = _coefficients(n, 2, shared, _k(2, 1, 0), _k(2, 1, 0))[1]
    squares = _squares(n, every, gained) + _squares(n, early, 1.0) / 4
    hidden = (9 / 4 if attention_stays else 3 / 2) + (1 + known) * first**2 * squares
    key = 3.0 if attention_stays else 2.0
    hit, miss = (_k(key, hidden, 1 + first * (early + own) / 2) for own in (1.0, 0.0))
    gap, other = _coefficients(n, key, _k(key, key, 1), hit, miss)
    return TwoLayers(first * (every + gained), other + gap, other, float(known))


def _k(square: float, other: float, inner: float) -> float:
    """k(a, b, c), a and b the squares of two hidden states and c their inner product."""
    return float(relu_kernel(np.asarray(inner), math.sqrt(square), math.sqrt(other)))


def _coefficients(facts: float, own: float, shared: float, hit: float, miss: float) -> tuple[float, float]:
    """G^-1 k for G of `own` on and `shared` off its diagonal, k `hit` once and `miss` elsewhere.

    By how much the coefficient of the one exceeds the others', and that of the others.
    """
    apart = (hit - miss) / (own - shared)
    if math.isinf(facts):
        return apart, 0.0
    together = (hit + (facts - 1) * miss) / (own + (facts - 1) * shared)
    return apart, (together - apart) / facts


def _squares(facts: float, every: float, more: float) -> float:
    """The square of `every` on each of n directions and `more` beside it on one."""
    if math.isinf(facts):
        return more**2
    return (facts - 1) * every**2 + (every + more) ** 2
