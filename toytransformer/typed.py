"""Answers with kinds in closed form: where a direct question moves to an answer of another kind.

Entities of one kind have output vectors at cosine t, others at 0, so with coefficients o on the entities the
score of e is s_e = (1 - t) o_e + t K, K the sum of the o of its kind. Within a kind the order is that of the
o, whatever t: typing never changes which place wins among places. Between kinds it is a race of straight
lines in t, (1 - t) P + t K with P the largest o of the kind (`kind_lines`), so every threshold is a quotient
(`typed_threshold`). What Arrow sees of kinds is in `toytransformer.prototypes`.

All in the full limit, strict mask, relation embeddings `relation_length` = rho times as long as those of
entities.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from toytransformer import kernel


class TypedError(ValueError):
    """A size or output the typed closed forms have no answer for; the message says which and what to do."""


def kind_lines(output: ArrayLike, kinds: Sequence[Hashable]) -> dict[Hashable, tuple[float, float]]:
    """By kind (P, K): the largest coefficient in it, and the sum of all; its best score is (1 - t) P + t K.

    output: coefficients o on the entities, (entity,). kinds: the kind of each entity.
    Errors: TypedError where the two do not fit or numbers are not finite.
    """
    o = np.asarray(output, float)
    if o.ndim != 1 or len(o) != len(kinds) or not len(o) or not np.isfinite(o).all():
        raise TypedError(
            f"output of shape {o.shape} and {len(kinds)} kinds: give finite numbers, (entity,), one kind each"
        )
    parts: dict[Hashable, list[float]] = {}
    for value, kind in zip(o.tolist(), kinds, strict=True):
        parts.setdefault(kind, []).append(value)
    return {kind: (max(values), math.fsum(values)) for kind, values in parts.items()}


def typed_threshold(first: tuple[float, float], second: tuple[float, float]) -> float:
    """t* = (P1 - P2) / ((P1 - P2) + (K2 - K1)), above which the second kind's best answer beats the first's.

    first, second: (P, K) of each kind (`kind_lines`). 0 where the second wins at every t > 0, 1 where it wins
    at none below 1. Errors: TypedError where it wins below a t and not above: exchange the two.
    """
    lead, mass = first[0] - second[0], second[1] - first[1]
    if lead < 0 and mass < 0:
        raise TypedError(
            f"the second kind wins at t = 0 and the first at t = 1, from {first} and {second}: exchange the "
            "two"
        )
    if lead <= 0:
        return 0.0
    return 1.0 if mass <= 0 else lead / (lead + mass)


@dataclass(frozen=True)
class Overlaps:
    """k(eta, .) / k(eta, eta) of a one-hop prompt eta in the full limit (theory.md, sections 2 and 4).

    c1: of (x, R1) with (x, R1, R2); c2: of (y, R2) with (x, R1, R2); far: of (x', R1) with (x, R1, R2);
    relation: with a one-hop prompt of the same relation; entity: of the same entity; leak: of neither.
    key: k(eta, eta) = |eta|^2.
    """

    c1: float
    c2: float
    far: float
    relation: float
    entity: float
    leak: float
    key: float


def overlaps(relation_length: float = 1.0) -> Overlaps:
    """The overlaps at relation length rho: |eta|^2 = 1 + rho^2, |xi|^2 = rho^2 + (1 + rho^2) / 4.

    c1 from eta.xi = 1/2, c2 from rho^2, far from 0. Errors: TypedError on a length that is not above 0.
    """
    if not (math.isfinite(relation_length) and relation_length > 0):
        raise TypedError(f"relation_length is {relation_length!r}: give a finite number above 0")
    square = relation_length**2
    eta, xi = 1 + square, square + (1 + square) / 4

    def seen(inner: float, query: float) -> float:
        return float(kernel.overlap(*(np.asarray(value, float) for value in (eta, inner, query))))

    return Overlaps(
        seen(1 / 2, xi), seen(square, xi), seen(0, xi), seen(square, eta), seen(1, eta), seen(0, eta), eta
    )


@dataclass(frozen=True)
class DirectQuestion:
    """Coefficients of the sum w1 D1 + w2 D2 on x_i R1 R2, n fresh facts in each adapter (eq. 25).

    bridge: of y_i; other_bridge: of another y_j; answer: of every z_j, the right one included.
    people, places: the sums over the y and over the z.
    """

    bridge: float
    other_bridge: float
    answer: float
    people: float
    places: float


def direct_question(
    facts: int, *, relation_length: float = 1.0, weights: tuple[float, float] = (1.0, 1.0)
) -> DirectQuestion:
    """The merged coefficients in closed form: with A = (c1 - far) / (1 - S) and S = `relation`,

    y_i: w1 (A + r), y_j: w1 r, z_j: w2 c2 / (1 + S (n - 1)), with n r = (c1 + (n - 1) far) / (1 + S (n - 1))
    - A.
    """
    if isinstance(facts, bool) or not isinstance(facts, int | np.integer) or facts < 1:
        raise TypedError(f"facts is {facts!r}: give a whole number >= 1")
    k = overlaps(relation_length)
    spread = 1 + k.relation * (facts - 1)
    people, each = (k.c1 + (facts - 1) * k.far) / spread, k.c2 / spread
    own = (k.c1 - k.far) / (1 - k.relation)
    rest = (people - own) / facts
    w1, w2 = weights
    bridge = people if facts == 1 else own + rest
    return DirectQuestion(w1 * bridge, w1 * rest, w2 * each, w1 * people, w2 * facts * each)


def fresh_threshold(
    facts: int, *, relation_length: float = 1.0, weights: tuple[float, float] = (1.0, 1.0)
) -> float:
    """t*(n) for fresh facts and an exact base: above it x_i R1 R2 is answered by a place, below by the bridge
    y_i.

        t* = (y - z) / ((y - z) + (Z - Y)),    y, z of `direct_question`, Y and Z its sums.

    The place is any of the n z_j, which tie: right in 1/n. With equal weights it is S A / B - (B - A) /
    (B (n - 1)), B = c2 - far + S A: as n grows it goes to S A / B, from below where B >= A, as with relations
    as long as entities. It does not change under the mean, which scales both adapters alike.
    """
    o = direct_question(facts, relation_length=relation_length, weights=weights)
    return typed_threshold((o.bridge, o.people), (o.answer, o.places))


def trained_threshold(
    facts: int,
    *,
    first: int,
    second: int,
    relation_length: float = 1.0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> float:
    """t*(n) for known facts and a base trained on one-hop facts: above it a place answers, below a person.

    first, second: how many facts under R1 and R2 the base knows, the edited ones among them, each about an
    entity of its own. Asked x_i R1 R2 such a base says a kernel mixture of all it knows: with g1 and g2 the
    coefficients of each fact under R1 and R2, and m1, m2 their sums,

        (1 - S + first S) m1 + first L m2  = c1 + (first - 1) far
        second L m1 + (1 - S + second S) m2 = second c2

    and A more for x_i's own. Adapters move answers within a kind, so the sums of the kinds stay m1 and m2;
    the best person is y_i or its old answer, the best place a new z_j or one that was not edited.
    Errors: TypedError on fewer base facts than edited ones.
    """
    if not (first >= facts and second >= facts):
        raise TypedError(f"the base knows {first} and {second} facts of which {facts} are edited: give more")
    k, o = overlaps(relation_length), direct_question(facts, relation_length=relation_length, weights=weights)
    alone = 1 - k.relation
    system = [[alone + first * k.relation, first * k.leak], [second * k.leak, alone + second * k.relation]]
    m1, m2 = np.linalg.solve(system, [k.c1 + (first - 1) * k.far, second * k.c2])
    own = (k.c1 - k.far) / alone
    g1, g2 = (m1 - own) / first, m2 / second
    person = max(o.bridge, own + g1 - o.bridge, *([g1] if first > facts else []))
    place = max(o.answer, g2 - o.answer, *([g2] if second > facts else []))
    return typed_threshold((person, float(m1)), (place, float(m2)))
