"""Files of unknown origin, read warily: no waiting at a pipe, no nesting that breaks a parser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

#: More than any configuration, index or table of facts has.
LARGEST = 2**28


class FileError(ValueError):
    """A file that is not there or cannot be read as what it should be; the message names it."""


def read_json(path: Path) -> object:
    """The content of a JSON file. Errors: FileError for all but a regular file of at most LARGEST bytes."""
    try:
        if not path.is_file():  # a pipe would be waited at for ever
            raise FileError(f"{path} is {'no file' if path.exists() else 'missing'}")
        if (size := path.stat().st_size) > LARGEST:
            raise FileError(f"{path} has {size} bytes; more than {LARGEST} are not read")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} cannot be read ({error})") from error
    except RecursionError:
        raise FileError(f"{path} cannot be read (it is nested too deeply)") from None


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. Errors: FileError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise FileError(f"{path} holds {type(content).__name__}, a JSON object is needed")
    return content


def printable(text: str) -> str:
    """Text of unknown origin for one line of a terminal: what would not print is shown as its escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def markdown(text: str) -> str:
    """Text of unknown origin for a line of Markdown: shown as it is, whatever it means there or in HTML."""
    return re.sub(r"([\\`*\[\]|!])", r"\\\1", html.escape(" ".join(printable(text).split())))
