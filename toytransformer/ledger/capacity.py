"""How many adapters a sum, a mean and a truncated sum hold (theory.md, section 6)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from toytransformer.adapters import LoRA, closed_form
from toytransformer.compositions import Merge, Prompt
from toytransformer.ledger.pair import LEAK, LIMIT, SHARED, is_top
from toytransformer.ledger.registry import Row, Run, algebraic, at_most, claim, close, same
from toytransformer.merging import merge

SOURCE = "theory.md section 6"


def pool(
    answers: np.ndarray, known: bool
) -> tuple[list[LoRA], Float[np.ndarray, "fact feature"], np.ndarray]:
    """Adapters with the given answers, (adapter, fact), each under a relation of its own; features of their
    prompts; base outputs.

    Old answers of known facts are their own: they follow the new ones among the entities.
    """
    count, facts = answers.shape
    asked = [Prompt(f"x{a}_{i}", (f"R{a}",)) for a in range(count) for i in range(facts)]
    phi = LIMIT.features(asked).values
    new = np.eye(answers.max() + 1 + len(asked))[answers.ravel()]
    old = np.eye(new.shape[1])[answers.max() + 1 :] * known
    parts = np.arange(len(asked)).reshape(count, facts)
    library = [closed_form(phi[rows], (new - old)[rows], gauge="plain") for rows in parts]
    return library, phi, old


def share_held(answers: np.ndarray, rule: Merge, known: bool) -> float:
    """The share of facts that the merge of all adapters answers, alone at the top."""
    library, phi, base = pool(answers, known)
    output = base + merge(library, rule).shift(phi)
    return float(is_top(output, answers.ravel()).mean())


@claim(
    "a sum holds any number of adapters with answers of their own, a mean of known facts one",
    source=SOURCE,
    proof="Capacity.sum_holds_iff, Capacity.mean_holds_one, Capacity.fresh_sum_holds_iff",
)
def sums(run: Run) -> Iterator[Row]:
    for count, facts in ((1, 3), (2, 3), (12, 3)):
        answers = np.arange(count * facts).reshape(count, facts)
        text = f"{count} adapters of {facts} facts: share held"
        for known in (True, False):
            kind = "known" if known else "fresh"
            total = share_held(answers, Merge("sum"), known)
            yield same(f"{text} by the sum, {kind}", 1.0, total, regime="limit")
            mean = share_held(answers, Merge("mean"), known)
            expected = 1.0 if count == 1 or not known else 0.0
            yield same(f"{text} by the mean, {kind}", expected, mean, regime="limit")
    for facts in (1, 3):
        leak = LEAK / (1 + SHARED * (facts - 1))
        for others in (int(1 / leak), int(1 / leak) + 1):
            answers = np.arange(facts * (others + 1)).reshape(others + 1, facts)
            answers[1:, 0] = answers[1, 0]
            used = np.unique(answers, return_inverse=True)[1].reshape(answers.shape)
            library, phi, base = pool(used, known=True)
            output = base[0] + merge(library, Merge("sum")).shift(phi[:1])[0]
            kept = bool(is_top(output[None], used[0, 0])[0])
            text = f"one answer that {others} other adapters of {facts} facts share: does a fact survive"
            note = "while 1 > l times their number, l = L / (1 + S (n - 1))"
            yield same(text, others * leak < 1, kept, regime="limit", note=note)


@claim(
    "scores of rank r hold at most r (1 - e^2) / (1 - r e^2) facts",
    source=SOURCE,
    proof="Capacity.rank_capacity, Capacity.rank_two_holds_every_answer",
)
def ranks(run: Run) -> Iterator[Row]:
    for rank in (2, 5):
        simplex = (np.eye(rank + 1) * (rank + 1) - 1) / rank
        text = f"r + 1 answers at the corners of a simplex, r = {rank}: k (1 - r e^2), e = 1/r"
        found = (rank + 1) * (1 - rank * float(np.abs(simplex[0, 1])) ** 2)
        note = f"rank {np.linalg.matrix_rank(simplex)}: the bound r (1 - e^2) is reached"
        yield close(text, rank * (1 - 1 / rank**2), found, algebraic(), regime="exact", note=note)
    answers = np.arange(12).reshape(4, 3)
    library, phi, _ = pool(answers, known=False)
    facts = answers.size
    for rank in (8, 12):
        merged = merge(library, Merge("sum-truncated", options={"rank": rank}))
        scores = merged.shift(phi)[:, :facts]
        scores = scores / np.diag(scores)[:, None]
        others = float(np.abs(scores - np.eye(facts)).max())
        text = f"12 facts of 4 adapters, sum cut to rank {rank}: k (1 - r e^2), e = {others:.3f}"
        bound, found = rank * (1 - others**2), facts * (1 - rank * others**2)
        yield at_most(text, bound, found, algebraic(facts), regime="limit")
    x = np.arange(50.0)
    parabola = 2 * np.outer(x, x) - x**2
    held = int(is_top(parabola, np.arange(50)).sum())
    rank = int(np.linalg.matrix_rank(parabola))
    yield same(
        "answers that scores 2 x_i x_j - x_j^2 of rank 2 hold, of 50", (2, 50), (rank, held), regime="exact"
    )


@claim(
    "cutting one adapter's last direction costs each fact 1/n",
    source=SOURCE,
    proof="Capacity.without_mean_direction, Capacity.truncated_by_one",
)
def cut(run: Run) -> Iterator[Row]:
    for facts in (2, 3, 8):
        answers = np.arange(facts)[None]
        library, phi, base = pool(answers, known=True)
        merged = merge(library, Merge("sum-truncated", options={"rank": facts - 1}))
        output = base + merged.shift(phi)
        text = f"n = {facts} known facts, rank n - 1"
        own = np.diag(output[:, :facts])
        yield close(
            f"{text}: output of the answer", 1 - 1 / facts, float(own.min()), algebraic(facts), regime="limit"
        )
        held = float(is_top(output, np.arange(facts)).mean())
        yield same(f"{text}: are all held", facts > 2, held == 1, regime="limit")
