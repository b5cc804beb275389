"""Do the doctor's predictions of what merges lose come true? Forecasts beside their outcomes.

    merges(FOLDER)                    what was predicted and what was measured, one entry a library and merge
    agreement(entries, "sum")         rank correlations of predicted and measured losses, over adapters

What a merge loses is -log p of the answers less that of the adapter that was taught each, alone, in nats and
in the mean over questions; and the share of the answers that the adapters know alone and the merge does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from predictors.agreement import Measure
from results import files
from results.statistics import member_bootstrap

#: The kept lines, a folder for each base.
MERGES = Path(__file__).parent / "data" / "merges"
#: Lines of one library and of one merge.
Line = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Merged:
    """One merge of one library. library, predicted, measured: the lines that say so."""

    library: Line
    predicted: Line
    measured: Line

    @property
    def merge(self) -> str:
        """What the merge is called."""
        return str(self.predicted["merge"])

    @property
    def adapters(self) -> tuple[str, ...]:
        """The addresses of what is merged."""
        return tuple(self.library["adapters"])

    def lost(self, line: Line) -> float:
        """The rise of -log p of an answer, in nats."""
        return float(line["loss"] - self.library["alone"])

    def forgotten(self, line: Line) -> float:
        """The share of known answers that are lost."""
        return 1 - float(line["kept"] / self.library["known"])


def _keeps(one: Merged) -> float:
    """How far what the rule keeps of each adapter is from all of it: mean |1 - <M, D> / |D|^2|."""
    kept = one.predicted["keeps"]
    return float("nan") if kept is None else float(np.mean(np.abs(1 - np.array(kept, float))))


#: What may say of a merge beforehand how much it loses, larger for more: by the law, or by the weights alone.
PREDICTORS: Mapping[str, Callable[[Merged], float]] = {
    "mixture law": lambda one: one.lost(one.predicted),
    "what the rule keeps": _keeps,
    "cosine": lambda one: float(one.library["cosine"]),
    "read overlap": lambda one: float(one.library["read"]),
    "write overlap": lambda one: float(one.library["write"]),
}


@cache
def merges(folder: Path) -> tuple[Merged, ...]:
    """What was both predicted and measured, in the order of the predictions.

    Errors: RowsError as files.read.
    """
    lines = files.read(folder, ["merges"]).merges
    by_kind: dict[str, dict[tuple[str, str], Line]] = {"library": {}, "predicted": {}, "measured": {}}
    for line in lines:
        if line["kind"] in by_kind:
            by_kind[line["kind"]][line["forecast"], line.get("merge", "")] = line
    return tuple(
        Merged(by_kind["library"][forecast, ""], line, by_kind["measured"][forecast, merge])
        for (forecast, merge), line in by_kind["predicted"].items()
        if (forecast, merge) in by_kind["measured"]
    )


@dataclass(frozen=True)
class Agreement:
    """How well each predictor ranks merges by what they lose.

    libraries, adapters: how many. rank: by predictor Spearman's correlation with the measured rise of -log p,
    with the interval of a bootstrap over adapters; NaN where it says nothing of some of them. apart: mean
    |predicted - measured| share of known answers that are lost, by the law.
    """

    libraries: int
    adapters: int
    rank: Mapping[str, Measure]
    apart: float


def agreement(entries: Sequence[Merged], merge: str | None = None) -> Agreement:
    """Of these merges, or of those of one name. Errors: StatisticsError where there are none."""
    own = [one for one in entries if merge in (None, one.merge)]
    measured = [one.lost(one.measured) for one in own]
    values = np.array([measured, *([predict(one) for one in own] for predict in PREDICTORS.values())]).T

    def correlations(rows: np.ndarray) -> list[float]:
        ranks = stats.rankdata(values[rows], axis=0)
        ranks -= ranks.mean(axis=0)
        norms = np.linalg.norm(ranks, axis=0)
        scale, nothing = norms[0] * norms, np.full(len(norms), np.nan)
        return np.divide(ranks[:, 0] @ ranks, scale, out=nothing, where=scale > 0)[1:].tolist()

    ends = member_bootstrap(correlations, [one.adapters for one in own], seed=0)
    apart = [abs(one.forgotten(one.predicted) - one.forgotten(one.measured)) for one in own]
    return Agreement(
        len({one.predicted["forecast"] for one in own}),
        len({address for one in own for address in one.adapters}),
        {
            name: Measure(value, *interval)
            for name, value, interval in zip(PREDICTORS, correlations(np.arange(len(own))), ends, strict=True)
        },
        float(np.mean(apart)),
    )


def diagnosed(folder: Path) -> dict[str, list[Line]]:
    """What the doctor said of a library of known conflicts: by "diagnosis", "finding" and "sentence"."""
    kinds: dict[str, list[Line]] = {"diagnosis": [], "finding": [], "sentence": []}
    for line in files.read(folder, ["merges"]).merges:
        if line["kind"] in kinds:
            kinds[line["kind"]].append(line if line["kind"] == "diagnosis" else line[line["kind"]])
    return kinds
