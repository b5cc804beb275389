"""What the exercises are checked with: each function takes an answer, praises it or says what is wrong.

A wrong answer raises WrongAnswer. The right answer is computed with the library, never kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from toytransformer import layers as stacks
from toytransformer import merging
from toytransformer.adapters import LoRA, closed_form
from toytransformer.compositions import Merge, Prompt, catalogue
from toytransformer.mixture import mixture
from toytransformer.prediction import Prediction, base_output, predict
from toytransformer.regimes import Finite, FullLimit
from toytransformer.relabelling import average

#: Answers are typed or computed by hand, so this much is rounding.
CLOSE = 1e-6


class WrongAnswer(Exception):
    """Says in one sentence what is wrong; a notebook shows the sentence without the way to it."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def _written(answer: Any) -> None:
    parts = answer if isinstance(answer, tuple | list) else (answer,)
    if any(part is None or part is Ellipsis for part in parts):
        raise WrongAnswer("there is no answer yet; replace the dots in the exercise and run both cells again")


def _matrix(answer: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    _written(answer)
    try:
        found = np.asarray(answer, float)
    except (TypeError, ValueError):
        raise WrongAnswer(f"{what} has to hold numbers, and yours is {answer!r}") from None
    if found.shape != shape or not np.all(np.isfinite(found)):
        raise WrongAnswer(f"{what} has to hold finite numbers in shape {shape}; yours has {found.shape}")
    return found


def _number(answer: Any, what: str) -> float:
    return float(_matrix(answer, (), what))


# ---- lesson 1 ----


def two_facts(update: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """update(features (fact, feature), changes (fact, entity)) -> the smallest Delta W that stores both."""
    _written(update)
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((2, 12)) + 0.5, 0)
    changes = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    found = _matrix(update(features, changes), (4, 12), "Delta W = (entity, feature)")
    apart = features.copy()
    apart[1] -= apart[0] * (apart[0] @ apart[1]) / (apart[0] @ apart[0])
    easy = np.asarray(update(apart, changes), float)
    errors = np.abs(features @ found.T - changes).max(axis=1)
    if errors.max() > CLOSE:
        hint = "the two feature vectors overlap, so each edit also moves the other's prompt: solve for both"
        if np.abs(apart @ easy.T - changes).max() > CLOSE:
            hint = "it fails even on orthogonal features; does each fact alone get w v^T / |v|^2?"
        raise WrongAnswer(
            f"the facts are missed by {errors[0]:.3f} and {errors[1]:.3f} (at worst, per output); {hint}"
        )
    smallest = closed_form(features, changes).delta()
    if np.linalg.norm(found - smallest) > CLOSE:
        size, least = np.linalg.norm(found), np.linalg.norm(smallest)
        raise WrongAnswer(
            f"both facts are stored, but your update has norm {size:.3f} and the smallest has {least:.3f}; "
            "build its rows from the two feature vectors alone"
        )
    print("Right: both facts are stored exactly, and no smaller update does it (eq. 23 of the paper).")


# ---- lesson 2 ----


def three_hops(key: float, inner: float, query: float) -> None:
    """|h|^2 of x R1, its inner product with h of x R1 R2 R3, and the latter's |h|^2, by counting tokens."""
    gram = FullLimit().hidden_gram([Prompt("x", ("R1",)), Prompt("x", ("R1", "R2", "R3"))])
    for given, wanted, what, hint in (
        (key, gram[0, 0], "|h(x R1)|^2", "the last token counts 1, and one attended token has weight 1"),
        (
            query,
            gram[1, 1],
            "|h(x R1 R2 R3)|^2",
            "three tokens are attended to, each with weight 1/3, and weights are squared",
        ),
        (
            inner,
            gram[0, 1],
            "the inner product",
            "which token is attended to in both, with which weights? e_R1 and V e_R1 are orthogonal",
        ),
    ):
        if abs(_number(given, what) - wanted) > CLOSE:
            raise WrongAnswer(f"{what} is not {float(given):.4g}; {hint}")
    print("Right: three numbers are all that the kernel needs to know about two prompts.")


# ---- lesson 3 ----


def weights(pair: Sequence[float]) -> None:
    """Merge weights with which the sum answers x1 R1 R2 by z1, one known fact for each hop."""
    first, second = _matrix(pair, (2,), "the pair of weights").tolist()
    merge = Merge("sum", (first, second))
    asked, other = (
        predict(catalogue.build(name, facts=1, merge=merge), FullLimit())
        for name in ("two-hop", "other-entity")
    )
    if asked.strict_accuracy < 1:
        outputs = ", ".join(f"{name} {value:.3f}" for name, value in _largest(asked, 0, 3))
        raise WrongAnswer(
            f"with weights ({first:g}, {second:g}) the largest outputs on x1 R1 R2 are {outputs}; z1 has to "
            "be above the old answer b1, and above y1"
        )
    (answer, value), *_ = _largest(other, 0, 1)
    print("Right: z1 wins on x1 R1 R2. But look at u1 R1 R2, which nobody edited:")
    print(f"its answer was {other.composition.questions[0].old}, and is now {answer} (output {value:.3f}).")


def _largest(found: Prediction, question: int, count: int) -> list[tuple[str, float]]:
    names, output = found.composition.world.entities, found.output[question]
    return [(names[i], float(output[i])) for i in np.argsort(-output, kind="stable")[:count]]


# ---- lesson 4 ----

#: Merge weights of the gauge exercise, and its composition.
UNEVEN = (1.2, 1.5)


def swapped() -> tuple[Prediction, LoRA, LoRA]:
    """Two known facts for each hop; the adapters, the second with its two columns exchanged."""
    found = predict(
        catalogue.build("two-hop", facts=2, gauge="facts", merge=Merge("linear", UNEVEN)), FullLimit()
    )
    hop1, hop2 = found.adapters
    return found, hop1, hop2.regauge(np.array([[0.0, 1.0], [1.0, 0.0]]))


def answers(found: Prediction, hop1: LoRA, hop2: LoRA) -> list[str]:
    """What the factor-wise merge of these two adapters answers to the prediction's questions."""
    composition = found.composition
    rows = dict(zip(composition.prompts, FullLimit().features(composition.prompts).values, strict=True))
    asked = [question.prompt for question in composition.questions]
    shift = merging.merge((hop1, hop2), composition.merge).shift(np.stack([rows[p] for p in asked]))
    output = base_output(composition.world, asked) + shift
    return [composition.world.entities[i] for i in output.argmax(axis=1)]


def gauge(matrix: Any) -> None:
    """R that makes linear merging answer both two-hop prompts rightly, from `swapped` adapters."""
    turn = _matrix(matrix, (2, 2), "R")
    if abs(np.linalg.det(turn)) < CLOSE:
        raise WrongAnswer("R has no inverse, so (B R, A R^-T) does not exist; its determinant must not be 0")
    found, hop1, hop2 = swapped()
    turned = hop2.regauge(turn)
    given = answers(found, hop1, turned)
    wanted = [question.correct for question in found.composition.questions]
    if given != wanted:
        asked = [str(question.prompt) for question in found.composition.questions]
        said = "; ".join(f"{p}: {a}, right is {c}" for p, a, c in zip(asked, given, wanted, strict=True))
        raise WrongAnswer(f"{said}. Which column of hop 2 has to stand beside which column of hop 1?")
    moved = float(np.abs(turned.delta() - hop2.delta()).max())
    print(f"Right: both answers are {' and '.join(wanted)}, and Delta W has moved by {moved:.0e}.")


# ---- lesson 5 ----


def hits(share: Callable[[tuple[int, ...]], float]) -> None:
    """share(a): how often a[i] = sigma[i], averaged over i and over all relabellings sigma."""
    _written(share)
    for a in ((0,), (0, 1), (1, 1), (0, 1, 2), (2, 2, 0), (3, 0, 0, 1)):
        found, n = _number(share(a), f"the share for a = {a}"), len(a)
        wanted = float(
            np.mean([[a[i] == sigma[i] for i in range(n)] for sigma in itertools.permutations(range(n))])
        )
        if abs(found - wanted) > CLOSE:
            if n > 1 and abs(found / wanted - round(found / wanted)) < CLOSE:
                raise WrongAnswer(
                    f"for a = {a} you have {found:g}, {found / wanted:g} times too much: divide by the "
                    "number of relabellings and by the number of questions"
                )
            raise WrongAnswer(
                f"for a = {a} you have {found:g}; go through itertools.permutations(range({n})) and count "
                "the places where a and sigma agree"
            )
    print("Right: and whatever a is, the share is 1/n.")


#: Libraries of the second exercise; all are in the catalogue's plain pair.
LIBRARIES = {
    "A": ("hop1", "hop2"),
    "B": ("mixed",),
    "C": ("hop1", "hop2", "mixed"),
    "D": ("hop1", "hop2", "oracle"),
    "E": ("joint",),
}


def escapes(letters: Iterable[str]) -> None:
    """The libraries whose sum beats 1/n, averaged over all relabellings of three fresh facts."""
    _written(letters)
    chosen = set(letters)
    if unknown := chosen - LIBRARIES.keys():
        raise WrongAnswer(f"{sorted(unknown)} is no library; choose among {', '.join(LIBRARIES)}")
    for letter, library in LIBRARIES.items():
        share = share_right(library)
        if (share > 1 / 3 + CLOSE) != (letter in chosen):
            verdict = "does not beat" if letter in chosen else "beats"
            hint = "was any adapter shown both hops in one example?"
            raise WrongAnswer(
                f"{letter} = {' + '.join(library)} {verdict} 1/3 (its share is {share:.3f}); {hint}"
            )
    print("Right: what escapes has seen x R1 R2 itself, which tells it sigma.")


def share_right(library: tuple[str, ...]) -> float:
    """Accuracy of the library's sum on three fresh facts, averaged over all relabellings: a small network."""
    network = Finite(dimension=16, width=64)
    return average(
        lambda sigma: catalogue.build("two-hop", facts=3, known=False, library=library, sigma=sigma),
        3,
        network,
    ).accuracy


# ---- lesson 6 ----


def gap(own_minus_other: Callable[[np.ndarray], float]) -> None:
    """own_minus_other(c (edit, prompt)): mean of c[j, j] less the mean of c[i, j] over i != j."""
    from llm_experiments.domains.two_hop.overlaps import own_against_other

    _written(own_minus_other)
    for n in (2, 5):
        c = np.random.default_rng(n).uniform(0.2, 0.8, (n, n))
        found, wanted = _number(own_minus_other(c), "the gap"), own_against_other(c, draws=1).gap
        if abs(found - wanted) > CLOSE:
            hint = "take the mean over the diagonal, and subtract the mean over everything off the diagonal"
            if abs(found + wanted) < CLOSE:
                hint = "the sign is the other way round: own minus other"
            elif abs(found - (np.trace(c) / n - c.mean())) < CLOSE:
                hint = "the mean of all entries has the diagonal in it; leave it out of `other`"
            raise WrongAnswer(f"for n = {n} you have {found:.4f}, and it is {wanted:.4f}; {hint}")
    print("Right: this is the gap that eq. 25 says is zero for the second adapter.")


# ---- lesson 7 ----


def needed_weight(weight: Callable[[float, float, float], float]) -> None:
    """weight(own, bridge, old): from which weight of adapter 2 on the right z leads y and the old answer."""
    _written(weight)
    for own, bridge, old in ((0.25, 0.5, 0.0), (0.25, 0.4, 1.0), (0.5, 1.5, 1.0)):
        found = _number(weight(own, bridge, old), "the weight")
        wanted = max(bridge, old) / own
        if abs(found - wanted) > CLOSE:
            which = "y" if bridge > old else "the old answer"
            raise WrongAnswer(
                f"for own {own:g}, y {bridge:g} and old answer {old:g} you have {found:g}; at that weight z "
                f"has {found * own:g}, and {which} has {max(bridge, old):g}"
            )
    print("Right: nothing in it depends on sigma.")


def three_layers(layers: Sequence[int]) -> None:
    """The layers of hops 1, 2 and 3 in which the sum with weights 1, 3, 9 answers x R1 R2 R3."""
    _written(layers)
    found = _matrix(layers, (3,), "the layers")
    if not set(found.tolist()) <= {1.0, 2.0, 3.0}:
        raise WrongAnswer(f"{tuple(layers)} are no three layers; each is 1, 2 or 3")
    composition = catalogue.build("three-hop", facts=3, known=False, merge=Merge("sum", (1.0, 3.0, 9.0)))
    placement = {f"hop{k}": (int(layer),) for k, layer in enumerate(found, start=1)}
    share = stacks.predict(composition, stacks.Stack(FullLimit(), count=3), placement).accuracy
    if share < 1:
        raise WrongAnswer(
            f"in layers {tuple(layers)} {share:.3f} of the questions are right; each hop has to read what "
            "the hop before it wrote"
        )
    print("Right: L hops compose in L layers, in their order.")


# ---- lesson 8 ----


def merged_logits(merged: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> None:
    """merged(base (position, token), alone (adapter, position, token), weights (adapter,)) -> logits."""
    _written(merged)
    rng = np.random.default_rng(0)
    for weights in ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, -1.0, 1.5)):
        base, alone = rng.normal(size=(4, 5)), rng.normal(size=(3, 4, 5))
        found = _matrix(merged(base, alone, np.array(weights)), (4, 5), "the merge's logits")
        wanted = mixture(base, alone, weights)
        if np.abs(found - wanted).max() > CLOSE:
            hint = "each adapter moves the base by f_i - f_0, and its weight counts this move"
            if np.abs(found - np.einsum("a,apt->pt", weights, alone)).max() <= CLOSE:
                hint = "this is the weighted sum of the adapters' logits: the base is in each of them"
            elif np.abs(found - base - np.einsum("a,apt->pt", weights, alone)).max() <= CLOSE:
                hint = "the base is counted once for each adapter besides: subtract it from their logits"
            raise WrongAnswer(f"for weights {weights} the logits are off; {hint}")
    print("Right: so one pass with each adapter predicts every weighting of them.")


# ---- lesson 9 ----


def enough(adapters: Callable[[int, int, int], float]) -> None:
    """adapters(modules, facts, shown): the least K with K modules n / (p (n - 1)^2) >= 1."""
    _written(adapters)
    for modules, facts, shown in ((1, 5, 5), (12, 20, 20), (12, 20, 8), (7, 9, 4)):
        found = _number(adapters(modules, facts, shown), "the number of adapters")
        exact = shown * (facts - 1) ** 2 / (facts * modules)
        wanted = math.ceil(exact - CLOSE)
        if found == wanted:
            continue
        hint = "put the number of weights, K times the modules, for d and solve for K"
        if abs(found - exact) <= CLOSE:
            hint = "it is a whole number of adapters: round up"
        elif found == math.ceil((facts - 1) ** 2 / modules - CLOSE):
            hint = "this is for all facts shown; here they are p of n"
        elif found == math.ceil(exact * modules - CLOSE):
            hint = "each adapter has a weight for every module"
        raise WrongAnswer(
            f"for {modules} modules and {shown} of {facts} facts you have {found:g}, it is {wanted}; {hint}"
        )
    print("Right: a fit of so many weights explains its examples whatever it fits.")
