"""Claims about adapters in closed form: one fact (Prop. 1), several (eq. 23), each the least of its kind."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import linalg

from toytransformer.adapters import LoRA, closed_form
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions import Prompt
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
    answer_changes,
    certificate,
    largest,
    least_factors,
    limit_facts,
    mirrored_starts,
    nuclear_norm,
    small_facts,
    solve_rounding,
)
from toytransformer.regimes import FullLimit

# --- one fact ---


@claim(
    "Proposition 1",
    source="Prop. 1, eq. 1, 6-12",
    proof=(
        "Proposition1.proposition1_bound, Proposition1.proposition1_minimisers, AnyRank.any_rank_minimisers"
    ),
)
def proposition_1(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 1)
    edit = closed_form(features, changes)
    least = 2 * np.linalg.norm(changes) / np.linalg.norm(features)
    yield close(
        "W + Delta W outputs the new answer, largest deviation",
        0.0,
        largest(edit.shift(features) - changes),
        algebraic(),
        regime=SMALL,
    )
    outer = changes.T @ features / np.sum(features**2)
    yield close(
        "Delta W = w v^T / |v|^2, largest deviation",
        0.0,
        largest(edit.delta() - outer),
        algebraic(),
        regime=SMALL,
    )
    yield close("|A|^2 + |B|^2 = 2 |w| / |v|", least, edit.penalty(), algebraic(least), regime=SMALL)
    signs = set()
    for rank in (1, 2, 3):
        found = least_factors(features, changes, rank, mirrored_starts(run, features, changes, rank))
        tolerance = algebraic(least)
        yield close(
            f"least penalty found by a numerical minimiser, rank {rank}, worst of {len(found)} starts",
            least,
            max((lora.penalty() for lora in found), key=lambda value: abs(value - least)),
            tolerance,
            regime=SMALL,
        )
        yield close(
            f"its distance from w v^T / |v|^2, rank {rank}",
            0.0,
            max(np.linalg.norm(lora.delta() - outer) for lora in found),
            certificate(least, tolerance.size),
            regime=SMALL,
        )
        if rank == 1:
            signs = {int(np.sign(np.sum(lora.write * edit.write))) for lora in found}
    yield same(
        "signs of the minimiser's rank-one factors against the closed form's",
        [-1, 1],
        sorted(signs),
        regime=SMALL,
        note="Delta W is unique, its rank-one factors are so up to a sign (theory.md P1).",
    )
    rng = np.random.default_rng(run.seed)
    ratios = [
        _feasible(rng, features, changes, rank).penalty() / least for rank in (1, 2, 3) for _ in range(1000)
    ]
    yield at_least(
        "least penalty of 3000 random factors that store the fact, over 2 |w| / |v|",
        1.0,
        min(ratios),
        algebraic(),
        regime=SMALL,
    )


def _feasible(rng: np.random.Generator, features: Array, changes: Array, rank: int) -> LoRA:
    """Random factors with A B^T v = w: any B near v with B^T v != 0, A solved for, then balanced in size."""
    read = rng.standard_normal((1, rank)) * features.T + 10.0 ** rng.uniform(-4, 0) * rng.standard_normal(
        (features.shape[1], rank)
    )
    inner = (features @ read)[0]
    free = 10.0 ** rng.uniform(-4, 0) * rng.standard_normal((changes.shape[1], rank))
    write = free + np.outer(changes[0] - free @ inner, inner) / (inner @ inner)
    scale = math.sqrt(np.linalg.norm(read) / np.linalg.norm(write))
    return LoRA(write * scale, read / scale)


@claim(
    "Prop. 1 needs the regulariser",
    source="Prop. 1",
    proof="Proposition1.proposition1_needs_regulariser",
)
def needs_regulariser(run: Run) -> Iterator[Row]:
    features, changes = small_facts(run, 1)
    v, w = features[0], changes[0]
    u = np.random.default_rng(run.seed).standard_normal(len(v))
    u -= (u @ v) / (v @ v) * v
    other = LoRA(w[:, None], (v / (v @ v) + u)[:, None])
    yield close(
        "another rank-one update stores the fact, largest deviation",
        0.0,
        largest(other.shift(features) - changes),
        algebraic(1 + np.linalg.norm(u) * np.linalg.norm(v)),
        regime=SMALL,
    )
    yield close(
        "its distance |w| |u| from eq. 1",
        np.linalg.norm(w) * np.linalg.norm(u),
        np.linalg.norm(other.delta() - closed_form(features, changes).delta()),
        algebraic(np.linalg.norm(w) * np.linalg.norm(u)),
        regime=SMALL,
        note="paper: an update changing the output must be eq. 1; true: the one of least penalty is.",
    )


# --- several facts ---


@claim(
    "several facts",
    source="eq. 23",
    proof="LeastNormEdit.edit_least_frobenius, LeastNormEdit.minimisers_have_product_edit",
)
def several_facts(run: Run) -> Iterator[Row]:
    for (features, changes), regime in ((small_facts(run, 5), SMALL), (limit_facts(100), LIMIT)):
        edit = closed_form(features, changes)
        delta = edit.delta()
        formula = changes.T @ np.linalg.inv(features @ features.T) @ features
        tolerance = solve_rounding(features, delta)
        yield close(
            f"D Phi = T for {len(features)} facts, largest deviation",
            0.0,
            largest(edit.shift(features) - changes),
            tolerance,
            regime=regime,
        )
        yield close(
            "D = T G^-1 Phi^T, largest deviation", 0.0, largest(delta - formula), tolerance, regime=regime
        )
        solution, *_ = np.linalg.lstsq(features, changes, rcond=None)
        yield close(
            "least Frobenius norm: distance from LAPACK's least-norm solution",
            0.0,
            np.linalg.norm(delta - solution.T),
            tolerance,
            regime=regime,
        )
    features, changes = small_facts(run, 5)
    delta = closed_form(features, changes).delta()
    rng, outside = np.random.default_rng(run.seed), linalg.null_space(features)
    frobenius, nuclear = [], []
    for scale in 10.0 ** rng.uniform(-3, 1, 500):
        other = scale * rng.standard_normal((len(delta), outside.shape[1])) @ outside.T
        frobenius.append(np.sum((delta + other) ** 2) - np.sum(delta**2) - np.sum(other**2))
        frobenius[-1] /= np.sum((delta + other) ** 2)
        nuclear.append(nuclear_norm(delta + other) / nuclear_norm(delta) - 1)
    yield close(
        "|D + N|^2 = |D|^2 + |N|^2 for 500 other updates D + N that store the facts, worst relative defect",
        0.0,
        largest(np.array(frobenius)),
        solve_rounding(features, delta),
        regime=SMALL,
    )
    yield at_least(
        "smallest relative excess of their nuclear norm",
        0.0,
        min(nuclear),
        solve_rounding(features, delta),
        regime=SMALL,
    )
    features, changes = small_facts(run, 3)
    edit = closed_form(features, changes)
    least = 2 * nuclear_norm(edit.delta())
    for rank in (3, 4):
        found = least_factors(features, changes, rank, mirrored_starts(run, features, changes, rank, count=2))
        tolerance = solve_rounding(features, edit.delta())
        yield close(
            f"least |A|^2 + |B|^2 by a numerical minimiser is twice the nuclear norm, 3 facts, rank {rank}, "
            f"worst of {len(found)} starts",
            least,
            max((lora.penalty() for lora in found), key=lambda value: abs(value - least)),
            tolerance,
            regime=SMALL,
        )
        yield close(
            f"its distance from eq. 23, rank {rank}",
            0.0,
            max(np.linalg.norm(lora.delta() - edit.delta()) for lora in found),
            certificate(least, tolerance.size),
            regime=SMALL,
        )


@claim(
    "n facts are not a sum of n edits",
    source="A.1.1, eq. 6, 23",
    proof="ManyFacts.eq25",
)
def not_a_sum(run: Run) -> Iterator[Row]:
    leak = math.sqrt(3) / (2 * math.pi) + 1 / 3
    note = (
        'paper: at large d the update is "approximately a sum of rank-one updates (6), with cross-terms"; '
        "true: facts of one relation overlap by 0.6089978 however large d is, and the sum overshoots eq. 23 "
        "by a factor 1 + 0.6089978 (n - 1)."
    )
    for count in (2, 10, 100):
        asked = [*(Prompt(f"y{i}", ("R2",)) for i in range(count)), Prompt("x", ("R1", "R2"))]
        values = FullLimit().features(asked).values
        features, question, changes = values[:-1], values[-1], answer_changes(count)
        edit = closed_form(features, changes)
        summed = sum(closed_form(f[None], c[None]).delta() for f, c in zip(features, changes, strict=True))
        yield close(
            f"z_i on x R1 R2: eq. 23 over the sum of eq. 6, {count} facts y_i R2",
            1 / (1 + leak * (count - 1)),
            edit.shift(question[None])[0, 0] / (summed @ question)[0],
            solve_rounding(features, edit.delta()),
            regime=LIMIT,
            note=note if count == 2 else "",
        )
        yield close(
            f"z_j on the prompt y_i R2 under the sum (right: 0), {count} facts",
            leak,
            (summed @ features[0])[1],
            algebraic(),
            regime=LIMIT,
        )
    features, changes = np.linalg.qr(small_facts(run, 5)[0].T)[0].T, answer_changes(5)
    yield close(
        "the two agree when features are orthogonal, largest deviation",
        0.0,
        largest(closed_form(features, changes).delta() - changes.T @ features),
        algebraic(),
        regime=SMALL,
    )
