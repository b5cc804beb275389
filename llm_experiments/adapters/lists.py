"""Lists of adapters: text files with one a line, whatever `locate` understands."""

from __future__ import annotations

from pathlib import Path

from toytransformer.adapters import AdapterError
from toytransformer.compositions.io import read_plain


def listed(file: Path) -> list[str]:
    """The lines of a list of adapters. Errors: AdapterError where it is no text or holds none."""
    try:
        lines = read_plain(file).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} is no list of adapters, one a line ({error})") from error
    if named := [line for text in lines if (line := text.partition("#")[0].strip())]:
        return named
    raise AdapterError(f"{file} names no adapter: write one hub id or path a line")
