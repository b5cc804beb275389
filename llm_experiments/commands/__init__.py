"""The commands of `python -m llm_experiments`, by what they work on: runs, rows, adapters, data.

Those that only one domain has are the COMMANDS of the module `commands` in its folder, its ways to write data
the EXPORTS.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Iterator

import click

from llm_experiments import domains


def of_domains(kind: str = "COMMANDS") -> Iterator[click.Command]:
    """The commands that the domains bring; kind: the name of what they are in."""
    for folder in pkgutil.iter_modules(domains.__path__, f"{domains.__name__}."):
        if folder.ispkg and importlib.util.find_spec(f"{folder.name}.commands"):
            yield from getattr(importlib.import_module(f"{folder.name}.commands"), kind)
