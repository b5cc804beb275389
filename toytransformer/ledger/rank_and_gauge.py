"""Claims about the rank that facts need, and the gauges of their factors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import linalg

from toytransformer.adapters import AdapterError, LoRA, closed_form
from toytransformer.arrays import NumpyArray as Array
from toytransformer.ledger.registry import (
    Row,
    Run,
    algebraic,
    at_least,
    claim,
    close,
    same,
)
from toytransformer.ledger.stored_facts import (
    LIMIT,
    SMALL,
    largest,
    limit_facts,
    nuclear_norm,
    small_facts,
    solve_rounding,
)


@claim("rank", source="eq. 23, theory.md P2", proof="AnyRank.rank_needed")
def rank_needed(run: Run) -> Iterator[Row]:
    features, changes = limit_facts(100)
    refused = []
    for rank in (16, 99, 100):
        try:
            closed_form(features, changes, rank=rank)
        except AdapterError:
            refused.append(rank)
    yield same(
        "ranks of 16, 99, 100 that cannot hold 100 independent facts",
        [16, 99],
        refused,
        regime=LIMIT,
        note="n facts need rank n unless their changes of output are dependent (theory.md P2).",
    )
    features, _ = small_facts(run, 3)
    cycle = np.roll(np.eye(3), 1, axis=1) - np.eye(3)
    held = closed_form(features, cycle, rank=2)
    yield close(
        "rank 2 holds three facts whose changes cancel (x -> y -> z -> x), largest deviation",
        0.0,
        largest(held.shift(features) - cycle),
        solve_rounding(features, held.delta()),
        regime=SMALL,
    )
    features, changes = small_facts(run, 5)
    changes = np.arange(1.0, 6.0)[:, None] * changes  # five different singular values
    values = linalg.svdvals(changes)
    approximate = closed_form(features, changes, rank=2, approximate="loss")
    for name, lora in (
        ('approximate="loss"', approximate),
        ("alternating least squares", _alternate(run, features, changes)),
    ):
        yield close(
            f"least loss of 5 facts at rank 2, the cut singular values of T squared: {name}",
            float(np.sum(values[2:] ** 2)),
            np.sum((lora.shift(features) - changes) ** 2),
            solve_rounding(features, changes),
            regime=SMALL,
        )
    delta = closed_form(features, changes).delta()
    cut = closed_form(features, changes, rank=2, approximate="weights")
    yield close(
        "approximate by weights: |D - D_2| is the root of the cut singular values of D squared",
        math.sqrt(np.sum(linalg.svdvals(delta)[2:] ** 2)),
        np.linalg.norm(delta - cut.delta()),
        solve_rounding(features, delta),
        regime=SMALL,
    )


def _alternate(run: Run, features: Array, changes: Array, rank: int = 2, rounds: int = 200) -> LoRA:
    """Least |A B^T Phi - T|_F by solving for A and B in turn; for these T the error falls by 9/16 a round."""
    read = np.random.default_rng(run.seed).standard_normal((features.shape[1], rank))
    for _ in range(rounds):
        write = np.linalg.lstsq(features @ read, changes, rcond=None)[0].T
        read = np.linalg.lstsq(features, changes @ np.linalg.pinv(write).T, rcond=None)[0]
    return LoRA(write, read)


@claim(
    "gauges",
    source="section 3.1, theory.md P1, R5",
    proof="LeastNormEdit.balanced_factors_are_minimal, LeastNormEdit.orthogonal_gauge",
)
def gauges(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 5)
    reference = closed_form(features, changes)
    least = 2 * nuclear_norm(reference.delta())
    tolerance = solve_rounding(features, least * np.eye(1))
    for gauge in ("svd", "facts", "flipped", f"random:{run.seed}"):
        lora = closed_form(features, changes, gauge=gauge)
        yield close(
            f"{gauge}: |A|^2 + |B|^2 is twice the nuclear norm",
            least,
            lora.penalty(),
            tolerance,
            regime=SMALL,
        )
        yield close(
            f"{gauge}: same Delta W, and balanced A^T A = B^T B, largest deviation",
            0.0,
            max(
                largest(lora.delta() - reference.delta()),
                largest(lora.write.T @ lora.write - lora.read.T @ lora.read),
            ),
            tolerance,
            regime=SMALL,
        )
    rng = np.random.default_rng(run.seed)
    squares = [rng.standard_normal((5, 5)) for _ in range(200)]
    rotated = [reference.regauge(np.linalg.qr(square)[0]).penalty() for square in squares]
    yield close(
        "penalty after 200 orthogonal changes of gauge, worst",
        least,
        max(rotated, key=lambda value: abs(value - least)),
        tolerance,
        regime=SMALL,
    )
    yield at_least(
        "penalty after 200 other invertible changes of gauge, smallest over the least",
        1.0,
        min(reference.regauge(np.eye(5) + square / 10).penalty() for square in squares) / least,
        algebraic(),
        regime=SMALL,
    )
