"""Rows of figure recycled: what spans of updates capture of a relabelled target, and what one more gains."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from figures.store import Row, short
from figures.theory import Computation
from toytransformer.adapters import closed_form
from toytransformer.compositions import Prompt
from toytransformer.ledger.recycled import Outputs, centred, left, recycled, targets
from toytransformer.regimes import FullLimit

FACTS = 5
#: Of what is left, how many relabellings stand behind a drawing of gains, and how many updates span.
RELABELLINGS, SPANNED = 24, 3


def _about(kind: str, updates: str, seed: int) -> Row:
    origin = {"seeds": [seed], "draws": 1, "regime": {"name": "limit"}}
    return {"kind": kind, "updates": updates, "facts": FACTS, **origin}


def _shares(updates: str, seed: int) -> list[Row]:
    """Shares of the target that the first K of one draw of updates capture, over all relabellings."""
    rng, most = np.random.default_rng(seed), (FACTS - 1) ** 2
    drawn: Outputs = (
        rng.normal(size=(most, FACTS, FACTS)) if updates == "random" else recycled(FACTS, most, rng)
    )
    spans = drawn if updates == "recycled, as they are" else centred(drawn)
    counts = list(range(1, most + 1))
    found = np.array(
        [
            [1 - np.sum(left(spans[:count], target) ** 2) / (FACTS - 1) for target in targets(FACTS)]
            for count in counts
        ]
    )
    row = _about("share", updates, seed) | {"counts": counts, "formula": [k / most for k in counts]}
    for name, values in (
        ("mean", found.mean(axis=1)),
        ("low", np.quantile(found, 0.05, axis=1)),
        ("high", np.quantile(found, 0.95, axis=1)),
    ):
        row[name] = [short(value) for value in values]
    return [row | {"relabellings": found.shape[1]}]


def _gains(updates: str, seed: int) -> list[Row]:
    """What one more update gains beside SPANNED random ones, and its overlap, as shares of what is left."""
    rng = np.random.default_rng(seed)
    phi = FullLimit().features([Prompt(f"x{i}", ("R1", "R2")) for i in range(FACTS)]).values
    overlaps, gains = [], []
    for target in itertools.islice(targets(FACTS), RELABELLINGS):
        span = centred(rng.normal(size=(SPANNED, FACTS, FACTS)))
        if updates == "random":
            more = centred(rng.normal(size=(1, FACTS, FACTS)))[0]
        else:
            stored = FACTS if updates == "new" else FACTS - 1
            more = closed_form(phi[:stored], target[:stored]).shift(phi)
        rest, outside = left(span, target), left(span, more)
        gain = np.sum(rest**2) - np.sum(left(np.stack([*span, more]), target) ** 2)
        overlap = np.vdot(rest, more) ** 2 / np.sum(outside**2)
        overlaps.append(short(overlap / np.sum(rest**2)))
        gains.append(short(gain / np.sum(rest**2)))
    return [
        _about("gain", updates, seed)
        | {"overlaps": overlaps, "gains": gains, "spanned": SPANNED, "relabellings": RELABELLINGS}
    ]


def jobs() -> list[Computation]:
    spans, more = ("random", "recycled", "recycled, as they are"), ("random", "relevant", "new")
    return [
        *(functools.partial(_shares, updates, seed=0) for updates in spans),
        *(functools.partial(_gains, updates, seed=0) for updates in more),
    ]
