"""The list of what was run into a folder, run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from llm_experiments.engine.addresses import ADDRESS
from llm_experiments.engine.sealing import StoreError, canonical, parsed, read_signed, signed

RUN = "run.json"


class Listed(TypedDict):
    """A step of a run: its address, and what it is called."""

    address: str
    label: str


#: One run: experiment, model, digest, seeds, profile, and `steps`, a list of Listed in their order.
Run = dict[str, Any]


def read_runs(path: Path) -> list[Run]:
    """The runs that a file lists, oldest first. Errors: StoreError if it is not whole, or lists no runs."""
    runs = read_signed(path, "runs")["runs"]
    if not isinstance(runs, list) or not all(map(_is_run, runs)):
        raise StoreError("is signed, but does not list runs")
    return runs


def _is_run(run: object) -> bool:
    if not isinstance(run, dict) or not isinstance(run.get("experiment"), str):
        return False
    steps, seeds = run.get("steps"), run.get("seeds", [])
    return isinstance(seeds, list) and isinstance(steps, list) and all(map(_is_listed, steps))


def _is_listed(step: object) -> bool:
    if not isinstance(step, dict) or not all(isinstance(step.get(key), str) for key in ("address", "label")):
        return False
    return ADDRESS.fullmatch(step["address"]) is not None


def with_run(runs: Sequence[Run], about: Mapping[str, Any], steps: Sequence[Listed]) -> list[Run]:
    """The runs and this one; the same run (all but its steps equal) is listed once, with its latest steps."""
    new: Run = parsed(canonical({**about, "steps": [dict(step) for step in steps]}).encode())
    same = [{**run, "steps": None} == {**new, "steps": None} for run in runs]
    kept = [new if at else run for at, run in zip(same, runs, strict=True)]
    return kept if any(same) else [*kept, new]


def signed_runs(runs: Sequence[Run]) -> bytes:
    """The content of a file that read_runs() reads."""
    return signed({"runs": list(runs)})
