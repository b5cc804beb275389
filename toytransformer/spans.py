"""What a span of stored updates can do for a target: least squares over coefficients, as fitted merges do.

    captured(adapters, target)    the share of the target that a_1 S_1 + .. + a_K S_K explains, S_i what
                                  adapter i shifts: on the facts shown and, with the same a, on the others
    by_chance(K, n, shown)        what K updates that know nothing of the target explain on average

theory.md, section 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toytransformer.adapters import closed_form
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions import Fact, Prompt, SpecError
from toytransformer.merging.fitted import free
from toytransformer.regimes import FullLimit


@dataclass(frozen=True)
class Wanted:
    """A fact of the target. old: what the base answers, None: nothing. shown: in how many examples it is."""

    fact: Fact
    old: str | None
    shown: int


@dataclass(frozen=True)
class Captured:
    """Shares of the target's squared norm, 1 - |T - sum_i a_i S_i|^2 / |T|^2.

    shown: over the examples, which the a are fitted on; never below 0. unseen: over the facts of no example,
    below 0 where the merge leads away from them; None where every fact is shown. weights: the a_i.
    """

    shown: float
    unseen: float | None
    weights: tuple[float, ...]


def captured(adapters: Sequence[Sequence[Fact]], target: Sequence[Wanted]) -> Captured:
    """What adapters that store these facts explain of the target, in the limit m, d -> infinity.

    Every adapter is the closed form (eq. 23) of the answers of its facts over what the base answers there,
    if the target says so; the wanted shift of a fact is its answer less the base's. a minimises the squared
    error over the examples, the shortest where there are several, as the fits of `adaptive` do.
    Errors: SpecError where no fact is shown or none is stored; AdapterError on facts that are stored twice.
    """
    if not any(one.shown for one in target):
        raise SpecError(f"none of the {len(target)} facts of the target is shown: give examples of it")
    if not all(adapters):
        raise SpecError("an adapter stores no fact: give at least one for each")
    old = {one.fact.prompt: one.old for one in target if one.old is not None}
    stored = [fact for facts in adapters for fact in facts]
    prompts = list(dict.fromkeys([one.fact.prompt for one in target] + [fact.prompt for fact in stored]))
    entities = sorted(
        {fact.answer for fact in stored} | {one.fact.answer for one in target} | set(old.values())
    )
    features = FullLimit().features(prompts).values
    place = {prompt: row for row, prompt in enumerate(prompts)}

    def changes(facts: Sequence[Fact]) -> Array:
        return _one_hot([fact.answer for fact in facts], entities) - _one_hot(
            [old.get(fact.prompt) for fact in facts], entities
        )

    asked = features[[place[one.fact.prompt] for one in target]]
    wanted = changes([one.fact for one in target])
    shifts = np.stack(
        [
            closed_form(
                features[[place[fact.prompt] for fact in facts]], changes(facts), gauge="plain"
            ).shift(asked)
            for facts in adapters
        ]
    )
    counts = np.array([one.shown for one in target], dtype=float)
    root = np.sqrt(counts)[:, None]
    design = (root * shifts).reshape(len(adapters), -1).T
    weights = free(design, (root * wanted).ravel())
    left = ((wanted - np.tensordot(weights, shifts, axes=1)) ** 2).sum(axis=1)
    whole = (wanted**2).sum(axis=1)

    def share(rows: Array) -> float:
        return float(1 - (rows * left).sum() / (rows * whole).sum())

    unseen = (counts == 0).astype(float)
    return Captured(share(counts), share(unseen) if unseen.any() else None, tuple(map(float, weights)))


def by_chance(count: int, facts: int, shown: int) -> float:
    """K n / (p (n - 1)^2), at most 1: the share that K updates which do not know sigma explain on average.

    Of the target P_sigma - J/n on p of its n facts, over all sigma, for updates in the doubly centred space,
    (p - 1)(n - 1) dimensions. Over injections of p facts into n answers the target has the covariance
    ((n I - J) / (n - 1)) (x) (I - J/n) / n: its trace is p (n - 1) / n, and each centred direction has
    1 / (n - 1) of it. p = n gives K / (n - 1)^2 (Schur's lemma; Recycled.v). Errors: SpecError unless 1 <= K
    and 2 <= p <= n.
    """
    if not (count >= 1 and 2 <= shown <= facts):
        raise SpecError(f"K = {count}, p = {shown} of n = {facts} facts: give 1 <= K and 2 <= p <= n")
    return min(1.0, count * facts / (shown * (facts - 1) ** 2))


def facts_of(lines: Sequence[Mapping[str, object]]) -> dict[str, tuple[Fact, ...]]:
    """Lines {"adapter", "facts": [[entity, relation, answer], ..]} as facts, by adapter."""
    return {str(line["adapter"]): tuple(map(fact_of, line["facts"])) for line in lines}  # type: ignore[call-overload]


def fact_of(named: Sequence[str]) -> Fact:
    """(entity, relation, answer) as a fact of one hop."""
    entity, relation, answer = named
    return Fact(Prompt(entity, (relation,)), answer)


def _one_hot(answers: Sequence[str | None], entities: Sequence[str]) -> Array:
    return np.array([[float(entity == answer) for entity in entities] for answer in answers])
