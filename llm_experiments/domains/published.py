"""Rows of a published data set, from a copy that the environment names, else from the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_experiments.domains.task import TaskError


@dataclass(frozen=True)
class Published:
    """Where a set is.

    hub: its id there. variable: of the environment, that names a file or folder instead. files: patterns of
    its files, in a folder or on the hub; the first that any file has is taken.
    """

    hub: str
    variable: str
    files: tuple[str, ...]

    def rows(self) -> Sequence[dict[str, Any]]:
        """All rows, of all files of a pattern in the order of their names.

        Errors: TaskError where there is no copy, or none that can be read.
        """
        return _read(self, os.environ.get(self.variable))


@cache
def _read(of: Published, given: str | None) -> tuple[dict[str, Any], ...]:
    folder = Path(given) if given else _fetched(of)
    if folder.is_file():
        found = [folder]
    else:
        groups = (sorted(folder.glob(pattern)) for pattern in of.files)
        found = next((group for group in groups if group), [])
    if not found:
        raise TaskError(
            f"{given or of.hub} has none of {', '.join(of.files)}: name a copy, a file or folder of JSON "
            f"lines or Parquet, by {of.variable}"
        )
    return tuple(row for file in found for row in read_rows(file))


def _fetched(of: Published) -> Path:
    """The hub's copy, from its cache where it cannot be asked."""
    from huggingface_hub import snapshot_download

    for cached in (False, True):
        try:
            return Path(
                snapshot_download(
                    of.hub, repo_type="dataset", allow_patterns=list(of.files), local_files_only=cached
                )
            )
        except Exception as error:  # the hub's errors share no class
            reason = type(error).__name__
    raise TaskError(
        f"{of.hub} cannot be fetched from the hub ({reason}): name a copy of it, a file or folder of JSON "
        f"lines or Parquet, by {of.variable}"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of JSON lines or Parquet. Errors: TaskError on a file that is neither, or empty."""
    try:
        if path.suffix == ".parquet":
            import polars

            return polars.read_parquet(path).to_dicts()
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except Exception as error:  # whatever a file may hold
        raise TaskError(
            f"{path} cannot be read ({type(error).__name__}): give JSON lines or Parquet"
        ) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path} has no rows: give JSON lines, an object each")
    return rows


def text(row: dict[str, Any], name: str) -> str:
    """A field of a row. Errors: TaskError naming what the row has."""
    if not isinstance(row.get(name), str):
        raise TaskError(f"a row has {', '.join(row)}, but no text {name!r}: give the published rows")
    return row[name]
