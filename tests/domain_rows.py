"""Rows of every domain but the first, measured on a tiny random model by the code that measures any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_experiments.domains.code.sizes import Size as CodeSize
from llm_experiments.domains.geography.sizes import Size as GeographySize
from llm_experiments.domains.math.sizes import Size as MathSize
from llm_experiments.engine.context import Context
from llm_experiments.engine.local import run
from llm_experiments.engine.store import Store
from llm_experiments.experiments.registry import EXPERIMENTS
from llm_experiments.experiments.sizes import PROFILES
from llm_experiments.experiments.study import Base
from llm_experiments.models.load import load
from tests.tiny_models import tiny_qwen2

PROFILE = replace(
    PROFILES["small"],
    temperatures=(1.0,),
    training=replace(PROFILES["small"].training, steps=1, batch=2, rank=2, base_dtype=None),
    sizes={
        "math": MathSize(templates=2, train=1, asked=1, own=1, dev=1),
        "code": CodeSize(programs=2, sentences=2, asked=2, own=1, dev=2),
        "geography": GeographySize(questions=2, places=3, own=1, dev=1),
    },
)
#: One of each domain whose cells have rows of the paper, and small ones beside.
MEASURED = ("table3", "table13", "code-own", "table20", "places-own")


def measure(folder: Path, names: Sequence[str] = MEASURED, seeds: Sequence[int] = (0,)) -> Path:
    """Run experiments into folder/run on a tiny model in folder/model; the folder of the run."""
    lines = ["How many are left? 3 + 4 = 7", "def f(x): return x", "It is in Europe. Asia, Africa"] * 5
    model = load(str(tiny_qwen2(folder / "model", lines, vocabulary=300)))
    store = Store(folder / "run")
    for name in names:
        plan = EXPERIMENTS[name].plan(Base(model.id, model.digest), PROFILE, tuple(seeds))
        store.add_run({"experiment": name, "model": model.id, "digest": model.digest}, plan.listed())
        summary = run(plan, store, Context(store, lambda: model), progress=False)
        assert not summary.failed, summary.failed
    return store.folder
