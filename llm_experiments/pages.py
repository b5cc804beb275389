"""README and the page of results: their templates, and what these say of experiments and benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llm_experiments.domains.task import DOMAINS
from llm_experiments.domains.two_hop import names
from llm_experiments.domains.two_hop.pages import TwoHopRows
from llm_experiments.experiments.registry import EXPERIMENTS, Work
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.scoring.words import final_answer
from predictors import agreement as comparing
from predictors import forms, registered, tiers
from predictors.agreement import Agreement
from predictors.registry import PREDICTORS
from results import claims, frame, pages
from results.cells import Cell
from results.files import is_folder_of_rows

ROOT = Path(__file__).parents[1]
DATA = ROOT / "llm_experiments" / "data"
#: The predictors that speak of rows that were there when they were made; of those adapters T3 has no curves.
LOOKED_AT = ("T0", "T1", "T2")
#: Page -> template.
PAGES = {
    ROOT / "docs" / "results.md": ROOT / "docs" / "results.md.jinja",
    ROOT / "docs" / "paper-vs-us.md": ROOT / "docs" / "paper-vs-us.md.jinja",
    ROOT / "docs" / "costs.md": ROOT / "docs" / "costs.md.jinja",
    ROOT / "README.md": ROOT / "docs" / "README.md.jinja",
}


def invented(row: Mapping[str, Any]) -> bool:
    """Whether the final answer of a chain is no real city: a place of the bridge, or no place."""
    return (final_answer(row["text"] or "") or "").strip(" .") not in names.real_cities()


def work(experiment: str, profile: str) -> Work:
    """What one seed of an experiment asks for on a base whose facts nobody knows."""
    return EXPERIMENTS[experiment].work(Base("", ""), PROFILES[profile], (0,))


def timed(*cases: str) -> list[dict[str, object]]:
    """The kept benchmarks of these cases in which another route was timed beside ours."""
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text())["rows"]
    return [row for row in rows if row["case"] in cases and row["ratio"] is not None]


@cache
def _measured() -> dict[str, list[Cell]]:
    """The cells of every kept folder, by its name."""
    return {
        folder.name: frame.read(folder).groups()
        for folder in sorted(DATA.iterdir())
        if is_folder_of_rows(folder)
    }


def paper_claims() -> list[claims.Claim]:
    """What kept rows say to every claim of the paper."""
    return claims.judged(_measured(), DOMAINS)


def row_by_row(table: str) -> list[claims.Beside]:
    """The rows of one of the paper's tables that kept rows have a cell for."""
    return claims.row_by_row(table, _measured())


@cache
def agreement(*, looked_at: bool) -> list[Agreement]:
    """How the kept predictions agree with merged cells: those looked at beforehand, or those not."""
    before = tiers.read(registered.REGISTERED)
    known = registered.places(before)
    every = [*(cell for cells in _measured().values() for cell in cells), *registered.measured()]
    cells = [c for c in every if comparing.plain(c) and registered.looked_at(c, known) == looked_at]
    lines = {tiers.key(line): line for line in (*tiers.read(), *before)}
    return comparing.table(cells, LOOKED_AT if looked_at else tuple(PREDICTORS), lines, tiers.limits())


def commits() -> list[str]:
    """The commits of the code that made the registered predictions."""
    return sorted({line["git"] for line in tiers.read(registered.REGISTERED)})


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


FUNCTIONS: Mapping[str, Any] = {
    **{"invented": invented, "work": work, "timed": timed},
    **{"paper_claims": paper_claims, "row_by_row": row_by_row, "theorems": theorems},
    **{"agreement": agreement, "commits": commits, "with_interval": forms.with_interval},
    **{"models": lambda: list(_measured()), "counted": claims.counted, "verdicts": claims.VERDICTS},
}


def render(template: Path) -> str:
    """A page of the project as Markdown. Errors: as results.pages.render."""
    return pages.render(template, DATA, FUNCTIONS, TwoHopRows)
