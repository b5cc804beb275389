"""Claims about adapters in closed form: Prop. 1, eq. 23, minimality, rank, gauges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import linalg, optimize

from toytransformer.adapters import AdapterError, LoRA, closed_form
from toytransformer.arrays import NumpyArray as Array
from toytransformer.compositions import Prompt
from toytransformer.ledger.registry import (
    Number,
    Row,
    Run,
    Tolerance,
    algebraic,
    at_least,
    claim,
    close,
    same,
    solver,
)
from toytransformer.regimes import Finite, FullLimit

SMALL = "finite, d = 64, m = 24"
LIMIT = "limit"


def small_facts(run: Run, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (fact, neuron) of x_i R1 in a small sampled network, and changes i_{y_i} - i_{old_i}."""
    prompts = [Prompt(f"x{i}", ("R1",)) for i in range(count)]
    features = Finite(dimension=64, width=24, seed=run.seed).features(prompts).values
    return features, _changes(count)


def _limit_facts(count: int) -> tuple[np.ndarray, np.ndarray]:
    return FullLimit().features([Prompt(f"x{i}", ("R1",)) for i in range(count)]).values, _changes(count)


def _changes(count: int) -> np.ndarray:
    """Rows i_{y_i} - i_{old_i} over 2 n distinct answers, (fact, entity)."""
    return np.eye(2 * count)[:count] - np.eye(2 * count)[count:]


def _nuclear(delta: np.ndarray) -> float:
    return float(np.sum(linalg.svdvals(delta)))


def largest(difference: np.ndarray) -> float:
    return float(np.max(np.abs(difference)))


def solve_rounding(features: np.ndarray, delta: np.ndarray) -> Tolerance:
    """Rounding of a solve with the Gram matrix: the condition number times the size of the result."""
    return algebraic(np.linalg.cond(features @ features.T) * max(1.0, np.linalg.norm(delta)), operations=100)


# --- an independent route: sequential quadratic programming on the factors ---


def least_factors(features: Array, changes: Array, rank: int, starts: Sequence[Array]) -> list[LoRA]:
    """Minimise |A|_F^2 + |B|_F^2 subject to A B^T Phi = T with scipy's SLSQP; the runs that converged."""
    (count, size), answers = features.shape, changes.shape[1]
    cut = answers * rank
    identity = np.eye(answers)

    def square(x: Array) -> tuple[float, Array]:
        return float(x @ x), 2 * x

    def factors(x: Array) -> tuple[Array, Array]:
        return x[:cut].reshape(answers, rank), x[cut:].reshape(size, rank)

    def residual(x: Array) -> Array:
        write, read = factors(x)
        return ((features @ read) @ write.T - changes).ravel()

    def slopes(x: Array) -> Array:
        write, read = factors(x)
        by_write = np.einsum("nr,ef->nefr", features @ read, identity).reshape(count * answers, -1)
        by_read = np.einsum("nf,er->nefr", features, write).reshape(count * answers, -1)
        return np.hstack([by_write, by_read])

    equality: Any = {"type": "eq", "fun": residual, "jac": slopes}  # scipy's stubs have no name for it
    found = []
    for start in starts:
        result = optimize.minimize(
            square,
            start,
            jac=True,
            method="SLSQP",
            constraints=equality,
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if result.success:
            found.append(LoRA(*factors(result.x)))
    if not found:
        raise RuntimeError(f"SLSQP converged from none of {len(starts)} starts at rank {rank}")
    return found


def _starts(run: Run, features: Array, changes: Array, rank: int, count: int = 3) -> list[np.ndarray]:
    """Random starts, each with its mirror image (A, B) -> (-A, -B)."""
    size = rank * (features.shape[1] + changes.shape[1])
    normal = np.random.default_rng([run.seed, rank]).standard_normal((count, size))
    return [sign * start for start in normal for sign in (1, -1)]


def _certificate(penalty: Number, excess: float) -> Tolerance:
    """How far from the minimiser D* a feasible D can be whose penalty exceeds the least, P, by `excess`.

    D = D* + N with D* N^T = 0, so D D^T = D* D*^T + N N^T and, the square root being operator concave,
    |D|_* - |D*|_* >= |N|_F^2 / (2 |D|); with |D| <= P/2 this is |N|_F^2 <= P excess / 2.
    """
    return solver(
        math.sqrt(penalty * excess / 2), f"sqrt(P x excess / 2) for the allowed excess {excess:.1e}"
    )


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
        found = least_factors(features, changes, rank, _starts(run, features, changes, rank))
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
            _certificate(least, tolerance.size),
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
    for (features, changes), regime in ((small_facts(run, 5), SMALL), (_limit_facts(100), LIMIT)):
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
        nuclear.append(_nuclear(delta + other) / _nuclear(delta) - 1)
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
    least = 2 * _nuclear(edit.delta())
    for rank in (3, 4):
        found = least_factors(features, changes, rank, _starts(run, features, changes, rank, count=2))
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
            _certificate(least, tolerance.size),
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
        features, question, changes = values[:-1], values[-1], _changes(count)
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
    features, changes = np.linalg.qr(small_facts(run, 5)[0].T)[0].T, _changes(5)
    yield close(
        "the two agree when features are orthogonal, largest deviation",
        0.0,
        largest(closed_form(features, changes).delta() - changes.T @ features),
        algebraic(),
        regime=SMALL,
    )


# --- rank and gauges ---


@claim("rank", source="eq. 23, theory.md P2", proof="AnyRank.rank_needed")
def rank_needed(run: Run) -> Iterator[Row]:
    features, changes = _limit_facts(100)
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
    least = 2 * _nuclear(reference.delta())
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
