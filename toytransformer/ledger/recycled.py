"""Recycled updates against random ones in the span of a fitted merge (theory.md, section 10)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from toytransformer.adapters import closed_form
from toytransformer.compositions import Prompt
from toytransformer.ledger.pair import LIMIT
from toytransformer.ledger.registry import Row, Run, algebraic, at_most, claim, close
from toytransformer.merging.fitted import free

SOURCE = "theory.md section 10; arXiv:2602.12323"
#: Outputs of updates on n examples, (update, example, answer).
Outputs = Float[np.ndarray, "update example answer"]


def targets(n: int) -> Iterator[Float[np.ndarray, "example answer"]]:
    """P_sigma - J/n for every sigma: what x_i -> z_sigma(i) asks for, without each answer's mean."""
    for sigma in itertools.permutations(range(n)):
        yield np.eye(n)[list(sigma)] - 1 / n


def left(outputs: Outputs, target: Float[np.ndarray, "example answer"]) -> np.ndarray:
    """target - the nearest point in the span of the outputs, by the fit of `adaptive`."""
    design = outputs.reshape(len(outputs), -1).T
    return target - (design @ free(design, target.ravel())).reshape(target.shape)


def mean_share(outputs: Outputs) -> float:
    """The share of the target that the span captures, averaged over all n! targets."""
    n = outputs.shape[-1]
    return float(np.mean([1 - np.sum(left(outputs, target) ** 2) / (n - 1) for target in targets(n)]))


def centred(outputs: Outputs) -> Outputs:
    """Without the means of rows and columns."""
    return (
        outputs
        - outputs.mean(1, keepdims=True)
        - outputs.mean(2, keepdims=True)
        + outputs.mean((1, 2), keepdims=True)
    )


def recycled(n: int, count: int, rng: np.random.Generator) -> Outputs:
    """Outputs on x_i R1 R2 of adapters that store x_i R1 and x_i R2 with answers drawn for each adapter."""
    asked = [Prompt(f"x{i}", ("R1", "R2")) for i in range(n)]
    stored = [Prompt(f"x{i}", (relation,)) for i in range(n) for relation in ("R1", "R2")]
    phi = LIMIT.features((*asked, *stored)).values
    answers = rng.integers(n, size=(count, len(stored)))
    return np.stack([closed_form(phi[n:], np.eye(n)[row]).shift(phi[:n]) for row in answers])


@claim(
    "a span that does not know sigma captures K / (n - 1)^2 of the target",
    source=SOURCE,
    proof="Recycled.recycled_equals_random, Recycled.recycled_at_most_random",
)
def spans(run: Run) -> Iterator[Row]:
    rng = np.random.default_rng(run.seed)
    where = "all n! relabellings"
    for n, count in ((3, 2), (5, 3), (6, 8)) if run.thorough else ((3, 2), (5, 3)):
        expected = count / (n - 1) ** 2
        found = {"random": rng.normal(size=(count, n, n)), "recycled": recycled(n, count, rng)}
        for name, outputs in found.items():
            text = f"{count} {name} updates, n = {n}"
            share = mean_share(centred(outputs))
            yield close(f"{text}, centred", expected, share, algebraic(), regime=where)
            yield at_most(f"{text}, as they are", expected, mean_share(outputs), algebraic(), regime=where)


@claim(
    "what one more update gains is its overlap with what is left",
    source=SOURCE,
    proof="Recycled.gain_is_overlap, Recycled.new_adapter_gains_all",
)
def gains(run: Run) -> Iterator[Row]:
    rng, n, count = np.random.default_rng(run.seed), 5, 3
    span, more = rng.normal(size=(count, n, n)), rng.normal(size=(n, n))
    phi = LIMIT.features([Prompt(f"x{i}", ("R1", "R2")) for i in range(n)]).values
    worst, rest = 0.0, 0.0
    for target in itertools.islice(targets(n), 24):
        before, outside = left(span, target), left(span, more)
        gain = np.sum(before**2) - np.sum(left(np.stack([*span, more]), target) ** 2)
        overlap = np.vdot(before, more) ** 2 / np.sum(outside**2)
        worst = max(worst, abs(float(gain - overlap)))
        new = closed_form(phi, target).shift(phi)
        rest = max(rest, math.sqrt(float(np.sum(left(np.stack([*span, new]), target) ** 2))))
    where = "24 relabellings, n = 5, K = 3"
    yield close("gain of a random update - its overlap", 0.0, worst, algebraic(n), regime=where)
    note = "it stores the examples (eq. 23)"
    yield close("norm of what is left with a new adapter", 0.0, rest, algebraic(n), regime=where, note=note)


@claim(
    "what reaches an unseen prompt is the kernel's share of the mean answer",
    source=SOURCE,
    proof="Recycled.unseen_prompts_get_the_mean, Recycled.unseen_prompts_get_nothing",
)
def unseen(run: Run) -> Iterator[Row]:
    for n in (2, 5):
        phi = LIMIT.features([Prompt(f"x{i}", ("R1", "R2")) for i in range(n + 1)]).values
        gram = phi[0] @ phi[1] / (phi[0] @ phi[0])
        share = n * gram / (1 + (n - 1) * gram)
        for name, wanted in (("answers", np.eye(n)), ("answers without their means", next(targets(n)))):
            said = closed_form(phi[:n], wanted).shift(phi[n:])[0]
            error = float(np.abs(said - share * wanted.mean(axis=0)).max())
            text = f"a new adapter of n = {n} {name}, asked u R1 R2: error of share x mean"
            yield close(text, 0.0, error, algebraic(n), regime="limit", note=f"the share is {share:.3f}")
