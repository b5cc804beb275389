"""Lists of adapters: text files with one a line, whatever `locate` understands."""

from __future__ import annotations

import re
from pathlib import Path

from toytransformer.adapters import AdapterError
from toytransformer.compositions.io import read_plain

#: A comment: from a # that begins a line or follows a space.
COMMENT = re.compile(r"(?:^|\s)#.*")


def listed(file: Path) -> list[str]:
    """The lines of a list of adapters. Errors: AdapterError where it is no text or holds none."""
    try:
        lines = read_plain(file).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} is no list of adapters, one a line ({error})") from error
    if named := [line for text in lines if (line := COMMENT.sub("", text).strip())]:
        return named
    raise AdapterError(f"{file} names no adapter: write one hub id or path a line")


def list_line(source: str) -> str:
    """The line of a list that is read as this adapter. Errors: AdapterError where there is none."""
    if "\n" in source or COMMENT.sub("", source).strip() != source:
        raise AdapterError(f"a list cannot hold {source!r}: rename the folder, without line ends and ' #'")
    return source
