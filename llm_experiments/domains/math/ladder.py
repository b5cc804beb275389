"""Templates of our own in three levels: one, two and three clauses, with numbers that stay small."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from llm_experiments.domains.math.templates import Template, template

#: What the levels are called, the easiest first.
LEVELS = ("p0", "p1", "p2")


@cache
def ladder() -> dict[str, tuple[Template, ...]]:
    """By level one template of each family, in one order. Named "level/family"."""
    families = tomllib.loads(Path(__file__).with_name("ladder.toml").read_text(encoding="utf-8"))["family"]
    return {
        level: tuple(
            template(f"{level}/{one['name']}", one[level]["question"], one[level]["solution"])
            for one in families
        )
        for level in LEVELS
    }
