"""The plain pair x R1 R2 that several modules of claims measure: its constants, and how outputs are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from toytransformer import kernel
from toytransformer.compositions import Composition, Merge, Prompt, catalogue
from toytransformer.merging import Merged, StaticMerge
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import Features, Finite, FullLimit, Regime
from toytransformer.symmetry import SymmetricPrediction

LIMIT = FullLimit()


class Drawn(Finite):
    """A finite network that is drawn once for a set of prompts, however many merges are then tried on it."""

    def features(self, prompts: Sequence[Prompt], *, neurons: bool = False) -> Features:
        return _drawn(self, tuple(prompts), neurons)


@functools.lru_cache(maxsize=16)
def _drawn(network: Finite, prompts: tuple[Prompt, ...], neurons: bool) -> Features:
    return Finite.features(network, prompts, neurons=neurons)


def overlap(key: float, inner: float, query: float) -> float:
    """k(key, query) / k(key, key) from |key|^2, key.query and |query|^2 (in the limit, token counts)."""
    return float(kernel.overlap(*(np.asarray(value, float) for value in (key, inner, query))))


#: eta = V e_x + e_R has |eta|^2 = 2, xi = (V e_x + V e_R1)/2 + e_R2 has |xi|^2 = 3/2 (strict mask).
C1, C2 = overlap(2, 1 / 2, 3 / 2), overlap(2, 1, 3 / 2)
#: What an edit leaks onto an unrelated one-hop prompt, onto one sharing a token, onto x' R1 R2.
LEAK, SHARED, FAR = overlap(2, 0, 2), overlap(2, 1, 2), overlap(2, 0, 3 / 2)


def pair(facts: int, known: bool = True, name: str = "two-hop", **arguments: Any) -> Composition:
    return catalogue.build(name, facts=facts, known=known, **arguments)


def dense(merged: Merged) -> np.ndarray:
    """The dense update of a merge that has one for all prompts."""
    return cast(StaticMerge, merged).delta()


def outcome(prediction: Prediction | SymmetricPrediction) -> str:
    """The outcome that all questions share, or the shares where they differ."""
    shares = {name: round(share, 6) for name, share in prediction.shares.items() if share}
    return next(iter(shares)) if len(shares) == 1 else str(shares)


def parts(composition: Composition, regime: Regime = LIMIT) -> tuple[np.ndarray, np.ndarray]:
    """Base outputs (question, entity), and what each adapter alone adds (adapter, question, entity)."""
    count = len(composition.adapters)
    weights = [(0.0,) * count, *(tuple(row) for row in np.eye(count).tolist())]
    base, *moved = (predict(composition.with_merge(Merge("sum", w)), regime).output for w in weights)
    return base, np.stack(moved) - base


def is_top(output: np.ndarray, index: int | np.ndarray, tie: float = 1e-12) -> np.ndarray:
    """Whether one entity's output is the only largest along the last axis, by more than `tie`."""
    index = np.broadcast_to(np.asarray(index), output.shape[:-1])[..., None]
    own = np.take_along_axis(output, index, -1)[..., 0]
    others = np.where(np.arange(output.shape[-1]) == index, -np.inf, output).max(-1)
    return own > others + tie


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds`, false at low and true at high, begins to hold: bisection to the last bits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
