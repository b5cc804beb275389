"""README and the page of results: their templates, and what these say of experiments and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_experiments.domains.two_hop import names
from llm_experiments.domains.two_hop.pages import TwoHopRows
from llm_experiments.experiments.registry import EXPERIMENTS, Work
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.scoring.words import final_answer
from results import pages

ROOT = Path(__file__).parents[1]
DATA = ROOT / "llm_experiments" / "data"
#: Page -> template.
PAGES = {
    ROOT / "docs" / "results.md": ROOT / "docs" / "results.md.jinja",
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


FUNCTIONS: Mapping[str, Callable[..., object]] = {"invented": invented, "work": work, "timed": timed}


def render(template: Path) -> str:
    """A page of the project as Markdown. Errors: as results.pages.render."""
    return pages.render(template, DATA, FUNCTIONS, TwoHopRows)
