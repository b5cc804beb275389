"""Rows of figure gauge: one pair of adapters written in many factors, under a rule that merges factors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from figures.store import Row, described
from figures.theory import Computation
from figures.theory.margins import margins_of
from toytransformer import adapters as lora
from toytransformer.compositions import Composition, Merge, catalogue
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

#: Merge weights of the gauge orbit: with them the aligned gauge answers every two-hop prompt.
ORBIT_WEIGHTS, ORBIT_SEEDS = (1.2, 1.5), 300


def _pair_in_gauges(rule: str, known: bool, gauges: tuple[str, str]) -> Composition:
    whole = catalogue.build("two-hop", facts=2, known=known, merge=Merge(rule, weights=ORBIT_WEIGHTS))
    pairs = zip(whole.adapters, gauges, strict=True)
    return replace(whole, adapters=tuple(replace(adapter, gauge=gauge) for adapter, gauge in pairs))


def _rows(known: bool) -> list[Row]:
    """The sum (no gauge matters), the named gauges and the random ones, as columns of one row each."""
    named = {"aligned": ("facts", "facts"), "SVD": ("svd", "svd"), "signs flipped": ("svd", "flipped")}
    orbit = {f"random:{seed}": ("facts", f"random:{seed}") for seed in range(ORBIT_SEEDS)}
    several = {"sum": {"any": ("facts", "facts")}, "named": named, "orbit": orbit}
    return [row(kind, known, gauges) for kind, gauges in several.items()]


def row(kind: str, known: bool, gauges: Mapping[str, tuple[str, str]]) -> Row:
    """One row: margins of both questions in each of the gauges; how the second adapter's columns are turned.

    kind: "sum" (a rule that no gauge matters to), "named" or "orbit" (under a rule that merges factors).
    """
    rule = "sum" if kind == "sum" else "linear"
    specs = [_pair_in_gauges(rule, known, pair) for pair in gauges.values()]
    several = [predict(spec, FullLimit()) for spec in specs]
    about: Row = {"kind": kind, "rule": rule, "known": known, "facts": 2, "weights": ORBIT_WEIGHTS}
    if rule == "linear":
        aligned = predict(_pair_in_gauges("linear", known, ("facts", "facts")), FullLimit()).adapters
        turns = [_turn(aligned, predicted.adapters) for predicted in several]
        about["reflection"] = [bool(np.linalg.det(turn) < 0) for turn in turns]
        about["angle"] = [round(math.degrees(math.atan2(turn[1, 0], turn[0, 0])), 2) for turn in turns]
    return about | {
        "gauges": list(gauges),
        "margins": [[margin for margin, _ in margins_of(predicted)] for predicted in several],
        "regime": described(FullLimit()),
        "seeds": list(range(len(gauges))) if kind == "orbit" else [],
        "draws": 1,
        "spec_hash": specs[0].spec_hash,
    }


def _turn(aligned: Sequence[lora.LoRA], pair: Sequence[lora.LoRA]) -> np.ndarray:
    """The orthogonal matrix that turns the second adapter's columns against the first's, (rank, rank)."""
    first, second = (
        np.linalg.lstsq(a.read, b.read, rcond=None)[0] for a, b in zip(aligned, pair, strict=True)
    )
    return first @ second.T


def jobs() -> list[Computation]:
    return [functools.partial(_rows, known) for known in (True, False)]
