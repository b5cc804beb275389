"""What Arrow sees of typed adapters: the first right-singular direction of facts that are interchangeable.

The outputs of a fitted adapter do not depend on t (eq. 23), but its singular vectors do: the changes of n
facts have inner products C = (1 - t) I + t [same kind], and the first right-singular direction is the first
one of the pair (C, G), G the Gram matrix of the features. In the full limit, strict mask, as
`toytransformer.typed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from toytransformer.arrays import ROUNDING
from toytransformer.arrays import NumpyArray as Array
from toytransformer.typed import Overlaps, TypedError, overlaps


@dataclass(frozen=True)
class Group:
    """Facts of one adapter that are interchangeable: `count` of them, under one relation, with answers of one
    kind.

    own, other: the inner product of a fact's change of output with itself, and with that of another fact of
    the group: 1 and t for fresh facts, 2 (1 - t) and 0 for known ones whose old answer is of the same kind.
    relation: its name; groups of one relation share it. common: the mean change, as a vector on kinds, whose
    products are the `other` of two groups; (1, 0) and (0, 1) times sqrt(t) for fresh facts of two kinds, 0
    for known ones.
    """

    count: int
    relation: str
    own: float
    common: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise TypedError(f"count is {self.count!r}: give a whole number >= 1")
        if not (math.isfinite(self.own) and self.own >= self.other - 1e-12):
            raise TypedError(
                f"own is {self.own!r}: it is at least the product of two changes, {self.other:g}"
            )

    @property
    def other(self) -> float:
        return math.fsum(value * value for value in self.common)


def fresh(count: int, relation: str, t: float, kind: int = 0) -> Group:
    """Facts that the base does not know, with answers of kind number `kind`: own 1, other t."""
    return Group(count, relation, 1.0, (0.0,) * kind + (math.sqrt(t),))


def known(count: int, relation: str, t: float) -> Group:
    """Facts with an old answer of the same kind: own 2 (1 - t), and nothing in common, at any t."""
    return Group(count, relation, 2 * (1 - t))


@dataclass(frozen=True)
class Direction:
    """The first right-singular direction of an adapter, p = sum_g coefficient_g sum_(facts of g) phi.

    value: its squared singular value. determined: whether it is the only one. coefficients: () where it is a
    difference of facts within a group; there are several such, and they tie, unless n = 2. gap: (s1 - s2) /
    s1.
    """

    value: float
    gap: float
    determined: bool
    coefficients: tuple[float, ...]


def first_direction(
    groups: Sequence[Group], products: ArrayLike | None = None, *, relation_length: float = 1.0
) -> Direction:
    """The first right-singular direction of the adapter that stores these groups, entities all distinct.

    Delta W^T Delta W = Phi G^-1 C G^-1 Phi^T, so squared singular values are the eigenvalues of C G^-1. Facts
    of a group are interchangeable: on differences within group g they are (own_g - other_g) / (k (1 - S)),
    count_g - 1 times; on the group means, those of the small pair of matrices

        C_gh = [g = h] (own_g - other_g) + sqrt(n_g n_h) common_g.common_h,
        G_gh = k ([g = h] (1 - S) + sqrt(n_g n_h) (S where the relation is one, else L)).

    products: (group, group), the product of a fact's change with another's; None for common_g.common_h.

    In particular, at every n: for fresh facts of one kind it is the mean feature if t > S, and ties below;
    for m fresh facts beside n >= 2 known ones of the same relation it is a direction of means if t > 1 / (m +
    1), and ties below; for n fresh facts each of two kinds it is the difference of the two means, at every t
    > 0.
    """
    if not groups:
        raise TypedError("no groups: an adapter holds at least one fact")
    k = overlaps(relation_length)
    root = np.sqrt([group.count for group in groups])
    shared = _common(groups) if products is None else np.asarray(products, float)
    if shared.shape != (len(groups),) * 2 or not np.allclose(shared, shared.T):
        raise TypedError(f"products of shape {shared.shape}: give a symmetric ({len(groups)}, {len(groups)})")
    same = np.array([[a.relation == b.relation for b in groups] for a in groups])
    spread = np.array([group.own for group in groups]) - np.diag(shared)
    c = np.diag(spread) + np.outer(root, root) * shared
    g = k.key * (np.diag(np.full(len(root), 1 - k.relation)) + np.outer(root, root) * _shared(same, k))
    # eigenvalues of C G^-1 with vectors v = G^-1 u, so that p = Phi v: G C^-1 need not exist
    lower = np.linalg.cholesky(g)
    inverse = np.linalg.inv(lower)
    values, vectors = np.linalg.eigh(inverse @ c @ inverse.T)
    within = [
        value / (k.key * (1 - k.relation))
        for value, group in zip(spread.tolist(), groups, strict=True)
        for _ in range(min(group.count - 1, 2))
    ]
    ladder = np.sort([*values.tolist(), *within])[::-1]
    top, second = float(ladder[0]), float(max(ladder[1], 0.0)) if len(ladder) > 1 else 0.0
    gap = 1 - math.sqrt(second / top)
    slack = ROUNDING * np.finfo(float).eps
    if values[-1] < top * (1 - slack) or gap <= slack:
        return Direction(top, gap, bool(gap > slack), ())
    direction = (inverse.T @ vectors[:, -1]) / root
    return Direction(top, gap, True, tuple(float(value) for value in direction))


def _common(groups: Sequence[Group]) -> Float[Array, "group group"]:
    width = max(len(group.common) for group in groups)
    rows = np.array([(*group.common, *(0.0,) * (width - len(group.common))) for group in groups])
    return rows @ rows.T


def _shared(same: Array, k: Overlaps) -> Float[Array, "group group"]:
    return np.where(same, k.relation, k.leak)


def bridged_known(
    facts: int,
    bridge: int,
    t: float,
    *,
    first: int,
    second: int,
    same_kind: bool,
    relation_length: float = 1.0,
) -> tuple[tuple[tuple[Group, ...], Float[Array, "group group"]], ...]:
    """Groups and products of two adapters that hold known facts, one hop each, and both the hops of one
    bridge.

    For `first_direction`. The base is trained on `first` facts under R1 and `second` under R2, the edited
    ones among them, and knows nothing of the bridge, so on its prompts it says a mixture of what it knows:
    with g_r the coefficient of each fact under R_r, which sum to m_r,

        (1 - S + N_r S) m_r + N_r L m_s = N_r (S on a prompt under R_r, else L),      r, s = 1, 2.

    An adapter stores the bridge's answer minus that mixture. same_kind: whether the bridge's names are of the
    kinds that the base knows, so that the mixture has said a part of their kind already, or of kinds of their
    own. A known fact takes its old answer out of the mixture: product (1 - t) g.
    """
    k, counts = overlaps(relation_length), np.array([first, second])
    system = (1 - k.relation) * np.eye(2) + counts[:, None] * np.array(
        [[k.relation, k.leak], [k.leak, k.relation]]
    )
    # column h: on a prompt of the bridge under R_h, the sums m_1 and m_2
    sums = np.linalg.solve(system, counts[:, None] * np.array([[k.relation, k.leak], [k.leak, k.relation]]))
    each = sums / counts[:, None]
    mixtures = (1 - t) * each.T @ (counts[:, None] * each) + t * sums.T @ sums
    said = t * sums if same_kind else np.zeros((2, 2))  # (kind, prompt): of an answer's kind, already said
    of_bridge = t * np.eye(2) - said - said.T + mixtures
    libraries = []
    for hop, relation in enumerate(("R1", "R2")):
        products = np.zeros((3, 3))
        products[1:, 1:] = of_bridge
        products[0, 1:] = products[1:, 0] = (1 - t) * each[hop]
        groups = (
            known(facts, relation, t),
            Group(bridge, "R1", 1 - t + float(of_bridge[0, 0])),
            Group(bridge, "R2", 1 - t + float(of_bridge[1, 1])),
        )
        libraries.append((groups, products))
    return tuple(libraries)


def seen(
    groups: Sequence[Group],
    direction: Direction,
    *,
    relation: str,
    member: int | None = None,
    relation_length: float = 1.0,
) -> float:
    """|p . phi| of a one-hop prompt under `relation`, p of length one: Arrow's logit in units of sqrt(m /
    2d).

    member: the number of the group of which it is a fact; None for an entity the adapter has not seen.
    Errors: TypedError where the direction ties, or is one of single facts' differences (two known facts).
    """
    if not direction.coefficients:
        raise TypedError(
            f"the first direction is one of differences within a group (gap {direction.gap:.1e}), which the "
            "means do not see; where several tie it is arbitrary"
        )
    k = overlaps(relation_length)
    total = 0.0
    for number, (group, weight) in enumerate(zip(groups, direction.coefficients, strict=True)):
        each = k.relation if group.relation == relation else k.leak
        total += weight * (group.count * each + (1 - k.relation) * (number == member))
    return abs(k.key * total)


def arrow_weights(seen: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """softmax(|p_i . phi| / T), the routing weights where T grows with the width as sqrt(m / 2d)."""
    if not temperature > 0:
        raise TypedError(f"temperature is {temperature!r}: give a number above 0")
    logits = np.asarray(seen, float) / temperature
    scores = np.exp(logits - logits.max())
    return tuple(float(value) for value in scores / scores.sum())
