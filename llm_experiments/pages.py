"""README and the page of results: their templates, and what these say of experiments and benchmarks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_experiments.diagnose.combining import FITTED
from llm_experiments.domains.measured import Section, names, section
from llm_experiments.domains.task import DOMAINS
from llm_experiments.domains.two_hop.names import real_cities
from llm_experiments.domains.two_hop.pages import TwoHopRows
from llm_experiments.experiments.registry import EXPERIMENTS, Work
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.scoring.words import final_answer
from predictors import agreement as comparing
from predictors import forms, registered, tiers
from predictors import merged as foretold
from predictors.agreement import Agreement
from results import claims, frame, pages, recycled, statistics
from results.cells import RIGHT, Cell
from results.files import is_folder_of_rows

ROOT = Path(__file__).parents[1]
DATA = ROOT / "llm_experiments" / "data"
#: The predictors that speak of rows that were there when they were made; of those adapters T3 has no curves.
LOOKED_AT = ("T0", "T1", "T2")
#: Page -> template.
PAGES = {
    ROOT / "docs" / "results.md": ROOT / "docs" / "results.md.jinja",
    ROOT / "docs" / "paper-vs-us.md": ROOT / "docs" / "paper-vs-us.md.jinja",
    ROOT / "docs" / "domains-measured.md": ROOT / "docs" / "domains-measured.md.jinja",
    ROOT / "docs" / "costs.md": ROOT / "docs" / "costs.md.jinja",
    ROOT / "docs" / "doctor.md": ROOT / "docs" / "doctor.md.jinja",
    ROOT / "docs" / "recycling.md": ROOT / "docs" / "recycling.md.jinja",
    ROOT / "docs" / "wild-pool.md": ROOT / "docs" / "wild-pool.md.jinja",
    ROOT / "README.md": ROOT / "docs" / "README.md.jinja",
}


def invented(row: Mapping[str, Any]) -> bool:
    """Whether the final answer of a chain is no real city: a place of the bridge, or no place."""
    return (final_answer(row["text"] or "") or "").strip(" .") not in real_cities()


def work(experiment: str, profile: str) -> Work:
    """What one seed of an experiment asks for on a base whose facts nobody knows."""
    return EXPERIMENTS[experiment].work(Base("", ""), PROFILES[profile], (0,))


def timed(*cases: str) -> list[dict[str, object]]:
    """The kept benchmarks of these cases in which another route was timed beside ours."""
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text())["rows"]
    return [row for row in rows if row["case"] in cases and row["ratio"] is not None]


@cache
def kept_cells() -> dict[str, list[Cell]]:
    """The cells of every kept folder, by its name."""
    return {
        folder.name: frame.read(folder).groups()
        for folder in sorted(DATA.iterdir())
        if is_folder_of_rows(folder)
    }


def paper_claims() -> list[claims.Claim]:
    """What kept rows say to every claim of the paper."""
    return claims.judged(kept_cells(), DOMAINS, pools())


def row_by_row(table: str) -> list[claims.Beside]:
    """The rows of one of the paper's tables that kept rows have a cell for."""
    return claims.row_by_row(table, kept_cells())


@dataclass(frozen=True)
class Draw:
    """Merged cells of one base and draw of names that were predicted before they were measured.

    commits: of the code that made the predictions. tiers: the predictors that were there.
    """

    base: str
    number: int
    commits: tuple[str, ...]
    tiers: tuple[str, ...]
    agreement: list[Agreement]


@cache
def _predicted() -> tuple[list[tiers.Line], registered.Known, dict[tiers.Key, tiers.Line]]:
    before = tiers.read(registered.REGISTERED)
    return before, registered.Known.of(before), {tiers.key(line): line for line in (*tiers.read(), *before)}


def _predicted_by_spec(cell: Cell) -> bool:
    """Whether a cell counts whose composition says what it is; those without stand on a page of their own."""
    return comparing.plain(cell) and cell.info.spec_hash is not None


def sections() -> list[Section]:
    """The other domains, each with what kept rows say of it."""
    cells = [cell for several in kept_cells().values() for cell in several]
    return [section(name, cells) for name in names()]


@cache
def looked_at() -> list[Agreement]:
    """How the kept predictions agree with merged cells that had been there when they were made."""
    _, known, lines = _predicted()
    every = [cell for cells in kept_cells().values() for cell in cells if _predicted_by_spec(cell)]
    return comparing.table([c for c in every if known.looked_at(c)], LOOKED_AT, lines, tiers.limits())


@cache
def draws() -> list[Draw]:
    """The same for those that were predicted before, by draw of names."""
    before, known, lines = _predicted()
    every = [*kept_cells().values(), *registered.measured().values()]
    cells = [c for several in every for c in several if _predicted_by_spec(c) and not known.looked_at(c)]
    found = []
    for base, number in sorted({(cell.info.base, draw) for cell in cells for draw in cell.names}):
        own = [cell for cell in cells if (cell.info.base, cell.names) == (base, (number,))]
        there = known.tiers(own)
        places = {(i.spec_hash, i.digest, i.dataset, i.names) for cell in own for i in cell.infos}
        commits = {line["git"] for line in before if tiers.key(line)[1:] in places}
        agreed = comparing.table(own, there, lines, tiers.limits())
        found.append(Draw(base, number, tuple(sorted(commits)), there, agreed))
    return found


