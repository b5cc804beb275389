"""What Arrow sees of entities that its adapter was not trained on (theory.md, section 8d)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from toytransformer.adapters import closed_form
from toytransformer.arrays import ROUNDING
from toytransformer.compositions import Prompt
from toytransformer.ledger.pair import LIMIT
from toytransformer.ledger.registry import Row, Run, algebraic, at_least, at_most, claim, same
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
    proof="UnseenEntities.bridge_makes_it_large, UnseenEntities.logit_bound",
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
        note = f"|p . phi| is {logits[0]:.3g} on its own facts; with n it falls at least as 1 / sqrt n"
        label = f"{text}: largest |p . phi| - |D phi| / sigma_1"
        yield at_most(label, 0.0, excess, algebraic(n), regime="limit", note=note)
