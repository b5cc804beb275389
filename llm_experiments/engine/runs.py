"""The list of what was run into a folder, run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Required, TypedDict

from llm_experiments.engine.addresses import ADDRESS
from llm_experiments.engine.sealing import StoreError, canonical, parsed, read_signed, signed

RUN = "run.json"


class Listed(TypedDict):
    """A step of a run: its address, and what it is called."""

    address: str
    label: str


class Run(TypedDict, total=False):
    """One run: which experiment on which model, how large, and its steps in their order."""

    experiment: Required[str]
    steps: Required[list[Listed]]
    model: str
    digest: str
    profile: str
    seeds: list[int]
    names: list[int]


def read_runs(path: Path) -> list[Run]:
    """The runs that a file lists, oldest first. Errors: StoreError if it is not whole, or lists no runs."""
    runs = read_signed(path, "runs")["runs"]
    if not isinstance(runs, list) or not all(map(_is_run, runs)):
        raise StoreError("is signed, but does not list runs")
    return runs


def _is_run(run: object) -> bool:
    if not isinstance(run, dict) or not {"experiment", "steps"} <= set(run):
        return False
    texts = (run.get(key, "") for key in ("experiment", "model", "digest", "profile"))
    numbers = (run.get(key, []) for key in ("seeds", "names"))
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(drawn, list) and all(type(n) is int for n in drawn) for drawn in numbers)
        and isinstance(run["steps"], list)
        and all(map(_is_listed, run["steps"]))
    )


def _is_listed(step: object) -> bool:
    if not isinstance(step, dict) or not all(isinstance(step.get(key), str) for key in ("address", "label")):
        return False
    return ADDRESS.fullmatch(step["address"]) is not None


def with_run(runs: Sequence[Run], about: Mapping[str, object], steps: Sequence[Listed]) -> list[Run]:
    """The runs and this one; the same run (all but its steps equal) is listed once, with its latest steps."""
    new: Run = parsed(canonical({**about, "steps": [dict(step) for step in steps]}).encode())
    if not _is_run(new):
        raise StoreError(f"{dict(about)} is no run: give experiment, model, digest, profile, seeds, names")
    same = [{**run, "steps": []} == {**new, "steps": []} for run in runs]
    kept = [new if at else run for at, run in zip(same, runs, strict=True)]
    return kept if any(same) else [*kept, new]


def signed_runs(runs: Sequence[Run]) -> bytes:
    """The content of a file that read_runs() reads."""
    return signed({"runs": list(runs)})