def beforehand(cell: Cell, tier: str) -> float:
    """The share of right answers that a tier said beforehand of a cell, the mean over its draws of names.

    Errors: ResultsError where it said nothing.
    """
    before, _, _ = _predicted()
    said = {tiers.key(line): line["asked"] for line in before}
    keys = [(tier, i.spec_hash, i.digest, i.dataset, i.names) for i in cell.infos]
    if missing := [key for key in keys if key not in said]:
        raise pages.ResultsError(f"{tier} was not asked beforehand about {missing[0]}")
    shares = [said[key][cell.question_kind].get(RIGHT, 0.0) for key in keys]
    return math.fsum(shares) / len(shares)


@cache
def moved_alone() -> dict[str, list[float]]:
    """Shares of the other hop's questions that one adapter alone, at weight one, answers unlike the base.

    By "plain" and "bridged", of every adapter of the draws that were predicted beforehand.
    """
    found: dict[str, list[float]] = {"plain": [], "bridged": []}
    for cell in (cell for cells in registered.measured().values() for cell in cells):
        alone = (
            cell.info.weights == (1.0,) and cell.info.control in ("hop1", "hop2") and not cell.info.variant
        )
        if alone and cell.question_kind in {"hop1/direct", "hop2/direct"} - {f"{cell.info.control}/direct"}:
            kind = "plain" if cell.info.task == "setup-0" else "bridged"
            found[kind].append(1 - cell.outcome("old") - cell.outcome("correct"))
    return found


def theorems() -> list[dict[str, object]]:
    """The paper's theorems: what of them, and what against them, the table of proofs calls proved."""
    lines = (ROOT / "proofs" / "README.md").read_text(encoding="utf-8").splitlines()
    proved = {
        name for line in lines if line.endswith("| proved |") for name in re.findall(r"`(\w+\.\w+)`", line)
    }
    return [
        {
            **theorem,
            "holds": set(theorem["proved"]) <= proved,
            "fails": set(theorem["counterexamples"]) <= proved,
        }
        for theorem in claims.claims()["theorem"]
    ]


def merged(base: str) -> tuple[foretold.Merged, ...]:
    """What was predicted and measured of merges on a base."""
    return foretold.merges(foretold.MERGES / base)


@cache
def truth(base: str, merge: str | None = None) -> foretold.Agreement:
    """How well what these merges lose was predicted."""
    return foretold.agreement(merged(base), merge)


@cache
def pools() -> dict[str, recycled.Pool]:
    """Adapters of a pool fitted on examples, by base; without those of which forecasts alone are kept."""
    found = {folder.name: recycled.read(folder) for folder in sorted((DATA / "pools").iterdir())}
    return {name: pool for name, pool in found.items() if pool.cells}


def shown(name: str) -> dict[str, Any]:
    """What llm_experiments.pools.shown wrote of a pool."""
    return json.loads((DATA / "pools-shown" / f"{name}.json").read_text(encoding="utf-8"))


def shown_difference(told: Mapping[str, Any], first: str, second: str) -> str:
    """The mean difference of the losses held out, with its 95% bootstrap over questions."""
    one, other = (told["answers"][name]["held_out"] for name in (first, second))
    apart = [a - b for a, b in zip(one, other, strict=True)]
    low, high = statistics.cluster_interval(apart, range(len(apart)), seed=0)
    return f"{math.fsum(apart) / len(apart):+.2f} [{low:.2f}, {high:.2f}]"


FUNCTIONS: Mapping[str, Any] = {
    **{"invented": invented, "work": work, "timed": timed},
    "measured_domains": lambda: sorted({c.info.domain for cells in kept_cells().values() for c in cells}),
    "temperatures": lambda profile: PROFILES[profile].temperatures,
    **{"paper_claims": paper_claims, "row_by_row": row_by_row, "theorems": theorems},
    **{
        "looked_at": looked_at,
        "draws": draws,
        "beforehand": beforehand,
        "moved_alone": moved_alone,
        "with_interval": forms.with_interval,
    },
    **{"merged": merged, "truth": truth, "predictors": foretold.PREDICTORS, "fitted": FITTED},
    **{"worlds": lambda entries: len({one.library["names"] for one in entries})},
    **{"diagnosed": lambda base: foretold.diagnosed(foretold.MERGES / base)},
    **{"sections": sections, "pools": pools, "shown": shown, "shown_difference": shown_difference},
    **{"models": lambda: list(kept_cells()), "counted": claims.counted, "verdicts": claims.VERDICTS},
}


def render(template: Path) -> str:
    """A page of the project as Markdown. Errors: as results.pages.render."""
    return pages.render(template, DATA, FUNCTIONS, TwoHopRows)
