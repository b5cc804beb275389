"""What Arrow sees of entities that its adapter was not trained on (theory.md, section 8d)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from toytransformer.adapters import closed_form
from toytransformer.arrays import ROUNDING
from toytransformer.compositions import Prompt
from toytransformer.ledger.pair import LIMIT
from toytransformer.ledger.registry import Row, Run, algebraic, at_least, at_most, claim, same
from toytransformer.prototypes import arrow_weights
from toytransformer.typed import overlaps

SOURCE = "theory.md section 8d"


def logit_of_a_stranger(counts: tuple[int, ...], known: bool) -> tuple[float, float]:
    """|p . phi(u R1)| over the first directions of an adapter whose answers occur `counts` times, and its
    rounding.

    known: every fact has an old answer of its own. Directions tie where singular values do, up to rounding.
    """
    answers = [answer for answer, count in enumerate(counts) for _ in range(count)]
    facts, labels = len(answers), len(counts)
    phi = LIMIT.features([Prompt(f"x{i}", ("R1",)) for i in range(facts + 1)]).values
    changes = np.zeros((facts, labels + facts))
    changes[range(facts), answers] = 1
    if known:
        changes[:, labels:] -= np.eye(facts)
    _, values, right = closed_form(phi[:-1], changes, gauge="plain").svd()
    slack = ROUNDING * np.finfo(float).eps
    tied = values >= values[0] * (1 - np.sqrt(slack))
    return float(np.linalg.norm(phi[-1] @ right[:, tied])), float(np.sqrt(slack))


@claim(
    "Arrow sees an unseen entity iff one answer is the commonest",
    source=SOURCE,
    proof="UnseenEntities.tied_groups_see_nothing, UnseenEntities.unseen_means_tied",
)
def repeated(run: Run) -> Iterator[Row]:
    for counts in ((1, 1, 1), (2, 2), (2, 2, 1), (3, 3, 1, 1), (2, 1), (3, 1, 1), (3, 2, 2), (5,)):
        for known in (False, True):
            if known and len(counts) == 1:
                continue  # one new answer, all old ones apart: which direction is first depends on S
            logit, rounding = logit_of_a_stranger(counts, known)
            tie = Counter(counts)[max(counts)] > 1
            text = f"answers of {', '.join(map(str, counts))} {'known' if known else 'fresh'} facts"
            note = f"|p . phi| = {logit:.3g}" if logit > rounding else ""
            yield same(f"{text}: is its logit 0", tie, logit <= rounding, regime="limit", note=note)


@claim(
    "a bridge of fresh facts drives Arrow's logits to 0",
    source=SOURCE,
    proof="UnseenEntities.bridge_makes_it_large, UnseenEntities.output_bounded, "
    "UnseenEntities.bridged_logits_vanish, WideLimit.arrow_weights_near_uniform",
)
def vanishing(run: Run) -> Iterator[Row]:
    t, k = 0.6, overlaps()
    for n in (5, 20):
        stored = [(f"x{i}", "R1") for i in range(n)]
        stored += [(f"u{i}", "R1") for i in range(n)] + [(f"v{i}", "R2") for i in range(n)]
        asked = [*stored, ("new", "R1"), ("new", "R2")]
        phi = LIMIT.features([Prompt(entity, (relation,)) for entity, relation in asked]).values
        # known facts have nothing in common; fresh ones have sqrt t of their kind's direction
        changes = np.hstack([np.sqrt(1 - t) * np.eye(3 * n), np.zeros((3 * n, 2))])
        changes[:n] *= np.sqrt(2)
        changes[n : 2 * n, -2] = changes[2 * n :, -1] = np.sqrt(t)
        adapter = closed_form(phi[: 3 * n], changes, gauge="plain")
        _, values, right = adapter.svd()
        bound, square = t * n / (2 * k.key * (1 - k.relation)), float(values[0] ** 2)
        text = f"n = {n} known facts, a bridge of as many, t = {t:g}"
        yield at_least(f"{text}: first singular value squared", bound, square, algebraic(n), regime="limit")
        logits, outputs = np.abs(phi @ right[:, 0]), np.linalg.norm(adapter.shift(phi), axis=1)
        excess = float(np.max(logits - outputs / values[0]))
        label = f"{text}: largest |p . phi| - |D phi| / sigma_1"
        yield at_most(label, 0.0, excess, algebraic(n), regime="limit")
        said = 2 / (k.relation - k.leak)  # tau = 1, and |phi|^2 of one hop is that of a key
        label = f"{text}: largest |D phi|^2 on entities it does not know"
        largest = float(outputs[-2:].max() ** 2)
        yield at_most(label, said, largest, algebraic(n), regime="limit", note="the same bound at every n")
        most = math.sqrt(k.key * (1 - k.relation) * 2 * said / (t * n))
        label = f"{text}: largest |p . phi|"
        yield at_most(
            label, most, float(logits.max()), algebraic(n), regime="limit", note="falls as 1 / sqrt n"
        )
        # to the partner, who holds y R2 in place of x R1, x R1 is what u R2 is to this one
        weight = arrow_weights((logits[0], logits[-1]))[0]
        label = f"{text}: |weight on its own fact - 1 / 2|"
        yield at_most(label, most / 2, abs(weight - 1 / 2), algebraic(n), regime="limit")
